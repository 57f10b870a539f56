from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastbp.layout import Layout

SIZES = st.lists(st.integers(1, 12), min_size=2, max_size=6)


def test_layout_two_layers_gives_offsets_by_hand():
    layout = Layout([2, 3, 1])

    assert layout.sizes == (2, 3, 1)
    assert layout.n_layers == 2
    assert layout.n_params == 2 * 3 + 3 + 3 * 1 + 1
    assert layout.weight_start == (0, 9)
    assert layout.bias_start == (6, 12)


@given(SIZES)
def test_layout_any_sizes_views_cover_every_parameter_once(sizes):
    layout = Layout(sizes)
    params = np.zeros(layout.n_params)

    for w, b in zip(layout.weights(params), layout.biases(params), strict=True):
        w += 1.0
        b += 1.0

    np.testing.assert_array_equal(params, 1.0)


@given(SIZES)
def test_layout_any_sizes_layers_follow_each_other_as_w_then_b(sizes):
    layout = Layout(sizes)
    params = np.arange(layout.n_params, dtype=np.float32)

    flat = []
    for (n_in, n_out), w, b in zip(pairwise(sizes), layout.weights(params), layout.biases(params), strict=True):
        assert w.shape == (n_in, n_out)
        assert b.shape == (n_out,)
        flat += [w.ravel(), b]

    np.testing.assert_array_equal(np.concatenate(flat), params)


def test_layout_numpy_sizes_become_python_ints():
    layout = Layout(np.array([4, 2], dtype=np.int32))

    assert layout.sizes == (4, 2)
    assert all(type(size) is int for size in layout.sizes)
    assert layout == Layout((4, 2))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([3], "sizes must have at least two entries, n_in and n_out, got \\(3,\\)"),
        ([], "at least two entries"),
        ([3, 0], "sizes\\[1\\] must be a positive integer, got 0"),
        ([-2, 3], "sizes\\[0\\] must be a positive integer, got -2"),
        ([2**32, 2**32], "sizes must give fewer than 17592186044416 parameters, got .* 18446744078004518912"),
        ([1, 10**30], "fewer than"),
    ],
)
def test_layout_bad_value_raises_value_error(sizes, message):
    with pytest.raises(ValueError, match=message):
        Layout(sizes)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (3, "sizes must be a sequence of positive integers, got 3 of type int"),
        ("34", "sizes must be a sequence"),
        ([3, 2.0], "sizes\\[1\\] must be a positive integer, got 2.0 of type float"),
        ([3, True], "sizes\\[1\\] must be a positive integer, got True of type bool"),
        ([3, None], "sizes\\[1\\]"),
    ],
)
def test_layout_bad_type_raises_type_error(sizes, message):
    with pytest.raises(TypeError, match=message):
        Layout(sizes)
