"""How a function of `fastbp.embed` becomes part of the user's: types are checked when that is compiled, and what is
compiled into it is small: a look at the handle, the arrays' addresses, shapes and strides, and a call.

A handle is an array of a structured dtype whose only field has a name made of the digest of these sources, the kind of
the handle and the network's dtype. So a function that a user has cached with the handles of another version is found to
be of other types, and is compiled anew. (A class of our own in the place of an array would be named in the user's cache
files, which could not be read where it is missing; and Numba would look at its type in 19 µs a call.)
"""

import functools

from llvmlite import ir
from numba import TypingError, types
from numba.core import cgutils
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic

from fastbp import _jit
from fastbp.kernels.calls import address_of_array, call
from fastbp.kernels.embedding import MOVED
from fastbp.kernels.emit import I64
from fastbp.kernels.gather import SOURCE_DTYPES
from fastbp.kernels.handles import HANDLE, LEARNER, handle_at, learner_at, positions_at
from fastbp.kernels.tables import cursor_at

_PREFIX = "fastbp"
NETWORK_KIND, LEARNER_KIND, REPLAY_KIND, NORMALIZER_KIND = "network", "learner", "replay", "normalizer"
_MADE_BY = {
    NETWORK_KIND: "MLP.compiled()",
    LEARNER_KIND: "Trainer.compiled()",
    REPLAY_KIND: "embed.replay_buffer()",
    NORMALIZER_KIND: "embed.normalizer()",
}
_SIZE, _LEARNER_SIZE = HANDLE.itemsize // 8, LEARNER.itemsize // 8
# How an array lies: a row per sample; or of one dimension, as one row, or as one number per sample.
_ROWS, _ROW, _COLUMN = "rows", "row", "column"
_NAN = float("nan")


def field_name(kind: str, dtype: object) -> str:
    """The name of the field of a handle's dtype."""
    return f"{_PREFIX}_{kind}_{dtype}_{_jit.digest()}"


def stamp_of(handle, function, kinds, is_written=False):
    """The dtype of a handle's network, and whether it is of these sources. is_written : whether not read-only."""
    is_array = isinstance(handle, types.Array) and isinstance(handle.dtype, types.Record)
    parts = next(iter(handle.dtype.fields)).split("_") if is_array else []
    is_handle = len(parts) == 4 and parts[0] == _PREFIX and parts[1] in kinds
    if not is_handle or handle.ndim != 1 or handle.layout != "C" or (is_written and not handle.mutable):
        made_by = " or ".join(_MADE_BY[kind] for kind in kinds)
        raise TypingError(
            f"embed.{function}: the first argument must be made by {made_by}, or be one of the rows that it has made"
        )
    return parts[2], parts[3] == _jit.digest()


def _check_dimensions(function, named):
    """Raise a TypingError that names the first argument that is no array of one or two dimensions, as many as x's."""
    for name, array in named.items():
        if not isinstance(array, types.Array) or array.ndim not in (1, 2):
            raise TypingError(f"embed.{function}: {name} must be an array of 1 or 2 dimensions, got {array}")
        if array.ndim != named["x"].ndim:
            raise TypingError(f"embed.{function}: {name} must have as many dimensions as x, got {array}")


def _check_floats(function, inputs):
    for name, array in inputs.items():
        if array.dtype not in (types.float32, types.float64):
            raise TypingError(f"embed.{function}: {name} must be of float32 or float64, got {array}")


def _check_output(function, name, array, dtype):
    if array.dtype != getattr(types, dtype) or array.layout != "C" or not array.mutable or not array.aligned:
        raise TypingError(
            f"embed.{function}: {name} must be a writable, C-contiguous array of the network's dtype {dtype}, "
            f"got {array}"
        )


def _layouts(*arrays):
    return tuple([_ROWS if array.ndim == 2 else _ROW for array in arrays])


