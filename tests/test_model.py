import copy
import pickle
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastbp
from fastbp.kernels.activations import ACTIVATIONS
from fastbp.kernels.losses import LOSSES
from problems import bits, classes, classifier, regression, regressor

HIDDEN = [name for name, activation in ACTIVATIONS.items() if activation.is_hidden]


@pytest.mark.parametrize("name", [*ACTIVATIONS, *LOSSES])
def test_activations_and_losses_are_documented(name):
    assert re.search(rf"\b{name}\b", fastbp.MLP.__doc__)


def test_mlp_attributes_follow_the_arguments():
    model = fastbp.MLP([3, 8, 5, 2], ["tanh", "gelu"], "sigmoid", loss="mae", dtype="float64", seed=7)

    assert model.sizes == (3, 8, 5, 2)
    assert model.activations == ("tanh", "gelu", "sigmoid")
    assert (model.loss_name, model.dtype, model.seed) == ("mae", np.float64, 7)
    assert model.n_params == 3 * 8 + 8 + 8 * 5 + 5 + 5 * 2 + 2 == model.params.size
    assert model.history is None
    assert repr(model) == (
        "MLP([3, 8, 5, 2], activation=['tanh', 'gelu'], output='sigmoid', loss='mae', dtype='float64')"
    )


def test_mlp_without_hidden_layer_is_linear_regression():
    x, _ = regression(200)
    y = x @ [[1.0], [-2.0], [0.5]] + 3.0
    model = fastbp.MLP([3, 1], dtype="float64", seed=0)
    model.fit(x, y, optimizer=fastbp.SGD(0.2), batch_size=None, epochs=500)

    np.testing.assert_allclose(model.weights[0][:, 0], [1.0, -2.0, 0.5], atol=1e-6)
    np.testing.assert_allclose(model.biases[0], [3.0], atol=1e-6)
    assert repr(model) == "MLP([3, 1], output='identity', loss='mse', dtype='float64')"


def test_mlp_without_hidden_layer_is_logistic_regression():
    x, _ = regression(300)
    model = fastbp.MLP([3, 1], output="sigmoid", seed=0)
    history = model.fit(x, x[:, 0] > 0.0, optimizer=fastbp.Adam(0.05))

    assert history.accuracy[-1] > 0.97


@pytest.mark.parametrize(
    ("output", "loss"),
    [("softmax", "cross_entropy"), ("sigmoid", "binary_cross_entropy"), ("exp", "poisson"), ("tanh", "mse")],
)
def test_mlp_default_loss_follows_the_output(output, loss):
    assert fastbp.MLP([2, 2], output=output).loss_name == loss


