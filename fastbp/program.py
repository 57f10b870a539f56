"""A plan with its memory: one allocation that holds scratch buffers, constants and the tables that kernels read.

A program is made once and kept from call to call. Those that change nothing belong to a thread, so that several may
use one network at once; those that train belong to whoever has the turn.
"""

from __future__ import annotations

import threading
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastbp.architecture import loss_of
from fastbp.buffers import ALIGNMENT, aligned_bytes
from fastbp.kernels import border, sums
from fastbp.kernels.health import N_OBSERVED
from fastbp.kernels.losses import LABELS
from fastbp.kernels.shaping import N_SUMS
from fastbp.kernels.tables import (
    BORDER,
    DEALING,
    HEALTH_RECORD,
    LAYER,
    LOSS_SUMS,
    OPTIMIZER,
    PLAN,
    RECORD,
    RUN,
    SOURCE,
    TILE,
    fill,
)
from fastbp.plan import C_BLOCK, CHUNK, M_BLOCK, NEVER, RECTANGLE, TASK_COST, Plan, capacity_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastbp.architecture import Architecture
    from fastbp.scaling import Scaling

__all__ = ["WHOLE_BLOCK", "Program", "Programs"]

WHOLE_BLOCK = 1 << 20  # samples, more than any block has
AT_ONCE = 10_000_000  # multiply-adds of a call that need not come back to Python on its way: some 5 ms at most
MOST_HEALTH_RECORDS = 256  # of one call of the kernel
_MOST_TRAINING = 2  # programs that a network keeps: a fit, and steps on batches of another size


