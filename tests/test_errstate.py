"""fastbp under strict settings of NumPy's floating-point errors: nothing of its own is reported, and bits are the same.

What the user's own functions do is reported as the user has set it.
"""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastbp
from cases import ACTIVATIONS
from fastbp import schedules
from fastbp.initializers import INITIALIZERS
from problems import bits
from reference import OF_ERRORS

STATES = ["raise", "warn", "call"]

RNG = np.random.default_rng(0)
# From subnormal to as large as can be squared, in columns.
X = RNG.standard_normal((40, 4)) * [5e-324, 1e-60, 1.0, 3.0]
Y = RNG.standard_normal((40, 2)) * [1e-300, 1.0]
LABELS = RNG.integers(0, 3, 40)
SOFT = RNG.dirichlet(np.full(3, 0.01), 40)

OPTIMIZERS = [
    fastbp.SGD(1e-310),
    fastbp.SGD(1e-3, momentum=0.9, nesterov=True),
    fastbp.Adagrad(1e-300),
    fastbp.RMSprop(1e-3, alpha=0.0, momentum=5e-324, centered=True, eps=1.0),
    fastbp.Adam(1e-300, beta1=5e-324, beta2=1.0 - 1e-16),
    fastbp.Adam(eps=3e38),
    fastbp.AdamW(1e-200, weight_decay=1e-200),
    fastbp.AdamW(1e-300, weight_decay=1e300, decay_biases=True),
]
SCHEDULES = [
    schedules.StepDecay(1e-3, 1e-200, 1),
    schedules.ExponentialDecay(1e-3, 1e-300),
    schedules.CosineDecay(1e-300, 7),
    schedules.PolynomialDecay(1e-3, 7, power=1e300),
    schedules.InverseSqrtDecay(5e-324, 1),
    schedules.OneCycle(1e-300, 9),
    schedules.Warmup(3, schedules.ExponentialDecay(1e-300, 1e-300)),
    schedules.Warmup(2**63 - 1, 5e-324),
]
STOP = [fastbp.Convergence(5e-324), fastbp.EarlyStopping(2), fastbp.TargetLoss(-1e308), fastbp.TimeLimit(1e308)]


def fits(dtype):
    """Yield results of fits with every optimizer and schedule, validated, stopped early, gone on and pickled."""
    for rate in (*OPTIMIZERS, *map(fastbp.SGD, SCHEDULES)):
        trainer = fastbp.Trainer(fastbp.MLP([4, 5, 2], dtype=dtype, seed=0), optimizer=rate, batch_size=16, seed=0)
        data = {"validation_data": (X, Y), "stop": STOP, "metrics": {"zero": lambda y, prediction: 0.0}}
        trainer.fit(X, Y, max_steps=4, **data)
        trainer = pickle.loads(pickle.dumps(trainer))
        trainer.fit(X, Y, epochs=3, **data)
        trainer.step(X, Y)
        history = trainer.history
        yield repr(history), str(history.stop_reason), bits(history.loss), bits(trainer.model.params)


def networks(dtype):
    """Yield results of every activation, initializer and loss."""
    for activation in ACTIVATIONS:
        model = fastbp.MLP([4, 5, 2], activation, dtype=dtype, seed=0)
        yield bits(model.predict(X * [1.0, 1.0, 1e3, 1.0]))
        yield tuple(map(bits, model.loss_and_grad(X, Y)))
    for init in INITIALIZERS:
        yield bits(fastbp.MLP([4, 5, 2], init=init, dtype=dtype, seed=0).params)
    for loss in OF_ERRORS:
        yield fastbp.MLP([4, 5, 2], loss=loss, dtype=dtype, seed=0).loss(X, Y)
    classifier = fastbp.MLP([4, 5, 3], output="softmax", dtype=dtype, seed=0)
    for y in (LABELS, LABELS.astype(float), SOFT, np.eye(3)[LABELS]):
        classifier.fit(X, y, epochs=2, validation_data=(X, y), seed=0)
        yield classifier.loss(X, y), bits(classifier.params)
    binary = fastbp.MLP([4, 1], output="sigmoid", dtype=dtype, seed=0)
    binary.fit(X, np.linspace(0.0, 1e-300, 40), epochs=2, seed=0)
    yield bits(binary.params)


