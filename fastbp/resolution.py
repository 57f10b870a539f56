"""Data whose rows float32 cannot tell apart: years as seconds, or targets far from 0."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastbp.blocks import row_blocks

__all__ = ["lost_columns"]

Array: TypeAlias = npt.NDArray[Any]

_LOST = 2.0**-12  # range over largest magnitude: of float32's 24 bits, 12 at most are left
# A range this large among some rows keeps its column from being lost, whatever the other rows are: one of a magnitude
# that is larger by 2**-11 widens the range by as much, and any smaller one leaves it large enough.
_SAFE = 2.0**-11
_FIRST_ROWS = 64  # which show of nearly every column that it is not lost
_FOLDED = 512  # columns that NumPy's reduction over rows needs to be fast


def lost_columns(array: Array, dtype: np.dtype[Any]) -> list[int]:
    """Return the columns of `array` whose rows differ, but by less than 2**-12 of the largest magnitude.

    Looks at as many rows as it takes to be sure, a few as a rule.

    Parameters
    ----------
    array : ndarray, shape (n_samples, n_columns), finite
    dtype : dtype
        The model's. Nothing is lost but in float32, and there of integers of 32 bits or more, and float64.
    """
    if dtype != np.float32 or array.dtype.itemsize < 4 or array.dtype == np.float32:
        return []
    columns = np.flatnonzero(_is_open(array[:_FIRST_ROWS]))
    return _lost_among(columns, array) if columns.size else []


def _is_open(rows: Array) -> npt.NDArray[np.bool_]:
    """Return for each column whether these rows leave it open, to float64's rounding, if it is lost."""
    with np.errstate(all="ignore"):
        low, high = rows.min(axis=0).astype(np.float64), rows.max(axis=0).astype(np.float64)
        is_open: npt.NDArray[np.bool_] = high - low < _SAFE * np.maximum(high, -low)
    return is_open


def _lost_among(columns: npt.NDArray[np.intp], array: Array) -> list[int]:
    """Return which of these columns are lost; looks at the rows until there is none left to decide."""
    low = high = array[0, columns]
    with np.errstate(all="ignore"):
        for _, block in row_blocks(array):
            block_low, block_high = _extremes(block, columns)
            low, high = np.minimum(low, block_low), np.maximum(high, block_high)
            is_open = _relative_range(low, high) < _SAFE
            columns, low, high = columns[is_open], low[is_open], high[is_open]
            if columns.size == 0:
                break
        spread = _relative_range(low, high)
    lost: list[int] = columns[(spread > 0.0) & (spread < _LOST)].tolist()
    return lost


def _extremes(block: Array, columns: npt.NDArray[np.intp]) -> tuple[Array, Array]:
    """Return the least and the largest value of some columns of a block of rows."""
    if columns.size < block.shape[1]:
        block = block[:, columns]
    n_rows, n_columns = block.shape
    fold = max(1, min(n_rows, _FOLDED // n_columns))
    whole = np.ascontiguousarray(block[: n_rows // fold * fold]).reshape(-1, fold * n_columns)
    parts = np.concatenate([whole.min(axis=0), whole.max(axis=0)]).reshape(2 * fold, n_columns)
    parts = np.concatenate([parts, block[n_rows - fold :]])
    return parts.min(axis=0), parts.max(axis=0)


def _relative_range(low: Array, high: Array) -> npt.NDArray[np.float64]:
    """Return (high - low) / max(|low|, |high|), exact to float64; infinite where both are 0."""
    if low.dtype.kind == "i":  # as bits, since a difference of two int64 needs 64 of them
        difference = (high.astype(np.int64) - low.astype(np.int64)).view(np.uint64)
    else:
        difference = high - low
    magnitude = np.maximum(np.abs(low.astype(np.float64)), np.abs(high.astype(np.float64)))
    ratio: npt.NDArray[np.float64] = np.divide(
        difference.astype(np.float64), magnitude, out=np.full(low.shape, np.inf), where=magnitude > 0.0
    )
    return ratio
