"""Checks and casts of the arrays that a user passes in: the one place that words their errors.

An array is looked at once, before the first step. From then on everything, the kernels too, reads a view of our own
or a cast copy, and nothing of the user's object: whoever sets its shape, dtype or strides meanwhile changes neither.
Data of a supported dtype is never copied, and what is checked is what the kernels read.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastbp.blocks import first_bad, numbers
from fastbp.sparse import Features, SparseRows, is_sparse

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["features", "output", "parameters", "targets"]

Array: TypeAlias = npt.NDArray[Any]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

_LABELS_HINT = ": number the classes, y = np.unique(y, return_inverse=True)[1]"


def features(
    x: object,
    n_features: int,
    dtype: npt.DTypeLike,
    name: str = "x",
    allow_empty: bool = False,
    check_finite: bool = True,
) -> Features:
    """Return `x` as an array of shape (n_samples, n_features) that kernels can read, without copying where it can.

    Parameters
    ----------
    x : array_like, shape (n_samples, n_features), read-only
        bool, (u)int8 to (u)int64, float16, float32 or float64 in any order, strided or read-only: a view is returned.
        Other byte orders and longdouble are cast once, to the native dtype and float64; unaligned data is copied once.
    n_features : int
        The expected number of columns.
    dtype : dtype
        The model's dtype, float32 or float64, in which every value must be finite.
    name : str
        The argument's name, for messages.
    allow_empty : bool
        Whether zero samples are permitted.
    check_finite : bool
        Whether to look at every value.

    Returns
    -------
    ndarray, shape (n_samples, n_features)
        Of the base class, and no object of the user's.

    Raises
    ------
    TypeError
        If `x` is a masked array or its dtype is no real number.
    ValueError
        If the shape is another, there is no sample, or a value is NaN, infinite or beyond the range of `dtype`.
    """
    if is_sparse(x):
        return _sparse_features(x, n_features, np.dtype(dtype), name, allow_empty, check_finite)
    given = _own_view(x, name)
    if given.ndim != 2 or given.shape[1] != n_features:
        raise ValueError(f"{name} must have shape (n_samples, {n_features}), got {given.shape}")
    if not allow_empty and given.shape[0] == 0:
        raise ValueError(f"{name} must have at least one sample, got shape {given.shape}")
    array = _readable(given)
    if check_finite:
        _check_finite(array, given, np.dtype(dtype), name, columns=_column_names(x, n_features))
    return array


def targets(
    y: object,
    n_samples: int,
    n_out: int,
    dtype: npt.DTypeLike,
    classes: bool,
    name: str = "y",
    permitted: str | None = None,
    check_finite: bool = True,
) -> tuple[Array, bool]:
    """Return `y` as labels of shape (n_samples,) or values of shape (n_samples, n_out), and whether it is labels.

    Nothing is broadcast, and nothing is copied that `features` would not copy.

    Parameters
    ----------
    y : array_like, read-only
        `classes` false: values of shape (n_samples, n_out); for one output (n_samples,) and (n_samples, 1) are the
        same. `classes` true: labels in [0, n_out) of shape (n_samples,) or (n_samples, 1), integers or whole
        floats (these are cast to intp); or rows of probabilities of shape (n_samples, n_out), each >= 0 and a row's
        sum within 5e-4 * n_out + 1e-6 of 1, as if each were rounded to three decimals.
    n_samples, n_out : int
        The number of samples of x and of outputs, at least two if `classes`.
    dtype : dtype
        The model's dtype, float32 or float64, in which every value must be finite.
    classes : bool
        Whether the output is a softmax over classes.
    name : str
        The argument's name, for messages.
    permitted : {"fractions", "counts", "signs"}, optional
        Whether values must lie in [0, 1] (binary cross-entropy), be no less than 0 (Poisson), or be -1 or 1 (hinge).
    check_finite : bool
        As for `features`.

    Returns
    -------
    y : ndarray, shape (n_samples,) or (n_samples, n_out)
        Of the base class, and no object of the user's.
    is_labels : bool

    Raises
    ------
    TypeError
        If `y` is a masked array or its dtype is no real number.
    ValueError
        If the number of samples or the shape is another, or a value is NaN, infinite or not permitted.
    """
    given = _own_view(y, name, hint_kinds="OSTU" if classes or permitted in ("fractions", "signs") else "STU")
    if given.ndim >= 1 and given.shape[0] != n_samples:
        raise ValueError(f"{name} must have as many samples as its x: expected {n_samples}, got {given.shape[0]}")
    if classes and given.shape in ((n_samples,), (n_samples, 1)):
        return _labels(given.reshape(n_samples), n_out, name), True
    if n_out == 1 and given.shape == (n_samples,):
        given = given[:, np.newaxis]
    if given.shape != (n_samples, n_out):
        raise ValueError(f"{name} must have shape {_target_shapes(n_out, classes)}, got {given.shape}")
    array = _readable(given)
    if check_finite:
        _check_finite(array, given, np.dtype(dtype), name, columns=_column_names(y, n_out))
    if classes:
        _check_probabilities(array, name)
    elif permitted is not None:
        _check_permitted(array, permitted, name)
    return array, False


def _sparse_features(
    x: Any, n_features: int, dtype: np.dtype[Any], name: str, allow_empty: bool, check_finite: bool
) -> SparseRows:
    """Return a sparse matrix as rows that the kernels read: its own arrays where it is compressed by rows."""
    if len(x.shape) != 2 or x.shape[1] != n_features:
        raise ValueError(f"{name} must have shape (n_samples, {n_features}), got {x.shape}")
    if not allow_empty and x.shape[0] == 0:
        raise ValueError(f"{name} must have at least one sample, got shape {x.shape}")
    matrix = x.tocsr()
    if not matrix.has_canonical_format:  # the same place more than once
        matrix = matrix.copy()
        matrix.sum_duplicates()
    values = _readable(_own_view(matrix.data, name))
    index = np.int32 if matrix.indices.dtype == matrix.indptr.dtype == np.int32 else np.int64
    indices, indptr = [_base_view(np.ascontiguousarray(part, index)) for part in (matrix.indices, matrix.indptr)]
    rows = SparseRows(np.ascontiguousarray(values), indices, indptr, n_features)
    n_kept = len(rows.values)
    if len(indices) != n_kept or len(indptr) != x.shape[0] + 1 or indptr[0] != 0 or indptr[-1] > n_kept:
        raise ValueError(f"{name} must be a whole sparse matrix, but its indptr, indices and data do not fit together")
    if (np.diff(indptr) < 0).any() or indices.min(initial=0) < 0 or indices.max(initial=0) >= n_features:
        raise ValueError(f"{name} must be a whole sparse matrix, but its indptr or indices lead out of it")
    if check_finite:
        _check_sparse_finite(rows, dtype, name)
    return rows


def _check_sparse_finite(rows: SparseRows, dtype: np.dtype[Any], name: str) -> None:
    with np.errstate(all="ignore"):
        good = np.isfinite(rows.values.astype(dtype) if rows.dtype.kind == "f" else 0.0)
    if good.all():
        return
    place = int(good.argmin())
    row, value = int(rows.indptr.searchsorted(place, side="right")) - 1, rows.values[place]
    problem = f"be within the range of {dtype}" if np.isfinite(value) else "be finite"
    raise ValueError(f"{name} must {problem}, got {value!s} in row {row}, column {rows.indices[place]}")


def weights(values: object, n_samples: int, name: str) -> npt.NDArray[np.float64]:
    """Return a copy of samples' weights of shape (n_samples,), as float64.

    Raises
    ------
    TypeError
        If `values` is a masked array or its dtype is no real number.
    ValueError
        If the shape is another, or a weight is negative, NaN or infinite.
    """
    given = _own_view(values, name)
    if given.shape != (n_samples,):
        raise ValueError(f"{name} must have shape ({n_samples},), one for each sample, got {given.shape}")
    with np.errstate(all="ignore"):
        array = np.array(_readable(given), np.float64)
    wrong = ~(np.isfinite(array) & (array >= 0.0))
    if wrong.any():
        index = int(wrong.argmax())
        raise ValueError(f"{name} must be finite and not negative, got {array[index]} at index {index}")
    return array


def check_some_weight(array: npt.NDArray[np.float64], name: str) -> None:
    """Raise a ValueError if there are weights, and all are 0, or their sum is not finite."""
    with np.errstate(all="ignore"):
        total = float(array.sum())
    if array.size and not 0.0 < total < np.inf:
        raise ValueError(f"{name} must leave samples a finite total weight above zero, got {total}")


def parameters(values: object, n_params: int, dtype: npt.DTypeLike, name: str = "params") -> Array:
    """Return a new array of shape (n_params,) and dtype `dtype` with the parameters in `values`.

    Raises
    ------
    TypeError
        If `values` is a masked array or its dtype is no real number.
    ValueError
        If the shape is another, or a value is NaN, infinite or beyond the range of `dtype`.
    """
    given = _own_view(values, name)
    if given.shape != (n_params,):
        raise ValueError(f"{name} must have shape ({n_params},), got {given.shape}")
    with np.errstate(all="ignore"):
        array = given.astype(dtype)
    _check_finite(array, given, array.dtype, name, what="index")
    return array


def output(out: object, shape: tuple[int, int], dtype: np.dtype[Any], x: Features, params: Array) -> Array:
    """Return where a prediction goes: a new array, or a view of the user's `out`, of shape `shape` and dtype `dtype`.

    Raises
    ------
    TypeError
        If `out` is neither None nor an ndarray.
    ValueError
        If its shape or dtype is another, it is not C-contiguous, aligned and writable, or may overlap `x` or `params`.
    """
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be an ndarray, got {type(out).__name__}")
    array = _base_view(out)
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"out must have shape {shape} and dtype {dtype}, got {array.shape} and {array.dtype}")
    if not (array.flags.c_contiguous and array.flags.writeable and array.flags.aligned):
        raise ValueError("out must be C-contiguous, aligned and writable")
    read = (x.values, x.indices, x.indptr) if isinstance(x, SparseRows) else (x,)
    if True in [np.may_share_memory(array, other) for other in (*read, params)]:
        raise ValueError("out must not overlap x or the model's params")
    return array


def _base_view(array: Array) -> Array:
    """Return a view of the base class that nobody else holds, with the true shape, whatever a subclass says of it."""
    return np.asarray(array).view()


def _own_view(values: object, name: str, hint_kinds: str = "") -> Array:
    """Return a view, or an array, of the real numbers in `values`, of any byte order; its object is nobody else's.

    hint_kinds : kinds of dtypes that are labels of classes, not yet numbered.
    """
    try:
        array = values if type(values) is np.ndarray else _array_of(values)
    except ValueError as error:
        raise ValueError(f"{name} must be convertible to an array of numbers: {error}") from error
    except (TypeError, RuntimeError, BufferError) as error:
        raise TypeError(f"{name} must be convertible to an array of numbers: {error}") from error
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array: fill or drop its masked values first")
    array = _base_view(array)
    if array.dtype.kind not in "biuf":
        hint = ": convert it, with .to_numpy(float) or .toarray() where it has these" if array.dtype == object else ""
        if values is None:
            hint = ", as it is None"
        elif array.dtype.kind in hint_kinds:
            hint = _LABELS_HINT
        raise TypeError(f"{name} must have a bool, integer or floating dtype, got {array.dtype}{hint}")
    return array


def _array_of(values: Any) -> Any:
    """Return an array, of frames with missing values and of tensors that only DLPack hands on too.

    Columns of pandas that may hold NA come as objects; as floats they have NaN there, which the check of values names.
    """
    if hasattr(values, "__dlpack__") and not hasattr(values, "__array__"):
        return np.from_dlpack(values)
    if hasattr(values, "columns") and (names := _text_columns(values)):
        raise TypeError(f"make numbers of {', '.join(map(repr, names[:5]))}, or leave them out")
    array = np.asanyarray(values)
    if array.dtype == object and hasattr(values, "to_numpy"):
        with suppress(TypeError, ValueError):
            return values.to_numpy(dtype=np.float64, na_value=np.nan)
    return array


def _text_columns(frame: Any) -> list[str]:
    """Return the columns of a frame that hold no numbers: texts, dates, lists."""
    dtypes = getattr(frame, "dtypes", ())
    return [str(name) for name, dtype in zip(frame.columns, dtypes, strict=False) if not _is_number(dtype)]


def _is_number(dtype: Any) -> bool:
    """Return whether a column's dtype, of pandas or polars, is one of numbers or truth values."""
    if hasattr(dtype, "is_numeric"):
        return bool(dtype.is_numeric()) or str(dtype) == "Boolean"
    return getattr(dtype, "kind", "O") in "biuf"


