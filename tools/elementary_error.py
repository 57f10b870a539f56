"""Measure the largest error of each function of `fastbp.kernels.elementary`, in units in the last place.

float32: every value of its domain, against float64. float64: random values, against mpmath. Results that are flushed to
zero on purpose do not count. Takes about half an hour on one core; `--step 1001 --points 20000` takes half a minute.
"""

import argparse
import math

import mpmath
import numba
import numpy as np
from numba import types

from fastbp._jit import leaf
from fastbp.kernels import elementary
from fastbp.kernels.calls import call
from fastbp.kernels.simd import lanes_of, load, store

CHUNK = 1 << 20
mpmath.mp.prec = 90

# name: the function in float64 for Numba, in mpmath, and the domain beyond which its value is constant or infinite.
FUNCTIONS = {
    "exp_negative": (lambda x: math.exp(x), mpmath.exp, -760.0, 0.0),
    "exp_negative_factor": (lambda x: math.exp(x), mpmath.exp, -760.0, 0.0),
    "expm1": (lambda x: math.expm1(x), mpmath.expm1, -50.0, 710.0),
    "tanh": (lambda x: math.tanh(x), mpmath.tanh, -25.0, 25.0),
    "sigmoid": (lambda x: 1.0 / (1.0 + math.exp(-x)), lambda x: 1 / (1 + mpmath.exp(-x)), -760.0, 60.0),
    "sigmoid_factor": (lambda x: 1.0 / (1.0 + math.exp(-x)), lambda x: 1 / (1 + mpmath.exp(-x)), -760.0, 60.0),
    "log1p": (lambda x: math.log1p(x), mpmath.log1p, math.nextafter(-1.0, 0.0), math.inf),
    "log1p_unit": (lambda x: math.log1p(x), mpmath.log1p, 0.0, 1.0),
    "erf": (lambda x: math.erf(x), mpmath.erf, -7.0, 7.0),
    "softplus": (
        lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x))),
        lambda x: mpmath.log1p(mpmath.exp(x)),
        -760.0,
        100.0,
    ),
}

# name: least results in float32 and float64 that are not 0, or up to a root of two less.
LEAST = dict.fromkeys(("exp_negative", "sigmoid", "softplus"), (2.0 ** (-118), 2.0 ** (-1014)))
LEAST |= dict.fromkeys(("exp_negative_factor", "sigmoid_factor"), (2.0 ** (-62), 2.0 ** (-510)))


@numba.njit
def call_leaf(address, arguments):
    call(address, arguments)


def in_vectors(function):
    """Return `f(x) -> y` on arrays of a multiple of 64 elements."""

    def body(x, y, n):
        for i in range(0, n, lanes_of(x)):
            store(y, i, function(load(x, i)))

    compiled = leaf(lambda dtype: types.void(types.CPointer(dtype), types.CPointer(dtype), types.intp))(body)

    def apply(x):
        y = np.empty_like(x)
        call_leaf(compiled.address(x.dtype), (x.ctypes.data, y.ctypes.data, x.size))
        return y

    return apply


def float32_errors(reference, least):
    """Return a compiled function: the largest error of float32 y against reference(x), and where it is.

    A zero is right where the exact value is less than `least`.
    """
    reference = numba.njit(error_model="numpy")(reference)
    largest = float(np.finfo(np.float32).max)

    @numba.njit(error_model="numpy")
    def worst(x, y):
        worst_error, worst_x = 0.0, x[0]
        for x_i, y_i in zip(x, y):  # noqa: B905 (Numba knows no strict=)
            exact = reference(np.float64(x_i))
            if abs(exact) <= largest and (y_i != 0.0 or abs(exact) >= least):
                exponent = max(math.frexp(exact)[1], -125)
                error = math.ldexp(abs(np.float64(y_i) - exact), 24 - exponent)
                if not error <= worst_error:
                    worst_error, worst_x = error, x_i
        return worst_error, worst_x

    return worst


def scan_float32(apply, reference, low, high, step, least):
    """The largest error over every `step`-th float32 value between low and high."""
    worst = float32_errors(reference, least)
    found = [(0.0, np.float32(0))]
    for sign, end in ((0, max(high, 0.0)), (1 << 31, max(-low, 0.0))):
        last = int(np.float32(min(end, float(np.finfo(np.float32).max))).view(np.uint32))
        for start in range(0, last + 1, CHUNK * step):
            bits = np.minimum(np.arange(start, start + CHUNK * step, step), last) | sign
            x = bits.astype(np.uint32).view(np.float32)
            x = np.clip(x, np.float32(low) if low > -1 else None, None)
            x[np.abs(x) < 2.0**-119] = 0.0  # what no kernel computes with
            found.append(worst(x, apply(x)))
    return max(found)


def scan_float64(apply, reference, low, high, n_points, least):
    """The largest error over random values: half of them uniform in value, half in the exponent."""
    rng = np.random.default_rng(0)
    n = n_points // 128 * 64
    uniform = rng.uniform(max(low, -1e3), min(high, 1e3), n)
    scattered = 2.0 ** rng.uniform(-60, 10, n) * rng.choice([-1.0, 1.0], n)
    x = np.clip(np.concatenate([uniform, scattered]), low, high)
    worst = (0.0, 0.0)
    for x_i, y_i in zip(x.tolist(), apply(x).tolist(), strict=True):
        exact = reference(mpmath.mpf(x_i))
        exponent = max(int(mpmath.frexp(exact)[1]), -1021)
        if exponent <= 1024 and math.isfinite(y_i) and (y_i != 0.0 or abs(exact) >= least):
            worst = max(worst, (float(mpmath.ldexp(abs(y_i - exact), 53 - exponent)), x_i))
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="functions, by default all")
    parser.add_argument("--step", type=int, default=1, help="distance of the float32 values, in ulp")
    parser.add_argument("--points", type=int, default=1 << 21, help="number of float64 values")
    options = parser.parse_args()
    for name in options.names or FUNCTIONS:
        in_float64, in_mpmath, low, high = FUNCTIONS[name]
        apply = in_vectors(getattr(elementary, name))
        least = LEAST.get(name, (0.0, 0.0))
        error, x = scan_float32(apply, in_float64, low, high, options.step, least[0])
        print(f"{name:10}  float32 {error:5.2f} ulp at {x:.9g}", end="", flush=True)
        error, x = scan_float64(apply, in_mpmath, low, high, options.points, least[1])
        print(f"   float64 {error:5.2f} ulp at {x:.17g}", flush=True)


if __name__ == "__main__":
    main()
