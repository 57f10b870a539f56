"""What a fit with a checkpoint keeps of itself, so that another process can complete it; and how a signal ends it."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from fastbp.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from fastbp.optimizers import Optimizer

__all__ = ["TERMINATED", "Checkpoint", "FitRecord"]

TERMINATED = "SIGTERM"  # a stop reason


class FitRecord(NamedTuple):
    """How a fit began, and whether it has ended by itself.

    seconds : of training before this process took over. data : fingerprints of x, y, the weights and the validation
    data, or "". optimizer : at the beginning, whatever callbacks have done to its rate since. has_ended : by a stop
    rule or a callback; limits of epochs and steps may be raised.
    """

    first_step: int
    first_epoch: int
    seconds: float
    data: tuple[str, ...]
    optimizer: Optimizer
    has_ended: bool = False


class Checkpoint:
    """The file of a fit: written now and then, and when the fit ends; a SIGTERM ends it, if nobody else handles that.

    Parameters
    ----------
    save : callable
        Writes the file.
    every : float
        Seconds from one time to the next.
    resumed : Run, optional
        The run in the file, if the fit goes on from it.
    """

    def __init__(self, save: Callable[[], None], every: float, resumed: Any) -> None:
        self._save, self.resumed = save, resumed
        self._every, self._last = every, time.perf_counter()
        self._has_failed = self._handles = self.is_terminated = False

    def __enter__(self) -> Checkpoint:
        """Handle SIGTERM, in the main thread."""
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self._handles = True
            signal.signal(signal.SIGTERM, self._terminate)
        return self

    def __exit__(self, *_: object) -> None:
        """Handle it no more."""
        if self._handles:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _terminate(self, _signal: int, _frame: FrameType | None) -> None:
        self.is_terminated = True

    def write(self) -> None:
        """Write the file."""
        self._has_failed = True
        self._save()
        self._has_failed, self._last = False, time.perf_counter()

    def write_after(self, error: BaseException) -> None:
        """Write the file of a fit that an error has ended, which is the one to be heard of; not if writing failed."""
        if self._has_failed:
            return
        try:
            self.write()
        except (OSError, CheckpointError) as problem:
            error.add_note(f"The checkpoint could not be written: {problem}")

    def look(self) -> str | None:
        """Write the file if it is time; returns a reason to stop, if there is one."""
        if time.perf_counter() - self._last >= self._every:
            self.write()
        return TERMINATED if self.is_terminated else None
