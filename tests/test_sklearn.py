"""The estimators for scikit-learn: its own tests, its checks of estimators, and its numbers."""

import os
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path

import joblib
import numpy as np
import pytest
from numpy.testing import assert_allclose

import fastbp

sklearn = pytest.importorskip("sklearn")

from sklearn import datasets, neural_network  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

from fastbp.sklearn import MLPClassifier, MLPRegressor  # noqa: E402
from fastbp.sklearn.progress import HAS_CALLBACKS  # noqa: E402

sparse = pytest.importorskip("scipy.sparse")

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

PAIRS = {"MLPClassifier": MLPClassifier, "MLPRegressor": MLPRegressor}
# Of scikit-learn's tests those of private internals, which are others here.
PRIVATE = {
    "test_fit": "sets the state of a fit by hand and calls `_fit_stochastic`",
    "test_gradient": "calls `_loss_grad_lbfgs`",
}
CONFTEST = """
import pytest

@pytest.fixture
def global_random_seed():
    return 42
"""


def test_scikit_learns_own_tests_pass_but_for_those_of_private_internals(tmp_path):
    source = (Path(sklearn.__file__).parent / "neural_network" / "tests" / "test_mlp.py").read_text()
    imported = "from sklearn.neural_network import MLPClassifier, MLPRegressor"
    assert source.count(imported) == 1
    (tmp_path / "test_theirs.py").write_text(
        source.replace(imported, imported.replace("sklearn.neural_network", "fastbp.sklearn"))
    )
    (tmp_path / "conftest.py").write_text(CONFTEST)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rf", "test_theirs.py"]
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    failed = set(re.findall(r"^FAILED test_theirs\.py::(\w+)", done.stdout, re.M))
    assert failed == set(PRIVATE), done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 50


