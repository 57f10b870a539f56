"""Versions of fastbp in turns: other commits, other constants. Ratios, and how surely they are known."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from math import comb
from statistics import median
from typing import TYPE_CHECKING

from harness.processes import RivalProcess, Setting

if TYPE_CHECKING:
    from harness.shapes import Shape

CONFIDENCE = 0.95
FEWEST_ROUNDS = 6  # fewer have no interval of that confidence


@dataclass
class Case:
    """A shape with a number of threads and a dtype, and its times per step: for each version, one a round."""

    shape: Shape
    threads: int
    dtype: str
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.shape.name} × {self.threads} × {self.dtype}"

    def ratios(self, version: str, other: str) -> list[float]:
        """Return a version's time over another's, round by round."""
        return [new / old for new, old in zip(self.seconds[version], self.seconds[other], strict=True)]

    def ratio(self, version: str, other: str) -> tuple[float, float, float]:
        """Return the median of the ratios and its interval."""
        ratios = self.ratios(version, other)
        return median(ratios), *interval(ratios)

    @property
    def n_rounds(self) -> int:
        return len(next(iter(self.seconds.values()), ()))


def interval(values: list[float]) -> tuple[float, float]:
    """Return the bounds of the median's confidence interval, by the sign test: no shape of a distribution is assumed.

    Of n values as many are left out at either end as heads come up, at most, in n tosses with a probability of half of
    what the confidence leaves.
    """
    values, n = sorted(values), len(values)
    n_left_out, tail = 0, 1
    while tail + comb(n, n_left_out + 1) <= (1 - CONFIDENCE) / 2 * 2**n:
        n_left_out += 1
        tail += comb(n, n_left_out)
    return values[n_left_out], values[-1 - n_left_out]


def in_cell(ratio: tuple[float, float, float]) -> str:
    """Return a ratio as a cell of a table."""
    middle, low, high = ratio
    return f"{middle:9.3f} ({low:.3f} to {high:.3f})"


def warm_up(running: list[RivalProcess], seconds: float) -> int:
    """Compile or load, let all take the same steps, and return how many of them last `seconds`."""
    n_steps, elapsed = 1, 0.0
    for process in running:
        process.ask("time", n_steps=n_steps)
    while elapsed < seconds / 2:
        elapsed = min([process.ask("time", n_steps=n_steps) for process in running])
        n_steps = max(1, min(10 * n_steps, round(n_steps * seconds / elapsed)))
    return n_steps


def measure(case: Case, settings: dict[str, Setting], rounds: int, fits: int, seconds: float) -> None:
    """Add some rounds to the case, in new processes: in each, every version runs so many fits; the shortest counts."""
    running = {version: RivalProcess(setting, case.shape, case.dtype) for version, setting in settings.items()}
    try:
        n_steps = warm_up(list(running.values()), seconds)
        # What others do on the core meanwhile is not counted; threads that wait for each other wait by the wall clock.
        clock = "process_time" if case.threads == 1 else "perf_counter"
        for _ in range(rounds):
            times: dict[str, list[float]] = {version: [] for version in settings}
            for version in random.sample(list(settings) * fits, len(settings) * fits):
                times[version].append(running[version].ask("time", n_steps=n_steps, clock=clock) / n_steps)
            for version, of_fits in times.items():
                case.seconds.setdefault(version, []).append(min(of_fits))
    finally:
        for process in running.values():
            process.close()
