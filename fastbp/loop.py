"""The training loop: what has to happen between two calls of the kernel, and how a fit ends."""

from __future__ import annotations

import copy
import math
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastbp import _jit
from fastbp.chunks import TooLate
from fastbp.driver import Dealing, Driver, training_plan
from fastbp.errors import DivergenceError, warn
from fastbp.evaluation import evaluate, outputs_for, predict
from fastbp.facts import data_facts, layer_facts
from fastbp.history import metric_value
from fastbp.kernels import training as kernel
from fastbp.kernels.tables import RECORD
from fastbp.plan import step_cost
from fastbp.progress import Progress
from fastbp.recovery import Divergence, ReduceRate, reduced
from fastbp.state import NO_LIMIT, Mark
from fastbp.stopping import StopRule, TimeLimit
from fastbp.workers import workers_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from fastbp.chunks import Chunks
    from fastbp.driver import Rule
    from fastbp.fits import Checkpoint
    from fastbp.history import History
    from fastbp.network import Network
    from fastbp.program import Program
    from fastbp.sources import Data
    from fastbp.state import Buffers, RunState

__all__ = ["Callbacks", "Limits", "Loop", "Validation"]

_MAX_EPOCHS_PER_CALL = 1 << 13  # bounds the table of epoch records
_NEXT_SEED = 0x2545F4914F6CDD1D  # from the order of a chunk to that of the next one; any odd number would do
_EXHAUSTED, _MAX_STEPS = "exhausted", "max_steps"  # stop reasons
_RESTORED = "EarlyStopping(restore_best=True) has since restored the parameters of the best epoch"


class Limits(NamedTuple):
    """What ends a fit."""

    epochs: int | None
    max_steps: int | None
    rules: tuple[StopRule, ...]
    seconds_before: float = 0.0

    def after(self, n_epochs: int, n_steps: int, seconds: float) -> Limits | None:
        """Return what is left of them after a part of the fit; None if nothing is."""
        epochs = None if self.epochs is None else self.epochs - n_epochs
        max_steps = None if self.max_steps is None else self.max_steps - n_steps
        if (epochs is not None and epochs <= 0) or (max_steps is not None and max_steps <= 0):
            return None
        return self._replace(epochs=epochs, max_steps=max_steps, seconds_before=seconds)

    def check(self) -> None:
        """Raise a ValueError if nothing at all bounds the fit."""
        if self.epochs is None and self.max_steps is None and not self.rules:
            raise ValueError("epochs=None needs another limit: pass max_steps or a stop rule")


class Validation(NamedTuple):
    """Validation data, the metrics on it, and after how many epochs it is looked at."""

    data: Data
    metrics: dict[str, Callable[..., float]]
    every: int


class Callbacks(NamedTuple):
    """What is called after each epoch, with this trainer and a dict of the epoch's columns."""

    functions: tuple[Callable[[Any, dict[str, float]], str | None], ...]
    trainer: object


class _Ended(NamedTuple):
    """How many epochs have ended and are in the history, and when the last one did, or its validation."""

    n_epochs: int
    time: float


