"""Repeat the measurement behind a threshold of `fastbp/plan.py`: steps with half of it and with twice of it.

    python perf/thresholds.py LIST_PRODUCT [PACK_PRODUCT ...] [--dtypes float32] [--threads 1]

All values take turns in processes of their own, as in `compare.py`; a cell is the time with that value over the time
with the one in use, with its 95 % interval. Each threshold has the shapes that it decides something about. Those marked
with * decide the order of a sum as well: other values have other last bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fastbp import plan
from harness import options
from harness.processes import Setting
from harness.shapes import SHAPES, Shape
from harness.versions import Case, in_cell, measure

if TYPE_CHECKING:
    import argparse

USED = "in use"


class Threshold(NamedTuple):
    """The shapes that a threshold matters to."""

    shapes: tuple[str, ...]
    decides_sums: bool = False


THRESHOLDS = {
    "SUPER_BLOCK": Threshold(("expm", "batch of 4096"), decides_sums=True),
    "LOSS_UNIT": Threshold(("surrogate", "expm", "mnist"), decides_sums=True),
    "SMALL_BLOCK": Threshold(("surrogate", "expm"), decides_sums=True),
    "WIDE_BLOCK": Threshold(("nl", "wide")),
    "PACK_ABOVE": Threshold(("mnist", "square 256")),
    "LIST_PRODUCT": Threshold(("mnist", "mid")),
    "PACK_PRODUCT": Threshold(("mnist", "mid")),
    "K_BLOCK": Threshold(("mid", "dense mid")),
    "M_BLOCK": Threshold(("mid", "dense mid")),
    "CHUNK": Threshold(("mid", "nl")),
    "S_BLOCK": Threshold(("mnist", "dense mid")),
    "C_BLOCK": Threshold(("mid", "dense mid")),
    "RECTANGLE": Threshold(("mnist", "dense mid")),
    "NARROW": Threshold(("expm", "8 outputs"), decides_sums=True),
    "SMALL_NETWORK": Threshold(("surrogate", "square 100"), decides_sums=True),
    "FEW_OF_A_PANEL": Threshold(("batch of 6", "batch of 12")),
}
# Shapes where a threshold lies near, beside those that all benchmarks have.
OTHERS = {
    shape.name: shape
    for shape in (
        Shape("batch of 4096", (64, 128, 128, 10), "relu", "softmax", "cross_entropy", 4096),
        Shape("square 100", (10, 100, 100, 1), "tanh", "identity", "mse", 256),
        Shape("square 256", (256, 256, 256, 10), "tanh", "softmax", "cross_entropy", 256),
        Shape("dense mid", (784, 512, 512, 10), "tanh", "softmax", "cross_entropy", 256),
        Shape("8 outputs", (32, 64, 8), "tanh", "identity", "mse", 128),
        Shape("batch of 6", (64, 128, 128, 10), "relu", "softmax", "cross_entropy", 6),
        Shape("batch of 12", (64, 128, 128, 10), "relu", "softmax", "cross_entropy", 12),
    )
}


def report(name: str, arguments: argparse.Namespace) -> None:
    """Measure and print what half and twice of a threshold cost."""
    threshold, used = THRESHOLDS[name], getattr(plan, name)
    values = {"half": used // 2, "twice": 2 * used}
    print(f"\n{name} = {used}{'*' if threshold.decides_sums else ''}")
    for shape_name in threshold.shapes:
        for dtype in arguments.dtypes:
            case = Case((SHAPES | OTHERS)[shape_name], arguments.threads, dtype)
            settings = {USED: Setting("fastbp", case.threads)} | {
                label: Setting("fastbp", case.threads, constants=((name, value),)) for label, value in values.items()
            }
            for _ in range(arguments.processes):
                measure(case, settings, arguments.rounds, fits=3, seconds=0.03)
            cells = "   ".join(f"{values[label]}: {in_cell(case.ratio(label, USED)).strip()}" for label in values)
            print(f"  {shape_name:14} {dtype}   {cells}", flush=True)


def main() -> None:
    parser = options.parser_of(__doc__)
    parser.add_argument("names", nargs="*", default=list(THRESHOLDS), metavar="NAME", help="all by default")
    options.add_dtypes(parser, "float32")
    options.add_rounds(parser, 4)
    parser.add_argument("--processes", type=int, default=3, help="how often to begin with new ones")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(THRESHOLDS)
    if unknown:
        parser.error(f"no such threshold: {', '.join(sorted(unknown))}")
    print(f"{options.processor()}; Adam, {arguments.threads} thread(s); time over that with the value in use")
    for name in arguments.names:
        report(name, arguments)


if __name__ == "__main__":
    main()
