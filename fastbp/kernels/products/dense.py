"""Products of a layer for some samples: y = init + a @ x, forward and backward alike.

Forward a is w.T and init the biases; backward a is w and init zeros: strides say which (`tables.PRODUCT`). x and y are
panels of samples. Each output is its init plus FMAs in the order of the terms, part by part (`sums`), whichever way it
is computed: so the ways have the same bits, and which one is taken is a question of time alone. `plan.py` decides it.
"""

from numba import types

from fastbp._jit import inline, leaf
from fastbp.kernels.calls import call
from fastbp.kernels.products.tile import TILE_ROWS, multiply_tiles
from fastbp.kernels.simd import (
    address_of,
    fma,
    lanes_of,
    load,
    load_first,
    load_upto,
    offset,
    splat,
    store,
    store_first,
    sum_lanes,
)
from fastbp.kernels.sums import LONG, PART, add_part, end_part, part_of, place_of_part, start_of_part
from fastbp.kernels.transpose import to_panels


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


@inline
def multiply_row_at(h, w, init, init_step, z, n_in, n_out):
    """As `multiply_row`, inlined."""
    lanes = lanes_of(w)
    j = 0
    while j + 4 * lanes <= n_out:
        z0, z1 = load(init, j * init_step), load(init, (j + lanes) * init_step)
        z2, z3 = load(init, (j + 2 * lanes) * init_step), load(init, (j + 3 * lanes) * init_step)
        i = j
        for k in range(n_in):
            h_k = splat(w, h[k])
            z0, z1 = fma(h_k, load(w, i), z0), fma(h_k, load(w, i + lanes), z1)
            z2, z3 = fma(h_k, load(w, i + 2 * lanes), z2), fma(h_k, load(w, i + 3 * lanes), z3)
            i += n_out
        store(z, j, z0)
        store(z, j + lanes, z1)
        store(z, j + 2 * lanes, z2)
        store(z, j + 3 * lanes, z3)
        j += 4 * lanes
    if j + 2 * lanes <= n_out:
        z0, z1, i = load(init, j * init_step), load(init, (j + lanes) * init_step), j
        for k in range(n_in):
            h_k = splat(w, h[k])
            z0, z1 = fma(h_k, load(w, i), z0), fma(h_k, load(w, i + lanes), z1)
            i += n_out
        store(z, j, z0)
        store(z, j + lanes, z1)
        j += 2 * lanes
    if j + lanes <= n_out:
        z0, i = load(init, j * init_step), j
        for k in range(n_in):
            z0 = fma(splat(w, h[k]), load(w, i), z0)
            i += n_out
        store(z, j, z0)
        j += lanes
    if j < n_out:
        left, i = n_out - j, j
        z0 = load_first(init, j * init_step, left)
        for k in range(n_in):
            z0 = fma(splat(w, h[k]), load_first(w, i, left), z0)
            i += n_out
        store_first(z, j, z0, left)


@leaf(lambda T: types.void(types.CPointer(T), types.CPointer(T), types.CPointer(T), types.intp, types.CPointer(T),
                           types.intp, types.intp))  # fmt: skip
def multiply_row(h, w, init, init_step, z, n_in, n_out):
    """z = init + h @ w for one sample: the lanes run over the outputs, as a row of w is contiguous.

    Each output is its init plus FMAs in the order of k, as in `multiply_panel`. Four vectors of outputs at a time hide
    part of the latency of these chains.

    h : (n_in,). w : (n_in, n_out). init : (n_out,) and init_step 1, or one vector for all outputs and init_step 0; may
    be z itself. z : (n_out,), overwritten. No checks: the caller validates.
    """
    multiply_row_at(h, w, init, init_step, z, n_in, n_out)


@inline
def _add_products(x, y, start, stop, total):
    """The total, with the products of the elements start..stop-1 of x and y added lane by lane."""
    for j in range(start, stop, lanes_of(x)):
        total = fma(load_upto(x, j, stop - j), load_upto(y, j, stop - j), total)
    return total


@inline
def _multiply_four(w, dz, dh, n_out):
    """Four rows of `multiply_column`, side by side: each sum as there."""
    total_0 = total_1 = total_2 = total_3 = splat(w, 0)
    whole = n_out - n_out % lanes_of(w)
    for j in range(0, whole, lanes_of(w)):
        d = load(dz, j)
        total_0, total_1 = fma(load(w, j), d, total_0), fma(load(w, n_out + j), d, total_1)
        total_2, total_3 = fma(load(w, 2 * n_out + j), d, total_2), fma(load(w, 3 * n_out + j), d, total_3)
    left = n_out - whole
    if left > 0:
        d = load_first(dz, whole, left)
        total_0 = fma(load_first(w, whole, left), d, total_0)
        total_1 = fma(load_first(w, n_out + whole, left), d, total_1)
        total_2 = fma(load_first(w, 2 * n_out + whole, left), d, total_2)
        total_3 = fma(load_first(w, 3 * n_out + whole, left), d, total_3)
    dh[0], dh[1], dh[2], dh[3] = sum_lanes(total_0), sum_lanes(total_1), sum_lanes(total_2), sum_lanes(total_3)


