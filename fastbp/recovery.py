"""What a fit does when it diverges: how often it goes back, and by how much the learning rate is reduced then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from fastbp import checks
from fastbp.schedules import LearningRate, Scaled

__all__ = ["Divergence", "ReduceRate", "check_on_divergence", "reduced"]


@dataclass(frozen=True)
class ReduceRate:
    """Go back to the last good state when a fit diverges, multiply the learning rate by `factor`, and go on.

    Good is the state at the beginning of the epoch with the lowest training loss so far: what follows from it has been
    seen. At first it is that at the fit's beginning.

    Parameters
    ----------
    factor : float, default 0.1
        In (0, 1).
    times : int, default 3
        So often at most, >= 0, in one fit; at the next divergence it ends in the last good state, with a RuntimeWarning
        and ``"DivergenceError"`` as `history.stop_reason`.

    Examples
    --------
    >>> import fastbp
    >>> model = fastbp.MLP([1, 1], init=[1.0, 0.0])
    >>> retry = fastbp.ReduceRate(factor=0.01)
    >>> history = model.fit([[1.0]], [0.0], optimizer=fastbp.SGD(30.0), on_divergence=retry, epochs=200)
    >>> [(divergence.n_epochs, divergence.rate_factor) for divergence in history.divergences]
    [(0, 0.01)]
    >>> bool(history.loss[-1] < 1e-6)
    True
    """

    factor: float = 0.1
    times: int = 3

    def __post_init__(self) -> None:
        bounds = {"low": 0.0, "high": 1.0}
        factor = checks.finite_float(self.factor, "factor", **bounds, low_open=True, high_open=True)
        object.__setattr__(self, "factor", factor)
        object.__setattr__(self, "times", checks.non_negative_int(self.times, "times"))


class Divergence(NamedTuple):
    """A divergence from which a fit has gone back.

    step : in which it happened. layer : as `DivergenceError.layer`. n_epochs : that had ended in the state it went back
    to. rate_factor : by which the learning rate was multiplied.
    """

    step: int
    layer: int | None
    n_epochs: int
    rate_factor: float


def check_on_divergence(value: object) -> ReduceRate | None:
    """Return what to do, None for an error at once. "restore" is to go back and go on no more.

    Raises
    ------
    TypeError, ValueError
        If it is none of these.
    """
    if isinstance(value, ReduceRate):
        return value
    known = {"raise": None, "restore": ReduceRate(times=0), "reduce": ReduceRate()}
    if not isinstance(value, str):
        raise TypeError(f"on_divergence must be a str or ReduceRate(...), got {checks.shown(value)}")
    if value not in known:
        raise ValueError(
            f"on_divergence must be one of {', '.join(map(repr, known))}, or ReduceRate(...), got {value!r}"
        )
    return known[value]


def reduced(rate: LearningRate, factor: float) -> LearningRate:
    """Return a learning rate, or a schedule of one, times `factor`."""
    if isinstance(rate, float):
        return rate * factor
    if isinstance(rate, Scaled):
        return Scaled(rate.factor * factor, rate.then)
    return Scaled(factor, rate)
