"""How much work one call of a kernel may do: it must come back to Python for Ctrl-C, progress and time limits."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Crew", "Pace", "ranges"]

_TARGET_SECONDS = 0.05
_FIRST_BUDGET = 20_000_000  # multiply-adds: 10 ms on a slow machine
_GROWTH = 4  # at most, from one call to the next: one lucky measurement must not promise too much
_SHORT = 50  # calls that are too short for a team, in one usual call
_FIRST_TRIAL, _LAST_TRIAL = 0.02, 5.0  # seconds of work before a trial; they triple while it is in vain
_TRIAL_SHARE = 16  # of what one worker does in a usual call, a trial does this part
_BETTER = 1.1  # times as fast, to be worth a change


class Pace:
    """Learns from call to call what budget takes about 50 ms.

    Examples
    --------
    >>> pace = Pace()
    >>> pace.learn(pace.budget(), seconds=0.025)
    >>> pace.budget()
    40000000
    """

    def __init__(self) -> None:
        self._budget = _FIRST_BUDGET

    def budget(self, seconds_left: float = float("inf")) -> int:
        """Return the cost to spend in the next call, which should end before `seconds_left` have passed."""
        share = min(1.0, max(0.0, seconds_left) / _TARGET_SECONDS)
        return max(1, int(self._budget * share))

    def learn(self, cost: int, seconds: float) -> None:
        """Take in that a call of this cost took so long."""
        per_target = cost * _TARGET_SECONDS / max(seconds, 1e-6)
        self._budget = int(min(max(per_target, 1.0), _GROWTH * self._budget))


class Crew:
    """Chooses for each call between one worker and a team of threads, by how fast either was.

    On a busy machine a team may be much slower than one worker: all wait for whoever has no core. Since both give the
    same bits, the slower one of late is tried again now and then, briefly, and ever more rarely while it stays so.

    Parameters
    ----------
    n_workers : int
        Size of the team.

    Attributes
    ----------
    size : int
        Workers that were the faster choice of late.

    Examples
    --------
    >>> crew = Crew(2)
    >>> n_workers, budget = crew.next_call()
    >>> n_workers
    2
    >>> crew.learn(n_workers, budget, seconds=1.0)  # slow: the next call tries one worker, with less to do
    >>> crew.next_call()[0]
    1
    """

    def __init__(self, n_workers: int) -> None:
        self._paces = {size: Pace() for size in (1, n_workers)}
        self._speeds = dict.fromkeys(self._paces, 0.0)  # cost per second of the last call of either
        self.size, self._other = n_workers, 1
        self._interval = self._until_trial = _FIRST_TRIAL

    def next_call(self, seconds_left: float = float("inf")) -> tuple[int, int]:
        """Return how many workers the next call shall have, and its budget."""
        budget = self._paces[self.size].budget(seconds_left)
        if self.size != self._other and self._until_trial <= 0.0:
            return self._other, max(1, budget // (_TRIAL_SHARE * self.size))
        return self.size, budget

    def is_short(self, cost: int) -> bool:
        """Return whether a call of this cost lasts less than about a millisecond, in which a team cannot help."""
        return cost < self._paces[self.size].budget() // _SHORT

    def learn(self, n_workers: int, cost: int, seconds: float) -> None:
        """Take in that a call of this cost took so long with so many workers."""
        self._paces[n_workers].learn(cost, seconds)
        self._speeds[n_workers] = cost / max(seconds, 1e-6)
        if n_workers == self.size or self._until_trial > 0.0:
            self._until_trial -= seconds
            return
        self._interval = min(3.0 * self._interval, _LAST_TRIAL)
        if self._speeds[self._other] > _BETTER * self._speeds[self.size]:
            self.size, self._other = self._other, self.size
            self._interval = _FIRST_TRIAL
        self._until_trial = self._interval


def ranges(n_samples: int, block: int, cost: int) -> Iterator[tuple[int, int]]:
    """Yield ranges (first, last) that cover the samples, at multiples of `block`, each about 50 ms of work.

    Parameters
    ----------
    n_samples, block : int
    cost : int
        Of one block.
    """
    pace, first = Pace(), 0
    while first < n_samples:
        n_blocks = max(1, pace.budget() // cost)
        last = min(n_samples, first + n_blocks * block)
        start = time.perf_counter()
        yield first, last
        pace.learn(n_blocks * cost, time.perf_counter() - start)
        first = last
