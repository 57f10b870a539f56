"""Data that come in chunks, from any iterable: the next one is loaded while the present one trains."""

from __future__ import annotations

import queue
import threading
import weakref
from collections import abc
from concurrent.futures import Future, wait
from functools import partial
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
        self._numbered: Iterator[tuple[int, Any]] | None = None  # of the present pass
        self._has_begun = False
        self._next: Future[Data | None] | None = None
        self._wanted: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # A daemon: a source that never answers must not keep the process from ending. It ends with this object.
        weakref.finalize(self, self._wanted.put, None)
        threading.Thread(target=_serve, args=(self._wanted,), name="fastbp-chunks", daemon=True).start()

    @property
    def begins_anew(self) -> bool:
        """Whether the iterable can be gone through more than once, as far as is known."""
        return not isinstance(self._iterable, abc.Iterator)

    def begin(self, is_too_late: Callable[[], bool] = lambda: False) -> Data | None:
        """Begin a pass; return its first chunk. None if there is none: an iterator can be gone through only once."""
        if self._has_begun and not self.begins_anew:
            return None
        self._has_begun, self._next, self._numbered = True, None, enumerate(iter(self._iterable))
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

    def _load(self) -> Future[Data | None]:
        future: Future[Data | None] = Future()
        assert self._numbered is not None
        self._wanted.put(partial(_load, self._numbered, self._checked, future))
        return future


def _serve(wanted: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (load := wanted.get()) is not None:
        load()
        del load  # and with it the chunk


def _load(
    numbered: Iterator[tuple[int, Any]], checked: Callable[[Any, int], Data | None], future: Future[Data | None]
) -> None:
    """Set a future to the next chunk with samples, or to what goes wrong."""
    try:
        for number, chunk in numbered:
            data = checked(chunk, number)
            if data is not None:
                future.set_result(data)
                return
        future.set_result(None)
    except BaseException as error:  # raised where the chunk is wanted
        future.set_exception(error)
