"""The parameters phase of a step: for each tile of parameters its gradient, then its update.

A tile is some rows of one layer's weights with the biases as the row below them; it is worked on as rectangles of
(first row, rows, first column, columns), whose gradient stays in the caches until its update. What belongs to a step
but neither to a sample nor to a rule of optimization has its place between the two stages (penalties, clipping), or
after them (averages). The norm of a whole gradient, or of a unit's weights, needs all tiles: then a phase ends there,
and `update_of_tile` or `constrain_layer` is the next one.
"""

import numpy as np
from numba import types

from fastbp._jit import inline, leaf
from fastbp.kernels.calls import call, float64_at
from fastbp.kernels.products.gradient import gradient_of
from fastbp.kernels.shaping import N_SUMS
from fastbp.kernels.sums import PART
from fastbp.kernels.tables import layer_of, optimizer_at, plan_at, tile_of
from fastbp.kernels.updates import DECAY, N_COEFFICIENTS


def _task_signature(T):
    return types.intp(*(types.intp,) * 8)


def _update_signature(T):
    return types.intp(*(types.intp,) * 4, types.float64)


@inline
def _parameters_of_tile(plan, optimizer, coefficients, task, n, batch, super_blocks_done, is_last, shapes):
    """`parameters_of_tile`, or if the constant `shapes` is true `shaped_parameters_of_tile`."""
    plan, optimizer = plan_at(plan), optimizer_at(optimizer)
    updates = is_last != 0 and plan.leaves.update != 0
    tile, is_only, n_bad = tile_of(plan, task), super_blocks_done == 0 and is_last != 0, 0
    layer = layer_of(plan, tile.layer)
    n_out = layer.n_out
    for column in range(0, n_out, plan.sizes.c_block):
        rectangle = tile.first_row, tile.n_rows, column, min(plan.sizes.c_block, n_out - column)
        g, g_row = _whole_gradient(plan, layer, rectangle), n_out
        is_read = shapes and plan.leaves.clipped_update != 0  # by others; else it stays in a small buffer
        if is_only and updates and not is_read:
            g, g_row = plan.scratch.gradient, rectangle[3]
        _gradient(plan, layer, rectangle, n, batch, super_blocks_done, is_only, g, g_row)
        if updates:
            if shapes:
                _measure_gradient(plan, layer, rectangle, g, g_row)
                _shape_gradient(plan, layer, rectangle, g, g_row)
            if not is_read:
                n_bad += _change(plan, optimizer, coefficients, tile.layer, rectangle, g, g_row, shapes)
        elif is_last != 0:
            call(plan.leaves.flush_rows, (g, rectangle[1], rectangle[3], g_row))
    return n_bad


@leaf(_task_signature)
def parameters_of_tile(plan, optimizer, coefficients, task, n, batch, super_blocks_done, is_last):
    """Gradient over a super-block of n samples, and after the batch's last one update, of a tile.

    Returns how many updates left a parameter not finite.
    """
    return _parameters_of_tile(plan, optimizer, coefficients, task, n, batch, super_blocks_done, is_last, False)


@leaf(_task_signature)
def shaped_parameters_of_tile(plan, optimizer, coefficients, task, n, batch, super_blocks_done, is_last):
    """As `parameters_of_tile`, with all that shapes a step beside its optimizer."""
    return _parameters_of_tile(plan, optimizer, coefficients, task, n, batch, super_blocks_done, is_last, True)


@inline
def _parameters_of_network(plan, optimizer, coefficients, task, n, batch, super_blocks_done, is_last, shapes):
    """`parameters_of_network`, or if the constant `shapes` is true `shaped_parameters_of_network`."""
    plan, optimizer = plan_at(plan), optimizer_at(optimizer)
    g, n_params = layer_of(plan, 0).gradient.dw, _n_params(plan)
    _sum_blocks(plan, g, n_params, n, super_blocks_done)
    if is_last == 0:
        return 0
    if plan.leaves.update == 0:
        call(plan.leaves.flush_rows, (g, 1, n_params, n_params))
        return 0
    if shapes and (plan.health.is_due != 0 or plan.leaves.penalize != 0 or plan.leaves.clip != 0):
        for index in range(plan.n_layers):
            layer = layer_of(plan, index)
            for column in range(0, layer.n_out, plan.sizes.c_block):
                rectangle = 0, layer.n_in + 1, column, min(plan.sizes.c_block, layer.n_out - column)
                own = _whole_gradient(plan, layer, rectangle)
                _measure_gradient(plan, layer, rectangle, own, layer.n_out)
                _shape_gradient(plan, layer, rectangle, own, layer.n_out)
    if shapes and plan.leaves.clipped_update != 0:
        return 0
    return _change_network(plan, optimizer, coefficients, n_params, shapes)


