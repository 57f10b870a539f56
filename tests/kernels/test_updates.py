"""Each update rule against the naive twin, on rectangles whose surroundings hold NaN and whose ends are guard pages."""

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastbp
import reference
from cases import OPTIMIZERS
from fastbp import optimizers
from fastbp.kernels import updates
from fastbp.kernels.target import lanes
from fastbp.kernels.updates import RULES
from guards import guarded, needs_guard_pages
from leaves import call, coefficients_of

pytestmark = needs_guard_pages

DTYPES = ["float32", "float64"]
RECTANGLES = [
    (1, 1, 1),
    (1, 3, 3),
    (1, 7, 9),
    (2, 8, 8),
    (3, 9, 12),
    (4, 33, 40),
    (5, 1, 3),
    (1, 130, 130),
    (7, 16, 33),
]

# AdamW's update is Adam's.
CASES = [
    (RULES[optimizer.rule].update, optimizer) for optimizer in OPTIMIZERS if not isinstance(optimizer, fastbp.AdamW)
]
NAMES = [repr(optimizer) for _, optimizer in CASES]


def test_every_rule_has_its_cases_and_its_twin():
    assert {optimizer.rule for optimizer in OPTIMIZERS} == set(RULES)
    assert {type(optimizer) for optimizer in OPTIMIZERS} == set(optimizers.OPTIMIZERS)
    assert {kind.__name__ for kind in optimizers.OPTIMIZERS} == set(reference.OPTIMIZERS)


def options_of(optimizer):
    """What the rule itself needs: all decay but that of schedule-free steps happens before it."""
    options = {name: getattr(optimizer, name) for name in type(optimizer).__dataclass_fields__}
    if options.pop("decay_biases", None) is not None:
        del options["weight_decay"]
    return options


class Rectangle:
    """Parameters, gradients and moments on some rows of flat buffers; NaN between the rows."""

    def __init__(self, shape, optimizer, dtype, at_start=False):
        n_rows, n_columns, self.row = shape
        self.shape, self.dtype, self.optimizer = (n_rows, n_columns), np.dtype(dtype), optimizer
        self.inside = self._rows(self.row)
        # The gradient may lie in a buffer of its own, with rows of its own length.
        self.g_row = n_columns + 2
        self.g_inside = self._rows(self.g_row)
        blank = np.where(self.inside, 0, np.nan).astype(dtype)
        self.params, self.state = guarded(blank, at_start), guarded(np.tile(blank, len(optimizer.moments)), at_start)
        self.grads = guarded(np.where(self.g_inside, 0, np.nan).astype(dtype), at_start)
        self.constants = guarded(optimizer.constants, at_start)

    def _rows(self, row):
        n_rows, n_columns = self.shape
        return np.arange((n_rows - 1) * row + n_columns) % row < n_columns

    def update(self, leaf, step=0):
        """One step; returns the flag."""
        coefficients = guarded(coefficients_of(self.optimizer, step))
        return call(leaf, self.dtype, self.params, self.grads, self.state, self.params.size, *self.shape, self.row,
                    self.g_row, self.constants, coefficients)  # fmt: skip

    def assert_outside_is_untouched(self):
        assert np.isnan(self.grads[~self.g_inside]).all()
        for buffer in (self.params, *self.state.reshape(-1, self.params.size)):
            assert np.isnan(buffer[~self.inside]).all()


@pytest.mark.parametrize("at_start", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("leaf", "optimizer"), CASES, ids=NAMES)
def test_update_ten_steps_equal_reference(leaf, optimizer, dtype, at_start):
    twin = reference.OPTIMIZERS[type(optimizer).__name__]
    for shape in RECTANGLES:
        rng = np.random.default_rng(0)
        rectangle, state = Rectangle(shape, optimizer, dtype, at_start), {}
        inside = rectangle.inside
        rectangle.params[inside] = rng.normal(size=inside.sum())
        start = expected = rectangle.params[inside].astype(float)
        for step in range(10):
            grads = rectangle.grads[rectangle.g_inside] = rng.normal(size=inside.sum()).astype(dtype)
            expected = twin(expected, grads.astype(float), state, **options_of(optimizer))
            assert rectangle.update(leaf, step) == 0
        # Rounding of each of ten steps, relative to the way that the parameters have gone.
        tolerance = (1e-13 if dtype == "float64" else 1e-5) * np.abs(expected - start).max()
        rounding = 10 * np.finfo(dtype).eps * np.abs(expected).max()
        np.testing.assert_allclose(rectangle.params[inside], expected, rtol=0, atol=tolerance + rounding)
        rectangle.assert_outside_is_untouched()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("leaf", "optimizer"), CASES, ids=NAMES)
