import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fastbp import arrays
from fastbp.kernels.gather import SOURCE_DTYPES
from shown import shown

KEPT_DTYPES = [np.dtype(name) for name in SOURCE_DTYPES]
FLOAT_DTYPES = [np.dtype(name) for name in ("float16", "float32", "float64")]
INTEGER_DTYPES = [dtype for dtype in KEPT_DTYPES if dtype.kind in "iu"]

# Features


def assert_is_own_view(actual, given):
    """Check that `actual` is another object on the same memory."""
    assert type(actual) is np.ndarray
    assert actual is not given
    assert actual.base is not None
    assert (actual.shape, actual.strides, actual.dtype) == (given.shape, given.strides, given.dtype)
    assert actual.ctypes.data == given.ctypes.data


@pytest.mark.parametrize("dtype", KEPT_DTYPES, ids=str)
@pytest.mark.parametrize("model_dtype", ["float32", "float64"])
def test_features_supported_dtype_is_viewed(dtype, model_dtype):
    x = np.ones((5, 3), dtype=dtype)

    assert_is_own_view(arrays.features(x, 3, model_dtype), x)


def views(x):
    """Return arrays with the values of the 2-D `x` in other orders and strides."""
    strided = np.zeros((2 * x.shape[0], 3 * x.shape[1]), dtype=x.dtype)[::2, ::3]
    strided[...] = x
    reversed_ = np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1]
    read_only = x.copy()
    read_only.flags.writeable = False
    return [x, np.asfortranarray(x), strided, reversed_, read_only]


@pytest.mark.parametrize("dtype", KEPT_DTYPES, ids=str)
def test_features_any_strides_are_not_copied(dtype):
    x = np.arange(12).reshape(4, 3).astype(dtype)

    for view in views(x):
        assert_is_own_view(arrays.features(view, 3, "float32"), view)


def test_features_broadcast_array_is_not_copied():
    x = np.broadcast_to(np.arange(3.0), (1000, 3))

    assert_is_own_view(arrays.features(x, 3, "float64"), x)


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i2", ">u8", "<f4"])
def test_features_foreign_byte_order_is_cast_to_native(dtype):
    x = np.array([[1, 2], [3, 4]], dtype=dtype)

    actual = arrays.features(x, 2, "float32")

    assert actual.dtype.isnative
    assert actual.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(actual, x)


def test_features_longdouble_is_cast_to_float64():
    actual = arrays.features(np.ones((2, 2), dtype=np.longdouble), 2, "float64")

    assert actual.dtype.itemsize == 8


def test_features_unaligned_data_is_copied():
    raw = np.zeros(4 * 8 + 1, dtype=np.uint8)
    x = raw[1:].view(np.float64).reshape(2, 2)
    assert not x.flags.aligned

    actual = arrays.features(x, 2, "float64")

    assert actual.flags.aligned
    np.testing.assert_array_equal(actual, x)


def test_features_lists_and_frames_are_converted():
    class Frame:
        def __array__(self, dtype=None, copy=None):
            return np.array([[1.0, 2.0]])

    np.testing.assert_array_equal(arrays.features([[1, 2]], 2, "float32"), [[1, 2]])
    np.testing.assert_array_equal(arrays.features(Frame(), 2, "float32"), [[1, 2]])


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((2, 2), dtype=object),
        np.zeros((2, 2), dtype=complex),
        np.array([["a", "b"]]),
        np.array([[b"a", b"b"]]),
        np.zeros((2, 2), dtype="datetime64[s]"),
        np.zeros((2, 2), dtype="timedelta64[s]"),
        np.zeros((2, 2), dtype=[("a", float)]),
        [[None, 1.0]],
        None,
    ],
    ids=lambda x: str(np.asarray(x).dtype),
)
def test_features_other_dtype_raises_type_error(x):
    with pytest.raises(TypeError, match=r"x must have a bool, integer or floating dtype, got"):
        arrays.features(x, 2, "float32")


def test_features_none_raises_type_error():
    with pytest.raises(TypeError, match="x must have a bool, integer or floating dtype, got object, as it is None"):
        arrays.features(None, 2, np.float32)


def test_features_masked_array_raises_type_error():
    with pytest.raises(TypeError, match="x must not be a masked array: fill or drop its masked values first"):
        arrays.features(np.ma.zeros((2, 2)), 2, "float32")


