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

N_COEFFICIENTS = 4  # most that a rule has
DECAY = 2  # the coefficient by which weights are multiplied before the update, where they decay
_NOTHING = 2.0**-60  # what a power adds to 1 has no bit in float64 any more


def _signature(T):
    pointer, size, scalars = types.CPointer(T), types.intp, types.CPointer(types.float64)
    return types.intp(pointer, pointer, pointer, size, size, size, size, size, scalars, scalars)


def update_rule(name, numbers_of, update):
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


sgd = update_rule("sgd", _numbers_of_sgd, _sgd)


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


momentum = update_rule("momentum", _numbers_of_momentum, _momentum)


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


adagrad = update_rule("adagrad", _numbers_of_adagrad, _adagrad)


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


rmsprop = update_rule("rmsprop", _numbers_of_rmsprop, _rmsprop)


@inline
def _numbers_of_adam(params, constants, coefficients):
    rate, scale = splat(params, -coefficients[0]), splat(params, coefficients[1])
    beta1, one_minus_beta1 = splat(params, constants[0]), splat(params, constants[1])
    beta2, one_minus_beta2 = splat(params, constants[2]), splat(params, constants[3])
    eps, least = splat(params, constants[4]), _least(params, one_minus_beta2)
    return rate, scale, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, least


@inline
def _means(grads, state, second, i, g_i, left, beta1, one_minus_beta1, beta2, one_minus_beta2, least):
    """The gradient, and the new running means of it and of its square: m = beta1 * m + (1 - beta1) * g; v likewise."""
    g = _large(load_upto(grads, g_i, left), least)
    m = flush(fma(beta1, load_upto(state, i, left), one_minus_beta1 * g))
    v = flush(fma(beta2, load_upto(second, i, left), one_minus_beta2 * g * g))
    return g, m, v


@inline
def _adam(params, grads, state, state_stride, i, g_i, left, numbers):
    """Adam: m = beta1 * m + (1 - beta1) * grads; v = beta2 * v + (1 - beta2) * grads**2.

    params -= rate * m / (sqrt(v) * scale + eps), with coefficients (rate, scale).
    """
    rate, scale, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, least = numbers
    second = offset(state, state_stride)
    _, m, v = _means(grads, state, second, i, g_i, left, beta1, one_minus_beta1, beta2, one_minus_beta2, least)
    p = fma(rate, m / fma(sqrt(v), scale, eps), load_upto(params, i, left))
    store_upto(state, i, m, left)
    store_upto(second, i, v, left)
    store_upto(params, i, p, left)
    return p


adam = update_rule("adam", _numbers_of_adam, _adam)


@inline
def _amsgrad(params, grads, state, state_stride, i, g_i, left, numbers):
    """Adam, with the largest v so far in the place of v: u = max(u, v), kept behind m and v."""
    rate, scale, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, least = numbers
    second, third = offset(state, state_stride), offset(state, 2 * state_stride)
    _, m, v = _means(grads, state, second, i, g_i, left, beta1, one_minus_beta1, beta2, one_minus_beta2, least)
    u = maximum(load_upto(third, i, left), v)
    p = fma(rate, m / fma(sqrt(u), scale, eps), load_upto(params, i, left))
    store_upto(state, i, m, left)
    store_upto(second, i, v, left)
    store_upto(third, i, u, left)
    store_upto(params, i, p, left)
    return p


amsgrad = update_rule("amsgrad", _numbers_of_adam, _amsgrad)


@inline
def _numbers_of_nadam(params, constants, coefficients):
    of_momentum = splat(params, -coefficients[2])
    return _numbers_of_adam(params, constants, coefficients), of_momentum


@inline
def _nadam(params, grads, state, state_stride, i, g_i, left, numbers):
    """NAdam: m and v as Adam's; params -= (rate_g * grads + rate_m * m) / (sqrt(v) * scale + eps).

    With coefficients (rate_g, scale, rate_m).
    """
    (rate, scale, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, least), of_momentum = numbers
    second = offset(state, state_stride)
    g, m, v = _means(grads, state, second, i, g_i, left, beta1, one_minus_beta1, beta2, one_minus_beta2, least)
    p = load_upto(params, i, left) + fma(rate, g, of_momentum * m) / fma(sqrt(v), scale, eps)
    store_upto(state, i, m, left)
    store_upto(second, i, v, left)
    store_upto(params, i, p, left)
    return p


nadam = update_rule("nadam", _numbers_of_nadam, _nadam)


@inline
def _numbers_of_radam(params, constants, coefficients):
    rate, _, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, least = _numbers_of_adam(
        params, constants, coefficients
    )
    return rate, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, least, coefficients[1] != 0.0