@leaf(_task_signature)
def parameters_of_network(plan, optimizer, coefficients, task, n, batch, super_blocks_done, is_last):
    """As `parameters_of_tile`, of a small network: all layers at once."""
    return _parameters_of_network(plan, optimizer, coefficients, task, n, batch, super_blocks_done, is_last, False)


@leaf(_task_signature)
def shaped_parameters_of_network(plan, optimizer, coefficients, task, n, batch, super_blocks_done, is_last):
    """As `parameters_of_network`, with all that shapes a step beside its optimizer."""
    return _parameters_of_network(plan, optimizer, coefficients, task, n, batch, super_blocks_done, is_last, True)


@leaf(_update_signature)
def update_of_tile(plan, optimizer, coefficients, task, factor):
    """The update of a tile whose gradient had to wait for the norm of all: it is multiplied by `factor` first.

    Returns how many updates left a parameter not finite.
    """
    plan, optimizer = plan_at(plan), optimizer_at(optimizer)
    tile, n_bad = tile_of(plan, task), 0
    layer = layer_of(plan, tile.layer)
    for column in range(0, layer.n_out, plan.sizes.c_block):
        rectangle = tile.first_row, tile.n_rows, column, min(plan.sizes.c_block, layer.n_out - column)
        g = _whole_gradient(plan, layer, rectangle)
        if factor < 1.0:
            call(plan.leaves.scale, (g, rectangle[1], rectangle[3], layer.n_out, factor))
        n_bad += _change(plan, optimizer, coefficients, tile.layer, rectangle, g, layer.n_out, True)
    return n_bad


@leaf(_update_signature)
def update_of_network(plan, optimizer, coefficients, task, factor):
    """As `update_of_tile`, of a small network: all layers at once."""
    plan, optimizer = plan_at(plan), optimizer_at(optimizer)
    g, n_params = layer_of(plan, 0).gradient.dw, _n_params(plan)
    if factor < 1.0:
        call(plan.leaves.scale, (g, 1, n_params, n_params, factor))
    return _change_network(plan, optimizer, coefficients, n_params, True)


@leaf(lambda T: types.void(types.intp, types.intp, types.intp))
def constrain_layer(plan, optimizer, index):
    """What needs all of a layer's parameters after their update: the largest norm of its units' weights.

    The average comes after that.
    """
    plan, optimizer = plan_at(plan), optimizer_at(optimizer)
    layer = layer_of(plan, index)
    if layer.max_norm < np.inf and layer.of_weights.rate_factor != 0.0:
        call(plan.leaves.limit_columns, (layer.w, layer.n_in, layer.n_out, layer.n_out, layer.max_norm))
    _average(plan, optimizer, layer.w, layer.n_in + 1, layer.n_out, layer.n_out)


@inline
def _whole_gradient(plan, layer, rectangle):
    """Where a rectangle lies in the gradient of all parameters."""
    return layer.gradient.dw + (rectangle[0] * layer.n_out + rectangle[2]) * plan.sizes.itemsize


@inline
def _n_params(plan):
    first, last = layer_of(plan, 0), layer_of(plan, plan.n_layers - 1)
    return (last.w - first.w) // plan.sizes.itemsize + (last.n_in + 1) * last.n_out


@inline
def _gradient(plan, layer, rectangle, n, batch, super_blocks_done, is_only, g, g_row):
    """Write the gradient of a rectangle over n samples to g, or add it to that of the super-blocks before.

    is_only : whether the batch has a single super-block, which is then one part of a sum; several have the usual ones.
    """
    part, n_before = n if is_only else PART, super_blocks_done * plan.sizes.super_block
    for s in range(0, n, part):
        _add_part(plan, layer, rectangle, s, min(part, n - s), n_before + s, batch, g, g_row)


@inline
def _sum_blocks(plan, g, n_params, n, super_blocks_done):
    """Write the gradient of a small network to g, or add it: the sum of those of its blocks, in their order."""
    row, rows, n_blocks = plan.sizes.gradient_row, plan.block_gradients, (n - 1) // plan.sizes.block + 1
    if super_blocks_done > 0:
        partial = _partial_of(plan, g)
        call(plan.leaves.add_rows, (rows, row, n_blocks, partial, n_params, super_blocks_done - 1))
        call(plan.leaves.add_parts, (g, partial, n_params, 1, n_params))
    elif n_blocks > 1:  # the first one is in g
        call(plan.leaves.add_rows, (rows + row * plan.sizes.itemsize, row, n_blocks - 1, g, n_params, 1))


