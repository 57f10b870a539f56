"""The gradient of a layer: dw = h_in @ dz.T over samples, and db, the sum of dz, as one row more.

dz and h_in are first regrouped as the product wants them, a block of samples at a time. There are three ways. As the
sums of one differ from those of another, the size of the batch alone says which one is taken (`tables.GRADIENT`).
"""

from numba import types

from fastbp._jit import inline, leaf
from fastbp.kernels.calls import call, int64_at
from fastbp.kernels.panels import panel_of
from fastbp.kernels.products.lists import chunk_of, is_full, n_listed
from fastbp.kernels.products.tile import TILE_ROWS
from fastbp.kernels.simd import fma, lanes_of, load, load_first, load_upto, splat, store_upto, sum_lanes
from fastbp.kernels.transpose import to_features, to_groups, to_panels, to_rows


@leaf(lambda T: types.void(types.CPointer(T), types.intp, types.intp, types.intp, types.CPointer(T), types.intp,
                           types.CPointer(T), types.intp, types.intp))  # fmt: skip
def narrow_gradient(h, n_in, first_row, n_rows, dz, n_samples, g, g_row, accumulate):
    """Write one output's gradient, or add it if `accumulate`: g[m*g_row] = sum over samples of h[first_row + m] * dz.

    Row n_in of h counts as ones: the gradient of the bias. The lanes run over the samples, since a single output would
    leave them empty in `multiply_panel`; each sum goes over the lanes first, then across them by a fixed tree.

    h : panels of n_samples samples with n_in features. dz : (n_samples,). No checks: the caller validates.
    """
    panel, lanes = panel_of(h), lanes_of(h)
    n_whole = n_samples - n_samples % panel
    width = n_samples - n_whole
    for m in range(n_rows):
        row, is_bias = first_row + m, first_row + m == n_in
        low = high = splat(h, 0)
        for s in range(0, n_whole, panel):
            if is_bias:
                low, high = low + load(dz, s), high + load(dz, s + lanes)
            else:
                i = s * n_in + row * panel
                low = fma(load(h, i), load(dz, s), low)
                high = fma(load(h, i + lanes), load(dz, s + lanes), high)
        for s in range(0, width, lanes):
            d = load_first(dz, n_whole + s, width - s)
            if is_bias:
                low += d
            else:
                low = fma(load_first(h, n_whole * n_in + row * width + s, width - s), d, low)
        total = sum_lanes(low + high)
        g[m * g_row] = g[m * g_row] + total if accumulate else total


@leaf(lambda T: types.void(types.CPointer(T), types.intp, types.intp, types.CPointer(T), types.intp, types.intp))
def add_rows(rows, row, n_rows, out, n, accumulate):
    """out = the sum of n_rows rows of n elements, `row` apart, one after the other, or out += these if `accumulate`.

    No checks: the caller validates.
    """
    for i in range(0, n, lanes_of(out)):
        total = load_upto(out, i, n - i) if accumulate else splat(out, 0)
        for r in range(n_rows):
            total += load_upto(rows, r * row + i, n - i)
        store_upto(out, i, total, n - i)


@inline
def keep_for_gradient(plan, layer, d, start, n, batch):
    """From the derivative of a layer's outputs to that of its z, in place and as the gradient wants it.

    A panel at a time, which is still in the nearest cache when it is regrouped. d : of samples start..start+n-1 of the
    super-block.
    """
    size, panel, n_out, gradient = plan.sizes.itemsize, plan.sizes.panel, layer.n_out, layer.gradient
    for s in range(start, start + n, panel):
        width, here = min(panel, start + n - s), s * n_out * size
        own = d + (s - start) * n_out * size
        if layer.derivative != 0:
            call(layer.derivative, (own, layer.z + here, layer.h_out + here, n_out, width, layer.constants))
        if batch >= gradient.lists_from:
            continue
        if batch >= gradient.narrow_from:
            to_features(plan, own, n_out, width, gradient.dz + s * size, plan.sizes.super_block)
        else:
            to_panels(plan, own, n_out, width, gradient.dz, s, plan.sizes.super_block)
    if batch >= gradient.lists_from:
        _keep_lists(plan, layer, d, start, n)


@inline
def _keep_lists(plan, layer, d, start, n):
    """List what is not zero of dz, and regroup h_in, as `_gradient_of_lists` wants both. As `keep_for_gradient`.

    A chunk that is not mostly zero is kept as rows of samples instead; its first place in indptr is then negative.
    """
    size, chunk, n_in, n_out, gradient = plan.sizes.itemsize, plan.sizes.chunk, layer.n_in, layer.n_out, layer.gradient
    for s in range(start, start + n, chunk):
        here, n_s, index = d + (s - start) * n_out * size, min(chunk, start + n - s), s // chunk
        values, indices, indptr = chunk_of(plan, gradient.dz, gradient.indices, gradient.indptr, index, n_out)
        sums = gradient.sums + index * n_out * size
        call(plan.leaves.list_nonzeros, (here, n_out, n_s, values, indices, indptr, sums))
        if is_full(n_listed(indptr, n_out), n_out * n_s):
            to_features(plan, here, n_out, n_s, values, chunk)
            int64_at(indptr)[0] = -1
    to_groups(plan, layer.h_in + start * n_in * size, n_in, n, gradient.h_transposed, start, plan.sizes.super_block)


@inline
def gradient_of(plan, layer, rectangle, start, n, batch, g, g_row, accumulate):
    """g = a rectangle of dw over n samples from `start` on, or added to what is there. Rows of g are `g_row` apart.

    rectangle : (first row, rows, first column, columns); row n_in of dw is db. start, n : of the super-block; for
    lists, `start` is the first sample of a chunk.
    """
    if batch >= layer.gradient.lists_from:
        _gradient_of_lists(plan, layer, rectangle, start, n, g, g_row, accumulate)
    else:
        gradient_without_lists(plan, layer, rectangle, start, n, batch, g, g_row, accumulate)


