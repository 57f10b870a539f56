"""With Numba's private classes and without: the same bits, and nobody but the shim knows them."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastbp
from fastbp import _jit
from test_bits import CASES

# Modules of Numba that are documented, for extensions and for listeners, or that have been where they are for years.
PERMITTED = {
    "numba",
    "numba.extending",
    "numba.core.cgutils",
    "numba.core.codegen.get_host_cpu_features",
    "numba.core.compiler_lock",
    "numba.core.config",
    "numba.core.errors",
    "numba.core.event",
    "numba.core.imputils",
    "numba.core.registry.cpu_target",
    "numba.core.typeconv",
    "numba.core.typing.templates",
}

PROGRAM = """
import json
from fastbp import _jit
from test_plain import fingerprints

print(json.dumps([_jit.IS_PLAIN, fingerprints()]))
"""


def fingerprints():
    """The bits of parameters, moments and predictions after each case, in both dtypes."""
    found = {}
    for name, case in CASES.items():
        for dtype in ("float32", "float64"):
            trainer = case.fit(case.trainer(dtype, threads=2))
            parts = trainer.model.params, trainer._run.buffers.moments, trainer.model.predict(case.x.astype(dtype))
            found[f"{name}, {dtype}"] = [hash_of(part) for part in parts]
    return found


def hash_of(array):
    return hashlib.sha256(array.tobytes()).hexdigest()


def test_bits_are_the_same_with_the_private_classes_of_numba_and_without():
    environment = os.environ | {
        "FASTBP_PLAIN_NJIT": "" if _jit.IS_PLAIN else "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(fastbp.__file__).parents[1])]),
    }
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    is_plain, theirs = json.loads(finished.stdout)
    assert is_plain != _jit.IS_PLAIN
    assert theirs == fingerprints()


@pytest.mark.parametrize("path", sorted(Path(fastbp.__file__).parent.rglob("*.py")), ids=lambda path: path.name)
def test_only_the_shim_imports_private_classes_of_numba(path):
    if path.name == "tuned.py":
        return
    for module, names in re.findall(r"^from (numba[\w.]*) import (.*)$", path.read_text(), re.MULTILINE):
        for name in names.split(", "):
            assert not name.startswith("_"), (module, name)
            assert {module, f"{module}.{name}"} & PERMITTED, (module, name)
