"""Compiler options: the one place that sets them."""

import os

import numpy as np
from numba import types
from numba.core import config

__all__ = ["FLOAT_TYPES", "IS_PLAIN", "OPTIONS"]

if config.DISABLE_JIT:
    raise ImportError("fastbp is compiled code: unset NUMBA_DISABLE_JIT to import it")

# The Python error model adds branches for division by zero, which stop vectorisation. Numba's rewrites are of array
# expressions, exceptions and prints: nothing that is in a kernel, and a twentieth of the time to compile.
OPTIONS = {"error_model": "numpy", "no_rewrites": True}
FLOAT_TYPES = {np.dtype(np.float32): types.float32, np.dtype(np.float64): types.float64}

# Whether to do without Numba's private classes (`plain` instead of `tuned`): the same bits, compiled more slowly and in
# each process anew. For a Numba whose private classes have changed, and for the tests.
IS_PLAIN = os.environ.get("FASTBP_PLAIN_NJIT", "") not in ("", "0")
