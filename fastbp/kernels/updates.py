"""Optimizer updates: one leaf per rule, in place on a rectangle of the flat parameter buffer, and its coefficients.

All rules share one signature. params : `n_rows` rows of `n_columns` elements, `row` apart; grads : the same, `g_row`
apart. state : the moments in the layout of params, moment k at state[k*state_stride:]. constants : hyper-parameters as
`fastbp.optimizers` lists them, and coefficients : what changes from step to step, both float64. Returns 1 if a new
parameter is not finite, else 0. Rows share no element with each other, nor params with grads or state. No checks: the
caller validates.

A rule is two inline functions: one that makes vectors of its numbers, and one that updates a vector of parameters and
returns it. Its coefficients are a leaf of (learning rate, steps taken before, constants, coefficients).

Where a network is sure of its classes, or an input is rarely active, gradients and moments vanish, and decayed weights
do: gradients are flushed to zero where they are read (`simd`), as soon as their square were subnormal in the rules that
square them; moments and decayed weights are where they are stored.
"""

from typing import NamedTuple

import numpy as np
from numba import types

from fastbp._jit import Leaf, inline, leaf
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

N_COEFFICIENTS = 3  # most that a rule has
DECAY = 2  # the coefficient by which weights are multiplied before the update, where they decay
_NOTHING = 2.0**-60  # what a power adds to 1 has no bit in float64 any more


def _signature(T):
    pointer, size, scalars = types.CPointer(T), types.intp, types.CPointer(types.float64)
    return types.intp(pointer, pointer, pointer, size, size, size, size, size, scalars, scalars)


def _update_rule(name, numbers_of, update):
    """The leaf of a rule, under its name: `update` of all vectors of the rectangle.

    Whole vectors come first, with the number of elements left a constant, so that only the tail is masked. `p * 0` is 0
    but for infinities and NaN: its sum tells them.
    """

    def rule(params, grads, state, state_stride, n_rows, n_columns, row, g_row, constants, coefficients):
        numbers = numbers_of(params, constants, coefficients)
        bad, lanes = splat(params, 0), lanes_of(params)
        whole = n_columns - n_columns % lanes
        for r in range(n_rows):
            i, g_i = r * row, r * g_row
            for j in range(0, whole, lanes):
                bad = fma(update(params, grads, state, state_stride, i + j, g_i + j, lanes, numbers), 0, bad)
            if whole < n_columns:
                left = n_columns - whole
                bad = fma(update(params, grads, state, state_stride, i + whole, g_i + whole, left, numbers), 0, bad)
        return any_lane(~is_finite(bad))

    rule.__name__ = rule.__qualname__ = name
    rule.__doc__ = update.py_func.__doc__
    return leaf(_signature)(rule)


@inline
def _least(params, factor):
    """The smallest number x >= 0 for which factor * x**2 is no subnormal."""
    return sqrt(smallest_normal(params) / factor)


@inline
def _large(x, least):
    """x, or zero where its square would be a subnormal."""
    return where(absolute(x) < least, splat(x, 0), x)


@inline
def _numbers_of_sgd(params, constants, coefficients):
    return (splat(params, -coefficients[0]),)


@inline
def _sgd(params, grads, state, state_stride, i, g_i, left, numbers):
    """params -= learning_rate * grads."""
    p = fma(numbers[0], flush(load_upto(grads, g_i, left)), load_upto(params, i, left))
    store_upto(params, i, p, left)
    return p


sgd = _update_rule("sgd", _numbers_of_sgd, _sgd)


@inline
def _numbers_of_momentum(params, constants, coefficients):
    return splat(params, -coefficients[0]), splat(params, constants[0]), constants[1] != 0.0


@inline
def _momentum(params, grads, state, state_stride, i, g_i, left, numbers):
    """b = momentum * b + grads; params -= learning_rate * b, or of grads + momentum * b if nesterov."""
    rate, decay, nesterov = numbers
    g = flush(load_upto(grads, g_i, left))
    b = flush(fma(decay, load_upto(state, i, left), g))
    direction = fma(decay, b, g) if nesterov else b
    p = fma(rate, direction, load_upto(params, i, left))
    store_upto(state, i, b, left)
    store_upto(params, i, p, left)
    return p


momentum = _update_rule("momentum", _numbers_of_momentum, _momentum)


@inline
def _numbers_of_adagrad(params, constants, coefficients):
    return splat(params, -coefficients[0]), splat(params, constants[0]), _least(params, splat(params, 1))


@inline
def _adagrad(params, grads, state, state_stride, i, g_i, left, numbers):
    """v += grads**2; params -= learning_rate * grads / (sqrt(v) + eps)."""
    rate, eps, least = numbers
    g = _large(load_upto(grads, g_i, left), least)
    v = flush(fma(g, g, load_upto(state, i, left)))
    p = fma(rate, g / (sqrt(v) + eps), load_upto(params, i, left))
    store_upto(state, i, v, left)
    store_upto(params, i, p, left)
    return p


adagrad = _update_rule("adagrad", _numbers_of_adagrad, _adagrad)


