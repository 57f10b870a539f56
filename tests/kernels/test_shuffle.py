"""The order of the samples: a permutation for every n, computed from any position, another for every seed and epoch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastbp.kernels.shuffle import sample_order
from fastbp.kernels.target import lanes
from guards import guarded, needs_guard_pages
from leaves import call

DTYPE = "float32"  # of the model: the order does not depend on it
WIDTH = lanes(np.int64)


def order(n_rows, start=0, n=None, seed=0, epoch=0, shuffle=1, dtype=DTYPE):
    """The rows at positions start..start+n-1, by default all."""
    n = n_rows if n is None else n
    rows = np.full(-(-n // WIDTH) * WIDTH, -1, np.int64)
    call(sample_order, dtype, rows, start, n, n_rows, shuffle, seed, epoch)
    return rows[:n]


@pytest.mark.parametrize(
    "n_rows", [*range(1, 71), 127, 128, 129, 255, 256, 257, 1000, 1023, 1024, 4097, 65_537, 250_000]
)
def test_sample_order_is_a_permutation_for_any_number_of_rows(n_rows):
    for seed, epoch in ((0, 0), (1, 5), (-1, 2), (2**63 - 1, 10**9)):
        np.testing.assert_array_equal(np.sort(order(n_rows, seed=seed, epoch=epoch)), np.arange(n_rows))


@given(n_rows=st.integers(1, 3000), seed=st.integers(-(2**63), 2**63 - 1), epoch=st.integers(0, 2**40), data=st.data())
@settings(max_examples=50)
def test_sample_order_of_a_range_is_a_slice_of_the_whole(n_rows, seed, epoch, data):
    start = data.draw(st.integers(0, n_rows - 1))
    n = data.draw(st.integers(1, n_rows - start))
    whole = order(n_rows, seed=seed, epoch=epoch)
    np.testing.assert_array_equal(np.sort(whole), np.arange(n_rows))
    np.testing.assert_array_equal(order(n_rows, start, n, seed, epoch), whole[start : start + n])


@pytest.mark.parametrize("n_rows", [2**31 - 1, 2**31 + 11, 2**32, 10**12 + 39, 2**52 + 3])
def test_sample_order_of_huge_data_is_inside_and_distinct(n_rows):
    for start in (0, n_rows // 2, n_rows - 1000):
        rows = order(n_rows, start, 1000)
        assert rows.min() >= 0
        assert rows.max() < n_rows
        assert np.unique(rows).size == 1000
        assert rows.max() - rows.min() > n_rows // 2


@pytest.mark.parametrize("n_rows", [1, 5, 8, 100])
def test_sample_order_without_shuffle_is_the_position(n_rows):
    np.testing.assert_array_equal(order(n_rows, shuffle=0), np.arange(n_rows))
    np.testing.assert_array_equal(order(n_rows, n_rows - 1, 1, shuffle=0), [n_rows - 1])


def test_sample_order_is_the_same_for_both_dtypes():
    np.testing.assert_array_equal(order(1000, dtype="float64"), order(1000, dtype="float32"))


def test_sample_order_seeds_and_epochs_differ():
    orders = {order(50, seed=seed, epoch=epoch).tobytes() for seed in range(-20, 20) for epoch in range(20)}
    assert len(orders) == 40 * 20


def test_sample_order_neighbouring_seeds_and_epochs_share_no_diagonal():
    # Seed s in epoch e + 1 must not repeat seed s + 1 in epoch e.
    assert not np.array_equal(order(100, seed=3, epoch=5), order(100, seed=4, epoch=4))
    assert not np.array_equal(order(100, seed=3, epoch=5), order(100, seed=5, epoch=3))


@needs_guard_pages
@pytest.mark.parametrize("at_start", [False, True])
def test_sample_order_writes_whole_vectors_and_no_more(at_start):
    for n in range(1, 40):
        for shuffle in (0, 1):
            rows = guarded(np.full(-(-n // WIDTH) * WIDTH, -1, np.int64), at_start)
            call(sample_order, DTYPE, rows, 3, n, 100, shuffle, 7, 1)
            np.testing.assert_array_equal(rows[:n], order(100, seed=7, epoch=1, shuffle=shuffle)[3 : 3 + n])


@pytest.mark.parametrize("n_rows", [2, 3, 5, 10, 37, 64])
def test_sample_order_rows_are_uniform_at_every_position(n_rows):
    n_epochs = 400 * n_rows
    orders = np.stack([order(n_rows, epoch=epoch, seed=11) for epoch in range(n_epochs)])
    counts = np.stack([np.bincount(column, minlength=n_rows) for column in orders.T])
    # 400 expected in each of n_rows**2 cells: six standard deviations even where the worst of 4096 is looked for.
    assert np.abs(counts - 400).max() < 6 * np.sqrt(400)
    chi_square, degrees = ((counts - 400) ** 2 / 400).sum(), (n_rows - 1) ** 2
    assert abs(chi_square - degrees) < 6 * np.sqrt(2 * degrees) + 10


def test_sample_order_neighbours_are_uniform():
    # Which row follows which: a weak mixing function shows in pairs first.
    n_rows, n_epochs = 12, 6000
    orders = np.stack([order(n_rows, epoch=epoch, seed=5) for epoch in range(n_epochs)])
    pairs = np.bincount((orders[:, :-1] * n_rows + orders[:, 1:]).ravel(), minlength=n_rows**2).reshape(n_rows, n_rows)
    expected = n_epochs * (n_rows - 1) / (n_rows * (n_rows - 1))
    off_diagonal = pairs[~np.eye(n_rows, dtype=bool)]
    assert (np.diag(pairs) == 0).all()
    assert np.abs(off_diagonal - expected).max() < 6 * np.sqrt(expected)


def test_sample_order_all_permutations_of_four_rows_are_equally_frequent():
    n_epochs = 24_000
    orders = np.stack([order(4, epoch=epoch, seed=2) for epoch in range(n_epochs)])
    counts = np.unique(orders @ [64, 16, 4, 1], return_counts=True)[1]
    assert counts.size == 24
    assert np.abs(counts - 1000).max() < 6 * np.sqrt(1000)


@given(
    n_rows=st.integers(1, 3000),
    window=st.integers(2, 700),
    seed=st.integers(-(2**63), 2**63 - 1),
    epoch=st.integers(0, 2**40),
    data=st.data(),
)
@settings(max_examples=100)
def test_windows_are_permuted_and_each_in_itself(n_rows, window, seed, epoch, data):
    whole = order(n_rows, seed=seed, epoch=epoch, shuffle=window)
    np.testing.assert_array_equal(np.sort(whole), np.arange(n_rows))
    for start in range(0, n_rows, window):
        rows = np.sort(whole[start : start + window])
        np.testing.assert_array_equal(rows, rows[0] + np.arange(rows.size))
        assert rows[0] % window == 0
    start = data.draw(st.integers(0, n_rows - 1))
    n = data.draw(st.integers(1, n_rows - start))
    np.testing.assert_array_equal(order(n_rows, start, n, seed, epoch, window), whole[start : start + n])


def test_windows_and_the_rows_of_each_come_in_all_orders():
    first = np.array([order(40, epoch=epoch, shuffle=10) for epoch in range(2000)])
    windows = np.bincount(first[:, 0] // 10, minlength=4)
    places = np.bincount(first[:, 0] % 10, minlength=10)
    assert abs(windows - 500).max() < 100  # some five standard deviations
    assert abs(places - 200).max() < 70
    inside = {tuple(rows[:10] % 10) for rows in first}
    assert len(inside) > 1990  # a window's order is its own in each epoch


@needs_guard_pages
@pytest.mark.parametrize("at_start", [False, True])
def test_windows_write_whole_vectors_and_no_more(at_start):
    for n in range(1, 40):
        rows = guarded(np.full(-(-n // WIDTH) * WIDTH, -1, np.int64), at_start)
        call(sample_order, DTYPE, rows, 3, n, 100, 7, 7, 1)
        assert (rows[:n] >= 0).all()
