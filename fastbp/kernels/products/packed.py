"""Products of large layers, on copies of cache blocks of w that lie as the register tile reads them."""

from numba import types

from fastbp._jit import leaf
from fastbp.kernels.calls import call
from fastbp.kernels.products.dense import multiply_some
from fastbp.kernels.products.tile import TILE_ROWS, group_size, pack_group
from fastbp.kernels.simd import lanes_of, load_upto, offset, store
from fastbp.kernels.tables import plan_at, product_at


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


@leaf(lambda T: types.void(types.intp, types.intp, types.intp, types.intp, types.intp))
def dense_packed(plan, product, x, y, n):
    """As `dense` for large layers, on packed cache blocks of w.

    Each block is packed once for all panels of the samples: columns tile by tile, as the register tile would otherwise
    read a part of a cache line for each term, and rows one behind the other.
    """
    plan, product = plan_at(plan), product_at(product)
    size, panel, packed = plan.sizes.itemsize, plan.sizes.panel, plan.scratch.packed
    n_terms, n_rows, k_block, m_block = product.n_terms, product.n_rows, product.k_block, plan.sizes.m_block
    if product.is_backward != 0:
        row = plan.sizes.packed_row
        strides = TILE_ROWS * row, row, 1
    else:
        # With room for the vector that the last row's pieces reach into.
        strides = -(-k_block * TILE_ROWS // panel) * panel + panel, 1, TILE_ROWS
    for m in range(0, n_rows, m_block):
        n_m = min(m_block, n_rows - m)
        init = product.init + m * product.init_row * size, product.init_row, product.init_is_column
        for k in range(0, n_terms, k_block):
            n_k, block = min(k_block, n_terms - k), product.a + (m * product.a_row + k * product.a_k) * size
            if product.is_backward != 0:
                call(plan.leaves.pack_rows, (block, product.a_row, n_m, n_k, packed, strides[1]))
            else:
                call(plan.leaves.pack_columns, (block, product.a_k, n_k, n_m, packed, strides[0]))
            for start in range(0, n, panel):
                width = min(panel, n - start)
                multiply_some(plan, n_m, width, packed, strides, x + (start * n_terms + k * width) * size, width,
                              y + (start * n_rows + m * width) * size, plan.scratch.partial + start * n_m * size, init,
                              k, n_k, n_terms)  # fmt: skip
