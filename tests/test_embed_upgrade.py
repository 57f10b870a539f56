"""A user's cached function is compiled anew under another fastbp, never misled; under the first again it is found."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastbp
from fastbp import _jit

USER = """
import numpy as np
from numba import njit
import fastbp
from fastbp import embed

@njit(cache=True)
def outputs(net, x, out):
    return embed.predict(net, x, out)

def run():
    model = fastbp.MLP([2, 3, 2], "leaky_relu", init=np.linspace(-1, 1, 17), dtype="float64")
    net, x, out = model.compiled(), np.array([0.5, -0.25]), np.empty(2)
    print(embed.message(outputs(net, x, out)), end=" ")
    print("same" if out.tobytes() == model.predict(x[np.newaxis]).tobytes() else "other", repr(out[0]), end=" ")
    print("hits", sum(outputs.stats.cache_hits.values()), "misses", sum(outputs.stats.cache_misses.values()))
"""
# name: file, what is there, what comes instead.
CHANGES = {
    "first": None,
    "kernel": ("kernels/activations.py", "constants=(0.01,)", "constants=(0.5,)"),
    "fields": ("kernels/handles.py", '("source", ADDRESS),  # SOURCE, written\n        ("n_in", COUNT)',
               '("n_in", COUNT),\n        ("source", ADDRESS)'),
    "class": ("handles.py", "_Owner", "_Keeper"),
    "again": None,
}  # fmt: skip


def run(folder, change):
    """Install fastbp with a change and run the user's program in a new process; return what it prints."""
    package = folder / "fastbp"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(Path(fastbp.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    if change is not None:
        name, old, new = change
        text = (package / name).read_text()
        assert old in text
        (package / name).write_text(text.replace(old, new))
    environment = os.environ | {"PYTHONPATH": str(folder), "NUMBA_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", "import user; user.run()"],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(_jit.IS_PLAIN, reason="the user's function is cached either way")
def test_cached_function_of_the_user_follows_an_upgrade_and_the_way_back(tmp_path):
    (tmp_path / "user.py").write_text(USER)
    printed = {name: run(tmp_path, change) for name, change in CHANGES.items()}
    for name, (status, same, _, _, hits, _, misses) in printed.items():
        assert (status, same) == ("ok", "same"), name
        is_known = name in ("class", "again")  # kernels and handles are as they were
        assert (hits, misses) == (("1", "0") if is_known else ("0", "1")), name
    numbers = {name: line[2] for name, line in printed.items()}
    assert numbers["first"] == numbers["fields"] == numbers["class"] == numbers["again"] != numbers["kernel"]