@functools.cache
def _table_of(layouts):
    """An intrinsic that writes rows of ARRAY to the stack, for a tuple of arrays of these layouts; their address."""

    @intrinsic
    def table(typingctx, arrays):
        def codegen(context, builder, sig, args):
            numbers = []
            for i, (kind, layout) in enumerate(zip(sig.args[0].types, layouts, strict=True)):
                array = context.make_array(kind)(context, builder, builder.extract_value(args[0], i))
                shape, strides = (cgutils.unpack_tuple(builder, of, kind.ndim) for of in (array.shape, array.strides))
                n_rows, row, n_columns, column = I64(1), I64(0), shape[-1], strides[-1]
                if layout != _ROW:
                    n_rows, row = shape[0], strides[0]
                if layout == _COLUMN:
                    n_columns, column = I64(1), I64(0)
                code = I64(SOURCE_DTYPES.index(kind.dtype.name if kind.dtype != types.boolean else "bool"))
                numbers += [builder.ptrtoint(array.data, I64), n_rows, n_columns, row, column, code]
            place = cgutils.alloca_once(builder, ir.ArrayType(I64, len(numbers)))
            for i, number in enumerate(numbers):
                builder.store(number, cgutils.gep_inbounds(builder, place, 0, i))
            return builder.ptrtoint(place, I64)

        return types.intp(arrays), codegen

    return table


def _predict_sample(net, x, out):
    """`embed.predict` of a sample of the network's own dtype, one number behind the other."""
    place = address_of_array(net)
    if net.shape[0] != _SIZE or handle_at(place).self != place:
        return MOVED
    arguments = place, address_of_array(x), x.shape[0], address_of_array(out), out.shape[0]
    return call(handle_at(place).embedded_predict_sample, arguments)


def predict(net, x, out):
    """Type `embed.predict`."""
    dtype, is_ours = stamp_of(net, "predict", (NETWORK_KIND,))
    _check_dimensions("predict", {"x": x, "out": out})
    _check_floats("predict", {"x": x})
    _check_output("predict", "out", out, dtype)
    if not is_ours:
        return lambda net, x, out: MOVED
    if x.ndim == 1 and x.layout == "C" and x.aligned and x.dtype == out.dtype:
        return _predict_sample
    table = _table_of(_layouts(x, out))

    def predict(net, x, out):
        place = address_of_array(net)
        if net.shape[0] != _SIZE or handle_at(place).self != place:
            return MOVED
        return call(handle_at(place).embedded_predict, (place, table((x, out)), address_of_array(out)))

    return predict


def vjp(net, x, d_out, d_x):
    """Type `embed.vjp`."""
    dtype, is_ours = stamp_of(net, "vjp", (NETWORK_KIND,))
    _check_dimensions("vjp", {"x": x, "d_out": d_out, "d_x": d_x})
    _check_floats("vjp", {"x": x, "d_out": d_out})
    _check_output("vjp", "d_x", d_x, dtype)
    if not is_ours:
        return lambda net, x, d_out, d_x: MOVED
    table = _table_of(_layouts(x, d_out, d_x))

    def vjp(net, x, d_out, d_x):
        place = address_of_array(net)
        if net.shape[0] != _SIZE or handle_at(place).self != place:
            return MOVED
        return call(handle_at(place).embedded_vjp, (place, table((x, d_out, d_x)), address_of_array(d_x)))

    return vjp


def jvp(net, x, t_x, t_out):
    """Type `embed.jvp`."""
    dtype, is_ours = stamp_of(net, "jvp", (NETWORK_KIND,))
    _check_dimensions("jvp", {"x": x, "t_x": t_x, "t_out": t_out})
    _check_floats("jvp", {"x": x, "t_x": t_x})
    _check_output("jvp", "t_out", t_out, dtype)
    if not is_ours:
        return lambda net, x, t_x, t_out: MOVED
    table = _table_of(_layouts(x, t_x, t_out))

    def jvp(net, x, t_x, t_out):
        place = address_of_array(net)
        if net.shape[0] != _SIZE or handle_at(place).self != place:
            return MOVED
        return call(handle_at(place).embedded_jvp, (place, table((x, t_x, t_out)), address_of_array(t_out)))

    return jvp


def _layouts_of_batch(function, x, y):
    """The layouts of a batch: samples of values, or of one number each: classes, or of one output."""
    if not isinstance(x, types.Array) or x.ndim not in (1, 2):
        raise TypingError(f"embed.{function}: x must be an array of 1 or 2 dimensions, got {x}")
    _check_floats(function, {"x": x})
    if not isinstance(y, types.Array) or y.ndim not in (1, 2) or y.ndim > x.ndim:
        raise TypingError(f"embed.{function}: y must be an array of 1 or 2 dimensions, no more than x has, got {y}")
    is_label = isinstance(y.dtype, types.Integer)
    if is_label and y.ndim != 1:
        raise TypingError(f"embed.{function}: y must have one dimension if it holds classes, got {y}")
    if not is_label:
        _check_floats(function, {"y": y})
    is_column = y.ndim == 1 and (is_label or x.ndim == 2)
    return *_layouts(x), _COLUMN if is_column else _layouts(y)[0]


