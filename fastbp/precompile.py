"""Compile everything ahead, so that no fit has to."""

from __future__ import annotations

import importlib
import pkgutil
import time
from typing import TYPE_CHECKING

import numpy as np

from fastbp import kernels
from fastbp._jit import Leaf
from fastbp.kernels import border
from fastbp.model import MLP
from fastbp.sharing import Word

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["precompile"]


def precompile() -> float:
    """Compile all kernels for both dtypes, and keep them on disk for the processes to come.

    Without it each kernel is compiled when it is first used. What the disk holds already is loaded.

    Returns
    -------
    float
        Wall time that it took, in seconds.

    Examples
    --------
    In the recipe of a container, or once after the installation::

        python -c "import fastbp; print(f'{fastbp.precompile():.1f} s')"
    """
    start = time.perf_counter()
    for leaf in _leaves():
        for dtype in (np.float32, np.float64):
            leaf.address(dtype)
    for dtype in (np.float32, np.float64):
        border.compile_entries(np.dtype(dtype))
    _use_entry_points()
    return time.perf_counter() - start


def _leaves() -> Iterator[Leaf]:
    """Yield every leaf of every kernel module."""
    for module in pkgutil.walk_packages(kernels.__path__, f"{kernels.__name__}."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, Leaf):
                yield value


def _use_entry_points() -> None:
    """Call each entry point once: dtypes and architectures are data to them, so any network does."""
    model = MLP([1, 1], seed=0)
    x = np.zeros((2, 1))
    model.fit(x, x, epochs=1, validation_data=(x, x), seed=0)
    model.predict(x)
    Word()  # what learners in compiled code share with Python