def test_update_in_pieces_gives_the_same_bits(leaf, optimizer, dtype):
    rng = np.random.default_rng(1)
    n = 77
    values, grads = rng.normal(size=(2, n))
    results = []
    for cut in (n, 1, 13, lanes(dtype)):
        params, moments = [], []
        for start in range(0, n, cut):
            piece = slice(start, start + cut)
            rectangle = Rectangle((1, values[piece].size, values[piece].size), optimizer, dtype)
            rectangle.params[:], rectangle.grads[:] = values[piece], grads[piece]
            for step in range(3):
                rectangle.update(leaf, step)
            params.append(rectangle.params)
            moments.append(rectangle.state.reshape(len(optimizer.moments), values[piece].size))
        results.append(np.concatenate(params).tobytes() + np.concatenate(moments, axis=1).tobytes())
    assert len(set(results)) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("leaf", "optimizer"), CASES, ids=NAMES)
def test_update_non_finite_parameter_anywhere_sets_the_flag(leaf, optimizer, dtype, value):
    shape = (2, 2 * lanes(dtype) + 1, 2 * lanes(dtype) + 4)
    rectangle = Rectangle(shape, optimizer, dtype)
    assert rectangle.update(leaf) == 0
    for place in np.flatnonzero(rectangle.inside):
        rectangle.params[place] = value
        assert rectangle.update(leaf) == 1
        rectangle.params[place] = 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("leaf_and_optimizer", [CASES[0], CASES[1], CASES[2]], ids=NAMES[:3])
def test_update_overflowing_step_sets_the_flag(leaf_and_optimizer, dtype):
    leaf, optimizer = leaf_and_optimizer
    rectangle = Rectangle((1, 5, 5), optimizer, dtype)
    largest = np.finfo(dtype).max
    rectangle.params[3], rectangle.grads[3] = -largest, largest
    assert rectangle.update(leaf) == 1


MOMENT_CASES = [case for case in CASES if case[1].moments and case[0] is not updates.adagrad]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("leaf", "optimizer"), MOMENT_CASES, ids=[repr(optimizer) for _, optimizer in MOMENT_CASES])
def test_update_decaying_moments_become_zero_not_subnormal(leaf, optimizer, dtype):
    tiny = np.finfo(dtype).tiny
    rectangle = Rectangle((1, 17, 17), optimizer, dtype)
    rectangle.state[:] = tiny * np.resize([1.0, -1.0], 17 * len(optimizer.moments))
    if leaf is not updates.momentum:
        rectangle.state[:17] = np.abs(rectangle.state[:17])
    for step in range(3):
        rectangle.update(leaf, step)
        moments = np.abs(rectangle.state)
        assert ((moments == 0) | (moments >= tiny)).all()
    assert (rectangle.state[:17] == 0).all()


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rmsprop_centered_constant_gradient_stays_finite(dtype, alpha):
    # The variance vanishes: rounding must not take its root from a negative number.
    optimizer = fastbp.RMSprop(1e-3, alpha=alpha, centered=True)
    rectangle = Rectangle((1, 200, 200), optimizer, dtype)
    rectangle.grads[:] = np.random.default_rng(2).normal(size=200)
    for step in range(300):
        assert rectangle.update(updates.rmsprop, step) == 0
    assert np.isfinite(rectangle.params).all()


@pytest.mark.parametrize("at_start", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_shrink_scales_the_rectangle_only(dtype, at_start):
    rng = np.random.default_rng(3)
    for shape in RECTANGLES:
        rectangle = Rectangle(shape, fastbp.SGD(), dtype, at_start)
        rectangle.params[rectangle.inside] = rng.normal(size=rectangle.inside.sum())
        expected = rectangle.params * np.dtype(dtype).type(0.99)
        call(updates.shrink, dtype, rectangle.params, *rectangle.shape, rectangle.row, 0.99)
        np.testing.assert_array_equal(rectangle.params, expected)
        rectangle.assert_outside_is_untouched()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("leaf", "optimizer"), CASES, ids=NAMES)
