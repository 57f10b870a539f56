"""What a network says of data without being changed: predictions, loss, gradient, and warnings of what overflows."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastbp import errors
from fastbp.driver import Dealing, Driver, single_step
from fastbp.kernels import border
from fastbp.kernels.tables import LOSS_SUMS, RECORD, RULE
from fastbp.pacing import ranges
from fastbp.sources import source_of
from fastbp.sparse import SparseRows
from fastbp.state import Buffers, Position
from fastbp.workers import run_in_threads, workers_for

if TYPE_CHECKING:
    from fastbp.network import Network
    from fastbp.program import Program
    from fastbp.sources import Data
    from fastbp.sparse import Features

__all__ = [
    "evaluate",
    "jacobian",
    "jvp",
    "loss",
    "loss_and_grad",
    "loss_and_grad_at_once",
    "outputs_for",
    "predict",
    "predict_at_once",
    "vjp",
]

Array = npt.NDArray[Any]


def predict_at_once(network: Network, x: object, out: object = None) -> Array | None:
    """Return the outputs for a few rows as they should be; None if anything is unusual, and nothing has been done.

    x : of the network's dtype, C-contiguous rows, few enough to need no look at Ctrl-C on the way.
    """
    predict_rows = network.programs.predict_rows  # compiled with the first prediction, whatever its array
    if type(x) is not np.ndarray or network.turn.is_unfinished:
        return None
    rows, dtype = x.view(), network.architecture.dtype  # nobody else can reshape it
    if rows.dtype is not dtype or rows.ndim != 2:
        return None
    if out is None:
        outputs = np.empty((len(rows), network.n_out), dtype)
    elif type(out) is np.ndarray:
        outputs = out.view()
        if outputs.dtype is not dtype or outputs.ndim != 2 or not outputs.flags.writeable:
            return None
    else:
        return None
    status = predict_rows(network.programs.predicting().border_address, rows, outputs)
    if status == border.NOT_FINITE:
        _warn_of_outputs(network, outputs)
    elif status != border.OK:
        return None
    return outputs


def predict(network: Network, x: Features, out: Array | None = None, threads: int | str = 1) -> Array:
    """Return the outputs for checked features; warn of the first that is not finite. As `outputs_for`."""
    outputs = outputs_for(network, x, out, threads)
    if not np.isfinite(outputs).all():
        _warn_of_outputs(network, outputs)
    return outputs


def outputs_for(network: Network, x: Features, out: Array | None = None, threads: int | str = 1) -> Array:
    """Return the outputs for checked features, without a word about those that are not finite.

    out : C-contiguous, of shape (n_samples, n_out) and the network's dtype; made if not given.
    """
    n_samples = x.shape[0]
    if out is None:
        out = np.empty((n_samples, network.n_out), network.architecture.dtype)
    plan = network.programs.predicting().plan
    n_blocks = -(-n_samples // plan.block)
    n_workers = min(workers_for(threads, plan.costs(n_samples)[0] * n_blocks), max(1, n_blocks))
    cuts = [worker * n_blocks // n_workers * plan.block for worker in range(n_workers)]
    pieces = [(first, min(n_samples, last)) for first, last in zip(cuts, [*cuts[1:], n_samples], strict=True)]
    run_in_threads([partial(_predict_range, network, x, out, *piece) for piece in pieces])
    return out


def _predict_range(network: Network, x: Features, out: Array, start: int, stop: int) -> None:
    """Write the outputs of samples start..stop-1, some 50 ms of work at a time."""
    program, source = network.programs.predicting(isinstance(x, SparseRows)), source_of(x)
    leaf, cost = int(program.plans["leaves"]["predict_range"][0]), program.plan.costs(stop - start)[0]
    for first, last in ranges(stop - start, program.plan.block, cost):
        plans, here = program.addresses["plans"], out.ctypes.data
        border.write_range(leaf, plans, source.ctypes.data, start + first, start + last, here)


def vjp(network: Network, x: Features, d_out: Array) -> Array:
    """Return J.T @ d_out of each checked sample, shape (n_samples, n_in); warn of the first that is not finite."""
    return _derived(network, "vjp", x, d_out, network.n_in)


def jvp(network: Network, x: Features, t_x: Array) -> Array:
    """Return J @ t_x of each checked sample, shape (n_samples, n_out); warn of the first that is not finite."""
    return _derived(network, "jvp", x, t_x, network.n_out)


def jacobian(network: Network, x: Features) -> Array:
    """Return the Jacobian of each checked sample, shape (n_samples, n_out, n_in); warn if it is not finite.

    Row by row, or column by column where these are fewer, all in one call on repeated samples.
    """
    n_samples, (n_in, n_out) = x.shape[0], (network.n_in, network.n_out)
    n, derive = (n_out, vjp) if n_out <= n_in else (n_in, jvp)
    units = np.tile(np.eye(n, dtype=network.architecture.dtype), (n_samples, 1))
    derived = derive(network, x[np.repeat(np.arange(n_samples), n)], units).reshape(n_samples, n, -1)
    return derived if n_out <= n_in else np.ascontiguousarray(derived.transpose(0, 2, 1))


def _derived(network: Network, name: str, x: Features, directions: Array, width: int) -> Array:
    """Write the result of the leaf `name`_range for all samples, some 50 ms of work at a time."""
    n_samples, program = x.shape[0], network.programs.deriving(isinstance(x, SparseRows))
    out, source = np.empty((n_samples, width), network.architecture.dtype), source_of(x, directions)
    leaf, cost = int(program.plans["leaves"][f"{name}_range"][0]), 2 * program.plan.costs(n_samples)[0]
    for first, last in ranges(n_samples, program.plan.block, cost):
        border.write_range(leaf, program.addresses["plans"], source.ctypes.data, first, last, out.ctypes.data)
    if not np.isfinite(out).all():
        _warn_of_outputs(network, out, f"the {name}", "column")
    return out


def evaluate(network: Network, data: Data) -> tuple[float, float]:
    """Return the mean loss and the accuracy (NaN where the output is no class)."""
    n_samples, n_outside = data.x.shape[0], 0
    program = network.programs.evaluating(weighted=data.weights is not None, sparse=data.is_sparse)
    source, sums = data.source(), np.zeros(1 + program.plan.n_units, LOSS_SUMS)
    leaf, cost = int(program.plans["leaves"]["evaluate_range"][0]), program.plan.costs(n_samples)[0]
    for first, last in ranges(n_samples, program.plan.block, cost):
        n_outside += border.evaluate(
            leaf, program.addresses["plans"], source.ctypes.data, first, last, sums.ctypes.data
        )
    if n_outside:
        raise ValueError(f"y changed while it was read: {n_outside} labels are out of range now")
    loss, right = sums[0].item()
    return loss / data.weight, right / (data.weight * network.decisions_per_sample)


def loss(network: Network, data: Data) -> float:
    """Return the mean loss over the data; warn if it is not finite."""
    mean = evaluate(network, data)[0]
    if not math.isfinite(mean):
        _warn_of_overflow(network, data)
    return mean


class _AtOnce:
    """A program's tables for a gradient that one call computes; keeps alive what these point at."""

    def __init__(self, program: Program) -> None:
        self._position, self._rate, self._record, self._rules = (
            Position(),
            np.zeros(1),
            np.zeros(1, RECORD),
            np.zeros(0, RULE),
        )
        cursor = self._position.cursor.ctypes.data
        program.of_worker[0] = (
            cursor,
            self._position.totals.ctypes.data,
            self._record.ctypes.data,
            self._rules.ctypes.data,
        )
        program.rates[...], program.numbers[...] = (self._rate.ctypes.data, 0), (1, 0)
        program.border["fit_cursor"] = cursor
        program.user = self