def _column_names(values: Any, n_columns: int) -> list[str] | None:
    """Return the names of a frame's columns, None where there are none."""
    names = getattr(values, "columns", None)
    if names is None or type(values) is np.ndarray or len(names) != n_columns:
        return None
    return [repr(name) for name in names]


def _readable(given: Array) -> Array:
    """Return `given` itself, or a cast copy if its dtype or alignment is none that kernels read."""
    native = given.dtype.newbyteorder("=")
    if native.kind == "f" and native.itemsize > 8:
        native = np.dtype(np.float64)
    if native == given.dtype and given.flags.aligned:
        return given
    with np.errstate(all="ignore"):
        return given.astype(native).view()  # a view: nobody gets at its owner through `base`


def _check_finite(
    array: Array, given: Array, dtype: np.dtype[Any], name: str, what: str = "row", columns: list[str] | None = None
) -> None:
    """Check that every value of `array` is finite once it is cast to `dtype`; errors show what was `given`.

    columns : their names, for the error.
    """
    if array.dtype.kind != "f":
        return

    def is_finite_in_dtype(block: Array) -> BoolArray:
        with np.errstate(all="ignore"):
            finite: BoolArray = np.isfinite(block.astype(dtype))
        return finite

    is_wider = array.dtype.itemsize > dtype.itemsize
    index = first_bad(array, is_finite_in_dtype if is_wider else np.isfinite)
    if index is not None:
        problem = f"be within the range of {dtype}" if np.isfinite(given[index]) else "be finite"
        # As a string: the format of a longdouble goes through a Python float, in which it may be infinite.
        got = f"{name} must {problem}, got {given[index]!s} in {what} {index[0]}"
        if np.isnan(given[index]) and what == "row":
            got += _missing(array, index, columns)
        elif array.ndim == 2 and array.shape[1] > 1:
            got += f", {_named(index[1], columns)}"
        raise ValueError(got)


