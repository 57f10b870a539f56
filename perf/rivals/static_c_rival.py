"""Plain C with every size a compile-time constant, built by gcc for this processor: `static_c/step.c`."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np

from harness import shapes
from rivals import Unavailable

SOURCE = Path(__file__).parents[1] / "static_c" / "step.c"
FLAGS = ("-O3", "-march=native", "-mprefer-vector-width=512", "-ffast-math", "-std=gnu11", "-shared", "-fPIC")
BLOCK = 256  # samples whose activations stay in cache


def block_size(batch_size: int) -> int:
    """Return the largest divisor of the batch that is at most `BLOCK`."""
    return max(n for n in range(1, min(batch_size, BLOCK) + 1) if batch_size % n == 0)


def definitions(shape: shapes.Shape, dtype: str) -> list[str]:
    """Return the compiler options that tell `step.c` the problem."""
    # The row stride of the input is its width, that of the other levels is padded to whole vectors.
    layers = [
        f"F({i}, {i + 1}, {n_in}, {n_out}, {f'PAD({n_in})' if i else n_in})"
        for i, (n_in, n_out) in enumerate(pairwise(shape.sizes))
    ]
    values = {
        "REAL": "float" if dtype == "float32" else "double",
        "BATCH": shape.batch_size,
        "BLOCK": block_size(shape.batch_size),
        "N_BATCHES": shape.n_batches,
        "N_IN": shape.sizes[0],
        "N_OUT": shape.sizes[-1],
        "LAYERS(F)": " ".join(layers),
        "HIDDEN(F)": " ".join(layers[:-1]),
        "LAST(F)": layers[-1],
        "BACKWARD(F)": " ".join(reversed(layers[1:])),
        "FIRST(F)": layers[0],
        shape.activation.upper(): 1,
        shape.loss.upper(): 1,
        "LEARNING_RATE": shape.learning_rate,
        "BETA1": shapes.BETA1,
        "BETA2": shapes.BETA2,
        "EPS": shapes.EPS,
    }
    return [f"-D{name}={value}" for name, value in values.items()]


def build(shape: shapes.Shape, dtype: str) -> ctypes.CDLL:
    """Compile the problem and load it."""
    if shutil.which("gcc") is None:
        raise Unavailable("no gcc")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / f"{shape.name}.so"
        command = ["gcc", *FLAGS, *definitions(shape, dtype), str(SOURCE), "-o", str(library), "-lm"]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode:
            raise RuntimeError(built.stderr)
        return ctypes.CDLL(str(library))


class Rival:
    def __init__(self, shape: shapes.Shape, dtype: str, threads: int | None, shuffle: bool) -> None:
        if threads != 1:
            raise Unavailable("one thread only")
        self.library = build(shape, dtype)
        self.start = shapes.make_start(shape, dtype)
        self.x, y = shapes.make_data(shape, dtype)
        self.y = y.astype(np.intc) if y.ndim == 1 else y
        targets, labels = (None, self.y.ctypes) if y.ndim == 1 else (self.y.ctypes, None)
        self.library.start(self.start.ctypes, self.x.ctypes, targets, labels)

    def run(self, n_steps: int) -> None:
        self.library.train(ctypes.c_long(n_steps))

    def params(self) -> np.ndarray:
        flat = np.empty_like(self.start)
        self.library.finish(flat.ctypes)
        return flat

    @staticmethod
    def describe() -> str:
        if shutil.which("gcc") is None:
            raise Unavailable("no gcc")
        version = subprocess.run(["gcc", "-dumpfullversion"], check=True, capture_output=True, text=True).stdout.strip()
        return f"gcc {version} {' '.join(FLAGS[:3])}"
