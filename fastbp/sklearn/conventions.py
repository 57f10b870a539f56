"""Where scikit-learn's conventions differ from fastbp's: the scale of losses, names, first weights, and progress."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastbp.optimizers import Optimizer
from fastbp.sklearn_rules import sklearn_adam, sklearn_sgd

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Scale", "first_parameters", "names_of", "optimizer_of", "scale_of"]

Array = npt.NDArray[Any]


class Scale(NamedTuple):
    """How many times as large as fastbp's scikit-learn's loss is, and the gradient that it follows.

    They are not the same for several outputs: of the squared error its loss is the mean over them, its gradient that of
    their sum. shift : what is added to the loss.
    """

    loss: float
    gradient: float
    shift: float = 0.0


def scale_of(output: str, loss: str, y: Array) -> Scale:
    """Return the scale of a loss with this output activation, for targets of shape (n_samples, n_outputs)."""
    n_outputs = y.shape[1]
    if loss == "squared_error":
        return Scale(0.5, 0.5 * n_outputs)
    if loss == "poisson":  # half of the deviance: what depends on y alone is in it
        positive = y[y > 0].astype(np.float64)
        of_y = float((positive * np.log(positive)).sum()) - float(y.sum(dtype=np.float64))
        return Scale(n_outputs, n_outputs, of_y / len(y))
    if output == "logistic":
        return Scale(n_outputs, n_outputs)
    return Scale(1.0, 1.0)


_NAMES = {"logistic": "sigmoid", "squared_error": "mse", "log_loss": None}


def names_of(value: Any) -> Any:
    """Return fastbp's name of an activation or a loss, or what else there is, as it is."""
    return _NAMES.get(value, value) if isinstance(value, str) else value


def first_parameters(
    sizes: Sequence[int], activation: object, random: np.random.RandomState, dtype: npt.DTypeLike
) -> Array:
    """Return scikit-learn's first weights and biases: uniform, by Glorot and Bengio (2010), drawn in its order."""
    factor, parts = (2.0 if activation == "logistic" else 6.0), []
    for n_in, n_out in pairwise(sizes):
        bound = math.sqrt(factor / (n_in + n_out))
        parts += [random.uniform(-bound, bound, n) for n in (n_in * n_out, n_out)]
    return np.concatenate(parts).astype(dtype)


def optimizer_of(estimator: Any, rate: float, scale: Scale) -> Optimizer:
    """Return the optimizer of an estimator, whose steps on fastbp's gradient are scikit-learn's on its own."""
    if isinstance(estimator.solver, Optimizer):
        return estimator.solver
    if estimator.solver == "sgd":
        return sklearn_sgd(rate * scale.gradient, float(estimator.momentum), bool(estimator.nesterovs_momentum))
    epsilon = estimator.epsilon / scale.gradient
    return sklearn_adam(rate, float(estimator.beta_1), float(estimator.beta_2), float(epsilon))
