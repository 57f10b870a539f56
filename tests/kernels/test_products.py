"""The matrix product's leaves against NumPy, with every operand beside a guard page.

Operands hold small integers: the products are exact, so the results must equal NumPy's in every bit. They are random
where the order of the sums matters.
"""

import numpy as np
import pytest

from fastbp.kernels.panels import panel_width
from fastbp.kernels.products.dense import multiply_column, multiply_panel, multiply_row
from fastbp.kernels.products.gradient import add_rows, narrow_gradient
from fastbp.kernels.products.packed import pack_columns, pack_rows
from fastbp.kernels.products.tile import TILE_ROWS
from fastbp.kernels.sums import LONG, PART
from fastbp.kernels.target import lanes
from guards import guarded, needs_guard_pages
from leaves import call, panels_of

pytestmark = needs_guard_pages

DTYPES = ["float32", "float64"]
SIZES = [1, 2, 3, 5, 7, 8, 9, 11, 12, 13, 16, 20, 25, 33]
CANARY = -77.0


def multiply(n_m, n_left, a, a_row, a_k, b, b_k, c, c_row, init, init_row, n_inner, *,
             a_tile=None, a_outer=0, ones=0, init_is_column=0, n_outer=1):  # fmt: skip
    """`multiply_panel` of the dtype of c, the arguments for the usual case left out."""
    a_tile = TILE_ROWS * a_row if a_tile is None else a_tile
    call(multiply_panel, c.dtype, n_m, n_left, a, a_tile, a_row, a_k, a_outer, ones, b, b_k, c, c_row,
         init, init_row, init_is_column, n_inner, n_outer)  # fmt: skip


def integers(rng, *shape):
    return rng.integers(-8, 9, shape).astype(float)


def padded(matrix, row, dtype, at_start=False):
    """The rows of a matrix `row` apart in a flat guarded array that ends with the last of them; canaries in between."""
    flat = np.full((len(matrix) - 1) * row + matrix.shape[1], CANARY, dtype)
    guard = guarded(flat, at_start)
    rows_of(guard, *matrix.shape, row)[...] = matrix
    return guard


def rows_of(flat, n_rows, n_columns, row):
    return np.lib.stride_tricks.as_strided(flat, (n_rows, n_columns), (row * flat.itemsize, flat.itemsize))


def outside(flat, n_columns, row):
    """What lies between the rows."""
    return flat[np.arange(flat.size) % row >= n_columns]


