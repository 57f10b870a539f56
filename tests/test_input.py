"""What may be passed as data, and what is refused before anything has happened."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fastbp
from fastbp import _jit
from fastbp.kernels import border
from problems import bits, classes, classifier, regression, regressor, state_of

DTYPES = ["bool", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]
FOREIGN = [">i2", ">i8", ">u4", ">f2", ">f4", ">f8", "longdouble"]


def strided(array):
    return np.repeat(np.repeat(array, 3, axis=0), 2, axis=-1)[::3, ::2]


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def unaligned(array):
    memory = np.zeros(array.nbytes + 1, np.uint8)
    view = memory[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


LAYOUTS = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "strided": strided,
    "reversed": lambda array: array[::-1, ::-1][::-1, ::-1].copy()[::-1, ::-1][::-1, ::-1],
    "backwards": lambda array: array[::-1].copy()[::-1],
    "read-only": read_only,
    "unaligned": unaligned,
    "in a wider one": lambda array: np.hstack([array, array])[:, : array.shape[1]],
    "list": lambda array: array.tolist(),
    "subclass": lambda array: array.view(np.recarray),
}


def fitted(make_model, x, y, **arguments):
    model = make_model()
    model.fit(x, y, **{"epochs": 2, "batch_size": 8, "seed": 1, **arguments})
    return model


def small_integers(dtype, shape, seed=0):
    """Return numbers that every dtype holds, in `dtype`."""
    return np.random.default_rng(seed).integers(2, size=shape).astype(dtype)


@pytest.mark.parametrize("model_dtype", ["float32", "float64"])
def test_fit_any_dtype_and_layout_gives_the_same_bits_and_compiles_nothing(model_dtype):
    def make_model():
        return regressor(dtype=model_dtype)

    x, y = small_integers("f8", (30, 3)), small_integers("f8", (30, 1), seed=1)
    expected = fitted(make_model, x, y, validation_data=(x, y))
    prediction = bits(expected.predict(x))
    compiled = _jit.n_compiled(), _jit.compile_seconds(), len(border.train.signatures)

    for dtype in DTYPES + FOREIGN:
        for name, layout in LAYOUTS.items():
            x_given, y_given = layout(x.astype(dtype)), layout(y.astype(dtype))
            before = np.array(x_given), np.array(y_given)
            model = fitted(make_model, x_given, y_given, validation_data=(x_given, y_given))
            assert bits(model.params) == bits(expected.params), (dtype, name)
            assert bits(model.predict(x_given)) == prediction, (dtype, name)
            np.testing.assert_array_equal(x_given, before[0])
            np.testing.assert_array_equal(y_given, before[1])
    assert (_jit.n_compiled(), _jit.compile_seconds(), len(border.train.signatures)) == compiled
    assert len(border.train.signatures) == len(border.write_range.signatures) == len(border.evaluate.signatures) == 1


def test_fit_labels_of_any_dtype_and_layout_give_the_same_bits_and_compile_nothing():
    x, _ = classes(30)
    labels = small_integers("i8", (30,))
    expected = fitted(classifier, x, labels)
    compiled = _jit.n_compiled(), _jit.compile_seconds(), len(border.train.signatures)

    for dtype in DTYPES + FOREIGN:
        given = labels.astype(dtype)
        for y in (given, given[:, np.newaxis], strided(given[:, np.newaxis]), read_only(given), given.tolist()):
            before = np.array(y)
            assert bits(fitted(classifier, x, y).params) == bits(expected.params), dtype
            np.testing.assert_array_equal(y, before)
    assert (_jit.n_compiled(), _jit.compile_seconds(), len(border.train.signatures)) == compiled


@given(
    x=hnp.arrays(
        st.sampled_from([np.dtype(name) for name in DTYPES + FOREIGN]),
        st.tuples(st.integers(1, 20), st.just(3)),
        elements={"allow_nan": False, "allow_infinity": False, "min_value": 0, "max_value": 1},
    ),
    step=st.sampled_from([1, 2, -1, -3]),
    transposed=st.booleans(),
)
@settings(max_examples=80)
def test_predict_any_array_equals_its_float64_copy(x, step, transposed):
    x = (np.asfortranarray(x) if transposed else x)[::step]
    model = regressor(dtype="float64")
    before = x.copy()
    assert bits(model.predict(x)) == bits(model.predict(np.ascontiguousarray(x, np.float64)))
    np.testing.assert_array_equal(x, before)


def test_predict_float16_extremes_are_read_exactly():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    x = every[np.isfinite(every)][:, np.newaxis]
    model = fastbp.MLP([1, 1], init=[1.0, 0.0])
    np.testing.assert_array_equal(model.predict(x), x.astype(np.float32))


@pytest.mark.parametrize("dtype", ["i8", "u8", "i4", "u4"])
def test_predict_integer_extremes_are_rounded_as_numpy_does(dtype):
    limits = np.iinfo(dtype)
    x = np.array([limits.min, limits.max, limits.max - 1, limits.max // 2 + 1, 2**24 + 1, 3], dtype)[:, np.newaxis]
    for model_dtype in ("float32", "float64"):
        model = fastbp.MLP([1, 1], init=[1.0, 0.0], dtype=model_dtype)
        np.testing.assert_array_equal(model.predict(x), x.astype(model_dtype))


def odd_bools(values):
    """Return a bool array with all kinds of bytes that are not 0 for True."""
    return np.where(values, np.resize([255, 2, 128, 1], np.shape(values)), 0).astype(np.uint8).view(bool)


@pytest.mark.parametrize("role", ["x", "values", "binary", "labels", "one-hot", "labels of three classes"])
def test_fit_any_byte_of_a_bool_that_is_not_0_is_1(role):
    bools = small_integers(bool, (30, 3))
    one_hot = np.eye(3, dtype=bool)[np.arange(30) % 3]
    x, _ = regression(30)
    make_model, given = {
        "x": (regressor, bools),
        "values": (regressor, bools[:, :1]),
        "binary": (lambda: fastbp.MLP([3, 5, 1], output="sigmoid", seed=0), bools[:, 0]),
        "labels": (lambda: fastbp.MLP([3, 5, 2], output="softmax", seed=0), bools[:, 0]),
        "one-hot": (lambda: fastbp.MLP([3, 5, 3], output="softmax", seed=0), one_hot),
        "labels of three classes": (lambda: fastbp.MLP([3, 5, 3], output="softmax", seed=0), bools[:, :1]),
    }[role]

    def results(bools):
        data = (bools, x[:, 0]) if role == "x" else (x, bools)
        model = fitted(make_model, *data, validation_data=data)
        loss, grad = model.loss_and_grad(*data)
        history = model.history
        return bits(model.params), model.loss(*data), loss, bits(grad), bits(history.loss), bits(history.accuracy)

    expected = results(given.astype(np.uint8))
    assert results(given) == expected
    for layout in ("C", "Fortran", "strided", "read-only", "in a wider one") if given.ndim == 2 else ("C", "read-only"):
        assert results(LAYOUTS[layout](odd_bools(given))) == expected


def test_fit_repeated_row_without_memory_of_its_own():
    x, y = np.broadcast_to(np.ones(3), (30, 3)), np.broadcast_to(0.5, (30, 1))
    assert bits(fitted(regressor, x, y).params) == bits(fitted(regressor, x.copy(), y.copy()).params)


def test_fit_data_that_overlaps_the_parameters_is_read_only_to_it():
    model = fastbp.MLP([3, 7, 1], seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(model.weights[0].T.copy(), np.ones(7), epochs=1)
    assert np.isfinite(model.params).all()


@pytest.mark.parametrize("loss", ["mse", "mae", "huber", "binary_cross_entropy"])
def test_one_output_vector_and_column_are_the_same(loss):
    x, y = regression()
    y = (y > 0.0).astype(float)

    def make_model():
        return fastbp.MLP([3, 5, 1], output="sigmoid", loss=loss, seed=0)

    column, vector = fitted(make_model, x, y), fitted(make_model, x, y[:, 0])
    assert bits(column.params) == bits(vector.params)
    assert column.loss(x, y) == vector.loss(x, y[:, 0])


@pytest.mark.parametrize("shape", [(), (1,), (60, 2), (1, 60), (60, 1, 1), (1, 1), (59,), (61, 1), (0,)])
def test_targets_are_never_broadcast(shape):
    x, _ = regression()
    model = regressor()
    for function in (model.fit, model.loss, model.loss_and_grad, fastbp.Trainer(model).step):
        with pytest.raises(ValueError, match=r"y must (have shape|have as many samples)"):
            function(x, np.zeros(shape))


@pytest.mark.parametrize("shape", [(60,), (60, 1), (60, 3), (3,), (60, 2, 1)])
def test_targets_of_several_outputs_are_never_broadcast(shape):
    model = fastbp.MLP([3, 2], seed=0)
    with pytest.raises(ValueError, match=r"y must (have shape \(n_samples, 2\)|have as many samples)"):
        model.fit(np.zeros((60, 3)), np.zeros(shape))


X, Y = regression()
LABELS_X, LABELS = classes()
NAN_ROW = X.copy()
NAN_ROW[17, 1] = np.nan


def with_value(array, row, value):
    changed = array.copy()
    changed[row] = value
    return changed


BAD_DATA = [
    ((X[0], Y), ValueError, r"x must have shape \(n_samples, 3\), got \(3,\)"),
    ((X[np.newaxis], Y), ValueError, r"x must have shape \(n_samples, 3\), got \(1, 60, 3\)"),
    ((X[:, :2], Y), ValueError, r"x must have shape \(n_samples, 3\), got \(60, 2\)"),
    ((X.T, Y), ValueError, r"x must have shape \(n_samples, 3\), got \(3, 60\)"),
    ((1.0, Y), ValueError, r"x must have shape \(n_samples, 3\), got \(\)"),
    ((X[:0], Y[:0]), ValueError, r"x must have at least one sample, got shape \(0, 3\)"),
    (([], []), ValueError, r"x must have shape \(n_samples, 3\), got \(0,\)"),
    ((X, Y[:50]), ValueError, "y must have as many samples as its x: expected 60, got 50"),
    ((X[:50], Y), ValueError, "y must have as many samples as its x: expected 50, got 60"),
    ((X, Y.T), ValueError, "y must have as many samples as its x: expected 60, got 1"),
    ((NAN_ROW, Y), ValueError, "x must be finite, got nan in row 17"),
    ((with_value(X, 3, np.inf), Y), ValueError, "x must be finite, got inf in row 3"),
    ((with_value(X, 3, 1e39), Y), ValueError, r"x must be within the range of float32, got 1e\+39 in row 3"),
    ((X, with_value(Y, 59, -np.inf)), ValueError, "y must be finite, got -inf in row 59"),
    ((X, with_value(Y, 0, np.nan)), ValueError, "y must be finite, got nan in row 0"),
    ((X.astype(object), Y), TypeError, "x must have a bool, integer or floating dtype, got object"),
    ((X.astype(complex), Y), TypeError, "x must have a bool, integer or floating dtype, got complex128"),
    ((X.astype(str), Y), TypeError, "x must have a bool, integer or floating dtype, got <U"),
    ((X, Y.astype("S")), TypeError, "y must have a bool, integer or floating dtype, got .S"),
    ((X.astype("M8[s]"), Y), TypeError, "x must have a bool, integer or floating dtype, got datetime64"),
    ((None, Y), TypeError, "x must have a bool, integer or floating dtype, got object"),
    ((X, None), TypeError, "y must (have a bool, integer or floating dtype, got object|be given, or x be)"),
    (([[1.0, 2.0, 3.0], [1.0]], [0.0, 0.0]), ValueError, "x must be convertible to an array of numbers"),
    ((np.ma.masked_less(X, 0.0), Y), TypeError, "x must not be a masked array: fill or drop its masked values first"),
    ((X, np.ma.array(Y)), TypeError, "y must not be a masked array"),
]
BAD_LABELS = [
    (with_value(LABELS, 8, 4), r"y must hold class labels in \[0, 4\), got 4 in row 8"),
    (with_value(LABELS, 8, -1), r"y must hold class labels in \[0, 4\), got -1 in row 8"),
    (with_value(LABELS.astype(float), 9, 0.5), "y must hold whole class labels, got the fractional 0.5 in row 9"),
    (with_value(LABELS.astype(float), 9, np.nan), "y must be finite, got nan in row 9"),
    (np.full((60, 4), 0.5), "y must hold rows of probabilities that sum to 1, got the sum 2 in row 0"),
    (np.eye(4)[LABELS] * 3.0 - 0.5, "y must hold probabilities >= 0, got -0.5 in row 0"),
    (np.eye(5)[LABELS], r"y must have shape \(n_samples,\) or \(n_samples, 1\) for labels or \(n_samples, 4\) for"),
]
VALIDATION = "validation_data must be a pair"
BAD_ARGUMENTS = [
    ({"epochs": 0}, ValueError, "epochs must be a positive integer, got 0"),
    ({"epochs": -1}, ValueError, "epochs must be a positive integer, got -1"),
    ({"epochs": 1.5}, TypeError, "epochs must be a positive integer, got 1.5 of type float"),
    ({"epochs": None}, ValueError, "epochs=None needs another limit"),
    ({"max_steps": 0}, ValueError, "max_steps must be a positive integer, got 0"),
    ({"max_steps": "10"}, TypeError, "max_steps must be a positive integer, got '10' of type str"),
    ({"stop": "never"}, TypeError, r"stop must be a stop rule such as .*, got 'never'"),
    ({"stop": fastbp.TimeLimit}, TypeError, "stop must be a stop rule such as"),
    ({"stop": [fastbp.EarlyStopping()]}, ValueError, "EarlyStopping watches the validation loss"),
    ({"metrics": {"f": len}}, ValueError, r"metrics are computed on validation data: pass validation_data=\(x, y\)"),
    ({"metrics": len}, TypeError, "metrics must be a dict of name: f"),
    ({"metrics": {"loss": len}, "validation_data": (X, Y)}, ValueError, "metrics must be named by identifiers that"),
    ({"metrics": {"f": 1}, "validation_data": (X, Y)}, TypeError, r"metrics\['f'\] must be a callable"),
    ({"progress": 1}, TypeError, "progress must be a bool, got 1 of type int"),
    ({"validation_data": X}, TypeError, rf"{VALIDATION} \(x, y\), got ndarray"),
    ({"validation_data": (X,)}, TypeError, VALIDATION),
    ({"validation_data": (X, Y, Y, Y)}, TypeError, VALIDATION),
    ({"validation_data": (X, Y[:5])}, ValueError, r"validation_data\[1\] must have as many samples as its x"),
    ({"validation_data": (X[:, :1], Y)}, ValueError, r"validation_data\[0\] must have shape \(n_samples, 3\)"),
    ({"validation_data": (NAN_ROW, Y)}, ValueError, r"validation_data\[0\] must be finite, got nan in row 17"),
    ({"validation_data": (X[:0], Y[:0])}, ValueError, r"validation_data\[0\] must have at least one sample"),
]


@pytest.fixture
def trainer():
    """A trainer in mid-epoch."""
    trainer = fastbp.Trainer(regressor(), batch_size=8, seed=0)
    trainer.fit(X, Y, max_steps=11)
    return trainer


def expect_refused(trainer, call, error, message):
    """Check that a call raises and leaves everything as it was."""
    history = trainer.history
    before = state_of(trainer), len(history), history.stop_reason, vars(history)["_columns"].keys()
    with pytest.raises(error, match=message):
        call()
    assert trainer.model.history is trainer.history is history
    assert (state_of(trainer), len(history), history.stop_reason, vars(history)["_columns"].keys()) == before


@pytest.mark.parametrize(("data", "error", "message"), BAD_DATA)
def test_bad_data_is_refused_with_nothing_changed(trainer, data, error, message):
    model = trainer.model
    for function in (trainer.fit, trainer.step, model.fit, model.loss, model.loss_and_grad):
        expect_refused(trainer, lambda function=function: function(*data), error, message)
    trainer.fit(X, Y, epochs=1)
    assert trainer.n_steps == 16


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_ARGUMENTS)
def test_bad_argument_of_fit_is_refused_with_nothing_changed(trainer, arguments, error, message):
    for function in (trainer.fit, trainer.model.fit):
        expect_refused(trainer, lambda function=function: function(X, Y, **arguments), error, message)
    trainer.fit(X, Y, epochs=1)
    assert trainer.n_steps == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"seed": -1}, "seed must be in"),
        ({"threads": 0}, "threads must be a positive integer or 'auto', got 0"),
    ],
)
def test_bad_argument_of_the_trainer_is_refused_by_fit_too(trainer, arguments, message):
    expect_refused(trainer, lambda: trainer.model.fit(X, Y, **arguments), ValueError, message)


@pytest.mark.parametrize(("y", "message"), BAD_LABELS)
def test_bad_classes_are_refused_with_nothing_changed(y, message):
    trainer = fastbp.Trainer(classifier(), seed=0)
    trainer.fit(LABELS_X, LABELS, max_steps=3)
    for function in (trainer.fit, trainer.step, trainer.model.fit, trainer.model.loss, trainer.model.loss_and_grad):
        expect_refused(trainer, lambda function=function: function(LABELS_X, y), ValueError, message)
    trainer.fit(LABELS_X, LABELS, epochs=1)


def test_binary_targets_beyond_0_and_1_are_refused():
    model = fastbp.MLP([3, 1], output="sigmoid", seed=0)
    before = bits(model.params)
    with pytest.raises(ValueError, match=r"y must lie in \[0, 1\] for binary cross-entropy, got 1.5 in row 4"):
        model.fit(X, with_value(np.zeros(60), 4, 1.5))
    assert bits(model.params) == before


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (X[:, :2], ValueError, r"x must have shape \(n_samples, 3\), got \(60, 2\)"),
        (NAN_ROW, ValueError, "x must be finite, got nan in row 17"),
        (X.astype(object), TypeError, "x must have a bool, integer or floating dtype, got object"),
        (np.ma.array(X), TypeError, "x must not be a masked array"),
    ],
)
def test_predict_bad_x_is_refused_and_out_untouched(x, error, message):
    out = np.full((60, 1), 7.0, np.float32)
    with pytest.raises(error, match=message):
        regressor().predict(x, out=out)
    assert (out == 7.0).all()


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.floats(allow_nan=True), max_size=4),
    st.lists(st.lists(st.integers(-1, 4) | st.floats(), min_size=3, max_size=3), max_size=4),
    st.lists(st.lists(st.text(max_size=2), max_size=3), max_size=3),
    hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)),
)


@given(x=anything, y=anything, has_classes=st.booleans())
@settings(max_examples=300)
def test_fit_any_objects_as_data_train_or_are_refused_in_words(x, y, has_classes):
    model = classifier() if has_classes else regressor()
    before = bits(model.params)
    try:
        model.fit(x, y, epochs=1, optimizer=fastbp.SGD(1e-3))
    except (ValueError, TypeError) as error:
        message = str(error)
        assert message.startswith(("x must ", "y must ", "x of chunk 0 must ", "y of chunk 0 must "))
        assert bits(model.params) == before
        assert model.history is None
    except fastbp.DivergenceError:
        assert bits(model.params) == before  # finite, but too large to square


@given(
    arguments=st.fixed_dictionaries(
        {},
        optional={
            "batch_size": anything,
            "epochs": st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3),
            "max_steps": st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3),
            "validation_data": anything | st.tuples(anything, anything),
            "stop": anything,
            "metrics": anything | st.dictionaries(st.text(max_size=3), anything, max_size=2),
            "shuffle": anything,
            "drop_last": anything,
            "threads": st.none() | st.booleans() | st.integers(-3, 2) | st.floats() | st.text(max_size=4),
            "seed": anything,
            "optimizer": anything,
        },
    )
)
@settings(max_examples=300)
def test_fit_any_arguments_train_or_are_refused_by_name(arguments):
    model = regressor()
    before = bits(model.params)
    try:
        model.fit(X, Y, **{"max_steps": 3, **arguments})
    except (ValueError, TypeError) as error:
        message = str(error)
        assert any(name in message for name in arguments)
        assert bits(model.params) == before
        assert model.history is None
    else:
        assert bits(model.params) != before
