"""Handles: what a network is for the user's own compiled functions (`fastbp.embed`)."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastbp.buffers import aligned_bytes
from fastbp.kernels import embedding, overloads
from fastbp.kernels.tables import HANDLE, fill
from fastbp.plan import Plan
from fastbp.program import WHOLE_BLOCK, Program

if TYPE_CHECKING:
    from fastbp.network import Network

__all__ = ["network_handles"]

_SIZE = HANDLE.itemsize // 8


class _Owner:
    """The memory of handles, and what has to live as long as any view of them; NumPy keeps it as their base."""

    def __init__(self, records: npt.NDArray[np.void], *kept: object) -> None:
        self.records, self._kept = records, kept
        self.__array_interface__ = {
            "version": 3,
            "typestr": "<i8" if np.little_endian else ">i8",
            "shape": (records.shape[0], _SIZE),
            "data": (records.ctypes.data, True),  # read-only: kernels write by address, and nobody else shall
        }
        _OWNERS.add(self)


_OWNERS: weakref.WeakSet[_Owner] = weakref.WeakSet()


def _free_handles() -> None:
    """Give back what the threads that are not in this forked child had taken."""
    for owner in list(_OWNERS):
        owner.records["busy"] = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_handles)


def network_handles(network: Network, n: int | None, user: object) -> npt.NDArray[Any]:
    """Return a handle of a network, shape (size,), or n of them as rows; they keep `user` alive."""
    plan = Plan(network.architecture, WHOLE_BLOCK, trains=False, with_loss=False, derives=True)
    programs = [Program(plan, network.params) for _ in range(n or 1)]
    records = aligned_bytes(len(programs) * HANDLE.itemsize).view(HANDLE)
    leaves = {
        leaf.__name__: leaf.address(plan.architecture.dtype)
        for leaf in (embedding.embedded_predict, embedding.embedded_vjp, embedding.embedded_jvp)
    }
    for index, program in enumerate(programs):
        place = records.ctypes.data + index * HANDLE.itemsize
        fill(records, index, {**_fields(network, program, place), **leaves})
    stamp = np.dtype([(overloads.field_name(overloads.NETWORK, plan.architecture.dtype), np.int64)])
    handles = np.asarray(_Owner(records, programs, network, user)).view(stamp)
    return handles[0] if n is None else handles


def _fields(network: Network, program: Program, place: int) -> dict[str, int]:
    """Return the fields of `HANDLE` that are no leaves, of the record at this address."""
    return {
        "self": place,
        "busy": 0,
        "plan": program.addresses["plans"],
        "source": program.addresses["source"],
        "n_in": network.n_in,
        "n_out": network.n_out,
        "itemsize": network.params.itemsize,
        "fits_stack": program.plan.fits_stack,
        "params": network.params.ctypes.data,
        "n_params": network.params.size,
    }
