"""Losses with an option. Where a name goes, these go too: ``MLP(sizes, loss=losses.Huber(2.0))``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastbp import checks
from fastbp.choices import Choice

__all__ = ["Huber", "Quantile"]


@dataclass(frozen=True)
class Huber(Choice):
    """``e**2 / 2`` of errors e up to `delta`, beyond ``delta * (abs(e) - delta / 2)``; mean over samples and outputs.

    Parameters
    ----------
    delta : float, default 1.0
        > 0.

    References
    ----------
    P. J. Huber, "Robust estimation of a location parameter", Annals of Mathematical Statistics 35(1), 1964.

    Examples
    --------
    >>> str(Huber(2.0))
    'huber(2.0)'
    """

    delta: float = 1.0
    _name: ClassVar[str] = "huber"

    def __post_init__(self) -> None:
        object.__setattr__(self, "delta", checks.finite_float(self.delta, "delta", low=0.0, low_open=True))


@dataclass(frozen=True)
class Quantile(Choice):
    """``q * e`` where the target exceeds the output by e, else ``(1 - q) * e``; mean over samples and outputs.

    Its least value is at the q-quantile of the targets; half the absolute error for the median.

    Parameters
    ----------
    q : float, default 0.5
        In (0, 1).

    References
    ----------
    R. Koenker and G. Bassett, "Regression quantiles", Econometrica 46(1), 1978.

    Examples
    --------
    >>> str(Quantile(0.9))
    'quantile(0.9)'
    """

    q: float = 0.5
    _name: ClassVar[str] = "quantile"

    def __post_init__(self) -> None:
        q = checks.finite_float(self.q, "q", low=0.0, high=1.0, low_open=True, high_open=True)
        object.__setattr__(self, "q", q)
