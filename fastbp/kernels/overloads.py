"""How a function of `fastbp.embed` becomes part of the user's: types are checked when that is compiled, and what is
compiled into it is small: a look at the handle, the arrays' addresses, shapes and strides, and a call.

A handle is an array of a structured dtype whose only field has a name made of the digest of these sources, the kind of
the handle and the network's dtype. So a function that a user has cached with the handles of another version is found to
be of other types, and is compiled anew. (A class of our own in the place of an array would be named in the user's cache
files, which could not be read where it is missing; and Numba would look at its type in 19 µs a call.)
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

from fastbp import _jit
from fastbp.kernels.calls import address_of_array, call
from fastbp.kernels.embedding import MOVED
from fastbp.kernels.emit import I64
from fastbp.kernels.gather import FLOAT32, FLOAT64
from fastbp.kernels.tables import HANDLE, handle_at

_PREFIX = "fastbp"
NETWORK, LEARNER = "network", "learner"  # kinds of handles
_SIZE = HANDLE.itemsize // 8


def field_name(kind: str, dtype: object) -> str:
    """The name of the field of a handle's dtype."""
    return f"{_PREFIX}_{kind}_{dtype}_{_jit.digest()}"


def _stamp_of(net, function):
    """Kind, dtype and digest of a handle's type."""
    fields = list(net.dtype.fields) if isinstance(net, types.Array) and isinstance(net.dtype, types.Record) else [""]
    parts = fields[0].split("_")
    if len(parts) != 4 or parts[0] != _PREFIX or net.ndim != 1 or net.layout != "C":
        raise TypingError(f"embed.{function}: the handle must be made by compiled(), and be one of its rows, got {net}")
    return parts[1:]


def _check_arrays(function, dtype, inputs, outputs):
    """Raise a TypingError that names the first argument that is of a wrong type."""
    number = getattr(types, dtype)
    named = {**inputs, **outputs}
    for name, array in named.items():
        if not isinstance(array, types.Array) or array.ndim not in (1, 2):
            raise TypingError(f"embed.{function}: {name} must be an array of 1 or 2 dimensions, got {array}")
        first = next(iter(named))
        if array.ndim != named[first].ndim:
            raise TypingError(f"embed.{function}: {name} must have as many dimensions as {first}, got {array}")
    for name, array in inputs.items():
        if array.dtype not in (types.float32, types.float64):
            raise TypingError(f"embed.{function}: {name} must be of float32 or float64, got {array}")
    for name, array in outputs.items():
        if array.dtype != number or array.layout != "C" or not array.mutable or not array.aligned:
            raise TypingError(
                f"embed.{function}: {name} must be a writable, C-contiguous array of the network's dtype {dtype}, "
                f"got {array}"
            )


@intrinsic
def _table(typingctx, arrays):
    """The address of rows of ARRAY, on the stack, for a tuple of arrays."""

    def codegen(context, builder, sig, args):
        numbers = []
        for i, kind in enumerate(sig.args[0].types):
            array = context.make_array(kind)(context, builder, builder.extract_value(args[0], i))
            shape, strides = (cgutils.unpack_tuple(builder, of, kind.ndim) for of in (array.shape, array.strides))
            n_rows, row = (shape[0], strides[0]) if kind.ndim == 2 else (I64(1), I64(0))
            code = I64(FLOAT32 if kind.dtype == types.float32 else FLOAT64)
            numbers += [builder.ptrtoint(array.data, I64), n_rows, shape[-1], row, strides[-1], code]
        table = cgutils.alloca_once(builder, ir.ArrayType(I64, len(numbers)))
        for i, number in enumerate(numbers):
            builder.store(number, cgutils.gep_inbounds(builder, table, 0, i))
        return builder.ptrtoint(table, I64)

    return types.intp(arrays), codegen


def predict(net, x, out):
    """Type `embed.predict`."""
    _, dtype, digest = _stamp_of(net, "predict")
    _check_arrays("predict", dtype, {"x": x}, {"out": out})
    if digest != _jit.digest():
        return lambda net, x, out: MOVED

    def predict(net, x, out):
        place = address_of_array(net)
        if net.shape[0] != _SIZE or handle_at(place).self != place:
            return MOVED
        return call(handle_at(place).embedded_predict, (place, _table((x, out)), address_of_array(out)))

    return predict


def vjp(net, x, d_out, d_x):
    """Type `embed.vjp`."""
    _, dtype, digest = _stamp_of(net, "vjp")
    _check_arrays("vjp", dtype, {"x": x, "d_out": d_out}, {"d_x": d_x})
    if digest != _jit.digest():
        return lambda net, x, d_out, d_x: MOVED

    def vjp(net, x, d_out, d_x):
        place = address_of_array(net)
        if net.shape[0] != _SIZE or handle_at(place).self != place:
            return MOVED
        return call(handle_at(place).embedded_vjp, (place, _table((x, d_out, d_x)), address_of_array(d_x)))

    return vjp


def jvp(net, x, t_x, t_out):
    """Type `embed.jvp`."""
    _, dtype, digest = _stamp_of(net, "jvp")
    _check_arrays("jvp", dtype, {"x": x, "t_x": t_x}, {"t_out": t_out})
    if digest != _jit.digest():
        return lambda net, x, t_x, t_out: MOVED

    def jvp(net, x, t_x, t_out):
        place = address_of_array(net)
        if net.shape[0] != _SIZE or handle_at(place).self != place:
            return MOVED
        return call(handle_at(place).embedded_jvp, (place, _table((x, t_x, t_out)), address_of_array(t_out)))

    return jvp
