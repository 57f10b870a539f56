"""The transposes in registers: every size up to a whole square, and nothing touched beyond it."""

import numpy as np
import pytest
from numba import types

from fastbp._jit import leaf
from fastbp.kernels.target import lanes
from fastbp.kernels.transpose import transpose_rows, transpose_square
from guards import guarded, needs_guard_pages
from leaves import call

pytestmark = needs_guard_pages


@leaf(lambda T: types.void(types.CPointer(T), types.intp, types.CPointer(T), types.intp, types.intp, types.intp))
def square(src, src_row, dst, dst_row, n_rows, n_cols):
    transpose_square(src, src_row, dst, dst_row, n_rows, n_cols)


@leaf(
    lambda T: types.void(types.CPointer(types.int64), types.intp, types.CPointer(T), types.intp, types.intp, types.intp)
)
def scattered_rows(addresses, column, dst, dst_row, n_rows, n_cols):
    transpose_rows(addresses, column, dst, dst_row, n_rows, n_cols)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("at_start", [False, True])
def test_transpose_square_any_size_transposes_and_touches_nothing_else(at_start, dtype):
    n = lanes(dtype)
    for n_rows in range(1, n + 1):
        for n_cols in range(1, n + 1):
            src = guarded(np.arange(n_rows * n_cols, dtype=dtype).reshape(n_rows, n_cols), at_start)
            dst = guarded(np.full((n_cols, n_rows), -1, dtype), at_start)
            call(square, dtype, src, n_cols, dst, n_rows, n_rows, n_cols)
            np.testing.assert_array_equal(dst, src.T)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_transpose_square_more_than_a_square_does_one_square(dtype):
    n = lanes(dtype)
    src = np.arange((n + 3) * (n + 2), dtype=dtype).reshape(n + 3, n + 2)
    dst = np.full((n + 2, n + 3), -1, dtype)
    expected = dst.copy()
    expected[:n, :n] = src[:n, :n].T
    call(square, dtype, src, n + 2, dst, n + 3, n + 3, n + 2)
    np.testing.assert_array_equal(dst, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_transpose_rows_anywhere_transposes_from_the_column_on(dtype):
    n = lanes(dtype)
    for n_rows in range(1, n + 1):
        for n_cols in range(1, n + 1):
            rows = [guarded(np.arange(n_cols + 2, dtype=dtype) + 100 * i) for i in range(n_rows)]
            addresses = guarded(np.array([row.ctypes.data for row in rows], np.int64))
            dst = guarded(np.full((n_cols, n_rows), -1, dtype))
            call(scattered_rows, dtype, addresses, 2, dst, n_rows, n_rows, n_cols)
            np.testing.assert_array_equal(dst, np.stack(rows)[:, 2:].T)
