"""Training from Python: a trainer keeps optimizer state, position and history from call to call."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any

from fastbp import checks, schedules
from fastbp.driver import Stepper, rule_of
from fastbp.history import History, check_metrics
from fastbp.loop import Limits, Loop, Validation
from fastbp.model import MLP
from fastbp.optimizers import Adam, Optimizer, check_optimizer
from fastbp.state import Buffers, Position, RuleMemory, RunState
from fastbp.stopping import EarlyStopping, StopRule, check_rules
from fastbp.workers import checked_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import numpy.typing as npt

    from fastbp.sources import Data

__all__ = ["Trainer"]


class Trainer:
    """Trains a model and can go on where it stopped: moments, step count, schedule and shuffle are kept.

    Parameters
    ----------
    model : MLP
        Its parameters are updated in place.
    optimizer : Optimizer, default Adam()
    batch_size : int or None, default 32
        Samples of a step; None is all samples (batch gradient descent). At most the number of samples is used.
    shuffle : bool, default True
        Whether each epoch takes the samples in a new random order.
    drop_last : bool, default False
        Whether to leave out the last, smaller batch of an epoch.
    threads : int or "auto", default 1
        Threads that train at most, never more than the cores that the process may use; "auto" is all of these where
        they pay, else one. The result has the same bits for any number.
    seed : int, optional
        Of the shuffle. By default one is drawn.

    Attributes
    ----------
    model : MLP
    history : History
        Of all epochs so far.
    n_steps : int
        Optimizer steps taken so far.
    seed : int
        The seed that repeats the order of the samples.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was expected and what was passed.

    Notes
    -----
    The same seed gives the same bits, run to run and process to process, for one version of fastbp, Numba and LLVM on
    one kind of CPU; `threads`, `progress` and stops in between change none of them.

    Any exception, at any place, leaves parameters, moments, count, position and history of one whole step, from which
    the next call goes on. An epoch that was interrupted before it was validated is validated by the next fit on the
    same validation data.

    A trainer that is copied, or pickled, is a whole one, with a model of its own, and goes on with the same bits. So it
    does while a fit runs, from a metric, a signal's handler or another thread: at the beginning of the step that is
    being taken, if this has not begun to change parameters (which takes several calls of some 50 ms for the largest
    networks only).

    Examples
    --------
    >>> import numpy as np, fastbp
    >>> x = np.random.default_rng(0).standard_normal((256, 4))
    >>> trainer = Trainer(fastbp.MLP([4, 8, 1], seed=0), batch_size=64, seed=0)
    >>> history = trainer.fit(x, x[:, 0], epochs=3)
    >>> history = trainer.fit(x, x[:, 0], epochs=2)  # goes on
    >>> trainer.n_steps, len(history)
    (20, 5)
    """

    def __init__(
        self,
        model: MLP,
        *,
        optimizer: Optimizer = Adam(),  # noqa: B008 - frozen
        batch_size: int | None = 32,
        shuffle: bool = True,
        drop_last: bool = False,
        threads: int | str = 1,
        seed: int | None = None,
    ) -> None:
        checks.first_initialisation(self, "_run")
        self._model = _checked_model(model)
        self._rule = rule_of(check_optimizer(optimizer, self._model._architecture.dtype))
        self._batch_size = None if batch_size is None else checks.positive_int(batch_size, "batch_size")
        self._shuffle = checks.flag(shuffle, "shuffle")
        self._drop_last = checks.flag(drop_last, "drop_last")
        self._threads = checked_threads(threads)
        self._seed = checks.seed_of(seed)
        self._history = History(seed=self._seed)
        self._buffers = Buffers(self._model._params, self._rule.n_moments)
        self._run = RunState(Position(), Position(), RuleMemory())
        self._stepper: Stepper | None = None
        self._running: Loop | None = None

    def __repr__(self) -> str:
        return f"Trainer({self.model!r}, optimizer={self.optimizer!r}, n_steps={self.n_steps}, seed={self.seed})"

    @property
    def model(self) -> MLP:
        """The model."""
        return self._model

    @property
    def seed(self) -> int:
        """The seed that repeats the order of the samples."""
        return self._seed

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer."""
        return self._rule.optimizer

    @property
    def history(self) -> History:
        """The record of all epochs so far."""
        self._model._turn.settle()
        return self._history

    @property
    def n_steps(self) -> int:
        """Optimizer steps taken so far."""
        self._model._turn.settle()
        return self._run.n_steps

    def fit(
        self,
        x: npt.ArrayLike,
        y: npt.ArrayLike,
        *,
        epochs: int | None = 100,
        max_steps: int | None = None,
        validation_data: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
        stop: StopRule | Iterable[StopRule] = (),
        metrics: Mapping[str, Callable[[Any, Any], float]] | None = None,
        progress: bool = False,
    ) -> History:
        """Train for some epochs or steps more.

        After a stop in mid-epoch it goes on in mid-epoch on the same data, whose rest then counts as the first epoch;
        other data starts an epoch.

        Parameters
        ----------
        x : array_like, shape (n_samples, n_features), read-only
            bool, integers or floats of any width, order and strides, as they are. Finite. Any byte of a bool array that
            is not 0 is read as 1.
        y : array_like, read-only
            Values (n_samples, n_out), for one output also (n_samples,); for a softmax integer classes (n_samples,) or
            (n_samples, 1), or probabilities (n_samples, n_out), each rounded to three decimals or more exact.
        epochs : int or None, default 100
            Epochs to end; None for no limit, if `max_steps` or `stop` gives one.
        max_steps : int, optional
            Most steps to take. Whichever limit comes first ends the fit.
        validation_data : (x, y), optional
            Evaluated after each epoch.
        stop : StopRule or iterable of them
            What may end the fit earlier: `Convergence`, `EarlyStopping`, `TargetLoss`, `TimeLimit`.
        metrics : dict of str to callable, optional
            ``f(y, prediction) -> float`` on the validation data, recorded under their names after each epoch. y has
            shape (n_samples, n_out) as the prediction has, or (n_samples,) if it is classes.
        progress : bool, default False
            Whether to show a progress bar (tqdm's where it is installed, else a line per epoch).

        Returns
        -------
        History
            The trainer's, of all epochs so far.

        Raises
        ------
        TypeError, ValueError
            For wrong arguments, before the first step; for a schedule's wrong value, before the step it is of.
        DivergenceError
            If the loss is not finite: the parameters are those before the step. Or if a new parameter is not: the step
            was taken. `EarlyStopping` goes back to its best epoch in either case.
        KeyboardInterrupt
            On Ctrl-C, after a whole step; so too whatever else a signal's handler raises.
        RuntimeError
            If the model is being trained already, or this process was forked while a step of this trainer, by another
            thread, was changing the parameters.

        Warns
        -----
        RuntimeWarning
            If x or y hold more digits than float32 and it cannot tell the rows of a column apart: they differ, but by
            less than 2**-12 of the largest magnitude. Subtract the mean, or use ``dtype="float64"``.
        """
        data = self._model._checked_data(x, y)
        rules = check_rules(stop)
        limits = Limits(
            epochs=None if epochs is None else checks.positive_int(epochs, "epochs"),
            max_steps=None if max_steps is None else checks.positive_int(max_steps, "max_steps"),
            rules=rules,
        )
        validation = self._checked_validation(validation_data, check_metrics(metrics), rules)
        show_progress = checks.flag(progress, "progress")
        limits.check()
        schedules.sample(self._rule.optimizer.learning_rate, self.n_steps, 1)
        data.warn_of_lost_digits(self._model._architecture.dtype)
        turn = self._model._turn
        with turn.take():
            turn.finish()
            self._check_whole()
            before = self._run
            memory = before.memory.for_fit(rules, None if validation is None else validation.data.fingerprint())
            run = before.for_fit(data.fingerprint, memory)
            loop = self._loop(run, data, limits, validation)
            turn.run(partial(self._train, loop, run, show_progress), finish=partial(self._conclude, loop, before))
        return self._history

    def _loop(self, run: RunState, data: Data, limits: Limits, validation: Validation | None) -> Loop:
        n_samples = data.x.shape[0]
        return Loop(
            self._model,
            self._rule,
            self._buffers,
            run,
            self._history,
            data,
            limits,
            validation,
            batch_size=min(self._batch_size or n_samples, n_samples),
            shuffle=self._shuffle,
            drop_last=self._drop_last,
            seed=self._seed,
            threads=self._threads,
        )

    def _train(self, loop: Loop, run: RunState, show_progress: bool) -> None:
        self._run, self._model._history, self._running = run, self._history, loop
        loop.run(show_progress)

    def _conclude(self, loop: Loop, before: RunState) -> None:
        """Finish a fit, or leave everything as it was if it has not taken a step. May begin anew at any place."""
        loop.finish()
        if not loop.has_begun:
            self._run = before
        self._running = None

    def step(self, x: npt.ArrayLike, y: npt.ArrayLike) -> float:
        """Take one optimizer step on this batch, all of it.

        Counts as a step for the learning rate and `n_steps`; leaves history, shuffle and the position in an epoch
        alone.

        Parameters
        ----------
        x, y : array_like
            As for `fit`.

        Returns
        -------
        float
            The batch's mean loss before the step.

        Raises
        ------
        TypeError, ValueError, DivergenceError, KeyboardInterrupt, RuntimeError
            As `fit`.
        """
        data = self._model._checked_data(x, y)
        turn = self._model._turn
        with turn.take():
            turn.finish()
            self._check_whole()
            if self._stepper is None:
                self._stepper = Stepper(self._model._architecture, self._buffers, self._rule, self._run.outside)
            loss = turn.run(partial(self._stepper.step, data, self._run.n_steps), finish=self._stepper.finish)
        return loss  # noqa: RET504 - nothing comes between the call and leaving the turn

    def _check_whole(self) -> None:
        """Refuse to go on from parameters that belong to no step."""
        if self._run.is_torn:
            raise RuntimeError(
                "this process was forked while a step of this trainer was changing the parameters: make a new trainer "
                "from whole ones, or fork between two fits"
            )

    def __copy__(self) -> Trainer:
        """Return a copy that shares nothing with this trainer: its model is a copy too."""
        return copy.deepcopy(self)

    def __getstate__(self) -> dict[str, Any]:
        self._model._turn.settle()
        if not self._model._turn.is_taken:
            self._check_whole()
        own = {"_rule": self._rule.optimizer, "_stepper": None, "_running": None, "_params": None}
        with self._buffers.calls:  # of a fit in another thread, no kernel is at work now
            state = self.__dict__ | own | {"_moments": self._buffers.moments, "_set_aside": self._buffers.set_aside}
            if self._running is not None:
                state |= {"_moments": self._buffers.moments.copy(), "_params": self._buffers.params.copy()}
                state |= {"_run": self._run.copy(), "_history": self._running.copied_history()}
                state["_run"].position.unvalidated = self._running.unvalidated()
        del state["_buffers"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        checks.first_initialisation(self, "_run")
        own = state.copy()
        moments, set_aside, params = own.pop("_moments"), own.pop("_set_aside"), own.pop("_params")
        self.__dict__.update(own)
        self._rule = rule_of(own["_rule"])
        self._buffers = Buffers(self._model._params, self._rule.n_moments)
        self._buffers.moments[:] = moments
        self._buffers.set_aside = None if set_aside is None else set_aside.owned()
        if params is not None:  # copied in mid-fit, which went on
            self._buffers.params[:], self._model._history = params, self._history

    def _checked_validation(
        self,
        validation_data: tuple[npt.ArrayLike, npt.ArrayLike] | None,
        metrics: dict[str, Callable[[Any, Any], float]],
        rules: tuple[StopRule, ...],
    ) -> Validation | None:
        if validation_data is None:
            if metrics:
                raise ValueError("metrics are computed on validation data: pass validation_data=(x, y)")
            if any(isinstance(rule, EarlyStopping) for rule in rules):
                raise ValueError("EarlyStopping watches the validation loss: pass validation_data=(x, y)")
            return None
        if not isinstance(validation_data, (tuple, list)):
            raise TypeError(f"validation_data must be a pair (x, y), got {type(validation_data).__name__}")
        if len(validation_data) != 2:
            raise TypeError(f"validation_data must be a pair (x, y), got {len(validation_data)} entries")
        x, y = validation_data
        data = self._model._checked_data(x, y, ("validation_data[0]", "validation_data[1]"))
        return Validation(data, metrics)


def _checked_model(model: object) -> MLP:
    if not isinstance(model, MLP):
        raise TypeError(f"model must be an MLP, got {type(model).__name__}")
    return model
