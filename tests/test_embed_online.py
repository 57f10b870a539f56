"""Replay buffer and normalizer: what they hold, from compiled code and from Python."""

import copy
import pickle

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from fastbp import embed
from problems import bits


@njit
def push(buffer, x, y):
    return embed.replay_push(buffer, x, y)


@njit
def sample(buffer, x_batch, y_batch):
    return embed.replay_sample(buffer, x_batch, y_batch)


@njit
def update(normalizer, x):
    return embed.normalizer_update(normalizer, x)


@njit
def apply(normalizer, x, out):
    return embed.normalizer_apply(normalizer, x, out)


def draw(buffer, n, n_in, n_out, dtype="float32"):
    x, y = np.empty((n, n_in), dtype), np.empty((n, n_out), dtype)
    assert sample(buffer, x, y) == embed.OK
    return x, y


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_buffer_keeps_the_last_samples_and_draws_all_of_them_alike(dtype):
    buffer = embed.replay_buffer(10, 3, 2, seed=0, dtype=dtype)
    numbers = np.arange(25.0)
    x, y = numbers[:, np.newaxis] + [0.0, 0.25, 0.5], numbers[:, np.newaxis] * [1.0, 2.0]
    for i in range(5):
        assert push(buffer, x[i], y[i]) == embed.OK
    drawn_x, drawn_y = draw(buffer, 2000, 3, 2, dtype)
    assert set(drawn_x[:, 0]) == set(numbers[:5])
    assert push(buffer, x[5:], y[5:]) == embed.OK
    drawn_x, drawn_y = draw(buffer, 20_000, 3, 2, dtype)
    assert set(drawn_x[:, 0]) == set(numbers[15:])
    np.testing.assert_array_equal(drawn_x - drawn_x[:, :1], np.broadcast_to([0.0, 0.25, 0.5], drawn_x.shape))
    np.testing.assert_array_equal(drawn_y, drawn_x[:, :1] * [1.0, 2.0])
    counts = np.bincount(drawn_x[:, 0].astype(int))[15:]
    assert ((counts - 2000) ** 2 / 2000).sum() < 30  # chi-squared of 9 degrees of freedom: beyond it once in 2000


def test_draws_are_those_of_the_seed_and_of_copies():
    buffers = [embed.replay_buffer(50, 2, 1, seed=seed) for seed in (3, 3, 4)]
    x, y = np.random.default_rng(0).standard_normal((60, 2)), np.zeros((60, 1))
    for buffer in buffers:
        push(buffer, x, y)
    buffers += [copy.deepcopy(buffers[0]), pickle.loads(pickle.dumps(buffers[0])), buffers[0].copy()]
    draws = [bits(draw(buffer, 30, 2, 1)[0]) for buffer in buffers]
    assert len(set(draws[:2] + draws[3:])) == 1
    assert draws[2] != draws[0]
    assert bits(draw(buffers[0], 30, 2, 1)[0]) == bits(draw(buffers[3], 30, 2, 1)[0]) != draws[0]


def test_wrong_shapes_empty_buffers_and_parts_are_statuses():
    buffer, x, y = embed.replay_buffer(4, 3, 2, seed=0), np.full((5, 3), 7.0), np.full((5, 2), 7.0)
    cases = [
        (sample(buffer, x, y), embed.BATCH),
        (push(buffer, x[:, :2], y), embed.X_SHAPE),
        (push(buffer, x[0], y[0, :1]), embed.Y_SHAPE),
        (push(buffer, x, y[:4]), embed.Y_SHAPE),
        (push(buffer[1:], x, y), embed.MOVED),
        (push(buffer[:7], x, y), embed.MOVED),
        (push(buffer[:0], x, y), embed.MOVED),
        (push(buffer, x, y), embed.OK),
        (sample(buffer, x[:, :2], y), embed.X_SHAPE),
        (sample(buffer, x, y[1:]), embed.Y_SHAPE),
        (sample(buffer[2:], x, y), embed.MOVED),
        (sample(buffer, x[:0], y[:0]), embed.OK),
    ]
    assert [status for status, _ in cases] == [expected for _, expected in cases]
    assert (x == 7).all()


