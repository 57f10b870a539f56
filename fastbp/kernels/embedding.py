"""What the functions of `fastbp.embed` do with a handle: checks of shapes and addresses, and then the network.

Everything here takes a constant time but the network itself. A status says what was wrong; then nothing was written.
"""

from numba import types
from numba.extending import intrinsic

from fastbp._jit import inline, leaf
from fastbp.kernels.calls import call, int64_at, overlap
from fastbp.kernels.gather import FLOAT32, FLOAT64
from fastbp.kernels.handles import HANDLE, array_of, handle_at
from fastbp.kernels.scaling import rescale_sample, standardize_sample
from fastbp.kernels.simd import address_of
from fastbp.kernels.single import STACK, cast_sample, jvp_sample, on_stack, predict_sample, vjp_sample
from fastbp.kernels.tables import plan_at, source_at
from fastbp.kernels.team import publish

OK, X_SHAPE, Y_SHAPE, OUT_SHAPE, OVERLAP, BATCH, BUSY, MOVED = range(8)

_BUSY_ELEMENT = HANDLE.fields["busy"][1] // 8


@intrinsic
def _exchange(typingctx, pointer, index, value):
    """Write an element and return what it was, at once; what the writer before has written is seen after."""

    def codegen(context, builder, sig, args):
        return builder.atomic_rmw("xchg", builder.gep(args[0], [args[1]]), args[2], "acquire")

    return types.int64(pointer, types.intp, types.int64), codegen


@inline
def take(handle):
    """Whether the handle's buffers were free; they are the caller's now, until `_give_back`."""
    return _exchange(int64_at(handle.self), _BUSY_ELEMENT, 1) == 0


@inline
def give_back(handle):
    """Let others use the handle's buffers."""
    publish(int64_at(handle.self), _BUSY_ELEMENT, 0)


@inline
def is_apart(handle, out, array):
    """Whether `out` and another array have no byte in common, and `out` and the parameters none."""
    size, n = handle.itemsize, out.n_rows * out.n_columns
    if overlap(out.address, n * size, handle.params, handle.n_params * size):
        return False
    over_rows, over_columns = (array.n_rows - 1) * array.row, (array.n_columns - 1) * array.column
    start = array.address + min(0, over_rows) + min(0, over_columns)
    n_bytes = abs(over_rows) + abs(over_columns) + (4 if array.dtype == FLOAT32 else 8)
    return array.n_rows == 0 or not overlap(out.address, n * size, start, n_bytes)


@inline
def _is_native(handle, array):
    """Whether each row has the network's own numbers, one behind the other."""
    size = handle.itemsize
    code = FLOAT32 if size == 4 else FLOAT64
    return array.column == size and array.dtype == code and array.address % size == 0


@inline
def _check(handle, x, directions, width, out, out_width):
    """The status of arrays of shapes (n, n_in), (n, width) and (n, out_width)."""
    if x.n_columns != handle.n_in:
        return X_SHAPE
    if directions.n_rows != x.n_rows or directions.n_columns != width:
        return Y_SHAPE
    if out.n_rows != x.n_rows or out.n_columns != out_width:
        return OUT_SHAPE
    return OK if is_apart(handle, out, x) and is_apart(handle, out, directions) else OVERLAP


@inline
def _over_rows(handle, leaf, x, y, out):
    """Have a leaf of the plan write `out` for all rows of x, and of y where it reads that."""
    if not take(handle):
        return BUSY
    source = source_at(handle.source)
    source.x, source.x_row, source.x_column, source.x_dtype = x.address, x.row, x.column, x.dtype
    source.y, source.y_row, source.y_column, source.y_dtype = y.address, y.row, y.column, y.dtype
    source.n_samples = x.n_rows
    call(leaf, (handle.plan, handle.source, 0, x.n_rows, out.address))
    give_back(handle)
    return OK


@inline
def _sample_of(handle, array, room):
    """The address of the numbers of an array of one row: where they lie, or, cast and in order, in `room`."""
    if _is_native(handle, array):
        return array.address
    cast_sample(array.address, array.column, array.dtype, array.n_columns, room)
    return address_of(room)


@inline
def _inputs_of(handle, plan, array, room):
    """The address of the inputs of an array of one row: as `_sample_of`, or, standardized, in `room`."""
    scaling = plan.scaling
    if scaling.x_means == 0:
        return _sample_of(handle, array, room)
    standardize_sample(array.address, array.column, array.dtype, scaling.x_means, scaling.x_factors, array.n_columns,
                       room)  # fmt: skip
    return address_of(room)


