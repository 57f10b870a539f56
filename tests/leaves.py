"""Calls of leaf kernels from Python, and the panels that they work on."""

import ctypes

import numba
import numpy as np
from numba import types

from fastbp.kernels.tile import panel_width


def call(leaf, dtype, *arguments):
    """Call the leaf for `dtype` through its address, arrays by that of their first element; returns its result."""
    signature = leaf._signature(numba.from_dtype(np.dtype(dtype)))
    assert len(arguments) == len(signature.args)
    function = ctypes.CFUNCTYPE(_c_type(signature.return_type), *map(_c_type, signature.args))(leaf.address(dtype))
    return function(*(_address(value) if isinstance(value, np.ndarray) else value for value in arguments))


def panels_of(matrix):
    """The flat panels of a matrix of samples: [feature][sample] for each `panel_width` of them."""
    panel = panel_width(matrix.dtype)
    pieces = [matrix[start : start + panel].T.ravel() for start in range(0, len(matrix), panel)]
    return np.concatenate([*pieces, np.empty(0, matrix.dtype)])


def _address(array):
    return array.ctypes.data


def _c_type(numba_type):
    if numba_type == types.void:
        return None
    if isinstance(numba_type, types.CPointer):
        return ctypes.c_void_p
    return ctypes.c_double if numba_type == types.float64 else ctypes.c_ssize_t
