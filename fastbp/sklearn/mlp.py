"""scikit-learn's MLPClassifier and MLPRegressor, trained by fastbp."""

from __future__ import annotations

import warnings
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import check_array, check_random_state, column_or_1d
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import type_of_target, unique_labels
from sklearn.utils.validation import check_is_fitted, validate_data

from fastbp import checks
from fastbp.callbacks import check_callbacks
from fastbp.errors import DivergenceError
from fastbp.model import MLP
from fastbp.optimizers import Optimizer
from fastbp.regularization import L2
from fastbp.sklearn.books import Books, Rate
from fastbp.sklearn.conventions import Scale, first_parameters, names_of, optimizer_of, scale_of
from fastbp.sklearn.progress import CallbackSupport, Tasks, in_callbacks
from fastbp.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["MLPClassifier", "MLPRegressor"]

Array = npt.NDArray[Any]

_STOCHASTIC = ("sgd", "adam")


def _is_stochastic(estimator: Any) -> bool:
    if isinstance(estimator.solver, Optimizer) or estimator.solver in _STOCHASTIC:
        return True
    raise AttributeError(f"partial_fit is for stochastic solvers, which {estimator.solver!r} is not")


class _BaseMLP(CallbackSupport, BaseEstimator):
    """What both have in common."""

    # Parameters, by `__init__` of each.
    loss: Any
    hidden_layer_sizes: Any
    activation: Any
    solver: Any
    alpha: Any
    batch_size: Any
    learning_rate: Any
    learning_rate_init: Any
    power_t: Any
    max_iter: Any
    shuffle: Any
    random_state: Any
    tol: Any
    verbose: Any
    warm_start: Any
    momentum: Any
    nesterovs_momentum: Any
    early_stopping: Any
    validation_fraction: Any
    beta_1: Any
    beta_2: Any
    epsilon: Any
    n_iter_no_change: Any
    max_fun: Any
    regularize: Any
    class_weight: Any
    dtype: Any
    threads: Any
    callbacks: Any

    _model: MLP | None
    _trainer: Trainer[MLP] | None

    @in_callbacks
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Fit the network.

        Parameters
        ----------
        X : array_like or sparse matrix, shape (n_samples, n_features)
        y : array_like, shape (n_samples,) or (n_samples, n_outputs)
            Classes of any kind, indicators of several labels, or numbers.
        sample_weight : array_like, shape (n_samples,), optional

        Returns
        -------
        self
        """
        return self._fit(X, y, sample_weight, incremental=False)

    def _fit(self, X: Any, y: Any, sample_weight: Any, incremental: bool) -> Any:
        self._check_parameters()
        hidden = self._hidden_sizes()
        is_first = not hasattr(self, "coefs_") or not (self.warm_start or incremental)
        X, y = self._validated(X, y, incremental, reset=is_first)
        weights = self._weights(X, y, sample_weight)
        y = y.reshape(len(y), -1)
        self._random_state = check_random_state(self.random_state)
        self.n_outputs_ = y.shape[1]
        if is_first:
            self._begin([X.shape[1], *hidden, self.n_outputs_], X.dtype)
        model = self._network()
        tasks = Tasks(self, X, y, sample_weight, 1 if incremental else self.max_iter)
        try:
            if self.solver == "lbfgs":
                self._fit_lbfgs(model, X, y, weights, tasks)
            else:
                self._fit_stochastic(model, X, y, weights, incremental, tasks)
        except DivergenceError:
            model.params.fill(np.nan)
        if not np.isfinite(model.params).all():
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large values and need to be "
                "preprocessed."
            )
        tasks.end()
        return self

    def _check_parameters(self) -> None:
        """Check what is not fastbp's own, before anything happens."""
        if not isinstance(self.solver, Optimizer) and self.solver not in ("lbfgs", *_STOCHASTIC):
            raise ValueError(f"solver must be 'lbfgs', 'sgd', 'adam' or an optimizer of fastbp's, got {self.solver!r}")
        if self.learning_rate not in ("constant", "invscaling", "adaptive"):
            raise ValueError(
                f"learning_rate must be 'constant', 'invscaling' or 'adaptive', got {self.learning_rate!r}"
            )
        if self.batch_size != "auto":
            checks.positive_int(self.batch_size, "batch_size")
        for name in ("max_iter", "max_fun"):
            checks.positive_int(getattr(self, name), name)
        if self.n_iter_no_change != np.inf:
            checks.positive_int(self.n_iter_no_change, "n_iter_no_change")
        for name in ("alpha", "power_t", "tol"):
            checks.finite_float(getattr(self, name), name, low=0.0)
        for name in ("learning_rate_init", "epsilon"):
            checks.finite_float(getattr(self, name), name, low=0.0, low_open=True)
        checks.finite_float(self.momentum, "momentum", low=0.0, high=1.0)
        for name in ("beta_1", "beta_2", "validation_fraction"):
            checks.finite_float(getattr(self, name), name, low=0.0, high=1.0, high_open=True)
        for name in ("shuffle", "warm_start", "nesterovs_momentum", "early_stopping"):
            checks.flag(getattr(self, name), name)

    def _hidden_sizes(self) -> list[int]:
        sizes = self.hidden_layer_sizes
        sizes = list(sizes) if hasattr(sizes, "__iter__") else [sizes]
        if any(isinstance(size, Integral) and size <= 0 for size in sizes):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {sizes}.")
        return [checks.positive_int(size, "hidden_layer_sizes") for size in sizes]

    def _weights(self, X: Any, y: Array, sample_weight: Any) -> Array | None:
        """Return the weights of the samples, those of their classes among them; None if all count alike."""
        weights = None
        if sample_weight is not None:
            if isinstance(sample_weight, Real):
                sample_weight = np.full(X.shape[0], sample_weight)
            weights = check_array(
                sample_weight, ensure_2d=False, dtype=np.float64, ensure_min_samples=0, input_name="sample_weight"
            )
            if weights.shape != (X.shape[0],):
                raise ValueError(
                    f"sample_weight.shape == {weights.shape}, expected {(X.shape[0],)}: one for each sample"
                )
        if self.class_weight is not None:
            of_classes = compute_sample_weight(self.class_weight, self._classes_of(y))
            weights = of_classes if weights is None else weights * of_classes
        return weights

    def _classes_of(self, y: Array) -> Array:
        raise NotImplementedError

    def _validated(self, X: Any, y: Any, incremental: bool, reset: bool) -> tuple[Any, Array]:
        raise NotImplementedError

    def _output(self) -> str:
        raise NotImplementedError

    def _targets(self, y: Array) -> Array:
        return y

    def _checked(self, X: Any, y: Any = "no_validation", **options: Any) -> Any:
        dtype = (np.float64, np.float32) if self.dtype is None else np.dtype(self.dtype)
        return validate_data(self, X, y, accept_sparse=["csr", "csc"], dtype=dtype, **options)

    def _begin(self, sizes: Sequence[int], dtype: npt.DTypeLike) -> None:
        """Set all attributes for a first fit."""
        self.out_activation_ = self._output()
        self._model = self._trainer = None
        self.n_iter_, self.t_, self.n_layers_ = 0, 0, len(sizes)
        params = first_parameters(sizes, self.activation, self._random_state, dtype)
        self._make_network(sizes, params)
        if self.solver != "lbfgs":
            self.loss_curve_: list[float] = []
            self._no_improvement_count = 0
            self.best_loss_ = None if self.early_stopping else np.inf
            self.validation_scores_: list[float] | None = [] if self.early_stopping else None
            self.best_validation_score_ = -np.inf if self.early_stopping else None

    def _make_network(self, sizes: Sequence[int], params: Array) -> MLP:
        is_one = not isinstance(self.activation, (list, tuple))
        activation = names_of(self.activation) if is_one else [names_of(name) for name in self.activation]
        self._model = model = MLP(
            sizes, activation, names_of(self.out_activation_), loss=names_of(self.loss), init=params, dtype=params.dtype
        )
        self.coefs_, self.intercepts_ = list(model.weights), list(model.biases)
        return model

    def _network(self) -> MLP:
        """Return the network of `coefs_` and `intercepts_`, which a user may have assigned, or a pickle brought."""
        model, parts = self._model, [*self.coefs_, *self.intercepts_]
        if model is not None and all(np.may_share_memory(part, model.params) for part in parts):
            return model
        pairs = zip(self.coefs_, self.intercepts_, strict=True)
        params = np.concatenate([np.ravel(part) for pair in pairs for part in pair])
        sizes = [self.coefs_[0].shape[0], *[coefs.shape[1] for coefs in self.coefs_]]
        if model is None or list(model.sizes) != sizes or model.dtype != params.dtype:
            return self._make_network(sizes, params)
        model.params = params
        self.coefs_, self.intercepts_ = list(model.weights), list(model.biases)
        return model

    def _scale(self, y: Array) -> Scale:
        if isinstance(self.solver, Optimizer):
            return scale_of(self.out_activation_, self.loss, y)._replace(gradient=1.0)
        return scale_of(self.out_activation_, self.loss, y)

    def _fit_lbfgs(self, model: MLP, X: Any, y: Array, weights: Array | None, tasks: Tasks) -> None:
        scale, targets = self._scale(y), self._targets(y)
        decay, total = np.zeros(model.n_params), float(X.shape[0] if weights is None else weights.sum())
        start = 0
        for coefs, intercepts in zip(model.weights, model.biases, strict=True):
            decay[start : start + coefs.size] = self.alpha / total
            start += coefs.size + intercepts.size

        def objective(params: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
            model.params = params
            loss, gradient = model.loss_and_grad(X, targets, weights)
            value = scale.loss * loss + scale.shift + 0.5 * float(decay @ params**2)
            return value, scale.gradient * gradient.astype(np.float64) + decay * params

        result = minimize(
            objective,
            model.params.astype(np.float64),
            jac=True,
            method="L-BFGS-B",
            callback=tasks.after_iteration,
            options={"maxfun": self.max_fun, "maxiter": self.max_iter, "gtol": self.tol},
        )
        self.n_iter_, self.loss_, model.params = min(result.nit, self.max_iter), float(result.fun), result.x
        if result.status != 0 and np.isfinite(result.x).all():
            warnings.warn(
                f"lbfgs failed to converge after {result.nit} iteration(s) (status={result.status}):\n"
                f"{result.message}\nIncrease max_iter, or scale the data.",
                ConvergenceWarning,
                stacklevel=4,
            )

    def _fit_stochastic(
        self, model: MLP, X: Any, y: Array, weights: Array | None, incremental: bool, tasks: Tasks
    ) -> None:
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        X, y, weights, held_out = self._split(X, y, weights) if self.early_stopping else (X, y, weights, None)
        scale, n_samples = self._scale(y), X.shape[0]
        batch_size = min(200 if self.batch_size == "auto" else self.batch_size, n_samples)
        if self.batch_size != "auto" and self.batch_size > n_samples:
            warnings.warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped", stacklevel=4
            )
        trainer = self._trainer
        if not incremental or trainer is None or trainer.model is not model:
            self._optimizer = Rate(self.learning_rate_init)
            trainer = self._new_trainer(model, scale)
        run = Books(self, model, scale, held_out, n_samples, batch_size, incremental, tasks)
        targets = self._targets(y)
        self.n_iter_ = 0
        functions = check_callbacks(self.callbacks)
        try:
            if incremental and not functions and n_samples <= batch_size:  # half the time of a fit of one step
                run.end_epoch(trainer, {"loss": trainer.step(X, targets, weights)})
            else:
                trainer.fit(
                    X,
                    targets,
                    epochs=1 if incremental else self.max_iter,
                    sample_weight=weights,
                    callbacks=[run.end_epoch, *functions],
                    check_finite=False,
                )
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=4)
        except DivergenceError:
            if held_out is None:
                raise
            assert self.validation_scores_ is not None
            self.validation_scores_.append(np.nan)
        if held_out is not None:
            model.params = run.best
        elif self.n_iter_ == self.max_iter and not (run.has_stopped or incremental):
            warnings.warn(
                f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the optimization hasn't "
                "converged yet.",
                ConvergenceWarning,
                stacklevel=4,
            )

    def _new_trainer(self, model: MLP, scale: Scale) -> Trainer[MLP]:
        """Return, and keep, a trainer with fresh moments."""
        penalties = [L2(self.alpha / scale.gradient, per_batch=True)] if self.alpha > 0.0 else []
        regularize = self.regularize if isinstance(self.regularize, (list, tuple)) else [self.regularize]
        self._trainer = Trainer(
            model,
            optimizer=optimizer_of(self, self._optimizer.learning_rate, scale),
            batch_size=200 if self.batch_size == "auto" else self.batch_size,
            shuffle=self.shuffle,
            seed=int(self._random_state.randint(2**31 - 1)),
            regularize=[*penalties, *regularize],
            threads=self.threads,
        )
        return self._trainer

    def _split(self, X: Any, y: Array, weights: Array | None) -> tuple[Any, Array, Array | None, tuple[Any, Any, Any]]:
        """Leave samples out as scikit-learn does: of each class alike, where each sample has one."""
        has_classes = is_classifier(self) and self.n_outputs_ == 1
        arrays = [X, y] if weights is None else [X, y, weights]
        parts = train_test_split(
            *arrays,
            random_state=self._random_state,
            test_size=self.validation_fraction,
            stratify=y if has_classes else None,
        )
        X, X_held, y, y_held = parts[:4]
        weights, weights_held = parts[4:] if len(parts) > 4 else (None, None)
        if X_held.shape[0] < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        return X, y, weights, (X_held, self._decided(y_held), weights_held)

    def _decided(self, outputs: Array) -> Array:
        raise NotImplementedError

    _score_of: Callable[..., float]

    def _outputs(self, X: Any) -> Array:
        check_is_fitted(self)
        X = self._checked(X, reset=False)
        return self._network().predict(X, threads=self.threads)

    def predict(self, X: Any) -> Array:
        """Return the classes, or the values, of samples.

        Parameters
        ----------
        X : array_like or sparse matrix, shape (n_samples, n_features)

        Returns
        -------
        ndarray, shape (n_samples,) or (n_samples, n_outputs)
        """
        return self._decided(self._outputs(X))

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__().copy()
        trainer = state.get("_trainer")
        if trainer is None:  # the network follows from coefs_
            state["_model"] = None if "_model" in state else state.get("_model")
        return state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


