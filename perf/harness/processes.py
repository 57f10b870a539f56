"""Rivals in processes of their own, run in turns: checks, timings, medians, and the table they make."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from harness.shapes import Shape

# Presets of a machine that would choose slower kernels than OpenBLAS finds by itself.
PRESETS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
SERIAL_XLA = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
CHECK_STEPS = 100
CHECK_RTOL = 1e-3
SECONDS_PER_RUN = 0.3


@dataclass(frozen=True)
class Setting:
    """A rival and its number of threads; None is the library's own choice, unpinned.

    `source` is the folder to import fastbp from, if it is not that of the environment; `constants` are numbers of
    `fastbp.plan` that it is to have instead of its own.
    """

    rival: str
    threads: int | None = 1
    source: str | None = None
    constants: tuple[tuple[str, int], ...] = ()

    @property
    def label(self) -> str:
        if self.threads == 1:
            return self.rival
        return f"{self.rival} ({'default' if self.threads is None else self.threads} threads)"


@dataclass
class Measurement:
    """What one setting did on one shape."""

    setting: Setting
    description: str = ""
    loss: float | None = None
    seconds_per_step: list[float] = field(default_factory=list)
    problem: str = ""
    failed: bool = False

    @property
    def microseconds(self) -> float | None:
        """Median time per step, None where nothing was timed."""
        return 1e6 * median(self.seconds_per_step) if self.seconds_per_step else None

    def ratio(self, other: Measurement) -> float:
        """Time over the other's, median of the rounds: each compares two runs at nearly the same time."""
        return median(a / b for a, b in zip(self.seconds_per_step, other.seconds_per_step, strict=True))

    def share_of_peak(self, flops: int, peaks: list[float]) -> float:
        """FLOP/s over the multiply-add peak, median of the rounds, for peaks in GFLOP/s."""
        return median(flops / a / peak / 1e9 for a, peak in zip(self.seconds_per_step, peaks, strict=True))


class Unavailable(Exception):
    """A rival is not installed or cannot run this problem."""


def available_cores() -> list[int]:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def environment(threads: int | None) -> dict[str, str]:
    """Return the environment of a rival's process: no BLAS presets, and the thread count of every library."""
    variables = {key: value for key, value in os.environ.items() if key not in PRESETS}
    for name in THREAD_VARIABLES:
        variables.pop(name, None)
        if threads is not None:
            variables[name] = str(threads)
    if threads == 1:
        variables["XLA_FLAGS"] = f"{variables.get('XLA_FLAGS', '')} {SERIAL_XLA}".strip()
    return variables


class RivalProcess:
    """A rival that waits for commands in a process of its own, pinned to as many cores as it has threads."""

    def __init__(self, setting: Setting, shape: Shape, dtype: str) -> None:
        cores = available_cores()[-setting.threads :] if setting.threads else []
        settings = {
            "rival": setting.rival,
            "shape": asdict(shape),
            "dtype": dtype,
            "threads": setting.threads,
            "cores": cores,
            "source": setting.source,
            "constants": setting.constants,
        }
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py")), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(setting.threads),
            text=True,
            bufsize=1,
        )

    def ask(self, command: str, **arguments: Any) -> Any:
        """Return the rival's answer; raise Unavailable or RuntimeError where there is none."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"failed": f"the process ended with {self.process.wait()}"}
        if "unavailable" in answer:
            raise Unavailable(answer["unavailable"])
        if "failed" in answer:
            raise RuntimeError(answer["failed"])
        return answer["result"]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def calibrate(process: RivalProcess, shape: Shape) -> int:
    """Return a whole number of epochs, in steps, that takes at least `SECONDS_PER_RUN`; the first run compiles."""
    process.ask("time", n_steps=shape.n_batches)
    n_epochs = 1
    while True:
        seconds = process.ask("time", n_steps=n_epochs * shape.n_batches)
        if seconds >= SECONDS_PER_RUN:
            return n_epochs * shape.n_batches
        n_epochs = max(n_epochs + 1, min(10 * n_epochs, int(1.2 * n_epochs * SECONDS_PER_RUN / seconds)))


def prepare(measurement: Measurement, process: RivalProcess, shape: Shape) -> int:
    """Fill in description and loss, compile, and return the steps of a timed run, 0 where the rival cannot run."""
    try:
        measurement.description = process.ask("describe")
        if measurement.setting.rival != "sklearn":
            measurement.loss = process.ask("check", n_steps=CHECK_STEPS)
        return calibrate(process, shape)
    except (Unavailable, RuntimeError) as error:
        measurement.problem = str(error).split("\n")[0]
        measurement.failed = isinstance(error, RuntimeError)
        return 0


def compare(shape: Shape, settings: list[Setting], dtype: str, rounds: int) -> tuple[list[Measurement], list[float]]:
    """Check, calibrate and time all settings on one shape; return them and each round's FMA peak in GFLOP/s."""
    measurements = [Measurement(setting) for setting in settings]
    peak_process = RivalProcess(Setting("peak"), shape, dtype)
    processes = [RivalProcess(setting, shape, dtype) for setting in settings]
    try:
        steps = [prepare(m, process, shape) for m, process in zip(measurements, processes, strict=True)]
        check_losses(measurements)
        peaks = []
        for _ in range(rounds):
            peaks.append(peak_process.ask("measure"))
            for measurement, process, n_steps in zip(measurements, processes, steps, strict=True):
                if n_steps:
                    time.sleep(0.05)  # lets the threads of the rival before stop spinning
                    measurement.seconds_per_step.append(process.ask("time", n_steps=n_steps) / n_steps)
    finally:
        for process in (peak_process, *processes):
            process.close()
    return measurements, peaks


