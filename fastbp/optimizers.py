"""Optimizers: frozen descriptions of an update rule, with the numbers that its kernel needs.

Every rule is PyTorch's, so that recipes carry over. Nothing here holds state: the moments belong to the trainer and
lie in flat buffers like the parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastbp import checks
from fastbp.names import nearest
from fastbp.schedules import LearningRate, check_learning_rate

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Lion",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "ScheduleFreeAdamW",
    "check_optimizer",
]

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
    def n_moments(self) -> int:
        """Number of moment buffers."""
        return len(self.moments)

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


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, with momentum if wanted.

    With g the gradient and b the momentum buffer, which starts from 0::

        momentum = 0    params -= learning_rate * g
        momentum > 0    b = momentum * b + g
                        params -= learning_rate * b                     or, if nesterov,
                        params -= learning_rate * (g + momentum * b)

    Parameters
    ----------
    learning_rate : float, schedule or callable, default 0.01
    momentum : float, default 0.0
        In [0, 1).
    nesterov : bool, default False
        Nesterov's form of the momentum; needs ``momentum > 0``.
    weight_decay : float, default 0.0
        >= 0: first ``g += weight_decay * w``. As `L2`, but no part of the loss.
    decay_biases : bool, default False
        Whether biases decay as well, as PyTorch's do.

    Notes
    -----
    As PyTorch's with ``dampening=0``, apart from `decay_biases`. The learning rate is outside the buffer, unlike in the
    papers: a schedule acts on the whole buffer at once.

    References
    ----------
    B. T. Polyak, "Some methods of speeding up the convergence of iteration methods", USSR Computational Mathematics
    and Mathematical Physics 4(5), 1964. I. Sutskever et al., "On the importance of initialization and momentum in deep
    learning", ICML 2013, section 2.

    Examples
    --------
    >>> SGD(0.1, momentum=0.9, nesterov=True)
    SGD(learning_rate=0.1, momentum=0.9, nesterov=True, weight_decay=0.0, decay_biases=False)
    """

    learning_rate: LearningRate = 0.01
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    decay_biases: bool = False

    def _check(self) -> None:
        self._set_decay()
        self._set_fraction("momentum")
        self._set_flag("nesterov")
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov=True needs momentum > 0, got momentum=0.0")

    @property
    def moments(self) -> tuple[str, ...]:
        """The momentum buffer ``b``, if there is momentum."""
        return ("b",) if self.momentum > 0.0 else ()

    @property
    def rule(self) -> str:
        """The plain one without momentum."""
        return "momentum" if self.momentum > 0.0 else "sgd"

    @property
    def coupled_decay(self) -> float:
        """`weight_decay`."""
        return self.weight_decay

    @property
    def constants(self) -> Float64Array:
        """``[momentum, nesterov]``."""
        return np.array([self.momentum, self.nesterov], dtype=np.float64)


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """Gradient descent that divides by the root of the sum of all squared gradients.

    With g the gradient and v starting from 0::

        v += g**2
        params -= learning_rate * g / (sqrt(v) + eps)

    Parameters
    ----------
    learning_rate : float, schedule or callable, default 0.01
    eps : float, default 1e-10
        > 0.

    Notes
    -----
    As PyTorch's with ``lr_decay=0``.

    References
    ----------
    J. Duchi, E. Hazan and Y. Singer, "Adaptive subgradient methods for online learning and stochastic optimization",
    Journal of Machine Learning Research 12, 2011, figure 1 (diagonal).

    Examples
    --------
    >>> Adagrad(0.1)
    Adagrad(learning_rate=0.1, eps=1e-10)
    """

    learning_rate: LearningRate = 0.01
    eps: float = 1e-10

    def _check(self) -> None:
        self._set_positive("eps")

    @property
    def moments(self) -> tuple[str, ...]:
        """The sum of squares ``v``."""
        return ("v",)

    @property
    def constants(self) -> Float64Array:
        """``[eps]``."""
        return np.array([self.eps])


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """Gradient descent that divides by a running root mean square of the gradient.

    With g the gradient and the moments v, m and b starting from 0::

        v = alpha * v + (1 - alpha) * g**2
        m = alpha * m + (1 - alpha) * g                 if centered
        d = g / (sqrt(v) + eps)                         or, if centered, g / (sqrt(v - m**2) + eps)
        params -= learning_rate * d                     or, if momentum > 0,
        b = momentum * b + d;  params -= learning_rate * b

    Parameters
    ----------
    learning_rate : float, schedule or callable, default 0.01
    alpha : float, default 0.99
        Decay of the means, in [0, 1).
    eps : float, default 1e-8
        > 0; outside the root.
    momentum : float, default 0.0
        In [0, 1).
    centered : bool, default False
        Whether to divide by an estimate of the standard deviation instead.

    Notes
    -----
    As PyTorch's.

    References
    ----------
    G. Hinton, N. Srivastava and K. Swersky, "Neural networks for machine learning", Coursera, 2012, lecture 6e.
    A. Graves, "Generating sequences with recurrent neural networks", 2013, arXiv:1308.0850, equations 38-41 (centered).

    Examples
    --------
    >>> RMSprop(1e-3, momentum=0.9)
    RMSprop(learning_rate=0.001, alpha=0.99, eps=1e-08, momentum=0.9, centered=False)
    """

    learning_rate: LearningRate = 0.01
    alpha: float = 0.99
    eps: float = 1e-8
    momentum: float = 0.0
    centered: bool = False

    def _check(self) -> None:
        self._set_fraction("alpha")
        self._set_positive("eps")
        self._set_fraction("momentum")
        self._set_flag("centered")

    @property
    def moments(self) -> tuple[str, ...]:
        """The mean square ``v``, then the mean ``m`` if centered, then ``b`` if there is momentum."""
        return ("v",) + ("m",) * self.centered + ("b",) * (self.momentum > 0.0)

    @property
    def constants(self) -> Float64Array:
        """``[alpha, 1 - alpha, eps, momentum, centered]``."""
        return np.array([self.alpha, 1.0 - self.alpha, self.eps, self.momentum, self.centered], dtype=np.float64)


