"""The process of one rival: reads commands as JSON lines, answers each with one JSON line.

Started by `processes.py`, which has set the environment; the cores are set here, before NumPy or any other library that
looks at them is imported.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any


class Session:
    """Builds the rival anew for a check and for the timing, and runs it."""

    def __init__(self, rival: str, shape: dict[str, Any], dtype: str, threads: int | None) -> None:
        from harness import shapes

        self.shapes, self.shape = shapes, shapes.Shape(**shape | {"sizes": tuple(shape["sizes"])})
        self.dtype, self.threads = dtype, threads
        self.module = import_module(f"rivals.{rival}_rival")
        self.timed: Any = None

    def describe(self) -> str:
        return self.module.Rival.describe()

    def check(self, n_steps: int) -> float:
        """Loss of the first batch after n_steps without shuffling."""
        rival = self.module.Rival(self.shape, self.dtype, self.threads, shuffle=False)
        rival.run(n_steps)
        return self.shapes.first_batch_loss(self.shape, rival.params(), *self.shapes.make_data(self.shape, self.dtype))

    def time(self, n_steps: int, clock: str = "perf_counter") -> float:
        """Seconds of a run by a clock of `time`; the rival, its data and what it compiled stay for the next one."""
        if self.timed is None:
            self.timed = self.module.Rival(self.shape, self.dtype, self.threads, shuffle=True)
        now = getattr(time, clock)
        begin = now()
        self.timed.run(n_steps)
        return now() - begin

    def measure(self) -> float:
        """What a rival without steps is worth."""
        return self.module.Rival(self.shape, self.dtype, self.threads, shuffle=False).measure()


def import_fastbp_from(source: str) -> None:
    """Import fastbp from this folder, whichever version is installed."""
    sys.path.insert(0, source)
    found = import_module("fastbp").__file__
    if not found or Path(source).resolve() not in Path(found).resolve().parents:
        raise RuntimeError(f"fastbp was imported from {found}, not from {source}")


def replace_constants(constants: list[list[Any]]) -> None:
    """Give fastbp other numbers than its own, before anything has read them."""
    modules = [import_module(f"fastbp.{name}") for name in ("plan", "program")]
    for name, value in constants:
        for module in modules:
            if hasattr(module, name):
                setattr(module, name, value)


def main() -> None:
    sys.path[0] = str(Path(__file__).parents[1])  # where `harness` and `rivals` are
    settings = json.loads(sys.argv[1])
    # What libraries print must not reach the pipe.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    cores = settings.pop("cores")
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    source, constants = settings.pop("source"), settings.pop("constants")
    session = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if session is None:
                if source:
                    import_fastbp_from(source)
                if constants:
                    replace_constants(constants)
                session = Session(**settings)
            answer = {"result": getattr(session, request.pop("command"))(**request)}
        except Exception as error:
            unavailable = isinstance(error, (ImportError, NotImplementedError)) or type(error).__name__ == "Unavailable"
            answer = {"unavailable": str(error)} if unavailable else {"failed": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
