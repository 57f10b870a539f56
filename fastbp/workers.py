"""The threads that help in a kernel call: how many there may be, and the pool that keeps them."""

from __future__ import annotations

import math
import os
import threading
from contextlib import suppress
from pathlib import Path, PurePosixPath
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from fastbp import checks
from fastbp.kernels.team import ABORT, SYNC_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["available_cores", "checked_threads", "run_in_threads", "run_team", "workers_for"]

_WORTH_SHARING = 1_500_000  # multiply-adds of a step: some 15 µs, of which meeting costs one (perf/growth.py threads)

Sync = np.ndarray[Any, np.dtype[np.int64]]


def available_cores() -> int:
    """Return how many cores this process may use: those of its affinity mask, within its control groups' quota."""
    try:
        n_cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this platform
        n_cores = os.cpu_count() or 1
    return max(1, int(min(n_cores, _quota())))


def _quota(membership: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the cores that the control groups of this process grant (a group and all above it), infinite without any.

    Parameters
    ----------
    membership : Path
        The file of lines ``id:controllers:group``, version 2's without controllers.
    mounted : Path
        The folder of the groups. In a container its root is the container's group, whatever the file says.
    """
    try:
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return math.inf
    quotas = [math.inf]
    for _, controllers, group in lines:
        is_second_version = controllers == ""
        if is_second_version or "cpu" in controllers.split(","):
            folder, quota_of = (mounted, _quota_2) if is_second_version else (mounted / "cpu", _quota_1)
            path = PurePosixPath(group)
            quotas += [quota_of(folder / part.relative_to("/")) for part in (path, *path.parents)]
    return min(quotas)


def _quota_1(folder: Path) -> float:
    """Return the quota of a control group of version 1; -1 there is infinite."""
    with suppress(OSError, ValueError):
        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if float(quota) > 0:
            return float(quota) / float(period)
    return math.inf


def _quota_2(folder: Path) -> float:
    """Return the quota of a control group of version 2; "max" there is infinite."""
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return float(quota) / float(period)
    return math.inf


def checked_threads(threads: object) -> int | str:
    """Return `threads` if it is a positive integer or "auto".

    Raises
    ------
    TypeError, ValueError
        If it is anything else.
    """
    expected = "a positive integer or 'auto'"
    if isinstance(threads, str):
        if threads != "auto":
            raise ValueError(f"threads must be {expected}, got {threads!r}")
        return threads
    return checks.positive_int(threads, "threads", expected)


def workers_for(threads: int | str, step_cost: int) -> int:
    """Return how many workers to ask for, given the user's wish and the multiply-adds of a step."""
    if threads == 1 or (threads == "auto" and step_cost < _WORTH_SHARING):
        return 1
    n_cores = available_cores()
    return n_cores if threads == "auto" else min(int(threads), n_cores)


class _Pool:
    """Threads of this process, started when first needed and forgotten in a forked child, which has none of them.

    They are daemons, so that no end of the process waits for them, and `concurrent.futures` does not own them: it takes
    no more tasks once the main thread has ended, while other threads may still train; and an interrupt while it starts
    a thread leaves one behind that the process waits for in vain. There is no lock that a fork, or a signal handler
    that trains too, could find taken: two callers at the same time may at worst start a thread too many.
    """

    def __init__(self) -> None:
        self._forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._tasks: SimpleQueue[Any] = SimpleQueue()
        self._idle: SimpleQueue[None] = SimpleQueue()  # an entry per thread that has nothing to do
        self._n_threads = 0

    def submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have a thread call the function as soon as one is free; never, if no thread can be started."""
        try:
            self._idle.get_nowait()
        except Empty:
            if self._n_threads < max(1, available_cores() - 1):
                self._start()
        if self._n_threads > 0:
            self._tasks.put((function, arguments))

    def _start(self) -> None:
        with suppress(RuntimeError):  # the system or a closing interpreter grants no more threads
            threading.Thread(target=_serve, args=(self._tasks, self._idle), name="fastbp", daemon=True).start()
            self._n_threads += 1


def _serve(tasks: SimpleQueue[Any], idle: SimpleQueue[None]) -> None:
    """Run a helper thread: call what is submitted, one after the other."""
    while True:
        function, arguments = tasks.get()
        # A helper that cannot enter the kernel is one that comes too late; only worker 0's errors are anybody's.
        with suppress(Exception):
            function(*arguments)
        del function, arguments  # with all that they keep alive
        idle.put(None)


_POOL = _Pool()


def run_team(n_workers: int, call: Callable[[int, Sync], int]) -> int:
    """Run ``call(worker, sync)`` here with worker 0 and, as far as threads are free, in helper threads with 1, 2, ...

    Parameters
    ----------
    n_workers : int
    call : callable
        Enters a kernel with `sync`, the array through which its team meets (`fastbp.kernels.team`). It may be called
        late, after all is over, and must keep alive what its kernel touches before it has joined the team.

    Returns
    -------
    int
        What the call with worker 0 returned.
    """
    sync = np.zeros(SYNC_SIZE, np.int64)
    try:
        for worker in range(1, n_workers):
            _POOL.submit(call, worker, sync)
        return call(0, sync)
    except BaseException:
        sync[ABORT] = 1  # helpers that wait go; those that come later join, see it, and go
        raise


def run_in_threads(tasks: Sequence[Callable[[], None]]) -> None:
    """Call the first task here and each other one in a thread of its own; returns when all have ended.

    Raises
    ------
    Exception
        What a task raises, or comes here meanwhile; the first of several.
    """
    errors: list[BaseException] = []

    def run(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:
            errors.append(error)

    helpers = [threading.Thread(target=run, args=(task,), name="fastbp", daemon=True) for task in tasks[1:]]
    started: list[threading.Thread] = []
    try:
        for helper in helpers:
            helper.start()
            started.append(helper)
        tasks[0]()
    finally:
        for helper in started:
            _join(helper, errors)
    if errors:
        raise errors[0]


def _join(helper: threading.Thread, errors: list[BaseException]) -> None:
    """Wait for a thread whatever exceptions come: it writes into memory of the caller's."""
    while helper.is_alive():
        try:
            helper.join()
        except BaseException as error:
            errors.append(error)
