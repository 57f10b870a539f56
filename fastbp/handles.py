"""Handles: what a network, and a learner of it, are for the user's own compiled functions (`fastbp.embed`)."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastbp.buffers import aligned_bytes
from fastbp.driver import training_plan
from fastbp.kernels import embedding, learning, overloads
from fastbp.kernels.handles import HANDLE, LEARNER
from fastbp.kernels.losses import LABELS
from fastbp.kernels.tables import RECORD, fill
from fastbp.plan import Plan, capacity_for
from fastbp.program import WHOLE_BLOCK
from fastbp.state import Position

if TYPE_CHECKING:
    from fastbp.driver import Rule
    from fastbp.network import Network
    from fastbp.state import Buffers

__all__ = ["Learning", "learner_handles", "network_handles"]

_OF_NETWORKS = (
    embedding.embedded_predict,
    embedding.embedded_predict_sample,
    embedding.embedded_vjp,
    embedding.embedded_jvp,
)
_OF_LEARNERS = (
    learning.embedded_train_step,
    learning.embedded_backward_step,
    learning.embedded_loss_and_grad,
    learning.embedded_train,
    learning.embedded_reset,
    learning.embedded_set_learning_rate,
)


class Learning(NamedTuple):
    """What the learners of a run share.

    positions : ndarray, shape (1,), POSITIONS, of the run. rates : learning rate of all steps, or of one after the
    other from `first_step` on.
    """

    rule: Rule
    buffers: Buffers
    positions: npt.NDArray[np.void]
    batch_size: int | None
    shuffle: bool | int
    drop_last: bool
    seed: int
    rates: float | npt.NDArray[np.float64]
    first_step: int


class _Owner:
    """The memory of handles, and what has to live as long as any view of them; NumPy keeps it as their base."""

    def __init__(self, records: npt.NDArray[np.void], words: list[npt.NDArray[np.int64]], *kept: object) -> None:
        self.records, self.words, self._kept = records, words, kept
        self.__array_interface__ = {
            "version": 3,
            "typestr": np.dtype(np.int64).str,
            "shape": (records.shape[0], records.dtype.itemsize // 8),
            "data": (records.ctypes.data, True),  # read-only: kernels write by address, and nobody else shall
        }
        _OWNERS.add(self)


_OWNERS: weakref.WeakSet[_Owner] = weakref.WeakSet()


def _free_handles() -> None:
    """Give back what the threads that are not in this forked child had taken."""
    for owner in list(_OWNERS):
        owner.records["busy"] = 0
        for word in owner.words:
            word[:] = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_handles)


def _handles(kind: str, dtype: np.dtype[Any], owner: _Owner, n: int | None) -> npt.NDArray[Any]:
    """Return the first handle of an owner, or all of them as rows."""
    stamp = np.dtype([(overloads.field_name(kind, dtype), np.int64)])
    handles: npt.NDArray[Any] = np.asarray(owner).view(stamp)
    return handles[0] if n is None else handles


def network_handles(network: Network, n: int | None, user: object) -> npt.NDArray[Any]:
    """Return a handle of a network, shape (size,), or n of them as rows; they keep `user` alive."""
    dtype = network.architecture.dtype
    plan = Plan(network.architecture, WHOLE_BLOCK, trains=False, with_loss=False, derives=True)
    programs = [network.programs.program(plan) for _ in range(n or 1)]
    records = aligned_bytes(len(programs) * HANDLE.itemsize).view(HANDLE)
    leaves = {leaf.__name__: leaf.address(dtype) for leaf in _OF_NETWORKS}
    for index, program in enumerate(programs):
        values = {
            "self": records.ctypes.data + index * HANDLE.itemsize,
            "busy": 0,
            "plan": program.addresses["plans"],
            "source": program.addresses["source"],
            "n_in": network.n_in,
            "n_out": network.n_out,
            "itemsize": dtype.itemsize,
            "fits_stack": plan.fits_stack,
            "params": network.params.ctypes.data,
            "n_params": network.params.size,
        }
        fill(records, index, values | leaves)
    return _handles(overloads.NETWORK_KIND, dtype, _Owner(records, [], programs, network, user), n)


class _Programs:
    """The programs of one learner: steps with the loss, steps from the outputs' derivative, and gradients."""

    def __init__(self, network: Network, capacity: int, learning: Learning) -> None:
        architecture, make = network.architecture, network.programs.program
        self.step = make(training_plan(architecture, learning.rule, capacity, weighted=True))
        self.step_from = make(training_plan(architecture, learning.rule, capacity, with_loss=False, weighted=True))
        self.gradient = make(Plan(architecture, capacity, trains=True, with_loss=True, weighted=True))
        # Of gradients, which count as no step; steps are told the run's own each time.
        self._position, self._record = Position(), np.zeros(1, RECORD)
        cursor, totals = self._position.cursor.ctypes.data, self._position.totals.ctypes.data
        for program in (self.step, self.step_from, self.gradient):
            learning.rule.describe(program, learning.buffers)
            program.dealing[["block_cost", "task_cost"]] = program.plan.costs(capacity)
            program.of_worker[0] = cursor, totals, self._record.ctypes.data, 0
            program.rates[...], program.numbers[...] = (program.addresses["rate"], 0), (1, 0)
            program.border["fit_cursor"] = cursor


