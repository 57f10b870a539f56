"""The kernels that see the user's arrays: any dtype and strides, and not one element beyond them."""

import numpy as np
import pytest

from fastbp.kernels import gather, transpose
from fastbp.kernels.panels import panel_width
from fastbp.kernels.target import lanes
from fastbp.sources import source_code
from guards import guarded, needs_guard_pages
from leaves import call, panels_of

pytestmark = needs_guard_pages

DTYPES = ["float32", "float64"]
INTEGERS = [name for name in gather.SOURCE_DTYPES if np.dtype(name).kind in "iu"]
FLOATS = [name for name in gather.SOURCE_DTYPES if np.dtype(name).kind == "f"]
SIZES = [1, 3, 7, 8, 9, 16, 17, 33]

# A view of a larger array, (n_samples, n_features), of the memory that `guarded` gives to its base.
VIEWS = {
    "C": ((1, 1), lambda base: base),
    "F": ((1, 1), lambda base: base),
    "rows reversed": ((1, 1), lambda base: base[::-1]),
    "columns reversed": ((1, 1), lambda base: base[:, ::-1]),
    "both reversed and strided": ((2, 3), lambda base: base[::-2, ::-3]),
    "every third column": ((1, 3), lambda base: base[:, ::3]),
    "one row repeated": ((1, 1), lambda base: np.broadcast_to(base[:1], base.shape)),
    "one column repeated": ((1, 1), lambda base: np.broadcast_to(base[:, :1], base.shape)),
}


def source(rng, dtype, n_samples, n_features, view="C", at_start=False):
    """An array of the user's, its base beside a guard page."""
    (row_factor, column_factor), make_view = VIEWS[view]
    shape = ((n_samples - 1) * row_factor + 1, (n_features - 1) * column_factor + 1)
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        base = rng.normal(size=shape).astype(dtype)
    elif dtype.kind == "b":
        base = rng.integers(2, size=shape).astype(dtype)
    else:
        limits = np.iinfo(dtype)
        base = rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    if view == "F":
        return guarded(base.T, at_start).T
    return make_view(guarded(base, at_start))


def gathered(x, rows, dtype):
    """The panels of some rows of x."""
    n_samples, n_features = len(rows), x.shape[1]
    panel, order = panel_width(dtype), guarded(np.asarray(rows, np.int64))
    panels = guarded(np.full(n_samples * n_features, np.nan, dtype))
    addresses, scratch = guarded(np.zeros(panel, np.int64)), guarded(np.zeros(panel * n_features, dtype))
    call(gather.gather_rows, dtype, x, *x.strides, source_code(x.dtype), order, n_samples, n_features, panels,
         addresses, scratch)  # fmt: skip
    return panels


def gathered_and_standardized(x, rows, dtype, means, factors):
    """As `gathered`, each number less its column's mean and times its factor."""
    n_samples, n_features = len(rows), x.shape[1]
    panel, order = panel_width(dtype), guarded(np.asarray(rows, np.int64))
    panels = guarded(np.full(n_samples * n_features, np.nan, dtype))
    addresses, scratch = guarded(np.zeros(panel, np.int64)), guarded(np.zeros(panel * n_features, dtype))
    call(gather.gather_standardized, dtype, x, *x.strides, source_code(x.dtype), order, n_samples, n_features, panels,
         addresses, scratch, guarded(means), guarded(factors))  # fmt: skip
    return panels


def assert_same_bits(actual, expected):
    assert actual.dtype == expected.dtype
    assert actual.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("source_dtype", gather.SOURCE_DTYPES)