@inline
def _radam(params, grads, state, state_stride, i, g_i, left, numbers):
    """RAdam: m and v as Adam's; params -= rate * m / (sqrt(v) + eps), or rate * m while the variance is not known."""
    rate, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, least, is_rectified = numbers
    second = offset(state, state_stride)
    _, m, v = _means(grads, state, second, i, g_i, left, beta1, one_minus_beta1, beta2, one_minus_beta2, least)
    direction = m / (sqrt(v) + eps) if is_rectified else m
    p = fma(rate, direction, load_upto(params, i, left))
    store_upto(state, i, m, left)
    store_upto(second, i, v, left)
    store_upto(params, i, p, left)
    return p


radam = update_rule("radam", _numbers_of_radam, _radam)


@inline
def _numbers_of_adadelta(params, constants, coefficients):
    rho, one_minus_rho, eps = splat(params, constants[0]), splat(params, constants[1]), splat(params, constants[2])
    return splat(params, -coefficients[0]), rho, one_minus_rho, eps, _least(params, one_minus_rho)


@inline
def _adadelta(params, grads, state, state_stride, i, g_i, left, numbers):
    """v = rho * v + (1 - rho) * grads**2; d = sqrt(a + eps) / sqrt(v + eps) * grads; params -= rate * d.

    a = rho * a + (1 - rho) * d**2, last. The moments v and a follow each other in state.
    """
    rate, rho, one_minus_rho, eps, least = numbers
    changes = offset(state, state_stride)
    g, a = _large(load_upto(grads, g_i, left), least), load_upto(changes, i, left)
    v = flush(fma(rho, load_upto(state, i, left), one_minus_rho * g * g))
    direction = _large(sqrt(a + eps) / sqrt(v + eps) * g, least)
    p = fma(rate, direction, load_upto(params, i, left))
    store_upto(state, i, v, left)
    store_upto(changes, i, flush(fma(rho, a, one_minus_rho * direction * direction)), left)
    store_upto(params, i, p, left)
    return p


adadelta = update_rule("adadelta", _numbers_of_adadelta, _adadelta)


@inline
def _numbers_of_lion(params, constants, coefficients):
    beta1, one_minus_beta1 = splat(params, constants[0]), splat(params, constants[1])
    beta2, one_minus_beta2 = splat(params, constants[2]), splat(params, constants[3])
    return splat(params, coefficients[0]), beta1, one_minus_beta1, beta2, one_minus_beta2


@inline
def _lion(params, grads, state, state_stride, i, g_i, left, numbers):
    """params -= rate * sign(beta1 * m + (1 - beta1) * grads); then m = beta2 * m + (1 - beta2) * grads."""
    rate, beta1, one_minus_beta1, beta2, one_minus_beta2 = numbers
    g, m = flush(load_upto(grads, g_i, left)), load_upto(state, i, left)
    c = fma(beta1, m, one_minus_beta1 * g)
    step = where(c > 0.0, rate, where(c < 0.0, -rate, c * 0.0))  # NaN stays NaN
    p = load_upto(params, i, left) - step
    store_upto(state, i, flush(fma(beta2, m, one_minus_beta2 * g)), left)
    store_upto(params, i, p, left)
    return p


lion = update_rule("lion", _numbers_of_lion, _lion)


@inline
def _numbers_of_schedulefree(params, constants, coefficients):
    rate, share = coefficients[0], coefficients[3]
    of_y = splat(params, rate * (constants[0] * (1.0 - share) - 1.0))
    scale, beta2, one_minus_beta2 = (
        splat(params, coefficients[1]),
        splat(params, constants[2]),
        splat(params, constants[3]),
    )
    eps, decay = splat(params, constants[4]), splat(params, constants[5])
    least = _least(params, one_minus_beta2)
    return (
        of_y,
        splat(params, -rate),
        splat(params, share),
        scale,
        beta2,
        one_minus_beta2,
        eps,
        decay,
        least,
        share == 1.0,
    )


@inline
def _schedulefree(params, grads, state, state_stride, i, g_i, left, numbers):
    """Schedule-free AdamW: d = grads / (sqrt(v) * scale + eps) + decay * y, of the parameters y where it is taken.

    y += share * (z - y) + rate * (beta1 * (1 - share) - 1) * d; z -= rate * d. The moments z and v follow each other in
    state; z begins with the parameters.
    """
    of_y, of_z, share, scale, beta2, one_minus_beta2, eps, decay, least, is_first = numbers
    second = offset(state, state_stride)
    g, y = _large(load_upto(grads, g_i, left), least), load_upto(params, i, left)
    v = flush(fma(beta2, load_upto(second, i, left), one_minus_beta2 * g * g))
    z = y if is_first else load_upto(state, i, left)
    direction = fma(decay, y, g / fma(sqrt(v), scale, eps))
    p = flush(fma(of_y, direction, fma(share, z - y, y)))
    store_upto(state, i, flush(fma(of_z, direction, z)), left)
    store_upto(second, i, v, left)
    store_upto(params, i, p, left)
    return p


