"""What users write formulas of their own with: functions of a number that take whole vectors where fastbp calls them.

In compiled code each function takes a number or a `Vector`, with the same bits. So do, for a `Vector`, those functions
of `math` and NumPy that mean the same; for numbers these are what they always were. `fastbp.elementary` shows them.
"""

import math
import operator

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic, overload

from fastbp.kernels import elementary, simd
from fastbp.kernels.emit import I32
from fastbp.kernels.vector import Vector

_OPTIONS = {"forceinline": True, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


@intrinsic
def _one_lane(typingctx, x):
    """A number as a vector of one lane; float64 if it is an integer."""
    vector = Vector(x if isinstance(x, types.Float) else types.float64, 1)

    def codegen(context, builder, sig, args):
        return context.cast(builder, args[0], sig.args[0], vector)

    return vector(x), codegen


@intrinsic
def _first_lane(typingctx, vector):
    """The number in the first lane."""

    def codegen(context, builder, sig, args):
        return builder.extract_element(args[0], I32(0))

    return vector.dtype(vector), codegen


def _takes(*arguments):
    """Whether at least one of some types is a vector, and the others are that or numbers."""
    vector = next((each for each in arguments if isinstance(each, Vector)), None)
    return vector is not None and all(each == vector or isinstance(each, types.Number) for each in arguments)


def _of_one(name, of_vector, doc, *same):
    """A function of one number, by that of a vector; `same` : functions elsewhere that mean the same."""

    def typing(x):
        if isinstance(x, Vector):
            return lambda x: of_vector(x)
        if isinstance(x, (types.Float, types.Integer)):
            return lambda x: _first_lane(of_vector(_one_lane(x)))
        return None

    def typing_of_vectors(x):
        return (lambda x: of_vector(x)) if isinstance(x, Vector) else None

    def function(x):
        return compiled(x)

    compiled = numba.njit(lambda x: function(x))
    overload(function, jit_options=_OPTIONS, strict=False)(typing)
    for other in same:
        overload(other, jit_options=_OPTIONS, strict=False)(typing_of_vectors)
    return _shown(function, name, doc)


def _of_two(name, of_vectors, doc, *same):
    """As `_of_one`, of two numbers."""

    def typing(x, y):
        if _takes(x, y):
            return lambda x, y: of_vectors(x, y)
        if isinstance(x, (types.Float, types.Integer)) and isinstance(y, (types.Float, types.Integer)):
            if x == y == types.float32:
                return lambda x, y: _first_lane(of_vectors(_one_lane(x), _one_lane(y)))
            return lambda x, y: _first_lane(of_vectors(_one_lane(np.float64(x)), _one_lane(np.float64(y))))
        return None

    def typing_of_vectors(x, y):
        return (lambda x, y: of_vectors(x, y)) if _takes(x, y) else None

    def function(x, y):
        return compiled(x, y)

    compiled = numba.njit(lambda x, y: function(x, y))
    overload(function, jit_options=_OPTIONS, strict=False)(typing)
    for other in same:
        overload(other, jit_options=_OPTIONS, strict=False)(typing_of_vectors)
    return _shown(function, name, doc)


def _shown(function, name, doc):
    """The function under the name and with the docstring that users see."""
    function.__name__ = function.__qualname__ = name
    function.__module__, function.__doc__ = "fastbp.elementary", doc
    return function


exp = _of_one("exp", elementary.exp, "e**x; 0 where that is subnormal.", math.exp, np.exp)
expm1 = _of_one("expm1", elementary.expm1, "e**x - 1, without cancellation for small x.", math.expm1, np.expm1)
log = _of_one("log", elementary.log, "Natural logarithm; -inf at 0, NaN below.", math.log, np.log)
log1p = _of_one("log1p", elementary.log1p, "log(1 + x), without cancellation for small x.", math.log1p, np.log1p)
tanh = _of_one("tanh", elementary.tanh, "Hyperbolic tangent.", math.tanh, np.tanh)
sigmoid = _of_one("sigmoid", elementary.sigmoid, "1 / (1 + e**-x).")
softplus = _of_one("softplus", elementary.softplus, "log(1 + e**x), without overflow.")
erf = _of_one("erf", elementary.erf, "Error function.", math.erf)
sqrt = _of_one("sqrt", simd.sqrt, "Square root; NaN below 0.", math.sqrt, np.sqrt)
absolute = _of_one("absolute", simd.absolute, "Absolute value.", abs, math.fabs, np.abs, np.fabs)
floor = _of_one("floor", simd.floor, "Largest whole number not above x.", np.floor)
maximum = _of_two("maximum", simd.maximum, "The larger of x and y; y where x is NaN.", max, np.maximum)
minimum = _of_two("minimum", simd.minimum, "The smaller of x and y; y where x is NaN.", min, np.minimum)
copysign = _of_two("copysign", simd.copysign, "The magnitude of x with the sign of y.", math.copysign, np.copysign)


def where(condition, x, y):
    """x where the condition holds, else y: both are computed, so that whole vectors can be."""
    return x if condition else y


where.__module__ = "fastbp.elementary"


@overload(where, jit_options=_OPTIONS)
def _where(condition, x, y):
    if isinstance(condition, Vector):
        return _where_of_vectors(condition, x, y)
    return lambda condition, x, y: x if condition else y


@overload(np.where, jit_options=_OPTIONS)
def _where_of_vectors(condition, x, y):
    # Of two numbers the mask does not tell whether they are float32 or float64.
    if isinstance(condition, Vector) and _takes(x, y):
        return lambda condition, x, y: simd.where(condition, x, y)
    return None


@overload(operator.pow, jit_options=_OPTIONS, prefer_literal=True)
def _power_of_vector(x, n):
    if not isinstance(x, Vector) or not isinstance(n, types.IntegerLiteral) or n.literal_value < 0:
        return None
    power = n.literal_value

    def by_squaring(x, n):
        result, base, left = simd.splat(x, 1.0), x, power
        while left > 0:
            if left & 1:
                result = result * base
            base = base * base
            left >>= 1
        return result

    return by_squaring