@pytest.mark.parametrize("output", ACTIVATIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_mlp_loss_goes_with_documented_outputs_only(output, loss):
    fused = {"binary_cross_entropy": "sigmoid", "cross_entropy": "softmax", "poisson": "exp"}
    if output == fused.get(loss) or (loss not in fused and output != "softmax"):
        assert fastbp.MLP([2, 3, 2], output=output, loss=loss).loss_name == loss
    else:
        with pytest.raises(ValueError, match=rf"loss with output '{output}' must be one of .*, got '{loss}'"):
            fastbp.MLP([2, 3, 2], output=output, loss=loss)


def test_mlp_loss_of_another_output_lists_the_permitted_ones():
    with pytest.raises(
        ValueError, match=r"loss with output 'sigmoid' must be one of 'binary_cross_entropy', 'mse', .*, got"
    ):
        fastbp.MLP([2, 2], output="sigmoid", loss="cross_entropy")
    with pytest.raises(ValueError, match="loss with output 'softmax' must be one of 'cross_entropy', got 'mse'"):
        fastbp.MLP([2, 2], output="softmax", loss="mse")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sizes": [3]}, ValueError, "sizes must have at least two entries"),
        ({"sizes": []}, ValueError, "sizes must have at least two entries"),
        ({"sizes": [3, 0, 1]}, ValueError, r"sizes\[1\] must be a positive integer, got 0"),
        ({"sizes": [3, -5, 1]}, ValueError, r"sizes\[1\] must be a positive integer, got -5"),
        ({"sizes": [3, 2.0, 1]}, TypeError, r"sizes\[1\] must be a positive integer, got 2.0 of type float"),
        ({"sizes": [2**40, 2**40]}, ValueError, "sizes must give fewer than .* parameters, got"),
        ({"sizes": [2**70, 1]}, ValueError, "sizes must give fewer than .* parameters, got"),
        ({"sizes": 3}, TypeError, "sizes must be a sequence of positive integers, got 3"),
        ({"sizes": np.array(3)}, TypeError, r"sizes must be a sequence of positive integers, got array\(3\)"),
        ({"sizes": "31"}, TypeError, "sizes must be a sequence of positive integers, got '31'"),
        ({"activation": "rellu"}, ValueError, r"activation must be one of .*, got 'rellu' \(did you mean 'relu'\?\)"),
        (
            {"activation": "softmax"},
            ValueError,
            "activation must be one of .*, got 'softmax', which is for output only",
        ),
        ({"activation": ["relu"]}, ValueError, "activation must have one name per hidden layer, 2, got 1"),
        ({"activation": ["relu", "tahn"]}, ValueError, r"activation\[1\] must be one of .*mean 'tanh'"),
        ({"activation": ["relu", None]}, TypeError, r"activation\[1\] must be a str, .*, got NoneType"),
        ({"activation": None}, TypeError, "activation must be a str or a sequence of str, got NoneType"),
        ({"output": "soft-max"}, ValueError, r"output must be one of .*, got 'soft-max' \(did you mean 'softmax'\?\)"),
        ({"output": None}, TypeError, "output must be a str, one of .*, got NoneType"),
        ({"output": "linear"}, ValueError, r"output must be one of .*, got 'linear' \(did you mean 'identity'\?\)"),
        ({"activation": "log_softmax"}, ValueError, "got 'log_softmax', which is for output only"),
        ({"output": "softmax"}, ValueError, "output='softmax' needs one output per class, .* use output='sigmoid'"),
        ({"sizes": [3, 1], "output": "softmax"}, ValueError, "output='softmax' needs one .* use output='sigmoid'"),
        ({"loss": "cross_entropy"}, ValueError, "got 'cross_entropy', which goes with output='softmax'"),
        ({"output": "sigmoid", "loss": "log_loss"}, ValueError, r"\(did you mean 'binary_cross_entropy'\?\)"),
        ({"loss": "nll"}, ValueError, r"got 'nll' \(did you mean 'cross_entropy'\?\)"),
        ({"init": "kaiming_normal"}, ValueError, r"got 'kaiming_normal' \(did you mean 'he_normal'\?\)"),
        ({"loss": "MSE"}, ValueError, r"loss must be one of .*, got 'MSE' \(did you mean 'mse'\?\)"),
        ({"loss": 1}, TypeError, "loss must be a str, one of .*, got int"),
        ({"init": "he"}, ValueError, "init must be one of 'auto', .*, got 'he'"),
        ({"init": "glorot"}, ValueError, r"got 'glorot' \(did you mean 'glorot_"),
        ({"init": np.zeros(5)}, ValueError, r"init must have shape \(30,\), got \(5,\)"),
        ({"init": None}, TypeError, "init must be an array of all parameters or one of auto, .*, got None"),
        ({"dtype": "float16"}, ValueError, "dtype must be 'float32' or 'float64', got 'float16'"),
        ({"dtype": "flaot32"}, ValueError, r"got 'flaot32' \(did you mean 'float32'\?\)"),
        ({"dtype": None}, ValueError, "dtype must be 'float32' or 'float64', got None"),
        ({"dtype": ">f4"}, ValueError, "dtype must be 'float32' or 'float64', got '>f4'"),
        ({"dtype": int}, ValueError, "dtype must be 'float32' or 'float64', got <class 'int'>"),
        ({"seed": -1}, ValueError, r"seed must be in \[0, 2\*\*64\), got -1"),
        ({"seed": 2**64}, ValueError, r"seed must be in \[0, 2\*\*64\)"),
        ({"seed": 1.5}, TypeError, "seed must be an integer or None, got 1.5 of type float"),
    ],
)
def test_mlp_bad_argument_raises(arguments, error, message):
    with pytest.raises(error, match=message):
        fastbp.MLP(**{"sizes": [2, 3, 4, 1], **arguments})


