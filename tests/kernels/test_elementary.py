"""Elementary functions of vectors: errors in ulp over the whole range, limits, signs, and no double in float32 code."""

import functools
import re

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import types

import reference
from fastbp._jit import leaf
from fastbp.kernels import elementary
from fastbp.kernels.simd import lanes_of, load, store
from fastbp.kernels.target import VECTOR_BYTES
from leaves import call
from subnormals import kept

MAX_ULP = 4
FLOATS = ["float32", "float64"]
INF, NAN = np.inf, np.nan

# name: (in float64, in mpmath, arguments between which values are neither constant nor infinite in any dtype).
FUNCTIONS = {
    "exp_negative": (np.exp, mpmath.exp, (-750.0, 0.0)),
    "exp_negative_factor": (np.exp, mpmath.exp, (-750.0, 0.0)),
    "expm1": (np.expm1, mpmath.expm1, (-40.0, 710.0)),
    "tanh": (np.tanh, mpmath.tanh, (-22.0, 22.0)),
    "sigmoid": (reference.sigmoid, lambda x: 1 / (1 + mpmath.exp(-x)), (-750.0, 40.0)),
    "sigmoid_factor": (reference.sigmoid, lambda x: 1 / (1 + mpmath.exp(-x)), (-750.0, 40.0)),
    "log1p": (np.log1p, mpmath.log1p, (-1.0, INF)),
    "log1p_unit": (np.log1p, mpmath.log1p, (-0.0, 1.0)),
    "erf": (reference.erf, mpmath.erf, (-7.0, 7.0)),
    "softplus": (reference.softplus, lambda x: mpmath.log1p(mpmath.exp(x)), (-750.0, 1e3)),
}
# What is less than these powers of two, or up to a root of two above, is 0, by dtype.
LEAST = {
    "exp_negative": {"float32": -119, "float64": -1015},
    "sigmoid": {"float32": -119, "float64": -1015},
    "softplus": {"float32": -119, "float64": -1015},
    "exp_negative_factor": {"float32": -63, "float64": -511},
    "sigmoid_factor": {"float32": -63, "float64": -511},
}
ODD = ["tanh", "erf"]
KEEPS_SIGN_OF_ZERO = ["expm1", "tanh", "erf", "log1p"]

# name: (argument, value) exactly, in both dtypes.
LIMITS = {
    "exp_negative": [(-INF, 0), (-1e30, 0), (0, 1), (-0.0, 1), (-1e-310, 1)],
    "exp_negative_factor": [(-INF, 0), (-1e30, 0), (0, 1), (-0.0, 1), (-1e-310, 1)],
    "expm1": [(INF, INF), (1e30, INF), (-INF, -1), (-1e30, -1), (-50, -1)],
    "tanh": [(INF, 1), (1e30, 1), (25, 1)],
    "sigmoid": [(INF, 1), (1e30, 1), (50, 1), (-INF, 0), (-1e30, 0), (0, 0.5), (-0.0, 0.5)],
    "sigmoid_factor": [(INF, 1), (1e30, 1), (50, 1), (-INF, 0), (-1e30, 0), (0, 0.5), (-0.0, 0.5)],
    "log1p": [(INF, INF), (-1, -INF), (-1.5, NAN), (-1e30, NAN), (-INF, NAN)],
    "log1p_unit": [(0, 0)],
    "erf": [(INF, 1), (1e30, 1), (8, 1)],
    "softplus": [(INF, INF), (1e30, 1e30), (-INF, 0), (-1e30, 0)],
}


def _signature(T):
    pointer = types.CPointer(T)
    return types.void(pointer, pointer, types.intp)


@functools.cache
def leaf_of(name):
    function = getattr(elementary, name)

    @leaf(_signature)
    def body(x, y, n):
        for i in range(0, n, lanes_of(x)):
            store(y, i, function(load(x, i)))

    return body


