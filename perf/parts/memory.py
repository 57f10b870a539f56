"""Measure the memory of a fit: its peak against what is promised, the workspace, and the allocations of a step.

    python perf/growth.py memory

Each fit runs in a process of its own. Promised are data + (1 + gradient + moments) x parameters + workspace, where the
workspace depends on the widths only. The data is the user's own array: a fit that needs more than the rest has copied.
The last one is of images as Fashion-MNIST's, bytes that the model standardizes.
The peak is the kernel's high-water mark of resident memory (Linux), which sees what Python's tracemalloc does not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import fastbp
from fastbp.kernels import updates
from fastbp.plan import Plan
from fastbp.program import Program
from harness import options

MEGABYTE = 1e6
SLACK = 3.0  # MB: pages of Python's own heap, and of the stacks and arenas of threads
WIDE, MID, SMALL = (1024, 2048, 2048, 10), (784, 512, 512, 10), (784, 128, 10)
OPTIMIZERS = {
    "SGD": fastbp.SGD(0.01),
    "momentum": fastbp.SGD(0.01, momentum=0.9),
    "Adam": fastbp.Adam(),
}
# Sizes, optimizer, batch size, samples, threads, and whether the inputs are bytes, standardized: one after the other
# varies.
FITS = [
    (MID, "Adam", 256, 20_000, 1, False),
    (MID, "momentum", 256, 20_000, 1, False),
    (MID, "SGD", 256, 20_000, 1, False),
    (MID, "Adam", 32, 20_000, 1, False),
    (MID, "Adam", 5_000, 20_000, 1, False),
    (MID, "Adam", 20_000, 20_000, 1, False),
    (MID, "Adam", 256, 100_000, 1, False),
    (MID, "Adam", 256, 20_000, 2, False),
    (SMALL, "Adam", 128, 20_000, 1, False),
    (WIDE, "Adam", 512, 5_000, 1, False),
    (WIDE, "SGD", 512, 5_000, 1, False),
    (SMALL, "Adam", 128, 60_000, 1, True),
]
STEPS = (10, 1000)


def n_params(sizes: tuple[int, ...]) -> int:
    return sum((n_in + 1) * n_out for n_in, n_out in pairwise(sizes))


def make_model(sizes: tuple[int, ...], standardize: bool = False) -> fastbp.MLP:
    return fastbp.MLP(sizes, output="softmax", seed=0, standardize=standardize)


def make_data(sizes: tuple[int, ...], n_samples: int, is_bytes: bool = False) -> tuple[Any, Any]:
    rng, shape = np.random.default_rng(0), (n_samples, sizes[0])
    x = rng.integers(0, 256, shape, np.uint8) if is_bytes else rng.standard_normal(shape, dtype=np.float32)
    return x, rng.integers(0, sizes[-1], n_samples)


def workspace_bytes(sizes: tuple[int, ...], batch_size: int, n_workers: int) -> int:
    """Return the size of all buffers of a fit with Adam."""
    model = make_model(sizes)
    plan = Plan(
        model._network.architecture,
        batch_size,
        trains=True,
        with_loss=True,
        rule=updates.RULES["adam"],
        n_workers=n_workers,
    )
    return int(Program(plan, model.params, model._network.scaling)._arena.memory.nbytes)


def resident(field: str) -> int:
    """Return VmRSS, the present resident memory in bytes, or VmHWM, its peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def measure(sizes: list[int], optimizer: str, batch_size: int, n_samples: int, threads: int, is_bytes: bool) -> int:
    """Return by how many bytes a model and its fit raise the peak of resident memory."""
    warm, x, y = make_model((3, 5, 4), is_bytes), np.zeros((8, 3)), np.arange(8) % 4
    warm.fit(x, y, optimizer=OPTIMIZERS[optimizer], epochs=1)  # loads what is compiled
    make_model((600, 600, 600, 10)).fit(np.zeros((512, 600)), np.zeros(512, int), epochs=1, threads=threads)
    x, y = make_data(tuple(sizes), n_samples, is_bytes)
    before = resident("VmRSS")
    model = make_model(tuple(sizes), is_bytes)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is not the fit's
    model.fit(x, y, optimizer=OPTIMIZERS[optimizer], batch_size=batch_size, max_steps=20, threads=threads)
    return resident("VmHWM") - before


def allocations(n_steps: int) -> int:
    """Return how many blocks Numba's runtime allocates in a call of the kernel that takes so many steps."""
    from numba.core.runtime import rtsys

    from fastbp import pacing

    pacing.Pace.budget = lambda self, seconds_left=None: 1 << 60  # type: ignore[method-assign]  # one call for all
    x, y = make_data(SMALL, 1024)
    trainer = fastbp.Trainer(make_model(SMALL), batch_size=128)
    trainer.fit(x, y, epochs=None, max_steps=1)
    before = rtsys.get_allocation_stats().alloc
    trainer.fit(x, y, epochs=None, max_steps=n_steps)
    return rtsys.get_allocation_stats().alloc - before


def in_a_process(function: str, *arguments: Any) -> int:
    """Call a function of this module in a process of its own."""
    process = subprocess.run(
        [sys.executable, "-m", "parts.memory", function, json.dumps(arguments)],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"NUMBA_NRT_STATS": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    return int(process.stdout)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add those of this part: none."""


def run(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    counts = {n: in_a_process("allocations", n) for n in STEPS}
    print("allocations of a fit in compiled code: " + ", ".join(f"{count} in {n} steps" for n, count in counts.items()))

    print("\nworkspace in MB, by batch size")
    batches = (1, 32, 256, 1024, 2048, 65_536)
    print(f"{'network':24}" + "".join(f"{batch:>9}" for batch in batches))
    for sizes in (SMALL, MID, WIDE):
        cells = "".join(f"{workspace_bytes(sizes, batch, 1) / MEGABYTE:9.2f}" for batch in batches)
        print(f"{'-'.join(map(str, sizes)):24}{cells}")

    print("\npeak resident memory of a fit in MB, beside the data")
    print(
        f"{'network':24}{'optimizer':>10}{'batch':>8}{'samples':>9}{'threads':>8}{'data':>8}{'promised':>10}{'used':>8}"
    )
    is_kept = max(counts.values()) == 0
    for sizes, optimizer, batch_size, n_samples, threads, is_bytes in FITS:
        n_vectors = 2 + len(OPTIMIZERS[optimizer].moments)
        promised = n_vectors * 4 * n_params(sizes) + workspace_bytes(sizes, batch_size, threads)
        used = in_a_process("measure", sizes, optimizer, batch_size, n_samples, threads, is_bytes)
        is_within = used <= promised + SLACK * MEGABYTE
        is_kept &= is_within
        data = n_samples * ((1 if is_bytes else 4) * sizes[0] + 8)
        print(
            f"{'-'.join(map(str, sizes)):24}{optimizer:>10}{batch_size:8}{n_samples:9}{threads:8}{data / MEGABYTE:8.1f}"
            f"{promised / MEGABYTE:10.1f}{used / MEGABYTE:8.1f}{'' if is_within else '  more than promised'}",
            flush=True,
        )
    print(f"(up to {SLACK:g} MB more pass as the interpreter's own)")
    options.exit_with(is_kept)


if __name__ == "__main__":
    print({"measure": measure, "allocations": allocations}[sys.argv[1]](*json.loads(sys.argv[2])))
