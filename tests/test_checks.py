import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fastbp import checks

KEPT_DTYPES = [np.dtype(name) for name in checks.SOURCE_DTYPES]
FLOAT_DTYPES = [np.dtype(name) for name in ("float16", "float32", "float64")]
INTEGER_DTYPES = [dtype for dtype in KEPT_DTYPES if dtype.kind in "iu"]


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3), np.array(3)])
def test_positive_int_integers_become_python_ints(value):
    actual = checks.positive_int(value, "epochs")

    assert actual == 3
    assert type(actual) is int


@pytest.mark.parametrize("value", [0, -1, np.int64(-5)])
def test_positive_int_too_small_raises_value_error(value):
    with pytest.raises(ValueError, match=f"epochs must be a positive integer, got {value}"):
        checks.positive_int(value, "epochs")


@pytest.mark.parametrize("value", [1.0, np.float64(2), True, np.True_, "3", None, [3], np.array([3, 4])])
def test_ints_other_types_raise_type_error(value):
    with pytest.raises(TypeError, match="epochs must be a positive integer, got"):
        checks.positive_int(value, "epochs")
    with pytest.raises(TypeError, match="epochs must be a non-negative integer, got"):
        checks.non_negative_int(value, "epochs")


def test_non_negative_int_accepts_zero_but_no_less():
    assert checks.non_negative_int(0, "step") == 0
    with pytest.raises(ValueError, match="step must be a non-negative integer, got -1"):
        checks.non_negative_int(-1, "step")


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int16(2), np.longdouble(2), Fraction(4, 2)])
def test_finite_float_real_numbers_become_floats(value):
    actual = checks.finite_float(value, "eps")

    assert actual == 2.0
    assert type(actual) is float


@pytest.mark.parametrize("value", [True, np.False_, "1", 1j, None, np.array([1.0]), b"1"])
def test_finite_float_other_types_raise_type_error(value):
    with pytest.raises(TypeError, match="eps must be a finite number > 0, got"):
        checks.finite_float(value, "eps", low=0.0, low_open=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400])
def test_finite_float_not_finite_raises_value_error(value):
    with pytest.raises(ValueError, match="eps must be a finite number, got"):
        checks.finite_float(value, "eps")


@given(st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.booleans())
def test_finite_float_bounds_are_kept(value, low_open, high_open):
    low_ok = value > -1 if low_open else value >= -1
    high_ok = value < 1 if high_open else value <= 1
    options = {"low": -1.0, "high": 1.0, "low_open": low_open, "high_open": high_open}

    if low_ok and high_ok:
        assert checks.finite_float(value, "alpha", **options) == value
    else:
        bounds = f"{'>' if low_open else '>='} -1 and {'<' if high_open else '<='} 1"
        with pytest.raises(ValueError, match=f"alpha must be a finite number {bounds}, got"):
            checks.finite_float(value, "alpha", **options)


def test_flag_bools_only():
    assert checks.flag(np.True_, "shuffle") is True
    with pytest.raises(TypeError, match="shuffle must be a bool, got 1 of type int"):
        checks.flag(1, "shuffle")


@pytest.mark.parametrize("seed", [0, 2**64 - 1, np.uint64(2**64 - 1), np.int32(5)])
def test_seed_of_integers_become_python_ints(seed):
    actual = checks.seed_of(seed)

    assert actual == int(seed)
    assert type(actual) is int


def test_seed_of_none_draws_63_bits():
    seeds = {checks.seed_of(None) for _ in range(100)}

    assert len(seeds) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_of_out_of_range_raises_value_error(seed):
    with pytest.raises(ValueError, match=rf"seed must be in \[0, 2\*\*64\), got {seed}"):
        checks.seed_of(seed)


@pytest.mark.parametrize("seed", [1.0, True, "0", np.random.default_rng(0)])
def test_seed_of_other_types_raise_type_error(seed):
    with pytest.raises(TypeError, match="seed must be an integer or None, got"):
        checks.seed_of(seed)