def apply(name, x):
    padding = -x.size % (VECTOR_BYTES // x.itemsize)
    padded = np.concatenate([x, np.zeros(padding, x.dtype)])
    y = np.full_like(padded, 77)
    call(leaf_of(name), x.dtype, padded, y, padded.size)
    return y[: x.size]


def spacing(exact, dtype):
    """Distance of neighbouring numbers of `dtype` at `exact`, a float64 array."""
    limits = np.finfo(dtype)
    exponent = np.frexp(exact)[1] - 1
    return np.ldexp(1.0, np.maximum(exponent, limits.minexp) - limits.nmant)


def within(x, name, dtype):
    """The arguments at which the function has a finite value other than its limit, and neither is flushed to zero."""
    low, high = FUNCTIONS[name][2]
    if name in LEAST:
        low = np.log(1.5 * 2.0 ** LEAST[name][np.dtype(dtype).name])
    with np.errstate(invalid="ignore"):
        return kept(x[(x > low) & (x <= high)].astype(dtype))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32_over_its_whole_range_is_within_four_ulp(name):
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 2**32, 400_000, dtype=np.uint32).view(np.float32)
    uniform = rng.uniform(-120, 100, 200_000).astype(np.float32)
    near_one = rng.uniform(-1, 1, 200_000).astype(np.float32)
    x = within(np.concatenate([patterns, uniform, near_one]), name, np.float32)
    with np.errstate(over="ignore"):
        exact = FUNCTIONS[name][0](x.astype(np.float64))
    finite = np.abs(exact) <= np.finfo(np.float32).max
    error = np.abs(apply(name, x) - exact)[finite] / spacing(exact[finite], np.float32)
    assert error.max() <= MAX_ULP, x[finite][error.argmax()]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64_over_its_whole_range_is_within_four_ulp(name):
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 2**64, 4000, dtype=np.uint64).view(np.float64)
    uniform = rng.uniform(-760, 720, 2000)
    near_one = rng.uniform(-1, 1, 2000)
    scattered = 2.0 ** rng.uniform(-40, 8, 2000) * rng.choice([-1, 1], 2000)
    x = within(np.concatenate([patterns, uniform, near_one, scattered]), name, np.float64)
    with mpmath.workprec(120):
        exact = [FUNCTIONS[name][1](mpmath.mpf(value)) for value in x.tolist()]
        rounded = np.array([float(value) for value in exact])
        error = np.array([float(abs(y - e)) for y, e in zip(apply(name, x).tolist(), exact, strict=True)])
    finite = np.isfinite(rounded)
    error = error[finite] / spacing(rounded[finite], np.float64)
    assert error.max() <= MAX_ULP, x[finite][error.argmax()]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", LEAST)
def test_result_below_what_is_kept_is_zero(name, dtype):
    least = 2.0 ** LEAST[name][dtype]
    x = np.linspace(1.5 * np.log(least), np.log(least) + 2, 2001).astype(dtype)
    actual, exact = apply(name, x), FUNCTIONS[name][0](x.astype(np.float64))
    is_lost = actual == 0
    assert (actual[~is_lost] >= least).all()
    assert is_lost[exact < least].all()
    assert not is_lost[exact > 1.5 * least].any()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", LIMITS)
def test_limits_are_exact(name, dtype):
    x, expected = np.array(LIMITS[name], dtype).T
    np.testing.assert_array_equal(apply(name, np.ascontiguousarray(x)), expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ODD)
def test_odd_function_of_the_negative_is_the_negative(name, dtype):
    x = np.random.default_rng(0).normal(0, 3, 1000).astype(dtype)
    np.testing.assert_array_equal(apply(name, -x), -apply(name, x))
    np.testing.assert_array_equal(apply(name, np.array([-INF, -30], dtype)), [-1, -1])
    assert np.abs(apply(name, x)).max() <= 1


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", KEEPS_SIGN_OF_ZERO)
def test_zero_keeps_its_sign(name, dtype):
    y = apply(name, np.array([0.0, -0.0], dtype))
    np.testing.assert_array_equal(y, 0)
    np.testing.assert_array_equal(np.signbit(y), [False, True])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_nan_gives_nan_in_its_lane_only(name, dtype):
    x = np.full(VECTOR_BYTES, 0.5, dtype)
    x[::3] = NAN
    np.testing.assert_array_equal(np.isnan(apply(name, x)), np.isnan(x))


@given(st.floats(-1e3, 1e3, width=32))
def test_value_does_not_depend_on_the_lane(value):
    x = np.full(2 * VECTOR_BYTES, value, np.float32)
    for name in ("expm1", "tanh", "sigmoid"):
        assert np.unique(apply(name, x)).size == 1


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32_code_holds_no_double_arithmetic(name):
    assert not re.search(r"\bdouble\b", leaf_of(name).llvm("float32"))
