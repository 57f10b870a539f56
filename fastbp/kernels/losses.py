"""Losses: a row of `LOSSES` per name, with a leaf that compares a block of outputs with its targets.

All leaves share one signature. output, targets, d : n_samples samples of n_out values as panels of
`panel_of(output)` samples, each with one row per output; the last panel holds what is left, its rows as long as it is
wide. weights : one for each sample, by which the leaf of weighted samples multiplies losses, right answers and
derivatives; the other one does not read them. d is overwritten with the derivative of each sample's loss, times
`scale`. constants : float64, those of the row. sums : float64, overwritten with the sum of the samples' losses and the
number of right answers (0 where the loss does not tell). The buffers are padded to whole vectors: the padding of output
and targets may be read, that of d written, but it never counts.

Errors, probabilities and logits below `root_of_tiny` count as 0 where they are multiplied: 1e-19 in float32, which is
lost beside 1 anyway. So no product is subnormal.

Sums run over fixed lanes in the outputs' own dtype, in parts as in `sums`. No checks: the caller validates; n_samples
and n_out are positive.
"""

from typing import NamedTuple

from numba import types

from fastbp._jit import Leaf, inline, leaf
from fastbp.kernels.constants import first_constant, no_constants
from fastbp.kernels.elementary import exp, exp_negative_factor, log1p, log1p_unit, tanh
from fastbp.kernels.panels import panel_of
from fastbp.kernels.simd import (
    absolute,
    first_lanes,
    flush,
    flush_factor,
    fma,
    is_finite,
    lanes_of,
    load,
    load_first_pair,
    maximum,
    minimum,
    offset,
    splat,
    store,
    store_first_pair,
    sum_lanes,
    where,
)
from fastbp.kernels.sums import PART, add_part

# Kinds of targets: any number, one in [0, 1] per output, one class per sample, no negative ones, -1 or 1.
VALUES, FRACTIONS, LABELS, COUNTS, SIGNS = range(5)

_LOG_2 = 0.6931471805599453
_MOST_LOG_VARIANCE = 13.815510557964274  # log(1e6): variances from 1e-6, as PyTorch's least, to 1e6


class Loss(NamedTuple):
    """One loss: its leaves, for samples that count alike and for weighted ones, and all that anyone else has to know.

    output : the output activation that is fused into the leaf, if any: it then takes pre-activations. targets : their
    kind, which says what a decision is as well: none, one per output, one per sample. constants : what the leaf reads.
    outputs_per_target : how many times as wide a sample's outputs are as its targets; n_out is theirs.
    """

    leaf: Leaf
    weighted_leaf: Leaf
    output: str | None = None
    targets: int = VALUES
    constants: tuple[float, ...] = ()
    outputs_per_target: int = 1


def _signature(T):
    pointer, size, scalars = types.CPointer(T), types.intp, types.CPointer(types.float64)
    return types.void(pointer, pointer, pointer, pointer, size, size, types.float64, scalars, scalars)


@inline
def _add_last(total, part, last, i):
    """Add the vector before element i to the part of a sum; returns the total and the part, which may end there."""
    part += last
    if (i + lanes_of(part)) % (PART * lanes_of(part)) == 0:  # never where there are few, whose sum waits for nothing
        return add_part(total, part)
    return total, part


@inline
def _sum_of(total, part, last, n_last):
    """The lanes of the whole sum, to which the first `n_last` lanes of `last` belong."""
    return total + (part + where(first_lanes(last, n_last), last, 0.0))