schedulefree = update_rule("schedulefree", _numbers_of_schedulefree, _schedulefree)


def coefficients_signature(T):
    """The signature of all leaves of coefficients."""
    scalars = types.CPointer(types.float64)
    return types.void(types.float64, types.intp, scalars, scalars)


@leaf(coefficients_signature)
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


@leaf(coefficients_signature)
def bias_corrections(rate, step, constants, coefficients):
    """Coefficients of Adam (Kingma and Ba 2015, section 2, the last lines)."""
    _bias_corrected(rate, step, constants, coefficients)


@leaf(coefficients_signature)
def bias_corrections_and_decay(rate, step, constants, coefficients):
    """Coefficients of AdamW: Adam's, and 1 - learning_rate * weight_decay."""
    _bias_corrected(rate, step, constants, coefficients)
    coefficients[DECAY] = 1.0 - rate * constants[5]


@leaf(coefficients_signature)
def rate_and_decay(rate, step, constants, coefficients):
    """Coefficients of Lion: the learning rate, and 1 - learning_rate * weight_decay."""
    coefficients[0], coefficients[DECAY] = rate, 1.0 - rate * constants[4]


@leaf(coefficients_signature)
def nesterov_corrections(rate, step, constants, coefficients):
    """Coefficients of NAdam (Dozat 2016, algorithm 2): mu_t = beta1 * (1 - 0.96**(t * momentum_decay) / 2).

    constants[5] : 0.96**momentum_decay. The product of all mu is taken anew in each step, until it is lost beside 1.
    """
    base, t, product, power = constants[5], step + 1, 1.0, 1.0
    for _ in range(t):
        power *= base
        product *= constants[0] * (1.0 - 0.5 * power)
        if product < _NOTHING:
            break
    power = _power(base, t) if base < 1.0 else 1.0
    mu, after = constants[0] * (1.0 - 0.5 * power), constants[0] * (1.0 - 0.5 * power * base)
    coefficients[0] = rate * (1.0 - mu) / (1.0 - product)
    coefficients[1] = 1.0 / np.sqrt(1.0 - _power(constants[2], t))
    coefficients[2] = rate * after / (1.0 - product * after)


@leaf(coefficients_signature)
def rectification(rate, step, constants, coefficients):
    """Coefficients of RAdam (Liu et al. 2020, algorithm 2): the rate, and whether the variance is known."""
    t, power = step + 1, _power(constants[2], step + 1)
    longest = 2.0 / constants[3] - 1.0
    length = longest - 2.0 * t * power / (1.0 - power)
    coefficients[0] = rate / (1.0 - _power(constants[0], t))
    coefficients[1] = 1.0 if length > 5.0 else 0.0
    if length > 5.0:
        part = (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length)
        coefficients[0] *= np.sqrt(part * (1.0 - power))


@leaf(coefficients_signature)
def free_of_schedules(rate, step, constants, coefficients):
    """Coefficients of schedule-free AdamW: the rate, Adam's second one, and the share of z in the average.

    constants[6] : steps of warm-up. The share is the square of this step's rate over the sum of those so far.
    """
    t, warm_up = np.float64(step + 1), constants[6]
    coefficients[1] = 1.0 / np.sqrt(1.0 - _power(constants[2], step + 1))
    if t < warm_up:
        coefficients[0] = rate * (t / warm_up)
        coefficients[3] = 6.0 * t / ((t + 1.0) * (2.0 * t + 1.0))  # t**2 over the sum of squares up to it
    else:
        coefficients[0] = rate
        # In units of the full rate's square: the warm-up's sum, and one for each step since.
        before = max(warm_up - 1.0, 0.0)
        squares = before * (before + 1.0) * (2.0 * before + 1.0) / 6.0 / max(warm_up * warm_up, 1.0)
        coefficients[3] = 1.0 / (squares + t - before)


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
    "amsgrad": Rule(amsgrad, bias_corrections),
    "nadam": Rule(nadam, nesterov_corrections),
    "radam": Rule(radam, rectification),
    "adadelta": Rule(adadelta, learning_rate),
    "lion": Rule(lion, rate_and_decay, shrink),
    "schedulefreeadamw": Rule(schedulefree, free_of_schedules),
}
