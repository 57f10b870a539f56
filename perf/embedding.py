"""Time a network inside a compiled loop (`fastbp.embed`) beside plain C, and beside a call of other libraries.

    python perf/embedding.py [--rounds 60]

One sample, float32. C is a static function of which every size is a compile-time constant, built by gcc -O3
-march=native -ffast-math (`static_c/predict.c`), called in a loop of C; ours is called in a loop that Numba compiles.
Beside it stands the same where each sum keeps the order of its terms, as ours do.
All take turns; a time is the least of the rounds, each a loop of less than a millisecond.

A step on a batch stands beside the trainer's own steps in a fit that shuffles. Compilation is that of a loop around a
prediction, less that of the empty loop. Two threads with one handle stand beside two processes, each pinned to a core.
Writes JSON to perf/results/.
"""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from itertools import pairwise
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

import fastbp
from fastbp import embed
from harness import options
from harness.processes import available_cores

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = Path(__file__).parent / "static_c" / "predict.c"
FLAGS = ("-O3", "-march=native", "-mprefer-vector-width=512", "-std=gnu11", "-shared", "-fPIC")
# How gcc may sum: in any order, or as fastbp does.
ORDERS = {"C": ("-ffast-math", "-DKEPT=0"), "C, order kept": ("-fno-math-errno", "-fno-trapping-math", "-DKEPT=1")}
SECONDS = 3e-4  # of a loop
# Sizes and activation, with the most times C's time: floor and goal.
NETWORKS = (
    ((4, 32, 32, 1), "tanh", 1.45, 1.2),
    ((8, 64, 64, 4), "relu", 1.7, 1.5),
    ((24, 128, 128, 6), "tanh", None, None),
)
LOAD_SHARE = 0.6, 0.7  # floor and goal of the last one: of the time in which its weights can be loaded
STEPS = (((4, 32, 32, 1), "tanh", 32), ((8, 64, 64, 4), "relu", 1), ((2, 10, 10, 10, 1), "tanh", 4))
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


@numba.njit(nogil=True)
def train_step(learner, x, y, batch, n):
    """Call `embed.train_step` n times, on one batch after the other."""
    status, start = 0, 0
    for _ in range(n):
        status |= embed.train_step(learner, x[start : start + batch], y[start : start + batch])
        start = start + batch if start + 2 * batch <= len(x) else 0
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


def build(model: fastbp.MLP, activation: str, order: str, folder: str) -> Any:
    """Return the network in C, with its parameters, whose sums are in one of `ORDERS`."""
    sizes, last = model.sizes, len(model.sizes) - 2
    buffers = ["x", *("ac"[index % 2] for index in range(last)), "out"]
    layers, start = [], 0
    for index, (n_in, n_out) in enumerate(pairwise(sizes)):
        kind = "LAST" if index == last else "HIDDEN"
        layers.append(f"{kind}({buffers[index]}, {buffers[index + 1]}, {start}, {n_in}, {n_out})")
        start += n_in * n_out + n_out
    library = Path(folder) / f"predict_{'_'.join(map(str, sizes))}_{list(ORDERS).index(order)}.so"
    values = {"N_PARAMS": start, "WIDEST": max(sizes), activation.upper(): 1, "LAYERS(HIDDEN, LAST)": " ".join(layers)}
    definitions = [f"-D{name}={value}" for name, value in values.items()]
    subprocess.run(["gcc", *FLAGS, *ORDERS[order], *definitions, str(SOURCE), "-o", str(library), "-lm"], check=True)
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


def runs_of(model: fastbp.MLP, libraries: dict[str, Any]) -> dict[str, Callable[[int], float]]:
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
    for name, library in libraries.items():
        of_c = np.zeros_like(out)
        runs[name] = in_c(library, x, of_c)
        runs[name](1)
        np.testing.assert_allclose(of_c, model.predict(x[np.newaxis])[0], atol=1e-5)
    return runs


def step_times(sizes: tuple[int, ...], activation: str, batch: int, rounds: int) -> dict[str, float]:
    """Return the least nanoseconds of a step in compiled code, and of one in a fit on 200 batches, in turns."""
    rng, many = np.random.default_rng(0), 200
    x = rng.standard_normal((many * batch, sizes[0])).astype(np.float32)
    y = rng.standard_normal((many * batch, sizes[-1])).astype(np.float32)
    models, adam = [fastbp.MLP(list(sizes), activation, seed=0) for _ in range(2)], fastbp.Adam(1e-9)
    fits, steps = (fastbp.Trainer(model, optimizer=adam, batch_size=batch, seed=0) for model in models)
    learner = steps.compiled(batch)
    run = timed(lambda n: train_step(learner, x, y, batch, n))
    run(1)  # compiles
    n = max(1, int(SECONDS * 1e9 / run(20)))
    best = {"train_step": math.inf, "fit": math.inf}
    for _ in range(rounds):
        best["train_step"] = min(best["train_step"], run(n))
        best["fit"] = min(best["fit"], 1e9 * fits.fit(x, y, epochs=20).seconds[-20:].min() / many)
    return best


