"""Activations: a row of `ACTIVATIONS` per name, with a pair of leaves, in place on pre-activations and derivatives.

Forward: h = f(h). Buffers are padded to whole pairs of vectors, so element-wise leaves go through the n_features *
n_samples elements a pair at a time, whatever their layout, and may change the padding.

Backward: d = J.T @ d with the Jacobian J of h = f(z) with respect to the pre-activations z, for n_features * n_samples
elements rounded up to whole pairs; element-wise, d *= f'(z). (Every J here is symmetric, so tangents go the same way.)
Most derivatives follow from h alone: unless `keeps_z`, the caller may pass h for z. At a kink the derivative is the one
from the left, as PyTorch's. constants : float64, those of the row. No checks: the caller validates.

Element-wise, an activation is two formulas on vectors, of which `_elementwise` makes the leaves.

No arithmetic here meets a subnormal, and none is stored. Forward, no z is smaller than `least_kept`, but for 0: the
product that makes it sees to that. Backward, d may be anything; where it is multiplied by an f' between 0 and 1, what
is smaller than `root_of_tiny` of either counts as 0.
"""

import math
from typing import NamedTuple

from numba import types

from fastbp._jit import Leaf, inline, leaf
from fastbp.kernels import elementary
from fastbp.kernels.constants import first_constant, no_constants
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
    minimum,
    offset,
    root_of_tiny,
    splat,
    store_first_pair,
    store_pair,
    where,
)
from fastbp.kernels.sums import PART, add_part

# Klambauer et al., Self-Normalizing Neural Networks (2017), section 2.
_SELU_SCALE = 1.0507009873554804934193349852946
_SELU_SCALE_ALPHA = 1.7580993408473768599402175208123
_SQRT_HALF = 0.70710678118654752440
_SQRT_HALF_OVER_PI = 0.39894228040143267794


class Activation(NamedTuple):
    """One activation: its leaves, and all that anyone else has to know of it.

    forward : in place on pre-activations. backward : in place on derivatives.
    keeps_z : whether the backward leaf needs the pre-activations. makes_zeros : whether a unit that is off is exactly
    zero, and its derivative too, as usually half of them or more are. initializer : which weights before it `auto`
    draws. is_hidden : whether hidden layers may have it. is_identity : whether it changes nothing but what is tiny.
    constants : what its leaves read. flat_below, flat_above : from which z on, or h unless `keeps_z`, the slope stays
    below a twentieth of the largest.
    """

    forward: Leaf
    backward: Leaf
    keeps_z: bool = False
    makes_zeros: bool = False
    initializer: str = "glorot_uniform"
    is_hidden: bool = True
    is_identity: bool = False
    constants: tuple[float, ...] = ()
    flat_below: float = -math.inf
    flat_above: float = math.inf


def _forward(T):
    return types.void(types.CPointer(T), types.intp, types.intp, types.CPointer(types.float64))


def _backward(T):
    pointer, size = types.CPointer(T), types.intp
    return types.void(pointer, pointer, pointer, size, size, types.CPointer(types.float64))


def _named(function, name, doc):
    """The function under the name that its leaf is kept by."""
    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    return function


def elementwise_forward(name, formula, numbers_of=no_constants):
    """The leaf `name` of a formula: h from (z, numbers), with z without what is tiny and the constants."""

    def forward(h, n_features, n_samples, constants):
        numbers = numbers_of(constants)
        for i in range(0, n_features * n_samples, panel_of(h)):
            store_pair(h, i, formula(flush(load_pair(h, i)), numbers))

    return leaf(_forward)(_named(forward, name, formula.__doc__))


def elementwise_backward(name, formula, numbers_of=no_constants):
    """The leaf `name` of a formula: d * f'(z) from (d, z, h, numbers), with the constants."""

    def backward(d, z, h, n_features, n_samples, constants):
        numbers = numbers_of(constants)
        for i in range(0, n_features * n_samples, panel_of(d)):
            store_pair(d, i, formula(load_pair(d, i), load_pair(z, i), load_pair(h, i), numbers))

    return leaf(_backward)(_named(backward, name, formula.__doc__))