@leaf(lambda T: types.void(types.CPointer(T), types.CPointer(T), types.CPointer(T), types.intp, types.intp))
def multiply_column(w, dz, dh, n_in, n_out):
    """dh = w @ dz for one sample: a dot product per row of w, summed over lanes and then across them by a fixed tree.

    w : (n_in, n_out). dz : (n_out,). dh : (n_in,), overwritten. No checks: the caller validates.
    """
    n_part, first = part_of(n_out), 0
    if n_part == n_out:
        first = n_in - n_in % 4
        for i in range(0, first, 4):
            _multiply_four(offset(w, i * n_out), dz, offset(dh, i), n_out)
    for i in range(first, n_in):
        row, part = offset(w, i * n_out), splat(w, 0)
        total = _add_products(row, dz, 0, n_part, part)
        for start in range(n_part, n_out, PART):
            total, part = add_part(total, _add_products(row, dz, start, min(start + PART, n_out), part))
        dh[i] = sum_lanes(total)


@inline
def multiply(plan, n_rows, width, a, a_strides, x, x_row, y, init, n_terms):
    """Write y = init + a @ x for one panel of columns, at once.

    a_strides : elements between two tiles, rows and terms. x : rows x_row apart. y : n_rows of `width`, a panel at
    most. init : its address, the elements between two rows, and whether it is a column.
    """
    call(
        plan.leaves.multiply_panel,
        (n_rows, width, a, *a_strides, 0, 0, x, x_row, y, width, *init, n_terms, 1),
    )


@inline
def multiply_some(plan, n_rows, width, a, a_strides, x, x_row, y, partial, init, k, n_k, n_terms):
    """Terms k..k+n_k-1, where a and x begin, of the product as in `multiply`; the others come before and after.

    They belong to one part of the sum, which goes to `partial` (as y) unless it is the first.
    """
    place = place_of_part(k, n_terms, y, partial)
    multiply(plan, n_rows, width, a, a_strides, x, x_row, place,
             start_of_part(plan, k, n_terms, init, (place, width, 0)), n_k)  # fmt: skip
    end_part(plan, k + n_k, n_terms, y, partial, n_rows * width)


@inline
def multiply_all(plan, n_rows, width, a, a_row, a_k, x, x_row, y, init, n_terms):
    """All terms of the product as in `multiply`, part by part."""
    size, a_strides = plan.sizes.itemsize, (TILE_ROWS * a_row, a_row, a_k)
    if n_terms <= LONG:  # straight away: 1 % of a step of small layers
        multiply(plan, n_rows, width, a, a_strides, x, x_row, y, init, n_terms)
        return
    for k in range(0, n_terms, PART):
        multiply_some(plan, n_rows, width, a + k * a_k * size, a_strides, x + k * x_row * size, x_row, y,
                      plan.scratch.partial, init, k, min(PART, n_terms - k), n_terms)  # fmt: skip


@inline
def dense(plan, product, x, y, n, is_alone):
    """Write y = init + a @ x for n samples in panels.

    is_alone : whether this is a single sample whose sums may go over the lanes first. Backward that is another order,
    which must not depend on how a step is cut into blocks.
    """
    if is_alone:
        dense_of_one(plan, product, x, y, plan.scratch.partial)
    elif n <= product.few_to:
        _of_few(plan, product, x, y, n)
    elif n >= product.lists_from:
        call(plan.leaves.dense_of_lists, (address_of(plan), address_of(product), x, y, n))
    elif n >= product.packed_from:
        call(plan.leaves.dense_packed, (address_of(plan), address_of(product), x, y, n))
    else:
        dense_in_panels(plan, product, x, y, n, 0)


@inline
def dense_in_panels(plan, product, x, y, n, first):
    """As `dense`, panel by panel, with a as it lies; of the rows from `first` on."""
    size, panel, n_terms, n_rows = plan.sizes.itemsize, plan.sizes.panel, product.n_terms, product.n_rows
    a, init = product.a + first * product.a_row * size, product.init + first * product.init_row * size
    for start in range(0, n, panel):
        width = min(panel, n - start)
        multiply_all(plan, n_rows - first, width, a, product.a_row, product.a_k, x + start * n_terms * size, width,
                     y + (start * n_rows + first * width) * size, (init, product.init_row, product.init_is_column),
                     n_terms)  # fmt: skip


@inline
def dense_of_one(plan, product, x, y, partial):
    """As `dense` for one sample: the lanes run over the outputs, forward the rows of y, backward the terms.

    partial : room for sums as y.
    """
    size, n_terms, n_rows = plan.sizes.itemsize, product.n_terms, product.n_rows
    if product.is_backward != 0:
        call(plan.leaves.multiply_column, (product.a, x, y, n_rows, n_terms))
        return
    part = part_of(n_terms)
    for k in range(0, n_terms, part):
        n_k, place = min(part, n_terms - k), place_of_part(k, n_terms, y, partial)
        start, step, _ = start_of_part(plan, k, n_terms, (product.init, product.init_row, 0), (place, 1, 0))
        call(plan.leaves.multiply_row, (x + k * size, product.a + k * n_rows * size, start, step, place, n_k, n_rows))
        end_part(plan, k + n_k, n_terms, y, partial, n_rows)


@inline
def _of_few(plan, product, x, y, n):
    """As `dense`, forward, for a few samples, which would leave most lanes empty: the lanes run over the outputs."""
    size, panel, rows = plan.sizes.itemsize, plan.sizes.panel, plan.scratch.packed
    n_terms, n_rows = product.n_terms, product.n_rows
    for j in range(0, n_rows, panel):
        group = min(panel, n_rows - j)
        multiply_all(plan, n, group, x, 1, n, product.a + j * size, n_rows, rows + j * n * size,
                     (product.init + j * size, 0, 0), n_terms)  # fmt: skip
    to_panels(plan, rows, n, n_rows, y, 0, n_rows)
