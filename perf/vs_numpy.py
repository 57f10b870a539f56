"""Time fastbp beside idiomatic in-place NumPy; needs nothing beyond the package itself.

    python perf/vs_numpy.py [--shapes tiny,mnist] [--threads 1] [--dtype float32] [--rounds 7]

First all must reach the same loss, without shuffling; then they are timed in turns, fastbp shuffling every epoch.
NumPy updates every array of parameters by itself, as is usual, and, as "flat", all of them as one vector.
"""

from __future__ import annotations

import argparse
import sys

import timing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=timing.parse_shapes, default="all", help="comma-separated names, or all")
    parser.add_argument("--threads", type=int, default=1, help="threads of each rival, pinned to as many cores")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--rounds", type=int, default=7, help="timed runs of each rival")
    arguments = parser.parse_args()
    settings = [timing.Setting(rival, arguments.threads) for rival in ("fastbp", "numpy", "numpy_flat")]
    records = timing.run(arguments.shapes, settings, arguments.dtype, arguments.rounds)
    print(f"\n{'shape':12} {'fastbp µs':>12} {'NumPy µs':>12} {'ratio':>7} {'flat NumPy µs':>15} {'ratio':>7}")
    for record in records:
        ours, theirs, flat = timing.timed(record, arguments.threads).values()
        print(
            f"{record['shape']:12} {ours['median_microseconds']:12.2f} {theirs['median_microseconds']:12.2f} "
            f"{theirs['ratio']:7.2f} {flat['median_microseconds']:15.2f} {flat['ratio']:7.2f}"
        )
    sys.exit(timing.any_failed(records))


if __name__ == "__main__":
    main()
