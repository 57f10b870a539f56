"""Leaves of the matrix product: one panel of it, the copy of a block of its left operand, the sum of several."""

from numba import types

from fastbp._jit import inline, leaf
from fastbp.kernels.simd import (
    fma,
    lanes_of,
    load,
    load_first,
    load_upto,
    offset,
    splat,
    store,
    store_upto,
    sum_lanes,
)
from fastbp.kernels.sums import PART, add_part, part_of
from fastbp.kernels.tile import TILE_ROWS, group_size, multiply_tiles, pack_group, panel_of


def _multiply_panel_signature(T):
    pointer, size = types.CPointer(T), types.intp
    return types.void(size, size, pointer, size, size, size, size, size, pointer, size, pointer, size, pointer, size,
                      size, size, size)  # fmt: skip


@leaf(_multiply_panel_signature)
def multiply_panel(n_m, n_left, a, a_tile, a_row, a_k, a_outer, ones, b, b_k, c, c_row, init, init_row, init_is_column,
                   n_inner, n_outer):  # fmt: skip
    """Write c = init + a @ b for all n_m rows and one panel of columns.

    a : (n_m, n_outer * n_inner), element (m, (o, i)) at a[t*a_tile + r*a_row + o*a_outer + i*a_k] with row r of tile t,
        m = t*TILE_ROWS + r. With `ones`, an address of n_inner ones (a_k apart), the last of the n_m rows is that row
        of ones for every o; else `ones` is 0.
    b : (n_outer * n_inner, n_left), rows b_k apart. c : (n_m, n_left), rows c_row apart, overwritten.
    init : as in `tile`; may be c itself (then the product is added to it).
    Reads and writes min(n_left, panel) columns. No checks: the caller validates.
    """
    multiply_tiles(n_m, n_left, a, a_tile, a_row, a_k, a_outer, ones, b, b_k, c, c_row, init, init_row, init_is_column,
                   n_inner, n_outer)  # fmt: skip


@leaf(lambda T: types.void(types.CPointer(T), types.intp, types.intp, types.intp, types.CPointer(T), types.intp))
def pack_rows(a, a_row, n_rows, n_columns, packed, packed_row):
    """Copy n_rows rows of n_columns elements, `a_row` apart, into whole vectors of rows `packed_row` apart.

    Strided by a power of two, the rows of a wide matrix evict each other from the caches; those of the copy do not. No
    checks: the caller validates; packed_row >= n_columns rounded up to whole vectors.
    """
    lanes = lanes_of(a)
    for row in range(n_rows):
        for column in range(0, n_columns, lanes):
            store(packed, row * packed_row + column, load_upto(a, row * a_row + column, n_columns - column))


@leaf(lambda T: types.void(types.CPointer(T), types.intp, types.intp, types.intp, types.CPointer(T), types.intp))
def pack_columns(a, a_row, n_rows, n_columns, packed, packed_tile):
    """Copy the columns of a matrix whose rows are `a_row` apart, tile by tile: TILE_ROWS of them, row for row.

    Element (k, t*TILE_ROWS + c) goes to packed[t*packed_tile + k*TILE_ROWS + c]: what the register tile reads for one
    term after the other lies side by side. Whole tiles go by groups of rows that fill whole vectors. At the edges, a
    piece of a row is stored as whole vectors, before the next one that it reaches into. No checks: the caller
    validates; packed_tile >= n_rows * TILE_ROWS + one vector.
    """
    lanes, group = lanes_of(a), group_size(a)
    read = (TILE_ROWS - 1) // lanes * lanes + lanes  # columns that a group reads for its TILE_ROWS
    n_grouped, whole = n_rows - n_rows % group, max(0, (n_columns - read) // TILE_ROWS + 1) * TILE_ROWS
    for k in range(0, n_grouped, group):
        for column in range(0, whole, TILE_ROWS):
            into = column // TILE_ROWS * packed_tile + k * TILE_ROWS
            pack_group(offset(a, k * a_row + column), a_row, offset(packed, into))
    for k in range(n_rows):
        for column in range(whole if k < n_grouped else 0, n_columns, TILE_ROWS):
            piece = column // TILE_ROWS * packed_tile + k * TILE_ROWS
            for c in range(0, TILE_ROWS, lanes):
                store(packed, piece + c, load_upto(a, k * a_row + column + c, n_columns - column - c))


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


@leaf(lambda T: types.void(types.CPointer(T), types.CPointer(T), types.CPointer(T), types.intp, types.CPointer(T),
                           types.intp, types.intp))  # fmt: skip
def multiply_row(h, w, init, init_step, z, n_in, n_out):
    """z = init + h @ w for one sample: the lanes run over the outputs, as a row of w is contiguous.

    Each output is its init plus FMAs in the order of k, as in `multiply_panel`. Four vectors of outputs at a time hide
    part of the latency of these chains.

    h : (n_in,). w : (n_in, n_out). init : (n_out,) and init_step 1, or one vector for all outputs and init_step 0; may
    be z itself. z : (n_out,), overwritten. No checks: the caller validates.
    """
    lanes = lanes_of(w)
    j = 0
    while j + 4 * lanes <= n_out:
        z0, z1 = load(init, j * init_step), load(init, (j + lanes) * init_step)
        z2, z3 = load(init, (j + 2 * lanes) * init_step), load(init, (j + 3 * lanes) * init_step)
        for k in range(n_in):
            i, h_k = k * n_out + j, splat(w, h[k])
            z0, z1 = fma(h_k, load(w, i), z0), fma(h_k, load(w, i + lanes), z1)
            z2, z3 = fma(h_k, load(w, i + 2 * lanes), z2), fma(h_k, load(w, i + 3 * lanes), z3)
        store(z, j, z0)
        store(z, j + lanes, z1)
        store(z, j + 2 * lanes, z2)
        store(z, j + 3 * lanes, z3)
        j += 4 * lanes
    while j < n_out:
        left = n_out - j
        total = load_upto(init, j * init_step, left)
        for k in range(n_in):
            total = fma(splat(w, h[k]), load_upto(w, k * n_out + j, left), total)
        store_upto(z, j, total, left)
        j += lanes


@inline
def _add_products(x, y, start, stop, total):
    """The total, with the products of the elements start..stop-1 of x and y added lane by lane."""
    for j in range(start, stop, lanes_of(x)):
        total = fma(load_upto(x, j, stop - j), load_upto(y, j, stop - j), total)
    return total


@leaf(lambda T: types.void(types.CPointer(T), types.CPointer(T), types.CPointer(T), types.intp, types.intp))
def multiply_column(w, dz, dh, n_in, n_out):
    """dh = w @ dz for one sample: a dot product per row of w, summed over lanes and then across them by a fixed tree.

    w : (n_in, n_out). dz : (n_out,). dh : (n_in,), overwritten. No checks: the caller validates.
    """
    n_part = part_of(n_out)
    for i in range(n_in):
        row, part = offset(w, i * n_out), splat(w, 0)
        total = _add_products(row, dz, 0, n_part, part)
        for start in range(n_part, n_out, PART):
            total, part = add_part(total, _add_products(row, dz, start, min(start + PART, n_out), part))
        dh[i] = sum_lanes(total)


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
