"""A SIMD vector as a Numba type, with Python's operators.

A Python number takes the vector's own dtype (`x * 0.5` stays float32). Each operation is one LLVM vector instruction
without fast-math flags, so the same inputs give the same bits wherever a kernel is compiled.
"""

import operator

from llvmlite import ir
from numba import types
from numba.core.typeconv import Conversion
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin, lower_cast, models, register_model

from fastbp.kernels.emit import I1, emit_splat
from fastbp.kernels.target import lanes


class Vector(types.Type):
    """`n` elements of a Numba number type (or boolean: a mask), held in a register."""

    def __init__(self, dtype, n):
        self.dtype, self.n = dtype, n
        super().__init__(name=f"Vector({dtype}, {n})")

    def can_convert_from(self, typingctx, other):
        """Let any number become a vector of equal lanes."""
        if isinstance(other, types.Number) and self.dtype != types.boolean:
            return Conversion.safe
        return None


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.VectorType(_element(fe_type.dtype), fe_type.n))


def _element(dtype):
    if dtype == types.boolean:
        return I1
    if isinstance(dtype, types.Integer):
        return ir.IntType(dtype.bitwidth)
    return ir.FloatType() if dtype == types.float32 else ir.DoubleType()


def vector_of(*args):
    """The first vector type among some types."""
    return next((a for a in args if isinstance(a, Vector)), None)


def mask_of(vector):
    """The type of a mask with one lane per lane of the vector."""
    return Vector(types.boolean, vector.n)


def vector_behind(pointer):
    """The type of the vector that `load` gives for a pointer."""
    return Vector(pointer.dtype, lanes(pointer.dtype))


@lower_cast(types.Number, Vector)
def _number_to_vector(context, builder, fromty, toty, value):
    scalar_type = getattr(fromty, "literal_type", fromty)
    return emit_splat(builder, context.cast(builder, value, scalar_type, toty.dtype), toty.n)


def _register_operator(function, emit, gives_mask=False):
    @infer_global(function)
    class _Template(AbstractTemplate):
        def generic(self, args, kws):
            vector = vector_of(*args)
            if vector is None or not all(a == vector or isinstance(a, types.Number) for a in args):
                return None
            return signature(mask_of(vector) if gives_mask else vector, *[vector] * len(args))

    for arity in (1, 2):

        @lower_builtin(function, *[Vector] * arity)
        def _lower(context, builder, sig, args):
            return emit(builder, sig.args[0].dtype, *args)


def _arithmetic(float_name, int_name, unsigned_name=None):
    def emit(builder, dtype, *args):
        if isinstance(dtype, types.Float):
            return getattr(builder, float_name)(*args)
        signed = getattr(dtype, "signed", True)
        return getattr(builder, int_name if signed or unsigned_name is None else unsigned_name)(*args)

    return emit


def _comparison(symbol):
    def emit(builder, dtype, x, y):
        if isinstance(dtype, types.Float):
            # Unordered only for !=, so that NaN compares as in IEEE 754.
            return builder.fcmp_unordered(symbol, x, y) if symbol == "!=" else builder.fcmp_ordered(symbol, x, y)
        compare = builder.icmp_signed if getattr(dtype, "signed", True) else builder.icmp_unsigned
        return compare(symbol, x, y)

    return emit


for _function, _names in {
    operator.add: ("fadd", "add"),
    operator.iadd: ("fadd", "add"),
    operator.sub: ("fsub", "sub"),
    operator.isub: ("fsub", "sub"),
    operator.mul: ("fmul", "mul"),
    operator.imul: ("fmul", "mul"),
    operator.and_: ("", "and_"),
    operator.or_: ("", "or_"),
    operator.ior: ("", "or_"),
    operator.xor: ("", "xor"),
    operator.lshift: ("", "shl"),
    operator.rshift: ("", "ashr", "lshr"),
    operator.truediv: ("fdiv", ""),
    operator.neg: ("fneg", "neg"),
    operator.invert: ("", "not_"),
}.items():
    _register_operator(_function, _arithmetic(*_names))
for _function, _symbol in {
    operator.lt: "<", operator.le: "<=", operator.gt: ">", operator.ge: ">=", operator.eq: "==", operator.ne: "!=",
}.items():  # fmt: skip
    _register_operator(_function, _comparison(_symbol), gives_mask=True)
