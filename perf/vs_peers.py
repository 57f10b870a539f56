"""Time fastbp beside NumPy, JAX, PyTorch, scikit-learn and static C, as far as they are installed.

    python perf/vs_peers.py [--shapes all] [--threads 1,2] [--dtype float32] [--rounds 7]

First all must reach the same loss, without shuffling; then they are timed in turns, each in a process of its own,
fastbp shuffling every epoch. Writes JSON and a bar chart per number of threads under perf/results/.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import timing

RESULTS = Path(__file__).with_name("results")
RIVALS = ("fastbp", "numpy", "numpy_flat", "jax", "torch", "torch_fused", "sklearn")
# Column: the settings it is the best of, as (rival, any number of threads).
COLUMNS = {
    "JAX": ("jax",),
    "NumPy": ("numpy",),
    "NumPy, flat": ("numpy_flat",),
    "PyTorch, best": ("torch", "torch_fused"),
    "scikit-learn": ("sklearn",),
    "static C": ("static_c",),
}


def parse_threads(text: str) -> list[int]:
    return [int(count) for count in text.split(",")]


def choose_settings(counts: list[int]) -> list[timing.Setting]:
    """Return every rival with each number of threads; PyTorch also as it comes; static C is serial."""
    settings = [timing.Setting(rival, count) for count in counts for rival in RIVALS]
    settings += [timing.Setting(rival, None) for rival in ("torch", "torch_fused")]
    return settings + ([timing.Setting("static_c")] if 1 in counts else [])


def ratios_of(record: dict[str, Any], threads: int) -> dict[str, float]:
    """Return column: time per step over fastbp's with that many threads; beside several, PyTorch may choose its own."""
    measured = [timing.timed(record, count) for count in ((threads, None) if threads > 1 else (1,))]
    columns = {}
    for column, rivals in COLUMNS.items():
        found = [rivals_of[rival]["ratio"] for rivals_of in measured for rival in rivals if rival in rivals_of]
        if found:
            columns[column] = min(found)
    return columns


def print_summary(records: list[dict[str, Any]], threads: int) -> None:
    """Print each rival's time over fastbp's."""
    print(f"\ntime per step over fastbp's, {threads} thread{'s' * (threads > 1)}")
    print(f"{'':10} {'fastbp µs':>11} {'of peak':>8} " + " ".join(f"{column:>14}" for column in COLUMNS))
    for record in records:
        ours = timing.timed(record, threads).get("fastbp")
        if ours is None:
            continue
        ratios = ratios_of(record, threads)
        cells = [f"{ratios[column]:14.2f}" if column in ratios else f"{'-':>14}" for column in COLUMNS]
        share = ours["share_of_peak"] / threads
        print(f"{record['shape']:10} {ours['median_microseconds']:11.2f} {share:8.1%} {' '.join(cells)}")


def in_microseconds(value: float) -> str:
    """Return a time with three digits at least, and no exponent."""
    return f"{value:,.0f} µs" if value >= 100 else f"{value:.3g} µs"


def draw(records: list[dict[str, Any]], threads: int, title: str, path: Path) -> None:
    """Write a chart of each rival's time over fastbp's, one group of bars per shape, with fastbp's time below it."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    drawn = [record for record in records if "fastbp" in timing.timed(record, threads)]
    ratios_by_shape = [ratios_of(record, threads) for record in drawn]
    columns = [column for column in COLUMNS if any(column in ratios for ratios in ratios_by_shape)]
    figure, axes = plt.subplots(figsize=(max(1.25 * len(drawn) + 1, 7), 5.2), layout="constrained")
    width = 0.86 / len(columns)
    for i, column in enumerate(columns):
        groups = [group for group, ratios in enumerate(ratios_by_shape) if column in ratios]
        positions = [group + (i - (len(columns) - 1) / 2) * width for group in groups]
        ratios = [ratios_by_shape[group][column] for group in groups]
        bars = axes.bar(positions, [ratio - 1 for ratio in ratios], width, bottom=1, label=column, zorder=2)
        labels = [
            f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}" if ratio >= 2 else f"{ratio:.2f}" for ratio in ratios
        ]
        for bar, ratio, text in zip(bars, ratios, labels, strict=True):
            above = ratio >= 1
            axes.annotate(
                text,
                (bar.get_x() + width / 2, ratio),
                (0, 2 if above else -2),
                textcoords="offset points",
                ha="center",
                va="bottom" if above else "top",
                fontsize=8,
                rotation=90,
            )
    axes.axhline(1, color="black", linewidth=1.2, zorder=3)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.5, high * 1.5)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.set_ylabel("time per step, fastbp = 1")
    axes.margins(x=0.01)
    axes.grid(axis="y", alpha=0.3, zorder=0)
    axes.set_xticks(
        range(len(drawn)),
        [
            f"{record['shape']}\n{'-'.join(map(str, record['sizes']))}\nbatch {record['batch_size']}\n"
            f"{in_microseconds(timing.timed(record, threads)['fastbp']['median_microseconds'])}"
            for record in drawn
        ],
        fontsize=8,
    )
    axes.set_title(title, fontsize=10)
    figure.legend(ncols=len(columns), fontsize=9, loc="outside lower center", frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=timing.parse_shapes, default="all", help="comma-separated names, or all")
    parser.add_argument("--threads", type=parse_threads, default="1", help="comma-separated numbers of threads")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--rounds", type=int, default=7, help="timed runs of each rival")
    arguments = parser.parse_args()
    records = timing.run(arguments.shapes, choose_settings(arguments.threads), arguments.dtype, arguments.rounds)
    RESULTS.mkdir(exist_ok=True)
    for threads in arguments.threads:
        print_summary(records, threads)
        name = f"vs_peers_{arguments.dtype}_{threads}_thread{'s' * (threads > 1)}"
        result = {
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "processor": timing.processor(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "dtype": arguments.dtype,
            "threads": threads,
            "shapes": records,
        }
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        title = (
            f"One training step (Adam, {arguments.dtype}), {threads} core{'s' * (threads > 1)} of {timing.processor()}"
        )
        try:
            draw(records, threads, title, RESULTS / f"{name}.png")
        except ImportError:
            print("matplotlib is not installed: no chart")
        print(f"written: perf/results/{name}.json and .png")
    sys.exit(timing.any_failed(records))


if __name__ == "__main__":
    main()
