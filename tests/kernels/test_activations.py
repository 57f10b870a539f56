"""Activation leaves against the naive twin, at odd sizes, with guard pages around the padded buffers."""

import re

import numpy as np
import pytest

import reference
from fastbp.kernels.activations import ACTIVATIONS
from fastbp.kernels.panels import panel_width
from guards import guarded, needs_guard_pages
from leaves import activate, differentiate, panels_of

FLOATS = ["float32", "float64"]
SIZES = [(1, 1), (3, 7), (8, 33), (33, 8), (7, 3)]
ELEMENTWISE = [name for name in ACTIVATIONS if name != "softmax"]

# name: values at -inf and inf.
LIMITS = {
    "sigmoid": (0, 1),
    "tanh": (-1, 1),
    "relu": (0, np.inf),
    "leaky_relu": (-np.inf, np.inf),
    "elu": (-1, np.inf),
    "selu": (-reference.SELU_SCALE * reference.SELU_ALPHA, np.inf),
    "softplus": (0, np.inf),
}


def padded(values, at_start=False):
    """Values followed by NaN up to a whole pair of vectors, beside a guard page."""
    padding = -values.size % panel_width(values.dtype)
    return guarded(np.concatenate([values, np.full(padding, np.nan, values.dtype)]), at_start)


def pre_activations(n, dtype):
    """Random values, with some large ones, and zeros of both signs first where there is room."""
    z = np.random.default_rng(n).normal(size=n) * np.resize([1.0, 1.0, 1.0, 20.0], n)
    z[1:3] = np.array([0.0, -0.0])[: max(n - 1, 0)]
    return z.astype(dtype)


def forward(name, z, at_start=False, n_features=1):
    h = padded(z, at_start)
    activate(name, h, n_features, z.size // n_features)
    return h[: z.size]


def test_activations_are_all_there():
    assert set(ACTIVATIONS) == {*reference.ACTIVATIONS, "softmax"}
    assert {name for name, activation in ACTIVATIONS.items() if not activation.is_hidden} == {"exp", "softmax"}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_makes_zeros_tells_whether_a_unit_that_is_off_is_zero_with_its_derivative(name, dtype):
    z = -np.arange(1, 9).astype(dtype)
    h, d = forward(name, z), padded(np.ones(8, dtype))
    differentiate(name, d, padded(z), padded(h), 8)
    assert ACTIVATIONS[name].makes_zeros == (not h.any() and not d[:8].any())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_is_identity_tells_whether_numbers_stay_as_they_are(name, dtype):
    z = pre_activations(33, dtype)
    z[z == 0] = 0  # of either sign
    assert ACTIVATIONS[name].is_identity == (forward(name, z).tobytes() == z.tobytes())


@needs_guard_pages
@pytest.mark.parametrize("at_start", [False, True])
@pytest.mark.parametrize(("n_features", "n_samples"), SIZES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_forward_any_size_equals_reference(name, dtype, n_features, n_samples, at_start):
    z = pre_activations(n_features * n_samples, dtype)
    expected = reference.ACTIVATIONS[name][0](z.astype(np.float64))
    h = forward(name, z, at_start, n_features)
    eps = np.finfo(dtype).eps
    # gelu's 1 + erf cancels for negative z, as PyTorch's does.
    atol = 4 * eps * np.abs(z).max() if name == "gelu" else 0
    np.testing.assert_allclose(h, expected, rtol=6 * eps, atol=atol)


@needs_guard_pages
@pytest.mark.parametrize("at_start", [False, True])
@pytest.mark.parametrize("n", [1, 3, 7, 8, 33, 231])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_backward_any_size_equals_reference(name, dtype, n, at_start):
    z = pre_activations(n, dtype)
    d = np.random.default_rng(1).normal(size=n).astype(dtype)
    expected = d * reference.ACTIVATIONS[name][1](z.astype(np.float64))
    h, actual = padded(forward(name, z), at_start), padded(d, at_start)
    differentiate(name, actual, padded(z) if ACTIVATIONS[name].keeps_z else h, h, n)
    # From h alone the derivative has the rounding error of h, which is absolute where it is small.
    tolerance = 8 * np.finfo(dtype).eps
    np.testing.assert_allclose(actual[:n], expected, rtol=tolerance, atol=tolerance * np.abs(d).max())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "elu", "selu"])
