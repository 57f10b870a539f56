"""Measure the first minute: import, the first fit on a machine, and what a second process still waits for.

    python perf/start.py [--rounds 5]

Each round runs in new processes with a cache of its own, empty at first. The network and the size of the data are those
of `examples/digits.py`. Times of `import fastbp` and of a second process are above those of `import numba`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from statistics import median

from harness import options

# Upper bounds in seconds, by what they are of.
GOALS = {"import fastbp": 0.15, "first fit, empty cache": 6.0, "second process, in all": 1.0}
PRELUDE = """
import json, time

start = time.perf_counter()
import numba
numba_imported = time.perf_counter()
import fastbp
imported = time.perf_counter()
import numpy as np
from fastbp import _jit

rng = np.random.default_rng(0)
x, y = rng.integers(0, 17, (1797, 64)) / 16.0, rng.integers(0, 10, 1797)


def fit(epochs=1, activation="relu", **options):
    model = fastbp.MLP([64, 128, 10], activation, output="softmax", seed=0)
    begin = time.perf_counter()
    model.fit(x, y, batch_size=32, epochs=epochs, seed=0, **options)
    return model, time.perf_counter() - begin


def report(**results):
    print(json.dumps({"import numba": numba_imported - start, "import fastbp": imported - numba_imported} | results))


"""
FIRST = """
model, seconds = fit()
results = {"fit": seconds, "compiled": _jit.n_compiled(), "compiling": _jit.compile_seconds()}
begin = time.perf_counter()
model.predict(x)
report(predict=time.perf_counter() - begin, **results)
"""
AS_EXAMPLE = """
decay = fastbp.schedules.CosineDecay(5e-3, 500)
_, seconds = fit(validation_data=(x, y), optimizer=fastbp.AdamW(decay, weight_decay=0.1))
report(fit=seconds, compiled=_jit.n_compiled())
"""
SECOND = """
model, fit_seconds = fit()
begin = time.perf_counter()
model.predict(x)
report(fit=fit_seconds, predict=time.perf_counter() - begin, compiled=_jit.n_compiled())
"""
ANOTHER = """
fit()
before = _jit.n_compiled()
report(fit=fit(activation="tanh", optimizer=fastbp.RMSprop())[1], compiled=_jit.n_compiled() - before)
"""
EVERYTHING = """
report(precompile=fastbp.precompile(), compiled=_jit.n_compiled())
"""


def run(code: str, cache: str) -> dict[str, float]:
    """Run it in a new process with this cache; return what it reports, and how long the process took."""
    begin = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-c", PRELUDE + code],
        env=os.environ | {"NUMBA_CACHE_DIR": cache},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(process.stdout) | {"process": time.perf_counter() - begin}


def one_round() -> dict[str, float]:
    """Return seconds and counts by their names, as they are printed."""
    with tempfile.TemporaryDirectory() as cache:
        first, second, another = (run(code, cache) for code in (FIRST, SECOND, ANOTHER))
    with tempfile.TemporaryDirectory() as cache:
        example = run(AS_EXAMPLE, cache)
    with tempfile.TemporaryDirectory() as cache:
        everything, loaded = run(EVERYTHING, cache), run(EVERYTHING, cache)
    return {
        "import numba": second["import numba"],
        "import fastbp": second["import fastbp"],
        "first fit, empty cache": first["fit"],
        "first fit: compiling": first["compiling"],
        "first fit: kernels compiled": first["compiled"],
        "first predict after it": first["predict"],
        "second process: fit of one epoch": second["fit"],
        "second process: predict": second["predict"],
        "second process: kernels compiled": second["compiled"],
        "second process, in all": second["import fastbp"] + second["fit"] + second["predict"],
        "first fit with validation and AdamW, empty cache": example["fit"],
        "first fit with validation and AdamW: kernels compiled": example["compiled"],
        "later fit with tanh and RMSprop": another["fit"],
        "later fit with tanh and RMSprop: kernels compiled": another["compiled"],
        "precompile(), empty cache": everything["precompile"],
        "precompile(): kernels compiled": everything["compiled"],
        "precompile() in a second process": loaded["precompile"],
    }


def main() -> None:
    parser = options.parser_of(__doc__)
    options.add_rounds(parser, 5)
    arguments = parser.parse_args()
    rounds = [one_round() for _ in range(arguments.rounds)]
    print(f"{options.processor()}; medians of {arguments.rounds} rounds, and the range")
    is_met = True
    for name in rounds[0]:
        values = sorted(values_of[name] for values_of in rounds)
        is_count = "compiled" in name
        middle = f"{median(values):8.0f}  " if is_count else f"{median(values):8.3f} s"
        bounds = "" if is_count else f"   ({values[0]:.3f} to {values[-1]:.3f})"
        goal = f"   goal: at most {GOALS[name]:g} s" if name in GOALS else ""
        is_met &= median(values) <= GOALS.get(name, float("inf"))
        print(f"{name:55}{middle}{bounds}{goal}")
    options.exit_with(is_met)


if __name__ == "__main__":
    main()
