"""The training loop: what has to happen between two calls of the kernel, and how a fit ends."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastbp import _jit
from fastbp.driver import NO_LIMIT, Driver, Position, Rule, finish_despite_interrupts, raise_if_failed
from fastbp.history import metric_value
from fastbp.kernels import training as kernel
from fastbp.progress import Progress
from fastbp.stopping import Convergence, EarlyStopping, StopRule, TargetLoss, TimeLimit
from fastbp.workers import workers_for
from fastbp.workspace import step_cost

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastbp.history import History
    from fastbp.model import MLP
    from fastbp.sources import Data

__all__ = ["Limits", "Loop", "Validation"]

_MAX_EPOCHS_PER_CALL = 1 << 13  # bounds the table of epoch records

Array = npt.NDArray[Any]


class Limits(NamedTuple):
    """What ends a fit."""

    epochs: int | None
    max_steps: int | None
    rules: tuple[StopRule, ...]

    def check(self) -> None:
        """Raise a ValueError if nothing at all bounds the fit."""
        if self.epochs is None and self.max_steps is None and not self.rules:
            raise ValueError("epochs=None needs another limit: pass max_steps or a stop rule")


class Validation(NamedTuple):
    """Validation data, and the metrics on it."""

    data: Data
    metrics: dict[str, Callable[[Any, Any], float]]


class _Best:
    """The state of all `EarlyStopping` rules, and the parameters and moments of the best epoch."""

    def __init__(self, rules: tuple[StopRule, ...], params: Array, state: Array) -> None:
        self._rules = [rule for rule in rules if isinstance(rule, EarlyStopping)]
        self._restores = any(rule.restore_best for rule in self._rules)
        self._params, self._state = params, state
        self._best, self._waited = math.inf, [0] * len(self._rules)
        self._kept: tuple[Array, Array] | None = None

    def stops(self, validation_loss: float) -> bool:
        """Take in an epoch's validation loss; returns whether a rule's patience is at its end."""
        for index, rule in enumerate(self._rules):
            improved = validation_loss < self._best - rule.min_delta
            self._waited[index] = 0 if improved else self._waited[index] + 1
        if validation_loss < self._best:
            self._best = validation_loss
            if self._restores:
                self._kept = self._params.copy(), self._state.copy()
        return any(waited >= rule.patience for waited, rule in zip(self._waited, self._rules, strict=True))

    @property
    def restores(self) -> bool:
        """Whether there is a best epoch to go back to."""
        return self._kept is not None

    def restore(self) -> None:
        """Go back to the best epoch, if there was one and a rule wants it."""
        if self._kept is not None:
            self._params[:], self._state[:] = self._kept


class Loop:
    """One call of `Trainer.fit`, its arguments checked.

    Parameters
    ----------
    model, rule, position, state, grads, history
        Of the trainer; updated.
    data : Data
    limits : Limits
    validation : Validation, optional
    batch_size : int
        At most the number of samples.
    shuffle, drop_last : bool
    seed : int
    threads : int or "auto"
    """

    def __init__(
        self,
        model: MLP,
        rule: Rule,
        position: Position,
        state: Array,
        grads: Array,
        history: History,
        data: Data,
        limits: Limits,
        validation: Validation | None,
        *,
        batch_size: int,
        shuffle: bool,
        drop_last: bool,
        seed: int,
        threads: int | str,
    ) -> None:
        n_samples = data.x.shape[0]
        self._compiled_before = _jit.compile_seconds(), _jit.n_compiled()
        self._start = self._epoch_start = time.perf_counter()
        self._model, self._position, self._history = model, position, history
        # Rows that stay: one of an epoch that goes on will be written anew.
        self._n_rows = int(np.count_nonzero(history.epoch <= position.n_epochs))
        self._limits, self._validation = limits, validation
        self._decisions = model._decisions_per_sample()
        self._best = _Best(limits.rules, model._params, state)
        self._stops_early = False
        self._first_step, self._first_epoch = position.n_steps, position.n_epochs
        self._epoch_size = n_samples // batch_size * batch_size if drop_last else n_samples
        self._batch_size = batch_size
        self._last_step = _sum_of_limits(self._first_step, limits.max_steps)
        last_epoch = _sum_of_limits(self._first_epoch, limits.epochs)
        n_workers = workers_for(threads, step_cost(model._architecture, batch_size))
        self._driver = driver = Driver(model, data, batch_size, position, grads, rule, state, n_workers)
        driver.rules = _rule_table(limits.rules)
        # Python looks at every epoch's end if there is validation data.
        n_records = 1 if validation is not None else min(_MAX_EPOCHS_PER_CALL, last_epoch - self._first_epoch)
        driver.records = np.zeros((n_records, kernel.RECORD_SIZE))
        driver.schedule = driver.schedule._replace(
            epoch_size=self._epoch_size,
            shuffle=int(shuffle and batch_size < n_samples),  # one batch of all samples has the same mean in any order
            seed=seed - 2**64 if seed >= 2**63 else seed,
            last_epoch=last_epoch,
        )

    def run(self, show_progress: bool) -> None:
        """Train until a limit is reached. History, position and parameters are whole however this ends."""
        with Progress(self._limits.epochs, self._total_steps(), show_progress) as progress:
            try:
                self._compile(progress)
                self._start = time.perf_counter()
                self._epoch_start = self._start - self._position.epoch_seconds
                self._history.stop_reason = None
                while self._history.stop_reason is None:
                    status = self._driver.advance(self._last_step, self._seconds_left())
                    self._collect()
                    raise_if_failed(status, self._position)
                    self._history.stop_reason = self._reason(status)
                    self._show(progress)
                status = self._driver.settle()
                self._collect()
                raise_if_failed(status, self._position)
                if status == kernel.STOPPED:  # by the step that a time limit had cut
                    self._history.stop_reason = self._reason(status)
            except BaseException as error:
                self._history.stop_reason = type(error).__name__
                if self._best.restores:
                    error.add_note(
                        "EarlyStopping(restore_best=True) has since restored the parameters of the best epoch"
                    )
                raise
            finally:
                self._finish()

    def _finish(self) -> None:
        """Make everything whole: after an error too, and at once, so nothing is validated here."""
        try:
            finish_despite_interrupts(self._make_whole)
        finally:
            finish_despite_interrupts(self._best.restore)

    def _make_whole(self) -> None:
        self._collect(validate=False)
        self._driver.settle()
        self._collect(validate=False)
        self._record_partial_epoch()

    def _compile(self, progress: Progress) -> None:
        """Compile or load what was not when the workspace was made: the kernels."""
        self._driver.compile()
        if self._validation is not None:
            data = self._validation.data
            self._model._evaluate(replace(data, x=data.x[:1], y=data.y[:1]))
            self._model.predict(data.x[:1])
        seconds, n_compiled = self._compiled_before
        seconds, n_compiled = _jit.compile_seconds() - seconds, _jit.n_compiled() - n_compiled
        self._history.compile_seconds += seconds
        if n_compiled > 0:
            progress.message(f"compiled {n_compiled} kernels in {seconds:.1f} s; the next process loads them from disk")

    def _collect(self, validate: bool = True) -> None:
        """Move the epochs that the kernel has recorded into the history, validated if there is validation data.

        Until they are there the kernel's records stay, so that nothing is lost if this is interrupted.
        """
        cursor = self._position.cursor
        n = int(cursor[kernel.N_RECORDS])
        if n == 0:
            return
        records = self._driver.records[:n]
        ends = self._driver.times(records)
        columns = {
            "epoch": np.arange(self._position.n_epochs - n, self._position.n_epochs) + 1,
            "loss": records[:, kernel.RECORD_LOSS],
            "accuracy": records[:, kernel.RECORD_RIGHT] / self._decisions,
            "learning_rate": self._driver.rates_of(records[:, kernel.RECORD_STEP].astype(np.int64) - 1),
            "seconds": np.diff(ends, prepend=self._epoch_start),
        }
        end = ends[-1]
        try:
            if validate and self._validation is not None:
                self._validate(self._validation, columns)
                end = time.perf_counter()
        finally:
            n_rows = self._history._put(self._n_rows, **columns)
            self._n_rows, cursor[kernel.N_RECORDS], self._epoch_start = n_rows, 0, end

    def _validate(self, validation: Validation, columns: dict[str, Any]) -> None:
        """Evaluate the present parameters on the validation data, into `columns`, and ask the early-stopping rules."""
        columns |= dict.fromkeys(validation.metrics, math.nan)  # until they are known
        loss, accuracy = self._model._evaluate(validation.data)
        columns |= {"validation_loss": loss, "validation_accuracy": accuracy}
        self._stops_early = self._best.stops(loss)
        if validation.metrics:
            prediction, y = self._model.predict(validation.data.x), validation.data.y.view()
            y.flags.writeable = False  # it is the user's own array
            for name, metric in validation.metrics.items():
                columns[name] = metric_value(name, metric(y, prediction))

    def _record_partial_epoch(self) -> None:
        """Add a row for an epoch that was stopped midway; it is replaced if the epoch goes on."""
        position, driver = self._position, self._driver
        if position.n_steps == self._first_step:
            return
        position.epoch_seconds = 0.0
        if not position.is_mid_epoch:
            return
        position.epoch_seconds = driver.stop - self._epoch_start
        loss, accuracy = self._partial_means()
        self._history._put(
            self._n_rows,
            epoch=position.n_epochs + 1,
            loss=loss,
            accuracy=accuracy,
            learning_rate=driver.rates_of(np.array(position.n_steps - 1)),
            seconds=position.epoch_seconds,
        )

    def _reason(self, status: int) -> str | None:
        """Return why the fit ends, or None if it goes on."""
        if self._stops_early:
            return "EarlyStopping"
        if status == kernel.STOPPED:
            return type(self._kernel_rules()[int(self._position.cursor[kernel.STOP_RULE])]).__name__
        if self._limits.epochs is not None and self._position.n_epochs == self._first_epoch + self._limits.epochs:
            return "epochs"
        if self._position.n_steps == self._last_step:
            return "max_steps"
        has_step = self._position.n_steps > self._first_step
        return "TimeLimit" if has_step and self._seconds_left() <= 0.0 else None

    def _kernel_rules(self) -> list[StopRule]:
        return [rule for rule in self._limits.rules if isinstance(rule, (TargetLoss, Convergence))]

    def _seconds_left(self) -> float:
        if self._position.n_steps == self._first_step:
            return math.inf  # a fit takes one step at least, or a loop of short fits would never get on
        limit = min((rule.seconds for rule in self._limits.rules if isinstance(rule, TimeLimit)), default=math.inf)
        return limit - (time.perf_counter() - self._start)

    def _total_steps(self) -> int | None:
        """Return the most steps that this fit can take, None if nothing says."""
        steps = []
        if self._limits.max_steps is not None:
            steps.append(self._limits.max_steps)
        if self._limits.epochs is not None:
            per_epoch = -(-self._epoch_size // self._batch_size)
            done = -(-int(self._position.cursor[kernel.POSITION]) // self._batch_size)
            steps.append(self._limits.epochs * per_epoch - done)
        return min(steps, default=None)

    def _show(self, progress: Progress) -> None:
        position = self._position
        if position.is_mid_epoch:
            loss, accuracy = self._partial_means()
        elif len(self._history):
            loss, accuracy = self._history._last("loss"), self._history._last("accuracy")
        else:
            return  # in the middle of the first step
        validation_loss = math.nan
        if self._validation is not None and len(self._history):
            validation_loss = self._history._last("validation_loss")
        progress.update(
            epoch=position.n_epochs - self._first_epoch,
            step=position.n_steps - self._first_step,
            loss=float(loss),
            accuracy=None if math.isnan(accuracy) else float(accuracy),
            validation_loss=None if math.isnan(validation_loss) else float(validation_loss),
        )

    def _partial_means(self) -> tuple[float, float]:
        """Return the mean loss and the accuracy of the present epoch's steps so far."""
        totals, n_samples = self._position.totals, int(self._position.cursor[kernel.POSITION])
        loss, right = float(totals[kernel.EPOCH_LOSS]), float(totals[kernel.EPOCH_RIGHT])
        return loss / n_samples, right / (n_samples * self._decisions)


def _sum_of_limits(present: int, limit: int | None) -> int:
    """Return the count at which a run ends that may go on by `limit`; one that the kernels can hold."""
    return NO_LIMIT if limit is None else min(NO_LIMIT, present + limit)


def _rule_table(rules: tuple[StopRule, ...]) -> Array:
    """Return the rules that need the training loss only, which the kernel asks itself, as `kernel.Run.rules`."""
    rows = []
    for rule in rules:
        if isinstance(rule, TargetLoss):
            rows.append((kernel.TARGET_LOSS, rule.value, 0, math.inf, 0))
        elif isinstance(rule, Convergence):
            rows.append((kernel.CONVERGENCE, rule.tol, min(rule.patience, NO_LIMIT), math.inf, 0))
    return np.array(rows, np.float64).reshape(-1, kernel.RULE_SIZE)
