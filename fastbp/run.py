"""A run: an optimizer's way with a network, which goes on from call to call."""

from __future__ import annotations

import copy
import math
import signal
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fastbp import checks, schedules
from fastbp.callbacks import check_callbacks
from fastbp.chunks import Chunks, check_chunks
from fastbp.driver import Stepper, rule_of
from fastbp.fits import TERMINATED, FitRecord
from fastbp.handles import Learning, learner_handles
from fastbp.history import History, check_metrics
from fastbp.kernels.handles import POSITIONS
from fastbp.kernels.losses import FRACTIONS
from fastbp.loop import Callbacks, Limits, Loop, Validation
from fastbp.optimizers import check_optimizer
from fastbp.rate_finder import find_rate
from fastbp.recovery import ReduceRate, check_on_divergence
from fastbp.scaling import Learnt, units_of
from fastbp.sources import Data
from fastbp.splitting import split
from fastbp.state import Buffers, Position, RuleMemory, RunState
from fastbp.step_options import shaping_of, with_decay
from fastbp.stopping import EarlyStopping, StopRule, check_rules
from fastbp.workers import checked_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy.typing as npt

    from fastbp.callbacks import Callback
    from fastbp.driver import Rule
    from fastbp.fits import Checkpoint
    from fastbp.network import Network
    from fastbp.optimizers import Optimizer
    from fastbp.rate_finder import RateCurve
    from fastbp.regularization import Regularizer
    from fastbp.schedules import LearningRate
    from fastbp.shaping import Shaping

__all__ = ["Run"]

_HEALTH_EVERY = 200  # steps: what it costs to look at one is then lost in the others