class _Arena:
    """One allocation handed out in aligned pieces, each followed by room for a pair of vectors more."""

    def __init__(self) -> None:
        self._pieces: list[tuple[int, int]] = []
        self._end = ALIGNMENT
        self.memory: npt.NDArray[np.uint8] = np.empty(0, np.uint8)

    def reserve(self, n_bytes: int) -> int:
        """Return the offset of a new piece; its kernels may write up to a pair of vectors beyond `n_bytes`."""
        start = self._end
        stop = start + n_bytes + 2 * ALIGNMENT
        self._pieces.append((start, stop))
        # A gap behind each piece, which nothing may touch: the tests look.
        self._end = -(-stop // ALIGNMENT) * ALIGNMENT + ALIGNMENT
        return start

    def allocate(self) -> int:
        """Allocate all pieces; return the address of offset 0, aligned."""
        self.memory = aligned_bytes(self._end)
        return self.memory.ctypes.data

    def array(self, offset: int, n: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return n elements at an offset, all 0."""
        dtype = np.dtype(dtype)
        array: npt.NDArray[Any] = self.memory[offset : offset + n * dtype.itemsize].view(dtype)
        array[...] = np.zeros((), dtype)
        return array

    def gaps(self) -> npt.NDArray[np.bool_]:
        """Return the mask of the bytes of `memory` that belong to no piece."""
        mask = np.ones(self.memory.size, bool)
        for start, stop in self._pieces:
            mask[start:stop] = False
        return mask


class Program:
    """Buffers and tables of one plan.

    Parameters
    ----------
    plan : Plan
    params : ndarray, shape (n_params,), contiguous
        Read, and by training written, in place.
    scaling : Scaling
        Read in place.

    Attributes
    ----------
    plan : Plan
    grads : ndarray, shape (n_params,)
        Where the gradient goes, if the plan trains; else empty.
    plans : ndarray, shape (n_workers,), PLAN
        The plan for each worker, which has scratch buffers of its own.
    layers : ndarray, shape (n_layers,), LAYER
    health_records : ndarray, shape (n_records, n_layers), HEALTH_RECORD
        Where steps that are looked at are recorded, if the plan watches; else empty.
    runs : ndarray, shape (n_workers,), RUN
        Of each worker.
    dealing : ndarray, shape (1,), DEALING
    optimizer : ndarray, shape (1,), OPTIMIZER
    border : ndarray, shape (1,), BORDER
    addresses : dict of str to int
        Of these tables, and of some more.
    of_worker, rates, numbers, limits : ndarray
        What changes from call to call, as views of some fields of all rows: of `runs` where each worker's position
        lies, the learning rates and the step of the first of them, and how many records and rules there are; of
        `dealing` the last step and the budget.
    user : object
        Who has written these last.
    buffers, rule : object
        Those that `optimizer` points into; kept alive.
    """

    def __init__(self, plan: Plan, params: npt.NDArray[Any], scaling: Scaling) -> None:
        self.plan, self._params, self._scaling, self._arena = plan, params, scaling, _Arena()
        self._itemsize = plan.architecture.dtype.itemsize
        tables = {
            name: (self._arena.reserve(n * dtype.itemsize), n, dtype) for name, (n, dtype) in self._tables().items()
        }
        grads = self._reserve(plan.layout.n_params if plan.trains else 0)
        kept = self._reserve_activations()
        dropped = [self._reserve_dropped(index) for index in range(plan.layout.n_layers)]
        gradients = [self._reserve_gradient(index) for index in range(plan.layout.n_layers)]
        blocks = self._reserve(plan.n_blocks * plan.sizes()["gradient_row"] if plan.trains and plan.is_small else 0)
        partial_gradient = self._reserve(plan.layout.n_params if plan.has_several_super_blocks else 0)
        scratch = [self._reserve_scratch() for _ in range(plan.n_workers)]
        self._base = base = self._arena.allocate()
        own = {name: self._arena.array(*piece) for name, piece in tables.items()}
        self.grads = self._arena.array(grads, plan.layout.n_params if plan.trains else 0, plan.architecture.dtype)
        self.layers = own["layers"]
        self.plans, self.runs, self.dealing = own["plans"], own["runs"], own["dealing"]
        self.optimizer = own["optimizer"]
        # Choosing fields takes ten times as long as writing them.
        self.of_worker = self.runs[["cursor", "totals", "records", "rules"]]
        self.rates, self.numbers = self.runs[["rates", "first_step"]], self.runs[["n_records", "n_rules"]]
        self.limits = self.dealing[["last_step", "budget"]]
        own["ones"][:], own["count"][:] = 1, np.arange(plan.strip)
        addresses = {name: base + offset for name, (offset, _, _) in tables.items()}
        self._zeros, self._constants = addresses["zeros"], addresses["constants"]
        own["constants"][:] = [value for constants in plan.constants for value in constants]
        for index in range(plan.layout.n_layers):
            fill(self.layers, index, self._layer(index, kept, dropped[index], gradients[index], base + grads))
        for index, (layer, first_row, n_rows) in enumerate(plan.tiles):
            fill(own["tiles"], index, {"layer": layer, "first_row": first_row, "n_rows": n_rows})
        shared = {
            "n_layers": plan.layout.n_layers,
            "n_tasks": plan.n_tasks,
            "sizes": plan.sizes(),
            "scaling": scaling.addresses(),
            "shaping": self._shaping(addresses["sums"]),
            "health": {"every": 0, "is_due": 0, "observed": addresses["observed"], "records": 0},
            "leaves": {name: self._address(leaf) for name, leaf in plan.leaves().items()},
            "block_gradients": base + blocks if plan.trains and plan.is_small else 0,
            "partial_gradient": base + partial_gradient,
            "loss_constants": self._constants_of(plan.layout.n_layers),
            **{name: addresses[name] for name in ("layers", "tiles", "count", "zeros", "ones")},
        }
        for worker, offsets in enumerate(scratch):
            fill(self.plans, worker, shared | {"scratch": {name: base + offset for name, offset in offsets.items()}})
        self.plans["health"]["records"][0] = addresses["health_records"]
        self.health_records = own["health_records"].reshape(-1, plan.layout.n_layers)
        for name in ("unit_sums", "label_flags", "update_flags", "optimizer"):
            self.runs[name] = addresses[name]
        self.addresses, self.border = addresses, own["border"]
        self.user: object = None
        self.buffers: object = None
        self.rule: object = None
        self.train_steps = int(self.plans["leaves"]["train_steps"][0])
        fill(self.border, 0, self._border_of(addresses))

    def _tables(self) -> dict[str, tuple[int, np.dtype[Any]]]:
        """Return how many records or numbers of which dtype each table has."""
        plan, number = self.plan, self.plan.architecture.dtype
        return {
            "plans": (plan.n_workers, PLAN),
            "layers": (plan.layout.n_layers, LAYER),
            "tiles": (len(plan.tiles), TILE),
            "dealing": (1, DEALING),
            "runs": (plan.n_workers, RUN),
            "optimizer": (1, OPTIMIZER),
            "source": (1, SOURCE),
            "border": (1, BORDER),
            "rate": (1, np.dtype(np.float64)),
            "sums": (N_SUMS * plan.first_sums[-1], np.dtype(np.float64)),
            "observed": (plan.layout.n_layers * N_OBSERVED if plan.watches else 0, np.dtype(np.float64)),
            "health_records": (MOST_HEALTH_RECORDS * plan.layout.n_layers if plan.watches else 0, HEALTH_RECORD),
            "record": (1, RECORD),
            "constants": (sum(map(len, plan.constants)), np.dtype(np.float64)),
            "unit_sums": (plan.n_units, LOSS_SUMS),
            "label_flags": (plan.n_blocks, np.dtype(np.int64)),
            "update_flags": (plan.n_tasks, np.dtype(np.int64)),
            "count": (plan.strip, np.dtype(np.int64)),
            "zeros": (plan.panel, number),
            "ones": (plan.panel, number),
        }

    def first_not_finite_outputs(self) -> int | None:
        """Return the first layer with an output that is not finite, of the samples that were last run through it.

        What samples before them have left in the buffers was finite, or else they were the last.
        """
        for index, (_, n_out) in enumerate(self.plan.layers):
            start = int(self.layers["h_out"][index]) - self._base
            n_bytes = n_out * self.plan.super_block * self._itemsize
            outputs = self._arena.memory[start : start + n_bytes].view(self.plan.architecture.dtype)
            if not np.isfinite(outputs).all():
                return index
        return None

    def last_not_finite(self, params: npt.NDArray[Any]) -> int | None:
        """Return the last layer with a number that is not finite, among numbers in the layout of the parameters.

        What goes wrong on the way back begins there.
        """
        layout = self.plan.layout
        pairs = list(zip(layout.weights(params), layout.biases(params), strict=True))
        for index in range(len(pairs) - 1, -1, -1):
            if not all(np.isfinite(part).all() for part in pairs[index]):
                return index
        return None

    def gaps(self) -> npt.NDArray[np.uint8]:
        """Return the bytes between the buffers, which no kernel may touch, as a copy."""
        return self._arena.memory[self._arena.gaps()]

    def _address(self, leaf: Any) -> int:
        return 0 if leaf is None else int(leaf.address(self.plan.architecture.dtype))

    @cached_property
    def border_address(self) -> int:
        """The address of `border`, ready for its entries."""
        self.border["has_bad"] = self._address(border.has_bad)
        return self.addresses["border"]

    def _border_of(self, addresses: dict[str, int]) -> dict[str, float]:
        """Return the fields of `BORDER`; those of a run follow when there is one."""
        plan = self.plan
        return {
            "plan": addresses["plans"],
            "source": addresses["source"],
            "n_in": plan.layout.sizes[0],
            "n_out": plan.layout.sizes[-1],
            "n_targets": plan.n_targets,
            "itemsize": self._itemsize,
            "least_samples": plan.n_samples - plan.panel + 1 if plan.trains else 1,
            "most_samples": min(plan.n_samples, AT_ONCE // max(1, plan.costs(1)[0] - TASK_COST)),
            "params": self._params.ctypes.data,
            "n_params": plan.layout.n_params,
            "has_bad": 0,
            "dealing": addresses["dealing"],
            "run": addresses["runs"],
            "fit_cursor": 0,
            "targets": plan.loss.targets,
            "word": 0,
            "status": border.OK,
            "loss": 0.0,
        }

    def _constants_of(self, index: int) -> int:
        """Return the address of the constants of a layer's activation, or behind the last one of the loss's."""
        return self._constants + 8 * sum(map(len, self.plan.constants[:index]))

    def _reserve(self, n: int) -> int:
        """Reserve n elements; return their offset."""
        return self._arena.reserve(n * self._itemsize)

    def _reserve_activations(self) -> list[tuple[int, int]]:
        """Lay out what is kept of each layer; return the offsets of h and z, the input's h first."""
        n_kept = [width * self.plan.super_block for width in self.plan.layout.sizes]
        x = self._reserve(n_kept[0])
        kept = [(x, x)]
        for index, n in enumerate(n_kept[1:]):
            h = self._reserve(n)
            kept.append((h, self._reserve(n) if self.plan.keeps_z(index) else h))
        return kept

    def _reserve_dropped(self, index: int) -> int | None:
        """Lay out the inputs of a layer of which some are dropped; None where they are those that are kept.

        The derivatives of hidden layers follow from what is whole. Of the network's inputs there are none.
        """
        plan = self.plan
        if index == 0 or plan.shaping.layer(index).dropout == 0.0:
            return None
        return self._reserve(plan.layout.sizes[index] * plan.super_block)

    def _reserve_gradient(self, index: int) -> dict[str, int]:
        """Lay out what else the gradient of a layer needs; return the offsets, named as in `GRADIENT`."""
        plan, (n_in, n_out) = self.plan, self.plan.layers[index]
        if not plan.trains:
            return {}
        if not plan.ways[index].lists_gradient:
            return {"dz": self._reserve(n_out * plan.super_block)}
        n_chunks = -(-plan.super_block // CHUNK)
        n_entries = n_chunks * (n_out * CHUNK + plan.panel)
        return {
            "dz": self._reserve(n_entries),
            "indices": self._arena.reserve(n_entries * 2),
            "indptr": self._arena.reserve(n_chunks * (n_out + 1) * 8),
            "sums": self._reserve(n_chunks * n_out),
            # What no input fills stays zero, as the arena comes: other numbers might be slow to multiply.
            "h_transposed": self._reserve(-(-n_in // plan.panel) * plan.panel * plan.super_block),
        }

    def _reserve_scratch(self) -> dict[str, int]:
        """Lay out one worker's scratch buffers; return their offsets, named as in `SCRATCH`."""
        plan, block, panel, widths = self.plan, self.plan.block, self.plan.panel, self.plan.layout.sizes
        has_lists = True in [ways.lists_product or ways.lists_gradient for ways in plan.ways]
        strip = plan.strip if has_lists else 0
        n_terms = self._most_listed_terms()
        n_entries = -(-n_terms // CHUNK) * (block * CHUNK + panel)
        return {
            "d": self._reserve(max(widths) * block if plan.with_loss or plan.goes_back else 0),
            "d_other": self._reserve(max(widths) * block if plan.goes_back else 0),
            "targets": self._reserve(widths[-1] * block if plan.with_loss else 0),
            "weights": self._reserve(block if plan.weighted else 0),
            "rows": self._arena.reserve(block * 8),
            "row_addresses": self._arena.reserve(panel * 8),
            "cast": self._reserve(panel * max(widths[0], widths[-1])),
            "packed": self._reserve(M_BLOCK * plan.packed_row),
            "coefficients": self._arena.reserve(8 * plan.n_coefficients),
            "gradient": self._reserve(max(RECTANGLE, (strip + 1) * C_BLOCK) if plan.trains else 0),
            "before": self._reserve(self._most_before()),
            "partial": self._reserve(self._most_partial_sums(strip)),
            "y_strip": self._reserve(strip * max(C_BLOCK, block)),
            "w_strip": self._reserve(strip * n_terms),
            "x_transposed": self._reserve(n_terms * block),
            "x_values": self._reserve(n_entries),
            "x_indices": self._arena.reserve(n_entries * 2),
            "x_indptr": self._arena.reserve(-(-n_terms // CHUNK) * (block + 1) * 8),
            "x_sums": self._reserve(max(block, strip) if n_terms else 0),
        }

    def _most_before(self) -> int:
        """Return the most parameters whose update is measured at once."""
        plan = self.plan
        if not plan.watches:
            return 0
        return plan.layout.n_params if plan.is_small else max(RECTANGLE, (plan.strip + 1) * C_BLOCK)

    def _most_listed_terms(self) -> int:
        """Return the most terms of a product with lists."""
        n_terms = [0]
        for ways, (n_in, n_out) in zip(self.plan.ways, self.plan.layers, strict=True):
            if ways.lists_product:
                n_terms += [n_in, n_out]
        return max(n_terms)

    def _most_partial_sums(self, strip: int) -> int:
        """Return the most sums of a product at once that are so long that they go in parts."""
        plan = self.plan
        n_sums = [n_out for n_in, n_out in plan.layers if n_in > sums.LONG]
        n_sums += [n_in for n_in, n_out in plan.layers if plan.goes_back and n_out > sums.LONG]
        # Of a panel of samples, or of a block of them where cache blocks and strips of w cut the sums.
        return max((max(n * plan.panel, min(n, max(M_BLOCK, strip)) * plan.block) for n in n_sums), default=0)

    def _layer(
        self,
        index: int,
        kept: list[tuple[int, int]],
        dropped: int | None,
        gradient: dict[str, int],
        grads: int,
    ) -> dict[str, Any]:
        """Return a row of `LAYER`."""
        plan, base, (n_in, n_out) = self.plan, self._base, self.plan.layers[index]
        forward, backward = plan.leaves_of(index)
        w = self._params.ctypes.data + plan.layout.weight_start[index] * self._itemsize
        shaping, h_in, (h_out, z) = plan.shaping.layer(index), kept[index][0], kept[index + 1]
        return {
            "n_in": n_in,
            "n_out": n_out,
            "w": w,
            "h_in": base + (h_in if dropped is None else dropped),
            "z": base + z,
            "h_out": base + h_out,
            "activation": self._address(forward),
            "derivative": self._address(backward),
            "is_identity": plan.activations[index].is_identity,
            "constants": self._constants_of(index),
            "stack_start": plan.stack_starts[index],
            "forward": self._forward(index, w),
            "tangent": self._tangent(index, w),
            "backward": self._backward(index, w),
            "gradient": self._gradient(index, gradient, grads),
            "h_whole": base + h_in,
            "dropout": shaping.dropout,
            "of_weights": tuple(shaping.of_weights),  # in the table's order
            "of_biases": tuple(shaping.of_biases),
            "max_norm": shaping.max_norm,
            "flat_below": plan.activations[index].flat_below,
            "flat_above": plan.activations[index].flat_above,
            "first_sum": plan.first_sums[index],
        }

    def _shaping(self, sums: int) -> dict[str, float]:
        """Return the fields of `SHAPING`."""
        plan, shaping = self.plan, self.plan.shaping
        is_of_classes = plan.loss.targets == LABELS  # or else of two sides for each output
        return {
            "seed": shaping.seed - 2**64 if shaping.seed >= 2**63 else shaping.seed,
            "step": 0,
            "first": 0,
            "weight": 0.0,
            "noise": shaping.noise,
            "smoothing_factor": 1.0 - shaping.smoothing,
            "smoothing_share": shaping.smoothing / (plan.layout.sizes[-1] if is_of_classes else 2),
            "clip_value": shaping.clip_value,
            "clip_norm": shaping.clip_norm,
            "average_share": shaping.average_share,
            "has_rate_factors": shaping.has_rate_factors,
            "sums": sums,
            "n_sums": plan.first_sums[-1],
        }

    def _forward(self, index: int, w: int) -> dict[str, int]:
        """Return the forward product of a layer, as `PRODUCT`: y = b + w.T @ x."""
        plan, ways, (n_in, n_out) = self.plan, self.plan.ways[index], self.plan.layers[index]
        return {
            "n_terms": n_in,
            "n_rows": n_out,
            "a": w,
            "a_row": 1,
            "a_k": n_out,
            "init": w + n_in * n_out * self._itemsize,
            "init_row": 1,
            "init_is_column": 1,
            "is_backward": 0,
            "few_to": ways.forward_few_to,
            "lists_from": ways.forward_lists_from,
            "packed_from": ways.forward_packed_from,
            "k_block": plan.k_block(n_in),
        }

    def _tangent(self, index: int, w: int) -> dict[str, int]:
        """Return the forward product of a layer's tangents, as `PRODUCT`: y = w.T @ x."""
        none = {"init": self._zeros, "init_row": 0, "init_is_column": 0, "few_to": 0, "lists_from": NEVER}
        return self._forward(index, w) | none

    def _backward(self, index: int, w: int) -> dict[str, int]:
        """Return the backward product of a layer, as `PRODUCT`: y = w @ x."""
        plan, ways, (n_in, n_out) = self.plan, self.plan.ways[index], self.plan.layers[index]
        return {
            "n_terms": n_out,
            "n_rows": n_in,
            "a": w,
            "a_row": n_out,
            "a_k": 1,
            "init": self._zeros,
            "init_row": 0,
            "init_is_column": 0,
            "is_backward": 1,
            "few_to": 0,
            "lists_from": ways.backward_lists_from,
            "packed_from": ways.backward_packed_from,
            "k_block": plan.k_block(n_out),
        }

    def _gradient(self, index: int, offsets: dict[str, int], grads: int) -> dict[str, int]:
        """Return the gradient of a layer, as `GRADIENT`."""
        plan, ways = self.plan, self.plan.ways[index]
        fields = dict.fromkeys(("dz", "indices", "indptr", "sums", "h_transposed"), 0)
        fields |= {name: self._base + offset for name, offset in offsets.items()}
        dw = grads + plan.layout.weight_start[index] * self._itemsize if plan.trains else 0
        return fields | {"dw": dw, "lists_from": ways.gradient_lists_from, "narrow_from": ways.gradient_narrow_from}


class Programs:
    """The programs of one network, each made when it is first needed.

    Parameters
    ----------
    architecture : Architecture
    params : ndarray, shape (n_params,)
    scaling : Scaling
    """

    def __init__(self, architecture: Architecture, params: npt.NDArray[Any], scaling: Scaling) -> None:
        self._architecture, self._params, self._scaling = architecture, params, scaling
        self._of_thread = threading.local()  # freed with it
        self._training: tuple[Program, ...] = ()
        self._word = 0
        self.dtype = architecture.dtype

    @cached_property
    def predict_rows(self) -> Callable[[int, npt.NDArray[Any], npt.NDArray[Any]], int]:
        """The entry `border.predict_rows`, compiled when it is first asked for."""
        return border.entry(border.predict_rows, self.dtype)

    @cached_property
    def step_on_batch(self) -> Callable[[int, float, npt.NDArray[Any], npt.NDArray[Any]], float]:
        """The entry for the loss's kind of targets, `border.step_on_labels` or `border.step_on_values`, likewise."""
        is_labels = loss_of(self._architecture.loss).targets == LABELS
        return border.entry(border.step_on_labels if is_labels else border.step_on_values, self.dtype)

    def of_user(self, user: object, n_samples: int) -> Program | None:
        """Return the program that trains on so many samples and whose tables this user has written last, if any."""
        for program in self._training:
            if program.user is user and 0 <= program.plan.n_samples - n_samples < program.plan.panel:
                return program
        return None

    def share(self, word: int) -> None:
        """Have programs that train take the word at this address (`Word`) for each step on a batch of the caller's."""
        self._word = word
        for program in self._training:
            program.border["word"] = word

    def program(self, plan: Plan) -> Program:
        """Return a new program, which is the caller's."""
        return Program(plan, self._params, self._scaling)

    def predicting(self, sparse: bool = False) -> Program:
        """Return this thread's program for predictions, of inputs that may be sparse or not."""
        return self._of_this_thread("predicting", with_loss=False, sparse=sparse)

    def evaluating(self, weighted: bool, sparse: bool) -> Program:
        """Return this thread's program for the loss, of samples that may have weights or not."""
        return self._of_this_thread(f"evaluating {weighted}", with_loss=True, weighted=weighted, sparse=sparse)

    def deriving(self, sparse: bool) -> Program:
        """Return this thread's program for derivatives from outputs to inputs and back."""
        return self._of_this_thread("deriving", with_loss=False, derives=True, sparse=sparse)

    def take_differentiating(self, n_samples: int, weighted: bool = False, sparse: bool = False) -> Program:
        """Return this thread's program for the gradient over so many samples, or more; nobody else's until given back.

        Its buffers hold a part of a gradient from call to call of the kernel, and a signal's handler may want another.
        """
        program: Program | None = self._of_thread.__dict__.pop("differentiating", None)
        if program is None or program.plan.n_samples < n_samples or not _can(program.plan, weighted, sparse):
            capacity = capacity_for(n_samples, self._architecture.dtype)
            plan = Plan(self._architecture, capacity, trains=True, with_loss=True, weighted=weighted, sparse=sparse)
            program = self.program(plan)
        return program

    def give_back(self, program: Program) -> None:
        """Keep a program that was taken for the next call of this thread."""
        self._of_thread.__dict__["differentiating"] = program

    def training(self, plan: Plan) -> Program:
        """Return the program of a plan that trains. It is the caller's, who has the turn, until that is over."""
        for program in self._training:
            if program.plan == plan:
                break
        else:
            program = self.program(plan)
            program.border["word"] = self._word
        others = [other for other in self._training if other is not program]
        self._training = (program, *others[: _MOST_TRAINING - 1])
        return program

    def _of_this_thread(
        self, name: str, with_loss: bool, derives: bool = False, weighted: bool = False, sparse: bool = False
    ) -> Program:
        name = f"{name} of sparse inputs" if sparse else name
        program: Program | None = self._of_thread.__dict__.get(name)
        if program is None:
            plan = Plan(
                self._architecture,
                WHOLE_BLOCK,
                trains=False,
                with_loss=with_loss,
                derives=derives,
                weighted=weighted,
                sparse=sparse,
            )
            program = self._of_thread.__dict__[name] = self.program(plan)
        return program


def _can(plan: Plan, weighted: bool, sparse: bool) -> bool:
    """Return whether a plan serves samples with weights, and sparse inputs, where there are any."""
    return (plan.weighted or not weighted) and (plan.sparse or not sparse)
