"""Adam and its kin: a mean and a mean square of the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastbp import checks
from fastbp.optimizers.base import Float64Array, Moments

if TYPE_CHECKING:
    from fastbp.schedules import LearningRate


@dataclass(frozen=True)
class Adam(Moments):
    """Adaptive moments: the running mean of the gradient over its running root mean square.

    With g the gradient, the moments m and v starting from 0 and t the step counted from 1::

        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        params -= learning_rate / (1 - beta1**t) * m / (sqrt(v) / sqrt(1 - beta2**t) + eps)

    Parameters
    ----------
    learning_rate : float, schedule or callable, default 1e-3
    beta1, beta2 : float, default 0.9 and 0.999
        Decay of the means, in [0, 1).
    eps : float, default 1e-8
        > 0; outside the root.
    amsgrad : bool, default False
        Whether to divide by the root of the largest v so far.
    weight_decay : float, default 0.0
        >= 0: first ``g += weight_decay * w``, which the moments see: `AdamW` decays weights beside them.
    decay_biases : bool, default False
        Whether biases decay as well, as PyTorch's do.

    Notes
    -----
    As PyTorch's, apart from `decay_biases`.

    References
    ----------
    D. P. Kingma and J. Ba, "Adam: A method for stochastic optimization", ICLR 2015, algorithm 1. S. J. Reddi, S. Kale
    and S. Kumar, "On the convergence of Adam and beyond", ICLR 2018, algorithm 2 (amsgrad).

    Examples
    --------
    >>> Adam(learning_rate=3e-4).eps
    1e-08
    """

    learning_rate: LearningRate = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    amsgrad: bool = False
    weight_decay: float = 0.0
    decay_biases: bool = False

    def _check(self) -> None:
        super()._check()
        self._set_flag("amsgrad")
        self._set_decay()

    @property
    def moments(self) -> tuple[str, ...]:
        """The mean ``m`` and the mean square ``v``, and with `amsgrad` the largest of these."""
        return ("m", "v", "largest v") if self.amsgrad else ("m", "v")

    @property
    def rule(self) -> str:
        """Another one with `amsgrad`."""
        return "amsgrad" if self.amsgrad else "adam"

    @property
    def coupled_decay(self) -> float:
        """`weight_decay`."""
        return self.weight_decay


@dataclass(frozen=True)
class AdamW(Moments):
    """Adam with decoupled weight decay: each step first shrinks the weights, ``w *= 1 - learning_rate * weight_decay``.

    Parameters
    ----------
    learning_rate : float, schedule or callable, default 1e-3
    beta1, beta2 : float, default 0.9 and 0.999
        Decay of the means, in [0, 1).
    eps : float, default 1e-8
        > 0; outside the root.
    weight_decay : float, default 0.01
        >= 0.
    decay_biases : bool, default False
        Whether biases shrink as well. PyTorch decays biases too, unless they are put into a parameter group without
        decay: to repeat its runs set this to True.

    Notes
    -----
    As PyTorch's, apart from `decay_biases`. The moments do not see the decay.

    References
    ----------
    I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2.

    Examples
    --------
    >>> AdamW(weight_decay=0.1)
    AdamW(learning_rate=0.001, beta1=0.9, beta2=0.999, eps=1e-08, weight_decay=0.1, decay_biases=False)
    """

    learning_rate: LearningRate = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    decay_biases: bool = False

    def _check(self) -> None:
        super()._check()
        self._set_decay()

    @property
    def rule(self) -> str:
        """Adam's where nothing decays."""
        return "adamw" if self.weight_decay > 0.0 else "adam"

    @property
    def constants(self) -> Float64Array:
        """Adam's, and ``weight_decay``."""
        return np.append(super().constants, self.weight_decay)


@dataclass(frozen=True)
class NAdam(Moments):
    """Adam with Nesterov's momentum.

    With g the gradient, t the step counted from 1, ``mu(t) = beta1 * (1 - 0.96**(t * momentum_decay) / 2)`` and M(t)
    the product of all mu so far::

        m, v as Adam's
        n = sqrt(v) / sqrt(1 - beta2**t) + eps
        params -= learning_rate * (1 - mu(t)) / (1 - M(t)) * g / n
        params -= learning_rate * mu(t + 1) / (1 - M(t) * mu(t + 1)) * m / n

    Parameters
    ----------
    learning_rate : float, schedule or callable, default 2e-3
    beta1, beta2 : float, default 0.9 and 0.999
        In [0, 1).
    eps : float, default 1e-8
        > 0; outside the root.
    momentum_decay : float, default 4e-3
        >= 0.

    Notes
    -----
    As PyTorch's.

    References
    ----------
    T. Dozat, "Incorporating Nesterov momentum into Adam", ICLR 2016 workshop, algorithm 2.

    Examples
    --------
    >>> NAdam().momentum_decay
    0.004
    """

    learning_rate: LearningRate = 2e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    momentum_decay: float = 4e-3

    def _check(self) -> None:
        super()._check()
        value = checks.finite_float(self.momentum_decay, "momentum_decay", low=0.0)
        object.__setattr__(self, "momentum_decay", value)

    @property
    def constants(self) -> Float64Array:
        """Adam's, and ``0.96**momentum_decay``."""
        return np.append(super().constants, 0.96**self.momentum_decay)