def test_features_ragged_list_raises_value_error():
    with pytest.raises(ValueError, match="x must be convertible to an array of numbers"):
        arrays.features([[1.0, 2.0], [3.0]], 2, "float32")


@pytest.mark.parametrize("shape", [(), (4,), (100, 3), (2, 4, 1), (4, 0)])
def test_features_wrong_shape_raises_value_error(shape):
    with pytest.raises(ValueError, match=r"x must have shape \(n_samples, 4\), got \("):
        arrays.features(np.zeros(shape), 4, "float32")


def test_features_no_samples_raises_value_error_unless_allowed():
    x = np.zeros((0, 4))

    with pytest.raises(ValueError, match=r"x must have at least one sample, got shape \(0, 4\)"):
        arrays.features(x, 4, "float32")
    assert_is_own_view(arrays.features(x, 4, "float32", allow_empty=True), x)


def test_features_name_is_in_the_message():
    with pytest.raises(ValueError, match=r"validation_data\[0\] must have shape"):
        arrays.features(np.zeros(3), 4, "float32", name="validation_data[0]")


@pytest.mark.parametrize("dtype", [*FLOAT_DTYPES, np.dtype(">f4"), np.dtype(np.longdouble)], ids=str)
@given(data=st.data())
def test_features_not_finite_raises_value_error_naming_the_first_bad_row(dtype, data):
    n_rows, n_columns = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 5))
    bad_rows = data.draw(st.lists(st.integers(0, n_rows - 1), min_size=1, unique=True))
    bad = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    x = np.zeros((n_rows, n_columns), dtype=dtype)
    for row in bad_rows:
        x[row, data.draw(st.integers(0, n_columns - 1))] = bad

    for view in views(x):
        where = r"(, column \d+|, column \d+, where .*|: \d+ of .*)?$"
        with pytest.raises(ValueError, match=rf"x must be finite, got {bad} in row {min(bad_rows)}{where}"):
            arrays.features(view, n_columns, "float64")


def test_features_not_finite_in_a_later_block_names_its_row():
    x = np.zeros((100_000, 10), dtype=np.float32)
    x[77_777, 3] = np.nan
    x[88_888, 0] = np.inf

    with pytest.raises(ValueError, match=r"x must be finite, got nan in row 77777, column \d+, where 1 of"):
        arrays.features(x, 10, "float32")


@pytest.mark.parametrize("dtype", [np.float64, np.longdouble])
def test_features_beyond_float32_raises_value_error_for_float32_models_only(dtype):
    x = np.array([[1.0, 2.0], [3.0, -(2.0**130)]], dtype=dtype)

    arrays.features(x, 2, "float64")
    with pytest.raises(ValueError, match=r"x must be within the range of float32, got -1.361129\d+e\+39 in row 1"):
        arrays.features(x, 2, "float32")


def test_features_just_within_float32_passes():
    x = np.array([[np.finfo(np.float32).max, -np.finfo(np.float32).max]], dtype=np.float64)

    arrays.features(x, 2, "float32")


@given(
    npst.arrays(
        dtype=st.sampled_from(KEPT_DTYPES),
        shape=npst.array_shapes(min_dims=2, max_dims=2, max_side=8),
        elements={"allow_nan": False, "allow_infinity": False},
    )
)
def test_features_any_finite_array_keeps_values_and_is_not_changed(x):
    before = x.copy()

    actual = arrays.features(x, x.shape[1], "float64")

    assert np.shares_memory(actual, x)
    np.testing.assert_array_equal(actual, before)
    np.testing.assert_array_equal(x, before)


def test_features_large_array_needs_little_memory():
    x = np.zeros((200_000, 40))
    tracemalloc.start()
    try:
        arrays.features(x, 40, "float32")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    # 64 MB of data; a block of 2**17 elements and what is derived from it stay far below.
    assert peak < 4_000_000


