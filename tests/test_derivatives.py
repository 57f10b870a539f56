"""Derivatives of the outputs with respect to the inputs: against the naive twin, central differences and PyTorch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastbp
import reference
from cases import DTYPES, NETWORKS, OUTPUTS, SHAPES, make_problem, relative_error
from problems import bits

TOLERANCE = {"float64": 1e-12, "float32": 3e-5}


def problem_of(sizes, n_samples, activation, output):
    output = "identity" if output == "softmax" and sizes[-1] == 1 else output
    return make_problem(sizes, n_samples, activation, reference.default_loss(output), output)


def naive_jacobian(problem):
    """The Jacobian of each sample, layer by layer, in float64."""
    _, zs = reference.pre_activations(problem.sizes, problem.activation, problem.params, problem.x)
    names = [*reference.hidden_activations(problem.sizes, problem.activation), problem.output]
    jacobians = np.broadcast_to(np.eye(problem.sizes[0]), (len(problem.x), problem.sizes[0], problem.sizes[0]))
    for (w, _), z, name in zip(reference.unpack(problem.sizes, problem.params), zs, names, strict=True):
        jacobians = np.einsum("io,sij->soj", w, jacobians)
        if name == "softmax":
            h = reference.softmax(z)
            jacobians = h[:, :, None] * (jacobians - np.einsum("so,soj->sj", h, jacobians)[:, None])
        else:
            jacobians = reference.ACTIVATIONS[name][1](z)[:, :, None] * jacobians
    return jacobians


def directions(problem):
    """Directions of the outputs and of the features, that float32 holds too."""
    rng = np.random.default_rng(1)
    widths = problem.sizes[-1], problem.sizes[0]
    return [rng.standard_normal((len(problem.x), n)).astype(np.float32).astype(float) for n in widths]


@pytest.mark.parametrize(("activation", "output"), NETWORKS)
def test_any_shape_and_dtype_equal_the_naive_twin(activation, output):
    for sizes, n_samples in SHAPES[:-2]:
        problem = problem_of(sizes, n_samples, activation, output)
        expected, (d_out, t_x) = naive_jacobian(problem), directions(problem)
        for dtype in DTYPES:
            model, case = problem.model(dtype), (sizes, n_samples, dtype)
            actual = [model.vjp(problem.x, d_out), model.jvp(problem.x, t_x), model.jacobian(problem.x)]
            wanted = [np.einsum("soj,so->sj", expected, d_out), np.einsum("soj,sj->so", expected, t_x), expected]
            for found, exact in zip(actual, wanted, strict=True):
                assert (found.dtype, found.shape) == (dtype, exact.shape), case
                # Where an activation is saturated, 1 - h has the rounding error of h.
                error = np.abs(found - exact).max()
                assert error <= TOLERANCE[dtype] * (np.abs(exact).max() + 1e-2), case


@pytest.mark.parametrize("output", OUTPUTS)
def test_jacobian_equals_central_differences(output):
    problem = problem_of((3, 7, 4), 9, "tanh", output)
    model, step = problem.model("float64"), 1e-6
    for j in range(3):
        shift = step * np.eye(3)[j]
        quotient = (model.predict(problem.x + shift) - model.predict(problem.x - shift)) / (2 * step)
        np.testing.assert_allclose(model.jacobian(problem.x)[:, :, j], quotient, atol=1e-8)


@pytest.mark.parametrize("output", ["identity", "sigmoid", "softmax", "gelu"])
@pytest.mark.parametrize("activation", ["tanh", "relu", "elu", "silu", "gelu", "softplus", "selu", "leaky_relu"])
def test_float64_equals_pytorch(activation, output):
    torch = pytest.importorskip("torch")
    problem = problem_of((5, 9, 6, 4), 33, activation, output)
    functional, x = torch.nn.functional, torch.tensor(problem.x, requires_grad=True)

    def apply(name, z):
        if name == "identity":
            return z
        if name == "softmax":
            return torch.softmax(z, 1)
        return torch.tanh(z) if name == "tanh" else getattr(functional, name)(z)

    h, layers = x, reference.unpack(problem.sizes, problem.params)
    for (w, b), name in zip(layers, [activation, activation, output], strict=True):
        h = apply(name, h @ torch.tensor(w) + torch.tensor(b))
    d_out, _ = directions(problem)
    h.backward(torch.tensor(d_out))
    assert relative_error(problem.model("float64").vjp(problem.x, d_out), x.grad.numpy()) <= 1e-12


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(3, 5, 4), (7, 300, 300, 3), (1200, 9, 2), (2, 1300, 5)])
def test_derivatives_of_a_sample_have_the_same_bits_in_any_batch(sizes, dtype):
    model = fastbp.MLP(list(sizes), "relu", dtype=dtype, seed=0)
    rng = np.random.default_rng(0)
    x, d_out = (rng.standard_normal((130, n)).astype(dtype) for n in (sizes[0], sizes[-1]))
    vjp, jvp = model.vjp(x, d_out), model.jvp(x, x[::-1])
    for first, last in ((0, 2), (5, 12), (128, 130)):
        assert bits(model.vjp(x[first:last], d_out[first:last])) == bits(vjp[first:last])
    for first, last in ((0, 1), (7, 8), (5, 12)):  # a single sample too
        assert bits(model.jvp(x[first:last], x[::-1][first:last])) == bits(jvp[first:last])
    # Alone, it is summed in another order.
    single = model.vjp(x[:1], d_out[:1])
    np.testing.assert_allclose(single, vjp[:1], rtol=2e-3 if dtype == "float32" else 1e-10, atol=1e-5)


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 9), st.sampled_from(DTYPES), st.integers(0, 2**32 - 1))
def test_vjp_and_jvp_are_adjoint(n_samples, n_in, n_out, dtype, seed):
    rng = np.random.default_rng(seed)
    model = fastbp.MLP([n_in, 6, n_out], "tanh", dtype=dtype, seed=0)
    x, t_x, d_out = (rng.standard_normal((n_samples, n)) for n in (n_in, n_in, n_out))
    left, right = (model.jvp(x, t_x) * d_out).sum(1), (model.vjp(x, d_out) * t_x).sum(1)
    np.testing.assert_allclose(left, right, atol=1e-4 if dtype == "float32" else 1e-12)


def test_one_output_takes_directions_without_an_axis():
    model, x = fastbp.MLP([3, 5, 1], seed=0), np.ones((4, 3))
    assert bits(model.vjp(x, np.arange(4.0))) == bits(model.vjp(x, np.arange(4.0)[:, np.newaxis]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.vjp(np.ones((2, 4)), np.ones((2, 2))), r"x must have shape \(n_samples, 3\)"),
        (lambda model: model.vjp(np.ones((2, 3)), np.ones((3, 2))), "d_out must have as many samples as its x"),
        (lambda model: model.vjp(np.ones((2, 3)), np.ones((2, 3))), r"d_out must have shape \(n_samples, 2\)"),
        (lambda model: model.vjp(np.ones((2, 3)), np.full((2, 2), np.nan)), "d_out must be finite"),
        (lambda model: model.jvp(np.ones((2, 3)), np.ones((2, 2))), r"t_x must have shape \(n_samples, 3\)"),
        (lambda model: model.jvp(np.full((2, 3), np.inf), np.ones((2, 3))), "x must be finite"),
        (lambda model: model.jacobian(np.ones(3)), r"x must have shape \(n_samples, 3\)"),
        (lambda model: model.jacobian(np.ones((0, 3))), "x must have at least one sample"),
    ],
)
def test_bad_input_is_an_error_that_names_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call(fastbp.MLP([3, 5, 2], seed=0))


def test_derivative_that_overflows_warns_of_the_row_and_column():
    model = fastbp.MLP([2, 1], init=[1e30, 1.0, 0.0], seed=0)
    with pytest.warns(RuntimeWarning, match=r"the vjp of row 1 is not finite in column 0: inf; float32 overflows"):
        model.vjp(np.zeros((2, 2)), [1.0, 1e30])
