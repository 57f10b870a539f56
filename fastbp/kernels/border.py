"""Where Python enters compiled code: with addresses, or with arrays of its own, which are checked here.

An entry that takes arrays has one signature for every layout: strides are data, and nothing is compiled anew for
another. It does all that the usual way does, errors excepted: at any doubt it has changed nothing and says SLOW, and
Python goes the usual way, which words what is wrong. It is called past Numba's dispatcher, whose look at the types
costs as much as a small prediction; so whoever calls it has made sure that each array has its dtype and dimensions.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import from_dtype, types

from fastbp._jit import inline, kernel, leaf
from fastbp.kernels.calls import address_of_array, call, overlap
from fastbp.kernels.gather import FLOAT32, FLOAT64, INT64
from fastbp.kernels.losses import COUNTS, FRACTIONS, LABELS, SIGNS
from fastbp.kernels.owners import NOBODY, PYTHON, give_word_back, take_word
from fastbp.kernels.simd import address_of, any_lane, fma, is_finite, lanes_of, load_upto, splat
from fastbp.kernels.tables import border_at, plan_at, source_at
from fastbp.kernels.training import OVERFLOWED, STEP_LIMIT

OK, SLOW, NOT_FINITE = range(3)  # what an entry says


@kernel
def train(leaf, plans, source, dealing, run, sync, is_helper, n_wanted):
    """Call `training.train_steps`."""
    return call(leaf, (plans, source, dealing, run, sync, is_helper, n_wanted))


@kernel
def evaluate(leaf, plan, source, first, last, sums):
    """Call `training.evaluate_range`."""
    return call(leaf, (plan, source, first, last, sums))


@kernel
def write_range(leaf, plan, source, first, last, out):
    """Call `training.predict_range`, `derivatives.vjp_range` or `jvp_range`."""
    return call(leaf, (plan, source, first, last, out))


@leaf(lambda T: types.intp(types.CPointer(T), types.intp, types.intp, types.intp))
def has_bad(x, row, n_rows, n_columns):
    """Whether an element of some rows, `row` elements apart, is infinite or NaN. No checks: the caller validates."""
    bad = splat(x, 0)
    if row == n_columns:
        n_rows, n_columns = 1, n_rows * n_columns
    for r in range(n_rows):
        for j in range(0, n_columns, lanes_of(x)):
            bad = fma(load_upto(x, r * row + j, n_columns - j), 0, bad)
    return any_lane(~is_finite(bad))


@inline
def _are_rows(x, n_rows, n_columns, size):
    """Whether these are rows of contiguous, aligned elements, in the order of their addresses."""
    if x.shape[0] != n_rows or x.shape[1] != n_columns or x.strides[1] != size:
        return False
    return x.strides[0] >= 0 and x.strides[0] % size == 0 and address_of_array(x) % size == 0


@inline
def _code_of(size):
    return FLOAT32 if size == 4 else FLOAT64


@kernel
def predict_rows(border, x, out):
    """Write the outputs of all rows of x to out; NOT_FINITE if one of them is not."""
    border = border_at(border)
    n, size, n_in, n_out = x.shape[0], border.itemsize, border.n_in, border.n_out
    if n == 0 or n > border.most_samples or not _are_rows(x, n, n_in, size) or not _are_rows(out, n, n_out, size):
        return SLOW
    a, c, n_bytes = address_of_array(x), address_of_array(out), n * n_out * size
    if out.strides[0] != n_out * size or overlap(c, n_bytes, border.params, border.n_params * size):
        return SLOW
    if overlap(a, (n - 1) * x.strides[0] + n_in * size, c, n_bytes):
        return SLOW
    if call(border.has_bad, (a, x.strides[0] // size, n, n_in)) != 0:
        return SLOW
    source, plan = source_at(border.source), plan_at(border.plan)
    source.x, source.x_row, source.x_column, source.x_dtype, source.n_samples = a, x.strides[0], size, _code_of(size), n
    call(plan.leaves.predict_range, (border.plan, border.source, 0, n, c))
    return NOT_FINITE if call(border.has_bad, (c, n_out, n, n_out)) != 0 else OK


@inline
def _are_targets(border, y, n):
    """Whether these are n rows of values that the loss permits."""
    n_targets, size = border.n_targets, border.itemsize
    if (
        not _are_rows(y, n, n_targets, size)
        or call(border.has_bad, (address_of_array(y), y.strides[0] // size, n, n_targets)) != 0
    ):
        return False
    if border.targets == FRACTIONS:
        for i in range(n):
            for j in range(n_targets):
                if y[i, j] < 0 or y[i, j] > 1:
                    return False
    elif border.targets in (COUNTS, SIGNS):
        for i in range(n):
            for j in range(n_targets):
                if y[i, j] < 0 and (border.targets == COUNTS or y[i, j] != -1):
                    return False
                if border.targets == SIGNS and y[i, j] >= 0 and y[i, j] != 1:
                    return False
    return border.targets != LABELS


@inline
def _are_labels(border, y, n):
    """Whether these are n classes."""
    if border.targets != LABELS or y.shape[0] != n or y.strides[0] % 8 != 0 or address_of_array(y) % 8 != 0:
        return False
    n_outside = 0
    for i in range(n):
        n_outside += y[i] < 0 or y[i] >= border.n_out
    return n_outside == 0


@inline
def _take_step(border, rate, x, y, y_row, y_column, y_dtype, y_is_label):
    """One step on all rows of x and y, which have been checked; returns the mean loss before it, or NaN with a status.

    Where the loss is not finite nothing has changed, and the status is SLOW.
    """
    n, size, a = x.shape[0], border.itemsize, address_of_array(x)
    if call(border.has_bad, (a, x.strides[0] // size, n, border.n_in)) != 0:
        return np.nan
    if border.word != 0 and take_word(border.word, NOBODY, PYTHON) not in (NOBODY, PYTHON):
        return np.nan
    source, plan = source_at(border.source), plan_at(border.plan)
    source.x, source.x_row, source.x_column, source.x_dtype, source.n_samples = a, x.strides[0], size, _code_of(size), n
    source.y, source.y_row, source.y_column, source.y_dtype, source.y_is_label = y, y_row, y_column, y_dtype, y_is_label
    status = call(plan.leaves.take_step, (address_of(border), rate))
    if border.word != 0:
        give_word_back(border.word)
    if status not in (STEP_LIMIT, OVERFLOWED):
        return np.nan
    border.status = OK if status == STEP_LIMIT else NOT_FINITE
    return border.loss


@kernel
def exchange_word(word, expected, owner):
    """Call `owners.take_word`."""
    return take_word(word, expected, owner)


@kernel
def step_on_values(border, rate, x, y):
    """Take a step on rows of values, as `_take_step`."""
    border = border_at(border)
    border.status = SLOW
    n, size = x.shape[0], border.itemsize
    if n < border.least_samples or n > border.most_samples or not _are_rows(x, n, border.n_in, size):
        return np.nan
    if not _are_targets(border, y, n):
        return np.nan
    return _take_step(border, rate, x, address_of_array(y), y.strides[0], size, _code_of(size), 0)


@kernel
def step_on_labels(border, rate, x, y):
    """Take a step on classes, as `_take_step`."""
    border = border_at(border)
    border.status = SLOW
    n = x.shape[0]
    if n < border.least_samples or n > border.most_samples or not _are_rows(x, n, border.n_in, border.itemsize):
        return np.nan
    if not _are_labels(border, y, n):
        return np.nan
    return _take_step(border, rate, x, address_of_array(y), y.strides[0], 0, INT64, 1)


def _rows(dtype):
    return types.Array(from_dtype(dtype), 2, "A", readonly=True)


# The types of each entry's arguments, for a dtype.
_ARGUMENTS = {
    predict_rows: lambda dtype: (types.intp, _rows(dtype), _rows(dtype)),
    step_on_values: lambda dtype: (types.intp, types.float64, _rows(dtype), _rows(dtype)),
    step_on_labels: lambda dtype: (
        types.intp, types.float64, _rows(dtype), types.Array(types.int64, 1, "A", readonly=True)
    ),
}  # fmt: skip


@functools.cache
def entry(function: Any, dtype: np.dtype[Any]) -> Callable[..., Any]:
    """The entry for arrays of a dtype, with the leaf that all call, compiled or loaded. No checks: see above."""
    has_bad.address(dtype)
    arguments = _ARGUMENTS[function](dtype)
    function.compile(arguments)
    return function.get_overload(arguments)


def compile_entries(dtype: np.dtype[Any]) -> None:
    """Compile or load all entries for arrays of a dtype."""
    for function in _ARGUMENTS:
        entry(function, dtype)