@inline
def _weighted_sums(output, targets, weights, d, n_out, n_samples, scale, numbers, of_output):
    """Write d, and return the lanes of the sums over weighted samples of losses and of right answers.

    of_output : loss, its derivative and whether the answer is right, of vectors of outputs and targets of one place.
    """
    total = part = n_right = right_part = splat(load_first_pair(output, 0, 0), 0.0)
    row = 0
    for start in range(0, n_samples, panel_of(output)):
        width = min(panel_of(output), n_samples - start)
        weight = flush_factor(load_first_pair(weights, start, width))
        for i in range(start * n_out, start * n_out + n_out * width, width):
            loss, derivative, right = of_output(
                load_first_pair(output, i, width), load_first_pair(targets, i, width), numbers
            )
            store_first_pair(d, i, flush(scale * (weight * flush_factor(derivative))), width)
            part += where(first_lanes(total, width), weight * loss, 0.0)
            right_part += where(first_lanes(total, width), weight * right, 0.0)
            row += 1
            if row % PART == 0:
                total, part = add_part(total, part)
                n_right, right_part = add_part(n_right, right_part)
    return total + part, n_right + right_part


def _weighted_leaf(name, of_output, numbers_of=no_constants):
    """The leaf of weighted samples of a loss that is a mean over the outputs; as `_weighted_sums`."""

    def loss(output, targets, weights, d, n_out, n_samples, scale, constants, sums):
        factor, numbers = splat(load_first_pair(output, 0, 0), scale / n_out), numbers_of(constants)
        total, right = _weighted_sums(output, targets, weights, d, n_out, n_samples, factor, numbers, of_output)
        sums[0] = sum_lanes(total / splat(total, n_out))
        sums[1] = sum_lanes(right)

    loss.__name__ = loss.__qualname__ = f"weighted_{name}"
    loss.__doc__ = f"As {name}, of weighted samples."
    return leaf(_signature)(loss)


def _loss_of_errors(name, formula, numbers_of=no_constants):
    """The leaves of a loss that is a mean over the outputs of a function f of e = output - target.

    formula : (f(e), f'(e)) from (e, numbers), with the constants.
    """

    def of_output(output, target, numbers):
        loss, derivative = formula(output - target, numbers)
        return loss, derivative, splat(loss, 0.0)

    of_output.__name__ = of_output.__qualname__ = f"{name}_of_output"  # by which the leaf is kept on disk

    def loss(output, targets, weights, d, n_out, n_samples, scale, constants, sums):
        n, numbers = n_out * n_samples, numbers_of(constants)
        factor = splat(output, scale) / splat(output, n_out)
        total = part = last = splat(output, 0.0)
        for i in range(0, n, lanes_of(output)):
            total, part = _add_last(total, part, last, i)
            last, derivative = formula(load(output, i) - load(targets, i), numbers)
            store(d, i, factor * derivative)
        sums[0] = sum_lanes(_sum_of(total, part, last, n - i) / splat(total, n_out))
        sums[1] = 0.0

    loss.__name__ = loss.__qualname__ = name
    loss.__doc__ = f"Mean over the outputs of {formula.py_func.__doc__}"
    return leaf(_signature)(loss), _weighted_leaf(name, inline(of_output), numbers_of)


@inline
def _squared(error, numbers):
    """e**2."""
    error = flush_factor(error)
    return error * error, error + error


@inline
def _absolute(error, numbers):
    """abs(e), whose derivative is 0 at 0."""
    error = flush(error)
    return absolute(error), where(error > 0.0, splat(error, 1.0), where(error < 0.0, splat(error, -1.0), 0.0))


@inline
def _huber(error, delta):
    """e**2 / 2 where abs(e) <= delta, else delta * (abs(e) - delta / 2)."""
    error = flush(error)
    half = flush_factor(0.5 * maximum(-delta, minimum(delta, error)))
    clipped = half + half
    # Both cases at once: e**2 / 2 where the clipped error is e itself.
    return clipped * (error - half), clipped


mse, weighted_mse = _loss_of_errors("mse", _squared)
mae, weighted_mae = _loss_of_errors("mae", _absolute)
huber, weighted_huber = _loss_of_errors("huber", _huber, first_constant)