@inline
def _identity(z, numbers):
    """z itself."""
    return z


@inline
def _identity_derivative(d, z, h, numbers):
    """d itself, but for what is tiny."""
    return flush(d)


identity_forward = elementwise_forward("identity_forward", _identity)
identity_backward = elementwise_backward("identity_backward", _identity_derivative)


@inline
def _sigmoid(z, numbers):
    """1 / (1 + exp(-z))."""
    return elementary.sigmoid(z)


@inline
def _sigmoid_derivative(d, z, h, numbers):
    """d * h * (1 - h)."""
    return flushed_product(d, flushed_product(h, 1.0 - h))


sigmoid_forward = elementwise_forward("sigmoid_forward", _sigmoid)
sigmoid_backward = elementwise_backward("sigmoid_backward", _sigmoid_derivative)


@leaf(_forward)
def tanh_forward(h, n_features, n_samples, constants):
    """h = tanh(h).

    Each turn of the loop does one stage of three pairs: a processor looks too few instructions ahead to overlap the
    whole chains of as many. Beyond the end the last pair goes in again, and does not come out.
    """
    panel, n = panel_of(h), n_features * n_samples
    if n <= panel:
        store_pair(h, 0, elementary.tanh(flush(load_pair(h, 0))))
        return
    last = (n - 1) // panel * panel
    z, z_next = load_pair(h, 0), load_pair(h, min(panel, last))
    half = tanh_half_expm1(*tanh_reduce(flush(z)))
    shifted, r = tanh_reduce(flush(z_next))
    for i in range(0, n, panel):
        z_after = load_pair(h, min(i + 2 * panel, last))
        store_pair(h, i, tanh_quotient(half, z))
        half, z, z_next = tanh_half_expm1(shifted, r), z_next, z_after
        shifted, r = tanh_reduce(flush(z_after))


@inline
def _tanh_derivative(d, z, h, numbers):
    """d * (1 - h**2)."""
    return flushed_product(d, fma(-h, h, 1.0))


tanh_backward = elementwise_backward("tanh_backward", _tanh_derivative)


@inline
def _relu(z, numbers):
    """max(z, 0); NaN stays NaN."""
    return maximum(0.0, z)


@inline
def _relu_derivative(d, z, h, numbers):
    """d where h > 0, else 0."""
    return where(h > 0.0, flush(d), 0.0)


relu_forward = elementwise_forward("relu_forward", _relu)
relu_backward = elementwise_backward("relu_backward", _relu_derivative)


@inline
def _leaky_relu(z, slope):
    """z where positive, else slope * z."""
    return where(z > 0.0, z, flush(slope * z))


@inline
def _leaky_relu_derivative(d, z, h, slope):
    """d where h > 0, else slope * d."""
    d = flush(d)
    return where(h > 0.0, d, flush(slope * d))


leaky_relu_forward = elementwise_forward("leaky_relu_forward", _leaky_relu, first_constant)
leaky_relu_backward = elementwise_backward("leaky_relu_backward", _leaky_relu_derivative, first_constant)


@inline
def _elu(z, alpha):
    """z where positive, else alpha * (exp(z) - 1)."""
    return where(z > 0.0, z, flush(alpha * expm1(z)))


@inline
def _elu_derivative(d, z, h, alpha):
    """d where h > 0, else d * (h + alpha), which is d * alpha * exp(z)."""
    d = flush_factor(d)
    return where(h > 0.0, d, fma(d, h, alpha * d))


elu_forward = elementwise_forward("elu_forward", _elu, first_constant)
elu_backward = elementwise_backward("elu_backward", _elu_derivative, first_constant)


