"""What a fit has seen of its own health, layer by layer, from inside the compiled step."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastbp.buffers import owned
from fastbp.diagnosis import DataFacts, HealthReport, LayerFacts, Record, diagnose
from fastbp.display import pyplot_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Health"]

Array = npt.NDArray[np.float64]

_COLUMNS = ("gradient_norm", "update_ratio", "activation_mean", "activation_spread", "dead", "saturated")


class Health:
    """The record of a network's health during its fits, a row for each step that was looked at.

    Attributes
    ----------
    step : ndarray, shape (n_records,)
        Numbers of the steps, from 0.
    loss : ndarray, shape (n_records,)
        Of the steps' batches.
    gradient_norm : ndarray, shape (n_records, n_layers)
        Euclidean norm of the gradient of a layer's weights and biases, as the batch gives it: before penalties and
        clipping.
    update_ratio : ndarray, shape (n_records, n_layers)
        Euclidean norm of what the optimizer adds to a layer's weights and biases, over that of these.
    activation_mean : ndarray, shape (n_records, n_layers)
        Mean of a layer's outputs, over its units and up to 64 samples of the batch. Of an output layer whose activation
        belongs to the loss (softmax, sigmoid, exp) before this.
    activation_spread : ndarray, shape (n_records, n_layers)
        Root of the mean, over the units, of the variance of their outputs over these samples.
    dead : ndarray, shape (n_records, n_layers)
        Share of the units with all these samples where the activation is flat, of hidden layers whose activation is
        flat on one side (relu, elu, selu, softplus, gelu, silu, mish); NaN for others.
    saturated : ndarray, shape (n_records, n_layers)
        Share of the units with 19 of 20 samples where the activation is flat, of hidden layers whose activation is flat
        on both sides (sigmoid, tanh, hard_tanh); NaN for others. Flat is where the slope is below a twentieth of the
        largest.
    data : DataFacts
        Of the data of the last fit that was watched.
    first_non_finite : (int, int or None) or None
        Step and layer of the first divergence.

    Examples
    --------
    >>> import numpy as np, fastbp
    >>> x = np.random.default_rng(0).normal(size=(256, 4))
    >>> history = fastbp.MLP([4, 16, 1], "tanh", seed=0).fit(x, x[:, 0], health=True, epochs=100, seed=0)
    >>> history.health.gradient_norm.shape  # of every 200th step
    (4, 2)
    >>> print(history.health.report())
    Nothing is wrong in the 4 steps looked at, up to step 600.
    """

    def __init__(self, layers: tuple[LayerFacts, ...], data: DataFacts) -> None:
        self.layers, self.data = layers, data
        self.first_non_finite: tuple[int, int | None] | None = None
        self._length = 0
        self._steps = np.empty(16, np.int64)
        self._losses = np.empty(16)
        self._table = np.empty((16, len(layers), len(_COLUMNS)))

    def __copy__(self) -> Health:
        """Return a copy that shares nothing with this one."""
        return copy.deepcopy(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._steps, self._losses, self._table = owned(self._steps), owned(self._losses), owned(self._table)

    def __len__(self) -> int:
        """Return the number of steps that were looked at."""
        return self._length

    def __repr__(self) -> str:
        return f"Health({self._length} steps, {len(self.layers)} layers)"

    @property
    def step(self) -> npt.NDArray[np.int64]:
        """Numbers of the steps, from 0: a copy, shape (n_records,)."""
        return self._steps[: self._length].copy()

    @property
    def loss(self) -> Array:
        """Mean loss of each step's batch: a copy, shape (n_records,)."""
        return self._losses[: self._length].copy()

    def __getattr__(self, name: str) -> Array:
        if name in _COLUMNS and "_table" in self.__dict__:
            column: Array = self._table[: self._length, :, _COLUMNS.index(name)].copy()
            return column
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_COLUMNS})

    def report(self) -> HealthReport:
        """Return what is wrong, since when, in which layer, and what usually helps; it is true if nothing is.

        See ``docs/health.md`` for the thresholds and their sources.
        """
        columns = {name: getattr(self, name) for name in _COLUMNS if name in Record._fields}
        return diagnose(
            Record(
                step=self.step,
                loss=self.loss,
                first_non_finite=self.first_non_finite,
                layers=self.layers,
                data=self.data,
                **columns,
            )
        )

    def plot(self, figure: Figure | None = None) -> Figure:
        """Draw all columns against the step, a line for each layer.

        Parameters
        ----------
        figure : matplotlib.figure.Figure, optional
            Where to draw; by default a new one.

        Raises
        ------
        ImportError
            If Matplotlib is not installed.
        """
        pyplot = pyplot_for("Health.plot")
        if figure is None:
            figure = pyplot.figure(figsize=(10, 8), layout="constrained")
        axes: Any = figure.subplots(3, 2)
        for name, ax in zip(_COLUMNS, axes.ravel(), strict=True):
            self.draw(ax, name)
        return figure

    def draw(self, ax: Axes, name: str) -> None:
        """Draw a column against the step, a line for each layer that has it.

        Parameters
        ----------
        ax : matplotlib.axes.Axes
        name : str
        """
        from matplotlib import colormaps

        values, marker = getattr(self, name), "o" if self._length == 1 else None
        for index, color in enumerate(colormaps["viridis"](np.linspace(0.0, 0.9, len(self.layers)))):
            if np.isfinite(values[:, index]).any():
                ax.plot(self.step, values[:, index], color=color, marker=marker, label=f"layer {index}")
        ax.set_xlabel("step")
        ax.set_ylabel(name.replace("_", " "))
        if name in ("gradient_norm", "update_ratio") and (values > 0.0).any():
            ax.set_yscale("log")
        if name in ("dead", "saturated"):
            ax.set_ylim(-0.02, 1.02)
        if not ax.get_lines():
            ax.text(0.5, 0.5, "no layer has any", ha="center", va="center", transform=ax.transAxes)
        else:
            ax.legend(fontsize="small", ncols=1 + len(self.layers) // 6)

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return what is recorded, as views: a row for each step that was looked at."""
        arrays = {"step": self._steps, "loss": self._losses, "table": self._table}
        return {name: array[: self._length] for name, array in arrays.items()}

    def _fill_with(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Take over such arrays."""
        self._steps, self._losses, self._table = (owned(arrays[name]) for name in ("step", "loss", "table"))
        self._length = len(self._steps)

    def _put(self, records: npt.NDArray[np.void]) -> None:
        """Write what the kernel has recorded, shape (n, n_layers); rows of the same steps, and of later ones, go.

        Writing the same rows again changes nothing, so that an interrupted caller can begin anew.
        """
        steps = records["step"][:, 0].astype(np.int64)
        row = int(self._steps[: self._length].searchsorted(steps[0]))
        stop = row + len(steps)
        capacity = len(self._table)  # the last to grow, if that is interrupted
        if stop > capacity:
            self._grow(max(stop, 2 * capacity))
        self._steps[row:stop], self._losses[row:stop] = steps, records["loss"][:, 0]
        sides = np.array([np.nan if layer.flat_sides is None else layer.flat_sides for layer in self.layers])
        with np.errstate(all="ignore"):
            columns = (
                records["gradient"],
                records["update"] / records["weights"],
                records["mean"],
                records["spread"],
                np.where(sides == 1, records["flat"], np.nan),
                np.where(sides == 2, records["nearly_flat"], np.nan),
            )
        self._table[row:stop] = np.stack(columns, axis=-1)
        self._length = stop

    def _cut(self, n_steps: int) -> None:
        """Forget what came after so many steps: the run has gone back there."""
        self._length = int(self._steps[: self._length].searchsorted(n_steps))

    def _grow(self, length: int) -> None:
        for name in ("_steps", "_losses", "_table"):
            before = getattr(self, name)
            grown = np.empty((length, *before.shape[1:]), before.dtype)
            grown[: self._length] = before[: self._length]
            setattr(self, name, grown)
