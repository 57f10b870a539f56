"""Between the user's units and those in which a network computes: standardized inputs, outputs and derivatives.

All of it in float64, whatever the dtype of the network: what is large beside its spread loses nothing. Rows are
standardized as `gather` reads them.
"""

from numba import types

from fastbp._jit import inline, leaf
from fastbp.kernels.calls import float64_at
from fastbp.kernels.gather import FLOAT32, read_float32, read_float64
from fastbp.kernels.panels import panel_of
from fastbp.kernels.simd import offset


@leaf(lambda T: types.void(types.CPointer(T), types.intp, types.intp, types.intp, types.intp))
def rescale(panels, n_features, n_samples, factors, shifts):
    """Multiply each feature of panels of samples by its factor, and add its shift.

    factors, shifts : addresses of n_features float64.
    """
    panel, factors, shifts = panel_of(panels), float64_at(factors), float64_at(shifts)
    for start in range(0, n_samples, panel):
        width = min(panel, n_samples - start)
        for f in range(n_features):
            row = offset(panels, start * n_features + f * width)
            for s in range(width):
                row[s] = row[s] * factors[f] + shifts[f]


@inline
def rescale_sample(values, n, factors, shifts):
    """`rescale` of one sample, whose numbers lie one behind the other."""
    factors, shifts = float64_at(factors), float64_at(shifts)
    for j in range(n):
        values[j] = values[j] * factors[j] + shifts[j]


@inline
def standardize_sample(x, step, dtype, means, factors, n, out):
    """out[j] = the j-th of n numbers `step` bytes apart, float32's or float64's, less its mean and times its factor."""
    means, factors = float64_at(means), float64_at(factors)
    if dtype == FLOAT32:
        for j in range(n):
            out[j] = (read_float32(x + j * step) - means[j]) * factors[j]
    else:
        for j in range(n):
            out[j] = (read_float64(x + j * step) - means[j]) * factors[j]
