"""Checks and casts of everything that a user passes in: the one place that words the errors.

Arrays are looked at once, before the first step. Data of a supported dtype is never copied, and the temporaries of
a check are bounded by a block of rows, whatever the size of the data.
"""

from __future__ import annotations

import math
import numbers
import operator
import secrets
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "MAX_STEP",
    "SOURCE_DTYPES",
    "features",
    "finite_float",
    "flag",
    "non_negative_int",
    "parameters",
    "positive_int",
    "seed_of",
    "shown",
    "source_code",
    "targets",
]

Array: TypeAlias = npt.NDArray[Any]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

SOURCE_DTYPES = (
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float16",
    "float32",
    "float64",
)
"""Native dtypes that the gather reads; the index is the code by which it knows them. bool is read as uint8."""

_SOURCE_CODES = {(np.dtype(name).kind, np.dtype(name).itemsize): code for code, name in enumerate(SOURCE_DTYPES)}

# Elements looked at in one go: the temporaries of a check stay below about 2 MB and inside the second-level cache.
_BLOCK_ELEMENTS = 1 << 17

# Rows of probabilities written with three decimals must pass.
_PROBABILITY_SUM_TOLERANCE = 1e-3


MAX_STEP = int(np.iinfo(np.int64).max)
"""The largest number of steps that kernels and schedules can count."""

_SHOWN_CHARACTERS = 100


def shown(value: object) -> str:
    """Return how an error shows a wrong value: its repr, cut if it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print integers of more than some thousand digits
        return "a number of too many digits to print"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def flag(value: object, name: str) -> bool:
    """Return `value` as a bool; only Python's and NumPy's bools pass.

    Raises
    ------
    TypeError
        If `value` is anything else.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be a bool, got {shown(value)} of type {type(value).__name__}")
    return bool(value)


def _integer(value: object, name: str, expected: str) -> int:
    if not isinstance(value, (bool, np.bool_)):
        try:
            return operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            pass
    raise TypeError(f"{name} must be {expected}, got {shown(value)} of type {type(value).__name__}")


def positive_int(value: object, name: str, expected: str = "a positive integer", high: int | None = None) -> int:
    """Return `value` as a Python int from 1 to `high`; `expected` says in the error what may be passed.

    Raises
    ------
    TypeError
        If `value` is no integer (bools and floats are none).
    ValueError
        If `value` is below 1 or above `high`.
    """
    integer = _integer(value, name, expected)
    if integer < 1:
        raise ValueError(f"{name} must be {expected}, got {shown(integer)}")
    return _at_most(high, integer, name, expected)


def non_negative_int(value: object, name: str, high: int | None = None) -> int:
    """Return `value` as a Python int from 0 to `high`.

    Raises
    ------
    TypeError
        If `value` is no integer (bools and floats are none).
    ValueError
        If `value` is below 0 or above `high`.
    """
    expected = "a non-negative integer"
    integer = _integer(value, name, expected)
    if integer < 0:
        raise ValueError(f"{name} must be {expected}, got {shown(integer)}")
    return _at_most(high, integer, name, expected)


def _at_most(high: int | None, integer: int, name: str, expected: str) -> int:
    if high is not None and integer > high:
        raise ValueError(f"{name} must be {expected} <= {high}, got {shown(integer)}")
    return integer


