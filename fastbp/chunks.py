"""Data that come in chunks, from any iterable: the next one is loaded while the present one trains."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from fastbp.sources import Data

__all__ = ["Chunks", "TooLate", "check_chunks"]

_SECONDS = 0.1  # after which whoever waits looks for signals, and whether it is too late

# What these are made for is to hold samples, not chunks.
_OF_ARRAYS = ("__array__", "__dlpack__", "columns", "tocsr")


class TooLate(Exception):  # noqa: N818 - no error: the time of the fit is over
    """A chunk has not come in time."""


def check_chunks(values: Any) -> Iterable[Any]:
    """Return an iterable of chunks, which came without a y.

    Raises
    ------
    TypeError
        If it is none, or an array.
    """
    if not hasattr(values, "__iter__") or isinstance(values, (str, bytes, dict)) or _is_array(values):
        raise TypeError("y must be given, or x be an iterable of chunks (x, y) or (x, y, sample_weight)")
    iterable: Iterable[Any] = values
    return iterable


def _is_array(values: Any) -> bool:
    return any(hasattr(values, name) for name in _OF_ARRAYS)


class Chunks:
    """The chunks of an iterable, each checked and copied, pass after pass; a thread loads one ahead.

    Parameters
    ----------
    iterable : iterable
        Gone through once for each pass, by that thread alone.
    checked : callable
        ``f(chunk, number) -> Data or None``: None for one without samples, which is left out. What it returns must be
        nobody else's: the iterable may fill the same arrays again for the next one.
    """

    def __init__(self, iterable: Iterable[Any], checked: Callable[[Any, int], Data | None]) -> None:
        self._iterable, self._checked = iterable, checked
        self._iterator: Iterator[Any] | None = None
        self._number = 0  # of chunks asked for in this pass
        self._next: Future[Data | None] | None = None
        self._wanted: queue.SimpleQueue[Future[Data | None] | None] = queue.SimpleQueue()
        self._has_thread = False

    @property
    def begins_anew(self) -> bool:
        """Whether the iterable can be gone through more than once, as far as is known."""
        return self._iterator is not self._iterable

    def begin(self, is_too_late: Callable[[], bool] = lambda: False) -> Data | None:
        """Begin a pass; return its first chunk. None if there is none: an iterator can be gone through only once."""
        if not self.begins_anew:
            return None
        self._iterator, self._number, self._next = iter(self._iterable), 0, None
        return self.next(is_too_late)

    def next(self, is_too_late: Callable[[], bool] = lambda: False) -> Data | None:
        """Return the next chunk, and have the one after it loaded; None if the pass is over.

        Raises
        ------
        TooLate
            If there is none yet, and it is.
        Whatever the iterable raises, and what is wrong with the chunk.
        """
        future = self._next = self._next or self._load()
        while not wait([future], _SECONDS).done:  # a signal that another thread gets wakes nobody who waits here
            if is_too_late():
                raise TooLate
        self._next = None
        chunk = future.result()
        if chunk is not None:
            self._next = self._load()
        return chunk

    def close(self) -> None:
        """Let the thread end, when it has loaded what it is at."""
        self._wanted.put(None)

    def _load(self) -> Future[Data | None]:
        future: Future[Data | None] = Future()
        self._wanted.put(future)
        if not self._has_thread:
            # A daemon: a source that never answers must not keep the process from ending.
            threading.Thread(target=self._serve, name="fastbp-chunks", daemon=True).start()
            self._has_thread = True
        return future

    def _serve(self) -> None:
        while (future := self._wanted.get()) is not None:
            try:
                future.set_result(self._next_with_samples())
            except BaseException as error:  # raised where the chunk is wanted
                future.set_exception(error)
            del future  # and with it the chunk

    def _next_with_samples(self) -> Data | None:
        assert self._iterator is not None
        for chunk in self._iterator:
            self._number += 1
            data = self._checked(chunk, self._number - 1)
            if data is not None:
                return data
        return None
