"""Fit the polynomials of `fastbp.kernels.elementary` by a Remez exchange and print their coefficients, lowest first.

Each fit is rounded one coefficient at a time, lowest power first, and the others are fitted again around it, so that
the error with rounded coefficients stays close to the minimax error. Needs mpmath; takes about two minutes.
"""

from itertools import pairwise

import mpmath as mp
import numpy as np

mp.mp.dps = 50
N_GRID = 800


def remez(function, weight, low, high, powers, fixed):
    """Coefficients of x**powers that minimise the largest |weight * (polynomial - function)|, and that error.

    `fixed` maps further powers to coefficients that are given.
    """
    n = len(powers)
    nodes = [(low + high) / 2 - (high - low) / 2 * mp.cos(mp.pi * i / N_GRID) for i in range(N_GRID + 1)]
    rest = [function(x) - sum(c * x**p for p, c in fixed.items()) for x in nodes]
    weights = [weight(x) for x in nodes]
    extrema = [round(i * N_GRID / n) for i in range(n + 1)]
    best = None
    for _ in range(30):
        rows = [[nodes[i] ** p for p in powers] + [(-1) ** k / weights[i]] for k, i in enumerate(extrema)]
        *coefficients, level = mp.lu_solve(mp.matrix(rows), mp.matrix([rest[i] for i in extrema]))
        errors = [
            w * (sum(c * x**p for p, c in zip(powers, coefficients, strict=True)) - y)
            for x, y, w in zip(nodes, rest, weights, strict=True)
        ]
        largest = max(map(abs, errors))
        if best is None or largest < best[1]:
            best = coefficients, largest
        extrema = alternating_extrema(errors, n + 1)
        if len(extrema) <= n or largest < 1.001 * abs(level):
            break
    return best


def alternating_extrema(errors, n):
    """Indices of at most n local extrema of alternating sign, the largest that there are."""
    found = []
    for i, error in enumerate(errors):
        if found and errors[found[-1]] * error > 0:
            if abs(error) > abs(errors[found[-1]]):
                found[-1] = i
        else:
            found.append(i)
    while len(found) > n:
        if len(found) == n + 1:
            found.pop(0 if abs(errors[found[0]]) < abs(errors[found[-1]]) else -1)
        else:
            pairs = [max(abs(errors[i]), abs(errors[j])) for i, j in pairwise(found)]
            smallest = pairs.index(min(pairs))
            del found[smallest : smallest + 2]
    return found


def fit(dtype, function, weight, low, high, degree, first=None):
    """The rounded coefficients and the error of the fit; `first` is the constant term where it must be exact."""
    fixed = {} if first is None else {0: mp.mpf(first)}
    powers = [p for p in range(degree + 1) if p not in fixed]
    error = None
    while powers:
        coefficients, error = remez(function, weight, low, high, powers, fixed)
        fixed[powers.pop(0)] = mp.mpf(float(dtype(float(coefficients[0]))))
    return [float(fixed[p]) for p in range(degree + 1)], error


def expm1_factor(r):
    """(expm1(r) - r) / r**2."""
    return (mp.expm1(r) - r) / r**2 if abs(r) > 1e-15 else mp.mpf(1) / 2 + r / 6


def log1p_factor(f):
    """(log1p(f) - f) / f**2."""
    return (mp.log1p(f) - f) / f**2 if abs(f) > 1e-15 else -mp.mpf(1) / 2 + f / 3


def erf_exponent(x):
    """g with erf(x) = -expm1(-x - x * g(x))."""
    return -mp.log(mp.erfc(x)) / x - 1 if x > 1e-20 else 2 / mp.sqrt(mp.pi) - 1


def erf_weight(x):
    """The relative error of erf for an error of `erf_exponent`."""
    return x / mp.expm1(x + x * erf_exponent(x)) if x > 1e-20 else 1 / (1 + erf_exponent(x))


def main():
    half_log2 = mp.log(2) / 2 + mp.mpf("1e-4")
    sqrt_half, sqrt_two = mp.sqrt(0.5) - 1 - mp.mpf("1e-4"), mp.sqrt(2) - 1 + mp.mpf("1e-4")
    # Weights are relative errors of the whole function, bounded below where its argument passes zero.
    jobs = {
        "expm1": (
            expm1_factor,
            lambda r: max(r**2 / abs(mp.expm1(r)) if r else 0, mp.mpf("1e-3")),
            -half_log2,
            half_log2,
        ),
        "log1p": (
            log1p_factor,
            lambda f: max(f**2 / abs(mp.log1p(f)) if f else 0, mp.mpf("1e-3")),
            sqrt_half,
            sqrt_two,
        ),
        "log1p_unit": (
            log1p_factor,
            lambda f: max(f**2 / mp.log1p(f) if f else 0, mp.mpf("1e-3")),
            mp.mpf(0),
            mp.mpf(1),
        ),
        "erf, float32": (erf_exponent, erf_weight, mp.mpf(0), mp.mpf(4)),
        "erf, float64": (erf_exponent, erf_weight, mp.mpf(0), mp.mpf(6)),
    }
    plans = [
        ("expm1", np.float32, 4, 0.5),
        ("expm1", np.float64, 10, 0.5),
        ("log1p", np.float32, 9, -0.5),
        ("log1p", np.float64, 20, -0.5),
        ("log1p_unit", np.float32, 8, -0.5),
        ("log1p_unit", np.float64, 19, -0.5),
        ("erf, float32", np.float32, 8, None),
        ("erf, float64", np.float64, 23, None),
    ]
    for name, dtype, degree, first in plans:
        coefficients, error = fit(dtype, *jobs[name], degree, first)
        print(f"{name} as {dtype.__name__}, degree {degree}, relative error {mp.nstr(error, 3)}:")
        print("    " + ", ".join(map(repr, coefficients)))


if __name__ == "__main__":
    main()