def finite_float(
    value: object,
    name: str,
    *,
    low: float | None = None,
    high: float | None = None,
    low_open: bool = False,
    high_open: bool = False,
) -> float:
    """Return `value` as a finite Python float within the given bounds.

    Parameters
    ----------
    value : object
        What the user passed: any real number but a bool.
    name : str
        The argument's name, for the message.
    low, high : float, optional
        Bounds, included unless `low_open` or `high_open`.
    low_open, high_open : bool
        Whether the bound itself is excluded.

    Raises
    ------
    TypeError
        If `value` is no real number.
    ValueError
        If `value` is not finite or out of bounds.
    """
    bounds = []
    if low is not None:
        bounds.append(f"{'>' if low_open else '>='} {low:g}")
    if high is not None:
        bounds.append(f"{'<' if high_open else '<='} {high:g}")
    expected = " ".join(["a finite number", " and ".join(bounds)]).strip()
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be {expected}, got {shown(value)} of type {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    too_low = low is not None and (number <= low if low_open else number < low)
    too_high = high is not None and (number >= high if high_open else number > high)
    if not math.isfinite(number) or too_low or too_high:
        raise ValueError(f"{name} must be {expected}, got {shown(value)}")
    return number


def seed_of(seed: object) -> int:
    """Return `seed` as a Python int, or draw one of 63 bits if it is None.

    Raises
    ------
    TypeError
        If `seed` is neither an integer nor None.
    ValueError
        If `seed` is not in [0, 2**64).
    """
    if seed is None:
        return secrets.randbits(63)
    integer = _integer(seed, "seed", "an integer or None")
    if not 0 <= integer < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {shown(integer)}")
    return integer


def source_code(dtype: np.dtype[Any]) -> int:
    """Return the index of a native `dtype` in `SOURCE_DTYPES`. No checks: the caller has passed the array through."""
    return _SOURCE_CODES[dtype.kind, dtype.itemsize]


def features(x: object, n_features: int, dtype: npt.DTypeLike, name: str = "x", allow_empty: bool = False) -> Array:
    """Return `x` as an array of shape (n_samples, n_features) of one of `SOURCE_DTYPES`, without copying where it can.

    Parameters
    ----------
    x : array_like, shape (n_samples, n_features), read-only
        bool, (u)int8 to (u)int64, float16, float32 or float64 in any order, strided or read-only: returned as they
        are (bool as a view of uint8). Other byte orders and longdouble are cast once, to the native dtype and
        float64; unaligned data is copied once.
    n_features : int
        The expected number of columns.
    dtype : dtype
        The model's dtype, float32 or float64, in which every value must be finite.
    name : str
        The argument's name, for messages.
    allow_empty : bool
        Whether zero samples are permitted.

    Returns
    -------
    ndarray, shape (n_samples, n_features)

    Raises
    ------
    TypeError
        If `x` is a masked array or its dtype is no real number.
    ValueError
        If the shape is another, there is no sample, or a value is NaN, infinite or beyond the range of `dtype`.
    """
    array = _as_array(x, name)
    if array.ndim != 2 or array.shape[1] != n_features:
        raise ValueError(f"{name} must have shape (n_samples, {n_features}), got {array.shape}")
    if not allow_empty and array.shape[0] == 0:
        raise ValueError(f"{name} must have at least one sample, got shape {array.shape}")
    _check_finite(array, np.dtype(dtype), name)
    return _as_source(array)


def targets(
    y: object,
    n_samples: int,
    n_out: int,
    dtype: npt.DTypeLike,
    classes: bool,
    name: str = "y",
    binary: bool = False,
) -> tuple[Array, bool]:
    """Return `y` as labels of shape (n_samples,) or values of shape (n_samples, n_out), and whether it is labels.

    Nothing is broadcast, and nothing is copied that `features` would not copy.

    Parameters
    ----------
    y : array_like, read-only
        `classes` false: values of shape (n_samples, n_out); for one output (n_samples,) and (n_samples, 1) are the
        same. `classes` true: labels in [0, n_out) of shape (n_samples,) or (n_samples, 1), integers or whole
        floats (these are cast to intp); or, for n_out >= 2, rows of probabilities of shape (n_samples, n_out), each
        >= 0 and a row's sum within 1e-3 of 1.
    n_samples, n_out : int
        The number of samples of x and of outputs.
    dtype : dtype
        The model's dtype, float32 or float64, in which every value must be finite.
    classes : bool
        Whether the output is a softmax over classes.
    name : str
        The argument's name, for messages.
    binary : bool
        Whether values must lie in [0, 1] (binary cross-entropy).

    Returns
    -------
    y : ndarray, shape (n_samples,) or (n_samples, n_out)
    is_labels : bool

    Raises
    ------
    TypeError
        If `y` is a masked array or its dtype is no real number.
    ValueError
        If the number of samples or the shape is another, or a value is NaN, infinite or not permitted.
    """
    array = _as_array(y, name)
    if array.ndim >= 1 and array.shape[0] != n_samples:
        raise ValueError(f"{name} must have as many samples as its x: expected {n_samples}, got {array.shape[0]}")
    is_labels = classes and (array.shape == (n_samples,) or array.shape == (n_samples, 1))
    if is_labels:
        return _labels(array.reshape(n_samples), n_out, name), True
    if n_out == 1 and array.shape == (n_samples,):
        array = array[:, np.newaxis]
    if array.shape != (n_samples, n_out) or (classes and n_out == 1):
        raise ValueError(f"{name} must have shape {_target_shapes(n_out, classes)}, got {array.shape}")
    _check_finite(array, np.dtype(dtype), name)
    if classes:
        _check_probabilities(array, name)
    elif binary:
        _check_binary(array, name)
    return _as_source(array), False


def parameters(values: object, n_params: int, dtype: npt.DTypeLike, name: str = "params") -> Array:
    """Return a new array of shape (n_params,) and dtype `dtype` with the parameters in `values`.

    Raises
    ------
    TypeError
        If `values` is a masked array or its dtype is no real number.
    ValueError
        If the shape is another, or a value is NaN, infinite or beyond the range of `dtype`.
    """
    array = _as_array(values, name)
    if array.shape != (n_params,):
        raise ValueError(f"{name} must have shape ({n_params},), got {array.shape}")
    _check_finite(array, np.dtype(dtype), name, what="index")
    return array.astype(dtype)


def _as_array(values: object, name: str) -> Array:
    """Return `values` as an ndarray of real numbers of any byte order."""
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array: fill or drop its masked values first")
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} must be convertible to an array of numbers: {error}") from error
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"{name} must be convertible to an array of numbers: {error}") from error
    if array.dtype.kind not in "biuf":
        hint = ": convert it, with .to_numpy(float) or .toarray() where it has these" if array.dtype == object else ""
        if values is None:
            hint = ", as it is None"
        raise TypeError(f"{name} must have a bool, integer or floating dtype, got {array.dtype}{hint}")
    return array


