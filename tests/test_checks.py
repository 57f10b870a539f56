import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastbp import checks


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3), np.array(3)])
def test_positive_int_integers_become_python_ints(value):
    actual = checks.positive_int(value, "epochs")

    assert actual == 3
    assert type(actual) is int


@pytest.mark.parametrize("value", [0, -1, np.int64(-5)])
def test_positive_int_too_small_raises_value_error(value):
    with pytest.raises(ValueError, match=f"epochs must be a positive integer, got {value}"):
        checks.positive_int(value, "epochs")


@pytest.mark.parametrize("value", [1.0, np.float64(2), True, np.True_, "3", None, [3], np.array([3, 4])])
def test_ints_other_types_raise_type_error(value):
    with pytest.raises(TypeError, match="epochs must be a positive integer, got"):
        checks.positive_int(value, "epochs")
    with pytest.raises(TypeError, match="epochs must be a non-negative integer, got"):
        checks.non_negative_int(value, "epochs")


def test_non_negative_int_accepts_zero_but_no_less():
    assert checks.non_negative_int(0, "step") == 0
    with pytest.raises(ValueError, match="step must be a non-negative integer, got -1"):
        checks.non_negative_int(-1, "step")


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int16(2), np.longdouble(2), Fraction(4, 2)])
def test_finite_float_real_numbers_become_floats(value):
    actual = checks.finite_float(value, "eps")

    assert actual == 2.0
    assert type(actual) is float


@pytest.mark.parametrize("value", [True, np.False_, "1", 1j, None, np.array([1.0]), b"1"])
def test_finite_float_other_types_raise_type_error(value):
    with pytest.raises(TypeError, match="eps must be a finite number > 0, got"):
        checks.finite_float(value, "eps", low=0.0, low_open=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400])
def test_finite_float_not_finite_raises_value_error(value):
    with pytest.raises(ValueError, match="eps must be a finite number, got"):
        checks.finite_float(value, "eps")


@given(st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.booleans())
def test_finite_float_bounds_are_kept(value, low_open, high_open):
    low_ok = value > -1 if low_open else value >= -1
    high_ok = value < 1 if high_open else value <= 1
    options = {"low": -1.0, "high": 1.0, "low_open": low_open, "high_open": high_open}

    if low_ok and high_ok:
        assert checks.finite_float(value, "alpha", **options) == value
    else:
        bounds = f"{'>' if low_open else '>='} -1 and {'<' if high_open else '<='} 1"
        with pytest.raises(ValueError, match=f"alpha must be a finite number {bounds}, got"):
            checks.finite_float(value, "alpha", **options)


def test_flag_bools_only():
    assert checks.flag(np.True_, "shuffle") is True
    with pytest.raises(TypeError, match="shuffle must be a bool, got 1 of type int"):
        checks.flag(1, "shuffle")


@pytest.mark.parametrize("seed", [0, 2**64 - 1, np.uint64(2**64 - 1), np.int32(5)])
def test_seed_of_integers_become_python_ints(seed):
    actual = checks.seed_of(seed)

    assert actual == int(seed)
    assert type(actual) is int


def test_seed_of_none_draws_63_bits():
    seeds = {checks.seed_of(None) for _ in range(100)}

    assert len(seeds) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_of_out_of_range_raises_value_error(seed):
    with pytest.raises(ValueError, match=rf"seed must be in \[0, 2\*\*64\), got {seed}"):
        checks.seed_of(seed)


@pytest.mark.parametrize("seed", [1.0, True, "0", np.random.default_rng(0)])
def test_seed_of_other_types_raise_type_error(seed):
    with pytest.raises(TypeError, match="seed must be an integer or None, got"):
        checks.seed_of(seed)


def test_shown_is_the_repr_cut_to_a_hundred_characters():
    assert checks.shown("a") == "'a'"
    assert checks.shown(list(range(1000))) == repr(list(range(1000)))[:97] + "..."
    assert checks.shown(-(10**5000)) == "a number of too many digits to print"


@pytest.mark.parametrize("value", [-(10**5000), Fraction(-(10**5000), 7)], ids=["int", "Fraction"])
def test_numbers_of_too_many_digits_are_refused_in_words(value):
    with pytest.raises(ValueError, match="eps must be a finite number >= 0, got a number of too many digits to print"):
        checks.finite_float(value, "eps", low=0.0)
    if isinstance(value, int):
        for check in (checks.positive_int, checks.non_negative_int):
            with pytest.raises(ValueError, match=r"epochs must be a .* integer, got a number of too many digits"):
                check(value, "epochs")


@pytest.mark.parametrize("state", ["raise", "warn", "call"])
def test_finite_float_any_number_under_any_errstate(state):
    with np.errstate(all=state, call=lambda *args: pytest.fail("NumPy reported something")):
        for value in (np.float16(6e-8), np.float32(1e-45), 5e-324, np.longdouble("1e-4000")):
            assert checks.finite_float(value, "eps", low=0.0) == float(value)
        with pytest.raises(ValueError, match="eps must be a finite number, got"):
            checks.finite_float(np.longdouble(np.finfo(np.longdouble).max) * 1, "eps")