@inline
def _selu(z, numbers):
    """scale * z where positive, else scale * alpha * (exp(z) - 1)."""
    return where(z > 0.0, _SELU_SCALE * z, _SELU_SCALE_ALPHA * expm1(z))


@inline
def _selu_derivative(d, z, h, numbers):
    """d * scale where h > 0, else d * (h + scale * alpha)."""
    return flushed_product(d, where(h > 0.0, _SELU_SCALE, h + _SELU_SCALE_ALPHA))


selu_forward = elementwise_forward("selu_forward", _selu)
selu_backward = elementwise_backward("selu_backward", _selu_derivative)


@inline
def _gelu(z, numbers):
    """z * Phi(z), with the standard normal distribution function Phi."""
    half = 0.5 * z
    return fma(half, erf(_SQRT_HALF * z), half)


@inline
def _gelu_derivative(d, z, h, numbers):
    """d * (Phi(z) + z * phi(z)), with the standard normal density phi."""
    distribution = fma(erf(_SQRT_HALF * z), 0.5, 0.5)
    size = maximum(2.0 * root_of_tiny(z), absolute(z))  # whose square is not subnormal
    density = _SQRT_HALF_OVER_PI * exp_negative_factor(-0.5 * size * size)
    return flushed_product(d, fma(z, density, distribution))


gelu_forward = elementwise_forward("gelu_forward", _gelu)
gelu_backward = elementwise_backward("gelu_backward", _gelu_derivative)


@inline
def _silu(z, numbers):
    """z * sigmoid(z)."""
    return z * elementary.sigmoid(z)


@inline
def _silu_derivative(d, z, h, numbers):
    """d * s * (1 + z * (1 - s)) with s = sigmoid(z)."""
    s = elementary.sigmoid_factor(z)
    return flushed_product(d, s * fma(z, 1.0 - s, 1.0))


silu_forward = elementwise_forward("silu_forward", _silu)
silu_backward = elementwise_backward("silu_backward", _silu_derivative)


@inline
def _mish_factor(z):
    """tanh(log(1 + exp(z))), by exp(-abs(z)) alone."""
    power = exp_negative(-absolute(z))
    factor = flush_factor(power)
    other, square = power + power, factor * factor
    positive = other + 1.0
    negative = other + square
    return where(z > 0.0, positive / fma(square, 2.0, positive), negative / (negative + 2.0))


@inline
def _mish(z, numbers):
    """z * tanh(softplus(z))."""
    return flush(z * _mish_factor(z))


@inline
def _mish_derivative(d, z, h, numbers):
    """d * (t + z * (1 - t**2) * sigmoid(z)) with t = tanh(softplus(z))."""
    t = _mish_factor(z)
    return flushed_product(d, flush_factor(fma(z * elementary.sigmoid_factor(z), fma(-t, t, 1.0), t)))


mish_forward = elementwise_forward("mish_forward", _mish)
mish_backward = elementwise_backward("mish_backward", _mish_derivative)


@inline
def _hard_tanh(z, numbers):
    """z, or the nearer end of -1..1 beyond; NaN stays NaN."""
    return maximum(-1.0, minimum(1.0, z))


@inline
def _hard_tanh_derivative(d, z, h, numbers):
    """d where abs(h) < 1, else 0."""
    return where(absolute(h) < 1.0, flush(d), 0.0)


hard_tanh_forward = elementwise_forward("hard_tanh_forward", _hard_tanh)
hard_tanh_backward = elementwise_backward("hard_tanh_backward", _hard_tanh_derivative)


@inline
def _exp(z, numbers):
    """exp(z)."""
    return flush(elementary.exp(z))


@inline
def _exp_derivative(d, z, h, numbers):
    """d * h."""
    return flushed_product(d, flush_factor(h))


exp_forward = elementwise_forward("exp_forward", _exp)
exp_backward = elementwise_backward("exp_backward", _exp_derivative)


