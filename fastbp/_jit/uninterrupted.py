"""Compilations that no signal handler interrupts.

An exception that a handler raises in mid-compilation (Ctrl-C, an alarm, a task queue's time limit) would leave Numba
half-way: of the registries that it loads with its first compilation, those that came before are registered already, so
that every later attempt fails; and what is raised in a callback of llvmlite's is printed and lost. Python runs handlers
in the main thread only. So a compilation that is asked for there runs in a thread of its own, and what handlers raise
meanwhile is raised after it.
"""

import os
import threading
from _thread import allocate_lock, get_ident, start_new_thread
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from numba.core.compiler_lock import global_compiler_lock

_STACK = 1 << 20  # bytes; a compilation got along with an eighth, and crashed with a sixteenth
_PATIENCE = 0.1  # seconds between looks at what no lock tells: a fork, and on Windows a signal

# A child that is forked while another thread compiles would wait for ever for that thread, which it has not got.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )


class _Errand:
    """A call, made once, and its outcome."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._is_done = allocate_lock()
        self._is_done.acquire()
        self.outcome: tuple[Any, BaseException | None] | None = None

    def run(self) -> None:
        """Make the call and keep what it returns or raises."""
        # A fork waits for this lock: a child finds the call not begun, or its outcome.
        with global_compiler_lock:
            try:
                self.outcome = self._function(), None
            except BaseException as error:
                self.outcome = None, error
        self._is_done.release()

    def wait(self) -> None:
        """Return when the call has been made, or a moment later anyway."""
        self._is_done.acquire(timeout=_PATIENCE)


def uninterrupted(function: Callable[[], Any]) -> Any:
    """Return ``function()``, which compiles or loads code, and raise what signal handlers raise only after that.

    It runs right here where no handler does, outside the main thread, and as part of a compilation that is not ours.
    """
    if get_ident() != threading.main_thread().ident or global_compiler_lock.is_locked():
        return function()
    errand, interrupt = _Errand(function), None
    threads: defaultdict[int, list[int]] = defaultdict(list)
    while errand.outcome is None:
        try:
            _see_through(errand, threads)
        except BaseException as error:
            interrupt = error
    result, error = errand.outcome
    if interrupt is not None:
        raise interrupt from error
    if error is not None:
        raise error
    return result


def _see_through(errand: _Errand, threads: defaultdict[int, list[int]]) -> None:
    """Start the errand, if this process has not, and wait for its outcome.

    A function of its own: Python looks for signals where a loop jumps back, and from 3.12 on that place belongs to no
    ``try`` that ends with the loop.
    """
    while errand.outcome is None:
        threads_here = threads[os.getpid()]  # a handler may fork, and the child has no thread but this one
        if threads_here:
            errand.wait()
        else:
            _start(errand, threads_here)


def _start(errand: _Errand, threads: list[int]) -> None:
    """Run the errand in a new thread, which is added to the list; or here, if the system grants none."""
    try:
        with _enough_stack():
            # Started and noted in one go, as far as signals are concerned: no handler runs inside of `extend`.
            threads.extend(map(start_new_thread, [errand.run], [()]))
    except RuntimeError as error:
        if "new thread" not in str(error):  # but a handler's
            raise
        errand.run()


@contextmanager
def _enough_stack() -> Iterator[None]:
    """Have new threads get the stack that a compilation needs, if the program has chosen less for its own."""
    chosen = threading.stack_size()
    if not 0 < chosen < _STACK:
        yield
        return
    threading.stack_size(_STACK)
    try:
        yield
    finally:
        threading.stack_size(chosen)