class Run:
    """What `Trainer` and `MLP.fit` do; their parameters.

    Attributes
    ----------
    network : Network
    optimizer : Optimizer
    seed : int
    history : History
    n_steps : int
        Steps taken.
    """

    def __init__(
        self,
        network: Network,
        *,
        optimizer: Optimizer,
        batch_size: int | None,
        shuffle: bool | int,
        drop_last: bool,
        threads: int | str,
        seed: int | None,
        regularize: Regularizer | Iterable[Regularizer],
        clip_norm: float | None,
        clip_value: float | None,
        ema: float | None,
        use_ema: bool,
        rate_factors: Sequence[tuple[float, float]] | None,
    ) -> None:
        self.network = network
        optimizer = check_optimizer(optimizer, network.architecture.dtype)
        self._batch_size = None if batch_size is None else checks.positive_int(batch_size, "batch_size")
        self._shuffle = _checked_shuffle(shuffle)
        self._drop_last = checks.flag(drop_last, "drop_last")
        self._threads = checked_threads(threads)
        self.seed = checks.seed_of(seed)
        shaping = shaping_of(network, self.seed, regularize, clip_norm, clip_value, ema, rate_factors)
        if checks.flag(use_ema, "use_ema") and not shaping.averages:
            raise ValueError("use_ema=True needs an average to use: pass its decay as ema, such as 0.999")
        self._shaping, self._use_ema = shaping, use_ema
        self._rule = self._rule_of(optimizer)
        self.history = History(seed=self.seed)
        self.buffers = Buffers(network.params, self._rule.n_moments)
        self.state = RunState(Position(), Position(), RuleMemory())
        self.callback_memory: dict[object, tuple[float, ...]] = {}
        self._positions: npt.NDArray[np.void] | None = None  # for learners in compiled code
        self._stepper: Stepper | None = None
        self._loop: Loop | None = None  # of the fit that runs
        self.fit_record: FitRecord | None = None  # of the last fit, if it had a checkpoint

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer."""
        return self._rule.optimizer

    def shape_by(self, shaping: Shaping, use_ema: bool) -> None:
        """Let steps be shaped otherwise, before the first one."""
        self._shaping, self._use_ema = shaping, use_ema
        self._rule = self._rule_of(self.optimizer)
        self.buffers = Buffers(self.network.params, self._rule.n_moments)

    def _take_over(self, other: Run) -> None:
        """Go on where another run of the same options stands, whose model has the same architecture.

        Only who has the turn may call this. May begin anew at any place.
        """
        self._rule, self._shaping, self.seed = other._rule, other._shaping, other.seed
        self.network.params[:], self.buffers.moments[:] = other.buffers.params, other.buffers.moments
        self.network.scaling.put(other.network.scaling.learnt)
        self.buffers.set_aside, self.buffers.first_step = other.buffers.set_aside, other.buffers.first_step
        self.state, self.history, self.callback_memory = other.state, other.history, other.callback_memory
        self.network.history, self.fit_record, self._stepper = self.history, other.fit_record, None
        self._show_positions()

    def _rule_of(self, optimizer: Optimizer) -> Rule:
        """Return what a step by this optimizer does."""
        if optimizer.has_average and self._shaping.averages:
            raise ValueError(f"ema and {type(optimizer).__name__} both average the parameters: leave ema out")
        return rule_of(optimizer, with_decay(self._shaping, optimizer, self.network), self._use_ema)

    def use(self, optimizer: Optimizer) -> None:
        """Go on with another optimizer, as `Trainer.optimizer` says."""
        rule = self._rule_of(check_optimizer(optimizer, self.network.architecture.dtype))
        turn = self.network.turn
        with turn.take():
            turn.finish()
            self._check_whole()
            changes: dict[str, Any] = {"_rule": rule, "_stepper": None}
            if rule.optimizer.moments != self.optimizer.moments:
                keeps_last = rule.shaping.averages
                changes["buffers"] = self.buffers.with_other_moments(rule.n_moments, self.n_steps, keeps_last)
                # The best epoch's moments would be others.
                changes["state"] = self.state._replace(memory=RuleMemory())
            self.__dict__.update(changes)  # at once: they belong together

    @property
    def learning_rate(self) -> LearningRate:
        """The optimizer's."""
        return self._rule.optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: LearningRate) -> None:
        optimizer = replace(self.optimizer, learning_rate=learning_rate)  # type: ignore[type-var]
        if self._loop is None or not self._loop.is_calling:
            self.use(optimizer)
            return
        self._rule = self._rule_of(optimizer)
        self._loop.use(self._rule)

    @property
    def n_steps(self) -> int:
        """Steps taken."""
        return self.state.n_steps

    @property
    def ema_params(self) -> npt.NDArray[Any] | None:
        """The average of the parameters, as a copy; before the first step the parameters; None if none is kept."""
        if not (self._rule.shaping.averages or self._rule.optimizer.has_average):
            return None
        present = self.buffers.present
        has_begun = self.n_steps > (0 if self._rule.shaping.averages else self.buffers.first_step)
        return self._rule.average(present) if has_begun else present.params.copy()

    def fit(
        self,
        x: Any,
        y: npt.ArrayLike | None,
        *,
        epochs: int | None,
        max_steps: int | None,
        validation_data: tuple[npt.ArrayLike, ...] | None,
        stop: StopRule | Iterable[StopRule],
        metrics: Mapping[str, Callable[..., float]] | None,
        progress: bool,
        sample_weight: npt.ArrayLike | None,
        class_weight: Mapping[int, float] | str | None,
        callbacks: Callback | Iterable[Callback],
        validation_split: float | None,
        validation_every: int,
        health: bool | int,
        on_divergence: str | ReduceRate,
        checkpoint: Checkpoint | None,
        check_finite: bool,
        trainer: object,
    ) -> History:
        """Train for some epochs or steps more, as `Trainer.fit`. trainer : for the callbacks."""
        looks = checks.flag(check_finite, "check_finite")
        functions = Callbacks(check_callbacks(callbacks), trainer)
        rules = check_rules(stop)
        limits = Limits(
            epochs=None if epochs is None else checks.positive_int(epochs, "epochs"),
            max_steps=None if max_steps is None else checks.positive_int(max_steps, "max_steps"),
            rules=rules,
        )
        every = checks.positive_int(validation_every, "validation_every")
        health_every, recovery = _health_every(health), check_on_divergence(on_divergence)
        show_progress = checks.flag(progress, "progress")
        limits.check()
        held_out = self._checked_validation(validation_data, looks)
        chunks = None
        if y is None:
            if sample_weight is not None or validation_split is not None or checkpoint is not None:
                raise ValueError(
                    "sample_weight, validation_split and checkpoint need data as arrays: chunks may be (x, y, "
                    "sample_weight), and validation_data may be given"
                )
            data, chunks = self._first_of_chunks(x, class_weight, looks)
            if recovery is not None and recovery.times > 0 and not chunks.begins_anew:
                raise ValueError("on_divergence needs chunks that can be gone through again: a list, not an iterator")
        else:
            data = self.network.checked_data(
                x, y, sample_weight=sample_weight, class_weight=class_weight, check_finite=looks
            )
        if validation_split is not None:
            resumed = None if checkpoint is None else checkpoint.resumed
            data, held_out = self._split(data, validation_split, held_out, (resumed or self).seed)
        validation = self._validation(held_out, check_metrics(metrics), rules, every)
        if callable(self._rule.optimizer.learning_rate):
            schedules.sample(self._rule.optimizer.learning_rate, self.n_steps, 1)
        data.warn_of_lost_digits(self.network.architecture)
        turn = self.network.turn
        with turn.take():
            turn.finish()
            self._check_whole()
            if checkpoint is None:
                self.fit_record = None
            else:
                left = self._limits_left(checkpoint, data, held_out, limits)
                if left is None:
                    return self.history
                limits = left
            before, scaling = self.state, self.network.scaling
            learnt = scaling.learnt or scaling.measured(data)
            seen = "" if validation is None else validation.data.fingerprint()
            memory = before.memory.for_fit(rules, f"{seen}{units_of(learnt)}" or None)
            # Chunks begin an epoch, whatever the first one is.
            state = before.for_fit(data.fingerprint if chunks is None else str, memory)
            loop = self._begin(state, data, limits, validation, functions, health_every, recovery, checkpoint, chunks)
            del data  # which the loop has: the first chunk need not outlive the second one
            work = partial(self._train, loop, state, learnt, show_progress)
            finish = partial(self._conclude, loop, before, scaling.learnt)
            if checkpoint is None:
                turn.run(work, finish=finish)
            else:
                self._run_with(checkpoint, work, finish)
        return self.history

    def _limits_left(self, checkpoint: Checkpoint, data: Data, held_out: Data | None, limits: Limits) -> Limits | None:
        """Return what is left of a fit's limits, None if it has ended; begin its record, or go on with it."""
        other = checkpoint.resumed
        prints = (*data.fingerprints(), "" if held_out is None else held_out.fingerprint())
        if other is None or other.fit_record is None:
            self.fit_record = FitRecord(self.n_steps, self.state.position.n_epochs, 0.0, prints, self.optimizer)
            return limits
        record = other.fit_record
        names = zip(("x", "y", "sample_weight", "the validation data"), prints, record.data, strict=True)
        changed = [name for name, here, there in names if here != there]
        if changed:
            raise ValueError(
                f"resume=True needs the data with which the fit began, but {', '.join(changed)} changed (or the dtype, "
                "or what validation_split leaves); to go on with others, fastbp.load the file and fit that"
            )
        take_over = partial(self._take_over, other)
        self.network.turn.run(take_over, finish=take_over)  # whatever exceptions come
        n_epochs, n_steps = self.state.position.n_epochs - record.first_epoch, self.n_steps - record.first_step
        left = limits.after(n_epochs, n_steps, record.seconds)
        return None if record.has_ended else left

    def _run_with(self, checkpoint: Checkpoint, work: Callable[[], None], finish: Callable[[], None]) -> None:
        """Run a fit, and write its file when it ends, however it ends."""
        with checkpoint:
            try:
                self.network.turn.run(work, finish=finish)
            except BaseException as error:
                checkpoint.write_after(error)
                raise
            has_ended = self.history.stop_reason not in ("epochs", "max_steps", TERMINATED)
            assert self.fit_record is not None
            self.fit_record = self.fit_record._replace(has_ended=has_ended)
            checkpoint.write()
        if checkpoint.is_terminated:
            raise SystemExit(128 + signal.SIGTERM)

    def _begin(
        self,
        state: RunState,
        data: Data,
        limits: Limits,
        validation: Validation | None,
        callbacks: Callbacks,
        health_every: int,
        recovery: ReduceRate | None,
        checkpoint: Checkpoint | None,
        chunks: Chunks | None,
    ) -> Loop:
        return Loop(
            self.network,
            self._rule,
            self.buffers,
            state,
            self.history,
            data,
            limits,
            validation,
            callbacks,
            batch_size=self._batch_size,
            shuffle=self._shuffle,
            drop_last=self._drop_last,
            seed=self.seed,
            threads=self._threads,
            health_every=health_every,
            recovery=recovery,
            checkpoint=checkpoint,
            chunks=chunks,
        )

    def _first_of_chunks(
        self, iterable: object, class_weight: Mapping[int, float] | str | None, check_finite: bool
    ) -> tuple[Data, Chunks]:
        """Return the first chunk of an iterable, and what yields the others."""
        if class_weight == "balanced":
            raise ValueError("class_weight='balanced' needs data as arrays: of chunks pass a dict")
        is_weighted: list[bool] = []  # whether the first one is

        def checked(chunk: Any, number: int) -> Data | None:
            name = f"chunk {number}"
            if not isinstance(chunk, (tuple, list)) or len(chunk) not in (2, 3):
                got = f"{len(chunk)} entries" if isinstance(chunk, (tuple, list)) else type(chunk).__name__
                hint = "; is y missing?" if number == 0 else ""
                raise TypeError(f"x must yield chunks (x, y) or (x, y, sample_weight), got {got} as {name}{hint}")
            x, y, weights = (*chunk, None)[:3]
            if np.ndim(x) == 2 and np.shape(x)[0] == 0:
                return None
            if not is_weighted:
                is_weighted.append(weights is not None)
            if is_weighted[0] != (weights is not None):
                raise ValueError(f"{name} must have weights as the first one, or none as that")
            names = f"x of {name}", f"y of {name}", f"sample_weight of {name}"
            data = self.network.checked_data(
                x, y, names, weights, class_weight, may_weigh_nothing=True, check_finite=check_finite
            )
            is_rest = self._drop_last and data.x.shape[0] < (self._batch_size or 1)
            return None if is_rest else data.copy()

        chunks = Chunks(check_chunks(iterable), checked)
        first = chunks.begin()
        if first is None:
            raise ValueError("x must be an iterable of chunks, got one without any sample")
        return first, chunks

    def _train(self, loop: Loop, state: RunState, learnt: Learnt, show_progress: bool) -> None:
        self.state, self.network.history, self._loop = state, self.history, loop
        self._show_positions()
        self.network.scaling.put(learnt)
        loop.run(show_progress)

    def _conclude(self, loop: Loop, before: RunState, learnt: Learnt | None) -> None:
        """Finish a fit, or leave everything as it was if it has not taken a step. May begin anew at any place."""
        with self.buffers.calls:  # a copy that another thread takes meanwhile is of before or of after
            loop.finish()
            if not loop.has_begun:
                self.state = before
                self.network.scaling.put(learnt)
            self._show_positions()
            self.fit_record = self._present_fit(loop)
            self._loop = None

    def step(self, x: npt.ArrayLike, y: npt.ArrayLike, sample_weight: npt.ArrayLike | None) -> float:
        """Take one step on this batch, as `Trainer.step`."""
        loss = self._step_at_once(x, y) if sample_weight is None else None
        if loss is not None:
            return loss
        return self._step(self.network.checked_data(x, y, sample_weight=sample_weight, may_weigh_nothing=True))

    def step_from(self, x: npt.ArrayLike, d_out: npt.ArrayLike) -> None:
        """Take one step from the derivative of a loss with respect to the outputs, as `Trainer.step_from`."""
        data = Data(*self.network.checked_directions(x, d_out, "d_out", self.network.n_out), is_labels=False)
        self._step(data, with_loss=False)

    def _step(self, data: Data, with_loss: bool = True) -> float:
        turn = self.network.turn
        with turn.take():
            turn.finish()
            self._check_whole()
            self._check_scaling()
            stepper = self._stepper
            if stepper is None or stepper.state is not self.state:
                network = self.network
                stepper = Stepper(network.programs, network.architecture, self.buffers, self._rule, self.state)
                self._stepper = stepper
            loss = turn.run(partial(stepper.step, data, with_loss), finish=stepper.finish)
        return loss  # noqa: RET504 - nothing comes between the call and leaving the turn

    def find_learning_rate(
        self, x: npt.ArrayLike, y: npt.ArrayLike, low: float, high: float, n_steps: int
    ) -> RateCurve:
        """Return the losses of steps with a growing rate, as `Trainer.find_learning_rate`."""
        low = checks.finite_float(low, "low", low=0.0, low_open=True)
        high = checks.finite_float(high, "high", low=low, low_open=True)
        if checks.positive_int(n_steps, "n_steps") < 3:
            raise ValueError(f"n_steps must be 3 or more, got {n_steps}")
        data, other = self.network.checked_data(x, y), copy.deepcopy(self)
        if not other.network.scaling.is_learnt:
            other.network.scaling.learn(data)
        n_samples = data.x.shape[0]

        def step(rate: float, rows: npt.NDArray[np.intp]) -> float:
            other.learning_rate = rate
            return other._step(replace(data, x=data.x[rows], y=data.y[rows]))

        batch_size = min(self._batch_size or n_samples, n_samples)
        return find_rate(step, n_samples, batch_size, np.geomspace(low, high, n_steps), self.seed)

    def compiled(self, max_batch: int, n: int | None, n_steps: int | None, user: object) -> npt.NDArray[Any]:
        """Return handles of learners that share parameters, moments and counts with this run, as `Trainer.compiled`."""
        max_batch = checks.positive_int(max_batch, "max_batch")
        n = None if n is None else checks.positive_int(n, "n")
        rate = self._rule.optimizer.learning_rate
        rates: float | npt.NDArray[np.float64]
        if n_steps is not None:
            rates = schedules.sample(rate, self.n_steps, checks.positive_int(n_steps, "n_steps"))
        elif isinstance(rate, float):
            rates = rate
        else:
            raise ValueError(
                "n_steps must be given, as the learning rate is a schedule: of how many steps to sample it beforehand"
            )
        turn = self.network.turn
        with turn.take():
            turn.finish()
            self._check_whole()
            self._check_scaling()
            if self._positions is None:
                self._positions = np.zeros(1, POSITIONS)
            self._show_positions()
            learning = Learning(
                self._rule, self.buffers, self._positions, self._batch_size, self._shuffle, self._drop_last, self.seed,
                rates, self.n_steps,
            )  # fmt: skip
            return learner_handles(self.network, max_batch, n, learning, user)

    def _show_positions(self) -> None:
        """Tell learners in compiled code where the run stands. Only who has the turn may call this."""
        if self._positions is not None:
            arrays = self.state.position.cursor, self.state.position.totals
            others = self.state.outside.cursor, self.state.outside.totals
            self._positions[0] = tuple([array.ctypes.data for array in (*arrays, *others)])

    def _step_at_once(self, x: object, y: object) -> float | None:
        """Take one step on arrays as they should be; None if anything is unusual, and nothing has been done."""
        batch = None if self._stepper is None else self.network.batch_at_once(x, y)
        if batch is None:
            return None
        with self.network.turn.take():
            if self._stepper is None or self.network.turn.is_unfinished or self._stepper.state is not self.state:
                return None
            return self._stepper.step_at_once(*batch)

    def _check_whole(self) -> None:
        """Refuse to go on from parameters that belong to no step."""
        if self.state.is_torn:
            raise RuntimeError(
                "this process was forked while a step of this trainer was changing the parameters: make a new trainer "
                "from whole ones, or fork between two fits"
            )

    def _check_scaling(self) -> None:
        """Refuse steps in units that a later fit would change."""
        if not self.network.scaling.is_learnt:
            raise RuntimeError(
                "the model standardizes, but has not learnt by what: call model.learn_scaling(x, y) before single steps"
            )

    def __getstate__(self) -> dict[str, Any]:
        self.network.turn.settle()
        if not self.network.turn.is_taken:
            self._check_whole()
        # All at one time: a fit in another thread may go on, or begin, before the network is copied or pickled.
        word = self.network.word
        with nullcontext() if word is None else word.kept_from_learners(), self.buffers.calls:
            loop, buffers, run = self._loop, self.buffers, self.state.copy()
            if loop is not None:
                run.position.unvalidated = loop.unvalidated()
            taken = {
                "state": run,
                "history": copy.deepcopy(self.history) if loop is None else loop.copied_history(),
                "_is_last": self.network.history is self.history,
                "_buffers": (buffers.params.copy(), buffers.moments.copy(), buffers.set_aside, buffers.first_step),
                "_rule": self.optimizer,
                "callback_memory": self.callback_memory.copy(),
                "fit_record": self._present_fit(loop),
            }
        own = self.__dict__ | taken | {"_stepper": None, "_loop": None, "_positions": None}
        del own["buffers"]
        return own

    def _present_fit(self, loop: Loop | None) -> FitRecord | None:
        """Return the record of the fit, with the seconds that it has taken so far."""
        record = self.fit_record
        return record if record is None or loop is None else record._replace(seconds=loop.seconds)

    def __setstate__(self, state: dict[str, Any]) -> None:
        own = state.copy()
        (params, moments, set_aside, first_step), is_last = own.pop("_buffers"), own.pop("_is_last")
        self.__dict__.update(own)
        self._rule = self._rule_of(own["_rule"])
        self.buffers = Buffers(self.network.params, self._rule.n_moments, first_step)
        self.buffers.params[:], self.buffers.moments[:] = params, moments
        self.buffers.set_aside = None if set_aside is None else set_aside.owned()
        if is_last:
            self.network.history = self.history

    def _checked_validation(self, validation_data: tuple[npt.ArrayLike, ...] | None, check_finite: bool) -> Data | None:
        """Return the user's validation data, checked."""
        if validation_data is None:
            return None
        if not isinstance(validation_data, (tuple, list)):
            raise TypeError(f"validation_data must be a pair (x, y), got {type(validation_data).__name__}")
        if len(validation_data) not in (2, 3):
            raise TypeError(
                f"validation_data must be a pair (x, y), or (x, y, sample_weight), got {len(validation_data)} entries"
            )
        x, y = validation_data[:2]
        weights = validation_data[2] if len(validation_data) == 3 else None
        names = "validation_data[0]", "validation_data[1]", "validation_data[2]"
        return self.network.checked_data(x, y, names, weights, check_finite=check_finite)

    def _split(self, data: Data, fraction: float, held_out: Data | None, seed: int) -> tuple[Data, Data]:
        """Return what is left of the data, and what is left out to validate with."""
        if held_out is not None:
            raise ValueError("validation_split and validation_data both give validation data: pass one of them")
        fraction = checks.finite_float(fraction, "validation_split", low=0.0, high=1.0, low_open=True, high_open=True)
        return split(data, fraction, seed, self.network.targets == FRACTIONS)

    def _validation(
        self,
        data: Data | None,
        metrics: dict[str, Callable[..., float]],
        rules: tuple[StopRule, ...],
        every: int,
    ) -> Validation | None:
        early = [rule for rule in rules if isinstance(rule, EarlyStopping)]
        if data is None:
            if metrics:
                raise ValueError("metrics are computed on validation data: pass validation_data=(x, y)")
            if True in [rule.monitor == "validation_loss" for rule in early]:
                raise ValueError("EarlyStopping watches the validation loss: pass validation_data=(x, y)")
        has_accuracy = not math.isnan(self.network.decisions_per_sample)
        columns = ["loss", "accuracy"][: 1 + has_accuracy]
        columns += ["validation_loss", "validation_accuracy"][: 1 + has_accuracy] if data is not None else []
        for rule in early:
            if rule.monitor not in (*columns, *metrics):
                known = ", ".join(map(repr, (*columns, *metrics)))
                raise ValueError(f"monitor of EarlyStopping must be one of {known} in this fit, got {rule.monitor!r}")
        return None if data is None else Validation(data, metrics, every)


def _checked_shuffle(shuffle: object) -> bool | int:
    """Return whether to shuffle, or the length of the windows."""
    if isinstance(shuffle, (bool, np.bool_)):
        return bool(shuffle)
    length = checks.positive_int(shuffle, "shuffle, if it is no bool,")
    if length < 2:
        raise ValueError("shuffle must be a bool, or the length of a window, 2 or more, got 1")
    return length


def _health_every(health: object) -> int:
    """Return after how many steps one is looked at, 0 for never."""
    if isinstance(health, (bool, np.bool_)):
        return _HEALTH_EVERY if health else 0
    return min(checks.positive_int(health, "health, if it is no bool,"), checks.MAX_STEP)
