"""The parameters phase of a step: for each tile of parameters its gradient, then its update.

A tile is some rows of one layer's weights with the biases as the row below them; it is worked on as rectangles of
(first row, rows, first column, columns), whose gradient stays in the caches until its update. What belongs to a step
but neither to a sample nor to a rule of optimization (penalties, clipping, averages, statistics) has its place between
the two stages.
"""

from numba import types

from fastbp._jit import inline, leaf
from fastbp.kernels.calls import call, float64_at
from fastbp.kernels.products.gradient import gradient_of
from fastbp.kernels.sums import PART
from fastbp.kernels.tables import layer_of, optimizer_at, plan_at, tile_of
from fastbp.kernels.updates import DECAY


def _task_signature(T):
    return types.intp(*(types.intp,) * 8)


@leaf(_task_signature)
def parameters_of_tile(plan, optimizer, coefficients, task, n, batch, super_blocks_done, is_last):
    """Gradient over a super-block of n samples, and after the batch's last one update, of a tile.

    Returns how many updates left a parameter not finite.
    """
    plan, optimizer = plan_at(plan), optimizer_at(optimizer)
    updates = is_last != 0 and plan.leaves.update != 0
    tile, is_only, n_bad = tile_of(plan, task), super_blocks_done == 0 and is_last != 0, 0
    layer = layer_of(plan, tile.layer)
    n_out = layer.n_out
    for column in range(0, n_out, plan.sizes.c_block):
        rectangle = tile.first_row, tile.n_rows, column, min(plan.sizes.c_block, n_out - column)
        g, g_row = layer.gradient.dw + (tile.first_row * n_out + column) * plan.sizes.itemsize, n_out
        if is_only and updates:  # nobody else reads it: it stays in a small buffer
            g, g_row = plan.scratch.gradient, rectangle[3]
        _gradient(plan, layer, rectangle, n, batch, super_blocks_done, is_only, g, g_row)
        if updates:
            _decay(plan, optimizer, coefficients, layer, rectangle)
            n_bad += _update(plan, optimizer, coefficients, layer, rectangle, g, g_row)
        elif is_last != 0:
            call(plan.leaves.flush_rows, (g, rectangle[1], rectangle[3], g_row))
    return n_bad


@leaf(_task_signature)
def parameters_of_network(plan, optimizer, coefficients, task, n, batch, super_blocks_done, is_last):
    """As `parameters_of_tile`, of a small network: all layers at once.

    Leaves of their own for each layer would take `xor` 7 % of a step (perf/compare.py).
    """
    plan, optimizer = plan_at(plan), optimizer_at(optimizer)
    first, last = layer_of(plan, 0), layer_of(plan, plan.n_layers - 1)
    n_params = (last.w - first.w) // plan.sizes.itemsize + (last.n_in + 1) * last.n_out
    g, whole = first.gradient.dw, (0, 1, 0, n_params)
    _sum_blocks(plan, g, n_params, n, super_blocks_done)
    if is_last == 0:
        return 0
    if plan.leaves.update == 0:
        call(plan.leaves.flush_rows, (g, 1, n_params, n_params))
        return 0
    for index in range(plan.n_layers):
        layer = layer_of(plan, index)
        _decay(plan, optimizer, coefficients, layer, (0, layer.n_in + 1, 0, layer.n_out))
    return _update(plan, optimizer, coefficients, first, whole, g, n_params)


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
