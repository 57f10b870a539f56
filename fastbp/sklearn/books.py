"""The books of a stochastic fit, as scikit-learn keeps them: losses, scores, and when to stop or to slow down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fastbp.model import MLP
    from fastbp.sklearn.conventions import Scale
    from fastbp.sklearn.progress import Tasks
    from fastbp.trainer import Trainer

__all__ = ["Books", "Rate"]

_LEAST_RATE = 1e-6  # of learning_rate="adaptive"


@dataclass
class Rate:
    """The present learning rate, in scikit-learn's units."""

    learning_rate: float


class Books:
    """The books of a stochastic fit, kept after each epoch as scikit-learn keeps them."""

    def __init__(
        self,
        estimator: Any,
        model: MLP,
        scale: Scale,
        held_out: tuple[Any, Any, Any] | None,
        n_samples: int,
        batch_size: int,
        incremental: bool,
        tasks: Tasks,
    ) -> None:
        self._of, self._model, self._scale, self._held_out = estimator, model, scale, held_out
        self._n_samples, self._batch_size, self._incremental, self._tasks = n_samples, batch_size, incremental, tasks
        self.best, self.has_stopped = model.params.copy(), False

    def end_epoch(self, trainer: Trainer[MLP], record: dict[str, float]) -> str | None:
        """Take in an epoch; returns why the fit ends, if it does."""
        estimator = self._of
        estimator.n_iter_ += 1
        estimator.t_ += self._n_samples
        estimator.loss_ = loss = self._loss(record["loss"])
        estimator.loss_curve_.append(loss)
        if estimator.verbose:
            print(f"Iteration {estimator.n_iter_}, loss = {loss:.8f}")
        is_worse = self._is_worse(loss) if self._held_out is None else self._scores_worse(*self._held_out)
        estimator._no_improvement_count = estimator._no_improvement_count + 1 if is_worse else 0
        if estimator.solver == "sgd" and estimator.learning_rate == "invscaling":
            self._set_rate(trainer, estimator.learning_rate_init / (estimator.t_ + 1) ** estimator.power_t)
        reason = None
        if estimator._no_improvement_count > estimator.n_iter_no_change:
            reason = self._stop_or_slow_down(trainer)
        if self._tasks.after_iteration():
            reason = reason or "a callback of scikit-learn's"
        self.has_stopped = reason is not None
        return reason

    def _loss(self, mean: float) -> float:
        """Return scikit-learn's loss, whose penalty is part of the recorded one."""
        scale = self._scale
        if scale.loss == scale.gradient:
            return scale.loss * mean + scale.shift
        squares = sum(float(np.vdot(weights, weights)) for weights in self._model.weights)
        penalty = 0.5 * self._of.alpha / self._batch_size * squares
        return scale.loss * (mean - penalty / scale.gradient) + scale.shift + penalty

    def _is_worse(self, loss: float) -> bool:
        estimator = self._of
        is_worse: bool = loss > estimator.best_loss_ - estimator.tol
        estimator.best_loss_ = min(loss, estimator.best_loss_)
        return is_worse

    def _scores_worse(self, X: Any, y: Any, weights: Any) -> bool:
        estimator = self._of
        outputs = self._model.predict(X)
        decided = estimator._decided(outputs)
        score = estimator._score_of(y, decided, sample_weight=weights) if np.isfinite(outputs).all() else np.nan
        estimator.validation_scores_.append(score)
        if estimator.verbose:
            print(f"Validation score: {score:f}")
        is_worse: bool = score < estimator.best_validation_score_ + estimator.tol
        if score > estimator.best_validation_score_:
            estimator.best_validation_score_, self.best = score, self._model.params.copy()
        return is_worse

    def _stop_or_slow_down(self, trainer: Trainer[MLP]) -> str | None:
        estimator = self._of
        what = "Validation score" if self._held_out is not None else "Training loss"
        text = f"{what} did not improve more than tol={estimator.tol:f} for {estimator.n_iter_no_change} epochs."
        adapts = estimator.solver == "sgd" and estimator.learning_rate == "adaptive"
        if not adapts or estimator._optimizer.learning_rate <= _LEAST_RATE:
            if estimator.verbose:
                print(f"{text} Stopping.")
            return text
        self._set_rate(trainer, estimator._optimizer.learning_rate / 5.0)
        estimator._no_improvement_count = 0
        if estimator.verbose:
            print(f"{text} Setting learning rate to {estimator._optimizer.learning_rate:f}")
        return None

    def _set_rate(self, trainer: Trainer[MLP], rate: float) -> None:
        self._of._optimizer.learning_rate = rate
        trainer.learning_rate = rate * self._scale.gradient