def _missing(array: Array, index: tuple[int, ...], columns: list[str] | None) -> str:
    """Return in words in which column a value is missing, and how many are."""
    if array.ndim == 1 or array.shape[1] == 1:
        n_missing = int(np.isnan(array).sum())
        return f": {n_missing} of {array.shape[0]} values are missing; fill them, or leave their samples out"
    column = index[1]
    n_missing, n_columns = int(np.isnan(array[:, column]).sum()), int(np.isnan(array).any(axis=0).sum())
    named = _named(column, columns)
    others = "" if n_columns == 1 else f", and values are missing in {n_columns - 1} other columns"
    return (
        f", {named}, where {n_missing} of {array.shape[0]} values are missing{others}; fill them, or leave their "
        "samples or columns out"
    )


def _named(column: int, columns: list[str] | None) -> str:
    return f"column {column}" if columns is None else f"column {columns[column]}"


def _labels(given: Array, n_out: int, name: str) -> Array:
    """Return labels of shape (n_samples,) as integers in [0, n_out)."""
    labels = _readable(given)
    if labels.dtype.kind == "f":
        _check_finite(labels, given, labels.dtype, name)
        index = first_bad(labels, lambda block: block == np.trunc(block))
        if index is not None:
            raise ValueError(
                f"{name} must hold whole class labels, got the fractional {given[index]!s} in row {index[0]}"
            )
    if labels.min(initial=0) < 0 or labels.max(initial=0) >= n_out:  # half the time of looking for the first
        index = first_bad(labels, lambda block: (block >= 0) & (block < n_out)) or (0,)  # none: another thread wrote
        raise ValueError(f"{name} must hold class labels in [0, {n_out}), got {given[index]!s} in row {index[0]}")
    return labels.astype(np.intp).view() if labels.dtype.kind == "f" else labels


