"""Time activations where subnormal numbers are near, and products that meet them.

    python perf/leaves.py subnormals [--dtypes float32,float64] [--only silu,tanh] [--rounds 200]

Every activation and direction runs on pre-activations that are all the same number, of a grid that reaches to where
exp underflows and to subnormals, as products may leave them; backward, the derivatives that come in are ordinary or
tiny ones. All take turns in the same memory, for a moment each, and the best of the rounds counts; setting back the
array is included. Printed are the time of the fastest, the slowest relative to it, and every one that takes more than
1.5 times as long: there should be none. A product's chains of multiply-adds are not guarded: the last lines say what
it costs there if operands, terms or sums are subnormal. On some processors that is nothing, on others a factor of 100.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import numpy as np

from fastbp.kernels.activations import ACTIVATIONS
from fastbp.kernels.panels import panel_width
from fastbp.kernels.products import dense, packed
from fastbp.kernels.products.tile import TILE_ROWS
from harness import options
from parts.floors import N, aligned, call_once, constants_of, plain, repeat, repeat_after

LIMIT = 1.5
SECONDS = 5e-5  # of one measurement: short enough to fall between what else the machine does
Z = {
    "float32": (-750.0, -104.0, -95.0, -88.0, -83.0, -75.0, -45.0, -20.0, -13.5, -1.0, -1e-10, -1e-30, -1e-40, 0.0,
                1e-38, 1e-35, 1e-20, 1e-5, 1.0, 20.0, 95.0, 750.0),
    "float64": (-750.0, -745.0, -710.0, -704.0, -600.0, -360.0, -95.0, -38.0, -13.5, -1.0, -1e-100, -1e-250, -1e-310,
                0.0, 1e-307, 1e-300, 1e-160, 1e-5, 1.0, 38.0, 360.0, 750.0),
}  # fmt: skip
KEPT = {"float32": 2.0**-119, "float64": 2.0**-1015}  # z, where it is kept, has passed through `flush`
D = {"float32": (1e-3, 1e-18, 1e-30, 1e-38, 1e-42), "float64": (1e-3, 1e-150, 1e-200, 1e-307, 1e-312)}


def fastest(fills: dict[str, tuple[np.ndarray, ...]], arrays: tuple[np.ndarray, ...], run: Any, rounds: int) -> Any:
    """Return the least time of a repetition for each filling of the arrays, all measured in turns."""
    counts, best = dict.fromkeys(fills, 100), dict.fromkeys(fills, math.inf)
    for _ in range(rounds):
        for where, contents in fills.items():
            for array, content in zip(arrays, contents, strict=True):
                array[...] = content
            begin = time.perf_counter()
            run(counts[where])
            best[where] = min(best[where], (time.perf_counter() - begin) / counts[where])
            counts[where] = max(1, int(SECONDS / best[where]))
    return best


def forward_seconds(name: str, dtype: str, rounds: int) -> dict[str, float]:
    """Return the time of the forward leaf at each z."""
    n_features = 8 if name == "softmax" else 1
    fills = {}
    for z in Z[dtype]:
        content = np.full(N, z, dtype)
        if n_features > 1:  # all the same would be 0 beside the largest
            content.reshape(-1, n_features, panel_width(dtype))[:, 0] = 0.0
        fills[f"z = {z:g}"] = (content,)
    z, h = (aligned(N, dtype=dtype) for _ in range(2))
    activation, constants = ACTIVATIONS[name], constants_of(ACTIVATIONS[name])
    leaf, copy = activation.forward.address(dtype), packed.pack_rows.address(dtype)
    arguments, restore = plain((h, n_features, N // n_features, constants)), plain((z, N, 1, N, h, N))
    return fastest(fills, (z,), lambda n: repeat_after(n, leaf, arguments, copy, restore), rounds)


def backward_seconds(name: str, dtype: str, rounds: int) -> dict[str, float]:
    """Return the time of the backward leaf at each z and for each d."""
    activation, h = ACTIVATIONS[name], aligned(N, dtype=dtype)
    constants = constants_of(activation)
    fills = {}
    for z in Z[dtype]:
        h[:] = z
        call_once(activation.forward, dtype, (h, 1, N, constants))
        for d in D[dtype]:
            fills[f"z = {z:g}, d = {d:g}"] = (np.full(N, z if abs(z) > KEPT[dtype] else 0.0, dtype), h.copy(),
                                              np.full(N, d, dtype))  # fmt: skip
    z, d, original = (aligned(N, dtype=dtype) for _ in range(3))
    leaf, copy = activation.backward.address(dtype), packed.pack_rows.address(dtype)
    arguments, restore = plain((d, z, h, 1, N, constants)), plain((original, N, 1, N, d, N))
    return fastest(fills, (z, h, original), lambda n: repeat_after(n, leaf, arguments, copy, restore), rounds)


def print_activation(name: str, dtype: str, rounds: int) -> bool:
    """Time an activation at each number, and print what is slow; returns whether something is."""
    is_slow = False
    for direction, measure in (("forward", forward_seconds), ("backward", backward_seconds)):
        times = measure(name, dtype, rounds)
        least, slowest = min(times.values()), max(times, key=times.__getitem__)
        print(f"{name:12}{direction:10}{1e9 * least:9.1f} ns{times[slowest] / least:8.2f} at {slowest}")
        for where, seconds in times.items():
            if seconds > LIMIT * least:
                is_slow = True
                print(f"{'':12}more than {LIMIT}: {seconds / least:8.2f} at {where}")
    return is_slow


def product_seconds(dtype: str, rounds: int) -> dict[str, float]:
    """Return the time of the product of a panel by what is subnormal in it, first of one that has nothing subnormal."""
    panel, n_m, n_k = panel_width(dtype), 2 * TILE_ROWS, 64
    w, h = (aligned(n_k, width, dtype=dtype) for width in (n_m, panel))
    c, bias = aligned(n_m, panel, dtype=dtype), aligned(n_m, dtype=dtype)
    tiny = float(np.finfo(dtype).tiny)
    fills = {}
    for what, w_scale, h_scale, bias_value in (
        ("nothing", 1.0, 1.0, 1.0),
        ("the samples' numbers", 1.0, tiny / 64, 1.0),
        ("weights", tiny / 64, 1.0, 1.0),
        ("each term, in sums that are not", tiny**0.5 / 8, tiny**0.5 / 8, 1.0),
        ("each term, and the sums", tiny**0.5 / 64, tiny**0.5 / 64, 0.0),
        ("each term, too small even for a subnormal", tiny**0.75, tiny**0.75, 0.0),
    ):
        fills[what] = (w.astype(float) * w_scale, h.astype(float) * h_scale, np.full(n_m, bias_value))
    arguments = plain((n_m, panel, w, TILE_ROWS, 1, n_m, 0, 0, h, panel, c, panel, bias, 1, 1, n_k, 1))
    leaf = dense.multiply_panel.address(dtype)
    return fastest(fills, (w, h, bias), lambda n: repeat(n, leaf, arguments), rounds)


def print_products(dtype: str, rounds: int) -> None:
    """Time the product of a panel with each kind of operands."""
    times = product_seconds(dtype, rounds)
    print("A product of a panel, 64 terms, by what is subnormal in it:")
    for what, time_of in times.items():
        print(f"{'':4}{what:44}{1e9 * time_of:9.1f} ns{time_of / times['nothing']:8.2f}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add those of this part."""
    options.add_dtypes(parser)
    options.add_rounds(parser, 200)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(ACTIVATIONS), help="activations")


def run(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    for dtype in arguments.dtypes:
        print(f"\n{dtype}: at the fastest z, and at the slowest relative to it")
        slow = [name for name in arguments.only if print_activation(name, dtype, arguments.rounds)]
        print(f"More than {LIMIT} times the fastest: {', '.join(slow) or 'none'}")
        print_products(dtype, arguments.rounds)