@inline
def _softplus(z, numbers):
    """log(1 + exp(z))."""
    return elementary.softplus(z)


@inline
def _softplus_derivative(d, z, h, numbers):
    """d * (1 - exp(-h)), which is d * sigmoid(z)."""
    return flushed_product(d, flush_factor(-expm1(-h)))


softplus_forward = elementwise_forward("softplus_forward", _softplus)
softplus_backward = elementwise_backward("softplus_backward", _softplus_derivative)


@inline
def _add_powers(panel, first, last, width, largest, total):
    """Replace h by exp(h - largest) in rows first..last-1 of a panel; returns the total with these added."""
    for i in range(first * width, last * width, width):
        power = exp_negative(flush(load_first_pair(panel, i, width)) - largest)
        store_first_pair(panel, i, power, width)
        total += power
    return total


@leaf(_forward)
def softmax_forward(h, n_features, n_samples, constants):
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


@inline
def _add_products(d, h, first, last, width, total):
    """The total with the products d * h in rows first..last-1 of a panel added."""
    for i in range(first * width, last * width, width):
        total += flushed_product(load_first_pair(d, i, width), flush_factor(load_first_pair(h, i, width)))
    return total


@leaf(_backward)
def softmax_backward(d, z, h, n_features, n_samples, constants):
    """d = h * (d - sum over the features of d * h), of each sample.

    d, h : panels, as in `softmax_forward`. Touches no other element.
    """
    for start in range(0, n_samples, panel_of(d)):
        d_panel, h_panel = offset(d, start * n_features), offset(h, start * n_features)
        width = min(panel_of(d), n_samples - start)
        part = splat(load_first_pair(d_panel, 0, width), 0.0)
        total = _add_products(d_panel, h_panel, 0, min(PART, n_features), width, part)
        for first in range(PART, n_features, PART):
            part = _add_products(d_panel, h_panel, first, min(first + PART, n_features), width, part)
            total, part = add_part(total, part)
        for i in range(0, n_features * width, width):
            d_own = flush_factor(load_first_pair(d_panel, i, width))
            h_own = flush_factor(load_first_pair(h_panel, i, width))
            store_first_pair(d_panel, i, flushed_product(d_own - total, h_own), width)


ACTIVATIONS = {
    "identity": Activation(identity_forward, identity_backward, is_identity=True),
    "sigmoid": Activation(sigmoid_forward, sigmoid_backward, flat_below=0.0127, flat_above=0.9873),
    "tanh": Activation(tanh_forward, tanh_backward, flat_below=-0.9747, flat_above=0.9747),
    "relu": Activation(relu_forward, relu_backward, makes_zeros=True, initializer="he_normal", flat_below=0.0),
    "leaky_relu": Activation(leaky_relu_forward, leaky_relu_backward, initializer="he_normal", constants=(0.01,)),
    "elu": Activation(elu_forward, elu_backward, initializer="he_normal", constants=(1.0,), flat_below=-0.95),
    "selu": Activation(selu_forward, selu_backward, initializer="lecun_normal", flat_below=-1.67),
    "gelu": Activation(gelu_forward, gelu_backward, keeps_z=True, initializer="he_normal", flat_below=-2.3),
    "silu": Activation(silu_forward, silu_backward, keeps_z=True, initializer="he_normal", flat_below=-4.0),
    "mish": Activation(mish_forward, mish_backward, keeps_z=True, initializer="he_normal", flat_below=-4.0),
    "hard_tanh": Activation(hard_tanh_forward, hard_tanh_backward, flat_below=-1.0, flat_above=1.0),
    "softplus": Activation(softplus_forward, softplus_backward, initializer="he_normal", flat_below=0.0512),
    "exp": Activation(exp_forward, exp_backward, is_hidden=False),
    "softmax": Activation(softmax_forward, softmax_backward, is_hidden=False),
}
