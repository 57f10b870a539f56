"""Optimizer updates: one leaf per rule, in place on a rectangle of the flat parameter buffer.

All share one signature. params : `n_rows` rows of `n_columns` elements, `row` apart; grads : the same, `g_row` apart.
state : the moments in the layout of params, moment k at state[k*state_stride:]. constants : hyper-parameters, and
coefficients : what changes from step to step (learning rate first), both float64 as `fastbp.optimizers` lists them.
Returns 1 if a new parameter is not finite, else 0. Rows share no element with each other, nor params with grads or
state. No checks: the caller validates.

Each rule is an inline function of one vector, which returns the new parameters. Whole vectors come first, with the
number of elements left a constant, so that only the tail is masked. `p * 0` is 0 but for infinities and NaN: its sum
tells them.

Where a network is sure of its classes, or an input is rarely active, gradients and moments vanish, and decayed weights
do: gradients are flushed to zero where they are read (`simd`), as soon as their square were subnormal in the rules that
square them; moments and decayed weights are where they are stored.
"""

from numba import types

from fastbp._jit import inline, leaf
from fastbp.kernels.simd import (
    absolute,
    any_lane,
    flush,
    fma,
    is_finite,
    lanes_of,
    load_upto,
    maximum,
    offset,
    smallest_normal,
    splat,
    sqrt,
    store_upto,
    where,
)


def _signature(T):
    pointer, size, scalars = types.CPointer(T), types.intp, types.CPointer(types.float64)
    return types.intp(pointer, pointer, pointer, size, size, size, size, size, scalars, scalars)


@inline
def _least(params, factor):
    """The smallest number x >= 0 for which factor * x**2 is no subnormal."""
    return sqrt(smallest_normal(params) / factor)


@inline
def _large(x, least):
    """x, or zero where its square would be a subnormal."""
    return where(absolute(x) < least, splat(x, 0), x)


@inline
def _sgd(params, grads, i, g_i, left, rate):
    p = fma(rate, flush(load_upto(grads, g_i, left)), load_upto(params, i, left))
    store_upto(params, i, p, left)
    return p


@leaf(_signature)
def sgd(params, grads, state, state_stride, n_rows, n_columns, row, g_row, constants, coefficients):
    """params -= learning_rate * grads."""
    rate = splat(params, -coefficients[0])
    bad, lanes = splat(params, 0), lanes_of(params)
    whole = n_columns - n_columns % lanes
    for r in range(n_rows):
        i, g_i = r * row, r * g_row
        for j in range(0, whole, lanes):
            bad = fma(_sgd(params, grads, i + j, g_i + j, lanes, rate), 0, bad)
        if whole < n_columns:
            bad = fma(_sgd(params, grads, i + whole, g_i + whole, n_columns - whole, rate), 0, bad)
    return any_lane(~is_finite(bad))


@inline
def _momentum(params, grads, state, i, g_i, left, scalars):
    rate, decay, nesterov = scalars
    g = flush(load_upto(grads, g_i, left))
    b = flush(fma(decay, load_upto(state, i, left), g))
    direction = fma(decay, b, g) if nesterov else b
    p = fma(rate, direction, load_upto(params, i, left))
    store_upto(state, i, b, left)
    store_upto(params, i, p, left)
    return p


@leaf(_signature)
def momentum(params, grads, state, state_stride, n_rows, n_columns, row, g_row, constants, coefficients):
    """b = momentum * b + grads; params -= learning_rate * b, or of grads + momentum * b if nesterov."""
    scalars = splat(params, -coefficients[0]), splat(params, constants[0]), constants[1] != 0.0
    bad, lanes = splat(params, 0), lanes_of(params)
    whole = n_columns - n_columns % lanes
    for r in range(n_rows):
        i, g_i = r * row, r * g_row
        for j in range(0, whole, lanes):
            bad = fma(_momentum(params, grads, state, i + j, g_i + j, lanes, scalars), 0, bad)
        if whole < n_columns:
            bad = fma(_momentum(params, grads, state, i + whole, g_i + whole, n_columns - whole, scalars), 0, bad)
    return any_lane(~is_finite(bad))


@inline
def _adagrad(params, grads, state, i, g_i, left, scalars):
    rate, eps, least = scalars
    g = _large(load_upto(grads, g_i, left), least)
    v = flush(fma(g, g, load_upto(state, i, left)))
    p = fma(rate, g / (sqrt(v) + eps), load_upto(params, i, left))
    store_upto(state, i, v, left)
    store_upto(params, i, p, left)
    return p


@leaf(_signature)
def adagrad(params, grads, state, state_stride, n_rows, n_columns, row, g_row, constants, coefficients):
    """v += grads**2; params -= learning_rate * grads / (sqrt(v) + eps)."""
    scalars = splat(params, -coefficients[0]), splat(params, constants[0]), _least(params, splat(params, 1))
    bad, lanes = splat(params, 0), lanes_of(params)
    whole = n_columns - n_columns % lanes
    for r in range(n_rows):
        i, g_i = r * row, r * g_row
        for j in range(0, whole, lanes):
            bad = fma(_adagrad(params, grads, state, i + j, g_i + j, lanes, scalars), 0, bad)
        if whole < n_columns:
            bad = fma(_adagrad(params, grads, state, i + whole, g_i + whole, n_columns - whole, scalars), 0, bad)
    return any_lane(~is_finite(bad))


