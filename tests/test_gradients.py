"""Losses and gradients against central differences and the naive twin, over the table of cases."""

import numpy as np
import pytest

import fastbp
import reference
from cases import ACTIVATIONS, DTYPES, NETWORKS, PAIRS, SHAPES, SMALL_SHAPES, make_problem, relative_error

# Rounding: sums of up to 2333 terms, one after the other, and what the layers make of it.
TOLERANCE = {"float64": 1e-13, "float32": 3e-5}


@pytest.mark.parametrize(("loss", "output"), PAIRS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_loss_and_grad_central_differences_agree(activation, loss, output):
    for sizes, n_samples in SMALL_SHAPES:
        problem = make_problem(sizes, n_samples, activation, loss, output, distance=1e-4)
        model = problem.model("float64")

        def loss_at(params, model=model, problem=problem):
            model.params = params
            return model.loss(problem.x, problem.y)

        value, grad = model.loss_and_grad(problem.x, problem.y)
        expected = reference.central_differences(loss_at, problem.params, 1e-5)
        # Rounding of the loss in the quotient, about eps * loss / h, where the gradient itself vanishes.
        error = np.linalg.norm(grad - expected)
        assert error <= 1e-7 * np.linalg.norm(expected) + 1e-11 * max(1.0, value), (sizes, n_samples)


@pytest.mark.parametrize(("loss", "output"), PAIRS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_loss_and_grad_any_shape_and_dtype_equal_reference(activation, loss, output):
    for sizes, n_samples in SHAPES:
        problem = make_problem(sizes, n_samples, activation, loss, output)
        expected, expected_grad = problem.loss_and_grad()
        for dtype in DTYPES:
            case, tolerance = (sizes, n_samples, dtype), TOLERANCE[dtype]
            model = problem.model(dtype)
            value, grad = model.loss_and_grad(problem.x, problem.y)
            assert grad.dtype == dtype
            assert relative_error(value, expected) <= tolerance, case
            assert relative_error(model.loss(problem.x, problem.y), expected) <= tolerance, case
            assert relative_error(grad, expected_grad) <= tolerance, case


@pytest.mark.parametrize(("activation", "output"), NETWORKS)
def test_predict_any_shape_and_dtype_equals_reference(activation, output):
    for sizes, n_samples in SHAPES:
        problem = make_problem(sizes, n_samples, activation, reference.default_loss(output), output)
        expected = reference.forward(problem.sizes, activation, output, problem.params, problem.x)
        for dtype in DTYPES:
            actual = problem.model(dtype).predict(problem.x)
            assert (actual.dtype, actual.shape) == (dtype, expected.shape)
            assert relative_error(actual, expected) <= TOLERANCE[dtype], (sizes, n_samples, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activations", [("tanh", "gelu", "relu"), ("silu", "softplus", "identity")])
def test_loss_and_grad_one_activation_per_layer_equals_reference(activations, dtype):
    sizes = (5, 9, 4, 7, 3)
    problem = make_problem(sizes, 140, "tanh", "mse", "sigmoid")
    expected, expected_grad = reference.loss_and_grad(
        sizes, activations, "sigmoid", "mse", problem.params, problem.x, problem.y
    )
    model = fastbp.MLP(sizes, activations, "sigmoid", loss="mse", init=problem.params, dtype=dtype)
    value, grad = model.loss_and_grad(problem.x, problem.y)
    assert value == pytest.approx(expected, rel=TOLERANCE[dtype])
    assert relative_error(grad, expected_grad) <= TOLERANCE[dtype]


# Widths above the packing threshold, several cache blocks in every direction, none of them round.
WIDE = [
    ((300, 601, 599, 10), 259, "tanh"),
    ((300, 601, 599, 10), 1100, "gelu"),
    ((300, 601, 599, 10), 1100, "relu"),
    ((193, 97, 321), 97, "relu"),
    ((1031, 517, 3), 33, "relu"),
    ((770, 401, 1), 1, "silu"),
    ((1, 1200, 257), 130, "sigmoid"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("sizes", "n_samples", "activation"), WIDE)
def test_loss_and_grad_wide_network_equals_reference(sizes, n_samples, activation, dtype):
    problem = make_problem(sizes, n_samples, activation, "mse", "identity", distance=3e-6 if n_samples < 100 else 0)
    expected, expected_grad = problem.loss_and_grad()
    value, grad = problem.model(dtype).loss_and_grad(problem.x, problem.y)
    assert value == pytest.approx(expected, rel=TOLERANCE[dtype])
    assert relative_error(grad, expected_grad) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_and_grad_one_sample_by_hand(dtype):
    # z = 2 * 3 + 1 * 4 + 5 = 15, y = 14: the loss is 1, dz = 2.
    model = fastbp.MLP([2, 1], init=[3.0, 4.0, 5.0], dtype=dtype)
    value, grad = model.loss_and_grad([[2.0, 1.0]], [14.0])
    assert value == 1.0
    np.testing.assert_array_equal(grad, [4.0, 2.0, 2.0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_and_grad_at_kinks_takes_the_left_derivative(dtype):
    # All pre-activations are 0: relu and leaky_relu pass 0 and 0.01 of what comes back; mae's own derivative at 0 is 0.
    for activation, slope in (("relu", 0.0), ("leaky_relu", 0.01)):
        model = fastbp.MLP([1, 1, 1], activation, init=[0.0, 0.0, 1.0, 1.0], dtype=dtype)
        _, grad = model.loss_and_grad([[1.0]], [0.5])
        np.testing.assert_allclose(grad, [slope, slope, 0.0, 1.0], rtol=1e-6)
    model = fastbp.MLP([1, 1], loss="mae", init=[1.0, 0.0], dtype=dtype)
    np.testing.assert_array_equal(model.loss_and_grad([[2.0]], [2.0])[1], [0.0, 0.0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_and_grad_probabilities_equal_reference(dtype):
    problem = make_problem((4, 9, 5), 70, "tanh", "cross_entropy", "softmax")
    y = np.random.default_rng(0).dirichlet(np.ones(5), 70).astype(np.float32).astype(float)
    problem = problem._replace(y=y)
    expected, expected_grad = problem.loss_and_grad()
    value, grad = problem.model(dtype).loss_and_grad(problem.x, y)
    assert value == pytest.approx(expected, rel=TOLERANCE[dtype])
    assert relative_error(grad, expected_grad) <= TOLERANCE[dtype]


@pytest.mark.parametrize("x_dtype", ["bool", "uint8", "int16", "float16", "float32", "float64", "int64"])
def test_loss_and_grad_any_dtype_of_data_equals_float64(x_dtype):
    problem = make_problem((7, 9, 1), 40, "tanh", "mse", "identity")
    x = np.round(problem.x * 3).astype(x_dtype)
    y = np.round(problem.y * 3).astype(x_dtype)
    model = problem.model("float64")
    expected, expected_grad = model.loss_and_grad(x.astype(float), y.astype(float))
    for view in (x, np.asfortranarray(x), np.repeat(x, 2, axis=0)[::2], x[::-1][::-1]):
        value, grad = model.loss_and_grad(view, y)
        assert value == expected
        np.testing.assert_array_equal(grad, expected_grad)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_that_is_not_finite_is_seen_behind_a_unit_that_is_off(dtype, value):
    sizes, n_samples = (300, 300, 600, 10), 200
    model, x = fastbp.MLP(sizes, "relu", seed=0, dtype=dtype), np.random.default_rng(0).normal(size=(n_samples, 300))
    model.biases[0][5] = -1e6
    model.weights[1][5] = value
    before = model.params.copy()
    for n in (1, 33, n_samples):
        with pytest.warns(RuntimeWarning, match="row 0 is not finite in output 0: .*; params are not finite"):
            assert not np.isfinite(model.predict(x[:n])).any()
    with pytest.raises(fastbp.DivergenceError, match="the parameters are those before"):
        model.fit(x, np.zeros((n_samples, 10)), batch_size=None, epochs=1, seed=0)
    np.testing.assert_array_equal(model.params, before)
