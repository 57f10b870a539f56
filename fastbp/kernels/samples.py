"""The samples phase of a step: a block of samples forward, its loss, and backward.

Everything here works on addresses, so one compilation serves every dtype and architecture: widths, leaves and buffers
are data, which lie in the records of `tables`.
"""

from numba import types

from fastbp._jit import inline, leaf
from fastbp.kernels.calls import call, int64_at
from fastbp.kernels.gather import FLOAT32, read_float32, read_float64
from fastbp.kernels.noise import INPUT_NOISE, key_of
from fastbp.kernels.products.dense import dense
from fastbp.kernels.products.gradient import gradient_without_lists, keep_for_gradient
from fastbp.kernels.simd import address_of
from fastbp.kernels.tables import (
    LOSS_SUMS_BYTES,
    cursor_at,
    dealing_at,
    layer_of,
    loss_sums_of,
    plan_at,
    run_at,
    source_at,
    totals_at,
)


@inline
def _forward_block(plan, source, start, n, shapes):
    """`forward_block`, or if the constant `shapes` is true `forward_shaped_block`."""
    plan, source = plan_at(plan), source_at(source)
    size, first = plan.sizes.itemsize, layer_of(plan, 0)
    panels = first.h_in + start * first.n_in * size
    if shapes and source.x_indptr != 0:
        call(plan.leaves.gather_sparse, (address_of(source), plan.scratch.rows, n, first.n_in, panels,
                                         plan.scratch.row_addresses, plan.scratch.cast, plan.scaling.x_means,
                                         plan.scaling.x_factors))  # fmt: skip
    elif shapes and plan.scaling.x_means != 0:
        call(plan.leaves.gather_standardized, (
            source.x, source.x_row, source.x_column, source.x_dtype, plan.scratch.rows, n, first.n_in, panels,
            plan.scratch.row_addresses, plan.scratch.cast, plan.scaling.x_means, plan.scaling.x_factors,
        ))  # fmt: skip
    else:
        call(plan.leaves.gather, (source.x, source.x_row, source.x_column, source.x_dtype, plan.scratch.rows, n,
                                  first.n_in, panels, plan.scratch.row_addresses, plan.scratch.cast))  # fmt: skip
    if shapes and plan.leaves.add_noise != 0:
        key = key_of(plan.shaping.seed, plan.shaping.step, INPUT_NOISE)
        call(plan.leaves.add_noise, (panels, first.n_in, n, plan.shaping.first + start, key, plan.shaping.noise))
    for index in range(plan.n_layers):
        layer = layer_of(plan, index)
        n_in, n_out = layer.n_in, layer.n_out
        if shapes and plan.leaves.drop != 0 and layer.dropout > 0.0:
            whole, dropped = layer.h_whole + start * n_in * size, layer.h_in + start * n_in * size
            if dropped != whole:
                call(plan.leaves.copy, (whole, dropped, n * n_in))
            _drop(plan, layer, index, dropped, start, n)
        z, h_out = layer.z + start * n_out * size, layer.h_out + start * n_out * size
        dense(plan, layer.forward, layer.h_in + start * n_in * size, h_out, n, n == 1)
        if z != h_out:
            call(plan.leaves.copy, (h_out, z, n * n_out))
        if layer.activation != 0:
            call(layer.activation, (h_out, n_out, n, layer.constants))


@leaf(lambda T: types.void(types.intp, types.intp, types.intp, types.intp))
def forward_block(plan, source, start, n):
    """Gather the rows in the plan's `rows` and run them through all layers: samples start..start+n-1 of the buffers."""
    _forward_block(plan, source, start, n, False)


@leaf(lambda T: types.void(types.intp, types.intp, types.intp, types.intp))
def forward_shaped_block(plan, source, start, n):
    """As `forward_block`, with inputs sparse, standardized or noisy, and units dropped, where the plan says so."""
    _forward_block(plan, source, start, n, True)


