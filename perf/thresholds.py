"""Repeat the measurements behind the thresholds of fastbp/plan.py.

    python perf/thresholds.py [LIST_PRODUCT ...] [--rounds 4] [--processes 3]

For each name, by default for all, networks on which that threshold decides something take steps with the constant at
half, at its value and at double, in processes that take turns as those of `compare.py` do: the worker sets the constant
before anything is planned. A line has the time per step as it is, and the ratios of the others to it with their 95 %
intervals: above 1 where the other value is slower.

All on one core, float32; the networks are chosen for panels of 32 samples, those of AVX-512. Some cannot be varied
freely:

* SUPER_BLOCK is a whole number of the parts of 512 terms of `kernels.sums`. A batch between two values of it changes
  its bits, as its gradient is then one sum or one in parts; so do larger ones of small networks.
* LOSS_UNIT is the unit of a task as well, and a multiple of CHUNK where a layer lists its gradient: the networks here
  list none. It changes the bits of the mean loss, not those of the parameters.
* SMALL_BLOCK and SMALL_NETWORK say which sums are made apart: they change bits of the gradient.
* CHUNK divides the samples of a task: doubled it fits networks with packed layers only. It changes bits of the biases.
* NARROW chooses between two orders of a sum: it changes bits of the gradient.
* FEW_PART divides: half of it means up to twice as many samples.
* PACK_ABOVE sets the samples of a task, too: up to WIDE_BLOCK where a layer is packed.
* TILE_ROWS and the width of panels and strips are those of the registers; nothing here varies them. M_BLOCK is a whole
  number of tiles, S_BLOCK of panels; RECTANGLE and C_BLOCK bound each other's tiles.
"""

from __future__ import annotations

from statistics import median

from fastbp import plan
from harness import options
from harness.processes import Setting
from harness.shapes import SHAPES, Shape
from harness.versions import FEWEST_ROUNDS, Case, in_cell, measure

HALF, SAME, DOUBLE = "half", "same", "double"


def relu(*sizes: int, batch: int) -> Shape:
    """Return a classifier that skips zeros."""
    return Shape("network", sizes, "relu", "softmax", "cross_entropy", batch)


def tanh(*sizes: int, batch: int) -> Shape:
    """Return a regression, all of it dense."""
    return Shape("network", sizes, "tanh", "identity", "mse", batch)


WIDE_TANH = 784, 512, 512, 10
# Batches lie between the number of samples from which a way is taken with a value and with its half or double.
CASES: dict[str, tuple[Shape, ...]] = {
    "SUPER_BLOCK": (SHAPES["expm"], tanh(64, 128, 128, 10, batch=4096), relu(784, 512, 512, 10, batch=4096)),
    "LOSS_UNIT": (tanh(64, 128, 128, 10, batch=256), tanh(64, 200, 200, 10, batch=256), SHAPES["surrogate"]),
    "SMALL_BLOCK": (SHAPES["surrogate"], SHAPES["expm"], tanh(4, 32, 32, 1, batch=1024)),
    "WIDE_BLOCK": (tanh(*WIDE_TANH, batch=1024), relu(784, 512, 512, 10, batch=1024), SHAPES["nl"]),
    "PACK_ABOVE": (
        tanh(200, 200, 200, 10, batch=512),
        relu(200, 200, 200, 10, batch=512),
        tanh(300, 300, 300, 10, batch=512),
        relu(300, 300, 300, 10, batch=512),
    ),
    "LIST_PRODUCT": (relu(784, 512, 512, 10, batch=24), relu(784, 512, 512, 10, batch=48)),
    "PACK_PRODUCT": (
        SHAPES["mnist"],
        tanh(*WIDE_TANH, batch=48),
        tanh(*WIDE_TANH, batch=96),
        relu(784, 128, 10, batch=256),
    ),
    "K_BLOCK": (tanh(*WIDE_TANH, batch=256), tanh(784, 1000, 1000, 10, batch=500)),
    "M_BLOCK": (tanh(*WIDE_TANH, batch=256), tanh(784, 1000, 1000, 10, batch=500)),
    "CHUNK": (SHAPES["mnist"], SHAPES["mid"]),
    "S_BLOCK": (tanh(*WIDE_TANH, batch=512), tanh(784, 1000, 1000, 10, batch=1024)),
    "C_BLOCK": (tanh(784, 1000, 1000, 10, batch=256), relu(784, 1000, 1000, 10, batch=256)),
    "RECTANGLE": (tanh(*WIDE_TANH, batch=256), tanh(784, 1000, 1000, 10, batch=256)),
    "FEW_PART": (
        tanh(8, 64, 64, 4, batch=8),
        tanh(64, 128, 128, 10, batch=8),
        tanh(8, 64, 64, 4, batch=16),
        tanh(64, 128, 128, 10, batch=16),
    ),
    "NARROW": (SHAPES["expm"], tanh(8, 64, 64, 4, batch=256), tanh(8, 64, 64, 8, batch=256)),
    "SMALL_NETWORK": (
        tanh(16, 96, 96, 1, batch=32),
        tanh(16, 96, 96, 1, batch=256),
        tanh(64, 128, 128, 10, batch=32),
        tanh(64, 128, 128, 10, batch=256),
    ),
}


def settings_of(name: str) -> dict[str, Setting]:
    """Return fastbp with the constant at half, as it is and at double."""
    value = getattr(plan, name)
    values = {HALF: value // 2, SAME: value, DOUBLE: 2 * value}
    return {version: Setting("fastbp", constants=((name, number),)) for version, number in values.items()}


def report(name: str, n_processes: int, rounds: int) -> None:
    """Measure and print the table of a constant."""
    print(f"\n{name} = {getattr(plan, name):,}")
    print(f"{'network':44}{'µs/step':>10}   {'half':28}   double")
    for shape in CASES[name]:
        case = Case(shape, 1, "float32")
        for _ in range(n_processes):
            measure(case, settings_of(name), rounds, fits=3, seconds=0.03)
        cells = "   ".join(in_cell(case.ratio(version, SAME)) for version in (HALF, DOUBLE))
        print(f"{str(shape).partition(': ')[2]:44}{1e6 * median(case.seconds[SAME]):10.2f}   {cells}", flush=True)


def main() -> None:
    parser = options.parser_of(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)}")
    options.add_rounds(parser, 4)
    parser.add_argument("--processes", type=int, default=3, help="how often to begin with new ones")
    arguments = parser.parse_args()
    unknown = sorted({*arguments.names} - {*CASES})
    if unknown or arguments.rounds * arguments.processes < FEWEST_ROUNDS:
        parser.error(f"unknown: {', '.join(unknown)}" if unknown else f"at least {FEWEST_ROUNDS} rounds in all")
    print(f"{options.processor()}; Adam, float32, one thread; time per step over that with the constant as it is")
    for name in arguments.names or CASES:
        report(name, arguments.processes, arguments.rounds)


if __name__ == "__main__":
    main()