def _as_source(array: Array) -> Array:
    """Return `array` itself, or a cast copy if its dtype or alignment is none that the gather reads."""
    if array.dtype.kind == "b":
        return array.view(np.uint8)
    native = array.dtype.newbyteorder("=")
    if native.kind == "f" and native.itemsize > 8:
        native = np.dtype(np.float64)
    if native != array.dtype or not array.flags.aligned:
        return array.astype(native)
    return array


def _row_blocks(array: Array) -> Iterator[tuple[int, Array]]:
    """Yield (first row, rows) for consecutive blocks of about `_BLOCK_ELEMENTS` elements."""
    n_rows = array.shape[0]
    row_elements = max(1, math.prod(array.shape[1:]))
    block_rows = max(1, _BLOCK_ELEMENTS // row_elements)
    for first_row in range(0, n_rows, block_rows):
        yield first_row, array[first_row : first_row + block_rows]


def _first_bad_row(array: Array, is_good: Callable[[Array], BoolArray]) -> int | None:
    """Return the first row for which `is_good`, called on blocks of rows, is false somewhere; None if there is none."""
    for first_row, block in _row_blocks(array):
        good = is_good(block)
        if not good.all():
            bad_rows = ~good.reshape(good.shape[0], -1).all(axis=1)
            return first_row + int(bad_rows.argmax())
    return None


def _check_finite(array: Array, dtype: np.dtype[Any], name: str, what: str = "row") -> None:
    """Check that every value of `array` is finite once it is cast to `dtype`."""
    if array.dtype.kind != "f":
        return

    def is_finite(block: Array) -> BoolArray:
        with np.errstate(over="ignore", invalid="ignore"):
            cast = block.astype(dtype) if array.dtype.itemsize > dtype.itemsize else block
        finite: BoolArray = np.isfinite(cast)
        return finite

    row = _first_bad_row(array, is_finite)
    if row is None:
        return
    values = np.ravel(array[row])
    value = values[~is_finite(values)][0]
    problem = "be finite" if not np.isfinite(value) else f"be within the range of {dtype}"
    raise ValueError(f"{name} must {problem}, got {value} in {what} {row}")


def _labels(array: Array, n_out: int, name: str) -> Array:
    """Return labels of shape (n_samples,) as integers in [0, n_out)."""
    if array.dtype.kind == "f":
        _check_finite(array, array.dtype, name)
        row = _first_bad_row(array, lambda block: block == np.trunc(block))
        if row is not None:
            raise ValueError(f"{name} must hold whole class labels, got the fractional {array[row]} in row {row}")
    row = _first_bad_row(array, lambda block: (block >= 0) & (block < n_out))
    if row is not None:
        raise ValueError(f"{name} must hold class labels in [0, {n_out}), got {array[row]} in row {row}")
    return array.astype(np.intp) if array.dtype.kind == "f" else _as_source(array)


def _check_probabilities(array: Array, name: str) -> None:
    row = _first_bad_row(array, lambda block: block >= 0)
    if row is not None:
        raise ValueError(f"{name} must hold probabilities >= 0, got {array[row].min()} in row {row}")

    def sums_to_one(block: Array) -> BoolArray:
        deviation: Array = np.abs(block.sum(axis=1, dtype=np.float64) - 1.0)
        return deviation <= _PROBABILITY_SUM_TOLERANCE

    row = _first_bad_row(array, sums_to_one)
    if row is not None:
        total = array[row].sum(dtype=np.float64)
        raise ValueError(f"{name} must hold rows of probabilities that sum to 1, got the sum {total:g} in row {row}")


def _check_binary(array: Array, name: str) -> None:
    row = _first_bad_row(array, lambda block: (block >= 0) & (block <= 1))
    if row is not None:
        values = array[row]
        value = values[(values < 0) | (values > 1)][0]
        raise ValueError(f"{name} must lie in [0, 1] for binary cross-entropy, got {value} in row {row}")


def _target_shapes(n_out: int, classes: bool) -> str:
    """Return the permitted shapes of targets, in words."""
    if classes and n_out >= 2:
        return f"(n_samples,) or (n_samples, 1) for labels or (n_samples, {n_out}) for probabilities"
    if classes:
        return "(n_samples,) or (n_samples, 1) for labels"
    return "(n_samples,) or (n_samples, 1)" if n_out == 1 else f"(n_samples, {n_out})"