def parameters_and_data(dtype):
    """Yield results of numbers that vanish in a cast, and the words for those that do not fit."""
    model = fastbp.MLP([1, 1], init=np.array([1e-300, 5e-324]), dtype=dtype)
    model.params = [1e-60, -5e-324]
    yield bits(model.params)
    for source in ("longdouble", ">f8", "float16", "uint64", "bool"):
        yield bits(model.predict(np.ones((3, 1)).astype(source)))
    for call in (
        lambda: model.predict([[np.nan]]),
        lambda: model.predict([[np.inf]]),
        lambda: model.fit([[1.0]], [-np.inf]),
        lambda: setattr(model, "params", [np.inf, 0.0]),
        lambda: fastbp.MLP([1, 2], output="softmax", seed=0).loss([[1.0]], [[1e308, 1e308]]),
        lambda: fastbp.Trainer(model, optimizer=fastbp.Adam(eps=1e300 if dtype == "float32" else 5e-324)),
        lambda: fastbp.MLP([1, 1], init=[1.0, 0.0]).fit([[1.0]], [0.0], optimizer=fastbp.SGD(1e300)),
        lambda: fastbp.MLP([1, 1], init=[1.0, 0.0]).fit(
            [[1.0]], [0.0], optimizer=fastbp.AdamW(1e300, weight_decay=1e9)
        ),
    ):
        with pytest.raises((ValueError, ArithmeticError)) as error:
            call()
        assert not isinstance(error.value, FloatingPointError)
        yield str(error.value)


ANY_RATE = st.floats(0.0, 1e300, exclude_min=True)
ANY_FRACTION = st.floats(0.0, 1.0, exclude_max=True)
ANY_LENGTH = st.integers(1, 2**63 - 1)
ANY_LEARNING_RATE = st.one_of(
    ANY_RATE,
    st.builds(schedules.CosineDecay, ANY_RATE, ANY_LENGTH, ANY_RATE),
    st.builds(schedules.OneCycle, ANY_RATE, ANY_LENGTH),
    st.builds(schedules.Warmup, ANY_LENGTH, ANY_RATE),
)


@given(
    optimizer=st.one_of(
        st.builds(fastbp.SGD, ANY_LEARNING_RATE, ANY_FRACTION),
        st.builds(fastbp.Adagrad, ANY_LEARNING_RATE, ANY_RATE),
        st.builds(fastbp.RMSprop, ANY_LEARNING_RATE, ANY_FRACTION, ANY_RATE, ANY_FRACTION, st.booleans()),
        st.builds(fastbp.Adam, ANY_LEARNING_RATE, ANY_FRACTION, ANY_FRACTION, ANY_RATE),
        st.builds(fastbp.AdamW, ANY_LEARNING_RATE, ANY_FRACTION, ANY_FRACTION, ANY_RATE, ANY_RATE),
    ),
    dtype=st.sampled_from(["float32", "float64"]),
)
@settings(max_examples=200)
def test_any_legal_optimizer_trains_or_diverges_in_words(optimizer, dtype):
    model = fastbp.MLP([4, 2], dtype=dtype, seed=0)
    with np.errstate(all="raise"):
        try:
            trainer = fastbp.Trainer(model, optimizer=optimizer, seed=0)
        except ValueError as error:
            assert str(error).startswith("eps must be in [")  # noqa: PT017 - only some are refused
            return
        try:
            trainer.fit(X, Y, epochs=2)
        except fastbp.DivergenceError:
            return
    assert trainer.n_steps == 4
    assert np.isfinite(model.params).all()


TOURS = [fits, networks, parameters_and_data]


def unexpected(kind, flag):
    raise AssertionError(f"NumPy reported {kind}")


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tour", TOURS)
def test_tour_under_any_errstate_gives_the_same_bits(tour, dtype, state):
    with np.errstate(all="ignore"):
        expected = list(tour(dtype))
    with np.errstate(all=state, call=unexpected):
        assert list(tour(dtype)) == expected


@pytest.mark.parametrize("kind", ["metric", "schedule", "callable behind a warm-up"])
def test_users_functions_run_under_the_users_errstate(kind):
    def function(*arguments):
        return float(np.float64(1e-200) * np.float64(1e-200)) + 1e-3

    model, options = fastbp.MLP([4, 2], seed=0), {}
    if kind == "metric":
        options = {"validation_data": (X, Y), "metrics": {"tiny": function}}
    else:
        rate = function if kind == "schedule" else schedules.Warmup(1, function)
        options = {"optimizer": fastbp.SGD(rate)}
    model.fit(X, Y, epochs=2, **options)
    with np.errstate(under="raise"), pytest.raises(FloatingPointError):
        model.fit(X, Y, epochs=2, **options)