@inline
def gradient_without_lists(plan, layer, rectangle, start, n, batch, g, g_row, accumulate):
    """As `gradient_of`, of a layer that never lists what is not zero, as those of small networks."""
    if batch >= layer.gradient.narrow_from:
        _narrow_gradient(plan, layer, rectangle, start, n, g, g_row, accumulate)
    else:
        _dense_gradient(plan, layer, rectangle, start, n, g, g_row, accumulate)


@inline
def _narrow_gradient(plan, layer, rectangle, start, n, g, g_row, accumulate):
    """As `gradient_of` for a few outputs, all of them: sums over lanes of samples."""
    size, dz, n_in = plan.sizes.itemsize, layer.gradient.dz, layer.n_in
    first_row, n_rows, _, _ = rectangle
    for j in range(layer.n_out):
        call(plan.leaves.narrow_gradient, (layer.h_in + start * n_in * size, n_in, first_row, n_rows,
                                           dz + (j * plan.sizes.super_block + start) * size, n, g + j * size, g_row,
                                           accumulate))  # fmt: skip


@inline
def _dense_gradient(plan, layer, rectangle, start, n, g, g_row, accumulate):
    """As `gradient_of`: each sum goes over the samples in their order."""
    size, panel, super_block = plan.sizes.itemsize, plan.sizes.panel, plan.sizes.super_block
    n_in, n_out, dz = layer.n_in, layer.n_out, layer.gradient.dz
    first_row, n_rows, first_column, n_columns = rectangle
    ones = plan.ones if first_row + n_rows > n_in else 0
    s, stop = start, start + n
    while s < stop:
        # As many whole panels as a cache block has, or the narrow one at the end.
        n_panels = min((stop - s) // panel, plan.sizes.s_block // panel)
        n_s, width, n_outer = (n_panels * panel, panel, n_panels) if n_panels > 0 else (stop - s, stop - s, 1)
        for j in range(first_column, first_column + n_columns, panel):
            group = min(panel, n_out - j)
            out = g + (j - first_column) * size
            init, init_row = (out, g_row) if accumulate != 0 or s > start else (plan.zeros, 0)
            call(plan.leaves.multiply_panel, (n_rows, group, layer.h_in + (s * n_in + first_row * width) * size,
                                              TILE_ROWS * width, width, 1, panel * n_in, ones,
                                              dz + (j * super_block + s * group) * size, group, out, g_row, init,
                                              init_row, 0, width, n_outer))  # fmt: skip
        s += n_s


@inline
def sum_of_rows(plan, rows, row, n_rows, out, n, accumulate):
    """out = the sum of some rows of n elements, `row` apart, or added to what is there if `accumulate`."""
    size, panel = plan.sizes.itemsize, plan.sizes.panel
    for j in range(0, n, panel):
        here = out + j * size
        init = here if accumulate != 0 else plan.zeros
        call(plan.leaves.multiply_panel, (1, min(panel, n - j), plan.ones, 0, 0, 0, 0, 0, rows + j * size, row, here, 0,
                                          init, 0, 0, n_rows, 1))  # fmt: skip


@inline
def _gradient_of_lists(plan, layer, rectangle, start, n, g, g_row, accumulate):
    """As `gradient_of`, of a layer that lists what is not zero of its dz.

    The rectangle is a strip of rows, which may have the biases below it; it comes out transposed. Unlike there, these
    samples have a sum of their own, which is added to what is there.
    """
    size, panel, super_block, chunk = plan.sizes.itemsize, plan.sizes.panel, plan.sizes.super_block, plan.sizes.chunk
    first_row, n_rows, first_column, n_columns = rectangle
    n_out, n_inputs, gradient = layer.n_out, min(n_rows, layer.n_in - first_row), layer.gradient
    transposed = plan.scratch.y_strip
    for s in range(start, start + n, chunk):
        values, indices, indptr = chunk_of(plan, gradient.dz, gradient.indices, gradient.indptr, s // chunk, n_out)
        h = gradient.h_transposed + (first_row * super_block + s * panel) * size
        init, init_row, init_group = (plan.zeros, 0, 0) if s == start else (transposed, panel, panel * n_columns)
        if int64_at(indptr)[0] < 0:
            for i in range(0, n_inputs, panel):
                call(plan.leaves.multiply_panel, (n_columns, panel, values + first_column * chunk * size,
                                                  TILE_ROWS * chunk, chunk, 1, 0, 0, h + i * super_block * size, panel,
                                                  transposed + i * n_columns * size, panel,
                                                  init + i // panel * init_group * size, init_row, 0,
                                                  min(chunk, start + n - s), 1))  # fmt: skip
        else:
            call(plan.leaves.multiply_nonzeros, (values, indices, indptr + first_column * 8, n_columns, h,
                                                 panel * super_block, transposed, panel * n_columns, init, init_row,
                                                 init_group, n_inputs))  # fmt: skip
    upright = plan.scratch.gradient
    # All rows of a panel: those beyond n_inputs fall behind the strip, where the biases then overwrite the first.
    to_rows(plan, transposed, n_columns, -(-n_inputs // panel) * panel, upright, n_columns)
    if g != upright:
        for i in range(n_inputs):
            sum_of_rows(plan, upright + i * n_columns * size, n_columns, 1, g + i * g_row * size, n_columns, accumulate)
    if n_rows > n_inputs:
        sum_of_rows(plan, gradient.sums + (start // chunk * n_out + first_column) * size, n_out, (n - 1) // chunk + 1,
                    g + n_inputs * g_row * size, n_columns, accumulate)  # fmt: skip
