"""Arrays that start on a cache line: a vector that straddles two lines costs two accesses."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ALIGNMENT", "aligned_copy", "aligned_rows", "aligned_zeros"]

ALIGNMENT = 64  # bytes: a cache line, and the widest vector register


def aligned_zeros(n: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return n zeros, contiguous; a view, so that nobody can resize them under a kernel."""
    dtype = np.dtype(dtype)
    memory = np.zeros(n * dtype.itemsize + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + n * dtype.itemsize].view(dtype)


def aligned_copy(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a copy of a 1-D array."""
    copy = aligned_zeros(values.size, values.dtype)
    copy[:] = values
    return copy


def aligned_rows(n_rows: int, n: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return zeros of shape (n_rows, n), every row of which is aligned."""
    per_line = ALIGNMENT // np.dtype(dtype).itemsize
    row = -(-n // per_line) * per_line
    return aligned_zeros(n_rows * row, dtype).reshape(n_rows, row)[:, :n]