@inline
def _add_part(plan, layer, rectangle, start, n, n_before, batch, g, g_row):
    """Add the gradient over n samples from `start` on to g, that over n_before samples of the batch.

    These are whole parts of a sum. The first one is written to g, the others come by way of the partial gradient.
    """
    into, row = (g, g_row) if n_before == 0 else (_partial_of(plan, g), layer.n_out)
    gradient_of(plan, layer, rectangle, start, n, batch, into, row, 1 if n_before > PART else 0)
    if n_before > 0:
        call(plan.leaves.add_parts, (g, into, row, rectangle[1], rectangle[3]))


@inline
def _partial_of(plan, g):
    """Where the sums lie that are not yet in the gradient at the address g."""
    return plan.partial_gradient + g - layer_of(plan, 0).gradient.dw


@inline
def _sums_of(plan, layer, rectangle):
    """Where the sums of a rectangle's first row lie, and how far apart those of its rows are."""
    n_blocks = (layer.n_out + plan.sizes.c_block - 1) // plan.sizes.c_block
    place = layer.first_sum + rectangle[0] * n_blocks + rectangle[2] // plan.sizes.c_block
    return plan.shaping.sums + 8 * N_SUMS * place, N_SUMS * n_blocks


@inline
def _measure_gradient(plan, layer, rectangle, g, g_row):
    """Measure the gradient of a rectangle, if the step is looked at."""
    if plan.health.is_due != 0:
        sums, sums_row = _sums_of(plan, layer, rectangle)
        call(plan.leaves.measure_gradient, (g, rectangle[1], rectangle[3], g_row, sums, sums_row))


@inline
def _measure_update(plan, layer, rectangle, before):
    """Measure an update of a rectangle, whose parameters were those `before`, if the step is looked at."""
    if plan.health.is_due != 0:
        first_row, n_rows, first_column, n_columns = rectangle
        start = layer.w + (first_row * layer.n_out + first_column) * plan.sizes.itemsize
        sums, sums_row = _sums_of(plan, layer, rectangle)
        call(plan.leaves.measure_update, (start, before, n_rows, n_columns, layer.n_out, sums, sums_row))


@inline
def _keep(plan, start, n_rows, n_columns, row):
    """Keep parameters for `_measure_update`, if the step is looked at."""
    if plan.health.is_due != 0:
        call(plan.leaves.keep_rows, (start, n_rows, n_columns, row, plan.scratch.before))


@inline
def _shape_gradient(plan, layer, rectangle, g, g_row):
    """Add the penalties to the gradient of a rectangle, clip its elements, and sum both for each row."""
    if plan.leaves.penalize == 0 and plan.leaves.clip == 0:
        return
    first_row, n_rows, first_column, n_columns = rectangle
    sums, sums_row = _sums_of(plan, layer, rectangle)
    if plan.leaves.penalize != 0:
        w = layer.w + (first_row * layer.n_out + first_column) * plan.sizes.itemsize
        n_weights = min(n_rows, layer.n_in - first_row)
        _penalize(plan, layer.of_weights, w, g, n_weights, n_columns, layer.n_out, g_row, sums, sums_row)
        if n_weights < n_rows:
            w += n_weights * layer.n_out * plan.sizes.itemsize
            g_biases, own = g + n_weights * g_row * plan.sizes.itemsize, sums + 8 * n_weights * sums_row
            _penalize(plan, layer.of_biases, w, g_biases, 1, n_columns, layer.n_out, g_row, own, sums_row)
    if plan.leaves.clip != 0:
        call(plan.leaves.clip, (g, n_rows, n_columns, g_row, plan.shaping.clip_value, sums, sums_row))


@inline
def _penalize(plan, group, w, g, n_rows, n_columns, row, g_row, sums, sums_row):
    batch = plan.shaping.weight
    l1, l2 = group.l1 + group.l1_per_batch / batch, group.l2 + group.l2_per_batch / batch
    call(plan.leaves.penalize, (w, g, n_rows, n_columns, row, g_row, l1, l2, group.decay, sums, sums_row))


@inline
def _change(plan, optimizer, coefficients, index, rectangle, g, g_row, shapes):
    """Decay and update a rectangle of a layer, and follow it with its average; returns as `_update`."""
    layer = layer_of(plan, index)
    first_row, n_rows, first_column, n_columns = rectangle
    if not shapes:
        _decay(plan, optimizer, coefficients, layer, rectangle)
        return _update(plan, optimizer, coefficients, layer, rectangle, g, g_row)
    start = layer.w + (first_row * layer.n_out + first_column) * plan.sizes.itemsize
    _keep(plan, start, n_rows, n_columns, layer.n_out)
    n_bad = _change_groups(plan, optimizer, coefficients, index, rectangle, g, g_row)
    _measure_update(plan, layer, rectangle, plan.scratch.before)
    if plan.leaves.constrain == 0:
        _average(plan, optimizer, start, n_rows, n_columns, layer.n_out)
    return n_bad


