"""What a step draws at random: which units it drops, and noise.

Each number is a hash of (seed, step, layer; the sample's position in the batch; the feature). So it is the same for any
threads and any cut into calls, a run repeats or resumes it, and the way back drops what the way there has dropped,
without a table.

Both leaves work in place. x : n_samples samples of n_features values in panels, as everywhere (`panels`). first : the
position in the batch of the first of them. key : of (seed, step, layer), as `key_of` makes it. No checks: the caller
validates.
"""

import numpy as np
from numba import types

from fastbp._jit import inline, leaf
from fastbp.kernels.elementary import log1p
from fastbp.kernels.panels import panel_of
from fastbp.kernels.shuffle import mix
from fastbp.kernels.simd import (
    convert,
    flush,
    fma,
    lane_numbers,
    lanes_of,
    load_upto,
    polynomial,
    splat,
    sqrt,
    store_upto,
    where,
)

INPUT_NOISE = -1  # in the place of a layer

_BITS = 24  # of a draw: what a float32 holds
_UNIT = 2.0**-_BITS
# sin(pi * w) / w in powers of w**2, for abs(w) <= 1/2: Taylor's.
_SINE = (
    3.141592653589793, -5.16771278004997, 2.550164039877345, -0.5992645293207921, 0.08214588661112823,
    -0.00737043094571435, 0.00046630280576761256, -2.1915353447830215e-05, 7.952054001475513e-07,
    -2.2948428997269873e-08,
)  # fmt: skip
_sine_factor = polynomial(_SINE, _SINE)


@inline
def key_of(seed, step, layer):
    """The key of what a layer draws in a step."""
    key = mix(np.uint64(seed) + mix(np.uint64(step) + np.uint64(0x9E3779B97F4A7C15)))
    return np.intp(mix(key + np.uint64(layer + 2)))


@inline
def _scrambled(x):
    """A hash of 32-bit lanes, in lanes of 32 bits or of 64 (C. Wellons' `lowbias32`, 2018)."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D & 0xFFFFFFFF
    x = (x ^ ((x >> 15) & 0x1FFFF)) * 0x846CA68B & 0xFFFFFFFF
    return x ^ ((x >> 16) & 0xFFFF)


@inline
def _samples(x, first, key):
    """A hash of the positions from `first` on, one for each lane."""
    return _scrambled((convert(lane_numbers(x)) + first) ^ (key & 0xFFFFFFFF))


@inline
def _drawn(samples, feature, key):
    """A whole number below 2**24 for each lane, as floats."""
    place = (feature * 0x9E3779B1 + (key >> 32)) & 0xFFFFFFFF
    return convert((_scrambled(samples ^ place) >> 8) & 0xFFFFFF)


def _signature(T):
    return types.void(types.CPointer(T), types.intp, types.intp, types.intp, types.intp, types.float64)


@leaf(_signature)
def drop(x, n_features, n_samples, first, key, rate):
    """Dropout (Srivastava et al. 2014), inverted: zero with probability `rate`, else divided by 1 - rate."""
    scale, bound = splat(x, 1.0 / (1.0 - rate)), splat(x, rate / _UNIT)
    for start in range(0, n_samples, panel_of(x)):
        width = min(panel_of(x), n_samples - start)
        for s in range(0, width, lanes_of(x)):
            samples = _samples(x, first + start + s, key)
            for j in range(n_features):
                i = start * n_features + j * width + s
                kept = _drawn(samples, j, key) >= bound
                store_upto(x, i, where(kept, load_upto(x, i, width - s) * scale, 0.0), width - s)


@leaf(_signature)
def add_noise(x, n_features, n_samples, first, key, std):
    """x += a normal number of mean 0 and this standard deviation (Box and Muller 1958).

    The sine of a uniform angle has the same distribution on a half circle as on a whole one.
    """
    for start in range(0, n_samples, panel_of(x)):
        width = min(panel_of(x), n_samples - start)
        for s in range(0, width, lanes_of(x)):
            samples = _samples(x, first + start + s, key)
            for j in range(n_features):
                i = start * n_features + j * width + s
                u, w = (_drawn(samples, 2 * j, key) + 0.5) * _UNIT, _drawn(samples, 2 * j + 1, key) * _UNIT - 0.5
                radius = sqrt(2.0 * log1p(1.0 / u - 1.0))  # precise for small u, which make the tails
                noise = radius * (w * _sine_factor(w * w))
                store_upto(x, i, flush(fma(noise, splat(x, std), load_upto(x, i, width - s))), width - s)