@pytest.mark.parametrize("state", ["raise", "warn", "call"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_features_tiny_values_pass_under_any_errstate(dtype, state):
    x = np.array([[5e-324, -1e-60, 1e-40, 0.0]])

    with np.errstate(all=state, call=unexpected):
        for given in (x, x.astype(np.longdouble), x.astype(">f8")):
            arrays.features(given, 4, dtype)
        arrays.parameters(x[0], 4, dtype)
        with pytest.raises(ValueError, match=r"x must be finite, got nan in row 0"):
            arrays.features([[np.nan]], 1, dtype)
        with pytest.raises(ValueError, match="must hold rows of probabilities"):
            arrays.targets([[1e308, 1e308]], 1, 2, "float64", classes=True)


def unexpected(kind, flag):
    raise AssertionError(f"NumPy reported {kind}")


@pytest.mark.skipif(np.finfo(np.longdouble).maxexp <= 1024, reason="this system's longdouble is float64")
def test_longdouble_beyond_float64_is_shown_as_it_is():
    big = np.longdouble("1e4000")
    for dtype in ("float32", "float64"):
        with pytest.raises(ValueError, match=rf"x must be within the range of {dtype}, got -1e\+4000 in row 1"):
            arrays.features(np.array([[1.0], [-big]]), 1, dtype)
    with pytest.raises(ValueError, match=r"params must be within the range of float64, got 1e\+4000 in index 0"):
        arrays.parameters(np.array([big]), 1, "float64")


@pytest.mark.skipif(np.finfo(np.longdouble).nmant <= 52, reason="this system's longdouble is float64")
def test_longdouble_is_checked_with_the_two_roundings_of_its_reading():
    # Just below the midpoint of float32's maximum and 2**128: down at once, but up by way of float64.
    x = np.array([[np.longdouble(2.0**128 - 2.0**103) - np.longdouble(2.0**70)]])
    assert np.isfinite(x.astype(np.float32)).all()

    with pytest.raises(ValueError, match="x must be within the range of float32"):
        arrays.features(x, 1, "float32")


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_features_float64_passes_up_to_what_rounds_to_float32s_maximum(sign):
    midpoint = 2.0**128 - 2.0**103

    arrays.features([[sign * np.nextafter(midpoint, 0.0)]], 1, "float32")
    with pytest.raises(ValueError, match="x must be within the range of float32"):
        arrays.features([[sign * midpoint]], 1, "float32")


class Liar(np.ndarray):
    """A subclass whose Python attributes are wrong."""

    shape = property(lambda self: (4096, 3))
    strides = property(lambda self: (0, 0))
    dtype = property(lambda self: np.dtype(np.float64))
    ndim = property(lambda self: 2)

    def view(self, *args):
        return self

    def __array__(self, *args, **kwargs):
        return np.zeros((4096, 3))


def test_subclass_that_lies_about_itself_is_seen_as_it_is():
    x = np.arange(12, dtype=np.float32).reshape(4, 3)

    actual = arrays.features(x.view(Liar), 3, "float32")
    assert_is_own_view(actual, x)
    assert_is_own_view(arrays.targets(x.view(Liar), 4, 3, "float32", classes=False)[0], x)
    with pytest.raises(ValueError, match=r"x must have shape \(n_samples, 4\), got \(4, 3\)"):
        arrays.features(x.view(Liar), 4, "float32")
    with pytest.raises(ValueError, match=r"out must have shape \(4096, 3\) and dtype float32, got \(4, 3\)"):
        arrays.output(x.view(Liar), (4096, 3), np.dtype("float32"), np.zeros((1, 3)), np.zeros(3))


@pytest.mark.parametrize("kind", [np.matrix, np.recarray], ids=lambda kind: kind.__name__)
def test_subclasses_are_viewed_as_the_base_class(kind):
    x = np.arange(12.0).reshape(4, 3)

    assert_is_own_view(arrays.features(x.view(kind), 3, "float32"), x)


def test_memory_map_is_viewed_and_kept_open(tmp_path):
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(4, 3))
    x[:] = 7.0

    actual = arrays.features(x, 3, "float32")
    assert_is_own_view(actual, x)
    del x
    assert (actual == 7.0).all()


class Convertible:
    """What a frame is to NumPy."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


def test_what_converts_to_an_array_is_viewed_too():
    x = np.arange(12.0).reshape(4, 3)

    assert_is_own_view(arrays.features(Convertible(x), 3, "float32"), x)
    with pytest.raises(TypeError, match="x must not be a masked array"):
        arrays.features(Convertible(np.ma.masked_less(x, 3.0)), 3, "float32")


@pytest.mark.filterwarnings("ignore:Setting the (strides|shape) on a NumPy array")
@pytest.mark.parametrize("dtype", [float, ">f8", np.longdouble, int, bool])
def test_casts_and_lists_are_views_too(dtype):
    """So that nobody gets at an array that kernels read through the `base` of what metrics are given."""
    labels = np.array([0, 1, 1]).astype(dtype)
    for y in (labels, labels.tolist(), labels[:, np.newaxis]):
        for classes in (False, True):
            actual, _ = arrays.targets(y, 3, 2 if classes else 1, "float32", classes=classes)
            assert actual.base is not None
            actual.base.shape = actual.base.shape[::-1]


@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")
def test_views_stay_when_the_users_array_changes():
    x, y = np.zeros((4, 6), np.float32), np.zeros((4, 6), np.float32)
    features, (targets, _) = arrays.features(x, 6, "float32"), arrays.targets(y, 4, 6, "float32", classes=False)
    out = arrays.output(y, (4, 6), np.dtype("float32"), x, np.zeros(3))

    for array in (x, y):
        array.dtype = np.float64
        array.shape = (6, 2)
        array.strides = (0, 0)
    for view in (features, targets, out):
        assert (view.shape, view.strides, view.dtype) == ((4, 6), (24, 4), np.float32)


# Targets


@pytest.mark.parametrize("dtype", KEPT_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_targets_one_output_vector_and_column_are_the_same(dtype, shape):
    y = np.arange(4).astype(dtype).reshape(shape)

    actual, is_labels = arrays.targets(y, 4, 1, "float32", classes=False)

    assert not is_labels
    assert actual.shape == (4, 1)
    assert actual.dtype == dtype
    assert np.shares_memory(actual, y)


def test_targets_several_outputs_are_returned_themselves():
    y = np.ones((4, 3), order="F")

    actual, is_labels = arrays.targets(y, 4, 3, "float32", classes=False)

    assert_is_own_view(actual, y)
    assert not is_labels


@pytest.mark.parametrize(
    ("shape", "n_out", "expected"),
    [
        ((4,), 3, r"\(n_samples, 3\)"),
        ((4, 1), 3, r"\(n_samples, 3\)"),
        ((4, 3, 1), 3, r"\(n_samples, 3\)"),
        ((4, 4), 1, r"\(n_samples,\) or \(n_samples, 1\)"),
        ((), 1, r"\(n_samples,\) or \(n_samples, 1\)"),
    ],
)
def test_targets_wrong_shape_is_never_broadcast(shape, n_out, expected):
    with pytest.raises(ValueError, match=rf"y must have shape {expected}, got"):
        arrays.targets(np.zeros(shape), 4, n_out, "float32", classes=False)


@pytest.mark.parametrize("classes", [False, True])
@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 4), (1,), (0,)])
def test_targets_other_number_of_samples_raises_value_error_naming_both(shape, classes):
    message = rf"y must have as many samples as its x: expected 4, got {shape[0]}"
    with pytest.raises(ValueError, match=message):
        arrays.targets(np.zeros(shape), 4, 4, "float32", classes=classes)


@pytest.mark.parametrize("classes", [False, True])
def test_targets_other_dtype_raises_type_error(classes):
    message = r"got <U1: number the classes, y = np.unique\(y, return_inverse=True\)\[1\]$"
    with pytest.raises(TypeError, match=f"y must have a bool, integer or floating dtype, {message}"):
        arrays.targets(np.array(["a", "b"]), 2, 2, "float32", classes=classes)
    with pytest.raises(TypeError, match="y must not be a masked array"):
        arrays.targets(np.ma.zeros(2), 2, 2, "float32", classes=classes)


def test_targets_not_finite_raises_value_error_naming_row():
    y = np.array([0.0, 1.0, np.inf])

    with pytest.raises(ValueError, match="y must be finite, got inf in row 2"):
        arrays.targets(y, 3, 1, "float64", classes=False)
    with pytest.raises(ValueError, match="y must be finite, got inf in row 2"):
        arrays.targets(y, 3, 2, "float64", classes=True)
    with pytest.raises(ValueError, match=r"y must be within the range of float32, got 1e\+40 in row 0"):
        arrays.targets(np.array([1e40, 0.0, 0.0]), 3, 1, "float32", classes=False)


@pytest.mark.parametrize("dtype", INTEGER_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_targets_integer_labels_are_not_copied(dtype, shape):
    y = np.array([0, 2, 1, 2], dtype=dtype).reshape(shape)

    actual, is_labels = arrays.targets(y, 4, 3, "float32", classes=True)

    assert is_labels
    assert actual.shape == (4,)
    assert actual.dtype == dtype
    assert np.shares_memory(actual, y)


def test_targets_strided_column_of_labels_is_a_view():
    y = np.arange(12).reshape(4, 3)[:, :1]

    actual, _ = arrays.targets(y, 4, 10, "float32", classes=True)

    assert np.shares_memory(actual, y)
    np.testing.assert_array_equal(actual, [0, 3, 6, 9])


def test_targets_bool_labels_are_viewed():
    y = np.array([True, False])

    actual, is_labels = arrays.targets(y, 2, 2, "float32", classes=True)

    assert is_labels
    assert_is_own_view(actual, y)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_targets_whole_float_labels_become_intp(dtype):
    actual, is_labels = arrays.targets(np.array([0, 2, 1], dtype=dtype), 3, 3, "float32", classes=True)

    assert is_labels
    assert actual.dtype == np.intp
    np.testing.assert_array_equal(actual, [0, 2, 1])


def test_targets_fractional_labels_raise_value_error():
    with pytest.raises(ValueError, match=r"y must hold whole class labels, got the fractional 1.5 in row 1"):
        arrays.targets([0.0, 1.5, 2.0], 3, 3, "float32", classes=True)


@given(
    st.sampled_from([*INTEGER_DTYPES, np.dtype(np.float64)]),
    st.integers(2, 200),
    st.lists(st.integers(0, 255), min_size=1, max_size=20),
)
def test_targets_labels_out_of_range_raise_value_error_naming_value_and_row(dtype, n_out, labels):
    y = np.array(labels, dtype=np.int64).astype(dtype)
    bad_rows = np.flatnonzero((y < 0) | (y >= n_out))

    if bad_rows.size == 0:
        actual, _ = arrays.targets(y, len(y), n_out, "float32", classes=True)
        np.testing.assert_array_equal(actual, y)
    else:
        row = bad_rows[0]
        with pytest.raises(ValueError, match=rf"class labels in \[0, {n_out}\), got {y[row]} in row {row}$"):
            arrays.targets(y, len(y), n_out, "float32", classes=True)


@pytest.mark.parametrize("label", [-1, np.iinfo(np.int64).min, np.iinfo(np.int64).max])
def test_targets_extreme_labels_raise_value_error(label):
    with pytest.raises(ValueError, match=rf"class labels in \[0, 3\), got {label} in row 1"):
        arrays.targets(np.array([0, label]), 2, 3, "float32", classes=True)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_targets_probabilities_are_not_copied(dtype):
    y = np.array([[0.25, 0.75], [1.0, 0.0]], dtype=dtype)

    actual, is_labels = arrays.targets(y, 2, 2, "float32", classes=True)

    assert_is_own_view(actual, y)
    assert not is_labels


def test_targets_one_hot_rows_of_integers_are_probabilities():
    y = np.eye(3, dtype=np.uint8)

    actual, is_labels = arrays.targets(y, 3, 3, "float32", classes=True)

    assert_is_own_view(actual, y)
    assert not is_labels


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0.5, 0.498], "rows of probabilities that sum to 1, got the sum 0.998 in row 1"),
        ([0.5, 0.502], "rows of probabilities that sum to 1, got the sum 1.002 in row 1"),
        ([0.0, 0.0], "rows of probabilities that sum to 1, got the sum 0 in row 1"),
        ([1.5, -0.5], "y must hold probabilities >= 0, got -0.5 in row 1"),
        ([np.nan, 1.0], "y must be finite, got nan in row 1"),
    ],
)
def test_targets_no_probabilities_raise_value_error_naming_row(row, message):
    with pytest.raises(ValueError, match=message):
        arrays.targets([[0.5, 0.5], row], 2, 2, "float32", classes=True)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("n_classes", [2, 3, 4, 5, 10, 100])
def test_targets_probabilities_rounded_to_three_decimals_pass(n_classes, dtype):
    y = np.random.default_rng(0).dirichlet(np.ones(n_classes), 1000).round(3).astype(dtype)

    arrays.targets(y, 1000, n_classes, "float32", classes=True)


@pytest.mark.parametrize("n_classes", [2, 3, 10])
@pytest.mark.parametrize("sign", [-1, 1])
def test_targets_probabilities_off_by_more_than_rounding_raise_value_error(n_classes, sign):
    rounding, uniform = 5e-4 * sign, 1.0 / n_classes

    arrays.targets(np.full((1, n_classes), uniform + rounding), 1, n_classes, "float64", classes=True)
    with pytest.raises(ValueError, match="rows of probabilities that sum to 1, got the sum"):
        arrays.targets(np.full((1, n_classes), uniform + 1.01 * rounding), 1, n_classes, "float64", classes=True)


def test_targets_classes_wrong_shape_names_the_permitted_ones():
    message = (
        r"y must have shape \(n_samples,\) or \(n_samples, 1\) for labels or \(n_samples, 3\) for probabilities, "
        r"got \(4, 2\)"
    )
    with pytest.raises(ValueError, match=message):
        arrays.targets(np.zeros((4, 2)), 4, 3, "float32", classes=True)


@pytest.mark.parametrize("y", [[0, 1, 1], [0.0, 0.5, 1.0], [True, False, True]])
def test_targets_binary_within_bounds_passes(y):
    actual, is_labels = arrays.targets(y, 3, 1, "float32", classes=False, permitted="fractions")

    assert not is_labels
    assert actual.shape == (3, 1)


@pytest.mark.parametrize("bad", [-1, 2, -0.25, 1.5])
def test_targets_binary_out_of_bounds_raises_value_error_naming_row(bad):
    message = rf"y must lie in \[0, 1\] for binary cross-entropy, got {bad} in row 2"
    with pytest.raises(ValueError, match=message):
        arrays.targets(np.array([0, 1, bad]), 3, 1, "float32", classes=False, permitted="fractions")


def odd_bools(values):
    """Return a bool array with all kinds of bytes that are not 0 for True."""
    values = np.asarray(values)
    return np.where(values, np.resize([255, 2, 128, 1], values.shape), 0).astype(np.uint8).view(bool)


def test_targets_any_byte_of_a_bool_that_is_not_0_is_1():
    one_hot = np.eye(3)[[0, 1, 2, 1, 0, 2]]
    two_hot = one_hot.copy()
    two_hot[3] = [1, 0, 1]

    arrays.targets(odd_bools(one_hot), 6, 3, "float32", classes=True)
    arrays.targets(odd_bools([0, 1, 1, 1, 1, 0]), 6, 2, "float32", classes=True)
    arrays.targets(odd_bools([0, 1, 1, 1, 1, 0]), 6, 1, "float32", classes=False, permitted="fractions")
    with pytest.raises(ValueError, match="probabilities that sum to 1, got the sum 2 in row 3"):
        arrays.targets(odd_bools(two_hot), 6, 3, "float32", classes=True)


CATEGORIES = [
    np.array(["a", "b"]),
    np.array(["a", "b"], object),
    np.array([b"a", b"b"]),
    np.array(["a", "b"], np.dtypes.StringDType()),
    ["a", "b"],
    Convertible(np.array(["a", "b"], object)),
    np.array([None, "b"]),
]


@pytest.mark.parametrize("options", [{"classes": True}, {"classes": False, "permitted": "fractions"}])
@pytest.mark.parametrize("y", CATEGORIES, ids=shown)
def test_targets_categories_raise_type_error_that_says_how_to_number_them(y, options):
    message = r"number the classes, y = np.unique\(y, return_inverse=True\)\[1\]$"
    with pytest.raises(TypeError, match=message):
        arrays.targets(y, 2, 2, "float32", **options)


def test_hint_of_categories_helps():
    y = np.array(["cat", "dog", "cat"], object)

    actual, is_labels = arrays.targets(np.unique(y, return_inverse=True)[1], 3, 2, "float32", classes=True)
    assert is_labels
    np.testing.assert_array_equal(actual, [0, 1, 0])


def test_targets_objects_of_a_regression_are_to_be_converted():
    with pytest.raises(TypeError, match=r"got object: convert it, with \.to_numpy\(float\)"):
        arrays.targets(np.array([1.0, 2.0], object), 2, 1, "float32", classes=False)


# Parameters


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parameters_are_copied_and_cast(dtype):
    values = np.arange(5.0)

    actual = arrays.parameters(values, 5, dtype)

    assert actual.dtype == dtype
    assert not np.shares_memory(actual, values)
    np.testing.assert_array_equal(actual, values)


@pytest.mark.parametrize("shape", [(), (4,), (6,), (5, 1), (1, 5)])
def test_parameters_wrong_shape_raises_value_error(shape):
    with pytest.raises(ValueError, match=r"params must have shape \(5,\), got"):
        arrays.parameters(np.zeros(shape), 5, "float32")


def test_parameters_not_finite_raises_value_error_naming_index():
    with pytest.raises(ValueError, match="params must be finite, got nan in index 2"):
        arrays.parameters([0.0, 1.0, np.nan], 3, "float32")