def _check_probabilities(array: Array, name: str) -> None:
    index = first_bad(array, lambda block: block >= 0)
    if index is not None:
        raise ValueError(f"{name} must hold probabilities >= 0, got {array[index]!s} in row {index[0]}")
    # What rounding to three decimals may add up to, and float32 sums beside it.
    tolerance = 5e-4 * array.shape[1] + 1e-6

    def sums_to_one(rows: Array) -> BoolArray:
        with np.errstate(over="ignore"):
            is_near: BoolArray = np.abs(rows.sum(axis=1, dtype=np.float64) - 1.0) <= tolerance
        return is_near

    index = first_bad(array, sums_to_one)
    if index is not None:
        total = sum(numbers(array[index[0]]).tolist())
        raise ValueError(
            f"{name} must hold rows of probabilities that sum to 1, got the sum {total:g} in row {index[0]}"
        )


_PERMITTED: dict[str, tuple[str, Callable[[Array], npt.NDArray[np.bool_]]]] = {
    "fractions": ("lie in [0, 1] for binary cross-entropy", lambda block: (block >= 0) & (block <= 1)),
    "counts": ("be 0 or more for the Poisson loss", lambda block: block >= 0),
    "signs": ("be -1 or 1 for the hinge loss (of classes 0 and 1: 2 * y - 1)", lambda block: abs(block) == 1),
}


def _check_permitted(array: Array, permitted: str, name: str) -> None:
    expected, is_right = _PERMITTED[permitted]
    index = first_bad(array, is_right)
    if index is not None:
        raise ValueError(f"{name} must {expected}, got {array[index]!s} in row {index[0]}")


def _target_shapes(n_out: int, classes: bool) -> str:
    """Return the permitted shapes of targets, in words."""
    if classes:
        return f"(n_samples,) or (n_samples, 1) for labels or (n_samples, {n_out}) for probabilities"
    return "(n_samples,) or (n_samples, 1)" if n_out == 1 else f"(n_samples, {n_out})"