@inline
def _log_cosh(error, numbers):
    """log(cosh(e)), to the rounding of log(2)."""
    error = flush(error)
    size = absolute(error)
    power = exp_negative_factor(-2.0 * size)
    return size + log1p_unit(power) - _LOG_2, flush_factor(tanh(error))


@inline
def _quantile(error, q):
    """(1 - q) * e where e > 0, else -q * e: the pinball loss, whose derivative is 0 at 0."""
    error = flush(error)
    above, below = 1.0 - splat(error, q), -splat(error, q)
    slope = where(error > 0.0, above, where(error < 0.0, below, 0.0))
    return slope * error, slope


log_cosh, weighted_log_cosh = _loss_of_errors("log_cosh", _log_cosh)
quantile, weighted_quantile = _loss_of_errors("quantile", _quantile, first_constant)


def loss_of_outputs(name, of_output):
    """The leaves of a loss that is a mean over the outputs, and says which answers are right; as `_weighted_sums`."""

    def loss(output, targets, weights, d, n_out, n_samples, scale, constants, sums):
        n = n_out * n_samples
        factor = splat(output, scale) / splat(output, n_out)
        total = part = last = n_right = right_part = last_right = splat(output, 0.0)
        for i in range(0, n, lanes_of(output)):
            total, part = _add_last(total, part, last, i)
            n_right, right_part = _add_last(n_right, right_part, last_right, i)
            last, derivative, last_right = of_output(load(output, i), load(targets, i), constants)
            store(d, i, factor * derivative)
        sums[0] = sum_lanes(_sum_of(total, part, last, n - i) / splat(total, n_out))
        sums[1] = sum_lanes(_sum_of(n_right, right_part, last_right, n - i))

    loss.__name__ = loss.__qualname__ = name
    loss.__doc__ = of_output.py_func.__doc__
    return leaf(_signature)(loss), _weighted_leaf(name, of_output)


@inline
def _binary_cross_entropy(output, target, numbers):
    """log(1 + exp(z)) - z * t with logits z, and its derivative sigmoid(z) - t.

    Right is an output on its target's side: z > 0 where t > 1/2, else z <= 0.
    """
    z, t = flush_factor(output), flush_factor(target)
    is_positive = z > 0.0
    power = exp_negative_factor(-absolute(z))
    sigmoid = where(is_positive, 1.0, power) / (power + 1.0)
    # max(z, 0) - z * t = abs(z) * weight, without inf - inf or 0 * inf.
    weight = where(is_positive, 1.0 - t, t)
    loss = where(weight == 0.0, 0.0, absolute(z) * weight) + log1p_unit(power)
    return loss, sigmoid - t, where(is_positive ^ (t > 0.5), splat(z, 0.0), 1.0)


binary_cross_entropy, weighted_binary_cross_entropy = loss_of_outputs("binary_cross_entropy", _binary_cross_entropy)


@inline
def _poisson(output, target, numbers):
    """exp(z) - z * t with logarithms of rates z, and its derivative exp(z) - t. No answer is right or wrong."""
    z, t = flush_factor(output), flush_factor(target)
    rate = exp(z)
    return rate - where(t == 0.0, 0.0, z * t), flush_factor(rate - t), splat(z, 0.0)


@inline
def _hinge(output, target, numbers):
    """max(0, 1 - t * z), and its derivative -t where t * z < 1. Right is an output of its target's sign."""
    margin = target * flush(output)
    is_right = where(margin > 0.0, splat(margin, 1.0), 0.0)
    return where(margin >= 1.0, 0.0, 1.0 - margin), where(margin < 1.0, -target, 0.0), is_right


poisson, weighted_poisson = loss_of_outputs("poisson", _poisson)
hinge, weighted_hinge = loss_of_outputs("hinge", _hinge)


