"""Training on scikit-learn's bundled data reaches what the peers reach."""

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits, load_iris
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import train_test_split

import fastbp
from cases import ACTIVATIONS


def digits():
    x, y = load_digits(return_X_y=True)
    return train_test_split(x / 16.0, y, test_size=0.2, random_state=0, stratify=y)


def standardized(x):
    return (x - x.mean(axis=0)) / x.std(axis=0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_digits_classifier_reaches_97_percent(seed):
    x_train, x_test, y_train, y_test = digits()
    model = fastbp.MLP([64, 128, 10], output="softmax", seed=seed)
    model.fit(x_train, y_train, epochs=40, seed=seed)
    accuracy = np.mean(model.predict(x_test).argmax(axis=1) == y_test)
    assert accuracy >= 0.97


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
def test_diabetes_linear_regression_equals_least_squares(dtype, tolerance):
    x, y = load_diabetes(return_X_y=True)
    x, y = standardized(x), standardized(y)
    expected = LinearRegression().fit(x, y)
    model = fastbp.MLP([10, 1], dtype=dtype, seed=0)
    model.fit(x, y, optimizer=fastbp.SGD(0.1, momentum=0.95), batch_size=None, epochs=8000, seed=0)
    np.testing.assert_allclose(model.weights[0][:, 0], expected.coef_, rtol=0, atol=tolerance)
    np.testing.assert_allclose(model.predict(x)[:, 0], expected.predict(x), rtol=0, atol=tolerance)
    assert model.loss(x, y) == pytest.approx(1.0 - expected.score(x, y), rel=tolerance)


def test_diabetes_logistic_regression_equals_scikit_learn():
    x, y = load_diabetes(return_X_y=True)
    x, above = standardized(x), y > np.median(y)
    expected = LogisticRegression(C=1e10, tol=1e-10, max_iter=10_000).fit(x, above)
    model = fastbp.MLP([10, 1], output="sigmoid", dtype="float64", seed=0)
    model.fit(x, above, optimizer=fastbp.SGD(0.5, momentum=0.95), batch_size=None, epochs=20_000, seed=0)
    np.testing.assert_allclose(model.predict(x)[:, 0], expected.predict_proba(x)[:, 1], rtol=0, atol=1e-6)


def test_iris_softmax_regression_equals_scikit_learn():
    x, y = load_iris(return_X_y=True)
    x = standardized(x)[:, :2]  # two features overlap: the maximum of the likelihood is finite
    expected = LogisticRegression(C=1e10, tol=1e-10, max_iter=10_000).fit(x, y)
    model = fastbp.MLP([2, 3], output="softmax", dtype="float64", seed=0)
    model.fit(x, y, optimizer=fastbp.SGD(0.5, momentum=0.99), batch_size=None, epochs=40_000, seed=0)
    np.testing.assert_allclose(model.predict(x), expected.predict_proba(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_digits_classifier_learns_with_any_activation(activation):
    x_train, x_test, y_train, y_test = digits()
    model = fastbp.MLP([64, 32, 10], activation, "softmax", seed=0)
    history = model.fit(
        x_train,
        y_train,
        optimizer=fastbp.Adam(3e-3),
        epochs=30,
        validation_data=(x_test, y_test),
        seed=0,
    )
    assert history.validation_accuracy[-1] >= 0.95