def test_shown_is_the_repr_cut_to_a_hundred_characters():
    assert checks.shown("a") == "'a'"
    assert checks.shown(list(range(1000))) == repr(list(range(1000)))[:97] + "..."
    assert checks.shown(-(10**5000)) == "a number of too many digits to print"


@pytest.mark.parametrize("value", [-(10**5000), Fraction(-(10**5000), 7)], ids=["int", "Fraction"])
def test_numbers_of_too_many_digits_are_refused_in_words(value):
    with pytest.raises(ValueError, match="eps must be a finite number >= 0, got a number of too many digits to print"):
        checks.finite_float(value, "eps", low=0.0)
    if isinstance(value, int):
        for check in (checks.positive_int, checks.non_negative_int):
            with pytest.raises(ValueError, match=r"epochs must be a .* integer, got a number of too many digits"):
                check(value, "epochs")


@pytest.mark.parametrize("state", ["raise", "warn", "call"])
def test_finite_float_any_number_under_any_errstate(state):
    with np.errstate(all=state, call=lambda *args: pytest.fail("NumPy reported something")):
        for value in (np.float16(6e-8), np.float32(1e-45), 5e-324, np.longdouble("1e-4000")):
            assert checks.finite_float(value, "eps", low=0.0) == float(value)
        with pytest.raises(ValueError, match="eps must be a finite number, got"):
            checks.finite_float(np.longdouble(np.finfo(np.longdouble).max) * 1, "eps")


# Features


def test_source_code_is_the_index_in_source_dtypes():
    for code, name in enumerate(checks.SOURCE_DTYPES):
        assert checks.source_code(np.dtype(name)) == code
    assert checks.source_code(np.dtype(np.longlong)) == checks.SOURCE_DTYPES.index("int64")
    assert checks.source_code(np.dtype(np.intp)) == checks.SOURCE_DTYPES.index(np.dtype(np.intp).name)


@pytest.mark.parametrize("dtype", KEPT_DTYPES, ids=str)
@pytest.mark.parametrize("model_dtype", ["float32", "float64"])
def test_features_supported_dtype_is_returned_itself(dtype, model_dtype):
    x = np.ones((5, 3), dtype=dtype)

    assert checks.features(x, 3, model_dtype) is x


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
        assert checks.features(view, 3, "float32") is view


def test_features_broadcast_array_is_not_copied():
    x = np.broadcast_to(np.arange(3.0), (1000, 3))

    assert checks.features(x, 3, "float64") is x


def test_features_bool_is_a_view_of_uint8():
    x = np.array([[True, False], [False, True]])[:, ::-1]

    actual = checks.features(x, 2, "float32")

    assert actual.dtype == np.uint8
    assert np.shares_memory(actual, x)
    np.testing.assert_array_equal(actual, x)


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i2", ">u8", "<f4"])
def test_features_foreign_byte_order_is_cast_to_native(dtype):
    x = np.array([[1, 2], [3, 4]], dtype=dtype)

    actual = checks.features(x, 2, "float32")

    assert actual.dtype.isnative
    assert actual.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(actual, x)


def test_features_longdouble_is_cast_to_float64():
    actual = checks.features(np.ones((2, 2), dtype=np.longdouble), 2, "float64")

    assert actual.dtype.itemsize == 8


def test_features_unaligned_data_is_copied():
    raw = np.zeros(4 * 8 + 1, dtype=np.uint8)
    x = raw[1:].view(np.float64).reshape(2, 2)
    assert not x.flags.aligned

    actual = checks.features(x, 2, "float64")

    assert actual.flags.aligned
    np.testing.assert_array_equal(actual, x)


