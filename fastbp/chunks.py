"""Data that come in chunks, from any iterable: the next one is loaded while the present one trains."""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from fastbp.sources import Data

__all__ = ["Chunks", "check_chunks"]

_SECONDS = 0.1  # after which whoever waits looks for signals

# What these are made for is to hold samples, not chunks.
_OF_ARRAYS = ("__array__", "__dlpack__", "columns", "tocsr")


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
    """The chunks of an iterable, each checked, pass after pass; one is loaded ahead, by a thread of its own.

    Parameters
    ----------
    iterable : iterable
        Gone through once for each pass.
    checked : callable
        ``f(chunk, number) -> Data or None``: None for one without samples, which is left out.
    """

    def __init__(self, iterable: Iterable[Any], checked: Callable[[Any, int], Data | None]) -> None:
        self._iterable, self._checked = iterable, checked
        self._iterator: Iterator[Any] | None = None
        self._number = 0  # of chunks asked for in this pass
        self._next: Future[Data | None] | None = None

    def begin(self) -> Data | None:
        """Begin a pass; return its first chunk. None if there is none: an iterator can be gone through only once."""
        if self._iterator is self._iterable:
            return None
        self._iterator, self._number, self._next = iter(self._iterable), 0, None
        return self.next()

    def next(self) -> Data | None:
        """Return the next chunk, and have the one after it loaded; None if the pass is over."""
        future = self._next or self._load()
        while not wait([future], _SECONDS).done:  # a signal that another thread gets wakes nobody who waits here
            pass
        chunk = future.result()
        self._next = None if chunk is None else self._load()
        return chunk

    def _load(self) -> Future[Data | None]:
        future: Future[Data | None] = Future()
        # A daemon: a source that never answers must not keep the process from ending.
        threading.Thread(target=self._run, args=(future,), name="fastbp-chunks", daemon=True).start()
        return future

    def _run(self, future: Future[Data | None]) -> None:
        try:
            future.set_result(self._next_with_samples())
        except BaseException as error:  # raised where the chunk is wanted
            future.set_exception(error)

    def _next_with_samples(self) -> Data | None:
        assert self._iterator is not None
        for chunk in self._iterator:
            self._number += 1
            data = self._checked(chunk, self._number - 1)
            if data is not None:
                return data
        return None
