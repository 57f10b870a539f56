"""Columns whose rows float32 cannot tell apart, against the definition."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fastbp import blocks
from fastbp.resolution import lost_columns

FLOAT32 = np.dtype("float32")
DTYPES = ["int32", "uint32", "int64", "uint64", "float64"]


def naive(x):
    """The columns that are lost, by exact arithmetic."""
    lost = []
    for index, column in enumerate(x.T.tolist()):
        values = [Fraction(value) for value in column]
        spread, magnitude = max(values) - min(values), max(map(abs, values))
        if 0 < spread < magnitude / 2**12:
            lost.append(index)
    return lost


def columns(rng, dtype, n_samples):
    """Columns that are lost, on both sides of the threshold, constant, zero, and ordinary."""
    rows = np.arange(n_samples, dtype=np.float64)
    far = 2.0**30
    x = np.stack(
        [
            far + rows % 4096,
            far - np.minimum(rows, far / 2**12 - 1),
            np.where(rows == n_samples - 1, far - far / 2**12, far),
            np.where(rows == n_samples - 1, far - far / 2**12 + 1, far),
            np.full(n_samples, far),
            np.zeros(n_samples),
            rng.permutation(n_samples),
            np.where(rows == n_samples // 2, far, 0.0),
        ],
        axis=1,
    )
    if np.dtype(dtype).kind != "u":
        x = np.hstack([x, -x])
    return x.astype(dtype)


@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray, lambda x: x[::-1], lambda x: x[:, ::-2]])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_samples", [1, 2, 3, 511, 5000])
def test_lost_columns_any_dtype_and_layout_are_those_of_the_definition(n_samples, dtype, layout):
    x = layout(columns(np.random.default_rng(0), dtype, n_samples))

    assert lost_columns(x, FLOAT32) == naive(x)


def test_lost_columns_many_blocks_see_the_last_row():
    n_samples = 3 * blocks._BLOCK_ELEMENTS
    x = np.full((n_samples, 3), 1e9)
    x[-1, 1] += 1.0
    x[0, 2], x[-1, 2] = 1e9 + 1.0, 3e9

    assert lost_columns(x, FLOAT32) == [1]


@given(
    npst.arrays(
        st.sampled_from([np.dtype(name) for name in DTYPES]),
        st.tuples(st.integers(1, 12), st.integers(1, 4)),
        elements={"allow_nan": False, "allow_infinity": False},
    ),
    st.data(),
)
def test_lost_columns_any_array_is_as_defined(x, data):
    if data.draw(st.booleans()):  # close to each other
        x = x[0] + (x % 97 if x.dtype.kind != "f" else np.sign(x))
        x = x[:, np.isfinite(x).all(axis=0)]
    actual = lost_columns(x, FLOAT32) if x.size else []
    near = [
        column
        for column in range(x.shape[1])  # at the threshold float64's own rounding may decide
        if naive(x[:, [column]]) != [] or column in actual
    ]
    for column in near:
        values = [Fraction(value) for value in x[:, column].tolist()]
        ratio = (max(values) - min(values)) / max(map(abs, values)) * 2**12
        assert (column in actual) == (ratio < 1) or abs(ratio - 1) < Fraction(1, 2**50)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "float16", "float32"])
def test_lost_columns_of_24_bits_or_fewer_are_none(dtype):
    x = np.full((5, 2), 30000 if dtype in ("int16", "float32") else 1).astype(dtype)
    x[0] = 29999 if dtype in ("int16", "float32") else 0

    assert lost_columns(x, FLOAT32) == []


def test_lost_columns_of_a_float64_model_are_none():
    assert lost_columns(1.7e9 + np.arange(9.0)[:, np.newaxis], np.dtype("float64")) == []


@pytest.mark.parametrize("state", ["raise", "warn", "call"])
def test_lost_columns_extremes_under_any_errstate(state):
    x = np.array([[1e308, 5e-324, 0.0, 1e308], [-1e308, 1e-323, 0.0, 1e308]])

    with np.errstate(all=state, call=lambda *args: pytest.fail("NumPy reported something")):
        assert lost_columns(x, FLOAT32) == []
