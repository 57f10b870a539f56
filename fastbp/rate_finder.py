"""The learning-rate range test: which rate to begin with."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fastbp.errors import DivergenceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt
    from matplotlib.axes import Axes

__all__ = ["RateCurve", "find_rate"]

_SMOOTHING = 0.9  # of the losses: decay of their running mean
_DIVERGED = 4.0  # times the lowest loss


@dataclass(frozen=True)
class RateCurve:
    """Losses of steps whose learning rate grew from one to the next.

    Attributes
    ----------
    rates, losses : ndarray, shape (n_steps,), float64
        Learning rates, and the running mean of the batches' losses before each step.
    suggestion : float
        The rate where the losses fell most steeply over the logarithm of the rate.
    """

    rates: npt.NDArray[np.float64] = field(repr=False)
    losses: npt.NDArray[np.float64] = field(repr=False)
    suggestion: float

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the losses over the rates, and the suggestion; needs Matplotlib.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            By default a new one.
        """
        if ax is None:
            from matplotlib import pyplot as plt

            _, ax = plt.subplots(layout="constrained")
        ax.plot(self.rates, self.losses, color="C0")
        ax.axvline(self.suggestion, color="C1", linestyle="--", label=f"suggestion: {self.suggestion:.2g}")
        ax.set_xscale("log")
        ax.set_xlabel("learning rate")
        ax.set_ylabel("loss, running mean")
        ax.legend()
        return ax


def find_rate(
    step: Callable[[float, npt.NDArray[np.intp]], float],
    n_samples: int,
    batch_size: int,
    rates: npt.NDArray[Any],
    seed: int,
) -> RateCurve:
    """Take a step with each rate until the loss diverges.

    Parameters
    ----------
    step : callable
        Takes a step with this rate on the samples of these rows, and returns the loss before it.
    n_samples, batch_size : int
    rates : ndarray, ascending
    seed : int
        Of the batches.

    References
    ----------
    L. N. Smith, "Cyclical learning rates for training neural networks", WACV 2017, section 3.3.
    """
    losses: list[float] = []
    mean, lowest = 0.0, math.inf
    for number, (rate, rows) in enumerate(zip(rates, _batches(n_samples, batch_size, seed), strict=False), 1):
        try:
            loss = step(float(rate), rows)
        except DivergenceError:
            break
        mean = _SMOOTHING * mean + (1.0 - _SMOOTHING) * loss
        losses.append(mean / (1.0 - _SMOOTHING**number))
        lowest = min(lowest, losses[-1])
        if losses[-1] > _DIVERGED * lowest:
            break
    tried = rates[: len(losses)].copy()
    curve = np.array(losses)
    if len(losses) < 3:
        raise ValueError(f"low must be a rate with which the first steps do not diverge, got {rates[0]:g}")
    return RateCurve(tried, curve, float(tried[np.gradient(curve, np.log(tried)).argmin()]))


def _batches(n_samples: int, batch_size: int, seed: int) -> Iterator[npt.NDArray[np.intp]]:
    """Yield the rows of batches for ever, each epoch in a new random order."""
    generator = np.random.default_rng(seed)
    while True:
        order = generator.permutation(n_samples)
        for start in range(0, n_samples - n_samples % batch_size, batch_size):
            yield order[start : start + batch_size]
