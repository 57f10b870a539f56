"""The network: architecture and parameters, prediction, loss and gradient."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastbp import archive, arrays, checks, evaluation
from fastbp.architecture import activation_of, architecture_of
from fastbp.display import html_table, text_table
from fastbp.handles import network_handles
from fastbp.initializers import initialize
from fastbp.network import Network
from fastbp.optimizers import Adam, Optimizer
from fastbp.recording import model_archive
from fastbp.trainer import Trainer
from fastbp.workers import checked_threads

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from fastbp.callbacks import Callback
    from fastbp.choices import Choice
    from fastbp.history import History
    from fastbp.layout import Views
    from fastbp.recovery import ReduceRate
    from fastbp.regularization import Regularizer
    from fastbp.stopping import StopRule

__all__ = ["MLP"]


class MLP:
    """A dense feed-forward network (multilayer perceptron).

    Layer l maps its input h to ``activation_l(h @ weights[l] + biases[l])``.

    Parameters
    ----------
    sizes : sequence of int
        Widths ``[n_features, ..., n_out]``, at least two entries. Two make a linear or logistic regression.
    activation : str or sequence of str, default "relu"
        One name for all hidden layers, or one per hidden layer: identity, sigmoid, tanh, relu, leaky_relu (slope 0.01),
        elu (alpha 1), selu, gelu (exact), silu, mish, softplus, hard_tanh. With another slope or alpha:
        ``"leaky_relu(0.2)"`` or ``activations.LeakyReLU(0.2)``.
    output : str, default "identity"
        Activation of the last layer: any of these, or exp, or softmax, which needs an output per class, two at least.
    loss : str, optional
        mse, mae, huber (delta 1), log_cosh, quantile (q 0.5), hinge (of targets -1 and 1), each the mean over samples
        and outputs, with any output but softmax; gaussian_nll, ``(s + (y - m)**2 * exp(-s)) / 2``, mean over samples
        and targets, of outputs m and then as many s, logarithms of variances that are clipped to 1e-6 and 1e6 (where
        the derivative is that at the limit), with any output but softmax; binary_cross_entropy (mean over samples and
        outputs) with sigmoid;
        poisson (``output - y * log(output)``, mean over samples and outputs) with exp; cross_entropy with softmax. With
        another delta or q: ``"huber(2.0)"`` or ``losses.Huber(2.0)``. By default cross_entropy for softmax,
        binary_cross_entropy for sigmoid, poisson for exp, else mse.
    init : str or array_like of shape (n_params,), default "auto"
        How weights start (`fastbp.initializers`), or all parameters. Biases start at 0.
    dtype : {"float32", "float64"}
        Of parameters, arithmetic and predictions.
    seed : int, optional
        Of the initial weights. By default one is drawn.
    standardize, standardize_y : bool, default False
        Whether the network sees each input, and learns each target, less its mean and over its standard deviation in
        the training data of the first fit (`learn_scaling`), in float64 as they are read. Loss and history are then in
        those units; predictions, metrics and derivatives in yours. `standardize_y` goes with mse, mae, huber, log_cosh,
        quantile, gaussian_nll and a loss of your own, and with outputs identity, leaky_relu and your own.

    Attributes
    ----------
    sizes : tuple of int
    activations : tuple of str
        One per layer, the output's last.
    loss_name : str
    dtype : numpy.dtype
    seed : int
        The seed that repeats the initial weights.
    n_params : int
    params : ndarray, shape (n_params,)
        All parameters, shared with the kernels: write to it, or assign to it, to change them.
    weights, biases : tuple of ndarray
        Views of `params`: each layer's weights (n_in, n_out) and biases (n_out,).
    history : History or None
        Of the last fit.
    x_mean, x_std, y_mean, y_std : ndarray of float64 or None
        What inputs and targets are standardized by; None before it is learnt, and where nothing is.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was expected and what was passed.

    Notes
    -----
    `predict`, `loss` and `loss_and_grad` may be called from several threads at once. One fit at a time may run.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.linspace(-1, 1, 200)[:, np.newaxis]
    >>> model = MLP([1, 16, 1], activation="tanh", seed=0)
    >>> history = model.fit(x, x**2, optimizer=Adam(0.01), seed=0)
    >>> bool(model.loss(x, x**2) < 0.01)
    True
    >>> model.predict(x).shape
    (200, 1)
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str | Choice | Sequence[str | Choice] = "relu",
        output: str | Choice = "identity",
        *,
        loss: str | Choice | None = None,
        init: str | npt.ArrayLike = "auto",
        dtype: npt.DTypeLike = "float32",
        seed: int | None = None,
        standardize: bool = False,
        standardize_y: bool = False,
    ) -> None:
        checks.first_initialisation(self, "_network")
        architecture = architecture_of(sizes, activation, output, loss, dtype, standardize, standardize_y)
        self.seed = checks.seed_of(seed)
        defaults = [activation_of(name).initializer for name in architecture.activations]
        generator = np.random.default_rng(self.seed)
        params = initialize(init, architecture.layout.sizes, defaults, architecture.dtype, generator)
        self._network = Network(architecture, params)

    def __repr__(self) -> str:
        architecture = self._network.architecture
        hidden = architecture.activations[:-1]
        activation = hidden[0] if len(set(hidden)) == 1 else list(hidden)
        shown = f"{list(self.sizes)}, " + (f"activation={activation!r}, " if hidden else "")
        output, loss = architecture.activations[-1], architecture.loss
        shown += f"output={output!r}, loss={loss!r}, dtype={str(self.dtype)!r}"
        shown += ", standardize=True" if architecture.standardizes_x else ""
        shown += ", standardize_y=True" if architecture.standardizes_y else ""
        return f"MLP({shown})"

    def _repr_html_(self) -> str:
        return html_table(self._summary_rows(), repr(self))

    def summary(self) -> str:
        """Return a table of the layers: their widths, activations and parameters.

        Examples
        --------
        >>> print(MLP([784, 128, 10], output="softmax").summary())
        layer  inputs  outputs  activation  parameters
            0     784      128        relu      100480
            1     128       10     softmax        1290
          all                                   101770
        float32, 0.4 MB; loss cross_entropy
        """
        size = self.n_params * self.dtype.itemsize
        shown = f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
        return f"{text_table(self._summary_rows())}\n{self.dtype}, {shown}; loss {self.loss_name}"

    def _summary_rows(self) -> list[tuple[str, ...]]:
        rows = [("layer", "inputs", "outputs", "activation", "parameters")]
        for index, (n_in, n_out) in enumerate(pairwise(self.sizes)):
            rows.append((str(index), str(n_in), str(n_out), self.activations[index], str((n_in + 1) * n_out)))
        return [*rows, ("all", "", "", "", str(self.n_params))]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Widths of the input, of every hidden layer and of the output."""
        return self._network.architecture.layout.sizes

    @property
    def activations(self) -> tuple[str, ...]:
        """Names of the activations, one per layer, the output's last."""
        return tuple([str(activation) for activation in self._network.architecture.activations])

    @property
    def loss_name(self) -> str:
        """Name of the loss."""
        return str(self._network.architecture.loss)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of parameters, arithmetic and predictions."""
        return self._network.architecture.dtype

    @property
    def n_params(self) -> int:
        """Number of parameters."""
        return self._network.architecture.layout.n_params

    @property
    def params(self) -> npt.NDArray[Any]:
        """All parameters, shape (n_params,): per layer the weights row by row, then the biases.

        A view of the memory that the kernels share: writing to it changes the model. Assigning to `params` copies in.
        """
        self._network.turn.settle()
        return self._network.params.view()

    @params.setter
    def params(self, values: npt.ArrayLike) -> None:
        self._network.turn.settle()
        self._network.params[:] = arrays.parameters(values, self._network.params.size, self._network.architecture.dtype)

    @property
    def weights(self) -> Views:
        """Views of each layer's weights, shape (n_in, n_out); assigning to one of them copies in."""
        self._network.turn.settle()
        return self._network.architecture.layout.weights(self._network.params)

    @property
    def biases(self) -> Views:
        """Views of each layer's biases, shape (n_out,); assigning to one of them copies in."""
        self._network.turn.settle()
        return self._network.architecture.layout.biases(self._network.params)

    @property
    def x_mean(self) -> npt.NDArray[np.float64] | None:
        """Means of the inputs, shape (n_features,), a copy; None if none are learnt."""
        return self._learnt(0, "mean")

    @property
    def x_std(self) -> npt.NDArray[np.float64] | None:
        """Standard deviations of the inputs, likewise; 1 for a constant one."""
        return self._learnt(0, "std")

    @property
    def y_mean(self) -> npt.NDArray[np.float64] | None:
        """Means of the targets, shape (n_targets,), likewise."""
        return self._learnt(1, "mean")

    @property
    def y_std(self) -> npt.NDArray[np.float64] | None:
        """Standard deviations of the targets, likewise."""
        return self._learnt(1, "std")

    def _learnt(self, which: int, name: str) -> npt.NDArray[np.float64] | None:
        learnt = self._network.scaling.learnt
        spread = None if learnt is None else learnt[which]
        return None if spread is None else getattr(spread, name).copy()

    def learn_scaling(self, x: npt.ArrayLike, y: npt.ArrayLike) -> None:
        """Learn from these data what inputs and targets are standardized by; also if a fit has learnt it already.

        A first fit does so by itself. Call it before single steps, or where the fit is to begin with other data.

        Parameters
        ----------
        x, y : array_like
            As for `fit`.

        Raises
        ------
        TypeError, ValueError
            If the model standardizes nothing, or naming the argument, what was expected and what was passed.
        """
        network = self._network
        if not network.scaling.learns:
            raise ValueError("the model standardizes nothing: make it with standardize=True, or standardize_y=True")
        data = network.checked_data(x, y)
        with network.turn.take():
            network.turn.finish()
            network.scaling.learn(data)

    @property
    def history(self) -> History | None:
        """The history of the last fit, or of the one that runs."""
        self._network.turn.settle()
        return self._network.history

    def fit(
        self,
        x: npt.ArrayLike | Iterable[Any],
        y: npt.ArrayLike | None = None,
        *,
        optimizer: Optimizer = Adam(),  # noqa: B008 - frozen
        batch_size: int | None = 32,
        epochs: int | None = 100,
        max_steps: int | None = None,
        validation_data: tuple[npt.ArrayLike, ...] | None = None,
        stop: StopRule | Iterable[StopRule] = (),
        metrics: Mapping[str, Callable[..., float]] | None = None,
        shuffle: bool | int = True,
        drop_last: bool = False,
        progress: bool = False,
        threads: int | str = 1,
        seed: int | None = None,
        regularize: Regularizer | Iterable[Regularizer] = (),
        clip_norm: float | None = None,
        clip_value: float | None = None,
        ema: float | None = None,
        use_ema: bool = False,
        rate_factors: Sequence[tuple[float, float]] | None = None,
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
        """Train from the present parameters, with a fresh optimizer and history.

        The parameters are those of `Trainer` and of `Trainer.fit`, to which this is one call.

        Returns
        -------
        History
            Also kept as `history`, which holds the record so far if the fit is interrupted.
        """
        trainer = Trainer(
            self,
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
        return trainer.fit(
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
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            resume=resume,
            check_finite=check_finite,
        )

    def predict(
        self, x: npt.ArrayLike, out: npt.NDArray[Any] | None = None, *, threads: int | str = 1
    ) -> npt.NDArray[Any]:
        """Return the outputs for `x`, after the output activation.

        A sample's prediction has the same bits alone or among others.

        Parameters
        ----------
        x : array_like, shape (n_samples, n_features), read-only
            Any real dtype and any strides.
        out : ndarray, shape (n_samples, n_out), optional
            Overwritten and returned; C-contiguous, of the model's dtype, and not overlapping `x`.
        threads : int or "auto", default 1
            As for `Trainer`; helps where the samples take a millisecond or more. Any number gives the same bits.

        Returns
        -------
        ndarray, shape (n_samples, n_out), of the model's dtype

        Raises
        ------
        TypeError, ValueError
            If `x` or `out` are of a wrong shape or dtype, or `x` is not finite.

        Warns
        -----
        RuntimeWarning
            If an output is not finite; it names the first.
        """
        if type(threads) is not int or threads != 1:
            threads = checked_threads(threads)
        outputs = evaluation.predict_at_once(self._network, x, out)
        if outputs is not None:
            return out if out is not None else outputs
        self._network.turn.settle()
        layout, dtype = self._network.architecture.layout, self._network.architecture.dtype
        array = self._network.checked_features(x, allow_empty=True)
        result = arrays.output(out, (array.shape[0], layout.sizes[-1]), dtype, array, self._network.params)
        evaluation.predict(self._network, array, result, threads)
        return result if out is None else out

    def loss(self, x: npt.ArrayLike, y: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None) -> float:
        """Return the mean loss over the samples.

        Parameters
        ----------
        x : array_like, shape (n_samples, n_features), read-only
        y : array_like, read-only
            Values (n_samples, n_out), for one output also (n_samples,); for a softmax integer classes (n_samples,) or
            (n_samples, 1), or probabilities (n_samples, n_out).
        sample_weight : array_like, shape (n_samples,), optional
            Not negative, and not all 0: the mean becomes ``sum(w * loss) / sum(w)``.

        Raises
        ------
        TypeError, ValueError
            Naming the argument, what was expected and what was passed.

        Warns
        -----
        RuntimeWarning
            If the loss is not finite; it names the first row and output that is not.
        """
        self._network.turn.settle()
        data = self._network.checked_data(x, y, sample_weight=sample_weight)
        return evaluation.loss(self._network, data)

    def loss_and_grad(
        self, x: npt.ArrayLike, y: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None
    ) -> tuple[float, npt.NDArray[Any]]:
        """Return the mean loss over the samples and its exact gradient.

        Parameters
        ----------
        x, y, sample_weight : array_like
            As for `loss`.

        Returns
        -------
        loss : float
        grad : ndarray, shape (n_params,), of the model's dtype
            In the layout of `params`; NaN if the loss is not finite.

        Raises
        ------
        TypeError, ValueError
            Naming the argument, what was expected and what was passed.

        Warns
        -----
        RuntimeWarning
            If the loss is not finite; it names the first row and output that is not. Or if the gradient is not.
        """
        at_once = evaluation.loss_and_grad_at_once(self._network, x, y) if sample_weight is None else None
        if at_once is not None:
            return at_once
        self._network.turn.settle()
        data = self._network.checked_data(x, y, sample_weight=sample_weight)
        return evaluation.loss_and_grad(self._network, data)

    def vjp(self, x: npt.ArrayLike, d_out: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return ``J.T @ d_out`` of each sample, J being the Jacobian of its outputs with respect to its features.

        The gradient with respect to `x` of whatever `d_out` is the gradient of with respect to the outputs.

        Parameters
        ----------
        x : array_like, shape (n_samples, n_features), read-only
        d_out : array_like, shape (n_samples, n_out), for one output also (n_samples,), read-only
            With respect to the outputs behind the output activation.

        Returns
        -------
        ndarray, shape (n_samples, n_features), of the model's dtype

        Raises
        ------
        TypeError, ValueError
            Naming the argument, what was expected and what was passed.

        Warns
        -----
        RuntimeWarning
            If a derivative is not finite; it names the first.

        Notes
        -----
        At a kink of an activation the derivative is that from the left. A single sample is summed in another order than
        among others, so that its last bits may differ.
        """
        self._network.turn.settle()
        return evaluation.vjp(self._network, *self._network.checked_directions(x, d_out, "d_out", self.sizes[-1]))

    def jvp(self, x: npt.ArrayLike, t_x: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return ``J @ t_x`` of each sample: the derivative of its outputs along a direction `t_x` of its features.

        Parameters
        ----------
        x, t_x : array_like, shape (n_samples, n_features), read-only

        Returns
        -------
        ndarray, shape (n_samples, n_out), of the model's dtype
            Behind the output activation.

        Raises
        ------
        TypeError, ValueError
            Naming the argument, what was expected and what was passed.

        Warns
        -----
        RuntimeWarning
            If a derivative is not finite; it names the first.
        """
        self._network.turn.settle()
        return evaluation.jvp(self._network, *self._network.checked_directions(x, t_x, "t_x", self.sizes[0]))

    def jacobian(self, x: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return the derivatives of each sample's outputs with respect to its features.

        Parameters
        ----------
        x : array_like, shape (n_samples, n_features), read-only

        Returns
        -------
        ndarray, shape (n_samples, n_out, n_features), of the model's dtype
            ``[s, i, j]`` is the derivative of output i, behind the output activation, with respect to feature j.

        Raises
        ------
        TypeError, ValueError
            Naming the argument, what was expected and what was passed.

        Warns
        -----
        RuntimeWarning
            If a derivative is not finite.

        Examples
        --------
        >>> model = MLP([2, 1], init=[3.0, 4.0, 5.0])  # a linear model: 3 x0 + 4 x1 + 5
        >>> model.jacobian([[0.1, 0.2]])
        array([[[3., 4.]]], dtype=float32)
        """
        self._network.turn.settle()
        features = self._network.checked_features(x)
        return evaluation.jacobian(self._network, features)

    def compiled(self, n: int | None = None) -> npt.NDArray[Any]:
        """Return a handle with which functions compiled by Numba use this model, by `fastbp.embed`.

        Parameters
        ----------
        n : int, optional
            How many: one for each thread. Each has buffers of its own.

        Returns
        -------
        ndarray, shape (size,), or (n, size) with a handle as each row
            Read-only, of a dtype of its own. It keeps the model alive; it is no handle any more if it is copied.

        Raises
        ------
        TypeError, ValueError
            If `n` is no positive integer.
        """
        return network_handles(self._network, None if n is None else checks.positive_int(n, "n"), self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model, and the history of its last fit, to a file that `fastbp.load` reads.

        As `Trainer.save`, which keeps the optimizer too.
        """
        self._network.turn.settle()
        archive.write(checks.path(path, "path"), *model_archive(self._network, self.seed))

    def __copy__(self) -> MLP:
        """Return a copy that shares nothing with this model."""
        return copy.deepcopy(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        checks.first_initialisation(self, "_network")
        self.__dict__.update(state)
