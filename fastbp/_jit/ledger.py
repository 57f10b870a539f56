"""How much has been compiled, and how long it took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numba.core import event


def compile_seconds() -> float:
    """Return the wall time in seconds that this process has spent compiling or loading kernels and leaves."""
    return ledger.seconds


def n_compiled() -> int:
    """Return how many kernels and leaves this process has compiled: one per signature, those loaded not counted."""
    return ledger.n_compiled


class Ledger(event.Listener):
    """Adds up compilations and their time. All methods run under Numba's compiler lock."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.n_compiled = 0
        self._depth = 0
        self._start = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time of the body, once where bodies nest."""
        self._enter()
        try:
            yield
        finally:
            self._exit()

    def on_start(self, compilation: event.Event) -> None:
        """Start the clock if one of our kernels is about to be compiled."""
        if _is_ours(compilation.data["dispatcher"]):
            self._enter()

    def on_end(self, compilation: event.Event) -> None:
        """Stop the clock, whether the compilation succeeded or not."""
        if _is_ours(compilation.data["dispatcher"]):
            self._exit()

    def _enter(self) -> None:
        if self._depth == 0:
            self._start = time.perf_counter()
        self._depth += 1

    def _exit(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.seconds += time.perf_counter() - self._start


def _is_ours(dispatcher: Any) -> bool:
    return getattr(dispatcher, "is_timed", False)


ledger = Ledger()
event.register("numba:compile", ledger)
