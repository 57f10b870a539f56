"""Sums over a million inputs, outputs or samples are as right in float32 as short ones.

All terms of a sum are alike: a plain chain of additions then rounds in the same direction for thousands of terms.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest

import fastbp
import reference
from cases import PAIRS
from fastbp import plan
from ways import backward_way, forward_way, gradient_way, prediction_plan, training_plan

MILLION = 1 << 20
RTOL = 1e-5


def params_of(sizes, weights, bias):
    """Float32 parameters: `weights` holds a matrix or number for each layer; all biases are equal."""
    parts = []
    for (n_in, n_out), w in zip(pairwise(sizes), weights, strict=True):
        parts += [np.broadcast_to(np.float32(w), (n_in, n_out)).ravel(), np.full(n_out, bias, np.float32)]
    return np.concatenate(parts)


def positive(rng, *shape):
    return rng.uniform(0.1, 1, shape).astype(np.float32)


class Path(NamedTuple):
    """A way to multiply: how many terms and samples, and how many columns of the weights are taken."""

    n_terms: int
    n_samples: int
    n_rows: int


FORWARD = {
    "row": Path(MILLION, 1, 5),
    "few": Path(MILLION // 16, 2, 64),
    "panels": Path(MILLION, 3, 3),
    "packed": Path(MILLION // 16, 20, 17),
}


@pytest.mark.parametrize("path", FORWARD)
def test_predict_of_a_million_inputs_is_right(path):
    n_in, n_samples, n_out = FORWARD[path]
    rng = np.random.default_rng(0)
    x, w = positive(rng, n_samples, 1), positive(rng, 1, n_out)
    model = fastbp.MLP([n_in, n_out], init=params_of((n_in, n_out), [w], 0.5))
    assert forward_way(prediction_plan(model, n_samples).ways[0], n_samples) == path
    expected = n_in * x.astype(float) @ w.astype(float) + 0.5
    np.testing.assert_allclose(model.predict(np.broadcast_to(x, (n_samples, n_in))), expected, rtol=RTOL)


def test_predict_of_many_units_that_are_half_of_them_off_is_right():
    n_hidden, n_samples, n_out = MILLION // 16, 40, 193
    rng = np.random.default_rng(1)
    x, w = positive(rng, n_samples, 1), positive(rng, 1, n_out)
    signs = np.where(np.arange(n_hidden) % 2 == 0, 1, -1)
    sizes = (1, n_hidden, n_out)
    model = fastbp.MLP(sizes, "relu", init=params_of(sizes, [signs, w], 0))
    assert forward_way(prediction_plan(model, n_samples).ways[1], n_samples) == "lists"
    np.testing.assert_allclose(model.predict(x), n_hidden / 2 * x.astype(float) @ w.astype(float), rtol=RTOL)


BACKWARD = {
    "column": Path(MILLION // 2, 1, 3),
    "panels": Path(MILLION // 2, 3, 3),
    "packed": Path(MILLION // 16, 20, 17),
    "lists": Path(MILLION // 32, 40, 193),
}


@pytest.mark.parametrize("path", BACKWARD)
def test_gradient_behind_many_outputs_is_right(path):
    n_out, n_samples, n_hidden = BACKWARD[path]
    rng = np.random.default_rng(2)
    x, w = positive(rng, n_samples, 1), positive(rng, n_hidden, 1)
    # Half of the outputs are off where there is a ReLU.
    signs, output = ([1, -1], "relu") if path == "lists" else ([1, 1], "identity")
    sizes, few = (1, n_hidden, n_out), (1, n_hidden, 2)
    model = fastbp.MLP(sizes, "relu", output, init=params_of(sizes, [0.7, w * np.tile(signs, n_out // 2)], 0.25))
    assert backward_way(training_plan(model, n_samples).ways[1], n_samples, n_samples) == path
    y = np.float32(-1)
    loss, grad = model.loss_and_grad(x, np.broadcast_to(y, (n_samples, n_out)))
    params = params_of(few, [0.7, w * np.array(signs)], 0.25).astype(float)
    expected_loss, expected_grad = reference.loss_and_grad(
        few, "relu", output, "mse", params, x.astype(float), np.full((n_samples, 2), -1.0)
    )
    # The mean over the outputs of many that are alike is that over two.
    assert loss == pytest.approx(expected_loss, rel=RTOL)
    np.testing.assert_allclose(grad[: 2 * n_hidden], expected_grad[: 2 * n_hidden], rtol=RTOL)


def alike(array, n):
    """The same sample n times."""
    return np.broadcast_to(array, (n, *array.shape[1:]))


GRADIENTS = {
    "small": ((2, 3, 6), "tanh", True),
    "dense": ((2, 7, 6), "tanh", False),
    "narrow": ((2, 3, 1), "tanh", False),
    "lists": ((2, 193, 40, 5), "relu", False),
}


@pytest.mark.parametrize("is_random", [False, True])
@pytest.mark.parametrize("path", ["small", "dense", "narrow"])
def test_gradient_of_a_million_samples_is_right(path, is_random, monkeypatch):
    sizes, activation, is_small = GRADIENTS[path]
    if not is_small:
        monkeypatch.setattr(plan, "SMALL_NETWORK", 0)
    rng = np.random.default_rng(3)
    n = MILLION if is_random else 1
    x, y = positive(rng, n, 2), -1 - positive(rng, n, sizes[-1])
    params = rng.uniform(0.1, 0.3, reference.n_params(sizes)).astype(np.float32)
    model = fastbp.MLP(sizes, activation, init=params)
    assert training_plan(model, MILLION).is_small == is_small
    assert is_small or gradient_way(training_plan(model, MILLION).ways[-1], MILLION) == path
    loss, grad = model.loss_and_grad(alike(x, MILLION), alike(y, MILLION)) if n == 1 else model.loss_and_grad(x, y)
    pieces = [
        reference.loss_and_grad(sizes, activation, "identity", "mse", params.astype(float), *piece)
        for piece in zip(np.split(x.astype(float), min(n, 16)), np.split(y.astype(float), min(n, 16)), strict=True)
    ]
    expected_loss, expected_grad = (np.mean(values, axis=0) for values in zip(*pieces, strict=True))
    assert loss == pytest.approx(expected_loss, rel=RTOL)
    np.testing.assert_allclose(grad, expected_grad, rtol=RTOL)


@pytest.mark.parametrize("n_off", [0, 30])
def test_gradient_of_many_samples_behind_a_relu_is_right(n_off, monkeypatch):
    monkeypatch.setattr(plan, "SMALL_NETWORK", 0)
    n, sizes = MILLION // 8, (2, 193, 40, 1)
    rng = np.random.default_rng(4)
    x, y = positive(rng, 1, 2), -positive(rng, 1, 1)
    params = rng.uniform(0.1, 0.3, reference.n_params(sizes)).astype(np.float32)
    reference.unpack(sizes, params)[1][0][:, :n_off] *= -1
    model = fastbp.MLP(sizes, "relu", init=params)
    assert gradient_way(training_plan(model, n).ways[1], n) == "lists"
    loss, grad = model.loss_and_grad(alike(x, n), alike(y, n))
    arrays = (array.astype(float) for array in (params, x, y))
    expected_loss, expected_grad = reference.loss_and_grad(sizes, "relu", "identity", "mse", *arrays)
    assert loss == pytest.approx(expected_loss, rel=RTOL)
    np.testing.assert_allclose(grad, expected_grad, rtol=RTOL)


@pytest.mark.parametrize(("loss", "output"), [pair for pair in PAIRS if pair[1] in ("identity", "sigmoid", "softmax")])
def test_loss_and_gradient_of_a_million_samples_are_right_for_every_loss(loss, output):
    sizes = (2, 3)
    rng = np.random.default_rng(5)
    x, y = positive(rng, 1, 2), positive(rng, 1, 3)
    if loss == "cross_entropy":
        y = np.array([1])
    elif loss == "binary_cross_entropy":
        y = np.array([[0, 1, 1]], np.float32)
    elif loss == "hinge":
        y = -np.ones((1, 3), np.float32)
    params = positive(rng, reference.n_params(sizes))
    model = fastbp.MLP(sizes, output=output, loss=loss, init=params)
    expected_loss, expected_grad = reference.loss_and_grad(
        sizes, "tanh", output, loss, params.astype(float), x.astype(float), y
    )
    many = alike(x, MILLION), alike(y, MILLION)
    actual_loss, grad = model.loss_and_grad(*many)
    assert actual_loss == model.loss(*many) == pytest.approx(expected_loss, rel=RTOL)
    np.testing.assert_allclose(grad, expected_grad, rtol=RTOL)