@dataclass(frozen=True)
class RAdam(Moments):
    """Adam that takes plain momentum steps until the variance of its step size is known, and then corrects for it.

    With ``r = 2 / (1 - beta2) - 1`` and ``l = r - 2 * t * beta2**t / (1 - beta2**t)``, t counted from 1::

        m, v as Adam's
        l > 5   params -= learning_rate / (1 - beta1**t) * m * sqrt(1 - beta2**t) / (sqrt(v) + eps)
                          * sqrt((l - 4) * (l - 2) * r / ((r - 4) * (r - 2) * l))
        else    params -= learning_rate / (1 - beta1**t) * m

    Parameters
    ----------
    learning_rate : float, schedule or callable, default 1e-3
    beta1, beta2 : float, default 0.9 and 0.999
        In [0, 1).
    eps : float, default 1e-8
        > 0; outside the root.

    Notes
    -----
    As PyTorch's.

    References
    ----------
    L. Liu et al., "On the variance of the adaptive learning rate and beyond", ICLR 2020, algorithm 2.

    Examples
    --------
    >>> RAdam(1e-3)
    RAdam(learning_rate=0.001, beta1=0.9, beta2=0.999, eps=1e-08)
    """

    learning_rate: LearningRate = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8


@dataclass(frozen=True)
class ScheduleFreeAdamW(Moments):
    """AdamW without a schedule: it takes gradients between where it steps and the average of where it has been.

    With g the gradient at the parameters y, from which x and z start too, t the step counted from 1, and c the square
    of this step's learning rate over the sum of those so far (1 / t without warm-up)::

        v = beta2 * v + (1 - beta2) * g**2
        d = g / (sqrt(v) / sqrt(1 - beta2**t) + eps) + weight_decay * y
        z -= learning_rate * d
        x = (1 - c) * x + c * z
        y = (1 - beta1) * z + beta1 * x

    A fit takes its steps at y; validation sees the average x, and the model has it afterwards, as with
    ``use_ema=True``. After `Trainer.step` the model has y, and `Trainer.ema_params` is x.

    Parameters
    ----------
    learning_rate : float, default 0.0025
        A number: there is no schedule but the warm-up.
    beta1 : float, default 0.9
        In (0, 1): how close to the average gradients are taken.
    beta2 : float, default 0.999
        In [0, 1).
    eps : float, default 1e-8
        > 0; outside the root.
    weight_decay : float, default 0.0
        >= 0; of biases too.
    warmup_steps : int, default 0
        Steps over which the learning rate grows linearly.

    Notes
    -----
    As the authors' ``schedulefree.AdamWScheduleFree`` with ``r=0`` and ``weight_lr_power=2``.

    References
    ----------
    A. Defazio et al., "The road less scheduled", NeurIPS 2024, arXiv:2405.15682, algorithm 1.

    Examples
    --------
    >>> ScheduleFreeAdamW(0.01, warmup_steps=100).warmup_steps
    100
    """

    learning_rate: LearningRate = 0.0025
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 0

    def _check(self) -> None:
        super()._check()
        if not isinstance(self.learning_rate, float):
            raise TypeError(
                f"learning_rate of ScheduleFreeAdamW must be a number, got {checks.shown(self.learning_rate)}"
            )
        if self.beta1 == 0.0:
            raise ValueError("beta1 of ScheduleFreeAdamW must be > 0, got 0.0")
        object.__setattr__(self, "weight_decay", checks.finite_float(self.weight_decay, "weight_decay", low=0.0))
        object.__setattr__(self, "warmup_steps", checks.non_negative_int(self.warmup_steps, "warmup_steps", 2**31))

    @property
    def moments(self) -> tuple[str, ...]:
        """Where it steps, ``z``, and the mean square ``v``."""
        return ("z", "v")

    @property
    def constants(self) -> Float64Array:
        """Adam's, ``weight_decay`` and ``warmup_steps``."""
        return np.append(super().constants, [self.weight_decay, self.warmup_steps])

    @property
    def has_average(self) -> bool:
        """It is what this is about."""
        return True

    def average(self, params: npt.NDArray[Any], moments: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return x, which follows from y and z."""
        share = params.dtype.type(1.0 - 1.0 / self.beta1)
        average: npt.NDArray[Any] = params + share * (moments[0] - params)
        return average