def test_features_lists_and_frames_are_converted():
    class Frame:
        def __array__(self, dtype=None, copy=None):
            return np.array([[1.0, 2.0]])

    np.testing.assert_array_equal(checks.features([[1, 2]], 2, "float32"), [[1, 2]])
    np.testing.assert_array_equal(checks.features(Frame(), 2, "float32"), [[1, 2]])


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
        checks.features(x, 2, "float32")


def test_features_none_raises_type_error():
    with pytest.raises(TypeError, match="x must have a bool, integer or floating dtype, got object, as it is None"):
        checks.features(None, 2, np.float32)


def test_features_masked_array_raises_type_error():
    with pytest.raises(TypeError, match="x must not be a masked array: fill or drop its masked values first"):
        checks.features(np.ma.zeros((2, 2)), 2, "float32")


def test_features_ragged_list_raises_value_error():
    with pytest.raises(ValueError, match="x must be convertible to an array of numbers"):
        checks.features([[1.0, 2.0], [3.0]], 2, "float32")


@pytest.mark.parametrize("shape", [(), (4,), (100, 3), (2, 4, 1), (4, 0)])
def test_features_wrong_shape_raises_value_error(shape):
    with pytest.raises(ValueError, match=r"x must have shape \(n_samples, 4\), got \("):
        checks.features(np.zeros(shape), 4, "float32")


def test_features_no_samples_raises_value_error_unless_allowed():
    x = np.zeros((0, 4))

    with pytest.raises(ValueError, match=r"x must have at least one sample, got shape \(0, 4\)"):
        checks.features(x, 4, "float32")
    assert checks.features(x, 4, "float32", allow_empty=True) is x


def test_features_name_is_in_the_message():
    with pytest.raises(ValueError, match=r"validation_data\[0\] must have shape"):
        checks.features(np.zeros(3), 4, "float32", name="validation_data[0]")


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
        with pytest.raises(ValueError, match=f"x must be finite, got {bad} in row {min(bad_rows)}$"):
            checks.features(view, n_columns, "float64")


def test_features_not_finite_in_a_later_block_names_its_row():
    x = np.zeros((100_000, 10), dtype=np.float32)
    x[77_777, 3] = np.nan
    x[88_888, 0] = np.inf

    with pytest.raises(ValueError, match=r"x must be finite, got nan in row 77777$"):
        checks.features(x, 10, "float32")


@pytest.mark.parametrize("dtype", [np.float64, np.longdouble])
def test_features_beyond_float32_raises_value_error_for_float32_models_only(dtype):
    x = np.array([[1.0, 2.0], [3.0, -1e39]], dtype=dtype)

    checks.features(x, 2, "float64")
    with pytest.raises(ValueError, match=r"x must be within the range of float32, got -1e\+39 in row 1"):
        checks.features(x, 2, "float32")


def test_features_just_within_float32_passes():
    x = np.array([[np.finfo(np.float32).max, -np.finfo(np.float32).max]], dtype=np.float64)

    checks.features(x, 2, "float32")


@given(
    npst.arrays(
        dtype=st.sampled_from([*KEPT_DTYPES, np.dtype(bool)]),
        shape=npst.array_shapes(min_dims=2, max_dims=2, max_side=8),
        elements={"allow_nan": False, "allow_infinity": False},
    )
)
def test_features_any_finite_array_keeps_values_and_is_not_changed(x):
    before = x.copy()

    actual = checks.features(x, x.shape[1], "float64")

    assert np.shares_memory(actual, x)
    np.testing.assert_array_equal(actual, before)
    np.testing.assert_array_equal(x, before)


def test_features_large_array_needs_little_memory():
    x = np.zeros((200_000, 40))
    tracemalloc.start()
    try:
        checks.features(x, 40, "float32")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    # 64 MB of data; a block of 2**17 elements and what is derived from it stay far below.
    assert peak < 4_000_000


# Targets


