"""Which kernels the BLAS of this process chose."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np


def describe_blas() -> str:
    """Return name, version and core type of the BLAS libraries that are loaded."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return f"{_built_with()}{_openblas_core()}"
    found = {
        f"{pool['internal_api']} {pool['version']} {pool.get('architecture', '')}".strip()
        for pool in threadpool_info()
        if pool["user_api"] == "blas"
    }
    return ", ".join(sorted(found)) or _built_with()


def _built_with() -> str:
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return f"{blas['name']} {blas['version']}"


def _openblas_core() -> str:
    """Return the core type that the OpenBLAS of NumPy's wheel reports, or an empty text."""
    for path in (Path(np.__file__).parent.parent / "numpy.libs").glob("*openblas*"):
        library = ctypes.CDLL(str(path))
        for name in ("scipy_openblas_get_corename64_", "openblas_get_corename64_", "openblas_get_corename"):
            if hasattr(library, name):
                function = getattr(library, name)
                function.restype = ctypes.c_char_p
                return f" {function().decode()}"
    return ""