@inline
def _numbers_of_rmsprop(params, constants, coefficients):
    alpha, one_minus_alpha, eps = splat(params, constants[0]), splat(params, constants[1]), splat(params, constants[2])
    decay, has_momentum, is_centered = splat(params, constants[3]), constants[3] != 0.0, constants[4] != 0.0
    least = _least(params, one_minus_alpha)
    return splat(params, -coefficients[0]), alpha, one_minus_alpha, eps, decay, least, has_momentum, is_centered


@inline
def _rmsprop(params, grads, state, state_stride, i, g_i, left, numbers):
    """v = alpha * v + (1 - alpha) * grads**2, m likewise of grads if centered; b = momentum * b + grads / root.

    The root is sqrt(v) + eps, or sqrt(v - m**2) + eps; then params -= learning_rate * b. The moments v, m and b follow
    each other in state; without centring there is no m, without momentum no b.
    """
    rate, alpha, one_minus_alpha, eps, decay, least, has_momentum, is_centered = numbers
    means, buffers = offset(state, state_stride), offset(state, 2 * state_stride if is_centered else state_stride)
    g = _large(load_upto(grads, g_i, left), least)
    v = flush(fma(alpha, load_upto(state, i, left), one_minus_alpha * g * g))
    store_upto(state, i, v, left)
    variance = v
    if is_centered:
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


rmsprop = _update_rule("rmsprop", _numbers_of_rmsprop, _rmsprop)


@inline
def _numbers_of_adam(params, constants, coefficients):
    rate, scale = splat(params, -coefficients[0]), splat(params, coefficients[1])
    beta1, one_minus_beta1 = splat(params, constants[0]), splat(params, constants[1])
    beta2, one_minus_beta2 = splat(params, constants[2]), splat(params, constants[3])
    eps, least = splat(params, constants[4]), _least(params, one_minus_beta2)
    return rate, scale, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, least


@inline
def _adam(params, grads, state, state_stride, i, g_i, left, numbers):
    """Adam: m = beta1 * m + (1 - beta1) * grads; v = beta2 * v + (1 - beta2) * grads**2.

    params -= rate * m / (sqrt(v) * scale + eps), with coefficients (rate, scale).
    """
    rate, scale, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, least = numbers
    second = offset(state, state_stride)
    g = _large(load_upto(grads, g_i, left), least)
    m = flush(fma(beta1, load_upto(state, i, left), one_minus_beta1 * g))
    v = flush(fma(beta2, load_upto(second, i, left), one_minus_beta2 * g * g))
    p = fma(rate, m / fma(sqrt(v), scale, eps), load_upto(params, i, left))
    store_upto(state, i, m, left)
    store_upto(second, i, v, left)
    store_upto(params, i, p, left)
    return p


adam = _update_rule("adam", _numbers_of_adam, _adam)


def _coefficients_signature(T):
    scalars = types.CPointer(types.float64)
    return types.void(types.float64, types.intp, scalars, scalars)


@leaf(_coefficients_signature)
def learning_rate(rate, step, constants, coefficients):
    """Coefficients of a rule that has the learning rate only."""
    coefficients[0] = rate


@inline
def _power(beta, t):
    """beta**t for 0 <= beta < 1 and t > 0, or 0 if it is below 2**-60.

    By squaring: multiplications alone have the same bits on every machine, and in NumPy, which no library's power has.
    """
    result, base = 1.0, beta
    while t > 0:
        if t & 1:
            result *= base
        base *= base
        t >>= 1
        if result < _NOTHING or (base < _NOTHING and t > 0):
            return 0.0
    return result


@inline
def _bias_corrected(rate, step, constants, coefficients):
    """(learning_rate / (1 - beta1**t), 1 / sqrt(1 - beta2**t)) with t = step + 1."""
    coefficients[0] = rate / (1.0 - _power(constants[0], step + 1))
    coefficients[1] = 1.0 / np.sqrt(1.0 - _power(constants[2], step + 1))


@leaf(_coefficients_signature)
def bias_corrections(rate, step, constants, coefficients):
    """Coefficients of Adam (Kingma and Ba 2015, section 2, the last lines)."""
    _bias_corrected(rate, step, constants, coefficients)


@leaf(_coefficients_signature)
def bias_corrections_and_decay(rate, step, constants, coefficients):
    """Coefficients of AdamW: Adam's, and 1 - learning_rate * weight_decay."""
    _bias_corrected(rate, step, constants, coefficients)
    coefficients[DECAY] = 1.0 - rate * constants[5]


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


class Rule(NamedTuple):
    """The leaves of an update rule."""

    update: Leaf
    coefficients: Leaf
    shrink: Leaf | None = None  # of decoupled weight decay


# By the names that `fastbp.optimizers` gives them.
RULES = {
    "sgd": Rule(sgd, learning_rate),
    "momentum": Rule(momentum, learning_rate),
    "adagrad": Rule(adagrad, learning_rate),
    "rmsprop": Rule(rmsprop, learning_rate),
    "adam": Rule(adam, bias_corrections),
    "adamw": Rule(adam, bias_corrections_and_decay, shrink),
}
