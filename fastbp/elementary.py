"""Functions for formulas of your own: in ``@njit`` functions that `Activation`, `Loss` and `UpdateRule` take.

fastbp compiles such a function for whole SIMD vectors, in which these are as fast as in its own activations. They take
numbers as well, float32 or float64, from Python and in any ``@njit`` function, and give the same bits there.

Errors are below 4 ulp. For `exp`, `expm1`, `log`, `log1p`, `tanh`, `sqrt`, `erf`, ``abs``, ``max`` and ``min`` a
formula may call those of `math` or NumPy too: where it is compiled for vectors, they are these.

Examples
--------
>>> from numba import njit
>>> from fastbp import elementary
>>> @njit
... def softsign(z):
...     return z / (1.0 + elementary.absolute(z))
>>> softsign(-3.0)
-0.75
"""

from fastbp.kernels.formulas import (
    absolute,
    copysign,
    erf,
    exp,
    expm1,
    floor,
    log,
    log1p,
    maximum,
    minimum,
    sigmoid,
    softplus,
    sqrt,
    tanh,
    where,
)

__all__ = [
    "absolute",
    "copysign",
    "erf",
    "exp",
    "expm1",
    "floor",
    "log",
    "log1p",
    "maximum",
    "minimum",
    "sigmoid",
    "softplus",
    "sqrt",
    "tanh",
    "where",
]
