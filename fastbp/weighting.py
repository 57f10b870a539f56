"""Weights of classes, as weights of samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastbp import checks

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["weights_of_classes"]


def weights_of_classes(
    class_weight: object, y: npt.NDArray[Any], is_labels: bool, n_out: int, is_binary: bool
) -> npt.NDArray[np.float64]:
    """Return the weight of each sample that that of its class gives it.

    Parameters
    ----------
    class_weight : mapping of int to float, or "balanced"
        Classes that are not named have weight 1. Balanced weights are ``n_samples / (n_classes * n_of_class)``, of the
        classes that there are (G. King and L. Zeng, "Logistic regression in rare events data", Political Analysis 9,
        2001; scikit-learn's formula).
    y : ndarray, shape (n_samples,) of labels, or (n_samples, 1) of 0 and 1
    is_labels : bool
    n_out : int
    is_binary : bool
        Whether each output is the probability of one of two classes.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was expected and what was passed.
    """
    if not isinstance(class_weight, Mapping) and not (isinstance(class_weight, str) and class_weight == "balanced"):
        raise TypeError(f"class_weight must be a dict of class: weight or 'balanced', got {checks.shown(class_weight)}")
    if not is_labels and not (is_binary and n_out == 1 and np.isin(y, (0, 1)).all()):
        raise ValueError("class_weight needs y as integer classes, or as 0 and 1 for one sigmoid output")
    labels = y.astype(np.intp) if is_labels else y[:, 0].astype(np.intp)
    n_classes = n_out if is_labels else 2
    if isinstance(class_weight, Mapping):
        return _named(class_weight, n_classes)[labels]
    counts = np.bincount(labels, minlength=n_classes)
    balanced: npt.NDArray[np.float64] = labels.size / (np.count_nonzero(counts) * np.maximum(counts, 1.0))
    return balanced[labels]


def _named(class_weight: Mapping[Any, Any], n_classes: int) -> npt.NDArray[np.float64]:
    """Return the weights of all classes."""
    of_class = np.ones(n_classes)
    for label, weight in class_weight.items():
        number = checks.integer(label, "class_weight's classes")
        if not 0 <= number < n_classes:
            raise ValueError(f"class_weight names class {number}, but there are {n_classes}, from 0")
        of_class[number] = checks.finite_float(weight, f"class_weight[{number}]", low=0.0)
    return of_class