def learner_handles(
    network: Network, max_batch: int, n: int | None, learning: Learning, user: object
) -> npt.NDArray[Any]:
    """Return a handle of a learner, or n of them as rows, for batches of so many samples; they keep `user` alive.

    Only who has the turn may call this.
    """
    dtype, word = network.architecture.dtype, network.share()
    programs = [_Programs(network, capacity_for(max_batch, dtype), learning) for _ in range(n or 1)]
    records = aligned_bytes(len(programs) * LEARNER.itemsize).view(LEARNER)
    leaves = {leaf.__name__: leaf.address(dtype) for leaf in _OF_LEARNERS}
    shared = _shared_fields(network, max_batch, learning) | {"word": word.address}
    for index, own in enumerate(programs):
        values = {
            "self": records.ctypes.data + index * LEARNER.itemsize,
            "step": own.step.border_address,
            "step_from": own.step_from.border_address,
            "gradient": own.gradient.border_address,
            "grads": own.gradient.grads.ctypes.data,
        }
        fill(records, index, shared | values | leaves)
    return _handles(overloads.LEARNER_KIND, dtype, _Owner(records, [word.memory], programs, network, learning, user), n)


def _shared_fields(network: Network, max_batch: int, learning: Learning) -> dict[str, float]:
    """Return the fields of `LEARNER` that all learners of a run have alike."""
    moments, rates, seed = learning.buffers.moments, learning.rates, learning.seed
    if isinstance(rates, float):
        of_rates: dict[str, float] = {"rate": rates, "rates": 0, "n_rates": 0, "first_step": 0}
    else:
        of_rates = {"rate": 0.0, "rates": rates.ctypes.data, "n_rates": rates.size, "first_step": learning.first_step}
    return of_rates | {
        "busy": 0,
        "n_in": network.n_in,
        "n_out": network.n_out,
        "n_targets": network.n_targets,
        "itemsize": network.architecture.dtype.itemsize,
        "takes_labels": network.targets == LABELS,
        "max_batch": max_batch,
        "params": network.params.ctypes.data,
        "n_params": network.params.size,
        "moments": moments.ctypes.data,
        "n_moment_bytes": moments.shape[0] * moments.strides[0],
        "positions": learning.positions.ctypes.data,
        "batch_size": learning.batch_size or 0,
        "drop_last": learning.drop_last,
        "shuffle": learning.shuffle,
        "seed": seed - 2**64 if seed >= 2**63 else seed,
        "loss": np.nan,
    }