@inline
def _drop(plan, layer, index, values, start, n):
    """Drop inputs of a layer, or their derivatives, of samples start..start+n-1 of the super-block."""
    key = key_of(plan.shaping.seed, plan.shaping.step, index)
    call(plan.leaves.drop, (values, layer.n_in, n, plan.shaping.first + start, key, layer.dropout))


@inline
def _loss_block(plan, source, start, n, scale, sums, shapes):
    """`loss_block`, or if the constant `shapes` is true `shaped_loss_block`."""
    plan, source = plan_at(plan), source_at(source)
    last, rows, targets, n_outside = layer_of(plan, plan.n_layers - 1), plan.scratch.rows, plan.scratch.targets, 0
    n_out, n_targets = last.n_out, plan.sizes.n_targets
    if source.y_is_label != 0:
        n_outside = call(plan.leaves.labels, (source.y, source.y_row, source.y_dtype, rows, n, n_out, targets))
    elif shapes and plan.scaling.y_means != 0:
        call(plan.leaves.gather_standardized, (
            source.y, source.y_row, source.y_column, source.y_dtype, rows, n, n_targets, targets,
            plan.scratch.row_addresses, plan.scratch.cast, plan.scaling.y_means, plan.scaling.y_factors,
        ))  # fmt: skip
    else:
        call(plan.leaves.gather, (source.y, source.y_row, source.y_column, source.y_dtype, rows, n, n_targets, targets,
                                  plan.scratch.row_addresses, plan.scratch.cast))  # fmt: skip
    if shapes and plan.leaves.smooth != 0:
        factor, share = plan.shaping.smoothing_factor, plan.shaping.smoothing_share
        call(plan.leaves.smooth, (targets, n * n_out, factor, share))
    weights = plan.scratch.weights
    if shapes and source.w != 0:
        call(plan.leaves.gather, (source.w, source.w_row, 0, source.w_dtype, rows, n, 1, weights,
                                  plan.scratch.row_addresses, plan.scratch.cast))  # fmt: skip
    output, unit = last.h_out + start * n_out * plan.sizes.itemsize, plan.sizes.loss_unit
    for s in range(0, n, unit):
        here = s * n_out * plan.sizes.itemsize
        here_of_targets = s * n_targets * plan.sizes.itemsize
        arguments = (output + here, targets + here_of_targets, weights + s * plan.sizes.itemsize,
                     plan.scratch.d + here, n_out, min(unit, n - s), scale, plan.loss_constants,
                     sums + s // unit * LOSS_SUMS_BYTES)  # fmt: skip
        if shapes and source.w != 0:
            call(plan.leaves.weighted_loss, arguments)
        else:
            call(plan.leaves.loss, arguments)
    return n_outside


@leaf(lambda T: types.intp(types.intp, types.intp, types.intp, types.intp, types.float64, types.intp))
def loss_block(plan, source, start, n, scale, sums):
    """Compare the outputs with the targets: loss and hits into `sums`, the scaled loss derivative into the plan's `d`.

    `sums` : address of a row of LOSS_SUMS for each `loss_unit` of samples, so that no total depends on the size of a
    block. Returns how many labels were out of range.
    """
    return _loss_block(plan, source, start, n, scale, sums, False)


@leaf(lambda T: types.intp(types.intp, types.intp, types.intp, types.intp, types.float64, types.intp))
def shaped_loss_block(plan, source, start, n, scale, sums):
    """As `loss_block`, with weights of samples, and targets smooth or standardized, where the plan says so."""
    return _loss_block(plan, source, start, n, scale, sums, True)


@leaf(lambda T: types.void(types.intp, types.intp, types.intp, types.intp, types.intp))
def weigh_batch(plan, source, dealing, run, n):
    """Write the sum of the weights of a batch of n samples, one after the other, to the totals of a run.

    run : address of the table.
    """
    plan, source, dealing, run = plan_at(plan), source_at(source), dealing_at(dealing), run_at(run)
    cursor, rows, total = cursor_at(run.cursor), plan.scratch.rows, 0.0
    for start in range(0, n, plan.sizes.block):
        n_block = min(plan.sizes.block, n - start)
        position = cursor.position - dealing.offset + start
        order = rows, position, n_block, source.n_samples, dealing.shuffle, dealing.seed, cursor.epoch
        call(plan.leaves.order, order)
        row = int64_at(rows)
        for i in range(n_block):
            place = source.w + row[i] * source.w_row
            total += read_float32(place) if source.w_dtype == FLOAT32 else read_float64(place)
    totals_at(run.totals).step_weight = total


@leaf(lambda T: types.intp(types.intp, types.intp, types.intp, types.intp, types.float64, types.intp))
def derivative_block(plan, source, start, n, scale, sums):
    """Take the source's y for the derivative of the loss with respect to the outputs, in the place of `loss_block`.

    There is no loss: it counts as 0. `scale` is not used: y is the derivative of the whole batch's loss.
    """
    plan, source = plan_at(plan), source_at(source)
    n_out = layer_of(plan, plan.n_layers - 1).n_out
    call(plan.leaves.gather, (source.y, source.y_row, source.y_column, source.y_dtype, plan.scratch.rows, n, n_out,
                              plan.scratch.d, plan.scratch.row_addresses, plan.scratch.cast))  # fmt: skip
    if plan.scaling.output_factors != 0:
        call(plan.leaves.rescale, (plan.scratch.d, n_out, n, plan.scaling.output_factors, plan.scaling.zeros))
    for unit in range((n + plan.sizes.loss_unit - 1) // plan.sizes.loss_unit):
        here = loss_sums_of(sums, unit)
        here.loss = here.right = 0.0
    return 0


@inline
def _backward_block(plan, start, n, batch, shapes):
    """`backward_block`, or if the constant `shapes` is true `backward_shaped_block`."""
    plan = plan_at(plan)
    d, d_other = plan.scratch.d, plan.scratch.d_other
    for index in range(plan.n_layers - 1, -1, -1):
        layer = layer_of(plan, index)
        keep_for_gradient(plan, layer, d, start, n, batch)
        if index > 0:
            dense(plan, layer.backward, d, d_other, n, batch == 1)
            if shapes and plan.leaves.drop != 0 and layer.dropout > 0.0:
                _drop(plan, layer, index, d_other, start, n)
            d, d_other = d_other, d


@leaf(lambda T: types.void(types.intp, types.intp, types.intp, types.intp))
def backward_block(plan, start, n, batch):
    """From the loss derivative in the plan's `d` to every layer's dz, as the gradient wants it.

    batch : samples of the step.
    """
    _backward_block(plan, start, n, batch, False)


@leaf(lambda T: types.void(types.intp, types.intp, types.intp, types.intp))
def backward_shaped_block(plan, start, n, batch):
    """As `backward_block`, with units dropped where the plan says so."""
    _backward_block(plan, start, n, batch, True)


@leaf(lambda T: types.void(types.intp, types.intp, types.intp, types.intp, types.intp))
def gradient_block(plan, start, n, batch, super_blocks_done):
    """The gradient of a small network over one block of samples, whose activations are still in this core's caches.

    The first block of a step writes the step's own buffer, any other one its row of `block_gradients`.
    """
    plan = plan_at(plan)
    first = layer_of(plan, 0).gradient.dw
    into = first
    if start > 0 or super_blocks_done > 0:
        into = plan.block_gradients + start // plan.sizes.block * plan.sizes.gradient_row * plan.sizes.itemsize
    for index in range(plan.n_layers):
        layer = layer_of(plan, index)
        g, n_out = into + layer.gradient.dw - first, layer.n_out
        gradient_without_lists(plan, layer, (0, layer.n_in + 1, 0, n_out), start, n, batch, g, n_out, 0)
