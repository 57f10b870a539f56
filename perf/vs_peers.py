"""Time fastbp beside NumPy, JAX, PyTorch, scikit-learn and static C, as far as they are installed.

    python perf/vs_peers.py [--shapes all] [--threads 1,2] [--dtype float32] [--rounds 7] [--rivals numpy,jax]

First all must reach the same loss, without shuffling; then they are timed in turns, each in a process of its own,
fastbp shuffling every epoch. NumPy updates every array of parameters by itself, as is usual, and, as "flat", all of
them as one vector. With all rivals, JSON and a bar chart per number of threads are written to perf/results/;
`report.py` makes the README's table of them. `--rivals numpy,numpy_flat` needs nothing beyond the package itself.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from harness import options, processes

if TYPE_CHECKING:
    from pathlib import Path

    from harness.shapes import Shape

RIVALS = ("numpy", "numpy_flat", "jax", "torch", "torch_fused", "sklearn", "static_c")
# Column: the settings it is the best of, as (rival, any number of threads).
COLUMNS = {
    "JAX": ("jax",),
    "NumPy": ("numpy",),
    "NumPy, flat": ("numpy_flat",),
    "PyTorch, best": ("torch", "torch_fused"),
    "scikit-learn": ("sklearn",),
    "static C": ("static_c",),
}


def choose_settings(counts: list[int], rivals: list[str]) -> list[processes.Setting]:
    """Return fastbp and the rivals with each number of threads; PyTorch also as it comes; static C is serial."""
    settings = [
        processes.Setting(rival, count) for count in counts for rival in ("fastbp", *rivals) if rival != "static_c"
    ]
    settings += [processes.Setting(rival, None) for rival in ("torch", "torch_fused") if rival in rivals]
    return settings + ([processes.Setting("static_c")] if "static_c" in rivals and 1 in counts else [])


def ratios_of(record: dict[str, Any], threads: int) -> dict[str, float]:
    """Return column: time per step over fastbp's with that many threads; beside several, PyTorch may choose its own."""
    ours, columns = timed_by_fastbp(record, threads), {}
    measured = [processes.timed(record, count) for count in ((threads, None) if threads > 1 else (1,))]
    for column, rivals in COLUMNS.items():
        found = [rivals_of[rival] for rivals_of in measured for rival in rivals if rival in rivals_of]
        # A library's own number of threads has its ratio to the first setting, which may be one thread.
        ratios = [
            each["ratio"] if each["threads"] == threads else each["median_microseconds"] / ours["median_microseconds"]
            for each in found
        ]
        if ratios:
            columns[column] = min(ratios)
    return columns


def timed_by_fastbp(record: dict[str, Any], threads: int) -> dict[str, Any]:
    """Return fastbp's results with that many threads."""
    return processes.timed(record, threads)["fastbp"]


def print_summary(records: list[dict[str, Any]], threads: int) -> None:
    """Print each rival's time over fastbp's."""
    print(f"\ntime per step over fastbp's, {threads} thread{'s' * (threads > 1)}")
    print(f"{'':10} {'fastbp µs':>11} {'of peak':>8} " + " ".join(f"{column:>14}" for column in COLUMNS))
    for record in records:
        ours = processes.timed(record, threads).get("fastbp")
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

    drawn = [record for record in records if "fastbp" in processes.timed(record, threads)]
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
            f"{in_microseconds(processes.timed(record, threads)['fastbp']['median_microseconds'])}"
            for record in drawn
        ],
        fontsize=8,
    )
    axes.set_title(title, fontsize=10)
    figure.legend(ncols=len(columns), fontsize=9, loc="outside lower center", frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def parse_rivals(text: str) -> list[str]:
    rivals = text.split(",")
    if not set(RIVALS).issuperset(rivals):
        raise ValueError(text)
    return rivals


def measure(shapes: list[Shape], settings: list[processes.Setting], dtype: str, rounds: int) -> list[dict[str, Any]]:
    """Compare on every shape, print a table for each and the versions; return the records."""
    print(f"{options.processor()}; {dtype}, Adam; medians of {rounds} interleaved rounds, each in a process of its own")
    records, described = [], {}
    for shape in shapes:
        measurements, peaks = processes.compare(shape, settings, dtype, rounds)
        if measurements[0].problem:
            sys.exit(f"{shape.name}: {measurements[0].setting.label} cannot run: {measurements[0].problem}")
        processes.report(shape, measurements, peaks)
        records.append(processes.as_record(shape, measurements, peaks))
        described |= {m.setting.label: m.description for m in measurements if m.description}
    print("\n" + "\n".join(f"{label}: {description}" for label, description in described.items()))
    return records


def write(records: list[dict[str, Any]], dtype: str, threads: int, rounds: int) -> None:
    """Write results and chart for a number of threads."""
    name = f"vs_peers_{dtype}_{threads}_thread{'s' * (threads > 1)}"
    path = options.save(name, dtype=dtype, threads=threads, rounds=rounds, shapes=records)
    title = f"One training step (Adam, {dtype}), {threads} core{'s' * (threads > 1)} of {options.processor()}"
    try:
        draw(records, threads, title, path.with_suffix(".png"))
    except ImportError:
        print("matplotlib is not installed: no chart")


def main() -> None:
    parser = options.parser_of(__doc__)
    options.add_shapes(parser)
    options.add_dtype(parser)
    options.add_rounds(parser)
    parser.add_argument("--threads", type=options.parse_counts, default="1", help="comma-separated numbers of threads")
    parser.add_argument("--rivals", type=parse_rivals, default=list(RIVALS), help="comma-separated; all by default")
    arguments = parser.parse_args()
    settings = choose_settings(arguments.threads, arguments.rivals)
    records = measure(arguments.shapes, settings, arguments.dtype, arguments.rounds)
    for threads in arguments.threads:
        print_summary(records, threads)
        if arguments.rivals == list(RIVALS):
            write(records, arguments.dtype, threads, arguments.rounds)
    options.exit_with(not processes.any_failed(records))


if __name__ == "__main__":
    main()
