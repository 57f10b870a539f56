"""What a bug report needs to know about the machine and the libraries."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import llvmlite.binding
import numba
import numpy as np

from fastbp import _jit, workers
from fastbp._version import __version__
from fastbp.kernels import target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["show_versions"]

# Variables of others that change what fastbp does or how fast it is; all of Numba's count.
_VARIABLES = ("HOME", "LOCALAPPDATA", "XDG_CACHE_HOME", "PYTHONDEVMODE", "PYTHONWARNINGS", "LD_PRELOAD")
_PREFIXES = ("NUMBA_", "OMP_", "OPENBLAS_", "MKL_", "GOMP_", "KMP_")


def show_versions() -> None:
    """Print what a bug report needs: versions, processor, threads, cache of compiled code, environment variables.

    It raises nothing: a line that cannot be made shows its error.

    Examples
    --------
    From a shell, to be pasted into a report::

        python -c "import fastbp; fastbp.show_versions()"
    """
    lines = list(_lines())
    width = max(len(name) for name, _ in lines)
    text = "\n".join(f"{name:{width}}  {_text_of(value)}" for name, value in lines)
    # Whatever the terminal's encoding does not know is shown by its number.
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    with suppress(Exception):
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def _lines() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the name of each line, and what makes the rest of it."""
    yield "fastbp", lambda: f"{__version__} in {Path(__file__).parent}"
    yield "Python", lambda: f"{platform.python_version()}, {platform.python_implementation()} in {sys.prefix}"
    yield "NumPy", lambda: np.__version__
    yield "Numba", lambda: numba.__version__
    yield "llvmlite", lambda: f"{metadata.version('llvmlite')}, LLVM {'.'.join(map(str, _llvm_version()))}"
    yield "system", platform.platform
    yield "processor", _processor
    yield "CPU target", _target
    yield "vectors", _vectors
    yield "cores", lambda: f"{workers.available_cores()} allowed of {os.cpu_count()}"
    yield "cache", _jit.cache_folder
    yield "cache can be written", _cache_state
    yield "compiled", lambda: f"{_jit.n_compiled()} kernels by this process, in {_jit.compile_seconds():.1f} s"
    for name in sorted(os.environ):
        if name in _VARIABLES or name.startswith(_PREFIXES):
            yield name, partial(os.environ.get, name)


def _text_of(value: Callable[[], object]) -> str:
    try:
        return " ".join(str(value()).splitlines())
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _llvm_version() -> tuple[int, ...]:
    version: tuple[int, ...] = llvmlite.binding.llvm_version_info
    return version


def _processor() -> str:
    """Return the processor's name: Linux tells it in a file, other systems by the platform module."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _target() -> str:
    """Return what Numba compiles for, as LLVM calls it."""
    triple, cpu, _ = numba.core.registry.cpu_target.target_context.codegen().magic_tuple()
    return f"{cpu}, {triple}"


def _vectors() -> str:
    fma = "with" if target.HAS_FMA else "without"
    n_lanes = target.VECTOR_BYTES // 4
    return f"{8 * target.VECTOR_BYTES} bits ({n_lanes} float32), {target.N_REGISTERS} registers, {fma} multiply-add"


def _cache_state() -> str:
    """Return how many files are in the cache, and whether there could be more: a file of a moment is the proof."""
    folder = _jit.cache_folder()
    if folder is None:
        return f"no: {_jit.cache_problem()}"
    n_files = len(list(folder.glob("*.nbc"))) if folder.is_dir() else 0
    exists = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=exists) as file:
            file.write(bytes(4096))
    except OSError as error:
        return f"no: {error}; it holds {n_files} kernels"
    return f"yes; it holds {n_files} kernels"
