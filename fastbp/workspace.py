"""Scratch buffers of a call, sized once, and the plan that tells the kernels where everything lies.

A workspace belongs to one call or one trainer, never to a model, so that several threads may use one model at once.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastbp.buffers import ALIGNMENT, aligned_bytes
from fastbp.kernels import gather, gemm, shuffle, sparse, step, sums, updates
from fastbp.kernels.activations import ACTIVATIONS, TURNING_OFF
from fastbp.kernels.losses import LOSSES
from fastbp.kernels.tables import LAYER, PLAN, TILE, table
from fastbp.kernels.tile import TILE_ROWS, panel_width

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastbp._jit import Leaf
    from fastbp.layout import Layout

_SUPER_BLOCK = 1024  # samples whose activations are kept for the gradient: bounds the workspace whatever the batch
_LOSS_UNIT = 64  # samples of one sum of losses, and of a task: activations stay in the nearest caches
_SMALL_BLOCK = 128  # samples of a task of small networks, which sums a gradient too
_WIDE_BLOCK = 512  # samples of a task at most where layers are packed: one packing serves them all
_PACK_ABOVE = 1 << 16  # weights of a layer; smaller ones are read fast enough as they lie
# Multiply-adds of a product with lists, and of a dense one; smaller ones do not repay the copying of w.
_LIST_PRODUCT, _PACK_PRODUCT = 1 << 23, 1 << 24
# Cache blocks of a product: terms of a sum, and rows (whole tiles). A panel of 128 terms takes 16 KB, in any dtype, and
# leaves room in the first-level cache for what else a tile reads.
_K_BLOCK, _M_BLOCK = 128, 22 * TILE_ROWS
_CHUNK = 64  # terms of a list of what is not zero: what a strip meets of them takes 24 KB at most
_S_BLOCK = 256  # samples of a block of a gradient: twice as many terms as above halve how often its sums are loaded
# Of a gradient that is updated at once: columns, long pieces of memory, and elements.
_C_BLOCK, _RECTANGLE = 512, 4 * TILE_ROWS * 512
_NARROW = 4  # outputs; wider ones fill the lanes of the register tile well enough
_TASK_COST, _ELEMENT_COST = 10_000, 16  # multiply-adds that fit into the overhead of a task, and into an update
_SMALL_NETWORK = 1 << 14  # parameters up to which each block has a gradient of its own


class Architecture(NamedTuple):
    """What a model is apart from its numbers: the layout, one activation per layer, the loss, the dtype."""

    layout: Layout
    activations: tuple[str, ...]
    loss: str
    dtype: np.dtype[Any]


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

    def gaps(self) -> npt.NDArray[np.bool_]:
        """Return the mask of the bytes of `memory` that belong to no piece."""
        mask = np.ones(self.memory.size, bool)
        for start, stop in self._pieces:
            mask[start:stop] = False
        return mask


class Workspace:
    """Buffers for one plan, and the plan.

    Parameters
    ----------
    architecture : Architecture
    params : ndarray, shape (n_params,), contiguous
        Read, and by training written, in place.
    n_samples : int
        The most samples of one step, or of one call that trains nothing.
    grads : ndarray, shape (n_params,), contiguous, optional
        Where the gradient goes. Without it the plan can only evaluate or predict.
    update, shrink : Leaf, optional
        Update rule, and decoupled weight decay; without them the gradient is only computed.
    with_loss : bool, default True
        Whether to compare with targets. If not, the outputs go through the output activation, even if the loss has one
        fused into it.
    n_workers : int, default 1
        Threads that work on a call at most, each with scratch buffers of its own.

    Attributes
    ----------
    plans : ndarray, shape (n_workers,), PLAN
        One per worker.
    block, super_block : int
        Samples of a task, and of all tasks of a phase.
    n_blocks, n_tiles : int
        Most tasks of a samples phase, and tasks of a parameters phase.
    n_units : int
        Most sums of losses of a samples phase.
    """

    def __init__(
        self,
        architecture: Architecture,
        params: npt.NDArray[Any],
        n_samples: int,
        *,
        grads: npt.NDArray[Any] | None = None,
        update: Leaf | None = None,
        shrink: Leaf | None = None,
        with_loss: bool = True,
        n_workers: int = 1,
    ) -> None:
        self._architecture = architecture
        self._arena = _Arena()
        trains = grads is not None
        sizes = self._sizes(n_samples, trains, n_workers)
        self.block, self.super_block = sizes["block"], sizes["super_block"]
        self._skips = _products_that_skip(architecture, n_samples, trains)
        kept = self._reserve_activations(trains)
        derivatives = [self._reserve_derivatives(index, trains) for index in range(architecture.layout.n_layers)]
        block_gradients = self._reserve_block_gradients(sizes["gradient_row"]) if trains else 0
        self._adds_super_blocks = trains and n_samples > self.super_block
        partial_gradient = self._arena.reserve(params.nbytes if self._adds_super_blocks else 0)
        scratch = [self._reserve_scratch(trains, with_loss) for _ in range(n_workers)]
        base = self._arena.allocate()
        self._layers = self._layer_table(base, kept, derivatives, params, grads, with_loss)
        strip = sparse.strip_width(architecture.dtype)
        self._tiles = _tile_table(
            architecture.layout, n_workers, [strip if skips.gradient else 0 for skips in self._skips]
        )
        self._count = np.arange(strip, dtype=np.int64)
        panel = panel_width(architecture.dtype)
        self._constants = np.repeat(np.array([0, 1], architecture.dtype), panel)
        self._params, self._grads = params, grads  # kept alive
        leaves = self._leaves(update, shrink, trains, with_loss, sizes["narrow"])
        plans = [
            {
                "n_layers": architecture.layout.n_layers,
                "n_tiles": self._tiles.size,
                "layers": self._layers.ctypes.data,
                "tiles": self._tiles.ctypes.data,
                "sizes": sizes,
                "leaves": leaves,
                "scratch": {name: base + offset for name, offset in offsets.items()},
                "block_gradients": base + block_gradients,
                "partial_gradient": base + partial_gradient,
                "count": self._count.ctypes.data,
                "zeros": self._constants.ctypes.data,
                "ones": self._constants[panel:].ctypes.data,
            }
            for offsets in scratch
        ]
        self.plans = table(PLAN, plans)
        self.n_blocks, self.n_tiles = -(-self.super_block // self.block), self._tiles.size
        self.n_units = -(-self.super_block // _LOSS_UNIT)

    def gaps(self) -> npt.NDArray[np.uint8]:
        """Return the bytes between the buffers, which no kernel may touch, as a copy."""
        return self._arena.memory[self._arena.gaps()]

    def _sizes(self, n_samples: int, trains: bool, n_workers: int) -> dict[str, int]:
        """Return the fields of `SIZES`."""
        layout, dtype = self._architecture.layout, self._architecture.dtype
        panel = panel_width(dtype)
        whole_panels = -(-n_samples // panel) * panel
        block = min(_SMALL_BLOCK if _is_small(layout) else _LOSS_UNIT, whole_panels)
        if _is_wide(layout):  # as much as each worker gets, within bounds
            share = -(-n_samples // (n_workers * _LOSS_UNIT)) * _LOSS_UNIT
            block = min(max(share, block), _WIDE_BLOCK, -(-whole_panels // _LOSS_UNIT) * _LOSS_UNIT)
        return {
            "itemsize": dtype.itemsize,
            "panel": panel,
            "block": block,
            "loss_unit": _LOSS_UNIT,
            "gradient_row": -(-layout.n_params // panel) * panel,
            "super_block": min(_SUPER_BLOCK, -(-whole_panels // block) * block) if trains else block,
            "k_block": _K_BLOCK,
            "m_block": _M_BLOCK,
            "c_block": _C_BLOCK,
            "s_block": _S_BLOCK,
            "chunk": _CHUNK,
            "strip": sparse.strip_width(dtype),
            "pack_above": _PACK_ABOVE,
            "list_product": _LIST_PRODUCT,
            "pack_product": _PACK_PRODUCT,
            "packed_row": _packed_row(dtype),
            "narrow": _NARROW if n_samples >= panel else 0,  # a few samples would leave the lanes empty as well
            "few": panel // 4,
        }

    def _reserve_activations(self, trains: bool) -> list[tuple[int, int]]:
        """Lay out what is kept of each layer; return the offsets of h and z, the input's h first."""
        layout, activations = self._architecture.layout, ("identity", *self._architecture.activations)
        kept = []
        for width, name in zip(layout.sizes, activations, strict=True):
            n_bytes = width * self.super_block * self._architecture.dtype.itemsize
            h = self._arena.reserve(n_bytes)
            kept.append((h, self._arena.reserve(n_bytes) if trains and ACTIVATIONS[name].keeps_z else h))
        return kept

    def _reserve_derivatives(self, index: int, trains: bool) -> dict[str, int]:
        """Lay out what else the gradient of a layer needs; return the offsets, named as in `LAYER`."""
        dtype, (n_in, n_out) = self._architecture.dtype, self._architecture.layout.sizes[index : index + 2]
        if not trains or not self._skips[index].gradient:
            return {"dz": self._arena.reserve(n_out * self.super_block * dtype.itemsize)} if trains else {}
        panel, n_chunks = panel_width(dtype), -(-self.super_block // _CHUNK)
        n_entries = n_chunks * (n_out * _CHUNK + panel)
        return {
            "dz": self._arena.reserve(n_entries * dtype.itemsize),
            "places": self._arena.reserve(n_entries * 2),
            "starts": self._arena.reserve(n_chunks * (n_out + 1) * 8),
            "sums": self._arena.reserve(n_chunks * n_out * dtype.itemsize),
            # What no input fills stays zero, as the arena comes: other numbers might be slow to multiply.
            "h_rows": self._arena.reserve(-(-n_in // panel) * panel * self.super_block * dtype.itemsize),
        }

    def _reserve_block_gradients(self, row: int) -> int:
        """Lay out a gradient per block of a super-block, where the network is small; return their offset."""
        n_blocks = self.super_block // self.block if _is_small(self._architecture.layout) else 0
        return self._arena.reserve(n_blocks * row * self._architecture.dtype.itemsize)

    def _reserve_scratch(self, trains: bool, with_loss: bool) -> dict[str, int]:
        """Lay out one worker's scratch buffers; return their offsets, named as in `SCRATCH`."""
        reserve, dtype, block = self._arena.reserve, self._architecture.dtype, self.block
        widths, itemsize, panel = self._architecture.layout.sizes, dtype.itemsize, panel_width(dtype)
        strip = sparse.strip_width(dtype) if any(map(any, self._skips)) else 0
        listed = [
            max(n_in * skips.forward, n_out * skips.backward)
            for skips, (n_in, n_out) in zip(self._skips, pairwise(widths), strict=True)
        ]
        n_terms = max(listed)  # of a product with lists
        n_entries = -(-n_terms // _CHUNK) * (block * _CHUNK + panel)
        return {
            "d": reserve(max(widths) * block * itemsize if with_loss else 0),
            "d_other": reserve(max(widths) * block * itemsize if trains else 0),
            "targets": reserve(widths[-1] * block * itemsize if with_loss else 0),
            "rows": reserve(block * 8),
            "row_addresses": reserve(panel * 8),
            "cast": reserve(panel * max(widths[0], widths[-1]) * itemsize),
            "packed": reserve(_M_BLOCK * _packed_row(dtype) * itemsize),
            "gradient": reserve(max(_RECTANGLE, (strip + 1) * _C_BLOCK) * itemsize if trains else 0),
            "partial": reserve(self._partial_size(strip, trains) * itemsize),
            "turned": reserve(strip * max(_C_BLOCK, block) * itemsize),
            "columns": reserve(strip * n_terms * itemsize),
            "list_rows": reserve(n_terms * block * itemsize),
            "list_values": reserve(n_entries * itemsize),
            "list_places": reserve(n_entries * 2),
            "list_starts": reserve(-(-n_terms // _CHUNK) * (block + 1) * 8),
            "list_sums": reserve(max(block, strip) * itemsize if n_terms else 0),
        }

    def _partial_size(self, strip: int, trains: bool) -> int:
        """Return the most sums of a product at once that are so long that they go in parts."""
        panel = panel_width(self._architecture.dtype)
        pairs = list(pairwise(self._architecture.layout.sizes))
        n_sums = [n_out for n_in, n_out in pairs if n_in > sums.LONG]
        n_sums += [n_in for n_in, n_out in pairs[1:] if trains and n_out > sums.LONG]
        # Of a panel of samples, or of a block of them where cache blocks and strips of w cut the sums.
        return max((max(n * panel, min(n, max(_M_BLOCK, strip)) * self.block) for n in n_sums), default=0)

    def _layer_table(
        self,
        base: int,
        kept: list[tuple[int, int]],
        derivatives: list[dict[str, int]],
        params: npt.NDArray[Any],
        grads: npt.NDArray[Any] | None,
        with_loss: bool,
    ) -> npt.NDArray[np.void]:
        """Return a row per layer, as `LAYER`."""
        architecture, rows = self._architecture, []
        layout, itemsize = architecture.layout, architecture.dtype.itemsize
        for index, (n_in, n_out) in enumerate(pairwise(layout.sizes)):
            name, start = architecture.activations[index], layout.weight_start[index] * itemsize
            is_last = index == layout.n_layers - 1
            # The loss takes pre-activations, and writes the derivative with respect to them.
            is_fused = with_loss and is_last and name in (LOSSES[architecture.loss].output, "identity")
            h_out, z = kept[index + 1]
            of_gradient = dict.fromkeys(("dz", "h_rows", "places", "starts", "sums"), 0)
            of_gradient |= {field: base + offset for field, offset in derivatives[index].items()}
            record = dict(
                n_in=n_in,
                n_out=n_out,
                w=params.ctypes.data + start,
                dw=grads.ctypes.data + start if grads is not None else 0,
                h_in=base + kept[index][0],
                z=base + z,
                h_out=base + h_out,
                forward=0 if is_fused else self._address(ACTIVATIONS[name].forward),
                backward=0 if is_fused or grads is None else self._address(ACTIVATIONS[name].backward),
                lists_h=int(self._skips[index].forward),
                lists_dz=int(self._skips[index].backward),
                **of_gradient,
            )
            rows.append(record)
        return table(LAYER, rows)

    def _address(self, leaf: Leaf | None) -> int:
        return 0 if leaf is None else leaf.address(self._architecture.dtype)

    def _leaves(
        self, update: Leaf | None, shrink: Leaf | None, trains: bool, with_loss: bool, narrow: int
    ) -> dict[str, int]:
        """Return the fields of `LEAVES`: those that this network needs, as each takes time to compile."""
        loss = LOSSES[self._architecture.loss].leaf if with_loss else None
        layout = self._architecture.layout
        is_small, is_wide = _is_small(layout), _is_wide(layout)
        has_narrow = trains and min(layout.sizes[1:]) <= narrow
        has_lists = any(map(any, self._skips))
        lists_rows = any(skips.forward or skips.backward for skips in self._skips)
        keeps_z = trains and any(ACTIVATIONS[name].keeps_z for name in self._architecture.activations)
        parameters = step.parameters_of_layers if is_small else step.parameters_of_rows
        leaves = {
            "multiply": gemm.multiply_panel,
            "multiply_row": gemm.multiply_row,
            "multiply_column": gemm.multiply_column if trains else None,
            "narrow_gradient": gemm.narrow_gradient if has_narrow else None,
            "gather": gather.gather_rows,
            "labels": gather.gather_labels,
            "list_nonzeros": sparse.list_nonzeros if has_lists else None,
            "multiply_nonzeros": sparse.multiply_nonzeros if has_lists else None,
            "add_rows": gemm.add_rows if trains and is_small else None,
            "scatter": gather.scatter_rows,
            "split": gather.split_features if has_narrow or has_lists else None,
            "order": shuffle.sample_order,
            "copy": gather.copy if keeps_z else None,
            "add_parts": sums.add_parts if self._adds_super_blocks or max(layout.sizes) > sums.LONG else None,
            "flush_rows": updates.flush_rows if trains and update is None else None,
            "loss": loss,
            "update": update,
            "shrink": shrink,
            "forward_block": step.forward_block,
            "loss_block": step.loss_block if with_loss else None,
            "backward_block": step.backward_block if trains else None,
            "gradient_block": step.gradient_block if trains and is_small else None,
            "parameters": parameters if trains else None,
            "dense_packed": step.dense_packed if is_wide else None,
            "dense_of_lists": step.dense_of_lists if lists_rows else None,
            "pack_columns": gemm.pack_columns if is_wide else None,
            "pack_rows": gemm.pack_rows if is_wide and (trains or lists_rows) else None,
        }
        return {name: self._address(leaf) for name, leaf in leaves.items()}

    def costs(self, n_samples: int) -> tuple[int, int]:
        """Return rough costs of a block and of a tile of a step, in multiply-adds, for `DEALING`."""
        layout = self._architecture.layout
        in_block, in_super_block = min(self.block, n_samples), min(self.super_block, n_samples)
        block_cost, tiles_cost = _samples_cost(layout, in_block), _ELEMENT_COST * layout.n_params
        if _is_small(layout):
            block_cost += _gradient_cost(layout, in_block)
        else:
            tiles_cost += _gradient_cost(layout, in_super_block)
        return block_cost + _TASK_COST, tiles_cost // self.n_tiles + _TASK_COST


def step_cost(architecture: Architecture, n_samples: int) -> int:
    """Return the rough cost of a whole step, in multiply-adds."""
    layout = architecture.layout
    per_sample = _samples_cost(layout, n_samples) + _gradient_cost(layout, n_samples)
    return per_sample + _ELEMENT_COST * layout.n_params + 2 * _TASK_COST


def _samples_cost(layout: Layout, n_samples: int) -> int:
    return n_samples * (2 * _n_weights(layout) + _ELEMENT_COST * sum(layout.sizes))


def _gradient_cost(layout: Layout, n_samples: int) -> int:
    return n_samples * _n_weights(layout)


def _n_weights(layout: Layout) -> int:
    return sum(n_in * n_out for n_in, n_out in pairwise(layout.sizes))


def _row_blocks(n_rows: int, n_columns: int, n_workers: int) -> list[tuple[int, int]]:
    """Cut rows into blocks (first, number), as equal as whole tiles allow, whose rectangles fit into the scratch.

    Every worker gets as many of them where there are enough rows.
    """
    most = min(_RECTANGLE // min(n_columns, _C_BLOCK), _M_BLOCK)
    n_blocks = -(-n_rows // (most // TILE_ROWS * TILE_ROWS))
    n_tiles = -(-n_rows // TILE_ROWS)
    n_blocks = min(-(-n_blocks // n_workers) * n_workers, n_tiles)
    starts = [number * n_tiles // n_blocks * TILE_ROWS for number in range(n_blocks)]
    return [(start, stop - start) for start, stop in zip(starts, [*starts[1:], n_rows], strict=True)]


def _is_small(layout: Layout) -> bool:
    return layout.n_params <= _SMALL_NETWORK


def _is_wide(layout: Layout) -> bool:
    return any(n_in * n_out > _PACK_ABOVE for n_in, n_out in pairwise(layout.sizes))


def _packed_row(dtype: np.dtype[Any]) -> int:
    """Return the elements of a row of packed weights: one cache line more, so that rows fall into different sets.

    `_M_BLOCK` of them also hold as many packed columns, each tile of which has room for one more vector.
    """
    return _K_BLOCK + ALIGNMENT // dtype.itemsize


class _Skips(NamedTuple):
    """Which products of a layer skip zeros: those of h in `forward`, those of dz in `backward` and `gradient`."""

    forward: bool
    backward: bool
    gradient: bool


def _products_that_skip(architecture: Architecture, n_samples: int, trains: bool) -> list[_Skips]:
    """Return for each layer where an activation leaves enough zeros, and the sizes make lists of the rest pay."""
    layout = architecture.layout
    panel, two_strips = panel_width(architecture.dtype), 2 * sparse.strip_width(architecture.dtype)
    if _is_small(layout) or n_samples < panel:
        return [_Skips(False, False, False)] * layout.n_layers
    skips = []
    for index, (n_in, n_out) in enumerate(pairwise(layout.sizes)):
        before, after = (name in TURNING_OFF for name in ("identity", *architecture.activations)[index : index + 2])
        is_hidden, is_packed = index > 0, n_in * n_out > _PACK_ABOVE
        lists_dz = trains and after and n_in >= two_strips and n_out >= panel
        skips.append(
            _Skips(
                forward=before and is_packed and n_in >= panel and n_out >= two_strips,
                backward=lists_dz and is_packed and is_hidden,
                gradient=lists_dz,
            )
        )
    return skips


def _strip_blocks(n_in: int, strip: int) -> list[tuple[int, int]]:
    """Cut the rows of a layer into strips (first, number), the last of which has the biases below it."""
    starts = range(0, n_in, strip)
    return [(start, stop - start) for start, stop in zip(starts, [*starts[1:], n_in + 1], strict=True)]


def _tile_table(layout: Layout, n_workers: int, strips: Sequence[int] = ()) -> npt.NDArray[np.void]:
    """Cut the parameters into tasks: a row per tile, as `TILE`. The cut changes no result.

    strips : for each layer, the rows of a task if its gradient wants them so, else 0; all 0 if not given.
    """
    if _is_small(layout):
        return np.zeros(1, TILE)  # one task for all of them
    tiles, strips = [], strips or [0] * layout.n_layers
    for layer, (n_in, n_out) in enumerate(pairwise(layout.sizes)):
        strip = strips[layer]
        blocks = _strip_blocks(n_in, strip) if strip else _row_blocks(n_in + 1, n_out, n_workers)
        tiles += [(layer, first_row, n_rows) for first_row, n_rows in blocks]
    return np.array(tiles, TILE)