@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    names=st.lists(st.sampled_from(HIDDEN), min_size=4, max_size=4),
    dtype=st.sampled_from(["float32", "float64", np.float32, np.dtype("f8")]),
    n_samples=st.integers(0, 20),
)
@settings(max_examples=60)
def test_predict_any_architecture_gives_finite_rows(sizes, names, dtype, n_samples):
    model = fastbp.MLP(sizes, names[: len(sizes) - 2], names[-1], dtype=dtype, seed=0)
    x = np.random.default_rng(0).standard_normal((n_samples, sizes[0]))

    y = model.predict(x)

    assert (y.shape, y.dtype) == ((n_samples, sizes[-1]), np.dtype(dtype))
    assert np.isfinite(y).all()
    for row in range(n_samples):
        assert bits(model.predict(x[row : row + 1])) == bits(y[row])


@given(st.text(max_size=12))
def test_mlp_any_unknown_name_raises_value_error_naming_it(name):
    if name not in HIDDEN:
        with pytest.raises(ValueError, match="activation must be one of"):
            fastbp.MLP([2, 3, 1], name)
    if name not in (*HIDDEN, "softmax"):
        with pytest.raises(ValueError, match="output must be one of"):
            fastbp.MLP([2, 3, 1], output=name)


@given(st.text(max_size=8))
def test_mlp_any_text_as_dtype_is_float_or_raises_value_error(name):
    try:
        dtype = fastbp.MLP([2, 1], dtype=name).dtype
    except ValueError as error:
        message = str(error)
        assert "dtype must be" in message
    else:
        assert dtype in (np.float32, np.float64)


def test_seed_none_draws_one_and_records_it():
    first, second = fastbp.MLP([3, 4, 1]), fastbp.MLP([3, 4, 1])

    assert first.seed != second.seed
    assert bits(first.params) != bits(second.params)
    assert bits(fastbp.MLP([3, 4, 1], seed=first.seed).params) == bits(first.params)


def test_seed_any_integer_type_gives_the_same_parameters():
    assert bits(regressor(seed=np.uint8(3)).params) == bits(regressor(seed=3).params)


def test_init_array_is_copied():
    values = np.arange(13, dtype=np.int64)
    model = fastbp.MLP([2, 3, 1], init=values)
    values[:] = 0

    np.testing.assert_array_equal(model.params, np.arange(13))
    np.testing.assert_array_equal(model.weights[0], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(model.biases[0], [6, 7, 8])
    np.testing.assert_array_equal(model.weights[1], [[9], [10], [11]])
    np.testing.assert_array_equal(model.biases[1], [12])


def test_params_assigned_or_written_in_place_both_copy_in():
    values = np.arange(13.0)
    assigned, written = fastbp.MLP([2, 3, 1], seed=0), fastbp.MLP([2, 3, 1], seed=1)
    before = assigned.params

    assigned.params = values
    written.params[:] = values
    values[:] = 0.0

    assert np.shares_memory(assigned.params, before)
    np.testing.assert_array_equal(before, np.arange(13))
    np.testing.assert_array_equal(assigned.params, np.arange(13))
    assert bits(assigned.params) == bits(written.params)
    x = np.ones((1, 2))
    assert assigned.predict(x) == written.predict(x) == fastbp.MLP([2, 3, 1], init=np.arange(13)).predict(x)


def test_weights_and_biases_are_tuples_of_views():
    model = fastbp.MLP([2, 3, 1], "identity", init=np.zeros(13), dtype="float64")
    assert isinstance(model.weights, tuple)
    assert isinstance(model.biases, tuple)

    model.weights[0][:] = 2.0
    model.weights[1][:] = 1.0
    model.biases[1][:] = 0.5

    np.testing.assert_array_equal(model.params, [2.0] * 6 + [0.0] * 3 + [1.0] * 3 + [0.5])
    assert model.predict([[1.0, 10.0]]) == 3 * 22.0 + 0.5


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (np.zeros(12), ValueError, r"params must have shape \(13,\), got \(12,\)"),
        (np.zeros((13, 1)), ValueError, r"params must have shape \(13,\), got \(13, 1\)"),
        (0.0, ValueError, r"params must have shape \(13,\), got \(\)"),
        (np.full(13, np.nan), ValueError, "params must be finite, got nan in index 0"),
        (np.full(13, 1e300), ValueError, "params must be within the range of float32, got 1e\\+300 in index 0"),
        (np.zeros(13, complex), TypeError, "params must have a bool, integer or floating dtype, got complex128"),
        ([None] * 13, TypeError, "params must have a bool, integer or floating dtype, got object"),
    ],
)
def test_params_bad_values_raise_and_change_nothing(values, error, message):
    model = fastbp.MLP([2, 3, 1], seed=0)
    before = bits(model.params)
    with pytest.raises(error, match=message):
        model.params = values
    assert bits(model.params) == before


