"""Rows of a sparse matrix, as the kernels read them: compressed (CSR), each row made whole only when it is gathered."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Features", "SparseRows", "is_sparse"]

Array: TypeAlias = npt.NDArray[Any]


def is_sparse(values: object) -> bool:
    """Return whether this is a sparse matrix or array of SciPy's, or what converts itself likewise."""
    return hasattr(values, "tocsr")


class SparseRows:
    """Rows of which only some numbers are kept, the others being 0; what an array can do that serves as features.

    Parameters
    ----------
    values : ndarray, shape (n_kept,), of a dtype that kernels read
    indices : ndarray, shape (n_kept,), of int32 or int64
        Columns of the values; each one once in a row.
    indptr : ndarray, shape (n_rows + 1,), of the same dtype
        Where each row begins.
    n_columns : int
    """

    ndim = 2

    def __init__(self, values: Array, indices: Array, indptr: Array, n_columns: int) -> None:
        self.values, self.indices, self.indptr = values, indices, indptr
        self.shape, self.dtype = (len(indptr) - 1, n_columns), values.dtype
        self.size = self.shape[0] * n_columns

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: slice | Array) -> SparseRows:
        """Return a copy of some rows."""
        rows = np.arange(len(self))[key]
        first, lengths = self.indptr[rows].astype(np.int64), np.diff(self.indptr)[rows]
        indptr = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        places = np.repeat(first - indptr[:-1], lengths) + np.arange(indptr[-1])
        return SparseRows(self.values[places], self.indices[places].astype(np.int64), indptr, self.shape[1])

    def copy(self) -> SparseRows:
        """Return a copy that nobody else writes to."""
        return SparseRows(self.values.copy(), self.indices.copy(), self.indptr.copy(), self.shape[1])

    def toarray(self) -> Array:
        """Return the rows with all their zeros."""
        array = np.zeros(self.shape, self.dtype)
        array[np.repeat(np.arange(len(self)), np.diff(self.indptr)), self.indices] = self.values
        return array

    def tobytes(self) -> bytes:
        """Return bytes that are the same for the same rows."""
        return (
            b"".join([part.astype(np.int64).tobytes() for part in (self.indptr, self.indices)]) + self.values.tobytes()
        )

    def max(self) -> Any:
        """Return the largest number."""
        return self.values.max(initial=0)

    def min(self) -> Any:
        """Return the least number."""
        return self.values.min(initial=0)


Features: TypeAlias = npt.NDArray[Any] | SparseRows