def compile_seconds(with_predict: bool) -> float:
    """Return the seconds in which Numba compiles a loop of the user's, the least of some."""
    net = fastbp.MLP([4, 32, 32, 1], "tanh", seed=0).compiled()
    x, out, best = np.zeros(4, np.float32), np.zeros(1, np.float32), math.inf
    for _ in range(5):
        if with_predict:

            def loop(net, x, out, n):
                status = 0
                for _ in range(n):
                    status |= embed.predict(net, x, out)
                return status
        else:

            def loop(net, x, out, n):
                status = 0
                for _ in range(n):
                    status |= out.shape[0] - 1
                return status

        compiled, start = numba.njit(loop), time.perf_counter()
        compiled(net, x, out, 1)
        best = min(best, time.perf_counter() - start)
    return best


def predict_for(seconds: float, core: int | None, handle: Any = None) -> int:
    """Return how many predictions a thread makes in so many seconds, on a core of its own if one is named."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    net = fastbp.MLP([4, 32, 32, 1], "tanh", seed=0).compiled() if handle is None else handle
    x, out, done = np.ones(4, np.float32), np.zeros(1, np.float32), 0
    predict(net, x, out, 10)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        predict(net, x, out, 20_000)
        done += 20_000
    return done


def threads_over_processes(seconds: float = 1.0, rounds: int = 5) -> float:
    """Return the predictions of two threads with one handle over those of two pinned processes, the best of rounds."""
    cores, best = available_cores()[:2], {"threads": 0, "processes": 0}
    net = fastbp.MLP([4, 32, 32, 1], "tanh", seed=0).compiled()
    with multiprocessing.get_context("spawn").Pool(2) as processes, ThreadPool(2) as threads:
        processes.starmap(predict_for, [(0.01, core) for core in cores])
        for _ in range(rounds):
            done = sum(processes.starmap(predict_for, [(seconds, core) for core in cores], chunksize=1))
            best["processes"] = max(best["processes"], done)
            best["threads"] = max(best["threads"], sum(threads.starmap(predict_for, [(seconds, None, net)] * 2)))
    return best["threads"] / best["processes"]


def rival_nanoseconds() -> dict[str, float]:
    """Return the least nanoseconds of a prediction of one sample by a call from Python of PyTorch, and of JAX."""
    found, x = {}, np.ones((1, 4), np.float32)
    with suppress(ImportError):
        import torch

        torch.set_num_threads(1)
        first, second, last = (torch.nn.Linear(*sizes) for sizes in ((4, 32), (32, 32), (32, 1)))
        model = torch.nn.Sequential(first, torch.nn.Tanh(), second, torch.nn.Tanh(), last)
        tensor = torch.from_numpy(x)
        with torch.inference_mode():
            found["PyTorch"] = least({"call": timed(lambda n: [model(tensor) for _ in range(n)])}, 100)["call"]
    with suppress(ImportError):
        import jax

        model = fastbp.MLP([4, 32, 32, 1], "tanh", seed=0)
        layers = [(jax.numpy.array(w), jax.numpy.array(b)) for w, b in zip(model.weights, model.biases, strict=True)]

        @jax.jit
        def apply(layers, x):
            for w, b in layers[:-1]:
                x = jax.numpy.tanh(x @ w + b)
            return x @ layers[-1][0] + layers[-1][1]

        array = jax.numpy.array(x)
        run = timed(lambda n: [apply(layers, array).block_until_ready() for _ in range(n)])
        found["JAX"] = least({"call": run}, 100)["call"]
    return found


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
            libraries = {order: build(model, activation, order, folder) for order in ORDERS if has_gcc}
            times = least(runs_of(model, libraries), arguments.rounds)
            name = "-".join(map(str, sizes)) + f" {activation}"
            print(f"{name}: " + ", ".join([f"{of} {times[of]:.0f} ns" for of in ("predict", *libraries)]))
            if floor is not None and has_gcc:
                print(f"    times C: {judged(times['predict'] / times['C'], floor, goal)}")
            else:
                share = times["load"] / times["predict"]
                print(f"    share of the load limit, {times['load']:.0f} ns: {share:.0%} (floor, goal {LOAD_SHARE})")
            for derivative, (most, wanted) in DERIVATIVES.items():
                ratio = times[derivative] / times["predict"]
                print(f"    {derivative} {times[derivative]:.0f} ns, times predict: {judged(ratio, most, wanted)}")
            results.append({"network": name, "nanoseconds": times})
    steps = []
    for sizes, activation, batch in STEPS:
        times = step_times(sizes, activation, batch, arguments.rounds)
        name, ratio = "-".join(map(str, sizes)) + f" {activation}, batch {batch}", times["train_step"] / times["fit"]
        print(f"{name}: train_step {times['train_step']:.0f} ns, times a fit's step: {judged(ratio, 1.06, 1.03)}")
        steps.append({"network": name, "nanoseconds": times})
    seconds = compile_seconds(True) - compile_seconds(False)
    print(f"compilation of the user's loop: {seconds:.2f} s more (floor 0.5, goal 0.2)")
    ratio = threads_over_processes()
    print(f"two threads with one handle over two processes: {ratio:.2f} (floor 0.90, goal 0.97)")
    rivals, ours = rival_nanoseconds(), results[0]["nanoseconds"]["predict"]
    print("a call from Python, times ours: " + ", ".join(f"{name} {time / ours:.0f}" for name, time in rivals.items()))
    others = {"compile_seconds": seconds, "threads": ratio, "rivals": rivals}
    options.save("embedding_float32", networks=results, steps=steps, **others)


if __name__ == "__main__":
    main()