def test_predict_out_is_overwritten_and_returned():
    x, _ = regression(20)
    model = regressor()
    out = np.full((20, 1), np.nan, np.float32)

    assert model.predict(x, out=out) is out
    assert model.predict(x, out) is out
    assert bits(out) == bits(model.predict(x))


def test_predict_bad_out_raises():
    x = np.zeros((4, 3), np.float32)
    model = fastbp.MLP([3, 3], seed=0)
    before = bits(model.params)
    read_only = np.zeros((4, 3), np.float32)
    read_only.flags.writeable = False
    for out, error, message in [
        ([[0.0] * 3] * 4, TypeError, "out must be an ndarray, got list"),
        (np.zeros((3, 3), np.float32), ValueError, r"out must have shape \(4, 3\) and dtype float32, got \(3, 3\)"),
        (np.zeros((4, 3)), ValueError, r"out must have shape \(4, 3\) and dtype float32, got .* and float64"),
        (np.zeros((4, 3), np.float32, order="F"), ValueError, "out must be C-contiguous, aligned and writable"),
        (np.zeros((8, 3), np.float32)[::2], ValueError, "out must be C-contiguous, aligned and writable"),
        (read_only, ValueError, "out must be C-contiguous, aligned and writable"),
        (x, ValueError, "out must not overlap x or the model's params"),
        (model.params[:12].reshape(4, 3), ValueError, "out must not overlap x or the model's params"),
    ]:
        with pytest.raises(error, match=message):
            model.predict(x, out=out)
    assert bits(model.params) == before
    assert not x.any()


def test_predict_no_samples_gives_no_rows():
    assert regressor().predict(np.zeros((0, 3))).shape == (0, 1)


def test_loss_and_grad_is_the_loss_and_its_derivative():
    x, y = regression(n_out=2)
    model = fastbp.MLP([3, 4, 2], "tanh", dtype="float64", seed=0)

    loss, grad = model.loss_and_grad(x, y)

    assert loss == pytest.approx(model.loss(x, y), rel=1e-14)
    assert loss == pytest.approx(np.mean((model.predict(x) - y) ** 2), rel=1e-13)
    assert (grad.shape, grad.dtype) == ((model.n_params,), np.float64)
    direction = np.random.default_rng(1).standard_normal(model.n_params)
    up, down = copy.deepcopy(model), copy.deepcopy(model)
    up.params[:] += 1e-6 * direction
    down.params[:] -= 1e-6 * direction
    # Central differences: an error of about eps / 1e-6.
    assert grad @ direction == pytest.approx((up.loss(x, y) - down.loss(x, y)) / 2e-6, rel=1e-7)