def _weights_of(function, weight):
    """The layouts of weights: of none, or of one for each sample."""
    if weight is None or isinstance(weight, (types.NoneType, types.Omitted)):
        return ()
    if not isinstance(weight, types.Array) or weight.ndim != 1 or weight.dtype not in (types.float32, types.float64):
        raise TypingError(
            f"embed.{function}: weight must be an array of 1 dimension of float32 or float64, one for each sample, "
            f"got {weight}"
        )
    return (_COLUMN,)


def train_step(learner, x, y, weight=None):
    """Type `embed.train_step`."""
    _, is_ours = stamp_of(learner, "train_step", (LEARNER_KIND,))
    of_weight = _weights_of("train_step", weight)
    table = _table_of((*_layouts_of_batch("train_step", x, y), *of_weight))
    if not is_ours:
        return lambda learner, x, y, weight=None: MOVED

    def train_step(learner, x, y, weight=None):
        place = address_of_array(learner)
        if learner.shape[0] != _LEARNER_SIZE or learner_at(place).self != place:
            return MOVED
        return call(learner_at(place).embedded_train_step, (place, table((x, y)), 0))

    def weighted_train_step(learner, x, y, weight=None):
        place = address_of_array(learner)
        if learner.shape[0] != _LEARNER_SIZE or learner_at(place).self != place:
            return MOVED
        return call(learner_at(place).embedded_train_step, (place, table((x, y, weight)), 1))

    return weighted_train_step if of_weight else train_step


def backward_step(learner, x, d_out):
    """Type `embed.backward_step`."""
    _, is_ours = stamp_of(learner, "backward_step", (LEARNER_KIND,))
    table = _table_of(_layouts_of_batch("backward_step", x, d_out))
    _check_floats("backward_step", {"d_out": d_out})
    if not is_ours:
        return lambda learner, x, d_out: MOVED

    def backward_step(learner, x, d_out):
        place = address_of_array(learner)
        if learner.shape[0] != _LEARNER_SIZE or learner_at(place).self != place:
            return MOVED
        return call(learner_at(place).embedded_backward_step, (place, table((x, d_out))))

    return backward_step


def loss_and_grad(learner, x, y, grad, weight=None):
    """Type `embed.loss_and_grad`."""
    dtype, is_ours = stamp_of(learner, "loss_and_grad", (LEARNER_KIND,))
    layouts = _layouts_of_batch("loss_and_grad", x, y)
    if not isinstance(grad, types.Array) or grad.ndim != 1:
        raise TypingError(f"embed.loss_and_grad: grad must be an array of 1 dimension, got {grad}")
    _check_output("loss_and_grad", "grad", grad, dtype)
    of_weight = _weights_of("loss_and_grad", weight)
    table = _table_of((*layouts, _ROW, *of_weight))
    if not is_ours:
        return lambda learner, x, y, grad, weight=None: MOVED

    def loss_and_grad(learner, x, y, grad, weight=None):
        place = address_of_array(learner)
        if learner.shape[0] != _LEARNER_SIZE or learner_at(place).self != place:
            return MOVED
        return call(learner_at(place).embedded_loss_and_grad, (place, table((x, y, grad)), address_of_array(grad), 0))

    def weighted_loss_and_grad(learner, x, y, grad, weight=None):
        place = address_of_array(learner)
        if learner.shape[0] != _LEARNER_SIZE or learner_at(place).self != place:
            return MOVED
        arrays = table((x, y, grad, weight))
        return call(learner_at(place).embedded_loss_and_grad, (place, arrays, address_of_array(grad), 1))

    return weighted_loss_and_grad if of_weight else loss_and_grad


