"""The warning of a fit on data whose rows float32 cannot tell apart."""

import warnings
from pathlib import Path

import numpy as np
import pytest

import fastbp
from problems import bits, state_of

X = np.random.default_rng(0).standard_normal((60, 3))
Y = np.sin(X[:, :1])
FAR = X.copy()
FAR[:, 1] += 1e6

CURE = 'use dtype="float64", or, for x, standardize=True'


def model_of(**options):
    return fastbp.MLP([3, 5, 1], "tanh", seed=0, **options)


def warnings_of(function):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    return caught


@pytest.mark.parametrize(
    ("x", "y", "named"),
    [
        (FAR, Y, "column 1 of x: "),
        (X, Y + 1e9, "column 0 of y: "),
        (X + 1e9, Y + 1e9, "columns 0, 1, 2 of x and column 0 of y: "),
        ((X * 1000).astype(np.int64) + 2**40, Y, "columns 0, 1, 2 of x: "),
    ],
)
def test_fit_warns_once_naming_columns_and_cure_and_the_users_line(x, y, named):
    for fit in (model_of().fit, fastbp.Trainer(model_of()).fit):
        caught = warnings_of(lambda fit=fit: fit(x, y, max_steps=1, validation_data=(x, y)))

        assert len(caught) == 1
        assert caught[0].category is RuntimeWarning
        assert Path(caught[0].filename) == Path(__file__)
        message = str(caught[0].message)
        assert message.startswith(named)
        assert message.endswith(CURE)


def test_fit_many_columns_names_the_first_five():
    with pytest.warns(RuntimeWarning, match=r"columns 0, 1, 2, 3, 4 and 15 more of x: "):
        fastbp.MLP([20, 1], seed=0).fit(1e9 + np.random.default_rng(0).random((8, 20)), np.zeros(8), max_steps=1)


@pytest.mark.parametrize(
    "make_data",
    [
        lambda: (X, Y),
        lambda: (np.ones((60, 3)), np.full(60, 1e9)),
        lambda: (FAR.astype(np.float32), Y),
        lambda: (X * [1e-9, 1e9, 1.0], Y * 1e9),
    ],
)
def test_fit_does_not_warn_of_ordinary_constant_or_float32_data(make_data):
    x, y = make_data()
    assert not warnings_of(lambda: model_of().fit(x, y, optimizer=fastbp.SGD(1e-30), max_steps=1))


def test_only_fit_in_float32_warns():
    model, x, y = model_of(), FAR, Y + 1e9
    trainer = fastbp.Trainer(model)

    def all_others():
        model.predict(x), model.loss(x, y), model.loss_and_grad(x, y), trainer.step(x, y)
        model_of(dtype="float64").fit(x, y, max_steps=1)
        fastbp.MLP([3, 2], output="softmax", seed=0).fit(X, np.arange(60) % 2, max_steps=1)
        trainer.fit(X, Y, max_steps=1, validation_data=(x, y))

    assert not warnings_of(all_others)


def test_warning_as_an_error_leaves_everything_as_it_was():
    trainer = fastbp.Trainer(model_of(), batch_size=8, seed=0)
    trainer.fit(X, Y, max_steps=3)
    before = state_of(trainer), len(trainer.history), trainer.history.stop_reason

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="column 1 of x"):
            trainer.fit(FAR, Y)
    assert (state_of(trainer), len(trainer.history), trainer.history.stop_reason) == before
    again = fastbp.Trainer(model_of(), batch_size=8, seed=0)
    again.fit(X, Y, max_steps=3)
    assert bits(trainer.fit(X, Y, max_steps=9).loss) == bits(again.fit(X, Y, max_steps=9).loss)


def test_cure_subtracting_the_mean_is_silent():
    far, y = FAR - FAR.mean(axis=0), Y + 1e9
    assert not warnings_of(lambda: model_of().fit(far, y - y.mean(), max_steps=1))