def test_loss_infinite_is_returned_with_an_unknown_gradient():
    model = fastbp.MLP([1, 1], init=[1e30, 0.0])
    with pytest.warns(RuntimeWarning, match="the loss is not finite, though all outputs are; float32 overflows"):
        loss, grad = model.loss_and_grad([[1e8]], [0.0])
    with pytest.warns(RuntimeWarning, match="the loss is not finite, though all outputs are; float32 overflows"):
        assert model.loss([[1e8]], [0.0]) == loss == np.inf

    assert np.isnan(grad).all()


def test_loss_classes_as_labels_and_as_probabilities_agree():
    x, y = classes()
    model = classifier(dtype="float64")
    one_hot = np.eye(4)[y]

    expected = -np.mean(np.log(model.predict(x)[np.arange(60), y]))
    assert model.loss(x, y) == pytest.approx(expected, rel=1e-13)
    assert model.loss(x, y[:, np.newaxis]) == model.loss(x, y)
    assert model.loss(x, one_hot) == pytest.approx(expected, rel=1e-13)
    soft = 0.9 * one_hot + 0.025
    assert model.loss(x, soft) == pytest.approx(-np.mean(np.sum(soft * np.log(model.predict(x)), axis=1)), rel=1e-13)


def test_evaluating_keeps_model_and_data():
    x, y = regression()
    model = regressor()
    arrays = x, y, model.params
    before = [bits(array) for array in arrays]

    model.predict(x)
    model.loss(x, y)
    model.loss_and_grad(x, y)

    assert [bits(array) for array in arrays] == before
    assert model.history is None


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("is_trained", [False, True])
def test_mlp_cloned_behaves_the_same(clone, is_trained):
    x, y = classes()
    model = classifier()
    if is_trained:
        model.fit(x, y, epochs=2, seed=1)

    other = clone(model)

    assert repr(other) == repr(model)
    assert (other.seed, other.sizes) == (model.seed, model.sizes)
    assert bits(other.predict(x)) == bits(model.predict(x))
    assert is_trained == (other.history is not None)
    model.fit(x, y, epochs=2, seed=2)
    if clone is not copy.copy:
        assert bits(other.params) != bits(model.params)
        other.fit(x, y, epochs=2, seed=2)
        assert bits(other.params) == bits(model.params)


def test_mlp_deep_copied_shares_no_memory():
    model = regressor()
    other = copy.deepcopy(model)
    other.params[:] = 0.0
    assert not np.shares_memory(model.params, other.params)
    assert model.params.any()


def test_fit_goes_on_from_present_parameters_with_fresh_optimizer_and_history():
    x, y = regression()
    model, twin = regressor(), regressor()

    first = model.fit(x, y, epochs=3, seed=5)
    second = model.fit(x, y, epochs=2, seed=6)

    for epochs, seed in ((3, 5), (2, 6)):
        trainer = fastbp.Trainer(twin, seed=seed)
        trainer.fit(x, y, epochs=epochs)
    assert bits(model.params) == bits(twin.params)
    assert first is not second
    assert model.history is second
    assert (len(first), len(second), second.seed) == (3, 2, 6)
    np.testing.assert_array_equal(second.epoch, [1, 2])


@pytest.mark.filterwarnings("ignore:Setting the (strides|shape) on a NumPy array")
def test_flags_and_strides_set_on_params_reach_nothing_but_that_view():
    x, y = regression()
    model, twin = regressor(), regressor()
    for view in (model.params, *model.weights, *model.biases):
        view.flags.writeable = False
    model.params.strides = (0,)
    model.weights[0].shape = (15,)

    def freeze(y, prediction):
        model.params.flags.writeable = False
        model.params.strides = (0,)
        return 0.0

    watched = {"validation_data": (x, y), "stop": fastbp.EarlyStopping(patience=1)}
    options = {"optimizer": fastbp.SGD(0.5), "epochs": 8, "seed": 0}
    model.fit(x, y, metrics={"freeze": freeze}, **watched, **options)
    twin.fit(x, y, **watched, **options)
    assert bits(model.params) == bits(twin.params)
    for clone in (copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))):
        assert bits(clone(model).predict(x)) == bits(model.predict(x))