class MLPClassifier(ClassifierMixin, _BaseMLP):
    """A multilayer perceptron that tells classes apart: scikit-learn's, trained by fastbp.

    Parameters, attributes and conventions are those of `sklearn.neural_network.MLPClassifier`, where it has them.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int, default (100,)
    activation : str or Choice or sequence, default "relu"
        scikit-learn's names or fastbp's, for all hidden layers or one for each.
    solver : {"adam", "sgd", "lbfgs"} or Optimizer, default "adam"
        Or an optimizer of fastbp's, with the schedule of its own rate.
    alpha : float
        L2 penalty, divided by the samples of a batch.
    batch_size, learning_rate, learning_rate_init, power_t, max_iter, shuffle, random_state, tol, verbose, warm_start
        As scikit-learn's; the order of the samples is fastbp's own.
    momentum, nesterovs_momentum, early_stopping, validation_fraction, beta_1, beta_2, epsilon, n_iter_no_change
        As scikit-learn's.
    max_fun : int
        As scikit-learn's.
    regularize : sequence of Regularizer
        What else shapes a step of a stochastic solver: `fastbp.Dropout`, ...
    class_weight : dict or "balanced", optional
    dtype : {"float32", "float64"}, optional
        By default that of X, if it is one of these, else float64.
    threads : int or "auto"
        As fastbp's.
    callbacks : sequence of callable
        fastbp's, called after each epoch of a stochastic solver. scikit-learn's go to `set_callbacks`.

    Attributes
    ----------
    classes_, coefs_, intercepts_, loss_, loss_curve_, best_loss_, validation_scores_, best_validation_score_, n_iter_
        As scikit-learn's; `coefs_` and `intercepts_` share the network's memory.
    t_, n_features_in_, feature_names_in_, n_layers_, n_outputs_, out_activation_
        As scikit-learn's.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(200, 2))
    >>> y = np.where(X[:, 0] * X[:, 1] > 0, "same", "other")
    >>> bool(MLPClassifier((16,), solver="lbfgs", random_state=0).fit(X, y).score(X, y) > 0.9)
    True
    """

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        solver: Any = "adam",
        alpha: float = 0.0001,
        batch_size: Any = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: Any = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        regularize: Any = (),
        class_weight: Any = None,
        dtype: Any = None,
        threads: Any = 1,
        callbacks: Any = (),
    ) -> None:
        _keep_parameters(self, locals())

    loss = "log_loss"
    _score_of = staticmethod(accuracy_score)

    def _validated(self, X: Any, y: Any, incremental: bool, reset: bool) -> tuple[Any, Array]:
        X, y = self._checked(X, y, multi_output=True, reset=reset)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if not hasattr(self, "classes_") or not (self.warm_start or incremental):
            self._label_binarizer = LabelBinarizer().fit(y)
            self.classes_ = self._label_binarizer.classes_
        else:
            one_hot = self._one_hot(y)
            if one_hot is not None and not self.warm_start:
                return X, one_hot
            classes = unique_labels(y)
            if self.warm_start and set(classes) != set(self.classes_):
                raise ValueError(
                    "warm_start can only be used where `y` has the same classes as in the previous call to fit. "
                    f"Previously got {self.classes_}, `y` has {classes}"
                )
            if len(np.setdiff1d(classes, self.classes_)):
                raise ValueError(
                    f"`y` has classes not in `self.classes_`. `self.classes_` has {self.classes_}. 'y' has {classes}."
                )
        return X, self._label_binarizer.transform(y).astype(bool)

    def _one_hot(self, y: Array) -> Array | None:
        """Return what `LabelBinarizer.transform` makes of known classes, in a tenth of its time; None for others."""
        has_one_class_each = self._label_binarizer.y_type_ in ("binary", "multiclass")
        if y.ndim != 1 or y.dtype.kind != self.classes_.dtype.kind or not has_one_class_each:
            return None
        places = np.minimum(np.searchsorted(self.classes_, y), len(self.classes_) - 1)
        if (self.classes_[places] != y).any():
            return None
        if self._label_binarizer.y_type_ == "binary":
            return places[:, np.newaxis] == 1
        return places[:, np.newaxis] == np.arange(len(self.classes_))

    def _output(self) -> str:
        return "softmax" if self._label_binarizer.y_type_ == "multiclass" else "logistic"

    def _targets(self, y: Array) -> Array:
        return y.argmax(axis=1) if self.out_activation_ == "softmax" else y

    def _classes_of(self, y: Array) -> Array:
        return self._label_binarizer.inverse_transform(y)

    def _decided(self, outputs: Array) -> Array:
        return self._label_binarizer.inverse_transform(outputs.ravel() if self.n_outputs_ == 1 else outputs)

    @available_if(_is_stochastic)
    @in_callbacks
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> Any:
        """Go once over the data, with the moments of the last call.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.
        classes : array_like, shape (n_classes,), optional
            All that there are; wanted in the first call.

        Returns
        -------
        self
        """
        if not hasattr(self, "classes_"):
            if classes is None:
                raise ValueError("classes must be passed on the first call to partial_fit.")
            self.classes_ = unique_labels(classes)
            is_multilabel = type_of_target(y).startswith("multilabel")
            self._label_binarizer = LabelBinarizer().fit(y if is_multilabel else classes)
        elif classes is not None and not np.array_equal(self.classes_, unique_labels(classes)):
            raise ValueError(
                f"`classes={classes!r}` is not the same as on last call to partial_fit, was: {self.classes_!r}"
            )
        return self._fit(X, y, sample_weight, incremental=True)

    def predict_proba(self, X: Any) -> Array:
        """Return the probabilities of the classes, shape (n_samples, n_classes), in the order of `classes_`."""
        outputs = self._outputs(X)
        return np.hstack([1.0 - outputs, outputs]) if self.n_outputs_ == 1 else outputs

    def predict_log_proba(self, X: Any) -> Array:
        """Return the logarithms of `predict_proba`."""
        probabilities = self.predict_proba(X)
        with np.errstate(divide="ignore"):
            return np.log(probabilities, out=probabilities)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class MLPRegressor(RegressorMixin, _BaseMLP):
    """A multilayer perceptron of numbers: scikit-learn's, trained by fastbp.

    Parameters, attributes and conventions are those of `sklearn.neural_network.MLPRegressor`, where it has them.

    Parameters
    ----------
    loss : {"squared_error", "poisson"} or str or Choice, default "squared_error"
        scikit-learn's, or one of fastbp's, such as "huber" or ``losses.Quantile(0.9)``, or a `Loss` of your own.
    hidden_layer_sizes, activation, ..., callbacks
        As of `MLPClassifier`; there is no class_weight.

    Attributes
    ----------
    coefs_, intercepts_, ..., out_activation_
        As of `MLPClassifier`.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.linspace(-1, 1, 200)[:, np.newaxis]
    >>> model = MLPRegressor(hidden_layer_sizes=(16,), solver="lbfgs", random_state=0)
    >>> bool(model.fit(X, X[:, 0] ** 2).score(X, X[:, 0] ** 2) > 0.9)
    True
    """

    def __init__(
        self,
        loss: Any = "squared_error",
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        solver: Any = "adam",
        alpha: float = 0.0001,
        batch_size: Any = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: Any = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        regularize: Any = (),
        dtype: Any = None,
        threads: Any = 1,
        callbacks: Any = (),
    ) -> None:
        _keep_parameters(self, locals())

    class_weight = None
    _score_of = staticmethod(r2_score)

    def _validated(self, X: Any, y: Any, incremental: bool, reset: bool) -> tuple[Any, Array]:  # noqa: ARG002
        X, y = self._checked(X, y, multi_output=True, y_numeric=True, reset=reset)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        return X, y

    def _output(self) -> str:
        return "exp" if self.loss == "poisson" else "identity"

    def _decided(self, outputs: Array) -> Array:
        return outputs.ravel() if outputs.ndim == 2 and outputs.shape[1] == 1 else outputs

    @available_if(_is_stochastic)
    @in_callbacks
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Go once over the data, with the moments of the last call; the parameters are those of `fit`."""
        return self._fit(X, y, sample_weight, incremental=True)


def _keep_parameters(estimator: object, given: dict[str, Any]) -> None:
    """Set what a constructor was given, as it is: scikit-learn's `clone` compares by identity."""
    for name, value in given.items():
        if name not in ("self", "__class__"):
            setattr(estimator, name, value)
