"""The naive twin against central differences, hand-computed values and PyTorch."""

import math
from itertools import pairwise

import numpy as np
import pytest

import reference

SIZES = (3, 5, 4, 2)
HIDDEN = [name for name in reference.ACTIVATIONS if name != "exp"]
PAIRS = [(name, output) for name, outputs in reference.PERMITTED_OUTPUTS.items() for output in outputs]


def relative_error(actual, expected):
    error, scale = np.linalg.norm(np.asarray(actual) - expected), np.linalg.norm(expected)
    return error / scale if scale > 0 else error  # where all is saturated


def make_problem(loss_name, sizes=SIZES, n_samples=7, seed=0):
    rng = np.random.default_rng(seed)
    params = rng.normal(size=reference.n_params(sizes)) * 0.7
    x = rng.normal(size=(n_samples, sizes[0]))
    if loss_name == "cross_entropy":
        y = rng.integers(0, sizes[-1], n_samples)
    elif loss_name == "binary_cross_entropy":
        y = rng.integers(0, 2, (n_samples, sizes[-1])).astype(float)
    else:
        y = rng.normal(size=(n_samples, sizes[-1])) * 2
    return params, x, y


@pytest.mark.parametrize("name", reference.ACTIVATIONS)
def test_activations_central_differences_match(name):
    h, derivative = reference.ACTIVATIONS[name]
    z = np.linspace(-6, 6, 98)  # an even count leaves out the kink at 0
    expected = (h(z + 1e-6) - h(z - 1e-6)) / 2e-6
    # A difference quotient of step 1e-6 is good to about 1e-9.
    np.testing.assert_allclose(derivative(z), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_activations_any_dtype_keeps_it(name, dtype):
    z = np.array([-800, -1, 0, 1, 800], dtype)
    for function in reference.ACTIVATIONS[name]:
        actual = function(z)
        assert actual.dtype == dtype
        assert np.isfinite(actual).all()


def test_activations_at_kink_derivative_from_left():
    zero = np.zeros(1)
    expected = {"relu": 0, "leaky_relu": 0.01, "elu": 1, "selu": reference.SELU_SCALE * reference.SELU_ALPHA}
    actual = {name: float(reference.ACTIVATIONS[name][1](zero)[0]) for name in expected}
    assert actual == expected


@pytest.mark.parametrize(("loss_name", "output"), PAIRS)
def test_gradient_of_outputs_central_differences_match(loss_name, output):
    _, z, y = make_problem(loss_name, sizes=(3, 3))
    y = reference.targets(y, loss_name, 3)

    def f(flat):
        return reference.loss_of_outputs(loss_name, output, flat.reshape(z.shape), y)

    expected = reference.central_differences(f, z.ravel())
    actual = reference.gradient_of_outputs(loss_name, output, z, y).ravel()
    assert relative_error(actual, expected) < 1e-8


@pytest.mark.parametrize(("loss_name", "output"), PAIRS)
@pytest.mark.parametrize("activation", HIDDEN)
def test_loss_and_grad_central_differences_match(activation, loss_name, output):
    params, x, y = make_problem(loss_name)
    arguments = (SIZES, activation, output, loss_name)
    value, actual = reference.loss_and_grad(*arguments, params, x, y)
    expected = reference.central_differences(lambda p: reference.loss(*arguments, p, x, y), params, 1e-5)
    assert value == reference.loss(*arguments, params, x, y)
    assert relative_error(actual, expected) < 1e-7


def test_loss_and_grad_linear_by_hand():
    # One sample, z = 2 * 3 + 1 * 4 + 5 = 15, y = 14: loss 1, dz = 2.
    params, x, y = np.array([3.0, 4.0, 5.0]), np.array([[2.0, 1.0]]), [14.0]
    value, grads = reference.loss_and_grad((2, 1), "relu", "identity", "mse", params, x, y)
    assert value == 1
    np.testing.assert_array_equal(grads, [4, 2, 2])


def test_loss_cross_entropy_labels_and_rows_agree():
    params, x, y = make_problem("cross_entropy")
    arguments = (SIZES, "tanh", "softmax", "cross_entropy", params, x)
    expected_loss, expected_grads = reference.loss_and_grad(*arguments, y)
    for same in (y[:, None], np.eye(2)[y]):
        value, grads = reference.loss_and_grad(*arguments, same)
        assert value == expected_loss
        np.testing.assert_array_equal(grads, expected_grads)


def test_loss_of_outputs_huge_logits_finite():
    z = np.array([[1e4, -1e4], [-1e4, 1e4]])
    y = np.eye(2)[::-1]
    assert reference.loss_of_outputs("cross_entropy", "softmax", z, y) == 2e4
    assert reference.loss_of_outputs("binary_cross_entropy", "sigmoid", z, y) == 1e4


def test_accuracy_labels_rows_and_one_output():
    prediction = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    assert reference.accuracy(prediction, [0, 1, 1]) == pytest.approx(2 / 3)
    assert reference.accuracy(prediction, np.eye(2)[[0, 1, 0]]) == 1
    assert reference.accuracy(np.array([[0.4], [0.6]]), [[1], [1]]) == 0.5


def test_weight_mask_marks_weights_only():
    assert reference.weight_mask((2, 1, 1)).tolist() == [True, True, False, True, False]


def test_adam_first_step_moves_by_learning_rate():
    params = reference.adam(np.zeros(2), np.array([3.0, -0.2]), {}, learning_rate=0.1, eps=0.0)
    np.testing.assert_allclose(params, [-0.1, 0.1], rtol=1e-15)


def test_adamw_mask_decays_weights_only():
    params = reference.adamw(
        np.ones(2), np.zeros(2), {}, learning_rate=0.1, weight_decay=0.5, mask=np.array([True, False])
    )
    np.testing.assert_array_equal(params, [0.95, 1])


def torch_activation(torch, name, z):
    """PyTorch's activation of that name."""
    if name == "identity":
        return z
    function = getattr(torch.nn.functional, name, None)
    if function is None:
        pytest.skip(f"PyTorch has no {name}")
    return function(z, threshold=1e3) if name == "softplus" else function(z)


@pytest.mark.parametrize("name", reference.ACTIVATIONS)
def test_activations_torch_match(name):
    torch = pytest.importorskip("torch")
    z = np.linspace(-9, 9, 19)
    tensor = torch.tensor(z, requires_grad=True)
    value = torch_activation(torch, name, tensor)
    value.sum().backward()
    h, derivative = reference.ACTIVATIONS[name]
    np.testing.assert_allclose(h(z), value.detach().numpy(), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(derivative(z), tensor.grad.numpy(), rtol=1e-12, atol=1e-15)


def torch_loss(torch, loss_name, output, z, y):
    functional = torch.nn.functional
    if loss_name == "cross_entropy":
        return functional.cross_entropy(z, torch.tensor(y))
    if loss_name == "binary_cross_entropy":
        return functional.binary_cross_entropy_with_logits(z, torch.tensor(y))
    loss = {"mse": functional.mse_loss, "mae": functional.l1_loss, "huber": functional.huber_loss}.get(loss_name)
    if loss is None:
        pytest.skip(f"PyTorch has no {loss_name}")
    return loss(torch_activation(torch, output, z), torch.tensor(y))


@pytest.mark.parametrize(("loss_name", "output"), PAIRS)
def test_loss_and_grad_torch_match(loss_name, output):
    torch = pytest.importorskip("torch")
    params, x, y = make_problem(loss_name)
    expected = torch.tensor(params, requires_grad=True)
    h, start = torch.tensor(x), 0
    for layer, (n_in, n_out) in enumerate(pairwise(SIZES)):
        end = start + n_in * n_out
        z = h @ expected[start:end].reshape(n_in, n_out) + expected[end : end + n_out]
        h, start = (torch.tanh, torch.nn.functional.silu, torch.nn.Identity())[layer](z), end + n_out
    expected_loss = torch_loss(torch, loss_name, output, z, y)
    expected_loss.backward()
    value, grads = reference.loss_and_grad(SIZES, ("tanh", "silu"), output, loss_name, params, x, y)
    assert value == pytest.approx(expected_loss.item(), rel=1e-13)
    assert relative_error(grads, expected.grad.numpy()) < 1e-13


OPTIMIZER_CASES = [
    ("SGD", {"learning_rate": 0.1}, {}),
    ("SGD", {"learning_rate": 0.1, "momentum": 0.9}, {}),
    ("SGD", {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True}, {}),
    ("Adagrad", {"learning_rate": 0.1}, {}),
    ("RMSprop", {}, {}),
    ("RMSprop", {"momentum": 0.9}, {}),
    ("RMSprop", {"centered": True, "alpha": 0.9}, {}),
    ("RMSprop", {"centered": True, "momentum": 0.5}, {}),
    ("Adam", {}, {}),
    ("Adam", {"beta1": 0.5, "beta2": 0.9, "eps": 1e-3}, {"betas": (0.5, 0.9)}),
    ("AdamW", {"weight_decay": 0.1}, {}),
]


@pytest.mark.parametrize(("name", "options", "torch_options"), OPTIMIZER_CASES)
def test_optimizers_100_steps_torch_match(name, options, torch_options):
    torch = pytest.importorskip("torch")
    renamed = {"learning_rate": "lr"}
    torch_options = torch_options | {
        renamed.get(key, key): value for key, value in options.items() if not key.startswith("beta")
    }
    rng = np.random.default_rng(0)
    params, gradients = rng.normal(size=20), rng.normal(size=(100, 20))
    expected = torch.tensor(params, requires_grad=True)
    optimizer = getattr(torch.optim, name)([expected], **torch_options)
    state = {}
    for grads in gradients:
        params = reference.OPTIMIZERS[name](params, grads, state, **options)
        expected.grad = torch.tensor(grads)
        optimizer.step()
    assert relative_error(params, expected.detach().numpy()) < 1e-13


def test_train_adam_lowers_loss():
    params, x, y = make_problem("cross_entropy", n_samples=16)
    _, losses = reference.train(
        SIZES, "relu", "softmax", "cross_entropy", params, [(x, y)] * 200, reference.adam, learning_rate=0.05
    )
    assert losses[-1] < losses[0] / 2
    assert math.isfinite(losses[-1])