def test_views_of_layers_take_what_is_assigned_to_them():
    model = fastbp.MLP([2, 3, 1], init=np.arange(13))
    model.weights[0] *= 2
    model.weights[1] = [[1.0], [2.0], [3.0]]
    model.biases[-1] += 1
    model.biases[0] = 0

    np.testing.assert_array_equal(model.params, [0, 2, 4, 6, 8, 10, 0, 0, 0, 1, 2, 3, 13])
    with pytest.raises(ValueError, match="could not broadcast"):
        model.weights[0] = np.zeros((3, 3))
    with pytest.raises(IndexError):
        model.biases[2] = 0
    assert isinstance(model.weights, tuple)


def test_predict_that_overflows_warns_of_the_row_and_output():
    x = np.zeros((500, 2))
    x[321] = 3e38
    model = fastbp.MLP([2, 16, 3], activation="identity", seed=0)
    model.weights[1][:, :2], model.weights[1][:, 2] = 0.0, 1.0
    model.weights[0] = 1.0
    problem = "the prediction of row 321 is not finite in output 0: nan; float32 overflows on the way: scale the data"
    with pytest.warns(RuntimeWarning, match=problem) as caught:
        prediction = model.predict(x)
    assert caught[0].filename == __file__
    assert np.isfinite(np.delete(prediction, 321, axis=0)).all()
    for call in (model.loss, model.loss_and_grad):
        with pytest.warns(RuntimeWarning, match=problem) as caught:
            call(x, np.zeros((500, 3)))
        assert caught[0].filename == __file__
    wide = fastbp.MLP([2, 16, 3], activation="identity", dtype="float64", init=model.params)
    assert np.isfinite(wide.predict(x)).all()


def test_predict_by_parameters_that_are_not_finite_says_so():
    model = regressor()
    model.params[0] = np.nan
    with pytest.warns(RuntimeWarning, match="row 0 is not finite in output 0: nan; params are not finite"):
        model.predict(np.ones((2, 3)))


def test_model_initialised_a_second_time_is_refused():
    model = fastbp.MLP([25, 1], seed=0)
    before = bits(model.params)
    with pytest.raises(RuntimeError, match="this MLP has been initialised already: make a new MLP instead"):
        model.__init__([3, 5, 1], seed=0)
    with pytest.raises(RuntimeError, match="this MLP has been initialised already"):
        model.__setstate__(fastbp.MLP([3, 5, 1], seed=0).__getstate__())
    assert (model.sizes, bits(model.params)) == ((25, 1), before)


def test_no_size_comes_from_an_overridden_property():
    class Odd(fastbp.MLP):
        n_params = property(lambda self: 10)
        dtype = property(lambda self: np.dtype(np.float64))
        sizes = property(lambda self: (700, 7000, 1))
        params = property(lambda self: np.zeros(3))
        loss_name = property(lambda self: "cross_entropy")

    x, y = np.random.default_rng(0).standard_normal((64, 70)), np.ones(64)
    odd, twin = Odd([70, 70, 1], seed=0), fastbp.MLP([70, 70, 1], seed=0)
    assert bits(odd.loss_and_grad(x, y)[1]) == bits(twin.loss_and_grad(x, y)[1])
    assert bits(odd.predict(x)) == bits(twin.predict(x))
    assert bits(odd.fit(x, y, epochs=2, seed=0).loss) == bits(twin.fit(x, y, epochs=2, seed=0).loss)
    trainer = fastbp.Trainer(odd)
    trainer.step(x, y)
    assert trainer.n_steps == 1


def test_gradient_that_overflows_behind_a_finite_loss_warns():
    model = fastbp.MLP([1, 1, 1], "identity", loss="mae", init=[1e-30, 0.0, 1e15, 0.0])
    with pytest.warns(RuntimeWarning, match="the gradient is not finite, though the loss is; float32 overflows"):
        loss, grad = model.loss_and_grad([[1e25]], [0.0])
    assert np.isfinite(loss)
    assert not np.isfinite(grad).all()