@pytest.mark.parametrize("name", PAIRS)
def test_no_check_of_an_estimator_fails_that_scikit_learns_passes(name):
    passed = []
    for make in (getattr(neural_network, name), PAIRS[name]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcomes = check_estimator(make(max_iter=100), on_fail=None, on_skip=None)
        passed.append({each["check_name"] for each in outcomes if each["status"] == "passed"})
    assert len(passed[0]) > 40
    assert passed[0] - passed[1] == set()


def targets(kind, n=120, seed=0):
    """X, y and the name of the estimator for them."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 6))
    scores = X @ rng.normal(size=(6, 3)) + 0.1 * rng.normal(size=(n, 3))
    return X, {
        "binary": np.where(scores[:, 0] > 0, "yes", "no"),
        "multiclass": np.array(["a", "b", "c"])[scores.argmax(axis=1)],
        "multilabel": (scores > 0).astype(int),
        "one output": scores[:, 0],
        "several outputs": scores,
        "counts": rng.poisson(np.exp(0.3 * scores[:, 0])).astype(float),
    }[kind], "MLPClassifier" if kind in ("binary", "multiclass", "multilabel") else "MLPRegressor"  # fmt: skip


KINDS = ["binary", "multiclass", "multilabel", "one output", "several outputs", "counts"]
SOLVERS = {
    "adam": {"solver": "adam", "learning_rate_init": 0.01},
    "adam, other numbers": {"solver": "adam", "beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-3, "alpha": 0.1},
    "sgd": {"solver": "sgd", "learning_rate_init": 0.05},
    "sgd, plain momentum": {"solver": "sgd", "nesterovs_momentum": False, "momentum": 0.5, "alpha": 0.01},
    "sgd, invscaling": {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.1, "power_t": 0.3},
    "sgd, adaptive": {"solver": "sgd", "learning_rate": "adaptive", "learning_rate_init": 0.05, "tol": 0.01,
                      "n_iter_no_change": 2},
    "early stopping": {"solver": "adam", "early_stopping": True, "learning_rate_init": 0.01, "n_iter_no_change": 3},
    "lbfgs": {"solver": "lbfgs", "alpha": 0.01},
}  # fmt: skip


def both(kind, seed=0, **options):
    X, y, name = targets(kind, seed=seed)
    loss = {"loss": "poisson"} if kind == "counts" else {}
    options = {"hidden_layer_sizes": (7, 5), "activation": "tanh", "batch_size": 32, "max_iter": 20, "shuffle": False,
               "random_state": 3} | loss | options  # fmt: skip
    return X, y, PAIRS[name](**options), getattr(neural_network, name)(**options)


def assert_alike(one, other, X, rtol=1e-9):
    for part, expected in zip([*one.coefs_, *one.intercepts_], [*other.coefs_, *other.intercepts_], strict=True):
        assert_allclose(part, expected, rtol=rtol, atol=rtol)
    assert one.n_iter_ == other.n_iter_
    assert_allclose(one.loss_, other.loss_, rtol=2e-3)
    outputs = one.predict(X), other.predict(X)
    if outputs[1].dtype.kind == "f":
        assert_allclose(*outputs, rtol=1e-7, atol=1e-7)
    else:
        assert (outputs[0] == outputs[1]).all()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_scikit_learns(kind, solver):
    X, y, one, other = both(kind, **SOLVERS[solver])
    if y.dtype.kind == "U":  # of which scikit-learn 1.7 makes no score
        y = np.unique(y, return_inverse=True)[1]
    assert_alike(one.fit(X, y), other.fit(X, y), X, rtol=1e-9 if SOLVERS[solver]["solver"] != "lbfgs" else 1e-6)
    assert one.out_activation_ == other.out_activation_
    assert one.n_layers_ == other.n_layers_
    if SOLVERS[solver]["solver"] != "lbfgs":
        # Of several outputs the penalty in a loss is that at the end of the epoch.
        assert_allclose(one.loss_curve_, other.loss_curve_, rtol=1e-9 if kind != "several outputs" else 1e-3)
        assert one.t_ == other.t_
        assert (one.best_loss_ is None) == (other.best_loss_ is None)
        if other.best_loss_ is not None:
            assert one.best_loss_ == pytest.approx(other.best_loss_, rel=1e-3)
    if SOLVERS[solver].get("early_stopping"):
        assert one.validation_scores_ == pytest.approx(other.validation_scores_)
        assert one.best_validation_score_ == pytest.approx(other.best_validation_score_)


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
def test_first_weights_and_activations_are_scikit_learns(activation):
    X, y, one, other = both("multiclass", activation=activation, solver="adam", shuffle=False)
    assert_alike(one.fit(X, y), other.fit(X, y), X)


@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
@pytest.mark.parametrize("kind", ["binary", "multiclass", "several outputs"])
def test_weights_of_samples_are_scikit_learns(kind, solver):
    X, y, one, other = both(kind, solver=solver, alpha=0.01)
    weights = np.random.default_rng(5).uniform(0.0, 3.0, len(X))
    weights[:9] = 0.0
    one.fit(X, y, weights)
    other.fit(X, y, weights)
    for part, expected in zip(one.coefs_, other.coefs_, strict=True):
        assert_allclose(
            part, expected, rtol=1e-9 if solver != "lbfgs" else 1e-5, atol=1e-9 if solver != "lbfgs" else 1e-5
        )


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_partial_fit_is_scikit_learns(solver):
    X, y, one, other = both("multiclass", solver=solver)
    for first in range(0, 120, 40):
        for each in (one, other):
            each.partial_fit(X[first : first + 40], y[first : first + 40], classes=["a", "b", "c"])
    assert_alike(one, other, X)
    again = pickle.loads(pickle.dumps(one))
    for each in (one, again):
        each.partial_fit(X, y)
    assert_allclose(again.coefs_[0], one.coefs_[0], rtol=0)


def test_warm_start_goes_on():
    X, y, one, other = both("one output", warm_start=True, max_iter=5)
    for each in (one, other):
        each.fit(X, y).fit(X, y)
    assert_alike(one, other, X)
    assert len(one.loss_curve_) == 10


def test_weights_that_are_assigned_are_used():
    X, y, one, other = both("multiclass")
    one.fit(X, y)
    other.fit(X, y)
    for each in (one, other):
        each.coefs_ = [2 * coefs for coefs in each.coefs_]
        each.intercepts_[0] = each.intercepts_[0] + 1
    assert_allclose(one.predict_proba(X), other.predict_proba(X), rtol=1e-7)
    for each in (one, other):
        each.partial_fit(X, y)
    assert_allclose(one.coefs_[1], other.coefs_[1], rtol=1e-7)


def test_what_scikit_learn_says_of_data_and_states():
    X, y, one, _ = both("multiclass")
    with pytest.raises(AttributeError, match="partial_fit"):
        MLPClassifier(solver="lbfgs").partial_fit  # noqa: B018 - that it is not there
    with pytest.raises(sklearn.exceptions.NotFittedError):
        one.predict(X)
    with pytest.raises(ValueError, match="classes must be passed"):
        one.partial_fit(X, y)
    one.fit(X, y)
    with pytest.raises(ValueError, match="X has 3 features"):
        one.predict(X[:, :3])
    with pytest.warns(ConvergenceWarning, match="Maximum iterations"):
        MLPClassifier(max_iter=1).fit(X, y)


def test_frames_names_strings_and_sparse_matrices():
    pandas = pytest.importorskip("pandas")
    X, y, one, other = both("multiclass")
    frame = pandas.DataFrame(X, columns=list("abcdef"))
    one.fit(frame, y)
    assert one.feature_names_in_.tolist() == list("abcdef")
    other.fit(X, y)
    assert_allclose(one.predict_proba(frame), other.predict_proba(X), rtol=1e-8)
    with pytest.raises(ValueError, match="feature names"):
        one.predict(frame.rename(columns={"a": "z"}))
    for format_ in ("csr", "csc"):
        matrix = getattr(sparse, f"{format_}_array")(X)
        again = clone(one).fit(matrix, y)
        assert_allclose(again.predict_proba(matrix), other.predict_proba(X), rtol=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_that_of_the_data_or_the_one_that_is_wanted(dtype):
    X, y, one, _ = both("one output")
    one.fit(X.astype(dtype), y)
    assert {part.dtype for part in (*one.coefs_, one.predict(X.astype(dtype)))} == {np.dtype(dtype)}
    clone(one).set_params(dtype="float32").fit(X, y)
    assert clone(one).set_params(dtype="float32").fit(X, y).coefs_[0].dtype == np.float32


def test_what_fastbp_adds():
    X, y, _, _ = both("multiclass")
    seen = []
    model = MLPClassifier(
        (8, 8), ["gelu", "silu"], solver=fastbp.AdamW(fastbp.schedules.CosineDecay(0.01, 200)), max_iter=30,
        regularize=[fastbp.Dropout(0.1), fastbp.LabelSmoothing(0.05)], class_weight="balanced", threads=2,
        callbacks=lambda trainer, record: seen.append(record["loss"]), random_state=0,
    ).fit(X, y)  # fmt: skip
    assert len(seen) == 30
    assert model.score(X, y) > 0.6
    assert model._model.activations == ("gelu", "silu", "softmax")
    stopped = MLPClassifier((8,), callbacks=lambda trainer, record: "enough", random_state=0).fit(X, y)
    assert stopped.n_iter_ == 1
    y = X[:, 0] * 2
    for loss in ("mae", "huber(0.5)", fastbp.losses.Quantile(0.9)):
        regressor = MLPRegressor(loss, (8,), solver="lbfgs", max_iter=60, random_state=0).fit(X, y)
        assert np.isfinite(regressor.predict(X)).all()
    high = MLPRegressor("quantile(0.9)", (16,), learning_rate_init=0.01, max_iter=300, random_state=0)
    noisy = y + np.random.default_rng(0).normal(size=len(y))
    assert 0.75 < (noisy < high.fit(X, noisy).predict(X)).mean() <= 1.0


def test_class_weights_are_weights_of_samples():
    X, y, one, _ = both("binary")
    of_classes = {"yes": 3.0, "no": 0.5}
    one.set_params(class_weight=of_classes).fit(X, y)
    other = clone(one).set_params(class_weight=None).fit(X, y, [of_classes[label] for label in y])
    assert_allclose(one.coefs_[0], other.coefs_[0], rtol=0)


BAD = {
    "solver": ({"solver": "newton"}, ValueError, "solver must be 'lbfgs', 'sgd', 'adam' or an optimizer"),
    "learning_rate": ({"learning_rate": "fast"}, ValueError, "learning_rate must be 'constant'"),
    "alpha": ({"alpha": -1.0}, ValueError, "alpha must be a finite number >= 0"),
    "max_iter": ({"max_iter": 0}, ValueError, "max_iter must be a positive integer"),
    "batch_size": ({"batch_size": 0}, ValueError, "batch_size must be a positive integer"),
    "hidden": ({"hidden_layer_sizes": (4, -1)}, ValueError, "hidden_layer_sizes must be > 0"),
    "hidden type": ({"hidden_layer_sizes": 2.5}, TypeError, "hidden_layer_sizes must be a positive integer"),
    "activation": ({"activation": "swirl"}, ValueError, "activation must be one of"),
    "momentum": ({"momentum": 2.0}, ValueError, "momentum must be a finite number"),
    "beta_1": ({"beta_1": 1.0}, ValueError, "beta_1 must be a finite number"),
    "threads": ({"threads": 0}, ValueError, "threads must be a positive integer"),
    "regularize": ({"regularize": [3]}, TypeError, "regularize must be a regularizer"),
    "callbacks": ({"callbacks": 3}, TypeError, "callbacks must be a function"),
    "shuffle": ({"shuffle": 3}, TypeError, "shuffle must be a bool"),
    "n_iter_no_change": ({"n_iter_no_change": 0}, ValueError, "n_iter_no_change must be a positive integer"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_parameters_are_named_at_fit(name):
    options, kind, message = BAD[name]
    X, y, _ = targets("multiclass")
    with pytest.raises(kind, match=message):
        MLPClassifier(**options).fit(X, y)


def test_searches_and_pipelines_give_the_same_for_any_number_of_jobs():
    X, y = datasets.load_iris(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), MLPClassifier((8,), max_iter=30, random_state=0))
    scores = [cross_val_score(pipeline, X, y, cv=3, n_jobs=n) for n in (1, 2)]
    assert scores[0].tolist() == scores[1].tolist()
    grid = {"mlpclassifier__alpha": [1e-4, 1.0], "mlpclassifier__hidden_layer_sizes": [(4,), (8, 8)]}
    one, two = [GridSearchCV(pipeline, grid, cv=3, n_jobs=n).fit(X, y) for n in (1, 2)]
    assert one.best_params_ == two.best_params_
    assert one.cv_results_["mean_test_score"].tolist() == two.cv_results_["mean_test_score"].tolist()


def test_output_of_frames_and_routed_weights():
    pandas = pytest.importorskip("pandas")
    X, y = datasets.load_iris(return_X_y=True, as_frame=True)
    weights = np.linspace(0.5, 2.0, len(y))
    with sklearn.config_context(enable_metadata_routing=True):
        model = MLPClassifier((4,), max_iter=10, random_state=0)
        model.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        routed = make_pipeline(
            StandardScaler().set_output(transform="pandas").set_fit_request(sample_weight=False), model
        )
        routed.fit(X, y, sample_weight=weights)
    assert isinstance(X, pandas.DataFrame)
    alone = MLPClassifier((4,), max_iter=10, random_state=0).fit(routed[0].transform(X), y, weights)
    assert_allclose(routed[-1].coefs_[0], alone.coefs_[0], rtol=0)


def test_pickles_copies_and_joblib_keep_all(tmp_path):
    X, y, one, _ = both("multiclass")
    one.fit(X, y)
    joblib.dump(one, tmp_path / "model.joblib")
    for other in (pickle.loads(pickle.dumps(one)), joblib.load(tmp_path / "model.joblib")):
        assert (other.predict_proba(X) == one.predict_proba(X)).all()
        assert other.loss_curve_ == one.loss_curve_


def test_interrupt_ends_a_fit_as_scikit_learns():
    X, y, one, _ = both("multiclass", max_iter=5000, tol=0.0)

    def interrupt(trainer, record):
        if record["epoch"] == 4:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="Training interrupted by user"):
        one.set_params(callbacks=interrupt).fit(X, y)
    assert one.n_iter_ == 4
    one.predict(X)


@pytest.mark.skipif(not HAS_CALLBACKS, reason="scikit-learn has callbacks from 1.9 on")
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_scikit_learns_callbacks_see_every_iteration(solver):
    seen = []

    class Recorder:
        def setup(self, estimator, context):
            seen.append("setup")

        def teardown(self, estimator, context):
            seen.append("teardown")

        def on_fit_task_begin(self, estimator, context, *, X=None, y=None, metadata=None, fitted_estimator=None):
            seen.append(("begin", context.task_name))

        def on_fit_task_end(self, estimator, context, *, X=None, y=None, metadata=None, fitted_estimator=None):
            seen.append(("end", context.task_name))
            if fitted_estimator is not None and context.task_name == "iteration":
                assert fitted_estimator.predict(X).shape == (len(X),)
                seen.append("fitted")

    X, y, one, _ = both("multiclass", solver=solver, max_iter=6)
    one.set_callbacks(Recorder()).fit(X, y)
    assert seen[0] == "setup"
    assert seen[-1] == "teardown"
    assert seen.count(("begin", "iteration")) == seen.count(("end", "iteration")) == one.n_iter_ + 1
    assert seen.count(("end", "fit")) == 1


def test_losses_of_a_step_count_weights_in_the_penalty():
    """The part of `L2(per_batch=True)`: divided by the sum of the weights."""
    rng = np.random.default_rng(0)
    x, y, weights = rng.normal(size=(20, 3)), rng.normal(size=(20, 1)), rng.uniform(0, 3, 20)
    model = fastbp.MLP([3, 1], seed=0, dtype="float64")
    before, (loss, gradient) = model.params.copy(), model.loss_and_grad(x, y, weights)
    trainer = fastbp.Trainer(model, optimizer=fastbp.SGD(0.1), regularize=fastbp.L2(0.5, per_batch=True))
    w = np.append(before[:3], 0.0)
    assert trainer.step(x, y, weights) == pytest.approx(loss + 0.25 / weights.sum() * (w**2).sum())
    assert_allclose(model.params, before - 0.1 * (gradient + 0.5 / weights.sum() * w))
