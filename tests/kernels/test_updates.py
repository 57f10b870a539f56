"""Each update rule against the naive twin, on rectangles whose surroundings hold NaN and whose ends are guard pages."""

import numpy as np
import pytest

import fastbp
import reference
from fastbp.kernels import updates
from fastbp.kernels.target import lanes
from guards import guarded, needs_guard_pages
from leaves import call

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

CASES = [
    (updates.sgd, fastbp.SGD(0.1)),
    (updates.momentum, fastbp.SGD(0.1, momentum=0.9)),
    (updates.momentum, fastbp.SGD(0.1, momentum=0.9, nesterov=True)),
    (updates.adagrad, fastbp.Adagrad(0.1)),
    (updates.rmsprop, fastbp.RMSprop(0.01)),
    (updates.rmsprop, fastbp.RMSprop(0.01, momentum=0.9)),
    (updates.rmsprop, fastbp.RMSprop(0.01, centered=True)),
    (updates.rmsprop, fastbp.RMSprop(0.01, alpha=0.8, eps=1e-3, momentum=0.5, centered=True)),
    (updates.adam, fastbp.Adam(0.01)),
    (updates.adam, fastbp.Adam(0.01, beta1=0.0, beta2=0.5, eps=1e-2)),
]
NAMES = [repr(optimizer) for _, optimizer in CASES]


def options_of(optimizer):
    return {name: getattr(optimizer, name) for name in type(optimizer).__dataclass_fields__}


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
        self.params, self.state = guarded(blank, at_start), guarded(np.tile(blank, optimizer.n_moments), at_start)
        self.grads = guarded(np.where(self.g_inside, 0, np.nan).astype(dtype), at_start)
        self.constants = guarded(optimizer.constants, at_start)

    def _rows(self, row):
        n_rows, n_columns = self.shape
        return np.arange((n_rows - 1) * row + n_columns) % row < n_columns

    def update(self, leaf, step=0):
        """One step; returns the flag."""
        rates = np.array([self.optimizer.learning_rate])
        coefficients = guarded(self.optimizer.coefficients(rates, step))
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
            moments.append(rectangle.state.reshape(optimizer.n_moments, values[piece].size))
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


MOMENT_CASES = [case for case in CASES if case[1].n_moments and case[0] is not updates.adagrad]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("leaf", "optimizer"), MOMENT_CASES, ids=[repr(optimizer) for _, optimizer in MOMENT_CASES])
def test_update_decaying_moments_become_zero_not_subnormal(leaf, optimizer, dtype):
    tiny = np.finfo(dtype).tiny
    rectangle = Rectangle((1, 17, 17), optimizer, dtype)
    rectangle.state[:] = tiny * np.resize([1.0, -1.0], 17 * optimizer.n_moments)
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
    moments = rectangle.state[np.tile(rectangle.inside, optimizer.n_moments)]
    assert not ((moments != 0.0) & (np.abs(moments) < limits.tiny)).any()
    if optimizer.n_moments:
        assert (moments != 0.0).any()  # those of the larger gradients
