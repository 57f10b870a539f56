"""Activations: a pair of leaves per name, in place on pre-activations and on derivatives.

Forward: h = f(h). Buffers are padded to whole pairs of vectors, so element-wise leaves go through the n_features *
n_samples elements a pair at a time, whatever their layout, and may change the padding.

Backward: d *= f'(z), where z is the pre-activation and h = f(z), n elements rounded up to whole pairs. Most
derivatives follow from h alone: unless `keeps_z`, the caller may pass h for z. At a kink the derivative is the one from
the left, as PyTorch's. No checks: the caller validates.

No arithmetic here meets a subnormal, and none is stored. Forward, no z is smaller than `least_kept`, but for 0: the
product that makes it sees to that. Backward, d may be anything; where it is multiplied by an f' between 0 and 1, what
is smaller than `root_of_tiny` of either counts as 0.
"""

from typing import NamedTuple

from numba import types

from fastbp._jit import Leaf, inline, leaf
from fastbp.kernels import elementary
from fastbp.kernels.elementary import (
    erf,
    exp_negative,
    exp_negative_factor,
    expm1,
    tanh_half_expm1,
    tanh_quotient,
    tanh_reduce,
)
from fastbp.kernels.panels import panel_of
from fastbp.kernels.simd import (
    absolute,
    flush,
    flush_factor,
    flushed_product,
    fma,
    least_kept,
    load_first_pair,
    load_pair,
    maximum,
    offset,
    root_of_tiny,
    splat,
    store_first_pair,
    store_pair,
    where,
)
from fastbp.kernels.sums import PART, add_part

_LEAKY_SLOPE = 0.01
# Klambauer et al., Self-Normalizing Neural Networks (2017), section 2.
_SELU_SCALE = 1.0507009873554804934193349852946
_SELU_SCALE_ALPHA = 1.7580993408473768599402175208123
_SQRT_HALF = 0.70710678118654752440
_SQRT_HALF_OVER_PI = 0.39894228040143267794


class Activation(NamedTuple):
    """Leaves of one activation; None where there is nothing to do, or no derivative of its own.

    keeps_z : the backward leaf needs the pre-activations.
    """

    forward: Leaf | None
    backward: Leaf | None
    keeps_z: bool = False


def _forward(T):
    return types.void(types.CPointer(T), types.intp, types.intp)


def _backward(T):
    return types.void(types.CPointer(T), types.CPointer(T), types.CPointer(T), types.intp)


@leaf(_forward)
def identity_forward(h, n_features, n_samples):
    """h itself, but for what is tiny."""
    for i in range(0, n_features * n_samples, panel_of(h)):
        store_pair(h, i, flush(load_pair(h, i)))


@leaf(_backward)
def identity_backward(d, z, h, n):
    """d itself, but for what is tiny."""
    for i in range(0, n, panel_of(d)):
        store_pair(d, i, flush(load_pair(d, i)))


@leaf(_forward)
def sigmoid_forward(h, n_features, n_samples):
    """h = 1 / (1 + exp(-h))."""
    for i in range(0, n_features * n_samples, panel_of(h)):
        store_pair(h, i, elementary.sigmoid(flush(load_pair(h, i))))


@leaf(_backward)
def sigmoid_backward(d, z, h, n):
    """d *= h * (1 - h)."""
    for i in range(0, n, panel_of(d)):
        h_i = load_pair(h, i)
        store_pair(d, i, flushed_product(load_pair(d, i), flushed_product(h_i, 1.0 - h_i)))


@leaf(_forward)
def tanh_forward(h, n_features, n_samples):
    """h = tanh(h).

    Each turn of the loop does one stage of three pairs: a processor looks too few instructions ahead to overlap the
    whole chains of as many. Beyond the end the last pair goes in again, and does not come out.
    """
    panel, n = panel_of(h), n_features * n_samples
    last = (n - 1) // panel * panel
    z, z_next = load_pair(h, 0), load_pair(h, min(panel, last))
    half = tanh_half_expm1(*tanh_reduce(flush(z)))
    shifted, r = tanh_reduce(flush(z_next))
    for i in range(0, n, panel):
        z_after = load_pair(h, min(i + 2 * panel, last))
        store_pair(h, i, tanh_quotient(half, z))
        half, z, z_next = tanh_half_expm1(shifted, r), z_next, z_after
        shifted, r = tanh_reduce(flush(z_after))


