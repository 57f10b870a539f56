"""Helpers for learning while a simulation runs, compiled into the user's function: a replay buffer and a normalizer.

Each is one array that owns its memory, whose dtype's only field is named as those of handles are (`overloads`). A copy,
or a pickle, is a whole one.

A replay buffer holds int64: a mark, capacity, n_in, n_out, samples pushed, state of the generator; then rows of numbers
of its dtype, x first. A normalizer holds float64: how many samples, then the means and the sums of squared distances
from them of each feature.
"""

import numpy as np
from numba import TypingError, types

from fastbp._jit import inline
from fastbp.kernels.calls import address_of_array, float32_at, float64_at, int64_at
from fastbp.kernels.embedding import BATCH, MOVED, OK, OUT_SHAPE, X_SHAPE, Y_SHAPE
from fastbp.kernels.overloads import NORMALIZER_KIND, REPLAY_KIND, stamp_of

MARK, CAPACITY, N_IN, N_OUT, N_PUSHED, STATE, HEADER = range(7)
IS_BUFFER = 0x6661737462702B31  # what stands at MARK: a part of a buffer has something else there

_NUMBERS_AT = {"float32": float32_at, "float64": float64_at}


@inline
def _is_whole(buffer, size):
    """Whether this is a whole replay buffer, whose numbers take `size` bytes."""
    if buffer.shape[0] < HEADER:
        return False
    header = int64_at(address_of_array(buffer))
    n_bytes = header[CAPACITY] * (header[N_IN] + header[N_OUT]) * size
    return header[MARK] == IS_BUFFER and buffer.shape[0] == HEADER + (n_bytes + 7) // 8


def _check(function, named, ndims=(1, 2)):
    """Raise a TypingError that names the first argument that is no array of real numbers of these dimensions."""
    first = next(iter(named.values()))
    for name, array in named.items():
        is_number = isinstance(array, types.Array) and isinstance(array.dtype, (types.Float, types.Integer))
        if not is_number or array.ndim not in ndims:
            raise TypingError(f"embed.{function}: {name} must be an array of numbers of 1 or 2 dimensions, got {array}")
        if array.ndim != first.ndim:
            raise TypingError(f"embed.{function}: {name} must have as many dimensions as x, got {array}")


def _check_written(function, name, array):
    if not array.mutable or not isinstance(array.dtype, types.Float):
        raise TypingError(f"embed.{function}: {name} must be a writable array of float32 or float64, got {array}")


def replay_push(buffer, x, y):
    """Type `embed.replay_push`."""
    dtype, is_ours = stamp_of(buffer, "replay_push", (REPLAY_KIND,), is_written=True)
    _check("replay_push", {"x": x, "y": y})
    if not is_ours:
        return lambda buffer, x, y: MOVED
    numbers_at, size = _NUMBERS_AT[dtype], np.dtype(dtype).itemsize

    def push_one(buffer, x, y):
        if not _is_whole(buffer, size):
            return MOVED
        header = int64_at(address_of_array(buffer))
        n_in, n_out = header[N_IN], header[N_OUT]
        if x.shape[0] != n_in:
            return X_SHAPE
        if y.shape[0] != n_out:
            return Y_SHAPE
        row = header[N_PUSHED] % header[CAPACITY]
        numbers = numbers_at(address_of_array(buffer) + 8 * HEADER + row * (n_in + n_out) * size)
        for j in range(n_in):
            numbers[j] = x[j]
        for j in range(n_out):
            numbers[n_in + j] = y[j]
        header[N_PUSHED] += 1
        return OK

    def push_rows(buffer, x, y):
        if not _is_whole(buffer, size):
            return MOVED
        header = int64_at(address_of_array(buffer))
        if x.shape[1] != header[N_IN]:
            return X_SHAPE
        if y.shape[1] != header[N_OUT] or y.shape[0] != x.shape[0]:
            return Y_SHAPE
        for i in range(x.shape[0]):
            row = header[N_PUSHED] % header[CAPACITY]
            numbers = numbers_at(address_of_array(buffer) + 8 * HEADER + row * (header[N_IN] + header[N_OUT]) * size)
            for j in range(x.shape[1]):
                numbers[j] = x[i, j]
            for j in range(y.shape[1]):
                numbers[x.shape[1] + j] = y[i, j]
            header[N_PUSHED] += 1
        return OK

    return push_one if x.ndim == 1 else push_rows