@pytest.mark.parametrize("dtype", KEPT_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_targets_one_output_vector_and_column_are_the_same(dtype, shape):
    y = np.arange(4).astype(dtype).reshape(shape)

    actual, is_labels = checks.targets(y, 4, 1, "float32", classes=False)

    assert not is_labels
    assert actual.shape == (4, 1)
    assert actual.dtype == dtype
    assert np.shares_memory(actual, y)


def test_targets_several_outputs_are_returned_themselves():
    y = np.ones((4, 3), order="F")

    actual, is_labels = checks.targets(y, 4, 3, "float32", classes=False)

    assert actual is y
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
        checks.targets(np.zeros(shape), 4, n_out, "float32", classes=False)


@pytest.mark.parametrize("classes", [False, True])
@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 4), (1,), (0,)])
def test_targets_other_number_of_samples_raises_value_error_naming_both(shape, classes):
    message = rf"y must have as many samples as its x: expected 4, got {shape[0]}"
    with pytest.raises(ValueError, match=message):
        checks.targets(np.zeros(shape), 4, 4, "float32", classes=classes)


@pytest.mark.parametrize("classes", [False, True])
def test_targets_other_dtype_raises_type_error(classes):
    with pytest.raises(TypeError, match="y must have a bool, integer or floating dtype, got <U1"):
        checks.targets(np.array(["a", "b"]), 2, 2, "float32", classes=classes)
    with pytest.raises(TypeError, match="y must not be a masked array"):
        checks.targets(np.ma.zeros(2), 2, 2, "float32", classes=classes)


def test_targets_not_finite_raises_value_error_naming_row():
    y = np.array([0.0, 1.0, np.inf])

    with pytest.raises(ValueError, match="y must be finite, got inf in row 2"):
        checks.targets(y, 3, 1, "float64", classes=False)
    with pytest.raises(ValueError, match="y must be finite, got inf in row 2"):
        checks.targets(y, 3, 2, "float64", classes=True)
    with pytest.raises(ValueError, match=r"y must be within the range of float32, got 1e\+40 in row 0"):
        checks.targets(np.array([1e40, 0.0, 0.0]), 3, 1, "float32", classes=False)