def train(learner, x, y, n_steps, weight=None):
    """Type `embed.train`."""
    _, is_ours = stamp_of(learner, "train", (LEARNER_KIND,))
    layouts = _layouts_of_batch("train", x, y)
    if x.ndim != 2:
        raise TypingError(f"embed.train: x must have 2 dimensions, got {x}")
    if not isinstance(n_steps, types.Integer):
        raise TypingError(f"embed.train: n_steps must be an integer, got {n_steps}")
    of_weight = _weights_of("train", weight)
    table = _table_of((*layouts, *of_weight))
    if not is_ours:
        return lambda learner, x, y, n_steps, weight=None: MOVED

    def train(learner, x, y, n_steps, weight=None):
        place = address_of_array(learner)
        if learner.shape[0] != _LEARNER_SIZE or learner_at(place).self != place:
            return MOVED
        return call(learner_at(place).embedded_train, (place, table((x, y)), n_steps, 0))

    def weighted_train(learner, x, y, n_steps, weight=None):
        place = address_of_array(learner)
        if learner.shape[0] != _LEARNER_SIZE or learner_at(place).self != place:
            return MOVED
        return call(learner_at(place).embedded_train, (place, table((x, y, weight)), n_steps, 1))

    return weighted_train if of_weight else train


def reset(learner):
    """Type `embed.reset`."""
    _, is_ours = stamp_of(learner, "reset", (LEARNER_KIND,))
    if not is_ours:
        return lambda learner: MOVED

    def reset(learner):
        place = address_of_array(learner)
        if learner.shape[0] != _LEARNER_SIZE or learner_at(place).self != place:
            return MOVED
        return call(learner_at(place).embedded_reset, (place,))

    return reset


def set_learning_rate(learner, rate):
    """Type `embed.set_learning_rate`."""
    _, is_ours = stamp_of(learner, "set_learning_rate", (LEARNER_KIND,))
    if not isinstance(rate, (types.Float, types.Integer)):
        raise TypingError(f"embed.set_learning_rate: rate must be a number, got {rate}")
    if not is_ours:
        return lambda learner, rate: MOVED

    def set_learning_rate(learner, rate):
        place = address_of_array(learner)
        if learner.shape[0] != _LEARNER_SIZE or learner_at(place).self != place:
            return MOVED
        return call(learner_at(place).embedded_set_learning_rate, (place, float(rate)))

    return set_learning_rate


def loss(learner):
    """Type `embed.loss`."""
    _, is_ours = stamp_of(learner, "loss", (LEARNER_KIND,))
    if not is_ours:
        return lambda learner: _NAN

    def loss(learner):
        place = address_of_array(learner)
        if learner.shape[0] != _LEARNER_SIZE or learner_at(place).self != place:
            return _NAN
        return learner_at(place).loss

    return loss


def n_steps(learner):
    """Type `embed.n_steps`."""
    _, is_ours = stamp_of(learner, "n_steps", (LEARNER_KIND,))
    if not is_ours:
        return lambda learner: -1

    def n_steps(learner):
        place = address_of_array(learner)
        if learner.shape[0] != _LEARNER_SIZE or learner_at(place).self != place:
            return -1
        positions = positions_at(learner_at(place).positions)
        return max(cursor_at(positions.fit_cursor).step, cursor_at(positions.cursor).step)

    return n_steps


@functools.cache
def _view_of(dtype):
    """An intrinsic that returns a writable array of n numbers at an address, which keeps a handle alive."""
    array_type = types.Array(getattr(types, dtype), 1, "C")

    @intrinsic
    def view(typingctx, handle, address, n):
        def codegen(context, builder, sig, args):
            kept = context.make_array(sig.args[0])(context, builder, args[0])
            array = context.make_array(array_type)(context, builder)
            size = context.get_abi_sizeof(context.get_data_type(array_type.dtype))
            array.data = builder.inttoptr(args[1], array.data.type)
            array.shape = cgutils.pack_array(builder, [args[2]])
            array.strides = cgutils.pack_array(builder, [I64(size)])
            array.itemsize, array.nitems = I64(size), args[2]
            array.meminfo = kept.meminfo
            return impl_ret_borrowed(context, builder, array_type, array._getvalue())

        return array_type(handle, types.intp, types.intp), codegen

    return view


def params(handle):
    """Type `embed.params`."""
    dtype, is_ours = stamp_of(handle, "params", (NETWORK_KIND, LEARNER_KIND))
    view = _view_of(dtype)
    if not is_ours:
        return lambda handle: view(handle, 0, 0)
    is_learner = next(iter(handle.dtype.fields)).split("_")[1] == LEARNER_KIND
    record_of, size = (learner_at, _LEARNER_SIZE) if is_learner else (handle_at, _SIZE)

    def params(handle):
        place = address_of_array(handle)
        if handle.shape[0] != size or record_of(place).self != place:
            return view(handle, 0, 0)
        return view(handle, record_of(place).params, record_of(place).n_params)

    return params
