"""The user's checked arrays in the form that the kernels read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastbp.errors import warn
from fastbp.kernels.gather import SOURCE_DTYPES
from fastbp.kernels.tables import SOURCE
from fastbp.resolution import lost_columns
from fastbp.sparse import Features, SparseRows

if TYPE_CHECKING:
    from fastbp.architecture import Architecture

__all__ = ["NO_DATA", "Data", "source_code", "source_of"]


_FINGERPRINT_ROWS = 256
_SHOWN_COLUMNS = 5

_SOURCE_CODES = {(np.dtype(name).kind, np.dtype(name).itemsize): code for code, name in enumerate(SOURCE_DTYPES)}


@dataclass(frozen=True)
class Data:
    """Features and targets that `fastbp.arrays` has passed; keeps the arrays alive that `source` points into.

    Parameters
    ----------
    x : ndarray or SparseRows, shape (n_samples, n_features)
    y : ndarray, shape (n_samples,) of labels or (n_samples, n_out) of values
    is_labels : bool
    weights : ndarray of float64, shape (n_samples,), contiguous, optional
        Not negative, and not all 0. By default all samples count alike.
    """

    x: Features
    y: npt.NDArray[Any]
    is_labels: bool
    weights: npt.NDArray[np.float64] | None = None

    @property
    def is_sparse(self) -> bool:
        """Whether the features are."""
        return isinstance(self.x, SparseRows)

    def copy(self) -> Data:
        """Return a copy that nobody else writes to."""
        weights = None if self.weights is None else self.weights.copy()
        return Data(self.x.copy(), self.y.copy(), self.is_labels, weights)

    @property
    def weight(self) -> float:
        """Of all samples: their number, if they count alike."""
        return float(self.x.shape[0] if self.weights is None else self.weights.sum())

    def source(self) -> npt.NDArray[np.void]:
        """Return addresses, strides and dtypes, as `SOURCE`."""
        return source_of(self.x, self.y, self.is_labels, self.weights)

    def fingerprints(self) -> tuple[str, str, str]:
        """Return a hash of x, one of y and one of the weights, "" without any; as `fingerprint` of all."""
        weights = "" if self.weights is None else _fingerprint(self.weights)
        return _fingerprint(self.x), _fingerprint(self.y), weights

    def fingerprint(self) -> str:
        """Return a hash of shapes, dtypes and some hundred rows, to know the same data again, in another process too.

        Not of all rows: it is taken when a fit stops in mid-epoch, perhaps by Ctrl-C, and the data may be a memory map.
        """
        return _fingerprint(*((self.x, self.y) if self.weights is None else (self.x, self.y, self.weights)))

    def warn_of_lost_digits(self, architecture: Architecture) -> None:
        """Warn once if rounding to the model's dtype loses what distinguishes the rows of a column."""
        # A sparse column is rarely far from 0: its zeros are not.
        arrays = {} if architecture.standardizes_x or isinstance(self.x, SparseRows) else {"x": self.x}
        if not self.is_labels:  # predictions would lose them, if targets are standardized or not
            arrays["y"] = self.y
        lost = {name: columns for name, array in arrays.items() if (columns := lost_columns(array, architecture.dtype))}
        if lost:
            named = " and ".join(_column_names(name, columns) for name, columns in lost.items())
            warn(
                f"{named}: the values lie too close together, so far from 0, for float32, in which the model computes "
                'and which keeps 7 digits of them; use dtype="float64", or, for x, standardize=True'
            )


NO_DATA = Data(np.empty((0, 0)), np.empty(0), is_labels=False)


def _fingerprint(*arrays: Features) -> str:
    hasher = hashlib.blake2b(digest_size=16)
    for array in arrays:
        hasher.update(f"{array.shape} {array.dtype}".encode())
        n_rows = array.shape[0]
        if n_rows > _FINGERPRINT_ROWS:
            array = array[np.arange(_FINGERPRINT_ROWS) * (n_rows - 1) // (_FINGERPRINT_ROWS - 1)]
        hasher.update(array.tobytes())
    return hasher.hexdigest()


def source_code(dtype: np.dtype[Any]) -> int:
    """Return the index of a native `dtype` in `SOURCE_DTYPES`. No checks: the caller has passed the array through."""
    return _SOURCE_CODES[dtype.kind, dtype.itemsize]


def source_of(
    x: Features,
    y: npt.NDArray[Any] | None = None,
    is_labels: bool = False,
    weights: npt.NDArray[np.float64] | None = None,
) -> npt.NDArray[np.void]:
    """Return where the kernels find x, y and weights, as `SOURCE`. The caller keeps all alive.

    Parameters
    ----------
    x : ndarray or SparseRows, shape (n_samples, n_features)
    y : ndarray, shape (n_samples,) or (n_samples, n_out), optional
    is_labels : bool
        Whether y is one integer class per sample.
    weights : ndarray, shape (n_samples,), optional
    """
    of_y = (0, 0, 0, 0, 0)
    if y is not None:
        column = y.strides[1] if y.ndim == 2 else 0
        of_y = (y.ctypes.data, y.strides[0], column, source_code(y.dtype), int(is_labels))
    of_w = (0, 0, 0)
    if weights is not None:
        of_w = (weights.ctypes.data, weights.strides[0], source_code(weights.dtype))
    of_x: tuple[int, ...]
    if isinstance(x, SparseRows):
        of_x = (x.values.ctypes.data, 0, 0, source_code(x.dtype))
        of_rows = (x.indices.ctypes.data, x.indptr.ctypes.data, source_code(x.indptr.dtype), len(x.values))
    else:
        of_x, of_rows = (x.ctypes.data, *x.strides, source_code(x.dtype)), (0, 0, 0, 0)
    return np.array((*of_x, *of_y, *of_w, x.shape[0], *of_rows), SOURCE)


def _column_names(name: str, columns: list[int]) -> str:
    """Return the first columns of an array in words."""
    shown = ", ".join(str(column) for column in columns[:_SHOWN_COLUMNS])
    more = f" and {len(columns) - _SHOWN_COLUMNS} more" if len(columns) > _SHOWN_COLUMNS else ""
    return f"column{'s' if len(columns) > 1 else ''} {shown}{more} of {name}"