@inline
def _add_classes(output, targets, d, first, last, width, largest, total, t_total, product):
    """Write exp(z - largest) of the classes first..last-1 into d; returns the sums of it, t and t * (z - largest)."""
    for i in range(first * width, last * width, width):
        z = flush_factor(load_first_pair(output, i, width) - largest)
        t = flush_factor(load_first_pair(targets, i, width))
        power = exp_negative_factor(z)
        store_first_pair(d, i, power, width)
        total += power
        t_total += t
        product += where(t == 0.0, 0.0, t * z)  # 0 * -inf is 0 here
    return total, t_total, product


@inline
def _cross_entropy_of_panel(output, targets, d, n_out, width, scale):
    """Loss of each sample of a panel, and 1 where its answer is right, else 0; writes d."""
    largest, t_there = load_first_pair(output, 0, width), load_first_pair(targets, 0, width)
    t_largest = t_there
    for i in range(width, n_out * width, width):
        z, t = load_first_pair(output, i, width), load_first_pair(targets, i, width)
        t_there = where(z > largest, t, t_there)
        t_largest = maximum(t_largest, t)
        largest = maximum(largest, z)
    p0 = p1 = p2 = splat(largest, 0.0)  # parts of the three sums
    total, t_total, product = _add_classes(output, targets, d, 0, min(PART, n_out), width, largest, p0, p1, p2)
    for first in range(PART, n_out, PART):
        last = min(first + PART, n_out)
        p0, p1, p2 = _add_classes(output, targets, d, first, last, width, largest, p0, p1, p2)
        total, p0 = add_part(total, p0)
        t_total, p1 = add_part(t_total, p1)
        product, p2 = add_part(product, p2)
    factor = scale * t_total / total
    for i in range(0, n_out * width, width):
        t = flush_factor(load_first_pair(targets, i, width))
        store_first_pair(d, i, fma(load_first_pair(d, i, width), factor, -scale * t), width)
    # log(sum(exp(z))) without the largest output, which `product` lacks as well; total >= 1 then.
    return log1p(total - 1.0) * t_total - product, where(t_there == t_largest, splat(total, 1.0), 0.0)


@leaf(_signature)
def weighted_cross_entropy(output, targets, weights, d, n_out, n_samples, scale, constants, sums):
    """As cross_entropy, of weighted samples."""
    total = n_right = splat(load_first_pair(output, 0, 0), 0.0)
    for start in range(0, n_samples, panel_of(output)):
        width, first = min(panel_of(output), n_samples - start), start * n_out
        weight = flush_factor(load_first_pair(weights, start, width))
        loss, right = _cross_entropy_of_panel(
            offset(output, first), offset(targets, first), offset(d, first), n_out, width, flush_factor(scale * weight)
        )
        total += where(first_lanes(total, width), weight * loss, 0.0)
        n_right += where(first_lanes(total, width), weight * right, 0.0)
    sums[0] = sum_lanes(total)
    sums[1] = sum_lanes(n_right)


@leaf(_signature)
def cross_entropy(output, targets, weights, d, n_out, n_samples, scale, constants, sums):
    """log(sum(exp(z))) * sum(t) - sum(t * z) with logits z = output; d = (softmax(z) * sum(t) - t) * scale.

    t : probabilities, or one-hot. sums[1] = number of samples whose (first) largest output is where a target is
    largest. Three passes over each panel, which stays in the L1 cache.
    """
    total = n_right = splat(load_first_pair(output, 0, 0), 0.0)
    for start in range(0, n_samples, panel_of(output)):
        width, first = min(panel_of(output), n_samples - start), start * n_out
        loss, right = _cross_entropy_of_panel(
            offset(output, first), offset(targets, first), offset(d, first), n_out, width, splat(total, scale)
        )
        total += where(first_lanes(total, width), loss, 0.0)
        n_right += where(first_lanes(total, width), right, 0.0)
    sums[0] = sum_lanes(total)
    sums[1] = sum_lanes(n_right)


