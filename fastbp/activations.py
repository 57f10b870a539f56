"""Activations with an option. Where a name goes, these go too: ``MLP(sizes, activation=activations.ELU(0.5))``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastbp import checks
from fastbp.choices import Choice

__all__ = ["ELU", "LeakyReLU"]


@dataclass(frozen=True)
class LeakyReLU(Choice):
    """z where positive, else ``slope * z``.

    Parameters
    ----------
    slope : float, default 0.01
        >= 0.

    References
    ----------
    A. L. Maas, A. Y. Hannun and A. Y. Ng, "Rectifier nonlinearities improve neural network acoustic models", ICML 2013.

    Examples
    --------
    >>> str(LeakyReLU(0.2))
    'leaky_relu(0.2)'
    """

    slope: float = 0.01
    _name: ClassVar[str] = "leaky_relu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "slope", checks.finite_float(self.slope, "slope", low=0.0))


@dataclass(frozen=True)
class ELU(Choice):
    """z where positive, else ``alpha * (exp(z) - 1)``.

    Parameters
    ----------
    alpha : float, default 1.0
        > 0.

    References
    ----------
    D.-A. Clevert, T. Unterthiner and S. Hochreiter, "Fast and accurate deep network learning by exponential linear
    units", ICLR 2016.

    Examples
    --------
    >>> str(ELU()), str(ELU(0.5))
    ('elu', 'elu(0.5)')
    """

    alpha: float = 1.0
    _name: ClassVar[str] = "elu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", checks.finite_float(self.alpha, "alpha", low=0.0, low_open=True))
