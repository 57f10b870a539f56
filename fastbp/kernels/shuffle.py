"""The order of the samples: a keyed permutation, computed position by position, so a run resumes at any step."""

import numpy as np
from numba import types

from fastbp._jit import inline, leaf
from fastbp.kernels.simd import (
    any_lane,
    convert,
    floor,
    lane_numbers,
    lanes_of,
    opaque,
    splat,
    store,
    store_upto,
    where,
)

N_ROUNDS = 6


@inline
def mix(x):
    """SplitMix64's finaliser (Steele, Lea, Flood 2014) of a scalar: each bit of x reaches all bits of the result."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@inline
def _times(x, y):
    """x * y of numbers < 2**32, as LLVM is told by the masks: products of 64 bits take three instructions each.

    Opaque, or LLVM would drop the masks where the lower bits are all that is wanted.
    """
    return opaque((x & 0xFFFFFFFF) * (y & 0xFFFFFFFF))


@inline
def _below(half, key, bound):
    """A hash of the lanes of `half` < 2**32 under `key`, spread over 0..bound-1 by multiplication (Lemire 2019)."""
    x = _times(half ^ key, splat(half, 0x9E3779B1)) & 0xFFFFFFFF
    x = _times(x ^ (x >> 15), splat(half, 0x85EBCA77))
    return _times(x, bound) >> 32  # the upper bits decide, which all lower ones have reached


@inline
def _permute(left, right, n_left, n_right, key):
    """One application of the Feistel network on (left < n_left, right < n_right), halves added modulo their bounds."""
    for _ in range(0, N_ROUNDS, 2):
        right += _below(left, splat(left, key >> np.uint64(32)), n_right)
        right = where(right >= n_right, right - n_right, right)
        left += _below(right, splat(left, key & np.uint64(0xFFFFFFFF)), n_left)
        left = where(left >= n_left, left - n_left, left)
        key = key * np.uint64(0xD1342543DE82EF95) + np.uint64(1)
    return left, right


@inline
def _key_of(seed, epoch):
    return mix(np.uint64(seed) + mix(np.uint64(epoch) + np.uint64(0x9E3779B97F4A7C15)))


@inline
def _permutation(rows, first, start, n, n_rows, key, offset, is_whole):
    """Write offset + the places of start..start+n-1 in a permutation of n_rows to rows[first:].

    is_whole : a constant, whether whole vectors may be written.
    """
    # Close to the square root, so that few pairs lie beyond n_rows; any b gives a*b >= n_rows by the division.
    b = max(2, np.int64(np.sqrt(np.float64(n_rows))))
    a = (n_rows + b - 1) // b
    n_left, n_right, limit = splat(rows, a), splat(rows, b), splat(rows, n_rows)
    for i in range(0, n, lanes_of(rows)):
        # Positions beyond the last row, in lanes that nobody reads, would be walked on for ever.
        position = lane_numbers(rows) + (start + i)
        position = where(position >= limit, splat(rows, 0), position)
        left = convert(floor(convert(position) / np.float64(b)))
        left = where(_times(left, n_right) > position, left - 1, left)  # the quotient may have been rounded up
        right = position - _times(left, n_right)
        left, right = _permute(left, right, n_left, n_right, key)
        outside = _times(left, n_right) + right >= limit
        while any_lane(outside):
            next_left, next_right = _permute(left, right, n_left, n_right, key)
            left, right = where(outside, next_left, left), where(outside, next_right, right)
            outside = _times(left, n_right) + right >= limit
        row = _times(left, n_right) + right + offset
        if is_whole:
            store(rows, first + i, row)
        else:
            store_upto(rows, first + i, row, n - i)


@leaf(lambda T: types.void(types.CPointer(types.int64), types.intp, types.intp, types.intp, types.intp, types.intp,
                           types.intp))  # fmt: skip
def sample_order(rows, start, n, n_rows, shuffle, seed, epoch):
    """Write the rows at positions start..start+n-1 of the epoch into `rows`, whole vectors of them.

    shuffle : 0 for row = position; 1 for a permutation of all rows; else the length of windows of rows that lie side by
    side, which are permuted, and each in itself. What is left behind the whole windows comes last.

    A permutation is a Feistel network on pairs below (a, b), a*b >= n_rows, keyed by (seed, epoch) and the window: a
    bijection. Pairs beyond n_rows (fewer than a of them) are walked on until they fall inside, which keeps it one
    (Black and Rogaway 2002, cycle walking). No state, O(1) memory. Of few rows, not all orders are equally likely: the
    rounds mix too little there. n_rows < 2**53. `rows` has room for whole vectors.
    """
    if shuffle == 0:
        for i in range(0, n, lanes_of(rows)):
            store(rows, i, lane_numbers(rows) + (start + i))
    elif shuffle == 1:
        _permutation(rows, 0, start, n, n_rows, _key_of(seed, epoch), 0, True)
    else:
        _windows(rows, start, n, n_rows, shuffle, seed, epoch)


@inline
def _windows(rows, start, n, n_rows, length, seed, epoch):
    """As `sample_order`, with windows."""
    n_windows, done = n_rows // length, 0
    while done < n:
        place = (start + done) // length
        window, size = place, length
        if place < n_windows:
            _permutation(rows, done, place, 1, n_windows, _key_of(seed, epoch), 0, False)
            window = rows[done]
        else:
            size = n_rows - n_windows * length
        first = start + done - place * length
        n_here = min(n - done, size - first)
        key = mix(_key_of(seed, epoch) + np.uint64(window) + np.uint64(1))
        _permutation(rows, done, first, n_here, size, key, window * length, False)
        done += n_here