def test_gather_rows_any_dtype_and_strides_casts_and_transposes(source_dtype, view, dtype):
    rng = np.random.default_rng(0)
    for n_samples, n_features in ((1, 1), (3, 7), (9, 17), (33, 3), (40, 33)):
        x = source(rng, source_dtype, n_samples, n_features, view)
        rows = rng.permutation(n_samples)
        assert_same_bits(gathered(x, rows, dtype), panels_of(x[rows].astype(dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("source_dtype", gather.SOURCE_DTYPES)
def test_gather_standardized_any_dtype_and_strides_computes_in_float64(source_dtype, view, dtype):
    rng = np.random.default_rng(0)
    for n_samples, n_features in ((1, 1), (9, 17), (40, 33)):
        x = source(rng, source_dtype, n_samples, n_features, view)
        rows, means, factors = rng.permutation(n_samples), rng.normal(size=n_features), rng.normal(size=n_features)
        expected = ((x[rows].astype(np.float64) - means) * factors).astype(dtype)
        assert_same_bits(gathered_and_standardized(x, rows, dtype, means, factors), panels_of(expected))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("at_start", [False, True])
def test_gather_rows_any_size_stays_inside(at_start, dtype):
    rng = np.random.default_rng(1)
    for n_samples in [*SIZES, panel_width(dtype) + 1]:
        for n_features in [*SIZES, lanes(dtype) - 1, lanes(dtype) + 1]:
            for source_dtype in (dtype, "int16"):
                x = source(rng, source_dtype, n_samples, n_features, at_start=at_start)
                rows = rng.integers(0, n_samples, n_samples)
                assert_same_bits(gathered(x, rows, dtype), panels_of(x[rows].astype(dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gather_rows_every_finite_float16_is_exact(dtype):
    bits = np.arange(1 << 16, dtype=np.uint16)
    x = bits.view(np.float16)
    x = x[np.isfinite(x)].reshape(-1, 31)
    assert_same_bits(gathered(x, range(len(x)), dtype), panels_of(x.astype(dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("source_dtype", ["uint64", "int64", "uint32", "int32"])
def test_gather_rows_large_integers_round_to_nearest(source_dtype, dtype):
    limits = np.iinfo(source_dtype)
    values = [limits.min, limits.max, limits.max - 1, limits.max // 2 + 1]
    # Halfway between two floats, and one beside it.
    for power in (25, 30, 54, 62):
        middle = 2**power + 2 ** (power - 24)
        values += [v for v in (middle - 1, middle, middle + 1) if v <= limits.max]
    x = np.array(values, source_dtype).reshape(-1, 1)
    assert_same_bits(gathered(x, range(len(x)), dtype), panels_of(x.astype(dtype)))


def test_gather_rows_signed_zero_and_subnormals_survive():
    x = np.array([[-0.0, 5e-324, -5e-324, 1e-310]])
    assert_same_bits(gathered(x, [0], "float64"), panels_of(x))
    x = np.array([[-0.0, 1e-45, -1e-40]], np.float32)
    assert_same_bits(gathered(x, [0], "float32"), panels_of(x))


def labels_gathered(y, rows, n_classes, dtype):
    panels = guarded(np.full(len(rows) * n_classes, np.nan, dtype))
    n_outside = call(gather.gather_labels, dtype, y, y.strides[0], source_code(y.dtype),
                     guarded(np.asarray(rows, np.int64)), len(rows), n_classes, panels)  # fmt: skip
    return panels, n_outside


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [1, 3, -1, -2])
@pytest.mark.parametrize("source_dtype", INTEGERS)
def test_gather_labels_any_dtype_and_stride_gives_one_hot_panels(source_dtype, stride, dtype):
    rng = np.random.default_rng(2)
    for n_samples, n_classes in ((1, 1), (3, 2), (9, 10), (33, 3), (70, 7)):
        base = guarded(rng.integers(0, n_classes, (n_samples - 1) * abs(stride) + 1).astype(source_dtype))
        y = base[::stride]
        rows = rng.permutation(n_samples)
        panels, n_outside = labels_gathered(y, rows, n_classes, dtype)
        assert n_outside == 0
        assert_same_bits(panels, panels_of(np.eye(n_classes, dtype=dtype)[y[rows].astype(int)]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("source_dtype", INTEGERS)
def test_gather_labels_out_of_range_are_counted_and_not_written(source_dtype, dtype):
    limits, n_classes = np.iinfo(source_dtype), 5
    y = np.array([0, n_classes, 4, limits.max, limits.min, 3, limits.max // 2 + 1], source_dtype)
    expected = np.zeros((len(y), n_classes), dtype)
    inside = (y >= 0) & (y < n_classes)
    expected[inside] = np.eye(n_classes)[y[inside].astype(int)]
    panels, n_outside = labels_gathered(guarded(y), range(len(y)), n_classes, dtype)
    assert n_outside == (~inside).sum()
    assert_same_bits(panels, panels_of(expected))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("source_dtype", FLOATS)
def test_gather_labels_float_code_is_out_of_range(source_dtype, dtype):
    panels, n_outside = labels_gathered(guarded(np.ones(3, source_dtype)), range(3), 2, dtype)
    assert n_outside == 3
    assert (panels == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("at_start", [False, True])
def test_panels_to_rows_any_size_groups_the_features(at_start, dtype):
    rng = np.random.default_rng(3)
    panel = panel_width(dtype)
    for n_samples in [*SIZES, panel, panel + 1, 2 * panel + 3]:
        for n_features in [*SIZES, panel, panel + 1, 2 * panel + 3]:
            samples = rng.normal(size=(n_samples, n_features)).astype(dtype)
            first, n_rows = 2, n_samples + 5
            out = guarded(np.full(n_rows * n_features, -1, dtype), at_start)
            expected = out.copy()
            for group in range(0, n_features, panel):
                width = min(panel, n_features - group)
                rows = expected[group * n_rows : group * n_rows + n_rows * width].reshape(n_rows, width)
                rows[first : first + n_samples] = samples[:, group : group + width]
            panels = guarded(panels_of(samples), at_start)
            call(transpose.panels_to_rows, dtype, panels, n_features, n_samples, out, first, panel * n_rows, panel,
                 n_features % panel)  # fmt: skip
            assert_same_bits(out, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_panels_to_rows_of_panels_into_a_matrix_gives_the_samples_back(dtype):
    rng = np.random.default_rng(4)
    panel = panel_width(dtype)
    for n_samples, n_features in ((1, 1), (33, 7), (9, panel), (70, 2 * panel + 1)):
        samples = rng.normal(size=(n_samples, n_features)).astype(dtype)
        out = guarded(np.empty_like(samples))
        call(transpose.panels_to_rows, dtype, guarded(panels_of(samples)), n_features, n_samples, out, 0,
             panel, n_features, n_features)  # fmt: skip
        assert_same_bits(out, samples)


@pytest.mark.parametrize("dtype", DTYPES)
def test_copy_rounds_up_to_whole_vectors_and_no_further(dtype):
    n = lanes(dtype)
    for n_elements in (1, n - 1, n, n + 1, 3 * n):
        size = -(-n_elements // n) * n
        values = np.arange(size, dtype=dtype)
        out = guarded(np.zeros(size, dtype))
        call(gather.copy, dtype, guarded(values), out, n_elements)
        np.testing.assert_array_equal(out[:n_elements], values[:n_elements])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [1, -2])
def test_gather_any_byte_of_a_bool_that_is_not_0_is_1(stride, dtype):
    values = guarded(np.arange(256, dtype=np.uint8).view(bool))[::stride]
    expected = values.view(np.uint8) != 0
    rows = np.random.default_rng(0).permutation(len(values))

    assert_same_bits(gathered(values[:, np.newaxis], rows, dtype), panels_of(expected[rows, np.newaxis].astype(dtype)))
    panels, n_outside = labels_gathered(values, rows, 2, dtype)
    assert n_outside == 0
    assert_same_bits(panels, panels_of(np.eye(2, dtype=dtype)[expected[rows].astype(int)]))


def test_source_code_is_the_place_in_source_dtypes():
    assert [source_code(np.dtype(name)) for name in gather.SOURCE_DTYPES] == list(range(len(gather.SOURCE_DTYPES)))
    for dtype in (np.longlong, np.intp):
        assert gather.SOURCE_DTYPES[source_code(np.dtype(dtype))] == np.dtype(dtype).name
