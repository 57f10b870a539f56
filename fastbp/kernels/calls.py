"""Calls of leaves by address, addresses of arrays, and typed pointers to what an address points at."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastbp._jit import CALLS_BY_C, inline
from fastbp.kernels.emit import I32, I64


@intrinsic
def call(typingctx, address, arguments):
    """Call the leaf at the integer `address` with a tuple of integers (pointers among them) and float64 scalars.

    By Numba's calling convention: a place for the result and one for an exception, which no leaf raises, come first.
    By C's where leaves are C functions: what one returns that returns nothing nobody reads. The calling conventions of
    the machines that Numba targets pass an address and an integer of its size alike.
    """
    result = types.intp

    def codegen(context, builder, sig, args):
        places = [] if CALLS_BY_C else [cgutils.alloca_once(builder, I64), cgutils.alloca_once(builder, I64)]
        values, kinds = list(places), [place.type for place in places]
        for i, kind in enumerate(sig.args[1].types):
            value = builder.extract_value(args[1], i)
            wanted = types.float64 if isinstance(kind, types.Float) else types.intp
            values.append(context.cast(builder, value, kind, wanted))
            kinds.append(context.get_value_type(wanted))
        function = ir.FunctionType(I64 if CALLS_BY_C else I32, kinds)
        returned = builder.call(builder.inttoptr(args[0], function.as_pointer()), values)
        return returned if CALLS_BY_C else builder.load(places[0])

    return result(types.intp, arguments), codegen


def _pointer_to(dtype):
    @intrinsic
    def pointer(typingctx, address):
        """A pointer to the numbers at an address."""

        def codegen(context, builder, sig, args):
            return builder.inttoptr(args[0], context.get_value_type(dtype).as_pointer())

        return types.CPointer(dtype)(types.intp), codegen

    return pointer


int64_at = _pointer_to(types.int64)
float32_at, float64_at = _pointer_to(types.float32), _pointer_to(types.float64)


@intrinsic
def address_of_array(typingctx, array):
    """The address of an array's first element. No reference is counted."""

    def codegen(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, context.get_value_type(types.intp))

    return types.intp(array), codegen


@inline
def overlap(a, n_a, b, n_b):
    """Whether n_a bytes from address a on have one of n_b bytes from address b on."""
    return a < b + n_b and b < a + n_a


@intrinsic
def cycle_counter(typingctx):
    """The processor's time stamp; 0 where it has none."""

    def codegen(context, builder, sig, args):
        name = "llvm.readcyclecounter"
        function = builder.module.globals.get(name) or ir.Function(
            builder.module, ir.FunctionType(ir.IntType(64), []), name
        )
        return builder.call(function, [])

    return types.int64(), codegen