def loss_and_grad_at_once(network: Network, x: object, y: object) -> tuple[float, Array] | None:
    """Return loss and gradient for a batch as it should be; None if anything is unusual, and nothing has been done."""
    take_step = network.programs.step_on_batch  # compiled with the first gradient, whatever its arrays
    batch = None if network.turn.is_unfinished else network.batch_at_once(x, y)
    if batch is None:
        return None
    program = network.programs.take_differentiating(len(batch[0]))
    if not isinstance(program.user, _AtOnce):
        _AtOnce(program)
    mean = take_step(program.border_address, 0.0, *batch)
    grad = program.grads.copy()
    network.programs.give_back(program)
    return (mean, grad) if math.isfinite(mean) and np.isfinite(grad).all() else None


def loss_and_grad(network: Network, data: Data) -> tuple[float, Array]:
    """Return the mean loss over the data and its gradient, NaN where the loss is not finite; warn if either is not."""
    n_samples, position, buffers = data.x.shape[0], Position(), Buffers(network.params, n_moments=0)
    program = network.programs.take_differentiating(n_samples, data.weights is not None, data.is_sparse)
    dealing = Dealing(n_samples, n_samples)
    mean = single_step(Driver(program, buffers, None, position, data, dealing), position)
    grad = program.grads.copy() if math.isfinite(mean) else np.full_like(program.grads, np.nan)
    network.programs.give_back(program)
    if not math.isfinite(mean):
        _warn_of_overflow(network, data)
    elif not np.isfinite(grad).all():
        _warn(network, "the gradient is not finite, though the loss is")
    return mean, grad


def _warn_of_overflow(network: Network, data: Data) -> None:
    """Warn that the loss of these data, which are finite, is not, and say where it comes from."""
    outputs = outputs_for(network, data.x)
    if np.isfinite(outputs).all():
        _warn(network, "the loss is not finite, though all outputs are")
    else:
        _warn_of_outputs(network, outputs)


def _warn_of_outputs(network: Network, outputs: Array, what: str = "the prediction", place: str = "output") -> None:
    """Warn of the first number of some rows that is not finite."""
    row, column = np.argwhere(~np.isfinite(outputs))[0]
    _warn(network, f"{what} of row {row} is not finite in {place} {column}: {outputs[row, column]}")


def _warn(network: Network, problem: str) -> None:
    """Warn that a result is not finite, and say why."""
    if not np.isfinite(network.params).all():
        cause = "params are not finite"
    elif network.architecture.dtype == np.float32:
        cause = "float32 overflows on the way: scale the data, or use dtype='float64'"
    else:
        cause = "float64 overflows on the way: scale the data"
    errors.warn(f"{problem}; {cause}")
