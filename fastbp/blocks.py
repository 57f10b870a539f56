"""Arrays looked at in blocks of rows: what a check needs beside the data stays small, and in the nearest caches."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastbp.sparse import Features, SparseRows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["first_bad", "numbers", "row_blocks"]

Array: TypeAlias = npt.NDArray[Any]

_BLOCK_ELEMENTS = 1 << 17  # 2 MB with a check's temporaries: inside the second-level cache


def numbers(array: Features) -> Array:
    """Return `array` with the numbers that the kernels read: a byte of a bool array that is not 0 is True.

    NumPy's own functions take every byte of a bool array for 0 or 1, and do with others as it comes.
    """
    if isinstance(array, SparseRows):
        array = array.toarray()
    return array.view(np.uint8) != 0 if array.dtype.kind == "b" else array


def row_blocks(array: Features) -> Iterable[tuple[int, Array]]:
    """Return (first row, rows) for consecutive blocks of about 2**17 elements, as `numbers`."""
    if array.size <= _BLOCK_ELEMENTS:
        return [(0, numbers(array))]
    block_rows = max(1, _BLOCK_ELEMENTS // math.prod(array.shape[1:]))
    return ((row, numbers(array[row : row + block_rows])) for row in range(0, array.shape[0], block_rows))


def first_bad(array: Array, is_good: Callable[[Array], npt.NDArray[np.bool_]]) -> tuple[int, ...] | None:
    """Return the index of the first element that is not good, None if all are.

    Parameters
    ----------
    array : ndarray, at least 1-D
    is_good : callable
        Called on blocks of rows; returns a bool per element, or per row.
    """
    for first_row, block in row_blocks(array):
        good = is_good(block)
        if not good.all():
            row, *rest = (int(i) for i in np.unravel_index(int(good.argmin()), good.shape))
            return first_row + row, *rest
    return None
