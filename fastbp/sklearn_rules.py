"""Update rules with scikit-learn's conventions, for estimators that have to give its numbers.

The learning rate is inside of the momentum buffer, and Adam's eps is added before the bias correction of the second
moment: both as in ``sklearn.neural_network``, and unlike in fastbp's own optimizers, which follow PyTorch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from fastbp.own import UpdateRule

if TYPE_CHECKING:
    from fastbp.schedules import LearningRate

__all__ = ["sklearn_adam", "sklearn_sgd"]


@njit
def _momentum(p: Any, g: Any, moments: Any, numbers: Any) -> Any:
    rate, momentum = numbers
    velocity = momentum * moments[0] - rate * g
    return p + velocity, (velocity,)


@njit
def _nesterov(p: Any, g: Any, moments: Any, numbers: Any) -> Any:
    rate, momentum = numbers
    velocity = momentum * moments[0] - rate * g
    return p + (momentum * velocity - rate * g), (velocity,)


@njit
def _adam(p: Any, g: Any, moments: Any, numbers: Any) -> Any:
    rate, beta1, beta2, eps = numbers
    m, v = moments
    m = beta1 * m + (1.0 - beta1) * g
    v = beta2 * v + (1.0 - beta2) * (g * g)
    return p - rate * m / (np.sqrt(v) + eps), (m, v)


@njit
def _adam_rate(rate: float, t: int, hyperparameters: Any) -> Any:
    beta1, beta2 = hyperparameters[0], hyperparameters[1]
    return (rate * math.sqrt(1.0 - beta2**t) / (1.0 - beta1**t),)


def sklearn_sgd(learning_rate: LearningRate = 0.001, momentum: float = 0.9, nesterov: bool = True) -> UpdateRule:
    """Return scikit-learn's stochastic gradient descent: v = momentum * v - rate * g; params += v, or Nesterov's form.

    Examples
    --------
    >>> sklearn_sgd(0.1).name
    'sklearn_nesterov'
    """
    function, name = (_nesterov, "sklearn_nesterov") if nesterov else (_momentum, "sklearn_momentum")
    return UpdateRule(name, 1, function, learning_rate, (momentum,))


def sklearn_adam(
    learning_rate: LearningRate = 0.001, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
) -> UpdateRule:
    """Return scikit-learn's Adam: params -= rate * sqrt(1 - beta2**t) / (1 - beta1**t) * m / (sqrt(v) + eps).

    Examples
    --------
    >>> sklearn_adam().n_moments
    2
    """
    return UpdateRule("sklearn_adam", 2, _adam, learning_rate, (beta1, beta2, eps), _adam_rate)
