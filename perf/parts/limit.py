"""Add up what a step of a small network cannot do without, beside the time that it takes.

    python perf/leaves.py limit [--shapes tiny,digits,surrogate] [--dtype float32] [--rounds 9]

The sum is that of the matrix products at the FMA peak, and of everything else as its leaves take it alone, on data in
the first-level cache and over and over, so that they overlap with themselves. No step with these leaves is faster; what
a step takes beyond the sum are the starts and ends of its products, and what its leaves find no longer in the cache.
Where `vs_peers.py` has left its results, the time of JAX there over this sum is printed too: the most that can be made
of that ratio on the same machine. Large networks with ReLU skip zeros and may stay below the sum.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import numpy as np

from fastbp import plan
from fastbp.kernels import gather, losses, shuffle, transpose, updates
from fastbp.kernels.activations import ACTIVATIONS
from fastbp.kernels.panels import panel_width
from fastbp.kernels.products import gradient
from harness import options, peak
from harness.shapes import Shape
from parts import floors
from parts.floors import Case, aligned, constants_of
from rivals.fastbp_rival import Rival

if TYPE_CHECKING:
    from collections.abc import Iterator

EPOCHS = 1000  # of a fit that is timed: what surrounds its steps takes less than a hundredth of it


def leaves(shape: Shape, dtype: str, n: int) -> Iterator[tuple[str, int, Case]]:
    """Yield what a block of n samples needs beside its products: a group's name, how many calls, and one call."""
    panel, (n_in, *widths) = panel_width(dtype), shape.sizes
    n_out = widths[-1]
    rows, ordered = (aligned(n, dtype=np.int64, values=np.random.default_rng(0).permutation(n)) for _ in range(2))
    addresses, scratch = aligned(panel, dtype=np.int64, values=0), aligned(panel * max(shape.sizes), dtype=dtype)
    a, b, c, d = (aligned(n * max(shape.sizes), dtype=dtype) for _ in range(4))

    def gathered(width: int) -> Case:
        source = aligned(n, width, dtype=dtype)
        code = gather.SOURCE_DTYPES.index(dtype)
        arguments = (source, source.strides[0], source.itemsize, code, rows, n, width, a, addresses, scratch)
        return Case("", gather.gather_rows, arguments, n, 0)

    yield "order", 1, Case("", shuffle.sample_order, (ordered, 0, n, shape.n_samples, 1, 7, 3), n, 0)
    yield "gather", 1, gathered(n_in)
    if shape.loss == "cross_entropy":
        labels = aligned(n, dtype=np.int64, values=np.arange(n) % n_out)
        arguments = (labels, 8, gather.SOURCE_DTYPES.index("int64"), rows, n, n_out, c)
        yield "gather", 1, Case("", gather.gather_labels, arguments, n, 0)
    else:
        yield "gather", 1, gathered(n_out)
    hidden = ACTIVATIONS[shape.activation]
    for width in widths[:-1]:
        yield "activation", 1, Case("", hidden.forward, (a, width, n, constants_of(hidden)), n, 0, restores=a)
        yield "activation", 1, Case("", hidden.backward, (d, b, a, width, n, constants_of(hidden)), n, 0, restores=d)
    unit, sums = min(n, plan.LOSS_UNIT), aligned(2, dtype=np.float64)
    loss = losses.LOSSES[shape.loss]
    yield "loss", n // unit, Case("", loss.leaf, (b, c, b, d, n_out, unit, 0.01, constants_of(loss), sums), n, 0)
    for width in widths:
        if width <= plan.NARROW:
            yield "regrouping", 1, Case("", transpose.panels_to_features, (a, width, n, b, n), n, 0)
        else:
            arguments = (a, width, n, b, 0, panel * n, panel, width % panel)
            yield "regrouping", 1, Case("", transpose.panels_to_rows, arguments, n, 0)


def update(shape: Shape, dtype: str, n_blocks: int) -> Iterator[tuple[str, int, Case]]:
    """Yield the sum of the blocks' gradients, and Adam."""
    n = shape.n_params
    params, grads, state = aligned(n, dtype=dtype), aligned(n, dtype=dtype), aligned(3 * n, dtype=dtype, values=1.0)
    constants, rates = aligned(8, dtype=np.float64, values=0.9), aligned(8, dtype=np.float64, values=1e-3)
    if n_blocks > 1:
        blocks = aligned(n * (n_blocks - 1), dtype=dtype)
        yield "update", 1, Case("", gradient.add_rows, (blocks, n, n_blocks - 1, grads, n, 1), n, 0, restores=grads)
    arguments = (params, grads, state, n, 1, n, n, n, constants, rates)
    yield "update", 1, Case("", updates.adam, arguments, n, 0)


def step_seconds(shape: Shape, dtype: str, rounds: int) -> float:
    """Return the best time of a step of fastbp, on one core."""
    rival = Rival(shape, dtype, 1, shuffle=True)

    def run(n: int) -> None:
        rival.run(n * EPOCHS * shape.n_batches)

    return floors.best_seconds(run, rounds) / (EPOCHS * shape.n_batches)


def jax_seconds(shape: Shape, dtype: str) -> float | None:
    """Return the time that JAX took when `vs_peers.py` ran last, or None."""
    result = options.load(f"vs_peers_{dtype}_1_thread")
    records = result["shapes"] if result else []
    found = [rival for record in records if record["shape"] == shape.name for rival in record["rivals"]]
    return next((rival["median_microseconds"] * 1e-6 for rival in found if rival["rival"] == "jax"), None)


def report(shape: Shape, dtype: str, rounds: int) -> None:
    """Print the parts, their sum, and what the step takes."""
    n = min(shape.batch_size, plan.SMALL_BLOCK)
    n_blocks = -(-shape.batch_size // n)
    parts = {"products": shape.flops / (max(peak.measure(dtype) for _ in range(rounds)) * 1e9)}
    for name, count, case in leaves(shape, dtype, n):
        parts[name] = parts.get(name, 0.0) + n_blocks * count * floors.seconds_of(case, dtype, rounds)
    for name, count, case in update(shape, dtype, n_blocks):
        parts[name] = parts.get(name, 0.0) + count * floors.seconds_of(case, dtype, rounds)
    total, step, jax = sum(parts.values()), step_seconds(shape, dtype, rounds), jax_seconds(shape, dtype)
    print(f"\n{shape}, {dtype}, in microseconds")
    print("  " + ", ".join(f"{name} {seconds * 1e6:.2f}" for name, seconds in parts.items()))
    print(f"  sum {total * 1e6:.2f}, step of fastbp {step * 1e6:.2f}: {total / step:.0%} of it")
    if jax is not None:
        print(f"  JAX {jax * 1e6:.2f}: {jax / total:.2f} times the sum, {jax / step:.2f} times the step")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add those of this part."""
    options.add_shapes(parser, "tiny,digits,surrogate")
    options.add_dtype(parser)
    options.add_rounds(parser, 9)


def run(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    for shape in arguments.shapes:
        report(shape, arguments.dtype, arguments.rounds)
