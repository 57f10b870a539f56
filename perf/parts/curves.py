"""Measure how the time of a step grows with width, batch size and depth, one at a time.

    python perf/growth.py curves [--axes width,batch,depth] [--dtype float32] [--rounds 7]

Each point is a median over rounds that go through all points in turn. Beside it stands the arithmetic: the multiply-
adds of the matrix products at the FMA peak. Growth is how much more the time has grown than the arithmetic since the
point before: a cliff is a growth well above 1. Writes a table, JSON and a picture under perf/results/.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

from harness import options, peak
from harness.shapes import Shape
from rivals.fastbp_rival import Rival

SECONDS = 0.05  # of one run
N_IN, N_OUT = 64, 10
WIDTH, BATCH, DEPTH = 128, 64, 2  # of what does not vary
# Powers of two, values in between, and values just above: edges of vectors, panels, blocks, super-blocks and caches.
AXES = {
    "width": (16, 17, 24, 32, 33, 48, 64, 65, 96, 128, 129, 192, 256, 257, 384, 512, 513, 768, 1024, 1025, 1536, 2048,
              2049, 3072, 4096),
    "batch": (1, 2, 3, 4, 6, 8, 12, 16, 17, 24, 32, 33, 48, 64, 65, 96, 128, 129, 192, 256, 384, 512, 768, 1024, 1025,
              1536, 2048, 4096, 8192, 16_384),
    "depth": (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16),
}  # fmt: skip


def shape_of(axis: str, value: int) -> Shape:
    """Return the network, with `value` on the axis and the usual size on the others."""
    width, batch, depth = (value if name == axis else usual for name, usual in zip(AXES, (WIDTH, BATCH, DEPTH)))  # noqa: B905
    sizes = (N_IN, *[width] * depth, N_OUT)
    return Shape(f"{axis} {value}", sizes, "relu", "softmax", "cross_entropy", batch)


def seconds_per_step(rival: Rival, n_steps: int) -> float:
    begin = time.perf_counter()
    rival.run(n_steps)
    return (time.perf_counter() - begin) / n_steps


def steps_of_a_run(rival: Rival) -> int:
    """Return how many steps take about `SECONDS`."""
    rival.run(1)  # compiles
    n_steps = 1
    while (seconds := n_steps * seconds_per_step(rival, n_steps)) < SECONDS:
        n_steps = max(2 * n_steps, min(20 * n_steps, int(1.2 * n_steps * SECONDS / seconds)))
    return n_steps


def measure(axis: str, dtype: str, rounds: int) -> list[dict[str, Any]]:
    """Return a record per point of an axis."""
    shapes = [shape_of(axis, value) for value in AXES[axis]]
    rivals = [Rival(shape, dtype, 1, shuffle=True) for shape in shapes]
    n_steps = [steps_of_a_run(rival) for rival in rivals]
    times: list[list[float]] = [[] for _ in shapes]
    peaks: list[float] = []
    for _ in range(rounds):
        peaks.append(peak.measure(dtype))
        for rival, n, of_point in zip(rivals, n_steps, times, strict=True):
            of_point.append(seconds_per_step(rival, n))
    return [
        {
            "value": value,
            "sizes": shape.sizes,
            "batch_size": shape.batch_size,
            "microseconds": 1e6 * median(of_point),
            "arithmetic_microseconds": shape.flops / median(peaks) / 1e3,
        }
        for value, shape, of_point in zip(AXES[axis], shapes, times, strict=True)
    ]


def report(axis: str, records: list[dict[str, Any]]) -> None:
    """Print the table of an axis."""
    print(f"\n{axis:>8} {'µs/step':>12} {'arithmetic':>12} {'share':>7} {'growth':>7}")
    before = None
    for record in records:
        share = record["arithmetic_microseconds"] / record["microseconds"]
        growth = "" if before is None else f"{before / share:7.2f}"
        print(
            f"{record['value']:8} {record['microseconds']:12.2f} {record['arithmetic_microseconds']:12.2f}"
            f" {share:7.1%} {growth}"
        )
        before = share


def draw(axes: dict[str, list[dict[str, Any]]], title: str, path: Path) -> None:
    """Write the picture: a log-log panel per axis, with the line of the arithmetic."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(axes), figsize=(4.6 * len(axes), 4.4), layout="constrained", squeeze=False)
    usual = {"width": f"width {WIDTH}", "batch": f"batch {BATCH}", "depth": f"{DEPTH} hidden layers"}
    for panel, (axis, records) in zip(panels[0], axes.items(), strict=True):
        values = [record["value"] for record in records]
        panel.loglog(values, [record["microseconds"] for record in records], "o-", markersize=3.5, label="fastbp")
        arithmetic = [record["arithmetic_microseconds"] for record in records]
        panel.loglog(values, arithmetic, "k--", linewidth=1, label="multiply-adds at the FMA peak")
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.set_xlabel({"width": "width", "batch": "batch size", "depth": "hidden layers"}[axis])
        panel.set_ylabel("time per step in µs")
        panel.set_title(", ".join(text for name, text in usual.items() if name != axis), fontsize=9)
        panel.grid(which="major", alpha=0.3)
        panel.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add those of this part."""
    parser.add_argument("--axes", type=lambda text: text.split(","), default="width,batch,depth")
    options.add_dtype(parser)
    options.add_rounds(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measure, print and write."""
    print(f"{arguments.dtype}, Adam, relu, softmax, one thread; {arguments.rounds} rounds")
    axes = {}
    for axis in arguments.axes:
        axes[axis] = measure(axis, arguments.dtype, arguments.rounds)
        report(axis, axes[axis])
    path = options.save(f"curves_{arguments.dtype}", dtype=arguments.dtype, axes=axes)
    title = f"One training step ({N_IN} inputs, {N_OUT} classes, Adam, {arguments.dtype}), one core of "
    try:
        draw(axes, title + options.processor(), path.with_suffix(".png"))
    except ImportError:
        print("matplotlib is not installed: no picture")
