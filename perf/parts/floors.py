"""Time every leaf on data in the first-level cache against its own floor.

    python perf/leaves.py floors [--dtypes float32,float64] [--only adam,tanh] [--rounds 9]

The floor is the larger of two times: that of its multiply-adds at the peak of the FMA units, and that of its bytes at
the bandwidth of the first-level cache, both measured here. Of element-wise leaves the multiplications, multiply-adds,
divisions and roots are counted in the inner loop of the LLVM code, each as one multiply-add. Shares are of the best of
the rounds, the peaks too. Integer work, comparisons and the latencies of short sums are in no floor.
"""

from __future__ import annotations

import argparse
import math
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from numba import types

from fastbp._jit import leaf
from fastbp.kernels import gather, losses, shuffle, sums, transpose, updates
from fastbp.kernels.activations import ACTIVATIONS, Activation
from fastbp.kernels.calls import call
from fastbp.kernels.panels import panel_width
from fastbp.kernels.products import dense, gradient
from fastbp.kernels.products.lists import list_nonzeros, multiply_nonzeros, strip_width
from fastbp.kernels.products.packed import pack_columns, pack_rows
from fastbp.kernels.products.tile import TILE_ROWS
from fastbp.kernels.simd import fma, lanes_of, load, store
from harness import options, peak

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastbp._jit import Leaf

N = 1024  # elements of each array
SECONDS = 2e-3  # of one measurement
STORED = re.compile(r"store <|@llvm\.masked\.store\.v")
COUNTED = re.compile(r"= (?:fmul|fdiv) .*<\d+ x|@llvm\.(?:fma|sqrt)\.v")


@leaf(lambda T: types.void(types.CPointer(T), types.CPointer(T), types.CPointer(T), types.intp))
def triad(x, y, out, n):
    """out = 2 * x + y: two loads and a store per multiply-add."""
    lanes = lanes_of(x)
    for i in range(0, n, 4 * lanes):
        store(out, i, fma(load(x, i), 2.0, load(y, i)))
        store(out, i + lanes, fma(load(x, i + lanes), 2.0, load(y, i + lanes)))
        store(out, i + 2 * lanes, fma(load(x, i + 2 * lanes), 2.0, load(y, i + 2 * lanes)))
        store(out, i + 3 * lanes, fma(load(x, i + 3 * lanes), 2.0, load(y, i + 3 * lanes)))


@dataclass
class Case:
    """A leaf with its arguments, and what it has to do: multiply-adds and bytes. Arrays are passed by address.

    restores : an array that the leaf changes, which is set back from its copy before each call; the time of that is
    measured apart and subtracted.
    """

    name: str
    leaf: Leaf
    arguments: tuple[Any, ...]
    n: int
    n_bytes: int
    n_fma: float = 0.0
    restores: np.ndarray | None = None


def constants_of(row: Activation | losses.Loss) -> np.ndarray:
    """Return the constants of an activation or a loss, as their leaves read them."""
    return aligned(max(1, len(row.constants)), dtype=np.float64, values=row.constants or 0.0)


@numba.njit
def repeat(n: int, address: int, arguments: Any) -> None:
    for _ in range(n):
        call(address, arguments)


@numba.njit
def repeat_after(n: int, address: int, arguments: Any, restore: int, restore_arguments: Any) -> None:
    for _ in range(n):
        call(restore, restore_arguments)
        call(address, arguments)


def best_seconds(run: Any, rounds: int) -> float:
    """Return the least time per repetition of ``run(n)``, over some rounds."""
    run(1)
    n = 1
    while True:
        begin = time.perf_counter()
        run(n)
        seconds = time.perf_counter() - begin
        if seconds >= SECONDS:
            break
        n = max(2 * n, min(100 * n, int(n * SECONDS / max(seconds, 1e-9))))
    best = seconds / n
    for _ in range(rounds - 1):
        begin = time.perf_counter()
        run(n)
        best = min(best, (time.perf_counter() - begin) / n)
    return best


