"""Calls of leaf kernels from Python, and the panels that they work on."""

import numpy as np
from numba import types

from fastbp.kernels.activations import ACTIVATIONS
from fastbp.kernels.losses import LOSSES
from fastbp.kernels.panels import panel_width
from fastbp.kernels.updates import N_COEFFICIENTS, RULES


def call(leaf, dtype, *arguments):
    """Call the leaf for `dtype` through its address, arrays by that of their first element; returns its result."""
    signature = leaf.signature(dtype)
    assert len(arguments) == len(signature.args)
    result = leaf.call(dtype, *arguments)
    return None if signature.return_type == types.void else result


def constants_of(row):
    """The constants of a row of `ACTIVATIONS` or `LOSSES`, as its leaves read them."""
    return np.array(row.constants, np.float64)


def activate(name, h, n_features, n_samples):
    """h = f(h), by the leaf of that activation."""
    row = ACTIVATIONS[name]
    call(row.forward, h.dtype, h, n_features, n_samples, constants_of(row))


def differentiate(name, d, z, h, n, n_features=1):
    """d *= f'(z), by the leaf of that activation, of n elements."""
    row = ACTIVATIONS[name]
    call(row.backward, d.dtype, d, z, h, n_features, n // n_features, constants_of(row))


def compare(name, output, targets, d, n_out, n_samples, scale, sums, weights=None):
    """Write d and sums, by the leaf of that loss: that of weighted samples, if there are weights."""
    row = LOSSES[name]
    leaf, weights = (row.leaf, output) if weights is None else (row.weighted_leaf, weights)
    call(leaf, output.dtype, output, targets, weights, d, n_out, n_samples, scale, constants_of(row), sums)


def coefficients_of(optimizer, step, rate=None):
    """What the kernel makes of a learning rate (by default the optimizer's own, a number) after so many steps."""
    coefficients = np.zeros(N_COEFFICIENTS)
    rate = optimizer.learning_rate if rate is None else rate
    call(RULES[optimizer.rule].coefficients, "float64", rate, step, optimizer.constants, coefficients)
    return coefficients


def panels_of(matrix):
    """The flat panels of a matrix of samples: [feature][sample] for each `panel_width` of them."""
    panel = panel_width(matrix.dtype)
    pieces = [matrix[start : start + panel].T.ravel() for start in range(0, len(matrix), panel)]
    return np.concatenate([*pieces, np.empty(0, matrix.dtype)])