@inline
def _gaussian_of_panel(output, targets, d, n_targets, width, scale):
    """Sum over a panel's targets of twice each sample's losses, s + (y - m)**2 * exp(-s); writes d of the losses.

    The means m come first among the outputs, then the logarithms s of the variances, clipped to +-`_MOST_LOG_VARIANCE`.
    The derivative with respect to s is the one at the clipped s, so that what is beyond may come back.
    """
    total = part = splat(load_first_pair(output, 0, width), 0.0)
    behind = n_targets * width
    for j in range(n_targets):
        i = j * width
        error = flush_factor(load_first_pair(output, i, width) - load_first_pair(targets, i, width))
        s = load_first_pair(output, i + behind, width)
        # An infinity stays one, so that a divergence is seen.
        s = where(is_finite(s), maximum(-_MOST_LOG_VARIANCE, minimum(_MOST_LOG_VARIANCE, flush_factor(s))), s)
        scaled = flush_factor(error * exp(-s))
        square = flush_factor(error * scaled)  # a sum with s is no subnormal then, whatever cancels
        store_first_pair(d, i, flush(scale * scaled), width)
        store_first_pair(d, i + behind, flush(scale * flush_factor(0.5 * (1.0 - square))), width)
        part += s + square
        if (j + 1) % PART == 0:
            total, part = add_part(total, part)
    return total + part


@inline
def _gaussian_sum(output, targets, weights, d, n_out, n_samples, scale, is_weighted):
    """The lanes of the sum of the samples' losses, weighted or not; writes d."""
    n_targets, total = n_out // 2, splat(load_first_pair(output, 0, 0), 0.0)
    for start in range(0, n_samples, panel_of(output)):
        width = min(panel_of(output), n_samples - start)
        weight = splat(total, 1.0)
        if is_weighted:
            weight = flush_factor(load_first_pair(weights, start, width))
        loss = _gaussian_of_panel(
            offset(output, start * n_out),
            offset(targets, start * n_targets),
            offset(d, start * n_out),
            n_targets,
            width,
            flush_factor(splat(total, scale) / splat(total, n_targets) * weight),
        )
        total += where(first_lanes(total, width), weight * loss, 0.0)
    return total / splat(total, 2 * n_targets)


@leaf(_signature)
def gaussian_nll(output, targets, weights, d, n_out, n_samples, scale, constants, sums):
    """Mean over the targets of (s + (y - m)**2 * exp(-s)) / 2: outputs m, then s, each as many as there are targets."""
    sums[0] = sum_lanes(_gaussian_sum(output, targets, weights, d, n_out, n_samples, scale, False))
    sums[1] = 0.0


@leaf(_signature)
def weighted_gaussian_nll(output, targets, weights, d, n_out, n_samples, scale, constants, sums):
    """As gaussian_nll, of weighted samples."""
    sums[0] = sum_lanes(_gaussian_sum(output, targets, weights, d, n_out, n_samples, scale, True))
    sums[1] = 0.0


LOSSES = {
    "mse": Loss(mse, weighted_mse),
    "mae": Loss(mae, weighted_mae),
    "huber": Loss(huber, weighted_huber, constants=(1.0,)),
    "log_cosh": Loss(log_cosh, weighted_log_cosh),
    "quantile": Loss(quantile, weighted_quantile, constants=(0.5,)),
    "hinge": Loss(hinge, weighted_hinge, targets=SIGNS),
    "gaussian_nll": Loss(gaussian_nll, weighted_gaussian_nll, outputs_per_target=2),
    "poisson": Loss(poisson, weighted_poisson, output="exp", targets=COUNTS),
    "binary_cross_entropy": Loss(
        binary_cross_entropy, weighted_binary_cross_entropy, output="sigmoid", targets=FRACTIONS
    ),
    "cross_entropy": Loss(cross_entropy, weighted_cross_entropy, output="softmax", targets=LABELS),
}
