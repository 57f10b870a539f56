"""What standardizes a network's inputs and targets: means and standard deviations of the data of its first fit."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from fastbp.architecture import loss_of
from fastbp.blocks import row_blocks
from fastbp.buffers import aligned_copy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastbp.architecture import Architecture
    from fastbp.sources import Data
    from fastbp.sparse import Features

__all__ = ["Learnt", "Scaling", "Spread", "spread_of", "units_of"]

Array: TypeAlias = npt.NDArray[np.float64]


class Spread(NamedTuple):
    """Mean and standard deviation of some columns; 1 for that of a constant one."""

    mean: Array
    std: Array


def spread_of(array: Features, name: str, weights: Array | None = None) -> Spread:
    """Return mean and standard deviation of each column, in float64 and in blocks of rows.

    Of deviations from the first row: so a constant column has none, and columns far from 0 keep their digits. One that
    varies by no more than its rounding is constant too. Rows of weight 0 do not count; others count alike.

    Raises
    ------
    ValueError
        If one of them is beyond float64, or a value is NaN.
    """
    n_columns, n_rows = array.shape[1], 0
    total, largest, square = np.zeros(n_columns), np.zeros(n_columns), np.zeros(n_columns)
    pivot: Array | None = None

    def counting() -> Iterator[Array]:
        for first, block in row_blocks(array):
            counts = slice(None) if weights is None else weights[first : first + len(block)] > 0.0
            if len(rows := block[counts]):
                yield rows

    with np.errstate(all="ignore"):
        for rows in counting():
            pivot = rows[0].astype(np.float64) if pivot is None else pivot
            deviations = rows - pivot
            n_rows += len(rows)
            total += deviations.sum(axis=0)
            largest = np.maximum(largest, np.maximum(deviations.max(axis=0), -deviations.min(axis=0)))
        assert pivot is not None  # some weight is above 0
        mean_deviation, unit = total / n_rows, np.where(largest > 0.0, largest, 1.0)  # whose squares are no extremes
        for rows in counting():
            deviations = rows - pivot
            deviations -= mean_deviation
            deviations /= unit
            square += np.square(deviations, out=deviations).sum(axis=0)
        mean, std = pivot + mean_deviation, unit * np.sqrt(square / n_rows)
    wrong = ~(np.isfinite(mean) & np.isfinite(std))
    if wrong.any():
        column = int(wrong.argmax())
        raise ValueError(
            f"{name} must have a finite mean and spread to be standardized, got {mean[column]} and {std[column]} in "
            f"column {column}"
        )
    rounding = 4.0 * np.finfo(array.dtype).eps if array.dtype.kind == "f" else 0.0
    std[std <= np.maximum(np.finfo(np.float64).tiny, rounding * np.abs(mean))] = 1.0
    return Spread(mean, std)


def units_of(learnt: Learnt) -> str:
    """Return a hash of the units in which a network computes, "" if they are the user's."""
    parts = [part.tobytes() for spread in learnt if spread is not None for part in spread]
    return hashlib.blake2b(b"".join(parts), digest_size=8).hexdigest() if parts else ""


Learnt: TypeAlias = tuple[Spread | None, Spread | None]  # of inputs and of targets, None for what is not standardized


class Scaling:
    """Numbers by which kernels standardize, at addresses that stay the same; before any are learnt they change nothing.

    Parameters
    ----------
    architecture : Architecture

    Attributes
    ----------
    is_learnt : bool
        True from the beginning where nothing is to be learnt.
    """

    def __init__(self, architecture: Architecture) -> None:
        sizes = architecture.layout.sizes
        self._n_in = sizes[0] if architecture.standardizes_x else 0
        self._n_out = sizes[-1] if architecture.standardizes_y else 0
        self._n_targets = self._n_out // loss_of(architecture.loss).outputs_per_target
        # Rows as in `addresses`, each with its own length.
        lengths = (self._n_in,) * 2 + (self._n_targets,) * 2 + (self._n_out,) * 2 + (max(self._n_in, self._n_out),)
        self._memory = aligned_copy(np.zeros(sum(lengths)), np.dtype(np.float64))
        self._rows = np.split(self._memory, np.cumsum(lengths)[:-1])
        self.put(None)

    @property
    def n_columns(self) -> tuple[int, int]:
        """Columns of inputs and of targets that are standardized."""
        return self._n_in, self._n_targets

    @property
    def learns(self) -> bool:
        """Whether there is anything to learn."""
        return self._n_in + self._n_out > 0

    @property
    def learnt(self) -> Learnt | None:
        """What has been learnt, of inputs and of targets; None if nothing has been yet."""
        return (self._of_x, self._of_y) if self.is_learnt else None

    def put(self, learnt: Learnt | None) -> None:
        """Standardize by this from now on. Only who has the turn may call this. May begin anew at any place."""
        of_x, of_y = (None, None) if learnt is None else learnt
        x_means, x_factors, y_means, y_factors, output_factors, output_shifts, _ = self._rows
        x_means[:], x_factors[:] = (0.0, 1.0) if of_x is None else (of_x.mean, 1.0 / of_x.std)
        y_means[:], y_factors[:] = (0.0, 1.0) if of_y is None else (of_y.mean, 1.0 / of_y.std)
        output_factors[:], output_shifts[:] = 1.0, 0.0
        if of_y is not None:
            # Of gaussian_nll the outputs behind the means are logarithms of variances.
            output_factors[: self._n_targets], output_shifts[: self._n_targets] = of_y.std, of_y.mean
            output_shifts[self._n_targets :] = np.tile(2.0 * np.log(of_y.std), self._n_out // self._n_targets - 1)
        self._of_x: Spread | None = of_x
        self._of_y: Spread | None = of_y
        self.is_learnt = learnt is not None or not self.learns

    def measured(self, data: Data) -> Learnt:
        """Return what would be learnt from checked data."""
        of_x = spread_of(data.x, "x", data.weights) if self._n_in else None
        return of_x, spread_of(data.y, "y", data.weights) if self._n_out else None

    def learn(self, data: Data) -> None:
        """Learn from checked data; as `put`."""
        self.put(self.measured(data))

    def of_inputs(self, x: Array) -> Array:
        """Return inputs as the network sees them."""
        return x if self._of_x is None else (x - self._of_x.mean) / self._of_x.std

    def of_targets(self, y: Array) -> Array:
        """Return targets as the network sees them."""
        return y if self._of_y is None else (y - self._of_y.mean) / self._of_y.std

    def addresses(self) -> tuple[int, ...]:
        """Return the fields of `SCALING`, in their order: 0 for what is not standardized."""
        return tuple([row.ctypes.data if row.size else 0 for row in self._rows])
