"""Gradient descent, with momentum or divided by what the gradient usually is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastbp.optimizers.base import Float64Array, Optimizer

if TYPE_CHECKING:
    from fastbp.schedules import LearningRate


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