@inline
def _tangents_of(handle, plan, array, room):
    """The address of the tangents of one sample: as `_sample_of`, or, of standardized inputs, in `room`."""
    if plan.scaling.x_means == 0:
        return _sample_of(handle, array, room)
    cast_sample(array.address, array.column, array.dtype, array.n_columns, room)
    rescale_sample(room, array.n_columns, plan.scaling.x_factors, plan.scaling.zeros)
    return address_of(room)


def _signature(T):
    return types.intp(types.intp, types.intp, types.CPointer(T))


@leaf(_signature)
def embedded_predict(handle, arrays, out):
    """Write the outputs of all rows. arrays : x and `out`."""
    handle, x, rows = handle_at(handle), array_of(arrays, 0), array_of(arrays, 1)
    status = _check(handle, x, x, handle.n_in, rows, handle.n_out)
    if status != OK:
        return status
    plan = plan_at(handle.plan)
    if x.n_rows != 1 or handle.fits_stack == 0 or x.n_columns > STACK:
        return _over_rows(handle, plan.leaves.predict_range, x, x, rows)
    predict_sample(plan, _inputs_of(handle, plan, x, on_stack(out)), out)
    return OK


@leaf(lambda T: types.intp(types.intp, types.intp, types.intp, types.CPointer(T), types.intp))
def embedded_predict_sample(handle, x, n_x, out, n_out):
    """Write the outputs of one sample, whose numbers are the network's own, one behind the other, and n_x of them.

    As `embedded_predict`, with less to look at: that is a tenth of the time of a small network.
    """
    handle, place, size = handle_at(handle), address_of(out), handle_at(handle).itemsize
    if n_x != handle.n_in:
        return X_SHAPE
    if n_out != handle.n_out:
        return OUT_SHAPE
    if overlap(place, n_out * size, x, n_x * size) or overlap(
        place, n_out * size, handle.params, handle.n_params * size
    ):
        return OVERLAP
    plan = plan_at(handle.plan)
    if handle.fits_stack == 0 or (plan.scaling.x_means != 0 and n_x > STACK):
        if not take(handle):
            return BUSY
        source = source_at(handle.source)
        source.x, source.x_column, source.n_samples = x, size, 1
        source.x_dtype = FLOAT32 if size == 4 else FLOAT64
        call(plan.leaves.predict_range, (handle.plan, handle.source, 0, 1, place))
        give_back(handle)
        return OK
    if plan.scaling.x_means != 0:
        room, dtype = on_stack(out), FLOAT32 if size == 4 else FLOAT64
        standardize_sample(x, size, dtype, plan.scaling.x_means, plan.scaling.x_factors, n_x, room)
        x = address_of(room)
    predict_sample(plan, x, out)
    return OK


@leaf(_signature)
def embedded_vjp(handle, arrays, d_x):
    """Write J.T @ d_out of all rows. arrays : x, d_out and `d_x`."""
    handle, x, d_out, rows = handle_at(handle), array_of(arrays, 0), array_of(arrays, 1), array_of(arrays, 2)
    status = _check(handle, x, d_out, handle.n_out, rows, handle.n_in)
    if status != OK:
        return status
    plan = plan_at(handle.plan)
    if x.n_rows != 1 or handle.fits_stack == 0 or x.n_columns > STACK:
        return _over_rows(handle, plan.leaves.vjp_range, x, d_out, rows)
    d = on_stack(d_x)
    cast_sample(d_out.address, d_out.column, d_out.dtype, d_out.n_columns, d)
    vjp_sample(plan, _inputs_of(handle, plan, x, on_stack(d_x)), d, d_x)
    return OK


@leaf(_signature)
def embedded_jvp(handle, arrays, t_out):
    """Write J @ t_x of all rows. arrays : x, t_x and `t_out`."""
    handle, x, t_x, rows = handle_at(handle), array_of(arrays, 0), array_of(arrays, 1), array_of(arrays, 2)
    status = _check(handle, x, t_x, handle.n_in, rows, handle.n_out)
    if status != OK:
        return status
    plan = plan_at(handle.plan)
    if x.n_rows != 1 or handle.fits_stack == 0 or x.n_columns > STACK:
        return _over_rows(handle, plan.leaves.jvp_range, x, t_x, rows)
    t = _tangents_of(handle, plan, t_x, on_stack(t_out))
    jvp_sample(plan, _inputs_of(handle, plan, x, on_stack(t_out)), t, t_out)
    return OK