class Loop:
    """One call of `Trainer.fit`, its arguments checked.

    Parameters
    ----------
    network : Network
    rule : Rule
    buffers : Buffers
    state : RunState
        Where this call begins; its own from then on.
    history : History
        Updated.
    data : Data
        The first chunk, if there are chunks.
    limits : Limits
    validation : Validation, optional
    callbacks : Callbacks
    batch_size : int, optional
        All samples by default.
    shuffle : bool or int
    drop_last : bool
    seed : int
    threads : int or "auto"
    health_every : int
        Steps from one that is looked at to the next; 0 if none is.
    recovery : ReduceRate, optional
        What to do after a divergence.
    checkpoint : Checkpoint, optional
        Looked at between two calls.
    chunks : Chunks, optional
        What follows the data, which are their first, in each epoch.
    """

    def __init__(
        self,
        network: Network,
        rule: Rule,
        buffers: Buffers,
        state: RunState,
        history: History,
        data: Data,
        limits: Limits,
        validation: Validation | None,
        callbacks: Callbacks,
        *,
        batch_size: int | None,
        shuffle: bool | int,
        drop_last: bool,
        seed: int,
        threads: int | str,
        health_every: int,
        recovery: ReduceRate | None,
        checkpoint: Checkpoint | None,
        chunks: Chunks | None,
    ) -> None:
        self._compiled_before = _jit.compile_seconds(), _jit.n_compiled()
        self._start = time.perf_counter()
        self._network, self._buffers, self._history, self._data = network, buffers, history, data
        self._position, self._memory = position, memory = state.position, state.memory
        self._validated = self._memory.seen[0] if self._memory.seen is not None else 0  # epochs, with their metrics
        position.data, position.is_in_chunks = data, chunks is not None
        self._chunks = chunks
        self._rule = rule
        self._set_aside = buffers.set_aside if buffers.is_untouched else None
        self._limits, self._validation, self._callbacks = limits, validation, callbacks
        self.is_calling = False  # a callback
        self._checkpoint = checkpoint
        self._recovery, self._n_recoveries, self._lowest = recovery, 0, math.inf
        self._good: Mark | None = None  # the beginning of the epoch with the lowest loss
        self._epoch_begin: Mark | None = None
        self._going_back: Mark | None = None
        self._decisions = network.decisions_per_sample
        self._first_step, self._first_epoch = position.n_steps, position.n_epochs
        self._ended = _Ended(self._first_epoch, self._start)
        self._last_step = _sum_of_limits(self._first_step, limits.max_steps)
        last_epoch = _sum_of_limits(self._first_epoch, limits.epochs)
        self._watches = health_every > 0
        self._batch_size, self._shuffle, self._drop_last, self._seed = batch_size, shuffle, drop_last, seed
        self._threads, self._last_epoch = threads, last_epoch
        look_every = 1 if chunks is not None else self._look_every()
        n_records = min(look_every or _MAX_EPOCHS_PER_CALL, _MAX_EPOCHS_PER_CALL, last_epoch - self._first_epoch)
        records = np.zeros(n_records, RECORD)
        program, self._dealing = self._program_for(data), self._dealing_of(data)
        dealing = self._dealing
        if int(position.cursor["position"]) >= dealing.epoch_size:  # of a file that somebody has made
            raise ValueError(f"the run stands at sample {position.cursor['position']} of {dealing.epoch_size}")
        self._driver = Driver(
            program, buffers, rule, position, data, dealing, records, memory.table, look_every, health_every
        )

    def _program_for(self, data: Data) -> Program:
        """Return the program that trains on these data."""
        n_samples, architecture = data.x.shape[0], self._network.architecture
        batch_size = min(self._batch_size or n_samples, n_samples)
        if self._chunks is not None:  # others may have more
            batch_size = self._batch_size or n_samples
        n_workers = workers_for(self._threads, step_cost(architecture, batch_size))
        plan = training_plan(
            architecture,
            self._rule,
            batch_size,
            n_workers,
            weighted=data.weights is not None,
            sparse=data.is_sparse,
            watches=self._watches,
        )
        return self._network.programs.training(plan)

    def _dealing_of(self, data: Data, before: Dealing | None = None) -> Dealing:
        """Return how data are dealt out, all of them or a chunk that follows another one in the same epoch."""
        n_samples, offset = data.x.shape[0], 0 if before is None else before.epoch_size
        batch_size = min(self._batch_size or n_samples, n_samples)
        seed = self._seed if before is None else before.seed + _NEXT_SEED
        return Dealing(
            batch_size,
            offset + (n_samples // batch_size * batch_size if self._drop_last else n_samples),
            # Of all samples, any order has the same mean; a window of all is none.
            0 if batch_size == n_samples else int(self._shuffle) if self._shuffle < n_samples else 1,
            (seed + 2**63) % 2**64 - 2**63,
            self._last_epoch,
            offset,
            more=self._chunks is not None,
        )

    @property
    def has_begun(self) -> bool:
        """Whether a step has been taken."""
        return self._position.n_steps > self._first_step

    @property
    def seconds(self) -> float:
        """Of the fit so far, with those before this process took over."""
        return self._limits.seconds_before + (time.perf_counter() - self._start if self.has_begun else 0.0)

    def run(self, show_progress: bool) -> None:
        """Train until a limit is reached; `finish` has to follow, however this ends."""
        with Progress(self._limits.epochs, self._total_steps(), show_progress) as progress:
            self._history.stop_reason = None
            if self._watches:
                self._history._watch(layer_facts(self._network.architecture), data_facts(self._network, self._data))
            self._compile(progress)
            self._buffers.go_on()
            self._look_at_the_start()
            if self._recovery is not None:
                self._good = self._epoch_begin = self._mark()
            self._start = time.perf_counter()
            self._ended = _Ended(self._first_epoch, self._start - self._position.epoch_seconds)
            reason = None
            while reason is None:
                before = self._position.n_epochs, self._n_recoveries
                reason = self._take_in(self._driver.advance(self._last_step, self._seconds_left()))
                if self._chunks is not None and reason in (None, _MAX_STEPS):
                    begins_epoch = before != (self._position.n_epochs, self._n_recoveries)
                    reason = self._feed(self._chunks, begins_epoch, reason)
                if self._checkpoint is not None:
                    reason = self._checkpoint.look() or reason
                if progress.is_shown:
                    self._show(progress)
            status = self._driver.settle()
            if status != kernel.PAUSED:  # a time limit had cut the step
                reason = self._take_in(status) or reason
            self._history.stop_reason = reason

    def _feed(self, chunks: Chunks, begins_epoch: bool, reason: str | None) -> str | None:
        """Hand over the next chunk if it is time, or end the epoch if there is none; returns why the fit ends."""
        if not begins_epoch and int(self._position.cursor["position"]) < self._dealing.epoch_size:
            return reason
        if begins_epoch and reason is not None:
            return reason
        try:
            chunk = (chunks.begin if begins_epoch else chunks.next)(lambda: self._seconds_left() <= 0.0)
        except TooLate:
            return TimeLimit.__name__
        if chunk is None and begins_epoch:
            return _EXHAUSTED
        if chunk is None:
            self._driver.end_source()
            # All steps may have been taken: then the next call does nothing else but end the epoch.
            return None if reason is None else self._take_in(self._driver.advance(self._last_step)) or reason
        if reason is not None:
            return reason
        self._dealing = self._dealing_of(chunk, None if begins_epoch else self._dealing)
        self._data = self._position.data = chunk
        self._driver.take(self._program_for(chunk), chunk, self._dealing)
        return None

    def _take_in(self, status: int) -> str | None:
        """Record and validate what the last call of the kernel has done; returns why the fit ends, or None."""
        reason = self._look_at_epoch() if self._collect() else None
        try:
            self._driver.raise_if_failed(status)
        except DivergenceError as error:
            if self._recovery is not None:
                return self._recover(self._recovery, error)
            self._history._note_divergence(error.step, error.layer)
            raise
        return reason or self._reason(status)

    def _mark(self) -> Mark:
        return Mark.of(self._position, self._buffers, self._memory)

    def _keep_good(self) -> None:
        """Keep the beginning of the epoch that has ended, if none had a lower loss."""
        loss = self._history._last("loss")
        if loss <= self._lowest:
            self._good, self._lowest = self._epoch_begin, loss
        self._epoch_begin = self._mark()

    def _recover(self, recovery: ReduceRate, error: DivergenceError) -> str | None:
        """Go back to the last good state, with a smaller rate if there is to be another try; returns as `_take_in`."""
        self._going_back = self._good
        self._go_back()
        is_last = self._n_recoveries == recovery.times
        factor = 1.0 if is_last else recovery.factor
        self._history.divergences += (Divergence(error.step, error.layer, self._position.n_epochs, factor),)
        if is_last:
            self._history._note_divergence(error.step, error.layer)
            warn(f"the fit diverged and ended: {error}. The model is that of {self._position.n_epochs} epochs again")
            return type(error).__name__
        self._n_recoveries += 1
        trainer: Any = self._callbacks.trainer
        self.is_calling = True
        try:
            trainer.learning_rate = reduced(trainer.learning_rate, factor)
        finally:
            self.is_calling = False
        return None

    def _go_back(self) -> None:
        """Go back to a mark, if that has begun. May begin anew at any place."""
        mark = self._going_back
        if mark is None:
            return
        with self._buffers.calls:  # a copy that another thread takes meanwhile is of before or of after
            mark.restore(self._position, self._buffers, self._memory)
            n_epochs = self._position.n_epochs
            self._history._cut(n_epochs, self._position.n_steps)
            self._driver.forget_rates()
            self._validated = min(self._validated, n_epochs)
            self._ended, self._epoch_begin = _Ended(n_epochs, time.perf_counter()), mark
        self._going_back = None

    def _look_every(self) -> int | None:
        """Return after how many epochs Python looks at the run; None if nothing wants that."""
        if self._callbacks.functions or self._recovery is not None or {"loss", "accuracy"} & set(self._memory.monitors):
            return 1
        return None if self._validation is None else self._validation.every

    def _look_at_epoch(self) -> str | None:
        """Validate the last epoch if it is due, ask rules and callbacks; returns why the fit ends, or None."""
        validation = self._validation
        if validation is not None and self._is_due(validation):
            self._validate(validation, validation.metrics)
        if self._memory.monitors:
            self._judge(self._columns())
        reason = "EarlyStopping" if self._memory.is_patience_over else None
        reason = self._call_back() or reason
        if self._recovery is not None:
            self._keep_good()
        return reason

    def _is_due(self, validation: Validation) -> bool:
        """Return whether the last epoch is one of those that are validated."""
        return self._position.n_epochs % validation.every == 0

    def _columns(self) -> dict[str, float]:
        """Return what the last epoch has of the columns that rules watch."""
        is_validated = self._validated >= self._position.n_epochs
        names = [name for name in self._memory.monitors if is_validated or name in ("loss", "accuracy")]
        return {name: self._history._last(name) for name in names}

    def _judge(self, values: Mapping[str, float]) -> None:
        """Ask the rules that watch a column about the present parameters, unless they know these."""
        n_epochs = self._position.n_epochs
        if self._memory.judged_epochs < n_epochs:
            self._show_average()
            self._memory.judge(n_epochs, values, self._buffers)
            self._hide_average()

    def _call_back(self) -> str | None:
        """Call the user's functions; returns the first reason to stop that one of them gives."""
        reason = None
        for function in self._callbacks.functions:
            record = self._history._last_row()
            self.is_calling = True
            try:
                said = function(self._callbacks.trainer, record)
            finally:
                self.is_calling = False
            if said is not None and not isinstance(said, str):
                raise TypeError(f"callbacks must return None, or a reason to stop as a str, got {said!r}")
            reason = reason or said
        return reason

    def use(self, rule: Rule) -> None:
        """Go on by another rule, with the same leaves and moments."""
        self._rule = rule
        self._driver.use(rule)

    def finish(self) -> None:
        """Make parameters, position and history whole, and go back to the best epoch if a rule wants that.

        After an error too, and at once, so nothing is validated here. May begin anew at any place.
        """
        if self._driver.is_lost:
            return
        self._go_back()
        self._collect()
        self._driver.settle()
        self._collect()
        self._record_validation()
        self._record_partial_epoch()
        self._position.unvalidated = self.unvalidated()
        self._position.leave()
        if not self.has_begun:
            self._buffers.put_back(self._set_aside)
        elif self._memory.best is not None:
            self._buffers.show(self._memory.best)
        else:
            self._show_average()
        if self._history.stop_reason is None:
            self._explain_the_end(sys.exception())

    def _explain_the_end(self, error: BaseException | None) -> None:
        """Record the error that is being raised, and tell it what has been restored."""
        is_restored = self._memory.best is not None and self._buffers.set_aside is not None
        if error is not None and is_restored and _RESTORED not in getattr(error, "__notes__", ()):
            error.add_note(_RESTORED)
        self._history.stop_reason = "interrupted" if error is None else type(error).__name__

    def _compile(self, progress: Progress) -> None:
        """Compile or load what was not when the program was made: the kernels."""
        self._driver.compile()
        if self._validation is not None:
            data = self._validation.data
            weights = None if data.weights is None else np.ones(1)
            evaluate(self._network, replace(data, x=data.x[:1], y=data.y[:1], weights=weights))
            outputs_for(self._network, data.x[:1])
        seconds, n_compiled = self._compiled_before
        seconds, n_compiled = _jit.compile_seconds() - seconds, _jit.n_compiled() - n_compiled
        self._history.compile_seconds += seconds
        if n_compiled > 0:
            progress.message(f"compiled {n_compiled} kernels in {seconds:.1f} s; the next process loads them from disk")

    def _look_at_the_start(self) -> None:
        """Make the present parameters a candidate for the best ones, or look at what an interrupted call could not."""
        position, validation, unvalidated = self._position, self._validation, self._position.unvalidated
        is_unseen = unvalidated is not None and unvalidated.tobytes() == self._buffers.params.tobytes()
        if validation is not None and self._memory.seen is None:
            self._look(validation)
        if self._memory.seen is not None and self._memory.judged_epochs < 0:
            _, loss, accuracy = self._memory.seen
            self._judge({"validation_loss": loss, "validation_accuracy": accuracy})
        elif is_unseen:
            if validation is not None and self._is_due(validation):
                self._validate(validation, [name for name in validation.metrics if name in self._history.metrics])
            if self._memory.monitors:
                self._judge(self._columns())
        position.unvalidated = None
        if validation is not None:
            self._history._add_columns(validation.metrics)

    def _collect(self) -> bool:
        """Move the epochs that the kernel has recorded into the history; returns whether there were any.

        Until they are there the kernel's records stay, so that nothing is lost if this is interrupted.
        """
        position = self._position
        if int(position.cursor["n_health"]) > 0:
            with self._buffers.calls:
                self._put_health(self._history)
                position.cursor["n_health"] = 0
        if int(position.cursor["n_records"]) == 0:
            return False
        with self._buffers.calls:  # a copy that another thread takes meanwhile is of before or of after
            if self._ended.n_epochs < position.n_epochs:
                self._ended = self._put_records(self._history)
            position.cursor["n_records"] = 0
        return True

    def _put_health(self, history: History) -> None:
        """Write what the kernel has recorded of the steps that were looked at into a history."""
        if history.health is not None:
            history.health._put(self._driver.health_records)

    def _put_records(self, history: History) -> _Ended:
        """Write the epochs that the kernel has recorded into a history."""
        n, n_epochs = int(self._position.cursor["n_records"]), self._position.n_epochs
        records = self._driver.records[:n]
        ends = self._driver.times(records)
        seconds = ends.copy()
        seconds[0] -= self._ended.time
        seconds[1:] -= ends[:-1]
        history._put(
            epoch=np.arange(n_epochs - n + 1, n_epochs + 1),
            loss=records["loss"],
            accuracy=records["right"] / self._decisions,
            learning_rate=self._driver.rates_of((records["step"] - 1).astype(np.int64)),
            seconds=seconds,
        )
        return _Ended(n_epochs, float(ends[-1]))

    def copied_history(self) -> History:
        """Return a copy of the history, with the epochs that are only in the kernel's records as yet."""
        history = copy.deepcopy(self._history)
        if int(self._position.cursor["n_health"]) > 0:
            self._put_health(history)
        if int(self._position.cursor["n_records"]) > 0 and self._ended.n_epochs < self._position.n_epochs:
            self._put_records(history)
        return history

    def _validate(self, validation: Validation, metrics: Iterable[str]) -> None:
        """Evaluate the present parameters on the validation data, for the last epoch's row. What is known stays."""
        n_epochs, history = self._position.n_epochs, self._history
        if self._memory.seen is None or self._memory.seen[0] < n_epochs:
            self._look(validation)
        self._record_validation()
        unknown = [name for name in metrics if math.isnan(history._last(name))]
        if unknown:
            self._show_average()
            prediction, y = predict(self._network, validation.data.x), validation.data.y.view()
            y.flags.writeable = False  # it is the user's own array
            weights = None if validation.data.weights is None else validation.data.weights.copy()
            for name in unknown:
                metric = validation.metrics[name]
                value = metric(y, prediction) if weights is None else metric(y, prediction, sample_weight=weights)
                history._fill(n_epochs, **{name: metric_value(name, value)})
            self._hide_average()
        self._ended, self._validated = _Ended(n_epochs, time.perf_counter()), n_epochs

    def _look(self, validation: Validation) -> None:
        """Evaluate the parameters that this fit is to leave on the validation data."""
        self._show_average()
        self._memory.look(self._position.n_epochs, *evaluate(self._network, validation.data))
        self._hide_average()

    def _show_average(self) -> None:
        """Show the average of the parameters, if it is what validation is to see, and there is one yet."""
        if self._rule.shows_average and self._position.n_steps > self._buffers.first_step:
            average = self._rule.average(self._buffers.present)
            if average is not None:
                self._buffers.show_average(average)

    def _hide_average(self) -> None:
        if self._rule.shows_average and self._position.n_steps > self._buffers.first_step:
            self._buffers.go_on()

    def _record_validation(self) -> None:
        """Write what has been seen of the validation data into the row of its epoch. May begin anew at any place."""
        start, seen = self._memory.start, self._memory.seen
        if start is not None and seen is not None and seen[0] > start[0] and self._history._has_row(seen[0]):
            n_epochs, loss, accuracy = seen
            self._history._start = start
            self._history._fill(n_epochs, validation_loss=loss, validation_accuracy=accuracy)

    def unvalidated(self) -> npt.NDArray[Any] | None:
        """Return a copy of the parameters if the last epoch is not validated, or judged, as the next fit then does.

        None if there is nothing to do, or no epoch has ended since the last fit.
        """
        n_epochs, validation, monitors = self._position.n_epochs, self._validation, self._memory.monitors
        is_due = validation is not None and self._is_due(validation)
        is_validated = not is_due or self._validated >= n_epochs
        watches = is_due or bool({"loss", "accuracy"} & set(monitors))
        is_judged = not (monitors and watches) or self._memory.judged_epochs >= n_epochs
        if (is_validated and is_judged) or self._position.is_mid_epoch or not self.has_begun:
            return None
        return self._buffers.present.params.copy()

    def _record_partial_epoch(self) -> None:
        """Add a row for an epoch that was stopped midway; it is replaced if the epoch goes on."""
        position, driver = self._position, self._driver
        if not self.has_begun:
            return
        position.epoch_seconds = driver.end - self._ended.time if position.is_mid_epoch else 0.0
        if not position.is_mid_epoch:
            return
        loss, accuracy = self._partial_means()
        self._history._put(
            epoch=position.n_epochs + 1,
            loss=loss,
            accuracy=accuracy,
            learning_rate=driver.rates_of(np.array(position.n_steps - 1)),
            seconds=position.epoch_seconds,
        )

    def _reason(self, status: int) -> str | None:
        """Return which limit ends the fit, or None if it goes on."""
        if status == kernel.STOPPED:
            return type(self._memory.rule(int(self._position.cursor["stop_rule"]))).__name__
        if self._limits.epochs is not None and self._position.n_epochs == self._first_epoch + self._limits.epochs:
            return "epochs"
        if self._position.n_steps == self._last_step:
            return _MAX_STEPS
        return "TimeLimit" if self.has_begun and self._seconds_left() <= 0.0 else None

    def _seconds_left(self) -> float:
        if not self.has_begun:
            return math.inf  # a fit takes one step at least, or a loop of short fits would never get on
        limit = min((rule.seconds for rule in self._limits.rules if isinstance(rule, TimeLimit)), default=math.inf)
        return limit - self.seconds

    def _total_steps(self) -> int | None:
        """Return the most steps that this fit can take, None if nothing says."""
        steps = []
        if self._limits.max_steps is not None:
            steps.append(self._limits.max_steps)
        if self._limits.epochs is not None and self._chunks is None:
            dealing, n_samples = self._dealing, int(self._position.cursor["position"])
            per_epoch, done = -(dealing.epoch_size // -dealing.batch_size), -(n_samples // -dealing.batch_size)
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
        totals = self._position.totals
        weight = float(totals["epoch_weight"]) or math.nan  # of all batches 0
        loss, right = float(totals["epoch_loss"]), float(totals["epoch_right"])
        return loss / weight, right / (weight * self._decisions)


def _sum_of_limits(present: int, limit: int | None) -> int:
    """Return the count at which a run ends that may go on by `limit`; one that the kernels can hold."""
    return NO_LIMIT if limit is None else min(NO_LIMIT, present + limit)