def replay_sample(buffer, x_batch, y_batch):
    """Type `embed.replay_sample`."""
    dtype, is_ours = stamp_of(buffer, "replay_sample", (REPLAY_KIND,), is_written=True)
    _check("replay_sample", {"x_batch": x_batch, "y_batch": y_batch}, ndims=(2,))
    _check_written("replay_sample", "x_batch", x_batch)
    _check_written("replay_sample", "y_batch", y_batch)
    if not is_ours:
        return lambda buffer, x_batch, y_batch: MOVED
    numbers_at, size = _NUMBERS_AT[dtype], np.dtype(dtype).itemsize

    def sample(buffer, x_batch, y_batch):
        if not _is_whole(buffer, size):
            return MOVED
        header = int64_at(address_of_array(buffer))
        n_in, n_out = header[N_IN], header[N_OUT]
        if x_batch.shape[1] != n_in:
            return X_SHAPE
        if y_batch.shape[1] != n_out or y_batch.shape[0] != x_batch.shape[0]:
            return Y_SHAPE
        n = min(header[N_PUSHED], header[CAPACITY])
        if n == 0:
            return BATCH
        for i in range(x_batch.shape[0]):
            # SplitMix64 (Steele, Lea and Flood 2014).
            state = np.uint64(header[STATE]) + np.uint64(0x9E3779B97F4A7C15)
            header[STATE] = np.int64(state)
            z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z = z ^ (z >> np.uint64(31))
            row = np.int64((z >> np.uint64(11)) * 2.0**-53 * n)
            numbers = numbers_at(address_of_array(buffer) + 8 * HEADER + row * (n_in + n_out) * size)
            for j in range(n_in):
                x_batch[i, j] = numbers[j]
            for j in range(n_out):
                y_batch[i, j] = numbers[n_in + j]
        return OK

    return sample


def normalizer_update(normalizer, x):
    """Type `embed.normalizer_update`."""
    _, is_ours = stamp_of(normalizer, "normalizer_update", (NORMALIZER_KIND,), is_written=True)
    _check("normalizer_update", {"x": x})
    if not is_ours:
        return lambda normalizer, x: MOVED

    def update_one(normalizer, x):
        n = (normalizer.shape[0] - 1) // 2
        if x.shape[0] != n:
            return X_SHAPE
        sums = float64_at(address_of_array(normalizer))
        sums[0] += 1.0
        for j in range(n):
            distance = x[j] - sums[1 + j]
            sums[1 + j] += distance / sums[0]
            sums[1 + n + j] += distance * (x[j] - sums[1 + j])
        return OK

    def update_rows(normalizer, x):
        n = (normalizer.shape[0] - 1) // 2
        if x.shape[1] != n:
            return X_SHAPE
        sums = float64_at(address_of_array(normalizer))
        for i in range(x.shape[0]):
            sums[0] += 1.0
            for j in range(n):
                distance = x[i, j] - sums[1 + j]
                sums[1 + j] += distance / sums[0]
                sums[1 + n + j] += distance * (x[i, j] - sums[1 + j])
        return OK

    return update_one if x.ndim == 1 else update_rows


def normalizer_apply(normalizer, x, out):
    """Type `embed.normalizer_apply`."""
    _, is_ours = stamp_of(normalizer, "normalizer_apply", (NORMALIZER_KIND,))
    _check("normalizer_apply", {"x": x, "out": out})
    _check_written("normalizer_apply", "out", out)
    if not is_ours:
        return lambda normalizer, x, out: MOVED

    def apply_one(normalizer, x, out):
        n = (normalizer.shape[0] - 1) // 2
        if x.shape[0] != n:
            return X_SHAPE
        if out.shape[0] != n:
            return OUT_SHAPE
        sums = float64_at(address_of_array(normalizer))
        for j in range(n):
            square = sums[1 + n + j] / max(1.0, sums[0])
            out[j] = (x[j] - sums[1 + j]) / (np.sqrt(square) if square > 0.0 else 1.0)
        return OK

    def apply_rows(normalizer, x, out):
        n = (normalizer.shape[0] - 1) // 2
        if x.shape[1] != n:
            return X_SHAPE
        if out.shape[1] != n or out.shape[0] != x.shape[0]:
            return OUT_SHAPE
        sums = float64_at(address_of_array(normalizer))
        for i in range(x.shape[0]):
            for j in range(n):
                square = sums[1 + n + j] / max(1.0, sums[0])
                out[i, j] = (x[i, j] - sums[1 + j]) / (np.sqrt(square) if square > 0.0 else 1.0)
        return OK

    return apply_one if x.ndim == 1 else apply_rows
