"""What shapes a step beside its optimizer, on rectangles of parameters: penalties, clipping, largest norms, averages.

Rectangles are those of `updates`: `n_rows` rows of `n_columns` elements, `row` apart (`g_row` in a gradient). sums :
N_SUMS of float64 for each row of a rectangle, `sums_row` elements apart: its penalty, the squares of its gradient, and
what `health` measures. They depend on no cut of the parameters into tiles. No checks: the caller
validates.
"""

from numba import types

from fastbp._jit import leaf
from fastbp.kernels.simd import (
    absolute,
    flush,
    flush_factor,
    fma,
    lanes_of,
    load_upto,
    splat,
    sqrt,
    store_upto,
    sum_lanes,
    where,
)

PENALTY, SQUARES, GRADIENT, UPDATE, WEIGHTS, N_SUMS = range(6)


@leaf(lambda T: types.void(types.CPointer(T), types.CPointer(T), *[types.intp] * 4, *[types.float64] * 3,
                           types.CPointer(types.float64), types.intp))  # fmt: skip
def penalize(params, grads, n_rows, n_columns, row, g_row, l1, l2, decay, sums, sums_row):
    """grads += (l2 + decay) * w + l1 * sign(w); the penalty of each row is the sum of l2 / 2 * w**2 + l1 * abs(w).

    sign(0) = 0. decay : as l2, but no part of the loss.
    """
    slope, factor, half = splat(params, l1), splat(params, l2 + decay), splat(params, 0.5 * l2)
    for r in range(n_rows):
        total = splat(params, 0.0)
        for j in range(0, n_columns, lanes_of(params)):
            w, g = (
                flush_factor(load_upto(params, r * row + j, n_columns - j)),
                load_upto(grads, r * g_row + j, n_columns - j),
            )
            sign = where(w > 0.0, slope, where(w < 0.0, -slope, 0.0))
            store_upto(grads, r * g_row + j, flush(fma(factor, w, g + sign)), n_columns - j)
            total = fma(half * w, w, fma(slope, absolute(w), total))
        sums[r * sums_row + PENALTY] = sum_lanes(total)


@leaf(lambda T: types.void(types.CPointer(T), types.intp, types.intp, types.intp, types.float64,
                           types.CPointer(types.float64), types.intp))  # fmt: skip
def clip(grads, n_rows, n_columns, g_row, value, sums, sums_row):
    """Take what is beyond -value..value of a gradient to the nearer end, and sum the squares of each row."""
    high, low = splat(grads, value), splat(grads, -value)
    for r in range(n_rows):
        total = splat(grads, 0.0)
        for j in range(0, n_columns, lanes_of(grads)):
            g = load_upto(grads, r * g_row + j, n_columns - j)
            g = where(g > high, high, where(g < low, low, g))  # NaN stays
            store_upto(grads, r * g_row + j, g, n_columns - j)
            g = flush_factor(g)
            total = fma(g, g, total)
        sums[r * sums_row + SQUARES] = sum_lanes(total)


@leaf(lambda T: types.void(types.CPointer(T), types.intp, types.intp, types.intp, types.float64))
def scale(grads, n_rows, n_columns, g_row, factor):
    """grads *= factor."""
    for r in range(n_rows):
        for j in range(0, n_columns, lanes_of(grads)):
            i, left = r * g_row + j, n_columns - j
            store_upto(grads, i, flush(load_upto(grads, i, left) * factor), left)


@leaf(lambda T: types.void(types.CPointer(T), types.intp, types.intp, types.intp, types.float64))
def limit_columns(params, n_rows, n_columns, row, value):
    """Scale each column whose Euclidean norm is larger than `value` to that norm."""
    limit = splat(params, value)
    for j in range(0, n_columns, lanes_of(params)):
        total = splat(params, 0.0)
        for r in range(n_rows):
            w = flush_factor(load_upto(params, r * row + j, n_columns - j))
            total = fma(w, w, total)
        norm = sqrt(total)
        factor = where(norm > limit, limit / norm, 1.0)
        for r in range(n_rows):
            i, left = r * row + j, n_columns - j
            store_upto(params, i, flush(load_upto(params, i, left) * factor), left)


@leaf(lambda T: types.void(types.CPointer(T), types.CPointer(T), types.intp, types.intp, types.intp, types.float64))
def average(params, averages, n_rows, n_columns, row, share):
    """averages += share * (params - averages), whose rows are as far apart as those of params."""
    part = splat(params, share)
    for r in range(n_rows):
        for j in range(0, n_columns, lanes_of(params)):
            i, left = r * row + j, n_columns - j
            before = load_upto(averages, i, left)
            store_upto(averages, i, flush(fma(part, load_upto(params, i, left) - before, before)), left)


@leaf(lambda T: types.void(types.CPointer(T), types.intp, types.float64, types.float64))
def smooth(targets, n, factor, share):
    """targets = factor * targets + share, of n numbers: label smoothing (Szegedy et al. 2016, section 7)."""
    low = splat(targets, share)
    for i in range(0, n, lanes_of(targets)):
        store_upto(targets, i, fma(splat(targets, factor), load_upto(targets, i, n - i), low), n - i)
