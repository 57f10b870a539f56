"""What a program of a network is made of: sizes, the way of each product, tasks, and the leaves that all this needs.

Every decision that time alone depends on is taken here, once, by sizes and the number of samples; kernels compare a
number of samples with a threshold. None changes a bit of the results, but for those of the gradient's ways: these
follow from the size of the batch alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastbp.architecture import activation_of, loss_of
from fastbp.buffers import ALIGNMENT
from fastbp.kernels import (
    derivatives,
    gather,
    health,
    noise,
    parameters,
    samples,
    scaling,
    shaping,
    shuffle,
    single,
    steps,
    sums,
    training,
    transpose,
    updates,
)
from fastbp.kernels.losses import LABELS
from fastbp.kernels.panels import panel_width
from fastbp.kernels.products import dense, gradient, lists, packed
from fastbp.kernels.products.tile import TILE_ROWS
from fastbp.shaping import PLAIN, Shaping

if TYPE_CHECKING:
    from fastbp._jit import Leaf
    from fastbp.architecture import Architecture
    from fastbp.kernels.activations import Activation
    from fastbp.kernels.losses import Loss
    from fastbp.layout import Layout

__all__ = ["NEVER", "Plan", "Ways", "capacity_for", "step_cost"]

NEVER = int(np.iinfo(np.int64).max)  # a threshold that no number of samples reaches

# Each threshold with the time of a step at half of it and at double, over that as it is: medians of the networks of
# `python perf/thresholds.py NAME`, on an AMD EPYC (Zen 4, 32 KB and 1 MB of cache a core), one core, float32. A median
# is known to some 0.02. Values that change bits, or cannot be varied freely, say so.

# Samples whose activations are kept for the gradient: bounds the workspace whatever the batch. Half 0.99 to 1.00,
# double 1.00 to 1.01. A multiple of `sums.PART`; where it cuts a batch tells in bits.
SUPER_BLOCK = 1024
# Samples of one sum of losses, and of a task: activations stay in the nearest caches. Half 0.99 to 1.00, double 1.00. A
# multiple of CHUNK; changes bits of the mean loss.
LOSS_UNIT = 64
# Samples of a task of small networks, which sums a gradient too. Half 1.02 to 1.03, double 0.98 to 1.00, but fewer
# tasks for threads. A multiple of LOSS_UNIT; changes bits of the gradient.
SMALL_BLOCK = 128
# Samples of a task at most where layers are packed: one packing serves them all. Half 1.00 to 1.02, double 0.99.
WIDE_BLOCK = 512
# Weights of a layer from which copies may pay; smaller ones are read fast enough as they lie. Half: 1.00 to 1.03 with
# 200 × 200. Double: 0.97 with 300 × 300, dense; 1.00 with lists.
PACK_ABOVE = 1 << 16
# Multiply-adds of a product with lists from which the copying of w is repaid. Half: 0.94 with 512 × 512 × 24. Double:
# 1.01 to 1.03 with 512 × 512 × 48.
LIST_PRODUCT = 1 << 23
# The same of a dense product. Half: 1.02 to 1.03 with 784 × 128 × 128. Double: 0.98 with 784 × 128 × 256, 0.98 to 0.99
# with 512 × 512 × 96, 0.97 to 1.03 with 784 × 512 × 48.
PACK_PRODUCT = 1 << 24
# Cache blocks of a product: terms of a sum, and rows (whole tiles). A panel of 128 terms takes 16 KB, in any dtype, and
# leaves room in the first-level cache for what else a tile reads. K_BLOCK: half 0.99 to 1.02, double 1.00. M_BLOCK:
# half 1.00, double 0.99 to 1.00. Buffers for packed weights grow with both.
K_BLOCK, M_BLOCK = 128, 22 * TILE_ROWS
# Terms of a list of what is not zero: what a strip meets of them takes 24 KB at most. Half 1.03 to 1.05, double 1.05 to
# 1.08. Divides the samples of a task (doubled it may not, where no layer is packed); changes bits of the biases.
CHUNK = 64
# Samples of a block of a gradient: twice as many terms as above halve how often its sums are loaded. Half 1.01, double
# 0.99 to 1.00. A multiple of a panel.
S_BLOCK = 256
# Columns of a gradient that is updated at once, long pieces of memory. Half 0.99 to 1.01; double, all of the 1000
# columns there, 0.95 to 0.98.
C_BLOCK = 512
# Elements of the same. Half 1.00, double 1.00 to 1.01. At least one row of tiles of C_BLOCK columns.
RECTANGLE = 4 * TILE_ROWS * 512
# Of a panel: no more samples than this part of its lanes are few. Half, up to twice as many samples: 1.02 to 1.04 with
# 16. Double: 1.04 to 1.11 with 8.
FEW_PART = 4
# Outputs; wider ones fill the lanes of the register tile well enough. Half 1.02 to 1.05 with 4 outputs, double 1.01
# with 8. Changes bits of the gradient.
NARROW = 4
# Parameters up to which each block has a gradient of its own. Half 0.99 to 1.00 with 11 000, double 0.99 to 1.02 with
# 26 000. Changes bits of the gradient of several blocks.
SMALL_NETWORK = 1 << 14
TASK_COST, ELEMENT_COST = 10_000, 16  # multiply-adds that fit into the overhead of a task, and into an update


class Ways(NamedTuple):
    """The thresholds of one layer, in samples; `NEVER` where a way is not taken. As in `PRODUCT` and `GRADIENT`."""

    forward_few_to: int
    forward_lists_from: int
    forward_packed_from: int
    backward_lists_from: int
    backward_packed_from: int
    gradient_lists_from: int
    gradient_narrow_from: int

    @property
    def lists_product(self) -> bool:
        """Whether a product lists what is not zero of its samples."""
        return min(self.forward_lists_from, self.backward_lists_from) < NEVER

    @property
    def lists_gradient(self) -> bool:
        """Whether the gradient lists what is not zero of dz."""
        return self.gradient_lists_from < NEVER


@dataclass(frozen=True)
class Plan:
    """A program of a network, apart from its memory.

    Parameters
    ----------
    architecture : Architecture
    n_samples : int
        The most samples of one step, or of one call that trains nothing.
    trains : bool
        Whether there is a gradient.
    with_loss : bool
        Whether to compare with targets. If not, the outputs go through the output activation, even if the loss has one
        fused into it; and what trains begins with the derivative of a loss of the caller's with respect to them.
    derives : bool
        Whether derivatives go through the network from its outputs to its inputs, or back; it trains nothing then.
    weighted : bool
        Whether samples may have weights.
    sparse : bool
        Whether inputs may be sparse.
    rule : updates.Rule, optional
        Without it the gradient is only computed.
    shaping : Shaping, optional
        What shapes a step beside the rule.
    watches : bool
        Whether steps may be looked at (`kernels.health`).
    n_workers : int
    """

    architecture: Architecture
    n_samples: int
    trains: bool
    with_loss: bool
    derives: bool = False
    weighted: bool = False
    sparse: bool = False
    rule: updates.Rule | None = None
    shaping: Shaping = PLAIN
    watches: bool = False
    n_workers: int = 1

    @property
    def layout(self) -> Layout:
        """Of the parameters."""
        return self.architecture.layout

    @property
    def goes_back(self) -> bool:
        """Whether derivatives go back through the layers."""
        return self.trains or self.derives

    @cached_property
    def activations(self) -> tuple[Activation, ...]:
        """Of each layer."""
        return tuple([activation_of(name) for name in self.architecture.activations])

    @property
    def loss(self) -> Loss:
        """The loss."""
        return loss_of(self.architecture.loss)

    @property
    def n_targets(self) -> int:
        """Numbers of each sample that come with it: its targets, or the derivatives by its outputs."""
        return self.layout.sizes[-1] // (self.loss.outputs_per_target if self.with_loss else 1)

    @property
    def layers(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each layer."""
        return list(pairwise(self.layout.sizes))

    @cached_property
    def panel(self) -> int:
        """Samples side by side."""
        return panel_width(self.architecture.dtype)

    @cached_property
    def strip(self) -> int:
        """Columns of a product with lists that are summed side by side."""
        return lists.strip_width(self.architecture.dtype)

    @property
    def is_small(self) -> bool:
        """Whether each block of samples has a gradient of its own."""
        return self.layout.n_params <= SMALL_NETWORK

    @cached_property
    def block(self) -> int:
        """Samples of a task."""
        block = min(SMALL_BLOCK if self.is_small else LOSS_UNIT, self._whole_panels)
        if True in [
            _is_packed(n_in, n_out) for n_in, n_out in self.layers
        ]:  # as much as each worker gets, within bounds
            share = -(-self.n_samples // (self.n_workers * LOSS_UNIT)) * LOSS_UNIT
            block = min(max(share, block), WIDE_BLOCK, -(-self._whole_panels // LOSS_UNIT) * LOSS_UNIT)
        return block

    @cached_property
    def super_block(self) -> int:
        """Samples of all tasks of a phase: those that the buffers hold."""
        whole_blocks = -(-self._whole_panels // self.block) * self.block
        return min(SUPER_BLOCK, whole_blocks) if self.trains else self.block

    @property
    def _whole_panels(self) -> int:
        return -(-self.n_samples // self.panel) * self.panel

    @property
    def has_several_super_blocks(self) -> bool:
        """Whether a step may have a gradient that is summed over super-blocks."""
        return self.trains and self.n_samples > self.super_block

    @property
    def n_blocks(self) -> int:
        """Most tasks of a samples phase."""
        return -(-self.super_block // self.block)

    @cached_property
    def most_workers(self) -> int:
        """Workers that ever have something to do."""
        return min(self.n_workers, max(self.n_blocks, self.n_tasks))

    @property
    def n_units(self) -> int:
        """Most sums of losses of a samples phase."""
        return -(-self.super_block // LOSS_UNIT)

    @cached_property
    def packed_row(self) -> int:
        """Elements of a row of packed weights: one cache line more, so that rows fall into different sets.

        `M_BLOCK` of them also hold as many packed columns, each tile of which has room for one more vector.
        """
        return K_BLOCK + ALIGNMENT // self.architecture.dtype.itemsize

    def sizes(self) -> dict[str, int]:
        """Return the fields of `SIZES`."""
        return {
            "itemsize": self.architecture.dtype.itemsize,
            "panel": self.panel,
            "block": self.block,
            "super_block": self.super_block,
            "loss_unit": LOSS_UNIT,
            "n_targets": self.n_targets,
            "gradient_row": -(-self.layout.n_params // self.panel) * self.panel,
            "m_block": M_BLOCK,
            "c_block": C_BLOCK,
            "s_block": S_BLOCK,
            "chunk": CHUNK,
            "strip": self.strip,
            "packed_row": self.packed_row,
        }

    @cached_property
    def ways(self) -> tuple[Ways, ...]:
        """Which way each layer's products go, for how many samples."""
        return tuple([self._ways_of(index) for index in range(self.layout.n_layers)])

    def _ways_of(self, index: int) -> Ways:
        n_in, n_out = self.layers[index]
        before, after = index > 0 and self.activations[index - 1].makes_zeros, self.activations[index].makes_zeros
        # Lists pay where an activation leaves enough zeros and there are samples enough to fill the lanes.
        fills_lanes = self.n_samples >= self.panel
        may_list = not self.is_small and fills_lanes
        lists_h = may_list and before and n_in >= self.panel and n_out >= 2 * self.strip
        lists_dz = may_list and self.trains and after and n_out >= self.panel and n_in >= 2 * self.strip
        is_hidden = self.derives or (self.trains and index > 0)
        # A few samples would leave most lanes empty. These run over outputs then, in the scratch of a packed block.
        few_to = min(self.panel // FEW_PART, K_BLOCK * M_BLOCK // n_out) if n_out >= self.panel else 0
        return Ways(
            forward_few_to=few_to,
            forward_lists_from=self._pays_from(n_in, n_out, LIST_PRODUCT) if lists_h else NEVER,
            forward_packed_from=self._pays_from(n_in, n_out, PACK_PRODUCT),
            backward_lists_from=self._pays_from(n_in, n_out, LIST_PRODUCT) if lists_dz and is_hidden else NEVER,
            backward_packed_from=self._pays_from(n_in, n_out, PACK_PRODUCT) if is_hidden else NEVER,
            gradient_lists_from=self.panel if lists_dz else NEVER,
            gradient_narrow_from=self.panel
            if self.trains and n_out <= NARROW and self.n_samples >= self.panel
            else NEVER,
        )

    def _pays_from(self, n_in: int, n_out: int, product: int) -> int:
        """Return the number of samples from which copies of w pay: that of more multiply-adds than `product`."""
        n = max(product // (n_in * n_out), self.panel // 2) + 1
        return n if _is_packed(n_in, n_out) and n <= self.block else NEVER

    @cached_property
    def stack_starts(self) -> tuple[int, ...]:
        """Where each layer's outputs lie among those of one sample, in whole panels; and how many elements that is."""
        panels = [-(-n_out // self.panel) * self.panel for _, n_out in self.layers]
        return tuple(accumulate(panels, initial=0))

    @property
    def fits_stack(self) -> bool:
        """Whether one sample may go through on the stack."""
        return self.stack_starts[-1] <= single.STACK

    def k_block(self, n_terms: int) -> int:
        """Return the terms of a cache block: as equal as can be, and a part of a sum is a whole number of them."""
        part = n_terms if n_terms <= sums.LONG else sums.PART
        return -(-part // -(-part // K_BLOCK))

    @cached_property
    def tiles(self) -> tuple[tuple[int, int, int], ...]:
        """The parameters cut into tiles of (layer, first row, rows), none for a small network. No cut changes a bit."""
        if self.is_small:
            return ()
        tiles = []
        for layer, (n_in, n_out) in enumerate(self.layers):
            if self.ways[layer].lists_gradient:
                pieces = _strips(n_in, self.strip)
            else:
                pieces = _row_blocks(n_in + 1, n_out, self.n_workers)
            tiles += [(layer, first, n) for first, n in pieces]
        return tuple(tiles)

    @property
    def n_tasks(self) -> int:
        """Tasks of a parameters phase: one per tile, or one for all of a small network."""
        return max(1, len(self.tiles))

    @cached_property
    def first_sums(self) -> tuple[int, ...]:
        """Where the sums of each layer's rows begin, a sum for each row of `C_BLOCK` columns; how many there are."""
        shaping = self.shaping
        if not (self.watches or shaping.penalizes or shaping.clips):
            return (0,) * (self.layout.n_layers + 1)
        return tuple(accumulate([(n_in + 1) * -(-n_out // C_BLOCK) for n_in, n_out in self.layers], initial=0))

    @property
    def n_coefficients(self) -> int:
        """Coefficients of an update: of all parameters, and of each layer's weights and biases if rates differ."""
        n_groups = 2 * self.layout.n_layers if self.shaping.has_rate_factors else 0
        return (1 + n_groups) * updates.N_COEFFICIENTS

    def leaves_of(self, index: int) -> tuple[Leaf | None, Leaf | None]:
        """Return the forward and the backward leaf of a layer's activation; None where the loss does that itself."""
        name, activation = self.architecture.activations[index], self.activations[index]
        is_last = index == self.layout.n_layers - 1
        if self.with_loss and is_last and name in (self.loss.output, "identity"):
            return None, None
        return activation.forward, activation.backward if self.goes_back else None

    def keeps_z(self, index: int) -> bool:
        """Return whether a layer keeps its pre-activations."""
        return self.goes_back and self.activations[index].keeps_z

    @cached_property
    def constants(self) -> tuple[tuple[float, ...], ...]:
        """Those of each layer's activation, and of the loss."""
        return (*[activation.constants for activation in self.activations], self.loss.constants)

    def leaves(self) -> dict[str, Leaf | None]:
        """Return the fields of `LEAVES`: those that this network needs, as each takes time to compile."""
        is_narrow = True in [ways.gradient_narrow_from < NEVER for ways in self.ways]
        lists_gradients = True in [ways.lists_gradient for ways in self.ways]
        lists_products = True in [ways.lists_product for ways in self.ways]
        # Lists that turn out to be long go by packed blocks.
        packs_columns = True in [min(ways.forward_packed_from, ways.forward_lists_from) < NEVER for ways in self.ways]
        packs_rows = True in [min(ways.backward_packed_from, ways.backward_lists_from) < NEVER for ways in self.ways]
        has_lists = lists_gradients or lists_products
        keeps_z, shape = True in [self.keeps_z(index) for index in range(self.layout.n_layers)], self.shaping
        draws = shape.drops or shape.noise > 0.0
        scales_x, scales_y = self.architecture.standardizes_x, self.architecture.standardizes_y
        shapes_input = draws or scales_x or self.sparse
        shapes_loss = self.with_loss and (self.weighted or shape.smoothing > 0.0 or scales_y)
        shapes = self.watches or shape is not PLAIN
        has_parts = self.has_several_super_blocks or max(self.layout.sizes) > sums.LONG
        needed = {
            dense.multiply_panel: True,
            dense.multiply_row: True,
            dense.multiply_column: self.goes_back,
            packed.dense_packed: packs_columns or packs_rows,
            packed.pack_columns: packs_columns,
            packed.pack_rows: packs_rows or lists_products,
            lists.dense_of_lists: lists_products,
            lists.list_nonzeros: has_lists,
            lists.multiply_nonzeros: has_lists,
            gradient.narrow_gradient: is_narrow,
            gradient.add_rows: self.trains and self.is_small,
            sums.add_parts: has_parts,
            shuffle.sample_order: True,
            gather.gather_rows: True,
            gather.gather_standardized: scales_x or (scales_y and self.with_loss),
            gather.gather_sparse: self.sparse,
            gather.gather_labels: self.with_loss and self.loss.targets == LABELS,
            gather.copy: self.derives or shape.drops or keeps_z,
            transpose.panels_to_rows: True,
            transpose.panels_to_features: is_narrow or lists_gradients,
            updates.flush_rows: self.trains and self.rule is None,
            samples.forward_block: not shapes_input,
            samples.forward_shaped_block: shapes_input,
            samples.loss_block: self.with_loss and not shapes_loss,
            samples.shaped_loss_block: shapes_loss,
            samples.weigh_batch: self.trains and self.weighted,
            samples.derivative_block: self.trains and not self.with_loss,
            samples.backward_block: self.trains and not shape.drops,
            samples.backward_shaped_block: shape.drops,
            samples.gradient_block: self.trains and self.is_small,
            parameters.parameters_of_network: self.trains and self.is_small and not shapes,
            parameters.parameters_of_tile: self.trains and not self.is_small and not shapes,
            parameters.shaped_parameters_of_network: self.trains and self.is_small and shapes,
            parameters.shaped_parameters_of_tile: self.trains and not self.is_small and shapes,
            training.train_steps: self.trains and not (shapes or self.weighted),
            training.train_shaped_steps: self.trains and (shapes or self.weighted),
            scaling.rescale: (scales_x or scales_y) and not self.with_loss,
            steps.take_step: self.trains,
            training.evaluate_range: self.with_loss and not self.trains,
            training.predict_range: not (self.with_loss or self.trains),
            derivatives.vjp_range: self.derives,
            derivatives.jvp_range: self.derives,
            health.observe_layer: self.watches,
            health.measure_gradient: self.watches,
            health.keep_rows: self.watches,
            health.measure_update: self.watches,
        }
        if shape is not PLAIN:
            needed |= self._shaping_leaves()
        loss = self.loss.leaf if self.with_loss else None
        rule = dict.fromkeys(updates.Rule._fields) if self.rule is None else self.rule._asdict()
        weighted_loss = self.loss.weighted_leaf if self.with_loss and self.weighted else None
        leaves: dict[str, Leaf | None] = {"loss": loss, "weighted_loss": weighted_loss, **rule, **_NO_SHAPING}
        for leaf, is_needed in needed.items():
            field = FIELDS_OF_LEAVES.get(leaf.__name__, leaf.__name__)
            leaves[field] = leaf if is_needed else leaves.get(field)
        return leaves

    def _shaping_leaves(self) -> dict[Leaf, bool]:
        """Return the leaves of what shapes a step, and whether this one needs them."""
        shape = self.shaping
        return {
            noise.drop: shape.drops,
            noise.add_noise: shape.noise > 0.0,
            shaping.smooth: shape.smoothing > 0.0 and self.with_loss,
            shaping.penalize: shape.penalizes,
            shaping.clip: shape.clips,
            shaping.scale: shape.clips_norm,
            shaping.limit_columns: shape.limits_norms,
            shaping.average: shape.averages,
            parameters.update_of_network: shape.clips_norm and self.is_small,
            parameters.update_of_tile: shape.clips_norm and not self.is_small,
            parameters.constrain_layer: shape.limits_norms,
        }

    def costs(self, n_samples: int) -> tuple[int, int]:
        """Return rough costs of a task of either phase of a step, in multiply-adds."""
        in_block, in_super_block = min(self.block, n_samples), min(self.super_block, n_samples)
        block_cost, parameters_cost = _samples_cost(self.layout, in_block), ELEMENT_COST * self.layout.n_params
        if self.is_small:
            block_cost += _gradient_cost(self.layout, in_block)
        else:
            parameters_cost += _gradient_cost(self.layout, in_super_block)
        return block_cost + TASK_COST, parameters_cost // self.n_tasks + TASK_COST


# Fields of `LEAVES` of what shapes a step: 0 where nothing does.
_NO_SHAPING = dict.fromkeys(
    (
        *("drop", "add_noise", "smooth", "penalize", "clip", "scale", "limit_columns", "average"),
        *("clipped_update", "constrain"),
    )
)

# Fields of `LEAVES` that are not named as their leaf.
FIELDS_OF_LEAVES = {
    "sample_order": "order",
    "train_shaped_steps": "train_steps",
    "forward_shaped_block": "forward_block",
    "shaped_loss_block": "loss_block",
    "derivative_block": "loss_block",
    "backward_shaped_block": "backward_block",
    "gather_rows": "gather",
    "gather_labels": "labels",
    "parameters_of_network": "parameters",
    "parameters_of_tile": "parameters",
    "shaped_parameters_of_network": "parameters",
    "shaped_parameters_of_tile": "parameters",
    "update_of_network": "clipped_update",
    "update_of_tile": "clipped_update",
    "constrain_layer": "constrain",
}


def capacity_for(n_samples: int, dtype: np.dtype[Any]) -> int:
    """Return the capacity of a program for so many samples: batches of about the same size share one."""
    step = panel_width(dtype) if n_samples <= SUPER_BLOCK else SUPER_BLOCK
    return -(-n_samples // step) * step


def step_cost(architecture: Architecture, n_samples: int) -> int:
    """Return the rough cost of a whole step, in multiply-adds."""
    layout = architecture.layout
    per_sample = _samples_cost(layout, n_samples) + _gradient_cost(layout, n_samples)
    return per_sample + ELEMENT_COST * layout.n_params + 2 * TASK_COST


def _samples_cost(layout: Layout, n_samples: int) -> int:
    return n_samples * (2 * layout.n_weights + ELEMENT_COST * sum(layout.sizes))


def _gradient_cost(layout: Layout, n_samples: int) -> int:
    return n_samples * layout.n_weights


def _is_packed(n_in: int, n_out: int) -> bool:
    return n_in * n_out > PACK_ABOVE


def _row_blocks(n_rows: int, n_columns: int, n_workers: int) -> list[tuple[int, int]]:
    """Cut rows into blocks (first, number), as equal as whole tiles allow, whose rectangles fit into the scratch.

    Every worker gets as many of them where there are enough rows.
    """
    most = min(RECTANGLE // min(n_columns, C_BLOCK), M_BLOCK)
    n_blocks = -(-n_rows // (most // TILE_ROWS * TILE_ROWS))
    n_tiles = -(-n_rows // TILE_ROWS)
    n_blocks = min(-(-n_blocks // n_workers) * n_workers, n_tiles)
    starts = [number * n_tiles // n_blocks * TILE_ROWS for number in range(n_blocks)]
    return [(start, stop - start) for start, stop in zip(starts, [*starts[1:], n_rows], strict=True)]


def _strips(n_in: int, strip: int) -> list[tuple[int, int]]:
    """Cut the rows of a layer into strips (first, number), the last of which has the biases below it."""
    starts = range(0, n_in, strip)
    return [(start, stop - start) for start, stop in zip(starts, [*starts[1:], n_in + 1], strict=True)]