def test_backward_at_zero_is_the_derivative_from_the_left(name, dtype):
    left = {"relu": 0, "leaky_relu": 0.01, "elu": 1, "selu": reference.SELU_SCALE * reference.SELU_ALPHA}[name]
    h, d = padded(np.zeros(2, dtype)), padded(np.array([1, -2], dtype))
    differentiate(name, d, h, h, 2)
    np.testing.assert_allclose(d[:2], [left, -2 * left], rtol=np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", LIMITS)
def test_forward_of_infinities_gives_the_limits(name, dtype):
    h = forward(name, np.array([-np.inf, np.inf], dtype))
    np.testing.assert_allclose(h, np.array(LIMITS[name], dtype), rtol=0 if name != "selu" else np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_nan_stays_nan_forward_and_backward(name, dtype):
    z = np.array([1, np.nan, 2], dtype)
    h = forward(name, z)
    np.testing.assert_array_equal(np.isnan(h), [False, True, False])
    h, d = padded(np.full(3, 0.5, dtype)), padded(z)
    differentiate(name, d, h, h, 3)
    np.testing.assert_array_equal(np.isnan(d[:3]), [False, True, False])


@needs_guard_pages
@pytest.mark.parametrize("at_start", [False, True])
@pytest.mark.parametrize("n_features", [1, 3, 10])
@pytest.mark.parametrize("dtype", FLOATS)
def test_softmax_any_size_equals_reference_and_touches_nothing_else(dtype, n_features, at_start):
    panel = panel_width(dtype)
    for n_samples in (1, 3, 7, 8, 33, panel - 1, panel, panel + 1, 2 * panel + 5):
        z = (np.random.default_rng(n_samples).normal(size=(n_samples, n_features)) * 5).astype(dtype)
        h = guarded(panels_of(z), at_start)
        activate("softmax", h, n_features, n_samples)
        expected = panels_of(reference.softmax(z.astype(np.float64)).astype(dtype))
        # z - max is rounded: an error of eps / 2 times up to 30, which exp makes a relative one.
        np.testing.assert_allclose(h, expected, rtol=20 * np.finfo(dtype).eps)


@needs_guard_pages
@pytest.mark.parametrize("at_start", [False, True])
@pytest.mark.parametrize("n_features", [1, 3, 10, 1030])
@pytest.mark.parametrize("dtype", FLOATS)
def test_softmax_backward_any_size_equals_reference_and_touches_nothing_else(dtype, n_features, at_start):
    panel, rng = panel_width(dtype), np.random.default_rng(n_features)
    for n_samples in (1, 3, panel - 1, panel + 1):
        h = reference.softmax(rng.normal(size=(n_samples, n_features)) * 3)
        d = rng.normal(size=h.shape).astype(dtype)
        expected = (h * (d - (d * h).sum(axis=1, keepdims=True))).astype(dtype)
        actual, given = guarded(panels_of(d), at_start), guarded(panels_of(h.astype(dtype)), at_start)
        differentiate("softmax", actual, given, given, d.size, n_features)
        tolerance = 8 * np.finfo(dtype).eps
        np.testing.assert_allclose(actual, panels_of(expected), rtol=tolerance, atol=tolerance * np.abs(d).max())


@pytest.mark.parametrize("dtype", FLOATS)
def test_softmax_large_values_neither_overflow_nor_vanish(dtype):
    z = np.array([[1e4, 1e4 - 1, -1e4], [-1e4, -1e4, -1e4], [0, -np.inf, -np.inf]], dtype)
    h = panels_of(z)
    activate("softmax", h, 3, 3)
    expected = panels_of(np.array([[1 / (1 + np.exp(-1)), 1 / (1 + np.e), 0], [1 / 3] * 3, [1, 0, 0]], dtype))
    np.testing.assert_allclose(h, expected, rtol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", FLOATS)
def test_softmax_nan_spoils_its_own_sample_only(dtype):
    z = np.zeros((5, 3), dtype)
    z[2, 1] = np.nan
    h = panels_of(z)
    activate("softmax", h, 3, 5)
    np.testing.assert_array_equal(np.isnan(h), panels_of(np.repeat([[0], [0], [1], [0], [0]], 3, 1).astype(dtype)) == 1)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_float32_code_holds_no_double_arithmetic(name, direction):
    # A constant is read and cast, once.
    code = getattr(ACTIVATIONS[name], direction).llvm("float32")
    assert not re.search(r"\b(fadd|fsub|fmul|fdiv|fneg|fcmp)\b.*\bdouble\b|f64\b", code)
