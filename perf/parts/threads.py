"""Measure what threads gain: on every shape, quiet and beside a busy process; and what a short call costs.

    python perf/growth.py threads [--shapes all] [--threads N] [--dtype float32] [--rounds 7]

Serial, N threads (by default all cores) and "auto" take turns in one process that is pinned nowhere, first with the
machine to themselves, then beside one process that never rests. Then fits of a few steps, and the cost of a meeting.
Writes JSON under perf/results/.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from fastbp.kernels import team
from fastbp.kernels.calls import int64_at
from harness import options, processes
from harness.shapes import SHAPES, Shape
from rivals.fastbp_rival import Rival

if TYPE_CHECKING:
    from collections.abc import Iterator

AUTO = None  # as `processes.Setting` has it
SHORT_FITS = (1, 2, 4, 8, 16, 32, 64, 128)
N_MEETINGS = 100_000


@contextmanager
def busy_process(is_busy: bool) -> Iterator[None]:
    """Keep one core busy, if wanted."""
    if not is_busy:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.3)
        yield
    finally:
        process.kill()
        process.wait()


def seconds_of(rival: Rival, n_steps: int) -> float:
    begin = time.perf_counter()
    rival.run(n_steps)
    return time.perf_counter() - begin


def calibrate(rival: Rival, shape: Shape) -> int:
    """Return a whole number of epochs, in steps, that takes about `processes.SECONDS_PER_RUN`."""
    rival.run(shape.n_batches)
    n_epochs = 1
    while (seconds := seconds_of(rival, n_epochs * shape.n_batches)) < processes.SECONDS_PER_RUN:
        n_epochs = max(n_epochs + 1, min(10 * n_epochs, int(1.2 * n_epochs * processes.SECONDS_PER_RUN / seconds)))
    return n_epochs * shape.n_batches


def compare(shape: Shape, counts: list[int | None], dtype: str, rounds: int) -> dict[str, Any]:
    """Time all numbers of threads in turns; return the times per step in µs, quiet and loaded."""
    rivals = {count: Rival(shape, dtype, count, shuffle=True) for count in counts}
    n_steps = calibrate(rivals[1], shape)
    for rival in rivals.values():
        rival.run(n_steps)
    record: dict[str, Any] = {"shape": shape.name}
    for state, is_busy in (("quiet", False), ("loaded", True)):
        times: dict[str, list[float]] = {name_of(count): [] for count in counts}
        with busy_process(is_busy):
            for _ in range(rounds):
                for count, rival in rivals.items():
                    times[name_of(count)].append(1e6 * seconds_of(rival, n_steps) / n_steps)
        record[state] = times
    return record


def name_of(count: int | None) -> str:
    return "auto" if count is AUTO else str(count)


def gain(times: dict[str, list[float]], name: str) -> float:
    """Return serial time over that of `name`, median of the rounds."""
    return median(serial / other for serial, other in zip(times["1"], times[name], strict=True))


def short_fits(counts: list[int | None], dtype: str, rounds: int) -> dict[str, dict[int, float]]:
    """Return the time of a whole `fit` of a few steps of `surrogate`, in µs, by name of the number of threads."""
    rivals = {name_of(count): Rival(SHAPES["surrogate"], dtype, count, shuffle=True) for count in counts}
    times: dict[str, dict[int, list[float]]] = {name: {n: [] for n in SHORT_FITS} for name in rivals}
    for _ in range(10 * rounds + 1):  # the first one compiles
        for n_steps in SHORT_FITS:
            for name, rival in rivals.items():
                times[name][n_steps].append(1e6 * seconds_of(rival, n_steps))
    return {name: {n: median(of_fits[1:]) for n, of_fits in by_steps.items()} for name, by_steps in times.items()}


@numba.njit(nogil=True)
def _meet_often(sync: int, is_helper: int, n_wanted: int, n_meetings: int) -> int:
    meeting = int64_at(sync)
    worker, n_workers = team.enter(meeting, is_helper, n_wanted, 10**9, 2**62)  # both wait for ever, all but
    if worker >= 0:
        for i in range(n_meetings):
            team.meet(meeting, n_workers, i + 1)
        team.leave(meeting, worker, n_workers)
    return n_workers


def meeting_cost(n_workers: int) -> float:
    """Return what one meeting costs, in ns; NaN if the helpers came too late."""
    sync = np.zeros(team.SYNC_SIZE, np.int64)
    arguments = (sync.ctypes.data, 1, n_workers, N_MEETINGS)
    _meet_often(np.zeros(team.SYNC_SIZE, np.int64).ctypes.data, 0, 1, 1)
    helpers = [threading.Thread(target=_meet_often, args=arguments, daemon=True) for _ in range(n_workers - 1)]
    for helper in helpers:
        helper.start()
    while sync[team.JOINED] < n_workers - 1:
        time.sleep(1e-4)
    begin = time.perf_counter()
    n_came = _meet_often(sync.ctypes.data, 0, n_workers, N_MEETINGS)
    seconds = time.perf_counter() - begin
    for helper in helpers:
        helper.join()
    return 1e9 * seconds / N_MEETINGS if n_came == n_workers else float("nan")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add those of this part."""
    options.add_shapes(parser)
    parser.add_argument("--threads", type=int, default=len(processes.available_cores()), help="by default all cores")
    options.add_dtype(parser)
    options.add_rounds(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measure, print and write."""
    counts: list[int | None] = [1, arguments.threads, AUTO]
    many = name_of(arguments.threads)
    print(f"{arguments.dtype}, Adam; medians of {arguments.rounds} interleaved rounds")
    print("gain: serial time over the time with threads; loaded: beside one process that never rests\n")
    print(f"{'':12} {'quiet':^34}   {'loaded':^34}")
    header = f"{'serial µs':>12} {f'{many} threads':>10} {'auto':>10}"
    print(f"{'shape':12} {header}   {header}")
    records = []
    for shape in arguments.shapes:
        record = compare(shape, counts, arguments.dtype, arguments.rounds)
        records.append(record)
        cells = [
            f"{median(record[state]['1']):12.2f} {gain(record[state], many):9.2f}× {gain(record[state], 'auto'):9.2f}×"
            for state in ("quiet", "loaded")
        ]
        print(f"{shape.name:12} {'   '.join(cells)}", flush=True)
    fits = short_fits(counts, arguments.dtype, arguments.rounds)
    print("\nµs of a whole fit of a few steps of `surrogate`, checks and set-up included")
    print(f"{'steps':>6} " + " ".join(f"{name:>10}" for name in fits))
    for n_steps in SHORT_FITS:
        print(f"{n_steps:6} " + " ".join(f"{by_steps[n_steps]:10.0f}" for by_steps in fits.values()))
    meeting = median(meeting_cost(arguments.threads) for _ in range(arguments.rounds))
    print(f"\na meeting of {many} workers that have nothing else to do: {meeting:.0f} ns")
    options.save(
        f"threads_{arguments.dtype}",
        dtype=arguments.dtype,
        threads=arguments.threads,
        microseconds_per_step=records,
        microseconds_of_short_fits=fits,
        nanoseconds_per_meeting=meeting,
    )
