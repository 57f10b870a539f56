"""What a fit has recorded, epoch by epoch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastbp.buffers import owned
from fastbp.display import html_table, pyplot_for
from fastbp.health import Health

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fastbp.diagnosis import DataFacts, LayerFacts
    from fastbp.recovery import Divergence

__all__ = ["History", "Metric", "check_metrics", "metric_value"]

Float64Array: TypeAlias = npt.NDArray[np.float64]
Metric: TypeAlias = Callable[..., float]

_COLUMNS = (
    "epoch",
    "loss",
    "accuracy",
    "validation_loss",
    "validation_accuracy",
    "learning_rate",
    "seconds",
)
_FIRST_CAPACITY = 16
_SHOWN_ROWS = 5  # at the beginning and at the end of a table
_HEALTH_COLUMNS = ("gradient_norm", "update_ratio")  # that are drawn beside the losses


class History:
    """The record of a fit: one entry per epoch in every column.

    A column is read as an attribute, ``history.loss``, or by its name, ``history["loss"]``. What was not recorded
    (accuracy where the output is no class, validation without validation data) is NaN throughout. A last epoch that
    was stopped midway has an entry too, over the steps done so far; it is replaced if the fit goes on.

    Parameters
    ----------
    seed : int, optional
        The seed of the run.

    Attributes
    ----------
    stop_reason : str or None
        Why the fit ended; None while it runs.
    compile_seconds : float
        Seconds spent compiling, not part of `seconds`.
    seed : int or None
        The seed that repeats the run.
    health : Health or None
        What fits with ``health=True`` have seen of their health.
    divergences : tuple of Divergence
        From which fits with `on_divergence` have gone back.
    best_epoch : int or None
        The value of `epoch` with the lowest validation loss, 0 if the start was best; None without validation.

    Examples
    --------
    >>> history = History(seed=7)
    >>> len(history), history.loss, history.seed
    (0, array([], dtype=float64), 7)
    """

    def __init__(self, seed: int | None = None) -> None:
        self.stop_reason: str | None = None
        self.compile_seconds: float = 0.0
        self.seed: int | None = seed
        self.health: Health | None = None
        self.divergences: tuple[Divergence, ...] = ()
        self._length = 0
        self._start: tuple[int, float] | None = None  # epochs ended, and loss, when the validation data were first used
        self._columns: dict[str, npt.NDArray[Any]] = {
            name: np.empty(_FIRST_CAPACITY, _dtype_of(name)) for name in _COLUMNS
        }

    @property
    def epoch(self) -> npt.NDArray[np.intp]:
        """Number of the epoch, from 1: a copy, shape (n_epochs,)."""
        return self["epoch"]

    @property
    def loss(self) -> Float64Array:
        """Mean training loss during the epoch: a copy, shape (n_epochs,)."""
        return self["loss"]

    @property
    def accuracy(self) -> Float64Array:
        """Share of correct classes in training during the epoch: a copy, shape (n_epochs,)."""
        return self["accuracy"]

    @property
    def validation_loss(self) -> Float64Array:
        """Mean loss on the validation data after the epoch: a copy, shape (n_epochs,)."""
        return self["validation_loss"]

    @property
    def validation_accuracy(self) -> Float64Array:
        """Share of correct classes on the validation data after the epoch: a copy, shape (n_epochs,)."""
        return self["validation_accuracy"]

    @property
    def learning_rate(self) -> Float64Array:
        """Learning rate of the epoch's last step: a copy, shape (n_epochs,)."""
        return self["learning_rate"]

    @property
    def seconds(self) -> Float64Array:
        """Duration of the epoch in seconds: a copy, shape (n_epochs,)."""
        return self["seconds"]

    @property
    def best_epoch(self) -> int | None:
        """The value of `epoch` with the lowest validation loss, the earliest of several; None without validation.

        The parameters at the start count too: 0 if they were best, or, in a trainer that has gone on to other
        validation data, the number of epochs that had ended before. An epoch that was stopped midway has no validation
        loss.
        """
        if self._start is None:
            return None
        n_before, lowest = self._start
        best = n_before
        for epoch, loss in zip(self.epoch, self.validation_loss, strict=True):
            if epoch > n_before and (loss < lowest or (np.isnan(lowest) and not np.isnan(loss))):
                best, lowest = int(epoch), float(loss)
        return best

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the user's metrics."""
        return tuple(name for name in self._columns if name not in _COLUMNS)

    def __copy__(self) -> History:
        """Return a copy that shares nothing with this one: rows are written in place."""
        return copy.deepcopy(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # The columns may come back read-only, or as somebody else's memory.
        self.__dict__.update(state)
        self._columns = {name: owned(column, _dtype_of(name)) for name, column in self._columns.items()}

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """Return a copy of the column `name`, shape (n_epochs,).

        Raises
        ------
        KeyError
            If nothing of this name was recorded.
        """
        if name not in self._columns:
            raise KeyError(f"history has no column {name!r}, only {', '.join(self._columns)}")
        return self._columns[name][: self._length].copy()

    def __getattr__(self, name: str) -> Float64Array:
        # Through __dict__: pickle and copy ask for attributes before there are any columns.
        if name in self.__dict__.get("_columns", ()):
            return self[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._columns})

    def __len__(self) -> int:
        """Return the number of epochs recorded."""
        return self._length

    def __repr__(self) -> str:
        parts = [f"{self._length} epoch{'' if self._length == 1 else 's'}"]
        if self._length:
            for name in ("loss", "accuracy", "validation_loss", "validation_accuracy", *self.metrics):
                value = self._columns[name][self._length - 1]
                if not np.isnan(value):
                    parts.append(f"{name}={value:.4g}")
        if self.stop_reason is not None:
            parts.append(f"stop_reason={self.stop_reason!r}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def _repr_html_(self) -> str:
        names = [name for name in self._columns if name == "epoch" or self._has(name)]
        rows = [[f"{self._columns[name][row]:.4g}" for name in names] for row in range(self._length)]
        if self._length > 2 * _SHOWN_ROWS:
            rows[_SHOWN_ROWS:-_SHOWN_ROWS] = [["…"] * len(names)]
        return html_table([names, *rows], repr(self))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the losses against the epoch and, where there is accuracy, that on a second axis to the right.

        The losses' axis is logarithmic if they are positive and span more than a decade. In a figure of its own, the
        learning rate is drawn below and, where health is recorded, the norms of gradients and the sizes of updates.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; by default in a new figure.

        Returns
        -------
        matplotlib.axes.Axes
            The axes of the losses.

        Raises
        ------
        ImportError
            If Matplotlib is not installed.
        """
        pyplot = pyplot_for("History.plot")
        if ax is None:
            columns = _HEALTH_COLUMNS if self.health is not None and len(self.health) else ()
            heights = [3.0, 1.0] + [1.5] * len(columns)
            figure = pyplot.figure(figsize=(7.0, 1.4 * sum(heights)), layout="constrained")
            ax, of_rate, *of_health = figure.subplots(len(heights), 1, height_ratios=heights)
            self._draw_rate(of_rate)
            for name, axes in zip(columns, of_health, strict=True):
                assert self.health is not None
                self.health.draw(axes, name)
        assert ax is not None
        self._draw_losses(ax)
        return ax

    def _draw_rate(self, ax: Axes) -> None:
        ax.plot(self.epoch, self.learning_rate, color="C2", marker="o" if self._length == 1 else None)
        ax.set_xlabel("epoch")
        ax.set_ylabel("learning rate")

    def _draw_losses(self, ax: Axes) -> None:
        """Draw losses and accuracies."""
        self._draw(ax, {"loss": "training loss", "validation_loss": "validation loss"}, "-")
        ax.set_xlabel("epoch")
        ax.set_ylabel("loss")
        if self._spans_decade(("loss", "validation_loss")):
            ax.set_yscale("log")
        twin = None
        if self._has("accuracy") or self._has("validation_accuracy"):
            twin = ax.twinx()
            labels = {"accuracy": "training accuracy", "validation_accuracy": "validation accuracy"}
            self._draw(twin, labels, "--")
            twin.set_ylabel("accuracy")
        lines = [*ax.get_lines(), *(twin.get_lines() if twin is not None else ())]
        if lines:
            # On the upper axes, so that no line crosses the legend.
            (twin or ax).legend(lines, [line.get_label() for line in lines], loc="center right")

    def _has(self, name: str) -> bool:
        return bool(np.isfinite(self[name]).any())

    def _draw(self, ax: Axes, labels: Mapping[str, str], line_style: str) -> None:
        for color, (name, label) in zip(("C0", "C1"), labels.items(), strict=True):
            if self._has(name):
                marker = "o" if self._length == 1 else None
                ax.plot(self.epoch, self[name], line_style, color=color, label=label, marker=marker)

    def _spans_decade(self, names: tuple[str, ...]) -> bool:
        values = np.concatenate([self[name] for name in names])
        values = values[np.isfinite(values)]
        # Python's floats: the product may overflow, and nobody needs to hear of it.
        return bool(values.size) and bool(values.min() > 0.0) and values.max().item() > 10.0 * values.min().item()

    def _fill_with(self, names: Iterable[str], rows: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over columns of these names: those that have rows, all alike many, and others without a value."""
        self._length = rows["epoch"].size if "epoch" in rows else 0
        for name in names:
            given = rows.get(name)
            self._columns[name] = np.full(self._length, np.nan) if given is None else owned(given, _dtype_of(name))

    def _watch(self, layers: tuple[LayerFacts, ...], data: DataFacts) -> None:
        """Begin a record of health, or go on with the one that there is, on these data."""
        if self.health is None:
            self.health = Health(layers, data)
        self.health.data = data

    def _note_divergence(self, step: int, layer: int | None) -> None:
        """Record the divergence that has ended a fit, if health is recorded."""
        if self.health is not None and self.health.first_non_finite is None:
            self.health.first_non_finite = step, layer

    def _cut(self, n_epochs: int, n_steps: int) -> None:
        """Forget what came after so many epochs and steps: the run has gone back there."""
        self._length = min(self._length, self._row_of(n_epochs + 1))
        if self.health is not None:
            self.health._cut(n_steps)

    def _put(self, **columns: npt.ArrayLike) -> None:
        """Write rows for consecutive epochs, which become the last ones: those of later epochs, and of the same, go.

        Arrays of one length, 1-D, `epoch` among them. Columns that are not given become NaN, new names new columns.
        Writing the same rows again changes nothing, so that an interrupted caller can begin anew.

        No checks: the trainer passes `epoch` and checked metric names.
        """
        epochs = np.atleast_1d(columns["epoch"])
        row = self._row_of(epochs[0])
        stop = row + epochs.size
        self._reserve(stop)
        self._add_columns(columns)
        for name, column in self._columns.items():
            column[row:stop] = columns.get(name, np.nan)
        self._length = stop

    def _fill(self, epoch: int, **values: float) -> None:
        """Write into the row of an epoch that has one. As `_put`, but for the columns that are not given: they stay."""
        self._add_columns(values)
        for name, value in values.items():
            self._columns[name][self._row_of(epoch)] = value

    def _has_row(self, epoch: int) -> bool:
        row = self._row_of(epoch)
        return row < self._length and bool(self._columns["epoch"][row] == epoch)

    def _row_of(self, epoch: int) -> int:
        epochs, length = self._columns["epoch"], self._length
        if length == 0 or epochs[length - 1] < epoch:  # as nearly always
            return length
        return int(epochs[:length].searchsorted(epoch))

    def _add_columns(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._columns:
                self._columns[name] = np.full(self._columns["epoch"].size, np.nan)

    def _last_row(self) -> dict[str, float]:
        """Return the last entry of every column, as Python's numbers."""
        return {name: column[self._length - 1].item() for name, column in self._columns.items()}

    def _last(self, name: str) -> float:
        """Return a column's last entry, without a copy of the column."""
        return float(self._columns[name][self._length - 1])

    def _reserve(self, length: int) -> None:
        """Make room for `length` rows; the capacity grows by half at least, so that appending is amortised.

        Each column by itself: an interrupt may have left some of them shorter than the others.
        """
        for name, column in self._columns.items():
            if column.size >= length:
                continue
            grown = np.empty(max(length, column.size + column.size // 2), dtype=column.dtype)
            grown[: self._length] = column[: self._length]
            self._columns[name] = grown


def _dtype_of(column: str) -> type[np.generic]:
    return np.intp if column == "epoch" else np.float64


def check_metrics(metrics: object) -> dict[str, Metric]:
    """Return the user's metrics, name -> f(y, prediction), as a dict.

    Raises
    ------
    TypeError
        If `metrics` is neither None nor a mapping of names to callables.
    ValueError
        If a name cannot be an attribute of `History`.
    """
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics must be a dict of name: f(y, prediction), got {type(metrics).__name__}")
    for name, metric in metrics.items():
        if not isinstance(name, str):
            raise TypeError(f"metrics must have str names, got {name!r} of type {type(name).__name__}")
        if not name.isidentifier() or name.startswith("_") or name in _taken_names():
            raise ValueError(f"metrics must be named by identifiers that History does not use itself, got {name!r}")
        if not callable(metric):
            raise TypeError(f"metrics[{name!r}] must be a callable f(y, prediction), got {type(metric).__name__}")
    return dict(metrics)


def metric_value(name: str, value: object) -> float:
    """Return what a metric has returned as a float.

    Raises
    ------
    TypeError
        If it is no real number.
    """
    number = np.asarray(value)
    if number.ndim != 0 or number.dtype.kind not in "biuf":
        raise TypeError(f"metrics[{name!r}] must return a float, got {value!r} of type {type(value).__name__}")
    return float(number)


def _taken_names() -> set[str]:
    return {*dir(History()), *_COLUMNS}