@inline
def _change_groups(plan, optimizer, coefficients, index, rectangle, g, g_row):
    """Decay and update a rectangle of a layer, its weights and biases by rates of their own where there are any."""
    layer, n_bad = layer_of(plan, index), 0
    first_row, n_rows, first_column, n_columns = rectangle
    if plan.shaping.has_rate_factors == 0:
        _decay(plan, optimizer, coefficients, layer, rectangle)
        return _update(plan, optimizer, coefficients, layer, rectangle, g, g_row)
    n_weights = min(n_rows, layer.n_in - first_row)
    own = coefficients + (1 + 2 * index) * 8 * N_COEFFICIENTS
    if layer.of_weights.rate_factor != 0.0 and n_weights > 0:
        weights = first_row, n_weights, first_column, n_columns
        _decay(plan, optimizer, own, layer, weights)
        n_bad += _update(plan, optimizer, own, layer, weights, g, g_row)
    own += 8 * N_COEFFICIENTS
    if layer.of_biases.rate_factor != 0.0 and n_weights < n_rows:
        biases = layer.n_in, 1, first_column, n_columns
        _decay(plan, optimizer, own, layer, biases)
        g += n_weights * g_row * plan.sizes.itemsize
        n_bad += _update(plan, optimizer, own, layer, biases, g, g_row)
    return n_bad


@inline
def _change_network(plan, optimizer, coefficients, n_params, shapes):
    """As `_change`, of a small network.

    Updates of their own for each layer would take `xor` 7 % of a step (perf/compare.py).
    """
    first, n_bad = layer_of(plan, 0), 0
    if shapes:
        _keep(plan, first.w, 1, n_params, n_params)
    if shapes and plan.shaping.has_rate_factors != 0:
        for index in range(plan.n_layers):
            layer = layer_of(plan, index)
            whole = 0, layer.n_in + 1, 0, layer.n_out
            n_bad += _change_groups(plan, optimizer, coefficients, index, whole, layer.gradient.dw, layer.n_out)
    else:
        if plan.leaves.shrink != 0:
            for index in range(plan.n_layers):
                layer = layer_of(plan, index)
                _decay(plan, optimizer, coefficients, layer, (0, layer.n_in + 1, 0, layer.n_out))
        n_bad = _update(plan, optimizer, coefficients, first, (0, 1, 0, n_params), first.gradient.dw, n_params)
    if shapes and plan.health.is_due != 0:
        for index in range(plan.n_layers):
            layer = layer_of(plan, index)
            _measure_update(plan, layer, (0, layer.n_in + 1, 0, layer.n_out), plan.scratch.before + layer.w - first.w)
    if shapes and plan.leaves.constrain == 0:
        _average(plan, optimizer, first.w, 1, n_params, n_params)
    return n_bad


@inline
def _average(plan, optimizer, start, n_rows, n_columns, row):
    """Let the average follow the parameters at `start`; that of the first step is what comes out of it."""
    if plan.leaves.average != 0:
        averages = optimizer.averages + (start - layer_of(plan, 0).w)
        share = 1.0 if plan.shaping.step == 0 else plan.shaping.average_share
        call(plan.leaves.average, (start, averages, n_rows, n_columns, row, share))


@inline
def _decay(plan, optimizer, coefficients, layer, rectangle):
    """Decay the weights, and if wanted the biases, of a rectangle of a layer."""
    if plan.leaves.shrink != 0:
        first_row, n_rows, first_column, n_columns = rectangle
        n_decayed = min(n_rows, layer.n_in + optimizer.decay_biases - first_row)
        start = layer.w + (first_row * layer.n_out + first_column) * plan.sizes.itemsize
        factor = float64_at(coefficients)[DECAY]
        call(plan.leaves.shrink, (start, n_decayed, n_columns, layer.n_out, factor))


@inline
def _update(plan, optimizer, coefficients, layer, rectangle, g, g_row):
    """Update a rectangle of the parameters from a layer's first on; returns 1 if one is not finite any more."""
    first_row, n_rows, first_column, n_columns = rectangle
    row = layer.n_out
    start = layer.w + (first_row * row + first_column) * plan.sizes.itemsize
    if n_columns == row and g_row == row:  # one long row
        n_rows, n_columns = 1, n_rows * n_columns
    moments = optimizer.state + (start - layer_of(plan, 0).w)
    return call(
        plan.leaves.update,
        (start, g, moments, optimizer.state_row, n_rows, n_columns, row, g_row, optimizer.constants, coefficients),
    )
