"""The network: architecture and parameters, prediction, loss and gradient."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastbp import arrays, checks, errors, sources
from fastbp.buffers import aligned_copy
from fastbp.driver import gradient
from fastbp.initializers import initialize
from fastbp.kernels import training
from fastbp.kernels.activations import ACTIVATIONS
from fastbp.kernels.losses import LOSSES
from fastbp.kernels.tables import LOSS_SUMS
from fastbp.layout import Layout, Views
from fastbp.names import folded, name_of
from fastbp.optimizers import Adam, Optimizer
from fastbp.pacing import ranges
from fastbp.plan import Architecture, Plan
from fastbp.turn import Turn
from fastbp.workspace import Workspace

if TYPE_CHECKING:
    from fastbp.history import History
    from fastbp.stopping import StopRule

__all__ = ["MLP"]

_DTYPES = ("float32", "float64")
_WHOLE_BLOCK = 1 << 20  # samples, more than any block has


class MLP:
    """A dense feed-forward network (multilayer perceptron).

    Layer l maps its input h to ``activation_l(h @ weights[l] + biases[l])``.

    Parameters
    ----------
    sizes : sequence of int
        Widths ``[n_features, ..., n_out]``, at least two entries. Two make a linear or logistic regression.
    activation : str or sequence of str, default "relu"
        One name for all hidden layers, or one per hidden layer: identity, sigmoid, tanh, relu, leaky_relu (slope 0.01),
        elu (alpha 1), selu, gelu (exact), silu, softplus.
    output : str, default "identity"
        Activation of the last layer: any of these, or softmax, which needs an output per class, two at least.
    loss : str, optional
        mse, mae, huber (delta 1), each the mean over samples and outputs, with any output but softmax;
        binary_cross_entropy (mean over samples and outputs) with sigmoid; cross_entropy with softmax. By default
        cross_entropy for softmax, binary_cross_entropy for sigmoid, else mse.
    init : str or array_like of shape (n_params,), default "auto"
        How weights start (`fastbp.initializers`), or all parameters. Biases start at 0.
    dtype : {"float32", "float64"}
        Of parameters, arithmetic and predictions.
    seed : int, optional
        Of the initial weights. By default one is drawn.

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
        activation: str | Sequence[str] = "relu",
        output: str = "identity",
        *,
        loss: str | None = None,
        init: str | npt.ArrayLike = "auto",
        dtype: npt.DTypeLike = "float32",
        seed: int | None = None,
    ) -> None:
        checks.first_initialisation(self, "_turn")
        layout = Layout(sizes)
        activations = (
            *_hidden_activations(activation, layout.n_layers - 1),
            _output_activation(output, layout.sizes[-1]),
        )
        number = _dtype_of(dtype)
        self._architecture = Architecture(layout, activations, _loss_of(loss, activations[-1]), number)
        self.seed = checks.seed_of(seed)
        rng = np.random.default_rng(self.seed)
        self._params = aligned_copy(initialize(init, layout.sizes, activations, number, rng), number)
        self._history: History | None = None
        self._of_thread, self._turn = threading.local(), Turn()

    def __repr__(self) -> str:
        architecture = self._architecture
        hidden = architecture.activations[:-1]
        activation = hidden[0] if len(set(hidden)) == 1 else list(hidden)
        shown = f"{list(self.sizes)}, " + (f"activation={activation!r}, " if hidden else "")
        return (
            f"MLP({shown}output={architecture.activations[-1]!r}, loss={self.loss_name!r}, dtype={str(self.dtype)!r})"
        )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Widths of the input, of every hidden layer and of the output."""
        return self._architecture.layout.sizes

    @property
    def activations(self) -> tuple[str, ...]:
        """Names of the activations, one per layer, the output's last."""
        return self._architecture.activations

    @property
    def loss_name(self) -> str:
        """Name of the loss."""
        return self._architecture.loss

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of parameters, arithmetic and predictions."""
        return self._architecture.dtype

    @property
    def n_params(self) -> int:
        """Number of parameters."""
        return self._architecture.layout.n_params

    @property
    def params(self) -> npt.NDArray[Any]:
        """All parameters, shape (n_params,): per layer the weights row by row, then the biases.

        A view of the memory that the kernels share: writing to it changes the model. Assigning to `params` copies in.
        """
        self._turn.settle()
        return self._params.view()

    @params.setter
    def params(self, values: npt.ArrayLike) -> None:
        self._turn.settle()
        self._params[:] = arrays.parameters(values, self._params.size, self._architecture.dtype)

    @property
    def weights(self) -> Views:
        """Views of each layer's weights, shape (n_in, n_out); assigning to one of them copies in."""
        self._turn.settle()
        return self._architecture.layout.weights(self._params)

    @property
    def biases(self) -> Views:
        """Views of each layer's biases, shape (n_out,); assigning to one of them copies in."""
        self._turn.settle()
        return self._architecture.layout.biases(self._params)

    @property
    def history(self) -> History | None:
        """The history of the last fit, or of the one that runs."""
        self._turn.settle()
        return self._history

    def fit(
        self,
        x: npt.ArrayLike,
        y: npt.ArrayLike,
        *,
        optimizer: Optimizer = Adam(),  # noqa: B008 - frozen
        batch_size: int | None = 32,
        epochs: int | None = 100,
        max_steps: int | None = None,
        validation_data: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
        stop: StopRule | Iterable[StopRule] = (),
        metrics: Mapping[str, Callable[[Any, Any], float]] | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        progress: bool = False,
        threads: int | str = 1,
        seed: int | None = None,
    ) -> History:
        """Train from the present parameters, with a fresh optimizer and history.

        The parameters are those of `Trainer` and of `Trainer.fit`, to which this is one call.

        Returns
        -------
        History
            Also kept as `history`, which holds the record so far if the fit is interrupted.
        """
        from fastbp.trainer import Trainer  # the trainer knows the model, not the other way round

        trainer = Trainer(
            self,
            optimizer=optimizer,
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            threads=threads,
            seed=seed,
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
        )

    def predict(self, x: npt.ArrayLike, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Return the outputs for `x`, after the output activation.

        A sample's prediction has the same bits alone or among others.

        Parameters
        ----------
        x : array_like, shape (n_samples, n_features), read-only
            Any real dtype and any strides.
        out : ndarray, shape (n_samples, n_out), optional
            Overwritten and returned; C-contiguous, of the model's dtype, and not overlapping `x`.

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
        self._turn.settle()
        layout, dtype = self._architecture.layout, self._architecture.dtype
        array = arrays.features(x, layout.sizes[0], dtype, allow_empty=True)
        result = arrays.output(out, (array.shape[0], layout.sizes[-1]), dtype, array, self._params)
        self._predict(array, result)
        if not np.isfinite(result).all():
            self._warn(_where_not_finite(result))
        return result if out is None else out

    def _predict(self, x: npt.NDArray[Any], result: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Write the outputs for checked features, without a word about those that are not finite."""
        if result is None:
            result = np.empty((x.shape[0], self._architecture.layout.sizes[-1]), self._architecture.dtype)
        workspace = self._workspace(with_loss=False)
        plan, source = workspace.plans.ctypes.data, sources.source_of(x)
        block, cost = workspace.plan.block, workspace.plan.costs(x.shape[0])[0]
        for first, last in ranges(x.shape[0], block, cost):
            training.predict(plan, source.ctypes.data, first, last, result.ctypes.data)
        return result

    def loss(self, x: npt.ArrayLike, y: npt.ArrayLike) -> float:
        """Return the mean loss over the samples.

        Parameters
        ----------
        x : array_like, shape (n_samples, n_features), read-only
        y : array_like, read-only
            Values (n_samples, n_out), for one output also (n_samples,); for a softmax integer classes (n_samples,) or
            (n_samples, 1), or probabilities (n_samples, n_out).

        Raises
        ------
        TypeError, ValueError
            Naming the argument, what was expected and what was passed.

        Warns
        -----
        RuntimeWarning
            If the loss is not finite; it names the first row and output that is not.
        """
        self._turn.settle()
        data = self._checked_data(x, y)
        loss = self._evaluate(data)[0]
        if not math.isfinite(loss):
            self._warn_of_overflow(data)
        return loss

    def loss_and_grad(self, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[float, npt.NDArray[Any]]:
        """Return the mean loss over the samples and its exact gradient.

        Parameters
        ----------
        x, y : array_like
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
        self._turn.settle()
        data = self._checked_data(x, y)
        loss, grad = gradient(self._architecture, self._params, data)
        if not math.isfinite(loss):
            self._warn_of_overflow(data)
        elif not np.isfinite(grad).all():
            self._warn("the gradient is not finite, though the loss is")
        return loss, grad

    def _checked_data(self, x: npt.ArrayLike, y: npt.ArrayLike, names: tuple[str, str] = ("x", "y")) -> sources.Data:
        """Check a pair of features and targets and return it in the form that the kernels read."""
        features = arrays.features(x, self._architecture.layout.sizes[0], self._architecture.dtype, name=names[0])
        targets, is_labels = arrays.targets(
            y,
            features.shape[0],
            self._architecture.layout.sizes[-1],
            self._architecture.dtype,
            classes=self._architecture.loss == "cross_entropy",
            binary=self._architecture.loss == "binary_cross_entropy",
            name=names[1],
        )
        return sources.Data(features, targets, is_labels)

    def _evaluate(self, data: sources.Data) -> tuple[float, float]:
        """Return the mean loss and the accuracy (NaN where the output is no class)."""
        n_samples = data.x.shape[0]
        workspace = self._workspace(with_loss=True)
        plan, source = workspace.plans.ctypes.data, data.source()
        sums, n_outside = np.zeros(1 + workspace.plan.n_units, LOSS_SUMS), 0
        block, cost = workspace.plan.block, workspace.plan.costs(n_samples)[0]
        for first, last in ranges(n_samples, block, cost):
            n_outside += training.evaluate(plan, source.ctypes.data, first, last, sums.ctypes.data)
        if n_outside:
            raise ValueError(f"y changed while it was read: {n_outside} labels are out of range now")
        loss, right = sums[0].item()
        return loss / n_samples, right / (n_samples * self._decisions_per_sample())

    def _warn_of_overflow(self, data: sources.Data) -> None:
        """Warn that the loss of these data, which are finite, is not, and say where it comes from."""
        outputs = self._predict(data.x)
        is_finite = np.isfinite(outputs).all()
        self._warn("the loss is not finite, though all outputs are" if is_finite else _where_not_finite(outputs))

    def _warn(self, problem: str) -> None:
        """Warn that a result is not finite, and say why."""
        if not np.isfinite(self._params).all():
            cause = "params are not finite"
        elif self._architecture.dtype == np.float32:
            cause = "float32 overflows on the way: scale the data, or use dtype='float64'"
        else:
            cause = "float64 overflows on the way: scale the data"
        errors.warn(f"{problem}; {cause}")

    def _workspace(self, with_loss: bool) -> Workspace:
        """Return this thread's workspace for a block of samples: building one takes longer than a small prediction."""
        kept: dict[str, Workspace] = self._of_thread.__dict__
        key = "evaluation" if with_loss else "prediction"
        if key not in kept:
            plan = Plan(self._architecture, _WHOLE_BLOCK, trains=False, with_loss=with_loss)
            kept[key] = Workspace(plan, self._params)
        return kept[key]

    def _decisions_per_sample(self) -> float:
        """Return how many classes each sample decides on; NaN where the output is no class."""
        loss = self._architecture.loss
        if loss == "cross_entropy":
            return 1.0
        return float(self._architecture.layout.sizes[-1]) if loss == "binary_cross_entropy" else math.nan

    def __copy__(self) -> MLP:
        """Return a copy that shares nothing with this model."""
        return copy.deepcopy(self)

    def __getstate__(self) -> dict[str, Any]:
        self._turn.settle()
        state = self.__dict__.copy()
        del state["_turn"], state["_of_thread"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        checks.first_initialisation(self, "_turn")
        self.__dict__.update(state)
        self._params = aligned_copy(self._params, self._architecture.dtype)
        self._of_thread, self._turn = threading.local(), Turn()


def _where_not_finite(outputs: npt.NDArray[Any]) -> str:
    """Return in words which output of which row is the first that is not finite."""
    row, output = np.argwhere(~np.isfinite(outputs))[0]
    return f"the prediction of row {row} is not finite in output {output}: {outputs[row, output]}"


def _hidden_activations(activation: str | Sequence[str], n_hidden: int) -> tuple[str, ...]:
    if isinstance(activation, str):
        return (_hidden_activation(activation, "activation"),) * n_hidden
    if not isinstance(activation, Sequence):
        raise TypeError(f"activation must be a str or a sequence of str, got {type(activation).__name__}")
    names = tuple(activation)
    if len(names) != n_hidden:
        raise ValueError(f"activation must have one name per hidden layer, {n_hidden}, got {len(names)}")
    return tuple(_hidden_activation(name, f"activation[{i}]") for i, name in enumerate(names))


def _hidden_activation(name: object, what: str) -> str:
    known = [known for known in ACTIVATIONS if known != "softmax"]
    if isinstance(name, str) and folded(name) in ("softmax", "logsoftmax"):
        raise ValueError(f"{what} must be one of {', '.join(map(repr, known))}, got {name!r}, which is for output only")
    return name_of(name, known, what)


def _output_activation(output: object, n_out: int) -> str:
    name = name_of(output, ACTIVATIONS, "output")
    if name == "softmax" and n_out == 1:
        raise ValueError(
            "output='softmax' needs one output per class, at least two: for one that tells two classes apart use "
            "output='sigmoid'"
        )
    return name


def _loss_of(loss: object, output: str) -> str:
    fused = next((name for name, entry in LOSSES.items() if entry.output == output), None)
    if loss is None:
        return fused or "mse"
    unfused = tuple(known for known, entry in LOSSES.items() if entry.output is None and output != "softmax")
    permitted = (*((fused,) if fused else ()), *unfused)
    name = name_of(loss, (*permitted, *(known for known in LOSSES if known not in permitted)), "loss")
    if name not in permitted:
        needed = LOSSES[name].output
        hint = f", which goes with output={needed!r}" if needed else ""
        raise ValueError(
            f"loss with output {output!r} must be one of {', '.join(map(repr, permitted))}, got {name!r}{hint}"
        )
    return name


def _dtype_of(dtype: npt.DTypeLike) -> np.dtype[Any]:
    try:
        resolved = np.dtype(dtype)
    except Exception:  # any: NumPy hands a text to Python's parser
        if isinstance(dtype, str):
            name_of(dtype, _DTYPES, "dtype")
        resolved = None
    if dtype is None or resolved is None or resolved.name not in _DTYPES or not resolved.isnative:
        raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r}")
    return resolved
