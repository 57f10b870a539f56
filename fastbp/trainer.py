"""Training from Python: a trainer keeps optimizer state, position and history from call to call."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fastbp import archive, checks
from fastbp.display import html_table
from fastbp.fits import Checkpoint
from fastbp.network import network_of
from fastbp.optimizers import Adam, Optimizer
from fastbp.recording import resumed_run, run_archive
from fastbp.run import Run

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy.typing as npt

    from fastbp.callbacks import Callback
    from fastbp.history import History
    from fastbp.network import Trainable
    from fastbp.rate_finder import RateCurve
    from fastbp.recovery import ReduceRate
    from fastbp.regularization import Regularizer
    from fastbp.schedules import LearningRate
    from fastbp.stopping import StopRule

__all__ = ["Trainer"]


M = TypeVar("M", bound="Trainable")


class Trainer(Generic[M]):
    """Trains a model and can go on where it stopped: moments, step count, schedule and shuffle are kept.

    Parameters
    ----------
    model : MLP
        Its parameters are updated in place.
    optimizer : Optimizer, default Adam()
    batch_size : int or None, default 32
        Samples of a step; None is all samples (batch gradient descent). At most the number of samples is used.
    shuffle : bool or int, default True
        Whether each epoch takes the samples in a new random order. A number is the length of windows of samples that
        lie side by side: these are taken in a new random order, and the samples of each. So what is read from a disk
        comes in long pieces.
    drop_last : bool, default False
        Whether to leave out the last, smaller batch of an epoch.
    threads : int or "auto", default 1
        Threads that train at most, never more than the cores that the process may use; "auto" is all of these where
        they pay, else one. The result has the same bits for any number.
    seed : int, optional
        Of the shuffle, and of what regularizers draw. By default one is drawn.
    regularize : regularizer or iterable of them
        `L1`, `L2`, `MaxNorm`, `Dropout`, `InputNoise`, `LabelSmoothing`.
    clip_norm : float, optional
        > 0: the largest Euclidean norm of the whole gradient, which is scaled down to it (R. Pascanu, T. Mikolov and Y.
        Bengio, "On the difficulty of training recurrent neural networks", ICML 2013, algorithm 1). A norm that is not
        finite is a divergence.
    clip_value : float, optional
        > 0: the largest magnitude of each element of the gradient, before its norm is clipped.
    ema : float, optional
        Decay of an exponential moving average of the parameters after each step, in [0, 1). It begins with the
        parameters after the first step.
    use_ema : bool, default False
        Whether validation sees the average, and the model has it after a fit. The run itself goes on from the
        parameters of its last step, as with `EarlyStopping`.
    rate_factors : sequence of pairs (weights, biases), optional
        By which the learning rate is multiplied, for each layer; >= 0. Parameters with 0 are frozen: nothing changes
        them.

    Attributes
    ----------
    model : MLP
    history : History
        Of all epochs so far.
    n_steps : int
        Optimizer steps taken so far.
    seed : int
        The seed that repeats the order of the samples.
    ema_params : ndarray, shape (n_params,), or None
        A copy of the average of the parameters, if there is one: of `ema`, or of `ScheduleFreeAdamW`.
    optimizer : Optimizer
        May be assigned between fits.
    learning_rate : float, schedule or callable
        The optimizer's. May be assigned, in a callback too.

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
        model: M,
        *,
        optimizer: Optimizer = Adam(),  # noqa: B008 - frozen
        batch_size: int | None = 32,
        shuffle: bool | int = True,
        drop_last: bool = False,
        threads: int | str = 1,
        seed: int | None = None,
        regularize: Regularizer | Iterable[Regularizer] = (),
        clip_norm: float | None = None,
        clip_value: float | None = None,
        ema: float | None = None,
        use_ema: bool = False,
        rate_factors: Sequence[tuple[float, float]] | None = None,
    ) -> None:
        checks.first_initialisation(self, "_run")
        # Before the model, as copies take them in this order: of a fit that goes on meanwhile, the run is the older.
        self._run = Run(
            network_of(model),
            optimizer=optimizer,
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            threads=threads,
            seed=seed,
            regularize=regularize,
            clip_norm=clip_norm,
            clip_value=clip_value,
            ema=ema,
            use_ema=use_ema,
            rate_factors=rate_factors,
        )
        self._model = model

    def __repr__(self) -> str:
        return f"Trainer({self.model!r}, optimizer={self.optimizer!r}, n_steps={self.n_steps}, seed={self.seed})"

    def _repr_html_(self) -> str:
        rows = [
            ("optimizer", "steps", "epochs", "seed"),
            (repr(self.optimizer), str(self.n_steps), str(len(self.history)), str(self.seed)),
        ]
        return html_table(rows, f"Trainer of {self.model!r}")

    @property
    def model(self) -> M:
        """The model."""
        return self._model

    @property
    def seed(self) -> int:
        """The seed that repeats the order of the samples."""
        return self._run.seed

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer. Assign another one to go on with it.

        Moments stay where the new one has moments of the same names (`Adam`, `AdamW`, `NAdam` and `RAdam` have, and
        `SGD` with momentum beside another), else they start from 0, and bias corrections with them; stop rules then
        start anew too. The count of steps, and with it a schedule, goes on. The model stays as it is. Handles that were
        made before train with the optimizer that they were made with.
        """
        return self._run.optimizer

    @optimizer.setter
    def optimizer(self, optimizer: Optimizer) -> None:
        self._run.use(optimizer)

    @property
    def learning_rate(self) -> LearningRate:
        """The optimizer's learning rate, a number or a schedule. Assign another one, in a callback too."""
        return self._run.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: LearningRate) -> None:
        self._run.learning_rate = learning_rate

    @property
    def callback_memory(self) -> dict[object, tuple[float, ...]]:
        """What callbacks remember, each under itself; copied and pickled with the trainer."""
        return self._run.callback_memory

    @property
    def history(self) -> History:
        """The record of all epochs so far."""
        self._run.network.turn.settle()
        return self._run.history

    @property
    def n_steps(self) -> int:
        """Optimizer steps taken so far."""
        self._run.network.turn.settle()
        return self._run.n_steps

    @property
    def ema_params(self) -> npt.NDArray[Any] | None:
        """A copy of the average of the parameters, shape (n_params,), if there is one."""
        self._run.network.turn.settle()
        return self._run.ema_params

    def fit(
        self,
        x: npt.ArrayLike | Iterable[Any],
        y: npt.ArrayLike | None = None,
        *,
        epochs: int | None = 100,
        max_steps: int | None = None,
        validation_data: tuple[npt.ArrayLike, ...] | None = None,
        stop: StopRule | Iterable[StopRule] = (),
        metrics: Mapping[str, Callable[..., float]] | None = None,
        progress: bool = False,
        sample_weight: npt.ArrayLike | None = None,
        class_weight: Mapping[int, float] | str | None = None,
        callbacks: Callback | Iterable[Callback] = (),
        validation_split: float | None = None,
        validation_every: int = 1,
        health: bool | int = False,
        on_divergence: str | ReduceRate = "raise",
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: float = 60.0,
        resume: bool = False,
        check_finite: bool = True,
    ) -> History:
        """Train for some epochs or steps more.

        After a stop in mid-epoch it goes on in mid-epoch on the same data, whose rest then counts as the first epoch;
        other data starts an epoch.

        Parameters
        ----------
        x : array_like, shape (n_samples, n_features), read-only
            bool, integers or floats of any width, order and strides, as they are. Finite. Any byte of a bool array that
            is not 0 is read as 1. Or a sparse matrix of SciPy's.
            Without a y: an iterable of chunks ``(x, y)`` or ``(x, y, sample_weight)``, each as large as you like. An
            epoch goes through it once, in mini-batches of each chunk, which is shuffled by itself; while one trains,
            another thread gets the next. A list, or an object whose `__iter__` begins anew, serves any number of
            epochs; a generator one, after which the fit ends with the stop reason "exhausted".
        y : array_like, read-only
            Values (n_samples, n_out), for one output also (n_samples,); for a softmax integer classes (n_samples,) or
            (n_samples, 1), or probabilities (n_samples, n_out), each rounded to three decimals or more exact.
        epochs : int or None, default 100
            Epochs to end; None for no limit, if `max_steps` or `stop` gives one.
        max_steps : int, optional
            Most steps to take. Whichever limit comes first ends the fit.
        validation_data : (x, y) or (x, y, sample_weight), optional
            Evaluated after each epoch.
        stop : StopRule or iterable of them
            What may end the fit earlier: `Convergence`, `EarlyStopping`, `TargetLoss`, `TimeLimit`.
        metrics : dict of str to callable, optional
            ``f(y, prediction) -> float`` on the validation data, recorded under their names after each epoch. y has
            shape (n_samples, n_out) as the prediction has, or (n_samples,) if it is classes. If the validation data
            have weights: ``f(y, prediction, sample_weight=weights) -> float``.
        progress : bool, default False
            Whether to show a progress bar (tqdm's where it is installed, else a line per epoch).
        sample_weight : array_like, shape (n_samples,), optional
            Not negative, and not all 0. Losses and gradients become weighted means, ``sum(w * loss) / sum(w)`` of each
            batch, and so do the training loss and the accuracy in the history. A batch whose weights are all 0 counts
            as a step, and changes nothing else.
        class_weight : dict of int to float, or "balanced", optional
            Weights of classes, 1 where there is none; they multiply those of the samples. Balanced: each class has the
            same weight in all. y must be integer classes, or 0 and 1 for one sigmoid output.
        callbacks : callable or iterable of them
            ``f(trainer, record) -> None or str``, called after each epoch, and after its validation. `record` is a dict
            of the epoch's columns, as `History` has them; a str ends the fit with that reason. It may set
            `learning_rate`. See `fastbp.callbacks`.
        validation_split : float, optional
            Share of the samples, in (0, 1), that are left out and validate the fit: chosen at random by the trainer's
            seed, of each class alike. The rest is copied.
        validation_every : int, default 1
            Epochs from one validation to the next, counted from the run's first.
        health : bool or int, default False
            Whether to record in `history.health` what gradients, updates and units are like: of every 200th step, or
            of every so many. Costs some percent of a step at most.
        on_divergence : {"raise", "restore", "reduce"} or ReduceRate, default "raise"
            What happens where a loss, a gradient or a parameter is not finite: an error; or back to the beginning of
            the epoch with the lowest training loss, where the fit ends with a RuntimeWarning ("restore"), or goes on
            with a tenth of the learning rate, three times at most ("reduce"). `history.divergences` records it.
        checkpoint : path_like, optional
            File in which the trainer is kept, as by `save`: now and then, and when the fit ends, however it ends. On
            SIGTERM (in the main thread, unless your program handles it) the fit ends with ``SystemExit(143)``.
        checkpoint_every : float, default 60.0
            Seconds from one time to the next, > 0.
        resume : bool, default False
            Whether to go on from that file, if it is there, and to complete the fit that it is of: `epochs`,
            `max_steps` and the seconds of `TimeLimit` count from where that began, and the result has the bits of a fit
            that was never interrupted. The trainer must be made with the same options, but for its seed, and the data
            must be the same.
        check_finite : bool, default True
            Whether to look through x, y and the validation data for NaN and infinities before the first step. Without,
            such a value shows as a divergence, or not at all.

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
        return self._run.fit(
            x,
            y,
            epochs=epochs,
            max_steps=max_steps,
            validation_data=validation_data,
            stop=stop,
            metrics=metrics,
            progress=progress,
            sample_weight=sample_weight,
            class_weight=class_weight,
            callbacks=callbacks,
            validation_split=validation_split,
            validation_every=validation_every,
            health=health,
            on_divergence=on_divergence,
            checkpoint=self._checkpoint_of(checkpoint, checkpoint_every, resume),
            check_finite=check_finite,
            trainer=self,
        )

    def _checkpoint_of(
        self, checkpoint: str | os.PathLike[str] | None, checkpoint_every: float, resume: bool
    ) -> Checkpoint | None:
        """Return the file of a fit, and the run in it if the fit is to go on from there."""
        every = checks.finite_float(checkpoint_every, "checkpoint_every", low=0.0, low_open=True)
        if checkpoint is None:
            if checks.flag(resume, "resume"):
                raise ValueError("resume=True needs the file to go on from: pass its path as checkpoint")
            return None
        path, other = checks.path(checkpoint, "checkpoint"), None
        run_archive(self._run, self._model.seed)  # whether it can be written at all
        if checks.flag(resume, "resume") and path.exists():
            read = archive.read(path)
            with archive.named(path):
                other = resumed_run(self._run, read)
        return Checkpoint(partial(self.save, path), every, other)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trainer, with its model, to a file that `fastbp.load` reads: all that a pickle of it would hold.

        The file is an uncompressed ``.npz`` without pickles. It is written as a whole or not at all: what was there
        stays as it was if that fails.

        Parameters
        ----------
        path : path_like
            Taken as it is; the usual ending is ``.npz``.

        Raises
        ------
        CheckpointError
            If something cannot be written, such as a lambda for the learning rate; it says what helps.
        OSError
            Of the file system.
        """
        archive.write(checks.path(path, "path"), *run_archive(self._run, self._model.seed))

    def step(self, x: npt.ArrayLike, y: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None) -> float:
        """Take one optimizer step on this batch, all of it.

        Counts as a step for the learning rate and `n_steps`; leaves history, shuffle and the position in an epoch
        alone.

        Parameters
        ----------
        x, y, sample_weight : array_like
            As for `fit`.

        Returns
        -------
        float
            The batch's mean loss before the step, with the penalties of regularizers. NaN if all weights are 0.

        Raises
        ------
        TypeError, ValueError, DivergenceError, KeyboardInterrupt, RuntimeError
            As `fit`.
        """
        return self._run.step(x, y, sample_weight)

    def step_from(self, x: npt.ArrayLike, d_out: npt.ArrayLike) -> None:
        """Take one optimizer step from the derivative of a loss of your own with respect to the outputs.

        Counts as a step, as `step` does. The gradient is the sum over the samples of ``J.T @ d_out``, J being the
        Jacobian of the outputs with respect to the parameters: a mean over the batch is yours to take.

        Parameters
        ----------
        x : array_like, shape (n_samples, n_features), read-only
        d_out : array_like, shape (n_samples, n_out), for one output also (n_samples,), read-only
            With respect to the outputs behind the output activation, such as `MLP.predict` returns them.

        Raises
        ------
        TypeError, ValueError, DivergenceError, KeyboardInterrupt, RuntimeError
            As `fit`.

        Examples
        --------
        >>> import numpy as np, fastbp
        >>> x, y = np.linspace(-1, 1, 20)[:, np.newaxis], np.linspace(0, 1, 20)[:, np.newaxis]
        >>> trainer = Trainer(fastbp.MLP([1, 8, 1], seed=0))
        >>> trainer.step_from(x, 2 * (trainer.model.predict(x) - y) / 20)  # the mean squared error's
        >>> trainer.n_steps
        1
        """
        self._run.step_from(x, d_out)

    def find_learning_rate(
        self, x: npt.ArrayLike, y: npt.ArrayLike, *, low: float = 1e-6, high: float = 10.0, n_steps: int = 200
    ) -> RateCurve:
        """Take steps with a growing learning rate, on a copy of this trainer, until the loss diverges.

        Parameters
        ----------
        x, y : array_like
            As for `fit`.
        low, high : float, default 1e-6 and 10
            The first and the last rate, 0 < low < high; each is the same multiple of the one before.
        n_steps : int, default 200
            At least 3.

        Returns
        -------
        RateCurve
            With `rates`, `losses`, a `suggestion` and `plot()`. This trainer and its model are as before.

        Raises
        ------
        TypeError, ValueError
            For wrong arguments, and if the first steps diverge already.

        References
        ----------
        L. N. Smith, "Cyclical learning rates for training neural networks", WACV 2017, section 3.3.

        Examples
        --------
        >>> import numpy as np, fastbp
        >>> x = np.random.default_rng(0).standard_normal((256, 4))
        >>> curve = Trainer(fastbp.MLP([4, 8, 1], seed=0), seed=0).find_learning_rate(x, x[:, 0])
        >>> 1e-4 < curve.suggestion < 1.0
        True
        """
        return self._run.find_learning_rate(x, y, low, high, n_steps)

    def compiled(self, max_batch: int, n: int | None = None, *, n_steps: int | None = None) -> npt.NDArray[Any]:
        """Return a handle with which functions compiled by Numba train the model, by `fastbp.embed`.

        It shares parameters, moments and the count of steps with this trainer. Its steps, and calls from Python that
        train the model, exclude each other.

        Parameters
        ----------
        max_batch : int
            Most samples of a step.
        n : int, optional
            How many handles: one for each thread, that gradients can be computed by several at once.
        n_steps : int, optional
            Steps from now on whose learning rates are sampled beforehand; needed if the learning rate is a schedule.

        Returns
        -------
        ndarray, shape (size,), or (n, size) with a handle as each row
            Read-only, of a dtype of its own. It keeps the trainer alive; it is no handle any more if it is copied.

        Raises
        ------
        TypeError, ValueError
            For wrong arguments, and a schedule's wrong value.
        RuntimeError
            As `fit`.
        """
        return self._run.compiled(max_batch, n, n_steps, self)

    def __copy__(self) -> Trainer[M]:
        """Return a copy that shares nothing with this trainer: its model is a copy too."""
        return copy.deepcopy(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        checks.first_initialisation(self, "_run")
        self.__dict__.update(state)
