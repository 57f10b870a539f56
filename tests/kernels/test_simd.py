"""The vector type against NumPy: operators, functions, masked memory and reductions, for every number type."""

import ctypes
import functools
import inspect
import operator
import re

import numba
import numpy as np
import pytest
from numba import types

from fastbp.kernels import simd, target
from guards import guarded, needs_guard_pages

FLOATS = ["float32", "float64"]
INTEGERS = ["int32", "int64", "uint32", "uint64"]
ALL = FLOATS + INTEGERS


@functools.cache
def compiled(body, dtype):
    """`body` as a C function of pointers to numbers of this dtype, and of an integer `n`."""
    pointer = types.CPointer(numba.from_dtype(np.dtype(dtype)))
    arguments = [types.intp if name == "n" else pointer for name in inspect.signature(body).parameters]
    return numba.cfunc(types.void(*arguments), error_model="numpy")(body)


def run(body, x, y=None, z=None, out=None, n=0):
    """What `body`, of any of x, y, z, out and n, writes to `out`, by default one vector of the dtype of x."""
    out = np.full(target.lanes(x.dtype), 77, x.dtype) if out is None else out
    arguments = {"x": x, "y": y, "z": z, "out": out, "n": n}
    values = [n if name == "n" else arguments[name].ctypes.data for name in inspect.signature(body).parameters]
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_ssize_t] * len(values))(compiled(body, x.dtype.name).address)
    function(*values)
    return out


def vector(dtype, seed=0):
    """One vector of numbers, small enough that no product of three overflows, and never zero."""
    rng = np.random.default_rng(seed)
    n, dtype = target.lanes(dtype), np.dtype(dtype)
    if dtype.kind == "f":
        return (rng.normal(size=n) + np.copysign(0.1, rng.normal(size=n))).astype(dtype)
    low = 1 if dtype.kind == "u" else -1000
    values = rng.integers(low, 1000, n)
    return np.where(values == 0, 5, values).astype(dtype)


def binary(function):
    """The body of out = function(x, y) for one vector."""

    def body(x, y, out):
        simd.store(out, 0, function(simd.load(x, 0), simd.load(y, 0)))

    return body


def unary(function):
    """The body of out = function(x) for one vector."""

    def body(x, out):
        simd.store(out, 0, function(simd.load(x, 0)))

    return body


def compared(function):
    """The body of out = 1 where function(x, y), else 0."""

    def body(x, y, out):
        simd.store(out, 0, simd.where(function(simd.load(x, 0), simd.load(y, 0)), simd.splat(x, 1), simd.splat(x, 0)))

    return body


def test_lanes_fill_one_register():
    for dtype in ALL:
        assert target.lanes(dtype) * np.dtype(dtype).itemsize == target.VECTOR_BYTES
        assert target.lanes(numba.from_dtype(np.dtype(dtype))) == target.lanes(dtype)


ARITHMETIC = [
    *((function, ALL) for function in (operator.add, operator.sub, operator.mul)),
    (operator.truediv, FLOATS),
    *((function, INTEGERS) for function in (operator.and_, operator.or_, operator.xor)),
]


@pytest.mark.parametrize(
    ("function", "dtype"), [(f, dtype) for f, dtypes in ARITHMETIC for dtype in dtypes], ids=lambda value: str(value)
)
def test_operators_of_two_vectors_equal_numpy(function, dtype):
    x, y = vector(dtype, 1), vector(dtype, 2)
    np.testing.assert_array_equal(run(binary(function), x, y), function(x, y))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_shift_operators_equal_numpy(dtype):
    x, y = vector(dtype, 1), np.arange(target.lanes(dtype)).astype(dtype)
    for function in (operator.lshift, operator.rshift):
        np.testing.assert_array_equal(run(binary(function), x, y), function(x, y))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_right_shift_of_highest_bit_follows_the_sign(dtype):
    highest = np.full(target.lanes(dtype), np.iinfo(dtype).min if dtype.startswith("i") else np.iinfo(dtype).max, dtype)
    np.testing.assert_array_equal(run(binary(operator.rshift), highest, np.ones_like(highest)), highest >> 1)