def seconds_of(case: Case, dtype: str, rounds: int) -> float:
    """Return the time of one call."""
    address, arguments = case.leaf.address(dtype), plain(case.arguments)
    if case.restores is None:
        return best_seconds(lambda n: repeat(n, address, arguments), rounds)
    original = case.restores.copy()
    restore = gather.copy.address(dtype), plain((original, case.restores, original.size))
    both = best_seconds(lambda n: repeat_after(n, address, arguments, *restore), rounds)
    return both - best_seconds(lambda n: repeat(n, *restore), rounds)


def call_once(function: Leaf, dtype: str, arguments: tuple[Any, ...]) -> None:
    """Call a leaf whose results a case needs."""
    repeat(1, function.address(dtype), plain(arguments))


def plain(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments with the addresses of arrays instead of these."""
    return tuple(value.ctypes.data if isinstance(value, np.ndarray) else value for value in arguments)


def counted(function: Leaf, dtype: str, n_stores: int = 1) -> float:
    """Return the multiplications, divisions and roots per vector in the inner loop, which stores `n_stores` vectors."""
    blocks = re.split(r"\n\S+:", function.llvm(dtype))
    inner = max(blocks, key=lambda block: bool(STORED.search(block)) * len(COUNTED.findall(block)))
    return len(COUNTED.findall(inner)) * n_stores / max(1, len(STORED.findall(inner)))


def aligned(*shape: int, dtype: Any, values: Any = None) -> np.ndarray:
    """Return an array on a cache line with room for some vectors more, normally distributed unless values are given."""
    size, itemsize = math.prod(shape), np.dtype(dtype).itemsize
    memory = np.zeros(size * itemsize + 1024, np.uint8)
    start = -memory.ctypes.data % 64
    array = memory[start : start + size * itemsize].view(dtype).reshape(shape)
    array[...] = np.random.default_rng(size).standard_normal(shape) if values is None else values
    return array


def products(dtype: str) -> Iterator[Case]:
    """Yield the product of panels as each phase calls it, and the kernels for few samples or outputs."""
    panel, size = panel_width(dtype), np.dtype(dtype).itemsize
    n_m, n_k = 24, 384 // size
    w, panels = aligned(n_k, n_m, dtype=dtype), aligned(n_k, panel, dtype=dtype)
    c, bias = aligned(n_m, panel, dtype=dtype), aligned(n_m, dtype=dtype)

    def product(name: str, rows: int, width: int, a_row: int, a_k: int) -> Case:
        arguments = (rows, width, w, TILE_ROWS * a_row, a_row, a_k, 0, 0, panels, width, c, width, bias, 1, 1, n_k, 1)
        n_fma = rows * width * n_k
        return Case(name, dense.multiply_panel, arguments, n_fma, size * (rows * n_k + width * (n_k + rows)), n_fma)

    yield product("multiply_panel, w by columns", n_m, panel, 1, n_m)
    yield product("multiply_panel, w by rows", n_m, panel, n_k, 1)
    yield product("multiply_panel, one sample too few", n_m, panel - 1, 1, n_m)
    yield product("multiply_panel, half a panel", n_m, panel // 2, 1, n_m)
    yield product("multiply_panel, one row", 1, panel, 1, n_m)
    n_in = n_out = 64
    w, h, z, b = (aligned(n, dtype=dtype) for n in (n_in * n_out, n_in, n_out, n_out))
    n_bytes = size * (n_in * n_out + n_in + n_out)
    yield Case("multiply_row", dense.multiply_row, (h, w, b, 1, z, n_in, n_out), n_in * n_out, n_bytes, n_in * n_out)
    yield Case("multiply_column", dense.multiply_column, (w, h, z, n_in, n_out), n_in * n_out, n_bytes, n_in * n_out)
    n_in, n = 16, 4 * panel
    h, d, g = aligned(n_in * n, dtype=dtype), aligned(n, dtype=dtype), aligned(n_in, dtype=dtype)
    n_bytes = size * (n_in + 1) * n
    yield Case(
        "narrow_gradient", gradient.narrow_gradient, (h, n_in, 0, n_in, d, n, g, 1, 0), n_in * n, n_bytes, n_in * n
    )


def lists(dtype: str) -> Iterator[Case]:
    """Yield the gradient behind a ReLU: the lists of what is not zero, half of it, and the product with them."""
    panel, size = panel_width(dtype), np.dtype(dtype).itemsize
    n, n_features, n_inputs = 64, 16, strip_width(dtype)
    d = aligned(n * n_features, dtype=dtype)
    d[d < 0] = 0
    n_nonzero = np.count_nonzero(d)
    values, places = aligned(d.size + panel, dtype=dtype), aligned(d.size + panel, dtype=np.uint16, values=0)
    starts, sums = aligned(n_features + 1, dtype=np.int64, values=0), aligned(n_features, dtype=dtype)
    arguments = d, n_features, n, values, places, starts, sums
    n_bytes = size * d.size + (size + 2) * n_nonzero
    yield Case("list_nonzeros of 64 samples", list_nonzeros, arguments, d.size, n_bytes)
    call_once(list_nonzeros, dtype, arguments)
    h, c = aligned(n * n_inputs, dtype=dtype), aligned(n_features * n_inputs, dtype=dtype)
    group = panel * n_features
    arguments = values, places, starts, n_features, h, panel * n, c, group, c, panel, group, n_inputs
    n_fma = n_nonzero * n_inputs
    yield Case("multiply_nonzeros", multiply_nonzeros, arguments, n_fma, size * (n_fma + 2 * c.size), n_fma)


def movements(dtype: str) -> Iterator[Case]:
    """Yield what only moves data: gathers, transposes, copies; and the order of the samples."""
    panel, size = panel_width(dtype), np.dtype(dtype).itemsize
    n, n_features = 64, 32
    rows = aligned(n, dtype=np.int64, values=np.random.default_rng(0).permutation(n))
    panels, out = (aligned(n * n_features, dtype=dtype) for _ in range(2))
    addresses, scratch = aligned(panel, dtype=np.int64, values=0), aligned(panel * n_features, dtype=dtype)
    for source in ("float32", "float64", "uint8"):
        x = aligned(n, n_features, dtype=source, values=1)
        code = gather.SOURCE_DTYPES.index(x.dtype.name)
        arguments = (x, x.strides[0], x.itemsize, code, rows, n, n_features, panels, addresses, scratch)
        n_bytes = (x.itemsize + size) * x.size
        yield Case(f"gather_rows from {source}", gather.gather_rows, arguments, x.size, n_bytes)
    labels, n_classes = aligned(n, dtype=np.int64, values=np.arange(n) % 10), 10
    arguments = (labels, 8, gather.SOURCE_DTYPES.index("int64"), rows, n, n_classes, panels)
    yield Case("gather_labels of 10 classes", gather.gather_labels, arguments, n * n_classes, size * n * n_classes)
    arguments = (panels, n_features, n, out, 0, panel * n, panel, n_features % panel)
    yield Case("panels_to_rows", transpose.panels_to_rows, arguments, panels.size, 2 * size * panels.size)
    yield Case("panels_to_features", transpose.panels_to_features, (panels, 4, n, out, n), 4 * n, 2 * size * 4 * n)
    yield Case("copy", gather.copy, (panels, out, panels.size), panels.size, 2 * size * panels.size)
    arguments = (panels, n_features, n, n_features, out, n_features)
    yield Case("pack_rows", pack_rows, arguments, panels.size, 2 * size * panels.size)
    packed_tile = n * TILE_ROWS + panel
    packed = aligned(-(-n_features // TILE_ROWS) * packed_tile, dtype=dtype)
    arguments = panels, n_features, n, n_features, packed, packed_tile
    yield Case("pack_columns", pack_columns, arguments, panels.size, 2 * size * panels.size)
    arguments = out, n_features, n, panels, n_features, 1
    yield Case("add_rows", gradient.add_rows, arguments, n * n_features, size * n * n_features)
    arguments = out, panels, panels.size, 1, panels.size
    yield Case("add_parts", sums.add_parts, arguments, panels.size, 4 * size * panels.size)
    yield Case("sample_order, shuffled", shuffle.sample_order, (rows, 0, n, 60_000, 1, 7, 3), n, 8 * n)


def element_wise(dtype: str) -> Iterator[Case]:
    """Yield activations, losses and updates, with the multiply-adds that their inner loops hold."""
    panel, size = panel_width(dtype), np.dtype(dtype).itemsize
    d, z, h, targets = (aligned(N, dtype=dtype) for _ in range(4))
    for name, activation in ACTIVATIONS.items():
        n_features = 8 if name == "softmax" else 1
        shape = n_features, N // n_features, constants_of(activation)
        n_fma = counted(activation.forward, dtype) * N
        yield Case(f"{name}_forward", activation.forward, (h, *shape), N, 2 * size * N, n_fma, restores=h)
        n_fma = counted(activation.backward, dtype) * N
        yield Case(f"{name}_backward", activation.backward, (d, z, h, *shape), N, 3 * size * N, n_fma, restores=d)
    sums = aligned(2, dtype=np.float64)
    for name, loss in losses.LOSSES.items():
        n_out = 8
        classes = targets.reshape(-1, n_out, panel)
        if name == "cross_entropy":
            classes[:] = 0.0
            classes[:, 3] = 1.0
        n_fma = counted(loss.leaf, dtype) * N
        yield Case(
            name,
            loss.leaf,
            (z, targets, z, d, n_out, N // n_out, 0.01, constants_of(loss), sums),
            N,
            3 * size * N,
            n_fma,
        )
    grads, constants = aligned(N, dtype=dtype), aligned(8, dtype=np.float64, values=0.9)
    rates = aligned(8, dtype=np.float64, values=1e-3)
    for update, n_moments in (
        (updates.sgd, 0),
        (updates.momentum, 1),
        (updates.adagrad, 1),
        (updates.rmsprop, 1),
        (updates.adam, 2),
    ):
        params, state = aligned(N, dtype=dtype), aligned(3 * N, dtype=dtype, values=1.0)
        arguments = (params, grads, state, N, 1, N, N, N, constants, rates)
        n_fma = counted(update, dtype, 1 + n_moments) * N
        yield Case(update.__name__, update, arguments, N, size * N * (3 + 2 * n_moments), n_fma)
    yield Case("shrink", updates.shrink, (d, 1, N, N, 1.0), N, 2 * size * N, N)


def measure(cases: list[Case], dtype: str, rounds: int) -> None:
    """Time the cases, the peaks in between, and print them."""
    x, y, out = (aligned(N, dtype=dtype) for _ in range(3))
    stream = Case("triad", triad, (x, y, out, N), N, 3 * x.nbytes)
    seconds, gflops, bandwidth = [], 0.0, 0.0
    for case in cases:
        gflops = max(gflops, *(peak.measure(dtype, SECONDS) for _ in range(rounds)))
        bandwidth = max(bandwidth, stream.n_bytes / seconds_of(stream, dtype, rounds) / 1e9)
        seconds.append(seconds_of(case, dtype, rounds))
    print(f"\n{dtype}: FMA peak {gflops:.1f} GFLOP/s, first-level cache {bandwidth:.0f} GB/s")
    print(f"{'leaf':38}{'ns':>9}{'ns/element':>12}{'GFLOP/s':>9}{'GB/s':>8}{'floor ns':>10}  share")
    for case, time_of in zip(cases, seconds, strict=True):
        floors = {"FMA": 2 * case.n_fma / gflops / 1e9, "bytes": case.n_bytes / bandwidth / 1e9}
        limit = max(floors, key=floors.__getitem__)
        print(
            f"{case.name:38}{1e9 * time_of:9.1f}{1e9 * time_of / case.n:12.4f}{2e-9 * case.n_fma / time_of:9.1f}"
            f"{1e-9 * case.n_bytes / time_of:8.1f}{1e9 * floors[limit]:10.1f}{floors[limit] / time_of:7.0%} of {limit}"
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add those of this part."""
    options.add_dtypes(parser)
    options.add_rounds(parser, 9)
    parser.add_argument("--only", type=lambda text: text.split(","), default="", help="parts of names, comma-separated")


def run(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    for dtype in arguments.dtypes:
        cases = [*products(dtype), *lists(dtype), *movements(dtype), *element_wise(dtype)]
        measure([case for case in cases if any(part in case.name for part in arguments.only)], dtype, arguments.rounds)
