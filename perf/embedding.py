"""Time a network inside a compiled loop (`fastbp.embed`) beside plain C, and beside a call of other libraries.

    python perf/embedding.py [--rounds 60]

One sample, float32. C is a static function of which every size is a compile-time constant, built by gcc -O3
-march=native -ffast-math (`static_c/predict.c`), called in a loop of C; ours is called in a loop that Numba compiles.
All take turns; a time is the least of the rounds, each a loop of less than a millisecond. Writes JSON to perf/results/.
"""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

import fastbp
from fastbp import embed
from harness import options

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = Path(__file__).parent / "static_c" / "predict.c"
FLAGS = ("-O3", "-march=native", "-mprefer-vector-width=512", "-ffast-math", "-std=gnu11", "-shared", "-fPIC")
SECONDS = 3e-4  # of a loop
# Sizes and activation, with the most times C's time: floor and goal.
NETWORKS = (
    ((4, 32, 32, 1), "tanh", 1.45, 1.2),
    ((8, 64, 64, 4), "relu", 1.7, 1.5),
    ((24, 128, 128, 6), "tanh", None, None),
)
LOAD_SHARE = 0.6, 0.7  # floor and goal of the last one: of the time in which its weights can be loaded
DERIVATIVES = {"vjp": (3.0, 2.2), "jvp": (2.5, 1.8)}  # most times a prediction


@numba.njit(nogil=True)
def predict(net, x, out, n):
    """Call `embed.predict` n times."""
    status = 0
    for _ in range(n):
        status |= embed.predict(net, x, out)
    return status


@numba.njit(nogil=True)
def vjp(net, x, d_out, d_x, n):
    """Call `embed.vjp` n times."""
    status = 0
    for _ in range(n):
        status |= embed.vjp(net, x, d_out, d_x)
    return status


@numba.njit(nogil=True)
def jvp(net, x, t_x, t_out, n):
    """Call `embed.jvp` n times."""
    status = 0
    for _ in range(n):
        status |= embed.jvp(net, x, t_x, t_out)
    return status


@numba.njit(nogil=True, fastmath=True)
def load_all(weights, n):
    """Read all weights n times into sums whose order is free: as fast as loads can be, whatever is done with them."""
    largest = np.float32(0.0)
    for _ in range(n):
        total = np.float32(0.0)
        for i in range(weights.size):
            total += weights[i]
        largest = max(largest, total)
    return largest


def build(model: fastbp.MLP, activation: str, folder: str) -> Any:
    """Return the network in C, with its parameters."""
    sizes, last = model.sizes, len(model.sizes) - 2
    buffers = ["x", *("ac"[index % 2] for index in range(last)), "out"]
    layers, start = [], 0
    for index, (n_in, n_out) in enumerate(pairwise(sizes)):
        kind = "LAST" if index == last else "HIDDEN"
        layers.append(f"{kind}({buffers[index]}, {buffers[index + 1]}, {start}, {n_in}, {n_out})")
        start += n_in * n_out + n_out
    library = Path(folder) / f"predict_{'_'.join(map(str, sizes))}.so"
    values = {"N_PARAMS": start, "WIDEST": max(sizes), activation.upper(): 1, "LAYERS(HIDDEN, LAST)": " ".join(layers)}
    definitions = [f"-D{name}={value}" for name, value in values.items()]
    subprocess.run(["gcc", *FLAGS, *definitions, str(SOURCE), "-o", str(library), "-lm"], check=True)
    c = ctypes.CDLL(str(library))
    c.get_params.restype, c.nanoseconds.restype = ctypes.c_void_p, ctypes.c_double
    ctypes.memmove(c.get_params(), model.params.ctypes.data, model.params.nbytes)
    return c


def in_c(library: Any, x: np.ndarray, out: np.ndarray) -> Callable[[int], float]:
    """Return a function that returns the nanoseconds of one of n predictions."""
    return lambda n: float(library.nanoseconds(_pointer(x), _pointer(out), ctypes.c_long(n)))


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def timed(run: Callable[[int], Any]) -> Callable[[int], float]:
    """Return the same of a loop of our own."""

    def nanoseconds(n: int) -> float:
        start = time.perf_counter_ns()
        run(n)
        return (time.perf_counter_ns() - start) / n

    return nanoseconds


def least(runs: dict[str, Callable[[int], float]], rounds: int) -> dict[str, float]:
    """Return the least nanoseconds of each, which take turns."""
    numbers = {}
    for name, run in runs.items():
        run(1)
        numbers[name] = max(1, int(SECONDS * 1e9 / run(3)))
    best = dict.fromkeys(runs, math.inf)
    for _ in range(rounds):
        for name, run in runs.items():
            best[name] = min(best[name], run(numbers[name]))
    return best


def runs_of(model: fastbp.MLP, c: Any) -> dict[str, Callable[[int], float]]:
    """Return what to time of a network."""
    rng, (n_in, n_out), net = np.random.default_rng(0), (model.sizes[0], model.sizes[-1]), model.compiled()
    x, t_x, d_out = (rng.standard_normal(n).astype(np.float32) for n in (n_in, n_in, n_out))
    out, d_x, t_out = (np.zeros(n, np.float32) for n in (n_out, n_in, n_out))
    runs = {
        "predict": timed(lambda n: predict(net, x, out, n)),
        "vjp": timed(lambda n: vjp(net, x, d_out, d_x, n)),
        "jvp": timed(lambda n: jvp(net, x, t_x, t_out, n)),
        "load": timed(lambda n: load_all(model.params, n)),
    }
    if c is not None:
        of_c = np.zeros_like(out)
        runs["C"] = in_c(c, x, of_c)
        runs["C"](1)
        np.testing.assert_allclose(of_c, model.predict(x[np.newaxis])[0], atol=1e-5)
    return runs


def judged(ratio: float, floor: float, goal: float) -> str:
    """Return a ratio beside its limits."""
    verdict = "goal reached" if ratio <= goal else "floor reached" if ratio <= floor else "above the floor"
    return f"{ratio:.2f} (floor {floor}, goal {goal}: {verdict})"


def main() -> None:
    parser = options.parser_of(__doc__)
    options.add_rounds(parser, 200)
    arguments = parser.parse_args()
    print(options.processor())
    has_gcc, results = shutil.which("gcc") is not None, []
    with tempfile.TemporaryDirectory() as folder:
        for sizes, activation, floor, goal in NETWORKS:
            model = fastbp.MLP(list(sizes), activation, seed=0)
            model.params[:] += 0.1 * np.random.default_rng(1).standard_normal(model.n_params)
            times = least(runs_of(model, build(model, activation, folder) if has_gcc else None), arguments.rounds)
            name = "-".join(map(str, sizes)) + f" {activation}"
            print(f"{name}: predict {times['predict']:.0f} ns, C {times.get('C', math.nan):.0f} ns")
            if floor is not None and has_gcc:
                print(f"    times C: {judged(times['predict'] / times['C'], floor, goal)}")
            else:
                share = times["load"] / times["predict"]
                print(f"    share of the load limit, {times['load']:.0f} ns: {share:.0%} (floor, goal {LOAD_SHARE})")
            for derivative, (most, wanted) in DERIVATIVES.items():
                ratio = times[derivative] / times["predict"]
                print(f"    {derivative} {times[derivative]:.0f} ns, times predict: {judged(ratio, most, wanted)}")
            results.append({"network": name, "nanoseconds": times})
    options.save("embedding_float32", networks=results)


if __name__ == "__main__":
    main()