class _Moments(Optimizer):
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


@dataclass(frozen=True)
class Adam(_Moments):
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
class AdamW(_Moments):
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
class NAdam(_Moments):
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
class RAdam(_Moments):
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
class Adadelta(Optimizer):
    """Gradient descent whose steps have the units of the parameters: the root mean square of the steps so far.

    With g the gradient and the moments v and a starting from 0::

        v = rho * v + (1 - rho) * g**2
        d = sqrt(a + eps) / sqrt(v + eps) * g
        a = rho * a + (1 - rho) * d**2
        params -= learning_rate * d

    Parameters
    ----------
    learning_rate : float, schedule or callable, default 1.0
    rho : float, default 0.9
        Decay of the means, in [0, 1).
    eps : float, default 1e-6
        > 0; inside the roots.

    Notes
    -----
    As PyTorch's.

    References
    ----------
    M. D. Zeiler, "ADADELTA: An adaptive learning rate method", 2012, arXiv:1212.5701, algorithm 1.

    Examples
    --------
    >>> Adadelta()
    Adadelta(learning_rate=1.0, rho=0.9, eps=1e-06)
    """

    learning_rate: LearningRate = 1.0
    rho: float = 0.9
    eps: float = 1e-6

    def _check(self) -> None:
        self._set_fraction("rho")
        self._set_positive("eps")

    @property
    def moments(self) -> tuple[str, ...]:
        """The mean squares ``v`` of the gradient and ``a`` of the steps."""
        return ("v", "a")

    @property
    def constants(self) -> Float64Array:
        """``[rho, 1 - rho, eps]``."""
        return np.array([self.rho, 1.0 - self.rho, self.eps])


@dataclass(frozen=True)
class Lion(Optimizer):
    """Steps of one size: the sign of a momentum.

    With g the gradient and m starting from 0::

        w *= 1 - learning_rate * weight_decay
        params -= learning_rate * sign(beta1 * m + (1 - beta1) * g)
        m = beta2 * m + (1 - beta2) * g

    Parameters
    ----------
    learning_rate : float, schedule or callable, default 1e-4
    beta1, beta2 : float, default 0.9 and 0.99
        In [0, 1).
    weight_decay : float, default 0.0
        >= 0.
    decay_biases : bool, default False
        Whether biases decay as well.

    Notes
    -----
    As optax's, apart from `decay_biases`.

    References
    ----------
    X. Chen et al., "Symbolic discovery of optimization algorithms", NeurIPS 2023, algorithm 2.

    Examples
    --------
    >>> Lion(weight_decay=0.1)
    Lion(learning_rate=0.0001, beta1=0.9, beta2=0.99, weight_decay=0.1, decay_biases=False)
    """

    learning_rate: LearningRate = 1e-4
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0
    decay_biases: bool = False

    def _check(self) -> None:
        self._set_fraction("beta1")
        self._set_fraction("beta2")
        self._set_decay()

    @property
    def moments(self) -> tuple[str, ...]:
        """The momentum ``m``."""
        return ("m",)

    @property
    def constants(self) -> Float64Array:
        """``[beta1, 1 - beta1, beta2, 1 - beta2, weight_decay]``."""
        return np.array([self.beta1, 1.0 - self.beta1, self.beta2, 1.0 - self.beta2, self.weight_decay])


@dataclass(frozen=True)
class ScheduleFreeAdamW(_Moments):
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


OPTIMIZERS = (SGD, Adagrad, Adadelta, RMSprop, Adam, AdamW, NAdam, RAdam, Lion, ScheduleFreeAdamW)
"""All that there are: another class could describe other moments and constants than its kernel reads."""

_NAMED = (
    "SGD()",
    "SGD(momentum=0.9)",
    "SGD(momentum=0.9, nesterov=True)",
    "Adagrad()",
    "Adadelta()",
    "RMSprop()",
    "Adam()",
    "AdamW()",
    "NAdam()",
    "RAdam()",
    "Lion()",
    "ScheduleFreeAdamW()",
)
"""What stands for an optimizer's name."""


def check_optimizer(optimizer: object, dtype: npt.DTypeLike) -> Optimizer:
    """Return `optimizer` if it is one, and its numbers are some in the model's `dtype`.

    Raises
    ------
    TypeError
        If it is no optimizer; the message proposes the one that a name or a class stands for.
    ValueError
        If its `eps` would be 0, subnormal or infinite in `dtype`.
    """
    if not isinstance(optimizer, Optimizer):
        name = optimizer.__name__ if isinstance(optimizer, type) else optimizer
        meant = nearest(name, _NAMED) if isinstance(name, str) else None
        proposal = f" (did you mean fastbp.{meant}?)" if meant else ""
        raise TypeError(
            f"optimizer must be an optimizer such as fastbp.Adam(), got {checks.shown(optimizer)}{proposal}"
        )
    eps, info = getattr(optimizer, "eps", None), np.finfo(dtype)
    low, high = float(info.tiny), float(info.max)
    if eps is not None and not low <= eps <= high:
        raise ValueError(f"eps must be in [{low:.2g}, {high:.2g}] for a model of {np.dtype(dtype)}, got {eps!r}")
    return optimizer