@leaf(_backward)
def tanh_backward(d, z, h, n):
    """d *= 1 - h**2."""
    for i in range(0, n, panel_of(d)):
        h_i = load_pair(h, i)
        store_pair(d, i, flushed_product(load_pair(d, i), fma(-h_i, h_i, 1.0)))


@leaf(_forward)
def relu_forward(h, n_features, n_samples):
    """h = max(h, 0); NaN stays NaN."""
    for i in range(0, n_features * n_samples, panel_of(h)):
        store_pair(h, i, maximum(0.0, flush(load_pair(h, i))))


@leaf(_backward)
def relu_backward(d, z, h, n):
    """d = d where h > 0, else 0."""
    for i in range(0, n, panel_of(d)):
        store_pair(d, i, where(load_pair(h, i) > 0.0, flush(load_pair(d, i)), 0.0))


@leaf(_forward)
def leaky_relu_forward(h, n_features, n_samples):
    """h = h where positive, else 0.01 * h."""
    for i in range(0, n_features * n_samples, panel_of(h)):
        z = flush(load_pair(h, i))
        store_pair(h, i, where(z > 0.0, z, _LEAKY_SLOPE * z))


@leaf(_backward)
def leaky_relu_backward(d, z, h, n):
    """d *= 1 where h > 0, else 0.01."""
    for i in range(0, n, panel_of(d)):
        d_i = flush(load_pair(d, i))
        store_pair(d, i, where(load_pair(h, i) > 0.0, d_i, _LEAKY_SLOPE * d_i))


@leaf(_forward)
def elu_forward(h, n_features, n_samples):
    """h = h where positive, else exp(h) - 1."""
    for i in range(0, n_features * n_samples, panel_of(h)):
        z = flush(load_pair(h, i))
        store_pair(h, i, where(z > 0.0, z, expm1(z)))


@leaf(_backward)
def elu_backward(d, z, h, n):
    """d *= 1 where h > 0, else h + 1, which is exp(z)."""
    for i in range(0, n, panel_of(d)):
        h_i = load_pair(h, i)
        d_i = flush_factor(load_pair(d, i))
        store_pair(d, i, where(h_i > 0.0, d_i, fma(d_i, h_i, d_i)))


@leaf(_forward)
def selu_forward(h, n_features, n_samples):
    """h = scale * h where positive, else scale * alpha * (exp(h) - 1)."""
    for i in range(0, n_features * n_samples, panel_of(h)):
        z = flush(load_pair(h, i))
        store_pair(h, i, where(z > 0.0, _SELU_SCALE * z, _SELU_SCALE_ALPHA * expm1(z)))


@leaf(_backward)
def selu_backward(d, z, h, n):
    """d *= scale where h > 0, else h + scale * alpha."""
    for i in range(0, n, panel_of(d)):
        h_i = load_pair(h, i)
        derivative = where(h_i > 0.0, _SELU_SCALE, h_i + _SELU_SCALE_ALPHA)
        store_pair(d, i, flushed_product(load_pair(d, i), derivative))


@leaf(_forward)
def gelu_forward(h, n_features, n_samples):
    """h = h * Phi(h), with the standard normal distribution function Phi."""
    for i in range(0, n_features * n_samples, panel_of(h)):
        z = flush(load_pair(h, i))
        half = 0.5 * z
        store_pair(h, i, fma(half, erf(_SQRT_HALF * z), half))