@inline
def _rmsprop(params, grads, state, means, buffers, i, g_i, left, scalars, has_momentum, centered):
    rate, alpha, one_minus_alpha, eps, decay, least = scalars
    g = _large(load_upto(grads, g_i, left), least)
    v = flush(fma(alpha, load_upto(state, i, left), one_minus_alpha * g * g))
    store_upto(state, i, v, left)
    variance = v
    if centered:
        m = flush(fma(alpha, load_upto(means, i, left), one_minus_alpha * g))
        store_upto(means, i, m, left)
        variance = maximum(0.0, fma(-m, m, v))  # rounding may take a vanishing one below zero
    direction = g / (sqrt(variance) + eps)
    if has_momentum:
        direction = flush(fma(decay, load_upto(buffers, i, left), direction))
        store_upto(buffers, i, direction, left)
    p = fma(rate, direction, load_upto(params, i, left))
    store_upto(params, i, p, left)
    return p


@leaf(_signature)
def rmsprop(params, grads, state, state_stride, n_rows, n_columns, row, g_row, constants, coefficients):
    """v = alpha * v + (1 - alpha) * grads**2, m likewise of grads if centered; b = momentum * b + grads / root.

    The root is sqrt(v) + eps, or sqrt(v - m**2) + eps; then params -= learning_rate * b. The moments v, m and b follow
    each other in state; without centring there is no m, without momentum no b.
    """
    rate, has_momentum, centered = splat(params, -coefficients[0]), constants[3] != 0.0, constants[4] != 0.0
    alpha, one_minus_alpha, eps = splat(params, constants[0]), splat(params, constants[1]), splat(params, constants[2])
    scalars = rate, alpha, one_minus_alpha, eps, splat(params, constants[3]), _least(params, one_minus_alpha)
    means, buffers = offset(state, state_stride), offset(state, 2 * state_stride if centered else state_stride)
    bad, lanes = splat(params, 0), lanes_of(params)
    whole = n_columns - n_columns % lanes
    for r in range(n_rows):
        i, g_i = r * row, r * g_row
        for j in range(0, whole, lanes):
            p = _rmsprop(params, grads, state, means, buffers, i + j, g_i + j, lanes, scalars, has_momentum, centered)
            bad = fma(p, 0, bad)
        if whole < n_columns:
            left = n_columns - whole
            p = _rmsprop(params, grads, state, means, buffers, i + whole, g_i + whole, left, scalars, has_momentum,
                         centered)  # fmt: skip
            bad = fma(p, 0, bad)
    return any_lane(~is_finite(bad))


@inline
def _adam(params, grads, state, second, i, g_i, left, scalars):
    rate, scale, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, least = scalars
    g = _large(load_upto(grads, g_i, left), least)
    m = flush(fma(beta1, load_upto(state, i, left), one_minus_beta1 * g))
    v = flush(fma(beta2, load_upto(second, i, left), one_minus_beta2 * g * g))
    p = fma(rate, m / fma(sqrt(v), scale, eps), load_upto(params, i, left))
    store_upto(state, i, m, left)
    store_upto(second, i, v, left)
    store_upto(params, i, p, left)
    return p


@leaf(_signature)
def adam(params, grads, state, state_stride, n_rows, n_columns, row, g_row, constants, coefficients):
    """Adam: m = beta1 * m + (1 - beta1) * grads; v = beta2 * v + (1 - beta2) * grads**2.

    params -= rate * m / (sqrt(v) * scale + eps), with coefficients (rate, scale) = (learning_rate / (1 - beta1**t),
    1 / sqrt(1 - beta2**t)).
    """
    rate, scale = splat(params, -coefficients[0]), splat(params, coefficients[1])
    beta1, one_minus_beta1 = splat(params, constants[0]), splat(params, constants[1])
    beta2, one_minus_beta2 = splat(params, constants[2]), splat(params, constants[3])
    eps, least = splat(params, constants[4]), _least(params, one_minus_beta2)
    scalars = rate, scale, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, least
    second = offset(state, state_stride)
    bad, lanes = splat(params, 0), lanes_of(params)
    whole = n_columns - n_columns % lanes
    for r in range(n_rows):
        i, g_i = r * row, r * g_row
        for j in range(0, whole, lanes):
            bad = fma(_adam(params, grads, state, second, i + j, g_i + j, lanes, scalars), 0, bad)
        if whole < n_columns:
            bad = fma(_adam(params, grads, state, second, i + whole, g_i + whole, n_columns - whole, scalars), 0, bad)
    return any_lane(~is_finite(bad))


@leaf(lambda T: types.void(types.CPointer(T), types.intp, types.intp, types.intp))
def flush_rows(values, n_rows, n_columns, row):
    """Take to zero what is tiny in a rectangle as above: a gradient that no update follows."""
    for r in range(n_rows):
        for j in range(0, n_columns, lanes_of(values)):
            i, left = r * row + j, n_columns - j
            store_upto(values, i, flush(load_upto(values, i, left)), left)


@leaf(lambda T: types.void(types.CPointer(T), types.intp, types.intp, types.intp, types.float64))
def shrink(params, n_rows, n_columns, row, factor):
    """params *= factor, on a rectangle as above: the decoupled weight decay of AdamW."""
    for r in range(n_rows):
        for j in range(0, n_columns, lanes_of(params)):
            i, left = r * row + j, n_columns - j
            store_upto(params, i, flush(load_upto(params, i, left) * factor), left)