def check_losses(measurements: list[Measurement]) -> None:
    """Mark every setting whose loss after the check is not that of the first one."""
    expected = measurements[0].loss
    for measurement in measurements:
        if expected is None or measurement.loss is None:
            continue
        if not abs(measurement.loss - expected) <= CHECK_RTOL * abs(expected):
            measurement.failed = True
            measurement.problem = f"loss differs from the {expected:.6f} of {measurements[0].setting.label}"


def report(shape: Shape, measurements: list[Measurement], peaks: list[float]) -> None:
    """Print one shape's table; a ratio is the time of that rival over the first one's."""
    print(f"\n{shape}   (FMA peak of one core: {median(peaks):.0f} GFLOP/s)")
    print(f"  {'':32} {'µs/step':>12} {'ratio':>9} {'GFLOP/s':>9} {'of peak':>8}   loss after {CHECK_STEPS} steps")
    for measurement in measurements:
        label, microseconds = measurement.setting.label, measurement.microseconds
        if microseconds is None:
            print(f"  {label:32} {'-':>12}   {measurement.problem}")
            continue
        serial = measurement.setting.threads == 1
        share = f"{measurement.share_of_peak(shape.flops, peaks):8.1%}" if serial else f"{'':8}"
        loss = "not compared" if measurement.loss is None else f"{measurement.loss:.6f} {measurement.problem}"
        gflops = shape.flops / microseconds / 1e3
        ratio = measurement.ratio(measurements[0])
        print(f"  {label:32} {microseconds:12.2f} {ratio:9.2f} {gflops:9.1f} {share}   {loss}")
    sys.stdout.flush()


def as_record(shape: Shape, measurements: list[Measurement], peaks: list[float]) -> dict[str, Any]:
    """Return one shape's results for JSON; ratios are times over those of the first setting of as many threads."""
    first = {m.setting.threads: m for m in reversed(measurements) if m.setting.rival == measurements[0].setting.rival}
    rivals = []
    for m in measurements:
        ours = first.get(m.setting.threads, measurements[0])
        rivals.append(
            {
                "rival": m.setting.rival,
                "threads": m.setting.threads,
                "description": m.description,
                "loss_after_check": m.loss,
                "microseconds_per_step": [1e6 * seconds for seconds in m.seconds_per_step],
                "median_microseconds": m.microseconds,
                "ratio": m.ratio(ours) if m.seconds_per_step and ours.seconds_per_step else None,
                "share_of_peak": m.share_of_peak(shape.flops, peaks) if m.seconds_per_step else None,
                "problem": m.problem,
                "failed": m.failed,
            }
        )
    return {
        "shape": shape.name,
        "sizes": shape.sizes,
        "batch_size": shape.batch_size,
        "flops_per_step": shape.flops,
        "fma_peak_gflops": peaks,
        "rivals": rivals,
    }


def timed(record: dict[str, Any], threads: int | None) -> dict[str, dict[str, Any]]:
    """Return rival: its results, of the settings with that thread count that were timed."""
    return {
        rival["rival"]: rival
        for rival in record["rivals"]
        if rival["threads"] == threads and rival["median_microseconds"] is not None
    }


def any_failed(records: list[dict[str, Any]]) -> bool:
    """Return whether a rival failed or reached another loss."""
    return any(rival["failed"] for record in records for rival in record["rivals"])
