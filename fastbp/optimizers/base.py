"""What all optimizers have in common: checks, moments, constants."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastbp import checks
from fastbp.schedules import LearningRate, check_learning_rate

__all__ = ["Float64Array", "Moments", "Optimizer"]

Float64Array: TypeAlias = npt.NDArray[np.float64]


class Optimizer:
    """Base class of the optimizers.

    Attributes
    ----------
    learning_rate : float, schedule or callable
        A callable is a pure function of the step, an int from 0, to a float: it may be asked ahead, and again.
    """

    learning_rate: LearningRate

    def __post_init__(self) -> None:
        object.__setattr__(self, "learning_rate", check_learning_rate(self.learning_rate))
        self._check()

    def _check(self) -> None:
        """Check and normalise the fields other than the learning rate."""
        raise NotImplementedError

    @property
    def moments(self) -> tuple[str, ...]:
        """Names of the moment buffers in the order in which the kernel takes them; all start from 0."""
        raise NotImplementedError

    @property
    def constants(self) -> Float64Array:
        """What stays the same in all steps, in the order of the kernel: float64, 1-D."""
        raise NotImplementedError

    @property
    def rule(self) -> str:
        """Name of the update rule in `fastbp.kernels.updates.RULES`."""
        return type(self).__name__.lower()

    @property
    def coupled_decay(self) -> float:
        """By how much of the weights the gradient grows before the rule sees it."""
        return 0.0

    @property
    def has_average(self) -> bool:
        """Whether the parameters that the rule is about are others than those at which it takes its steps."""
        return False

    def average(self, params: npt.NDArray[Any], moments: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return these parameters, as a new array."""
        raise NotImplementedError

    def _set_fraction(self, name: str) -> None:
        value = checks.finite_float(getattr(self, name), name, low=0.0, high=1.0, high_open=True)
        object.__setattr__(self, name, value)

    def _set_positive(self, name: str) -> None:
        object.__setattr__(self, name, checks.finite_float(getattr(self, name), name, low=0.0, low_open=True))

    def _set_decay(self) -> None:
        value = checks.finite_float(getattr(self, "weight_decay"), "weight_decay", low=0.0)  # noqa: B009
        object.__setattr__(self, "weight_decay", value)
        self._set_flag("decay_biases")

    def _set_flag(self, name: str) -> None:
        object.__setattr__(self, name, checks.flag(getattr(self, name), name))


class Moments(Optimizer):
    """Base class of the rules with a mean and a mean square of the gradient."""

    beta1: float
    beta2: float
    eps: float

    def _check(self) -> None:
        self._set_fraction("beta1")
        self._set_fraction("beta2")
        self._set_positive("eps")

    @property
    def moments(self) -> tuple[str, ...]:
        """The mean ``m`` and the mean square ``v``."""
        return ("m", "v")

    @property
    def constants(self) -> Float64Array:
        """``[beta1, 1 - beta1, beta2, 1 - beta2, eps]``."""
        return np.array([self.beta1, 1.0 - self.beta1, self.beta2, 1.0 - self.beta2, self.eps])
