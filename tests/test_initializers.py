import numpy as np
import pytest

import fastbp
from fastbp.initializers import INITIALIZERS, initialize
from fastbp.kernels.activations import ACTIVATIONS
from fastbp.layout import Layout

N_IN, N_OUT = 300, 200
STANDARD_DEVIATIONS = {
    "he_normal": np.sqrt(2 / N_IN),
    "he_uniform": np.sqrt(2 / N_IN),
    "glorot_normal": np.sqrt(2 / (N_IN + N_OUT)),
    "glorot_uniform": np.sqrt(2 / (N_IN + N_OUT)),
    "lecun_normal": np.sqrt(1 / N_IN),
    "lecun_uniform": np.sqrt(1 / N_IN),
}


def rng():
    return np.random.default_rng(0)


def first_weights(init, sizes, defaults, dtype=np.float64):
    return Layout(sizes).weights(initialize(init, sizes, defaults, dtype, rng()))[0]


@pytest.mark.parametrize("name", STANDARD_DEVIATIONS)
def test_initialize_named_has_the_moments_of_its_formula(name):
    expected = STANDARD_DEVIATIONS[name]
    w = first_weights(name, (N_IN, N_OUT), ("glorot_uniform",))

    # 60 000 numbers: the standard error of their deviation is below 0.3 %, that of their mean below expected / 240.
    assert w.std() == pytest.approx(expected, rel=0.015)
    assert abs(w.mean()) < 5 * expected / np.sqrt(w.size)


@pytest.mark.parametrize("name", ["he_uniform", "glorot_uniform", "lecun_uniform"])
def test_initialize_uniform_fills_its_interval(name):
    limit = np.sqrt(3) * STANDARD_DEVIATIONS[name]
    w = first_weights(name, (N_IN, N_OUT), ("glorot_uniform",))

    assert 0.999 * limit < np.abs(w).max() <= limit


@pytest.mark.parametrize("sizes", [(1, 1), (7, 3), (3, 7), (33, 33)])
def test_initialize_orthogonal_gives_orthonormal_rows_or_columns(sizes):
    w = first_weights("orthogonal", sizes, ("glorot_uniform",))

    product = w.T @ w if sizes[0] >= sizes[1] else w @ w.T
    np.testing.assert_allclose(product, np.eye(min(sizes)), atol=1e-14)


@pytest.mark.parametrize("name", INITIALIZERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_initialize_named_gives_dtype_and_zero_biases(name, dtype):
    sizes = (5, 8, 3)
    params = initialize(name, sizes, ("he_normal", "glorot_uniform"), dtype, rng())

    assert params.dtype == dtype
    assert params.shape == (Layout(sizes).n_params,)
    for b in Layout(sizes).biases(params):
        np.testing.assert_array_equal(b, 0.0)


@pytest.mark.parametrize("name", ["auto", *INITIALIZERS])
def test_initialize_float32_is_float64_cast(name):
    sizes, defaults = (5, 8, 3), ("glorot_uniform", "he_normal")
    expected = initialize(name, sizes, defaults, np.float64, rng()).astype(np.float32)

    np.testing.assert_array_equal(initialize(name, sizes, defaults, np.float32, rng()), expected)


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        *((activation, "he_normal") for activation in ("relu", "leaky_relu", "elu", "gelu", "silu", "softplus")),
        ("selu", "lecun_normal"),
        *((activation, "glorot_uniform") for activation in ("identity", "sigmoid", "tanh", "softmax")),
    ],
)
def test_initialize_auto_follows_the_layers_activation(activation, name):
    output, sizes = ("identity", (4, 3, 2)) if ACTIVATIONS[activation].is_hidden else (activation, (4, 3))
    hidden = activation if len(sizes) > 2 else "relu"
    actual, expected = (fastbp.MLP(sizes, hidden, output, init=init, seed=0).weights[0] for init in ("auto", name))
    np.testing.assert_array_equal(actual, expected)


def test_initialize_auto_chooses_layer_by_layer():
    sizes = (N_IN, N_OUT, N_OUT)
    params = initialize("auto", sizes, ("he_normal", "glorot_uniform"), np.float64, rng())
    hidden, output = Layout(sizes).weights(params)

    assert hidden.std() == pytest.approx(np.sqrt(2 / N_IN), rel=0.02)
    assert output.std() == pytest.approx(np.sqrt(1 / N_OUT), rel=0.02)
    assert np.abs(output).max() <= np.sqrt(3 / N_OUT)


def test_initialize_array_is_copied_and_cast():
    values = np.arange(6.0)
    params = initialize(values, (2, 2), ("he_normal",), np.float32, rng())

    assert params.dtype == np.float32
    np.testing.assert_array_equal(params, values)
    assert not np.shares_memory(params, values)


def test_initialize_bad_name_raises_value_error_with_the_nearest():
    with pytest.raises(ValueError, match=r"init must be one of 'auto', .*got 'he-norm' \(did you mean 'he_normal'\?\)"):
        initialize("he-norm", (2, 2), ("he_normal",), np.float64, rng())


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (np.zeros(5), ValueError, "init must have shape \\(6,\\), got \\(5,\\)"),
        (np.zeros((1, 6)), ValueError, "init must have shape \\(6,\\), got \\(1, 6\\)"),
        ([0, 1, 2, np.nan, 4, 5], ValueError, "init must be finite, got nan in index 3"),
        ([0, 1e300, 2, 3, 4, 5], ValueError, "init must be within the range of float32, got 1e\\+300 in index 1"),
        (np.zeros(6, dtype=complex), TypeError, "init must have a bool, integer or floating dtype, got complex128"),
        (None, TypeError, "init must be an array of all parameters or one of auto, he_normal, .*, got None"),
    ],
)
def test_initialize_bad_array_raises(values, error, message):
    with pytest.raises(error, match=message):
        initialize(values, (2, 2), ("he_normal",), np.float32, rng())