@pytest.mark.parametrize("dtype", INTEGER_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_targets_integer_labels_are_not_copied(dtype, shape):
    y = np.array([0, 2, 1, 2], dtype=dtype).reshape(shape)

    actual, is_labels = checks.targets(y, 4, 3, "float32", classes=True)

    assert is_labels
    assert actual.shape == (4,)
    assert actual.dtype == dtype
    assert np.shares_memory(actual, y)


def test_targets_strided_column_of_labels_is_a_view():
    y = np.arange(12).reshape(4, 3)[:, :1]

    actual, _ = checks.targets(y, 4, 10, "float32", classes=True)

    assert np.shares_memory(actual, y)
    np.testing.assert_array_equal(actual, [0, 3, 6, 9])


def test_targets_bool_labels_are_a_view_of_uint8():
    y = np.array([True, False])

    actual, is_labels = checks.targets(y, 2, 2, "float32", classes=True)

    assert is_labels
    assert actual.dtype == np.uint8
    assert np.shares_memory(actual, y)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_targets_whole_float_labels_become_intp(dtype):
    actual, is_labels = checks.targets(np.array([0, 2, 1], dtype=dtype), 3, 3, "float32", classes=True)

    assert is_labels
    assert actual.dtype == np.intp
    np.testing.assert_array_equal(actual, [0, 2, 1])


def test_targets_fractional_labels_raise_value_error():
    with pytest.raises(ValueError, match=r"y must hold whole class labels, got the fractional 1.5 in row 1"):
        checks.targets([0.0, 1.5, 2.0], 3, 3, "float32", classes=True)


@given(
    st.sampled_from([*INTEGER_DTYPES, np.dtype(np.float64)]),
    st.integers(1, 200),
    st.lists(st.integers(0, 255), min_size=1, max_size=20),
)
def test_targets_labels_out_of_range_raise_value_error_naming_value_and_row(dtype, n_out, labels):
    y = np.array(labels, dtype=np.int64).astype(dtype)
    bad_rows = np.flatnonzero((y < 0) | (y >= n_out))

    if bad_rows.size == 0:
        actual, _ = checks.targets(y, len(y), n_out, "float32", classes=True)
        np.testing.assert_array_equal(actual, y)
    else:
        row = bad_rows[0]
        with pytest.raises(ValueError, match=rf"class labels in \[0, {n_out}\), got {y[row]} in row {row}$"):
            checks.targets(y, len(y), n_out, "float32", classes=True)


@pytest.mark.parametrize("label", [-1, np.iinfo(np.int64).min, np.iinfo(np.int64).max])
def test_targets_extreme_labels_raise_value_error(label):
    with pytest.raises(ValueError, match=rf"class labels in \[0, 3\), got {label} in row 1"):
        checks.targets(np.array([0, label]), 2, 3, "float32", classes=True)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_targets_probabilities_are_not_copied(dtype):
    y = np.array([[0.25, 0.75], [1.0, 0.0]], dtype=dtype)

    actual, is_labels = checks.targets(y, 2, 2, "float32", classes=True)

    assert actual is y
    assert not is_labels


def test_targets_one_hot_rows_of_integers_are_probabilities():
    y = np.eye(3, dtype=np.uint8)

    actual, is_labels = checks.targets(y, 3, 3, "float32", classes=True)

    assert actual is y
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
        checks.targets([[0.5, 0.5], row], 2, 2, "float32", classes=True)


def test_targets_probabilities_rounded_to_three_decimals_pass():
    checks.targets([[0.333, 0.333, 0.333]], 1, 3, "float32", classes=True)


def test_targets_one_class_takes_labels_only():
    actual, is_labels = checks.targets(np.zeros((4, 1)), 4, 1, "float32", classes=True)

    assert is_labels
    np.testing.assert_array_equal(actual, [0, 0, 0, 0])


def test_targets_classes_wrong_shape_names_the_permitted_ones():
    message = (
        r"y must have shape \(n_samples,\) or \(n_samples, 1\) for labels or \(n_samples, 3\) for probabilities, "
        r"got \(4, 2\)"
    )
    with pytest.raises(ValueError, match=message):
        checks.targets(np.zeros((4, 2)), 4, 3, "float32", classes=True)


@pytest.mark.parametrize("y", [[0, 1, 1], [0.0, 0.5, 1.0], [True, False, True]])
def test_targets_binary_within_bounds_passes(y):
    actual, is_labels = checks.targets(y, 3, 1, "float32", classes=False, binary=True)

    assert not is_labels
    assert actual.shape == (3, 1)


@pytest.mark.parametrize("bad", [-1, 2, -0.25, 1.5])
def test_targets_binary_out_of_bounds_raises_value_error_naming_row(bad):
    message = rf"y must lie in \[0, 1\] for binary cross-entropy, got {bad} in row 2"
    with pytest.raises(ValueError, match=message):
        checks.targets(np.array([0, 1, bad]), 3, 1, "float32", classes=False, binary=True)


# Parameters


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parameters_are_copied_and_cast(dtype):
    values = np.arange(5.0)

    actual = checks.parameters(values, 5, dtype)

    assert actual.dtype == dtype
    assert not np.shares_memory(actual, values)
    np.testing.assert_array_equal(actual, values)


@pytest.mark.parametrize("shape", [(), (4,), (6,), (5, 1), (1, 5)])
def test_parameters_wrong_shape_raises_value_error(shape):
    with pytest.raises(ValueError, match=r"params must have shape \(5,\), got"):
        checks.parameters(np.zeros(shape), 5, "float32")


def test_parameters_not_finite_raises_value_error_naming_index():
    with pytest.raises(ValueError, match="params must be finite, got nan in index 2"):
        checks.parameters([0.0, 1.0, np.nan], 3, "float32")