def test_update_squares_of_small_gradients_become_zero_not_subnormal(leaf, optimizer, dtype):
    limits = np.finfo(dtype)
    values = np.geomspace(limits.tiny * 1e3, np.sqrt(limits.tiny) * 1e6, 33).astype(dtype)
    rectangle = Rectangle((1, values.size, values.size), optimizer, dtype)
    rectangle.grads[rectangle.g_inside] = values
    for step in range(3):
        assert rectangle.update(leaf, step) == 0
    assert np.isfinite(rectangle.params[rectangle.inside]).all()
    moments = rectangle.state[np.tile(rectangle.inside, len(optimizer.moments))]
    assert not ((moments != 0.0) & (np.abs(moments) < limits.tiny)).any()
    if len(optimizer.moments):
        assert (moments != 0.0).any()  # those of the larger gradients


@pytest.mark.parametrize("rate", [0.1, 0.0, 1e300])
@pytest.mark.parametrize("optimizer", [fastbp.SGD(), fastbp.SGD(momentum=0.5), fastbp.Adagrad(), fastbp.RMSprop()])
def test_coefficients_of_plain_rules_are_the_learning_rate(optimizer, rate):
    np.testing.assert_array_equal(coefficients_of(optimizer, 5, rate), [rate, 0, 0, 0])


def test_coefficients_of_adams_first_step_by_hand():
    actual = coefficients_of(fastbp.Adam(beta1=0.75, beta2=0.9375), 0, 0.5)
    np.testing.assert_array_equal(actual, [0.5 / 0.25, 1.0 / np.sqrt(0.0625), 0.0, 0.0])


def test_coefficients_of_adamw_add_the_decay():
    actual = coefficients_of(fastbp.AdamW(weight_decay=0.1), 3, 0.5)
    np.testing.assert_array_equal(actual[:2], coefficients_of(fastbp.Adam(), 3, 0.5)[:2])
    assert actual[2] == 1.0 - 0.5 * 0.1


def power_twin(beta, t):
    """beta**t by squaring, one multiplication after the other, as NumPy computes them."""
    result, base, t = np.float64(1.0), np.float64(beta), int(t)
    with np.errstate(under="ignore"):
        while t:
            if t % 2:
                result = np.multiply(result, base)
            base, t = np.multiply(base, base), t // 2
    return result if result >= 2.0**-60 else np.float64(0.0)


@given(
    st.one_of(st.sampled_from([0.0, 0.5, 0.9, 0.999, np.nextafter(1.0, 0.0)]), st.floats(0.0, 1.0, exclude_max=True)),
    st.one_of(st.integers(0, 100), st.integers(0, 2**53)),
)
def test_coefficients_of_adam_have_the_bits_of_the_twin(beta, step):
    actual = coefficients_of(fastbp.Adam(beta1=beta, beta2=beta), step, 0.1)
    correction = 1.0 - power_twin(beta, step + 1)
    assert actual[0] == 0.1 / correction
    assert actual[1] == 1.0 / np.sqrt(correction)


@pytest.mark.parametrize("beta", [0.9, 0.999, 0.999999])
def test_bias_corrections_are_right_to_a_few_ulps_at_any_step(beta):
    for step in [*range(60), *range(60, 4000, 97), 10**6, 10**9]:
        with mpmath.workdps(60):
            exact = 1 - mpmath.mpf(beta) ** (step + 1)
            error = abs(mpmath.mpf(1.0 / coefficients_of(fastbp.Adam(beta1=beta), step, 1.0)[0]) / exact - 1)
        # Each squaring doubles the relative error of a power, which is then set against the difference.
        assert error < 2e-16 * (2 + (step + 1) * float(1 - exact) / float(exact))


def test_coefficients_of_adam_after_many_steps_need_no_correction():
    np.testing.assert_array_equal(coefficients_of(fastbp.Adam(), 50_000, 0.1), [0.1, 1.0, 0.0, 0.0])
    np.testing.assert_array_equal(coefficients_of(fastbp.Adam(), 2**62, 0.1), [0.1, 1.0, 0.0, 0.0])
