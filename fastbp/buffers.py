"""Arrays of our own memory: what kernels stream through starts on a cache line, which no vector then straddles.

Large ones lie in huge pages where the system grants them (Linux): a kernel that walks over some megabytes otherwise
needs more page translations than the processor keeps at hand.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ALIGNMENT", "aligned_bytes", "aligned_copy", "aligned_rows", "aligned_zeros", "owned"]

ALIGNMENT = 64  # bytes: a cache line, and the widest vector register
_HUGE_PAGE = 1 << 21  # bytes


def aligned_zeros(n: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return n zeros, contiguous; a view, so that nobody can resize them under a kernel."""
    dtype = np.dtype(dtype)
    return aligned_bytes(n * dtype.itemsize).view(dtype)


def aligned_bytes(n: int) -> npt.NDArray[np.uint8]:
    """Return n bytes, all 0."""
    if n >= _HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            return _huge_pages(n)
        except OSError as error:  # then NumPy may try, and raises MemoryError if it must
            if error.errno is None:  # not the system's: a signal's handler has raised a TimeoutError, say
                raise
    memory = np.zeros(n + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + n]


def _huge_pages(n: int) -> npt.NDArray[np.uint8]:
    """Return n bytes from the start of a huge page on; what is mapped beside them is never touched."""
    mapping = mmap.mmap(-1, n + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory = np.frombuffer(mapping, np.uint8)
    start = -memory.ctypes.data % _HUGE_PAGE
    # Whole pages only: one more would hold up to 2 MB for nothing.
    mapping.madvise(mmap.MADV_HUGEPAGE, start, n // _HUGE_PAGE * _HUGE_PAGE)
    return memory[start : start + n]


def aligned_copy(values: npt.NDArray[Any], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return a copy of a 1-D array."""
    copy = aligned_zeros(values.size, dtype)
    copy[:] = values
    return copy


def aligned_rows(n_rows: int, n: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return zeros of shape (n_rows, n), every row of which is aligned."""
    per_line = ALIGNMENT // np.dtype(dtype).itemsize
    row = -(-n // per_line) * per_line
    return aligned_zeros(n_rows * row, dtype).reshape(n_rows, row)[:, :n]


def owned(array: npt.NDArray[Any], dtype: npt.DTypeLike | None = None) -> npt.NDArray[Any]:
    """Return a copy that is nobody else's: writable, aligned, contiguous, of the base class."""
    return np.array(array, dtype, order="C", copy=True, subok=False)