def widths(dtype):
    """Columns of a panel: all edges of its vectors."""
    panel = panel_width(dtype)
    edges = [*SIZES, panel // 2 - 1, panel // 2, panel // 2 + 1, panel - 1, panel]
    return sorted({n for n in edges if 1 <= n <= panel})


@pytest.mark.parametrize("at_start", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_multiply_panel_any_size_equals_numpy(dtype, at_start):
    rng = np.random.default_rng(0)
    for n_m in SIZES:
        for n_left in widths(dtype):
            for n_k in (1, 2, 7, 33):
                a, b, init = integers(rng, n_m, n_k), integers(rng, n_k, n_left), integers(rng, n_m, n_left)
                c = padded(np.zeros_like(init), n_left + 3, dtype, at_start)
                multiply(
                    n_m, n_left,
                    padded(a, n_k + 2, dtype, at_start), n_k + 2, 1,
                    padded(b, n_left + 1, dtype, at_start), n_left + 1,
                    c, n_left + 3,
                    padded(init, n_left, dtype, at_start), n_left,
                    n_k,
                )  # fmt: skip
                np.testing.assert_array_equal(rows_of(c, n_m, n_left, n_left + 3), init + a @ b)
                assert (outside(c, n_left, n_left + 3) == CANARY).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_multiply_panel_more_columns_than_a_panel_stays_inside(dtype):
    rng = np.random.default_rng(1)
    panel, n_m, n_k = panel_width(dtype), 9, 4
    a, b = integers(rng, n_m, n_k).astype(dtype), integers(rng, n_k, panel + 5).astype(dtype)
    zeros, c = guarded(np.zeros(panel, dtype)), guarded(np.full((n_m, panel + 5), CANARY, dtype))
    multiply(n_m, panel + 5, guarded(a), n_k, 1, guarded(b), panel + 5, c, panel + 5, zeros, 0, n_k)
    np.testing.assert_array_equal(c[:, :panel], (a @ b)[:, :panel])
    assert (c[:, panel:] == CANARY).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_multiply_panel_column_of_init_is_added_to_every_column(dtype):
    rng = np.random.default_rng(2)
    for n_m in SIZES:
        for n_left in widths(dtype):
            shapes = (5, n_m), (5, n_left), (n_m,)
            w, h, bias = (guarded(integers(rng, *shape).astype(dtype)) for shape in shapes)
            z = guarded(np.empty((n_m, n_left), dtype))
            multiply(n_m, n_left, w, 1, n_m, h, n_left, z, n_left, bias, 1, 5, init_is_column=1)
            np.testing.assert_array_equal(z, w.T @ h + bias[:, np.newaxis])


@pytest.mark.parametrize("dtype", DTYPES)
def test_multiply_panel_init_is_c_accumulates(dtype):
    rng = np.random.default_rng(3)
    a, b, start = (integers(rng, *shape).astype(dtype) for shape in ((13, 6), (6, 3), (13, 3)))
    c = guarded(start)
    for _ in range(2):
        multiply(13, 3, guarded(a), 6, 1, guarded(b), 3, c, 3, c, 3, 6)
    np.testing.assert_array_equal(c, start + 2 * (a @ b))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_m", SIZES)
def test_multiply_panel_ones_row_adds_columns_of_b(n_m, dtype):
    rng = np.random.default_rng(4)
    width, n_outer = panel_width(dtype), 3
    # The operands of a gradient: h in n_outer panels of (n_m - 1, width), below them a row of ones.
    h, dz = integers(rng, n_outer, n_m - 1, width), integers(rng, n_outer * width, 3)
    expected = np.vstack([np.concatenate(h, axis=1) @ dz, dz.sum(axis=0)])
    ones, zeros = guarded(np.ones(width, dtype)), guarded(np.zeros(3, dtype))
    dw = guarded(np.empty((n_m, 3), dtype))
    multiply(
        n_m, 3, guarded(h.astype(dtype)), width, 1, guarded(dz.astype(dtype)), 3, dw, 3, zeros, 0, width,
        a_outer=(n_m - 1) * width, ones=ones, n_outer=n_outer,
    )  # fmt: skip
    np.testing.assert_array_equal(dw, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_inner", "n_outer"), [(1, 1), (1, 5), (3, 4), (7, 2), (33, 3)])
def test_multiply_panel_two_levels_of_k_equal_one(n_inner, n_outer, dtype):
    rng = np.random.default_rng(5)
    n_m, n_left, n_k = 13, 3, n_inner * n_outer
    a, b, init = (rng.normal(size=shape).astype(dtype) for shape in ((n_m, n_k), (n_k, n_left), (n_m, n_left)))
    in_blocks = guarded(a.reshape(n_m, n_outer, n_inner).transpose(1, 0, 2))
    one, two = guarded(np.empty_like(init)), guarded(np.empty_like(init))
    multiply(n_m, n_left, guarded(a), n_k, 1, guarded(b), n_left, one, n_left, guarded(init), n_left, n_k)
    multiply(
        n_m, n_left, in_blocks, n_inner, 1, guarded(b), n_left, two, n_left, guarded(init), n_left, n_inner,
        a_outer=n_m * n_inner, n_outer=n_outer,
    )  # fmt: skip
    np.testing.assert_array_equal(two, one)
    tolerance = n_k * 10 * np.finfo(dtype).eps
    np.testing.assert_allclose(one, init + a.astype(float) @ b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_m", [*SIZES, 40, 100, 127, 128])
@pytest.mark.parametrize("by_columns", [False, True])
def test_multiply_panel_copied_and_in_pieces_of_k_gives_the_same_bits(by_columns, n_m, dtype):
    rng = np.random.default_rng(6)
    n_k, cut, n_left, row = 21, 8, panel_width(dtype) - 1, n_m + 4
    w = padded(rng.normal(size=(n_k, n_m)), row, dtype)
    h, bias = guarded(rng.normal(size=(n_k, n_left)).astype(dtype)), guarded(rng.normal(size=n_m).astype(dtype))
    expected, actual = guarded(np.empty((n_m, n_left), dtype)), guarded(np.empty((n_m, n_left), dtype))
    multiply(n_m, n_left, w, 1, row, h, n_left, expected, n_left, bias, 1, n_k, init_is_column=1)
    block_row = -(-n_m // lanes(dtype)) * lanes(dtype) + lanes(dtype)
    block_tile = n_k * TILE_ROWS + lanes(dtype)
    for first, last in ((0, cut), (cut, n_k)):
        n = last - first
        if by_columns:
            block, tile, step = np.full(-(-n_m // TILE_ROWS) * block_tile, CANARY, dtype), block_tile, TILE_ROWS
            call(pack_columns, dtype, w[first * row :], row, n, n_m, block, block_tile)
        else:
            block, tile, step = np.full(n * block_row, CANARY, dtype), None, block_row
            call(pack_rows, dtype, w[first * row :], row, n, n_m, block, block_row)
        init, init_row, is_column = (bias, 1, 1) if first == 0 else (actual, n_left, 0)
        multiply(
            n_m, n_left, block, 1, step, h[first:], n_left, actual, n_left, init, init_row, n, init_is_column=is_column,
            a_tile=tile,
        )  # fmt: skip
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_multiply_panel_outputs_as_columns_give_the_same_bits_as_samples_as_columns(dtype):
    rng = np.random.default_rng(7)
    panel = panel_width(dtype)
    n_in, n_out = 33, 2 * panel + 3
    w, h, bias = (rng.normal(size=shape).astype(dtype) for shape in ((n_in, n_out), n_in, n_out))
    expected, actual = np.empty(n_out, dtype), np.empty(n_out, dtype)
    multiply(n_out, 1, w, 1, n_out, h, 1, expected, 1, bias, 1, n_in, init_is_column=1)
    for j in range(0, n_out, panel):
        multiply(1, n_out - j, h, 1, 1, w[:, j:], n_out, actual[j:], n_out, bias[j:], 0, n_in)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("at_start", [False, True])
def test_pack_rows_any_size_keeps_the_values_and_writes_whole_vectors(at_start, dtype):
    rng = np.random.default_rng(8)
    for n_rows in (1, 4, 9):
        for n_columns in [*SIZES, 100]:
            a = rng.normal(size=(n_rows, n_columns)).astype(dtype)
            whole = -(-n_columns // lanes(dtype)) * lanes(dtype)
            row = whole + 3
            block = guarded(np.full((n_rows - 1) * row + whole, CANARY, dtype), at_start)
            call(
                pack_rows,
                dtype,
                padded(a, n_columns + 1, dtype, at_start),
                n_columns + 1,
                n_rows,
                n_columns,
                block,
                row,
            )
            np.testing.assert_array_equal(rows_of(block, n_rows, n_columns, row), a)
            assert (outside(block, whole, row) == CANARY).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("at_start", [False, True])
def test_pack_columns_any_size_puts_tiles_one_behind_the_other(at_start, dtype):
    rng = np.random.default_rng(8)
    for n_rows in (1, 4, 9):
        for n_columns in [*SIZES, 100]:
            a = rng.normal(size=(n_rows, n_columns)).astype(dtype)
            n_tiles, used = -(-n_columns // TILE_ROWS), n_rows * TILE_ROWS + lanes(dtype)
            tile = used + 3
            packed = guarded(np.full(n_tiles * tile, CANARY, dtype), at_start)
            source = padded(a, n_columns + 1, dtype, at_start)
            call(pack_columns, dtype, source, n_columns + 1, n_rows, n_columns, packed, tile)
            tiles = packed.reshape(n_tiles, tile)[:, : n_rows * TILE_ROWS].reshape(n_tiles, n_rows, TILE_ROWS)
            np.testing.assert_array_equal(np.concatenate(tiles, axis=1)[:, :n_columns], a)
            assert (packed.reshape(n_tiles, tile)[:, used:] == CANARY).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("at_start", [False, True])
def test_multiply_row_any_size_and_start_equals_numpy(at_start, dtype):
    rng = np.random.default_rng(11)
    one_vector = guarded(np.full(panel_width(dtype), 3, dtype))
    for n_in in (1, 3, 8):
        for n_out in [*SIZES, 4 * lanes(dtype), 4 * lanes(dtype) + 1, 100]:
            h, w, z = (
                guarded(integers(rng, *shape).astype(dtype), at_start) for shape in ((n_in,), (n_in, n_out), (n_out,))
            )
            start = z.copy()
            for init, step, expected in ((guarded(z, at_start), 1, start), (one_vector, 0, 3), (z, 1, 3 + h @ w)):
                call(multiply_row, dtype, h, w, init, step, z, n_in, n_out)
                np.testing.assert_array_equal(z, expected + h @ w)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("at_start", [False, True])
def test_multiply_column_any_size_equals_numpy(at_start, dtype):
    rng = np.random.default_rng(9)
    for n_in in SIZES:
        for n_out in [*SIZES, 31, 32, 100]:
            w, dz = (guarded(integers(rng, *shape).astype(dtype), at_start) for shape in ((n_in, n_out), (n_out,)))
            dh = guarded(np.empty(n_in, dtype), at_start)
            call(multiply_column, dtype, w, dz, dh, n_in, n_out)
            np.testing.assert_array_equal(dh, w @ dz)


@pytest.mark.parametrize("n_out", [LONG - 1, LONG, LONG + 1, LONG + PART + 3, 10**6])
def test_multiply_column_over_any_number_of_outputs_is_right(n_out):
    rng = np.random.default_rng(12)
    # Terms that are alike: the roundings of a plain chain go the same way for thousands of them.
    w = np.broadcast_to(rng.uniform(0.1, 1, (5, 1)), (5, n_out)).astype(np.float32)
    dz, dh = np.full(n_out, 0.7, np.float32), np.empty(5, np.float32)
    call(multiply_column, "float32", w, dz, dh, 5, n_out)
    np.testing.assert_allclose(dh, w.astype(float) @ dz, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("at_start", [False, True])
def test_narrow_gradient_any_size_equals_numpy(at_start, dtype):
    rng = np.random.default_rng(10)
    panel = panel_width(dtype)
    for n_samples in [*SIZES, panel - 1, panel, panel + 1, 2 * panel + lanes(dtype), 3 * panel]:
        for n_in in (1, 3, 8, 33):
            h, dz = integers(rng, n_samples, n_in).astype(dtype), integers(rng, n_samples).astype(dtype)
            expected = np.append(h.T @ dz, dz.sum())
            for first, n_rows in ((0, n_in + 1), (n_in, 1), (n_in // 2, n_in - n_in // 2)):
                operands = guarded(panels_of(h), at_start), n_in, first, n_rows, guarded(dz, at_start), n_samples
                for g_row in (1, 3):
                    g = padded(np.full((n_rows, 1), np.nan), g_row, dtype, at_start)
                    for accumulate, times in ((0, 1), (1, 2)):
                        call(narrow_gradient, dtype, *operands, g, g_row, accumulate)
                        np.testing.assert_array_equal(g[::g_row], times * expected[first : first + n_rows])
                    assert (outside(g, 1, g_row) == CANARY).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("at_start", [False, True])
def test_add_rows_any_size_adds_in_the_order_of_the_rows(at_start, dtype):
    rng = np.random.default_rng(9)
    for n in SIZES:
        for n_rows in (1, 2, 5):
            rows = np.full((n_rows, n + 3), np.nan, dtype)
            rows[:, :n] = rng.normal(size=(n_rows, n))
            flat = guarded(rows.ravel()[: (n_rows - 1) * (n + 3) + n], at_start)
            for accumulate in (0, 1, 5):
                out = guarded(rng.normal(size=n).astype(dtype), at_start)
                expected = out * (accumulate > 0)
                for row in rows:
                    expected += row[:n]
                call(add_rows, dtype, flat, n + 3, n_rows, out, n, accumulate)
                np.testing.assert_array_equal(out, expected)
