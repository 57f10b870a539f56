"""Whose turn it is to change a model: one call at a time, whose work is finished whatever exceptions come."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Turn"]

_T = TypeVar("_T")

_TRIES = 10  # of finishing at once; an error of its own would come back for ever


class _Shared(Protocol):
    """What others than Python take too (`sharing.Word`)."""

    def take(self) -> None: ...

    def give_back(self) -> None: ...


class Turn:
    """The right to change the parameters of one model.

    A signal's handler may raise between any two instructions of Python, in a ``finally`` too. So a call that changes
    something says beforehand how it is finished, by a function that can begin anew at any place; what it could not
    finish itself is finished before anybody looks again.

    Attributes
    ----------
    shared : optional
        Taken as well by each call, where learners in compiled code may change the parameters too.

    Examples
    --------
    >>> turn, done = Turn(), []
    >>> with turn.take():
    ...     answer = turn.run(lambda: 42, finish=lambda: done.append("finished"))
    >>> answer, done
    (42, ['finished'])
    """

    def __init__(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._unfinished: Callable[[], None] | None = None
        self.shared: _Shared | None = None

    @property
    def is_unfinished(self) -> bool:
        """Whether a call has begun what is not finished yet."""
        return self._unfinished is not None

    @property
    def is_taken(self) -> bool:
        """Whether a call of this process has it."""
        return self._process == os.getpid() and self._lock.locked()

    def take(self) -> threading.Lock:
        """Return the lock to enter at once, by ``with``: CPython enters and leaves one of its own in one instruction.

        Raises
        ------
        RuntimeError
            If another call has it.
        """
        if self._process != os.getpid():  # forked: a thread that had it then is not in this process
            self._lock = threading.Lock()
            self._process = os.getpid()
        if self._lock.locked():
            raise RuntimeError(
                "the model is being trained: another fit, or step, of it or of its trainer has not ended yet"
            )
        return self._lock

    def run(self, work: Callable[[], _T], finish: Callable[[], None]) -> _T:
        """Call `work`, and `finish` after it, however it ends. Only who has the turn may call this.

        Raises
        ------
        RuntimeError
            If a learner in compiled code is at work.
        """
        if self.shared is not None:
            self._unfinished = _nothing  # so that it is given back, whatever comes
            self.shared.take()
        self._unfinished = finish
        try:
            return work()
        finally:
            self.finish()

    def finish(self) -> None:
        """Finish what a call has begun. Only who has the turn may call this.

        Exceptions that come in between do not keep it from that; the first of them is raised afterwards.
        """
        first: BaseException | None = None
        for _ in range(_TRIES):
            unfinished = self._unfinished
            if unfinished is None:
                break
            try:
                unfinished()
                if self.shared is not None:
                    self.shared.give_back()
                self._unfinished = None
            except BaseException as error:
                first = error if first is None else first
        if first is not None:
            raise first

    def settle(self) -> None:
        """Finish what an interrupted call has left, unless a call is at work."""
        if self._unfinished is None or self.is_taken:
            return
        with self.take():
            self.finish()


def _nothing() -> None:
    """Finish what has not begun."""
