"""The lists of what is not zero, and the product with them, against NumPy, with every operand beside a guard page.

Operands hold small integers: the products are exact, so the results must equal NumPy's in every bit.
"""

from itertools import pairwise

import numpy as np
import pytest

from fastbp.kernels.panels import panel_width
from fastbp.kernels.products.lists import list_nonzeros, multiply_nonzeros, strip_width
from fastbp.kernels.target import lanes
from guards import guarded, needs_guard_pages
from leaves import call, panels_of

pytestmark = needs_guard_pages

DTYPES = ["float32", "float64"]
N_SAMPLES = [1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64]
DENSITIES = [0.0, 0.1, 0.5, 1.0]


def sparse_integers(rng, density, *shape):
    return rng.integers(1, 9, shape) * rng.choice([-1, 1], shape) * (rng.random(shape) < density)


def listed(d, at_start=False):
    """`list_nonzeros` of a matrix of samples: values, indices, indptr and sums."""
    n_samples, n_features = d.shape
    n_entries = d.size + lanes(d.dtype)
    values, indices = guarded(np.zeros(n_entries, d.dtype), at_start), guarded(np.zeros(n_entries, np.uint16), at_start)
    indptr, sums = (
        guarded(np.zeros(n_features + 1, np.int64), at_start),
        guarded(np.zeros(n_features, d.dtype), at_start),
    )
    panels = guarded(panels_of(d), at_start)
    call(list_nonzeros, d.dtype, panels, n_features, n_samples, values, indices, indptr, sums)
    return values, indices, indptr, sums


def grouped(h, n_groups, at_start=False):
    """The rows of h by groups of panel_width columns, flat; what no column fills is NaN."""
    panel = panel_width(h.dtype)
    groups = np.full((n_groups, len(h), panel), np.nan, h.dtype)
    for group in range(n_groups):
        columns = h[:, group * panel : (group + 1) * panel]
        groups[group, :, : columns.shape[1]] = columns
    return guarded(groups, at_start)


@pytest.mark.parametrize("at_start", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("density", DENSITIES)
def test_list_nonzeros_holds_each_sample_that_is_not_zero_in_order(dtype, density, at_start):
    rng = np.random.default_rng(0)
    for n_samples in N_SAMPLES:
        for n_features in (1, 2, 5, 19):
            d = sparse_integers(rng, density, n_samples, n_features).astype(dtype)
            values, indices, indptr, sums = listed(d, at_start)
            for f, (start, stop) in enumerate(pairwise(indptr)):
                (samples,) = np.nonzero(d[:, f])
                np.testing.assert_array_equal(indices[start:stop], samples * panel_width(d.dtype))
                np.testing.assert_array_equal(values[start:stop], d[samples, f])
            assert indptr[0] == 0
            assert indptr[-1] == np.count_nonzero(d)
            np.testing.assert_array_equal(sums, d.sum(axis=0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_list_nonzeros_keeps_nan_and_infinity_and_drops_negative_zero(dtype):
    d = np.array([[np.nan, -0.0], [0.0, np.inf], [-0.0, 0.0]], dtype)
    values, indices, indptr, sums = listed(d)
    assert list(indptr) == [0, 1, 2]
    np.testing.assert_array_equal(values[:2], [np.nan, np.inf])
    np.testing.assert_array_equal(indices[:2], [0, panel_width(d.dtype)])
    np.testing.assert_array_equal(sums, [np.nan, np.inf])


@pytest.mark.parametrize("at_start", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_multiply_nonzeros_equals_numpy(dtype, at_start):
    rng, dtype = np.random.default_rng(1), np.dtype(dtype)
    panel, width = panel_width(dtype), lanes(dtype)
    for n_inputs in range(1, strip_width(dtype) + 1):
        n_samples, n_outputs = rng.choice(N_SAMPLES), rng.integers(1, 6)
        n_groups, n_written = -(-n_inputs // panel), -(-n_inputs // width) * width
        h = rng.integers(-8, 9, (n_samples, n_inputs)).astype(dtype)
        d = sparse_integers(rng, rng.choice(DENSITIES), n_samples, n_outputs).astype(dtype)
        values, indices, indptr, _ = listed(d, at_start)
        operands = values, indices, indptr, n_outputs, grouped(h, n_groups, at_start), panel * n_samples
        c = guarded(np.full((n_groups, n_outputs, panel), np.nan, dtype), at_start)
        row = rng.integers(-8, 9, n_groups * panel).astype(dtype)
        expected, group = d.T @ h + row[:n_inputs], panel * n_outputs
        for init, init_row, init_group in ((guarded(row, at_start), 0, panel), (c, panel, group)):
            call(multiply_nonzeros, dtype, *operands, c, group, init, init_row, init_group, n_inputs)
            flat = c.transpose(1, 0, 2).reshape(n_outputs, n_groups * panel)
            np.testing.assert_array_equal(flat[:, :n_inputs], expected)
            assert np.isnan(flat[:, n_written:]).all()
            expected = expected + d.T @ h


@pytest.mark.parametrize("dtype", DTYPES)
def test_multiply_nonzeros_of_any_lists_gives_the_same_bits(dtype):
    rng, dtype = np.random.default_rng(2), np.dtype(dtype)
    panel, n_inputs, n_samples, n_outputs = panel_width(dtype), strip_width(dtype), 64, 12
    n_groups = n_inputs // panel
    h = rng.standard_normal((n_samples, n_inputs)).astype(dtype)
    d = rng.standard_normal((n_samples, n_outputs)).astype(dtype) * (rng.random((n_samples, n_outputs)) < 0.5)
    values, indices, indptr, _ = listed(d.astype(dtype))

    def product(first, last):
        c = guarded(np.zeros((n_groups, last - first, panel), dtype))
        call(multiply_nonzeros, dtype, values, indices, indptr[first:], last - first, grouped(h, n_groups),
             panel * n_samples, c, panel * (last - first), np.zeros(panel, dtype), 0, 0, n_inputs)  # fmt: skip
        return c

    whole = product(0, n_outputs)
    for first, last in ((0, 1), (3, 7), (11, 12)):
        np.testing.assert_array_equal(product(first, last), whole[:, first:last])
