"""Faults by the hundred: does anything get lost, or does anything crash?

    python perf/faults.py [--only resumes,kills,full_disk,mutations,growth,networks,inputs] [--seed 0]

resumes    200 random fits (optimizer × options × dtype × stop step × threads), each stopped after a random step,
           written to a file and completed by a trainer that only knows the file: the SHA-256 must be that of the fit in
           one go.
kills      a program that writes a file again and again is killed 200 times (SIGKILL), at random moments: the file must
           be readable each time.
full_disk  writes that fail after each of some 200 numbers of bytes: an OSError, and the old file as it was.
mutations  10 000 damaged files: only `fastbp.CheckpointError`, or the whole content; memory at most 3 × the file.
growth     10**6 steps and 10**5 refused calls: the process does not grow.
networks   400 random networks × options × odd data: a step as the naive twin's, nothing else touched.
inputs     every bad input of `tests/bad_input.txt` gets its message before anything happens.

The last two are tests (`tests/test_random_networks.py`, `tests/test_bad_input.py`) and need what these need.
Prints a line for each; the exit status is 0 if all is well. The tests run a part of this.
"""

from __future__ import annotations

import contextlib
import hashlib
import resource
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np

import fastbp
from fastbp import schedules
from harness import options

OPTIMIZERS = (
    fastbp.SGD(0.05),
    fastbp.SGD(0.02, momentum=0.9, nesterov=True),
    fastbp.Adagrad(0.05),
    fastbp.RMSprop(0.01, momentum=0.5, centered=True),
    fastbp.Adam(schedules.CosineDecay(0.01, 300)),
    fastbp.Adam(0.01, amsgrad=True, weight_decay=0.01),
    fastbp.AdamW(schedules.Warmup(20, schedules.StepDecay(0.01, 0.5, 50))),
    fastbp.Adadelta(),
    fastbp.NAdam(0.01),
    fastbp.RAdam(0.01),
    fastbp.Lion(0.001),
    fastbp.ScheduleFreeAdamW(0.01),
)
SHAPES = ((4, 8, 2), (4, 33, 7, 2), (4, 150, 120, 2))


