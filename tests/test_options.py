"""Activations and losses with an option, by text and by object."""

import math
import pickle

import numpy as np
import pytest

import fastbp
from fastbp import activations, losses
from shown import shown

OPTIONS = [
    (activations.LeakyReLU(0.2), "leaky_relu(0.2)", lambda torch, z: torch.nn.functional.leaky_relu(z, 0.2)),
    (activations.LeakyReLU(0.0), "leaky_relu(0.0)", lambda torch, z: torch.relu(z)),
    (activations.ELU(0.5), "elu(0.5)", lambda torch, z: torch.nn.functional.elu(z, 0.5)),
    ("mish", "mish", lambda torch, z: torch.nn.functional.mish(z)),
    ("hard_tanh", "hard_tanh", lambda torch, z: torch.nn.functional.hardtanh(z)),
]


def pinball(torch, output, y, q):
    return torch.maximum(q * (y - output), (q - 1) * (y - output)).mean()


LOSSES = [
    (losses.Huber(2.0), "huber(2.0)", "identity", lambda torch, o, y: torch.nn.functional.huber_loss(o, y, delta=2.0)),
    (losses.Quantile(0.9), "quantile(0.9)", "identity", lambda torch, o, y: pinball(torch, o, y, 0.9)),
    ("quantile", "quantile", "identity", lambda torch, o, y: pinball(torch, o, y, 0.5)),
    ("log_cosh", "log_cosh", "identity", lambda torch, o, y: torch.log(torch.cosh(o - y)).mean()),
    (
        "poisson",
        "poisson",
        "exp",
        lambda torch, o, y: torch.nn.functional.poisson_nll_loss(o, y, log_input=False, eps=0),
    ),
    ("hinge", "hinge", "identity", lambda torch, o, y: torch.clamp(1 - o * y, min=0).mean()),
]


def data(loss="mse", n=40):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 3))
    if loss == "hinge":
        return x, rng.choice([-1.0, 1.0], (n, 2))
    return (x, rng.poisson(2.0, (n, 2)).astype(float)) if loss == "poisson" else (x, 3 * rng.normal(size=(n, 2)))


def torch_loss(torch, model, x, y, activation, output, loss):
    """PyTorch's loss of a model's parameters, and its gradient in their layout."""
    parameters = [
        torch.tensor(np.array(p), requires_grad=True)
        for pair in zip(model.weights, model.biases, strict=True)
        for p in pair
    ]
    h = torch.from_numpy(x)
    for i in range(0, len(parameters), 2):
        z = h @ parameters[i] + parameters[i + 1]
        h = activation(torch, z) if i + 2 < len(parameters) else (torch.exp(z) if output == "exp" else z)
    value = loss(torch, h, torch.from_numpy(y))
    value.backward()
    return value.item(), np.concatenate([p.grad.numpy().ravel() for p in parameters])


@pytest.mark.parametrize(("activation", "name", "function"), OPTIONS, ids=shown)
def test_activations_are_pytorchs(activation, name, function):
    torch = pytest.importorskip("torch")
    x, y = data()
    model = fastbp.MLP((3, 6, 5, 2), activation, dtype="float64", seed=0)
    assert model.activations[:2] == (name, name)
    same = fastbp.MLP((3, 6, 5, 2), [name, activation], dtype="float64", seed=0)
    assert same.loss(x, y) == model.loss(x, y)
    value, grad = torch_loss(
        torch, model, x, y, function, "identity", lambda torch, o, y: torch.nn.functional.mse_loss(o, y)
    )
    actual, actual_grad = model.loss_and_grad(x, y)
    assert actual == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(actual_grad, grad, rtol=1e-10, atol=1e-13)
    assert eval(repr(model), vars(fastbp)).activations == model.activations
    assert pickle.loads(pickle.dumps(model)).loss(x, y) == actual


@pytest.mark.parametrize(("loss", "name", "output", "function"), LOSSES, ids=shown)
def test_losses_are_pytorchs(loss, name, output, function):
    torch = pytest.importorskip("torch")
    x, y = data(name)
    model = fastbp.MLP((3, 6, 2), "tanh", output, loss=loss, dtype="float64", seed=0)
    assert model.loss_name == name
    value, grad = torch_loss(torch, model, x, y, lambda torch, z: torch.tanh(z), output, function)
    actual, actual_grad = model.loss_and_grad(x, y)
    assert actual == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(actual_grad, grad, rtol=1e-10, atol=1e-13)
    assert eval(repr(model), vars(fastbp)).loss_name == name


def test_hinge_counts_outputs_of_their_targets_sign():
    x, y = data("hinge")
    model = fastbp.MLP((3, 6, 2), "tanh", loss="hinge", seed=0)
    history = model.fit(x, y, epochs=1, validation_data=(x, y))
    assert history.validation_accuracy[0] == pytest.approx(((model.predict(x) > 0) == (y > 0)).mean())


def test_quantile_is_reached():
    rng = np.random.default_rng(0)
    y = rng.exponential(size=(5000, 1))
    model = fastbp.MLP((1, 1), loss=losses.Quantile(0.8), seed=0)
    model.fit(np.zeros_like(y), y, optimizer=fastbp.Adam(0.05), epochs=50, batch_size=500, seed=0)
    assert model.predict([[0.0]])[0, 0] == pytest.approx(-math.log(0.2), abs=0.1)


@pytest.mark.parametrize(
    ("loss", "y", "message"),
    [
        ("poisson", [[-1.0]], "y must be 0 or more for the Poisson loss, got -1.0 in row 0"),
        (
            "hinge",
            [[0.0]],
            r"y must be -1 or 1 for the hinge loss \(of classes 0 and 1: 2 \* y - 1\), got 0.0 in row 0",
        ),
    ],
)
def test_targets_that_a_loss_does_not_permit_are_refused(loss, y, message):
    model = fastbp.MLP((1, 1), output="exp" if loss == "poisson" else "identity", loss=loss)
    trainer = fastbp.Trainer(model)
    with pytest.raises(ValueError, match=message):
        trainer.fit([[0.0]], y)
    trainer.step(np.zeros((1, 1), "float32"), np.ones((1, 1), "float32"))
    with pytest.raises(ValueError, match=message):
        trainer.step(np.zeros((1, 1), "float32"), np.array(y, "float32"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"activation": "elu(a)"},
            ValueError,
            r"activation must have a number in parentheses, such as ELU\(alpha=1.0\)",
        ),
        ({"activation": "elu(0)"}, ValueError, "alpha must be a finite number > 0"),
        ({"activation": "leaky_relu(-1)"}, ValueError, "slope must be a finite number >= 0"),
        ({"activation": "tanh(2)"}, ValueError, r"activation must be one of .*, got 'tanh\(2\)' \(did you mean 'tanh'"),
        ({"activation": losses.Huber(2.0)}, ValueError, "activation must be one of"),
        ({"activation": "exp"}, ValueError, "which is for output only"),
        ({"loss": "huber(nan)"}, ValueError, "delta must be a finite number > 0"),
        ({"loss": losses.Huber}, TypeError, "loss must be a str"),
        ({"loss": activations.ELU(2.0)}, ValueError, "loss must be one of"),
        ({"loss": "poisson"}, ValueError, "which goes with output='exp'"),
    ],
)
def test_wrong_options_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        fastbp.MLP((2, 3, 1), **arguments)


@pytest.mark.parametrize("make", [lambda: losses.Quantile(1.0), lambda: losses.Huber(0), lambda: activations.ELU(-1)])
def test_options_out_of_bounds_are_refused(make):
    with pytest.raises(ValueError, match="must be a finite number"):
        make()