@leaf(_backward)
def gelu_backward(d, z, h, n):
    """d *= Phi(z) + z * phi(z), with the standard normal density phi."""
    for i in range(0, n, panel_of(d)):
        z_i = load_pair(z, i)
        distribution = fma(erf(_SQRT_HALF * z_i), 0.5, 0.5)
        size = maximum(2.0 * root_of_tiny(z_i), absolute(z_i))  # whose square is not subnormal
        density = _SQRT_HALF_OVER_PI * exp_negative_factor(-0.5 * size * size)
        store_pair(d, i, flushed_product(load_pair(d, i), fma(z_i, density, distribution)))


@leaf(_forward)
def silu_forward(h, n_features, n_samples):
    """h = h * sigmoid(h)."""
    for i in range(0, n_features * n_samples, panel_of(h)):
        z = flush(load_pair(h, i))
        store_pair(h, i, z * elementary.sigmoid(z))


@leaf(_backward)
def silu_backward(d, z, h, n):
    """d *= s * (1 + z * (1 - s)) with s = sigmoid(z)."""
    for i in range(0, n, panel_of(d)):
        z_i = load_pair(z, i)
        s = elementary.sigmoid_factor(z_i)
        store_pair(d, i, flushed_product(load_pair(d, i), s * fma(z_i, 1.0 - s, 1.0)))


@leaf(_forward)
def softplus_forward(h, n_features, n_samples):
    """h = log(1 + exp(h))."""
    for i in range(0, n_features * n_samples, panel_of(h)):
        store_pair(h, i, elementary.softplus(flush(load_pair(h, i))))


@leaf(_backward)
def softplus_backward(d, z, h, n):
    """d *= 1 - exp(-h), which is sigmoid(z)."""
    for i in range(0, n, panel_of(d)):
        store_pair(d, i, flushed_product(load_pair(d, i), flush_factor(-expm1(-load_pair(h, i)))))


@inline
def _add_powers(panel, first, last, width, largest, total):
    """Replace h by exp(h - largest) in rows first..last-1 of a panel; returns the total with these added."""
    for i in range(first * width, last * width, width):
        power = exp_negative(flush(load_first_pair(panel, i, width)) - largest)
        store_first_pair(panel, i, power, width)
        total += power
    return total


@leaf(_forward)
def softmax_forward(h, n_features, n_samples):
    """h = exp(h - max) / sum over the features of each sample.

    h : panels of `panel_of(h)` samples, each with one row per feature; the last panel holds what is left, its rows as
    long as it is wide. Touches no other element.
    """
    for start in range(0, n_samples, panel_of(h)):
        panel, width = offset(h, start * n_features), min(panel_of(h), n_samples - start)
        largest = flush(load_first_pair(panel, 0, width))
        for i in range(width, n_features * width, width):
            largest = maximum(largest, flush(load_first_pair(panel, i, width)))
        part = splat(largest, 0.0)
        total = _add_powers(panel, 0, min(PART, n_features), width, largest, part)
        for first in range(PART, n_features, PART):
            part = _add_powers(panel, first, min(first + PART, n_features), width, largest, part)
            total, part = add_part(total, part)
        least = total * least_kept(h)
        for i in range(0, n_features * width, width):
            power = load_first_pair(panel, i, width)
            store_first_pair(panel, i, where(power < least, 0.0, power) / total, width)


ACTIVATIONS = {
    "identity": Activation(identity_forward, identity_backward),
    "sigmoid": Activation(sigmoid_forward, sigmoid_backward),
    "tanh": Activation(tanh_forward, tanh_backward),
    "relu": Activation(relu_forward, relu_backward),
    "leaky_relu": Activation(leaky_relu_forward, leaky_relu_backward),
    "elu": Activation(elu_forward, elu_backward),
    "selu": Activation(selu_forward, selu_backward),
    "gelu": Activation(gelu_forward, gelu_backward, keeps_z=True),
    "silu": Activation(silu_forward, silu_backward, keeps_z=True),
    "softplus": Activation(softplus_forward, softplus_backward),
    "softmax": Activation(softmax_forward, None),
}

# Those that are exactly zero, and their derivative too, for a unit that is off, as usually half of them or more are.
TURNING_OFF = frozenset({"relu"})