def random_fit(rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return options of a network, of a trainer and of a fit."""
    sizes = SHAPES[rng.integers(len(SHAPES))]
    optimizer = OPTIMIZERS[rng.integers(len(OPTIMIZERS))]
    network = {
        "sizes": sizes,
        "activation": str(rng.choice(["relu", "tanh", "gelu", "elu(0.5)", "leaky_relu"])),
        "dtype": str(rng.choice(["float32", "float64"])),
        "seed": 0,
        "standardize": bool(rng.integers(2)),
        "standardize_y": bool(rng.integers(2)),
    }
    of_trainer: dict[str, Any] = {
        "optimizer": optimizer,
        "batch_size": [None, 7, 16, 50][rng.integers(4)],
        "shuffle": [True, False, 30][rng.integers(3)],
        "drop_last": bool(rng.integers(2)),
        "seed": int(rng.integers(1 << 40)),
    }
    if rng.integers(2):
        of_trainer["regularize"] = [fastbp.Dropout(0.2), fastbp.InputNoise(0.1), fastbp.L2(1e-3), fastbp.MaxNorm(1.0)]
    if rng.integers(2):
        of_trainer["clip_norm"] = 0.5
    if rng.integers(2) and not optimizer.has_average:
        of_trainer |= {"ema": 0.9, "use_ema": bool(rng.integers(2))}
    if rng.integers(2):
        of_trainer["rate_factors"] = [(1.0, 0.1)] * (len(sizes) - 1)
    of_fit: dict[str, Any] = {"epochs": int(rng.integers(3, 9))}
    if rng.integers(2):
        of_fit |= {"validation_split": 0.2, "stop": [fastbp.EarlyStopping(int(rng.integers(1, 5)))]}
    if rng.integers(2):
        of_fit["sample_weight"] = rng.uniform(0.0, 1.0, 200)
    if rng.integers(2):
        of_fit["callbacks"] = fastbp.callbacks.ReduceOnPlateau(factor=0.5, patience=0, monitor="loss")
        if callable(optimizer.learning_rate):
            del of_fit["callbacks"]
    return network, of_trainer, of_fit


def digest(trainer: fastbp.Trainer[Any]) -> str:
    """Return the SHA-256 of the parameters and of the losses."""
    losses = trainer.history.loss.tobytes() + trainer.history.validation_loss.tobytes()
    return hashlib.sha256(trainer.model.params.tobytes() + losses).hexdigest()


def resumes(rng: np.random.Generator, folder: Path, n: int = 200) -> str:
    x = rng.normal(size=(200, 4))
    y, path = np.sin(2 * x[:, :2]), folder / "run.npz"
    for index in range(n):
        network, of_trainer, of_fit = random_fit(rng)

        def trainer(seed: int | None, threads: int, network: Any = network, of_trainer: Any = of_trainer) -> Any:
            return fastbp.Trainer(fastbp.MLP(**network), **of_trainer | {"seed": seed, "threads": threads})

        whole, stopped = trainer(of_trainer["seed"], 1), trainer(of_trainer["seed"], 1 + index % 2)
        whole.fit(x, y, **of_fit)
        path.unlink(missing_ok=True)
        at = int(rng.integers(1, max(2, whole.n_steps)))
        stopped.fit(x, y, **of_fit, max_steps=at, checkpoint=path)
        resumed = trainer(None, 1 + index // 2 % 2)
        resumed.fit(x, y, **of_fit, checkpoint=path, resume=True)
        assert digest(resumed) == digest(whole), (index, network, of_trainer, of_fit, at)
    return f"{n} fits, each stopped after a random step and resumed: the same SHA-256"


WRITER = """
import sys, time
import numpy as np
import fastbp
trainer = fastbp.Trainer(fastbp.MLP((50, 200, 10), seed=0), ema=0.9, seed=0)
x, y = np.ones((40, 50)), np.ones((40, 10))
trainer.fit(x, y, epochs=1)
while True:
    trainer.fit(x, y, epochs=1)
    trainer.save(sys.argv[1])
    print(trainer.n_steps, flush=True)
"""


def kills(rng: np.random.Generator, folder: Path, n: int = 200) -> str:
    path, n_read = folder / "killed.npz", 0
    for _ in range(n):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()  # it has written once
        time.sleep(rng.uniform(0.0, 0.05))
        process.kill()
        process.communicate()
        assert fastbp.load(path).n_steps > 0
        n_read += 1
    for left in folder.glob(".killed.npz.*"):
        left.unlink()
    return f"{n_read} kills while a file was written: 0 unreadable"


def full_disk(_rng: np.random.Generator, folder: Path, n: int = 200) -> str:
    path = folder / "full.npz"
    trainer = fastbp.Trainer(fastbp.MLP((4, 32, 2), seed=0), seed=0)
    trainer.fit(np.ones((9, 4)), np.ones((9, 2)), epochs=1)
    trainer.save(path)
    old, (_, most) = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    trainer.fit(np.ones((9, 4)), np.ones((9, 2)), epochs=1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = sorted({len(old) * index // n for index in range(n)} | {len(old) - 1})
    for limit in limits:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
        failed = False
        try:
            trainer.save(path)
        except OSError:
            failed = True
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        assert failed
        assert path.read_bytes() == old
        assert not list(folder.glob(".full.npz.*"))
    return f"{len(limits)} writes that failed after another number of bytes: the old file each time"


def mutations(rng: np.random.Generator, folder: Path, n: int = 10_000) -> str:
    path, n_refused, worst = folder / "mutated.npz", 0, 0.0
    trainer = fastbp.Trainer(fastbp.MLP((4, 90, 90, 2), seed=0), seed=0, ema=0.9, regularize=fastbp.Dropout(0.1))
    x, y = rng.normal(size=(40, 4)), rng.normal(size=(40, 2))
    trainer.fit(x, y, epochs=2, validation_data=(x, y), stop=fastbp.EarlyStopping(3), health=1, checkpoint=path)
    content, expected = path.read_bytes(), digest(trainer)
    fastbp.load(path)
    tracemalloc.start()
    for index in range(n):
        path.write_bytes(mutated(content, rng, index % 5))
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        loaded = None
        with contextlib.suppress(fastbp.CheckpointError):
            loaded = fastbp.load(path)
        worst = max(worst, (tracemalloc.get_traced_memory()[1] - before) / len(content))
        n_refused += loaded is None
        assert loaded is None or digest(loaded) == expected
    tracemalloc.stop()
    assert worst <= 3.0, worst
    refused = f"{n_refused} CheckpointErrors, the others whole"
    return f"{n} damaged files of {len(content)} bytes: {refused}; at most {worst:.1f} times as much memory"


def mutated(content: bytes, rng: np.random.Generator, kind: int) -> bytes:
    """Return a damaged file: cut off, with bits, pieces or blocks changed, or pieces taken out or doubled."""
    changed = bytearray(content)
    start = int(rng.integers(len(changed)))
    length = int(rng.integers(1, 200))
    if kind == 0:
        return bytes(changed[:start])
    if kind == 1:
        changed[start] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        changed[start : start + length] = rng.integers(0, 256, length, np.uint8).tobytes()
    elif kind == 3:
        del changed[start : start + length]
    else:
        changed[start:start] = changed[start : start + length]
    return bytes(changed)


def growth(rng: np.random.Generator, _folder: Path, n_steps: int = 1_000_000, n_refused: int = 100_000) -> str:
    x, y = rng.normal(size=(64, 4)), rng.normal(size=(64, 2))
    trainer = fastbp.Trainer(fastbp.MLP((4, 8, 2), seed=0), batch_size=1, seed=0)
    wrong = np.full((64, 4), np.nan)

    def work(n_steps: int, n_refused: int) -> None:
        trainer.fit(x, y, epochs=None, max_steps=n_steps)
        for _ in range(n_refused):
            with contextlib.suppress(ValueError):
                trainer.fit(wrong, y)

    work(n_steps // 10, n_refused // 10)
    before, n_epochs = resident(), len(trainer.history)
    work(n_steps, n_refused)
    grown = resident() - before
    of_history = 7 * 8 * 1.5 * (len(trainer.history) - n_epochs)  # columns, and room for half as many more
    assert grown - of_history < 4e6, (grown, of_history)
    return (
        f"{n_steps} steps and {n_refused} refused calls: {grown / 1e6:.1f} MB more, {of_history / 1e6:.1f} of history"
    )


def networks(rng: np.random.Generator, _folder: Path) -> str:
    return tested("test_random_networks.py", f"--hypothesis-seed={rng.integers(1 << 32)}")


def inputs(_rng: np.random.Generator, _folder: Path) -> str:
    return tested("test_bad_input.py")


def tested(name: str, *arguments: str) -> str:
    """Run a file of tests; return what pytest says at the end."""
    tests = Path(__file__).parents[1] / "tests"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests / name), *arguments]
    done = subprocess.run(command, cwd=tests.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()[-1].strip("= ")


def resident() -> int:
    """Return the bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


FAULTS = {each.__name__: each for each in (resumes, kills, full_disk, mutations, growth, networks, inputs)}


def main() -> None:
    parser = options.parser_of(__doc__)
    parser.add_argument("--only", default=",".join(FAULTS), help="some of them, with commas")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name in arguments.only.split(","):
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            said = FAULTS[name](np.random.default_rng(arguments.seed), Path(folder))
        print(f"{name:10} {said} ({time.perf_counter() - begin:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