@pytest.mark.parametrize("dtype", ALL)
def test_unary_operators_equal_numpy(dtype):
    x = vector(dtype)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(run(unary(operator.neg), x), -x)
    if dtype in INTEGERS:
        np.testing.assert_array_equal(run(unary(operator.invert), x), ~x)


def test_negation_flips_the_sign_of_zero():
    assert np.signbit(run(unary(operator.neg), np.zeros(target.lanes("float32"), np.float32))).all()


COMPARISONS = [operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne]


@pytest.mark.parametrize("function", COMPARISONS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("dtype", ALL)
def test_comparisons_equal_numpy(dtype, function):
    x = vector(dtype, 3)
    y = np.where(np.arange(x.size) % 3 == 0, x, vector(dtype, 4))
    if dtype in INTEGERS:  # the highest bit is a sign or the largest number
        x[-1] = np.iinfo(dtype).min if dtype.startswith("i") else np.iinfo(dtype).max
    np.testing.assert_array_equal(run(compared(function), x, y), function(x, y))


@pytest.mark.parametrize("function", COMPARISONS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("dtype", FLOATS)
def test_comparisons_with_nan_and_signed_zero_follow_ieee(dtype, function):
    pairs = [(np.nan, 1), (1, np.nan), (np.nan, np.nan), (0.0, -0.0), (np.inf, np.inf), (-np.inf, np.inf)]
    for x_value, y_value in pairs:
        x, y = np.full(target.lanes(dtype), x_value, dtype), np.full(target.lanes(dtype), y_value, dtype)
        np.testing.assert_array_equal(run(compared(function), x, y), function(x, y).astype(dtype))


@pytest.mark.parametrize("dtype", ALL)
def test_numbers_take_the_dtype_of_the_vector(dtype):
    def body(x, out, n):
        simd.store(out, 0, 3 + simd.load(x, 0) * 2 - n)

    x = vector(dtype)
    np.testing.assert_array_equal(run(body, x, n=4), (3 + x * 2 - 4).astype(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_float_literals_are_rounded_to_the_dtype(dtype):
    def body(x, out):
        simd.store(out, 0, simd.load(x, 0) * 0.1 + 1.7)

    x = vector(dtype)
    np.testing.assert_array_equal(run(body, x), x * x.dtype.type(0.1) + x.dtype.type(1.7))


def test_float32_operators_hold_no_double_arithmetic():
    def body(x, out):
        simd.store(out, 0, simd.fma(simd.load(x, 0), 0.3, 1.0) / (simd.load(x, 0) * 0.1 + 2))

    pointer = types.CPointer(types.float32)
    llvm = numba.cfunc(types.void(pointer, pointer), error_model="numpy")(body).inspect_llvm()
    assert "<" + str(target.lanes("float32")) + " x float>" in llvm
    assert re.search(r"\bdouble\b", llvm) is None


@pytest.mark.parametrize("dtype", FLOATS)
def test_fma_rounds_once_where_the_target_can(dtype):
    def body(x, y, z, out):
        simd.store(out, 0, simd.fma(simd.load(x, 0), simd.load(y, 0), simd.load(z, 0)))

    one = np.ones(target.lanes(dtype), dtype)
    eps = np.finfo(dtype).eps
    x, y, z = one + eps, one - eps, -one  # (1 + e) * (1 - e) - 1 = -e**2, which is lost where the product is rounded
    expected = -(eps**2) if target.HAS_FMA else 0
    np.testing.assert_array_equal(run(body, x, y, z), expected)
    x, y, z = (vector(dtype, seed) for seed in range(3))
    tolerance = eps * (np.abs(x * y) + np.abs(z)).max()
    np.testing.assert_allclose(run(body, x, y, z), x.astype(float) * y + z, rtol=0, atol=tolerance)


FUNCTIONS = [
    ("sqrt", np.sqrt, [0.0, 2.0, 1e-30, np.inf]),
    ("absolute", np.abs, [-0.0, -1.5, 2.0, -np.inf]),
    ("floor", np.floor, [-0.5, 1.5, -3.0, 7.999]),
    ("round_even", np.rint, [0.5, 1.5, 2.5, -2.5]),
]


@pytest.mark.parametrize(("name", "expected", "values"), FUNCTIONS, ids=[row[0] for row in FUNCTIONS])
@pytest.mark.parametrize("dtype", FLOATS)
def test_functions_of_one_vector_equal_numpy(dtype, name, expected, values):
    x = np.resize(np.array(values, dtype), target.lanes(dtype))
    actual = run(unary(getattr(simd, name)), x)
    np.testing.assert_array_equal(actual, expected(x))
    np.testing.assert_array_equal(np.signbit(actual), np.signbit(expected(x)))


@pytest.mark.parametrize("dtype", [*FLOATS, "int32", "int64"])
def test_minimum_and_maximum_equal_numpy(dtype):
    x, y = vector(dtype, 5), vector(dtype, 6)
    np.testing.assert_array_equal(run(binary(simd.minimum), x, y), np.minimum(x, y))
    np.testing.assert_array_equal(run(binary(simd.maximum), x, y), np.maximum(x, y))


@pytest.mark.parametrize("dtype", FLOATS)
def test_minimum_and_maximum_of_nan_give_the_second(dtype):
    nan, one = np.full(target.lanes(dtype), np.nan, dtype), np.ones(target.lanes(dtype), dtype)
    for function in (simd.minimum, simd.maximum):
        np.testing.assert_array_equal(run(binary(function), nan, one), one)
        np.testing.assert_array_equal(run(binary(function), one, nan), nan)


@pytest.mark.parametrize("dtype", FLOATS)
def test_copysign_equals_numpy(dtype):
    x, y = vector(dtype, 1), vector(dtype, 2)
    y[0] = -0.0
    np.testing.assert_array_equal(run(binary(simd.copysign), x, y), np.copysign(x, y))


@pytest.mark.parametrize("dtype", FLOATS)
def test_is_finite_tells_infinities_and_nan(dtype):
    def body(x, out):
        simd.store(out, 0, simd.where(simd.is_finite(simd.load(x, 0)), simd.splat(x, 1), simd.splat(x, 0)))

    largest, smallest = np.finfo(dtype).max, np.finfo(dtype).smallest_subnormal
    for value in (np.nan, np.inf, -np.inf, largest, -largest, smallest, 0.0, 1.0):
        x = np.full(target.lanes(dtype), value, dtype)
        np.testing.assert_array_equal(run(body, x), np.isfinite(x).astype(dtype))


def flushed(x, least):
    """x, zero where it is less in magnitude; NaN stays."""
    return np.where(np.abs(x) < least, 0, x).astype(x.dtype)


def around(dtype, exponent):
    """Numbers of both signs on both sides of a power of two, subnormals, zeros, infinities and NaN."""
    least = np.array(2.0**exponent, dtype)
    below = np.nextafter(least, np.array(0, dtype))
    tiny, small = np.finfo(dtype).tiny, np.finfo(dtype).smallest_subnormal
    positive = [least, below, 1.5 * least, 0.75 * least, tiny, tiny / 2, small, 0.0, 1.0, np.finfo(dtype).max, np.inf]
    values = np.array([*positive, *np.negative(positive), np.nan], dtype)
    return np.pad(values, (0, -values.size % target.lanes(dtype)))


@pytest.mark.parametrize("dtype", FLOATS)
def test_flush_leaves_zero_or_at_least_the_margin(dtype):
    exponent = {"float32": -119, "float64": -1015}[dtype]
    x = around(dtype, exponent)
    for start in range(0, x.size, target.lanes(dtype)):
        part = x[start : start + target.lanes(dtype)]
        actual = run(unary(simd.flush), part)
        np.testing.assert_array_equal(actual, flushed(part, 2.0**exponent))
        assert not np.signbit(actual[actual == 0]).any()

    def least(x, out):
        simd.store(out, 0, simd.splat(x, simd.least_kept(x)))

    np.testing.assert_array_equal(run(least, part), 2.0**exponent)


@pytest.mark.parametrize("dtype", FLOATS)
def test_flush_factor_leaves_numbers_whose_products_are_normal(dtype):
    exponent = {"float32": -63, "float64": -511}[dtype]
    x = around(dtype, exponent)
    assert 2.0**exponent * 2.0**exponent == np.finfo(dtype).tiny
    for start in range(0, x.size, target.lanes(dtype)):
        part = x[start : start + target.lanes(dtype)]
        expected = flushed(part, 2.0**exponent)
        np.testing.assert_array_equal(run(unary(simd.flush_factor), part), expected)
        factor = np.full_like(part, 3)
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(run(binary(simd.flushed_product), part, factor), expected * factor)

    def root(x, out):
        simd.store(out, 0, simd.splat(x, simd.root_of_tiny(x)))

    np.testing.assert_array_equal(run(root, part), 2.0**exponent)


@pytest.mark.parametrize("dtype", FLOATS)
def test_smallest_normal_is_numpys(dtype):
    def smallest(x, out):
        simd.store(out, 0, simd.splat(x, simd.smallest_normal(x)))

    np.testing.assert_array_equal(run(smallest, vector(dtype)), np.finfo(dtype).tiny)


@pytest.mark.parametrize("dtype", FLOATS)
def test_bitcast_and_convert_there_and_back_equal_numpy(dtype):
    def body(x, out):
        bits_plus_one = simd.bitcast(simd.bitcast(simd.load(x, 0)) + 1)
        simd.store(out, 0, bits_plus_one + simd.convert(simd.convert(simd.load(x, 0) * 100)))

    x = vector(dtype)
    expected = np.nextafter(x, np.copysign(np.inf, x)) + np.trunc(x * x.dtype.type(100))
    np.testing.assert_array_equal(run(body, x), expected)


@pytest.mark.parametrize("dtype", ALL)
def test_lane_numbers_count_from_zero(dtype):
    def body(x, out):
        simd.store(out, 0, simd.lane_numbers(x))

    np.testing.assert_array_equal(run(body, vector(dtype)), np.arange(target.lanes(dtype)))


def test_by_dtype_chooses_the_constant():
    constant = simd.by_dtype(1.25, 2.5)

    def body(x, out):
        simd.store(out, 0, simd.load(x, 0) * constant(x))

    for dtype, expected in (("float32", 1.25), ("float64", 2.5)):
        np.testing.assert_array_equal(run(body, np.ones(target.lanes(dtype), dtype)), expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n_coefficients", [1, 2, 8, 9, 14, 15])
def test_polynomial_any_length_equals_polyval(n_coefficients, dtype):
    coefficients = tuple(float(c) for c in np.random.default_rng(7).normal(size=n_coefficients))
    x = vector(dtype) / 4
    expected = np.polynomial.polynomial.polyval(x.astype(float), coefficients)
    actual = run(unary(simd.polynomial(coefficients, coefficients)), x)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=20 * np.finfo(dtype).eps)


# Reductions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ALL)
def test_sum_lanes_adds_the_upper_half_to_the_lower(dtype):
    def body(x, out):
        out[0] = simd.sum_lanes(simd.load(x, 0))

    x = vector(dtype)
    expected = x.copy()
    while expected.size > 1:
        half = expected.size // 2
        expected = expected[:half] + expected[half:]
    assert run(body, x)[0] == expected[0]


def test_any_lane_sees_each_lane():
    def body(x, out):
        out[0] = 1 if simd.any_lane(simd.load(x, 0) != 0) else 0

    n = target.lanes("float32")
    assert run(body, np.zeros(n, np.float32))[0] == 0
    for lane in range(n):
        assert run(body, np.eye(n, dtype=np.float32)[lane])[0] == 1


def test_masks_combine_as_numpys():
    def body(x, y, out):
        first, second = simd.load(x, 0) > 0, simd.load(y, 0) > 0
        value = simd.where(first & second, simd.splat(x, 1), simd.splat(x, 0)) + simd.where(
            first | second, simd.splat(x, 2), simd.splat(x, 0)
        )
        value += simd.where(first ^ second, simd.splat(x, 4), simd.splat(x, 0)) + simd.where(
            ~first, simd.splat(x, 8), simd.splat(x, 0)
        )
        first |= second
        simd.store(out, 0, value + simd.where(first, simd.splat(x, 16), simd.splat(x, 0)))

    n = target.lanes("float32")
    x, y = np.resize(np.array([1, 1, -1, -1], np.float32), n), np.resize(np.array([1, -1, 1, -1], np.float32), n)
    a, b = x > 0, y > 0
    expected = (a & b) + 2 * (a | b) + 4 * (a ^ b) + 8.0 * ~a + 16 * (a | b)
    np.testing.assert_array_equal(run(body, x, y), expected)


# Memory ---------------------------------------------------------------------------------------------------------------


def copier(load_name, store_name):
    load, store = getattr(simd, load_name), getattr(simd, store_name)

    def body(x, out, n):
        store(out, 0, load(x, 0, n), n)

    return body


@needs_guard_pages
@pytest.mark.parametrize("at_start", [False, True])
@pytest.mark.parametrize("names", [("load_first", "store_first"), ("load_upto", "store_upto")], ids=["first", "upto"])
@pytest.mark.parametrize("dtype", ALL)
def test_partial_load_and_store_touch_the_first_elements_only(dtype, names, at_start):
    body = copier(*names)
    width = target.lanes(dtype)
    for n in range(1, width + 1):
        x, out = guarded(vector(dtype)[:n], at_start), guarded(np.full(n, 77, dtype), at_start)
        run(body, x, out=out, n=n)
        np.testing.assert_array_equal(out, x)
        out = np.full(2 * width, 77, dtype)
        run(body, vector(dtype), out=out, n=n)
        assert (out[n:] == 77).all()


@needs_guard_pages
@pytest.mark.parametrize("names", [("load_first", "store_first"), ("load_upto", "store_upto")], ids=["first", "upto"])
@pytest.mark.parametrize("dtype", ALL)
def test_partial_load_and_store_of_more_than_a_vector_move_one_vector(dtype, names):
    width = target.lanes(dtype)
    x, out = np.arange(2 * width).astype(dtype), np.full(2 * width, 77, dtype)
    run(copier(*names), x, out=out, n=2 * width)
    np.testing.assert_array_equal(out[:width], x[:width])
    assert (out[width:] == 77).all()


@pytest.mark.parametrize("load_name", ["load_first", "load_upto"])
@pytest.mark.parametrize("dtype", ALL)
def test_partial_load_zeroes_the_other_lanes(dtype, load_name):
    load = getattr(simd, load_name)

    def body(x, out, n):
        simd.store(out, 0, load(x, 0, n))

    x = vector(dtype)
    for n in range(x.size + 1):
        np.testing.assert_array_equal(run(body, x, n=n), np.where(np.arange(x.size) < n, x, 0))


@pytest.mark.parametrize("dtype", ALL)
def test_first_lanes_masks_the_first(dtype):
    def body(x, out, n):
        simd.store(out, 0, simd.where(simd.first_lanes(simd.load(x, 0), n), simd.load(x, 0), simd.load(x, 0) * 0))

    x = vector(dtype)
    for n in range(-1, x.size + 2):
        np.testing.assert_array_equal(run(body, x, n=n), np.where(np.arange(x.size) < n, x, 0))


@pytest.mark.parametrize("dtype", ALL)
def test_load_and_store_need_no_alignment(dtype):
    def body(x, out, n):
        simd.store(out, 1, simd.load(x, n))

    width = target.lanes(dtype)
    x, out = np.arange(width + 3).astype(dtype), np.full(width + 2, 77, dtype)
    run(body, x, out=out, n=3)
    np.testing.assert_array_equal(out[1:-1], x[3:])
    assert out[0] == out[-1] == 77


def test_raw_pointers_move_and_return():
    def body(x, out, n):
        third = simd.offset(x, 2)
        out[0] = simd.pointer_at(simd.address_of(third) + 4 * n, x)[0]

    assert run(body, np.arange(16, dtype=np.float32), n=3)[0] == 5
