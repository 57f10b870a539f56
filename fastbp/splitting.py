"""Samples of a fit that are left out to validate it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from fastbp.sources import Data

__all__ = ["split"]


def split(data: Data, fraction: float, seed: int, is_binary: bool) -> tuple[Data, Data]:
    """Return copies of what is left and of a random `fraction` of the samples; the latter in the order of the data.

    Parameters
    ----------
    data : Data
    fraction : float
        In (0, 1).
    seed : int
        The same one splits the same data alike.
    is_binary : bool
        Whether each value of y is 0 or 1, a class.

    Raises
    ------
    ValueError
        If one of the two parts had no sample, or no weight.
    """
    generator = np.random.default_rng(seed)
    classes = _classes_of(data, is_binary)
    order = generator.permutation(len(classes))
    # Of each class the same share: the first ones of a random order, rounded so that the sum is right too.
    by_class = order[np.argsort(classes[order], kind="stable")]
    counts = np.bincount(classes)
    ends = np.cumsum(counts)
    quotas = np.diff(np.round(ends * fraction).astype(np.intp), prepend=0)
    chosen = np.concatenate(
        [by_class[end - count : end - count + quota] for end, count, quota in zip(ends, counts, quotas, strict=True)]
    )
    is_chosen = np.zeros(len(classes), bool)
    is_chosen[chosen] = True
    parts = _part(data, ~is_chosen), _part(data, is_chosen)
    for part, name in zip(parts, ("train on", "validate with"), strict=True):
        if part.x.shape[0] == 0 or part.weight == 0.0:
            raise ValueError(f"validation_split={fraction} of {len(classes)} samples leaves nothing to {name}")
    return parts


def _classes_of(data: Data, is_binary: bool) -> npt.NDArray[np.intp]:
    """Return the class of each sample, 0 where there are none."""
    if data.is_labels:
        return data.y.astype(np.intp)
    if is_binary and data.y.shape[1] == 1:
        return (data.y[:, 0] > 0.5).astype(np.intp)
    return np.zeros(data.x.shape[0], np.intp)


def _part(data: Data, mask: npt.NDArray[np.bool_]) -> Data:
    """Return a copy of some samples."""
    weights: npt.NDArray[Any] | None = None if data.weights is None else data.weights[mask]
    return replace(data, x=data.x[mask], y=data.y[mask], weights=weights)