@given(st.integers(1, 60), st.integers(1, 4), st.integers(0, 2**32 - 1), st.booleans())
def test_normalizer_has_mean_and_standard_deviation(n_samples, n, seed, by_rows):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n_samples, n)) * 10 + 1000
    x[:, 0] = 3.0  # constant
    normalizer, out = embed.normalizer(n), np.empty((n_samples, n))
    for part in [x] if by_rows else list(x):
        assert update(normalizer, part) == embed.OK
    assert apply(normalizer, x, out) == embed.OK
    scale = x.std(axis=0)
    scale[scale < 1e-9] = 1.0
    np.testing.assert_allclose(out, (x - x.mean(axis=0)) / scale, atol=1e-8)
    row = np.empty(n, np.float32)
    assert apply(normalizer, x[0], row) == embed.OK
    np.testing.assert_allclose(row, out[0], rtol=1e-6, atol=1e-6)
    assert apply(normalizer, x, x) == embed.OK  # in place
    assert bits(x) == bits(out)


def test_normalizer_without_samples_changes_nothing_and_wrong_shapes_are_statuses():
    normalizer, x, out = embed.normalizer(2), np.array([[3.0, -1.0]]), np.empty((1, 2))
    assert apply(normalizer, x, out) == embed.OK
    np.testing.assert_array_equal(out, x)
    assert update(normalizer, x[0, :1]) == update(normalizer, x[:, :1]) == embed.X_SHAPE
    assert apply(normalizer, x, out[:, :1]) == apply(normalizer, x[0], out[0, :1]) == embed.OUT_SHAPE
    assert normalizer.view(float).sum() == 0


def test_wrong_types_are_typing_errors_that_name_the_argument():
    buffer, normalizer, x = embed.replay_buffer(4, 3, 3, seed=0), embed.normalizer(3), np.ones((2, 3))
    read_only = buffer.view()
    read_only.flags.writeable = False
    for function, arguments, message in [
        (push, (x, x, x), r"embed.replay_push: the first argument must be made by embed.replay_buffer\(\)"),
        (push, (read_only, x, x), r"embed.replay_push: the first argument must be made by embed.replay_buffer\(\)"),
        (push, (buffer, x, x[0]), "embed.replay_push: y must have as many dimensions as x"),
        (push, (buffer, x, x.astype(complex)), "embed.replay_push: y must be an array of numbers"),
        (
            sample,
            (buffer, x, x.astype(int)),
            "embed.replay_sample: y_batch must be a writable array of float32 or float64",
        ),
        (sample, (buffer, x[0], x[0]), "embed.replay_sample: x_batch must be an array of numbers"),
        (update, (buffer, x), r"embed.normalizer_update: the first argument must be made by embed.normalizer\(\)"),
        (apply, (normalizer, x, x.astype(int)), "embed.normalizer_apply: out must be a writable array"),
    ]:
        with pytest.raises(numba.TypingError, match=message):
            function(*arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: embed.replay_buffer(0, 1, 1, seed=0), "capacity must be a positive integer"),
        (lambda: embed.replay_buffer(1, 1, 0, seed=0), "n_out must be a positive integer"),
        (lambda: embed.replay_buffer(1, 1, 1, seed=-1), "seed must be"),
        (lambda: embed.replay_buffer(1, 1, 1, seed=0, dtype="int8"), "dtype must be 'float32' or 'float64'"),
        (lambda: embed.normalizer(0), "n must be a positive integer"),
    ],
)
def test_bad_arguments_are_errors_that_name_them(make, message):
    with pytest.raises(ValueError, match=message):
        make()
