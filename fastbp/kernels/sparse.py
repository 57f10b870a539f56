"""Products with an operand that is mostly zero, as ReLU makes them: only what is not zero is listed and multiplied.

A unit that is off for a sample has an activation and a derivative of exactly zero there, usually for half of the
samples and more. The lanes then run over the columns of the other operand:

    c[j] = sum of a[j, k] * b[k] over the k in list j

The lists are cut into chunks of k, so that the rows of b that they refer to stay in the first-level cache. Each sum has
the order of the dense product, which adds the zeros as well: the results are the same, but for the sign of a zero.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastbp._jit import leaf
from fastbp.kernels.emit import (
    I32,
    I64,
    emit_call,
    emit_fma,
    emit_load,
    emit_splat,
    emit_store,
    emit_vector_pointer,
    llvm_suffix,
    size_of,
)
from fastbp.kernels.simd import lanes_of, load_upto, offset, splat, sum_lanes
from fastbp.kernels.target import VECTOR_BYTES, lanes
from fastbp.kernels.tile import VECTORS, panel_of
from fastbp.kernels.vector import vector_of

# Vectors of columns whose sums run side by side: enough to hide the latency of an FMA, few enough for what they meet of
# b in a chunk to stay in the first-level cache.
N_VECTORS = 6 if VECTOR_BYTES == 64 else 8


def strip_width(dtype) -> int:
    """Columns whose sums run side by side: whole panels."""
    return N_VECTORS * lanes(dtype)


def _emit_closed_up(builder, vector, is_kept):
    """The lanes of the mask, moved to the front."""
    name = f"llvm.x86.avx512.mask.compress.{llvm_suffix(vector.type)}"
    return emit_call(builder, name, vector.type, vector, ir.Constant(vector.type, None), is_kept)


def _emit_appended(builder, vector, places, is_kept, value_pointer, place_pointer, n):
    """Append the lanes of the mask and their places; the number of entries then."""
    count, place = vector.type.count, place_pointer.type.pointee
    if VECTOR_BYTES == 64:  # not compressed into memory at once: that takes 100 cycles on some processors
        closed_up = builder.trunc(_emit_closed_up(builder, places, is_kept), ir.VectorType(place, count))
        for values, pointer in ((_emit_closed_up(builder, vector, is_kept), value_pointer), (closed_up, place_pointer)):
            emit_store(builder, values, emit_vector_pointer(builder, pointer, n, values.type))
        bits = builder.bitcast(is_kept, ir.IntType(count))
        return builder.add(n, builder.zext(builder.ctpop(bits), I64))
    for lane in range(count):  # without a branch: what is not kept is overwritten by the next
        lane_id = I32(lane)
        builder.store(builder.extract_element(vector, lane_id), builder.gep(value_pointer, [n]))
        builder.store(builder.trunc(builder.extract_element(places, lane_id), place), builder.gep(place_pointer, [n]))
        n = builder.add(n, builder.zext(builder.extract_element(is_kept, lane_id), I64))
    return n


@intrinsic
def append_nonzeros(typingctx, values, places, n, vector, first_place, step):
    """Append the lanes of a vector that are not zero to values[n:], and first_place + lane*step to places[n:].

    Returns the number of entries then. Overwrites as many elements behind n as the vector has lanes.
    """
    sig = types.intp(values, places, types.intp, vector_of(vector), types.intp, types.intp)

    def codegen(context, builder, sig, args):
        values, places, n, vector, first, step = args
        # Integers as wide as the values: so vectors of both have as many lanes.
        count, integer = vector.type.count, ir.IntType(8 * size_of(vector.type.element))
        first, step = (emit_splat(builder, builder.trunc(number, integer), count) for number in (first, step))
        lane_ids = ir.Constant(ir.VectorType(integer, count), list(range(count)))
        here = builder.add(first, builder.mul(lane_ids, step))
        # Unordered: NaN is not zero, and must not be lost.
        is_kept = builder.fcmp_unordered("!=", vector, ir.Constant(vector.type, None))
        return _emit_appended(builder, vector, here, is_kept, values, places, n)

    return sig, codegen


def _emit_sums(builder, vectors, values, places, start, stop, pointer_of):
    """Add values[e] * (vectors at places[e]) to the vectors for the entries start <= e < stop, one after the other.

    pointer_of : from a place and the number of a vector to its pointer.
    """
    before = builder.block
    head, body, done = (builder.append_basic_block(name) for name in ("entry", "term", "sums"))
    builder.branch(head)
    builder.position_at_end(head)
    entry, *sums = phis = [builder.phi(first.type) for first in (start, *vectors)]
    builder.cbranch(builder.icmp_signed("<", entry, stop), body, done)
    builder.position_at_end(body)
    value = emit_splat(builder, builder.load(builder.gep(values, [entry])), vectors[0].type.count)
    place = builder.zext(builder.load(builder.gep(places, [entry])), I64)
    terms = [emit_fma(builder, value, emit_load(builder, pointer_of(place, v), value.type), total)
             for v, total in enumerate(sums)]  # fmt: skip
    following = [builder.add(entry, I64(1)), *terms]
    for phi, first, after in zip(phis, [start, *vectors], following, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(after, body)
    builder.branch(head)
    builder.position_at_end(done)
    return sums


@intrinsic
def multiply_list(typingctx, values, places, start, stop, b, b_group, c, c_group, init, init_group, n_vectors):
    """Write c = init + sum over start <= e < stop of values[e] * b[places[e]:], for n_vectors vectors.

    Two vectors lie side by side, the next two b_group, c_group or init_group elements further on.
    """
    size = types.intp
    sig = types.void(values, places, size, size, b, size, c, size, init, size, size)

    def codegen(context, builder, sig, args):
        values, places, start, stop, b, b_group, c, c_group, init, init_group, n_vectors = args
        vector = ir.VectorType(c.type.pointee, lanes(sig.args[6].dtype))

        def pointer_of(pointer, group, index, v):
            index = builder.add(index, builder.mul(group, I64(v // VECTORS)))
            return emit_vector_pointer(builder, pointer, builder.add(index, I64(v % VECTORS * vector.count)), vector)

        end = builder.append_basic_block("end")
        choice = builder.switch(n_vectors, end)
        for count in range(1, N_VECTORS + 1):
            block = builder.append_basic_block(f"vectors_{count}")
            choice.add_case(I64(count), block)
            builder.position_at_end(block)
            initial = [emit_load(builder, pointer_of(init, init_group, I64(0), v), vector) for v in range(count)]
            sums = _emit_sums(
                builder, initial, values, places, start, stop, lambda place, v: pointer_of(b, b_group, place, v)
            )
            for v, total in enumerate(sums):
                emit_store(builder, total, pointer_of(c, c_group, I64(0), v))
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return sig, codegen


_PLACES, _STARTS = types.CPointer(types.uint16), types.CPointer(types.int64)


def _list_nonzeros_signature(T):
    pointer, size = types.CPointer(T), types.intp
    return types.void(pointer, size, size, pointer, _PLACES, _STARTS, pointer)


@leaf(_list_nonzeros_signature)
def list_nonzeros(panels, n_features, n_samples, values, places, starts, sums):
    """List for each feature the samples where it is not zero, with its values there.

    The lists lie one behind the other: that of feature f are the entries starts[f]..starts[f+1]-1 of `values` and
    `places`, in which sample s is s*panel.

    panels : n_samples with n_features each. values, places : room for n_features * n_samples elements and one vector
    more. starts : (n_features + 1,). sums : (n_features,), over the samples, first over lanes and then across them by a
    fixed tree. All overwritten. No checks: the caller validates; n_samples * panel < 2**16.
    """
    panel, lanes = panel_of(panels), lanes_of(panels)
    n = 0
    for f in range(n_features):
        starts[f], total = n, splat(panels, 0)
        for start in range(0, n_samples, panel):
            width = min(panel, n_samples - start)
            for s in range(0, width, lanes):
                d = load_upto(panels, start * n_features + f * width + s, width - s)
                n = append_nonzeros(values, places, n, d, (start + s) * panel, panel)
                total += d
        sums[f] = sum_lanes(total)
    starts[n_features] = n


def _multiply_nonzeros_signature(T):
    pointer, size = types.CPointer(T), types.intp
    return types.void(pointer, _PLACES, _STARTS, size, pointer, size, pointer, size, pointer, size, size, size)


@leaf(_multiply_nonzeros_signature)
def multiply_nonzeros(values, places, starts, n_lists, b, b_group, c, c_group, init, init_row, init_group, n_columns):
    """Write c[j] = init[j] + sum over the entries e of list j of value e * b[place e], in their order, for each list.

    values, places, starts : as `list_nonzeros` writes them. b : a panel of columns wide, one row behind the other; the
    next panel of columns b_group elements further on. c : likewise, c_group apart, a row for each list; overwritten.
    init : likewise, init_group apart, its rows init_row apart; may be c itself. n_columns : at most `strip_width`,
    rounded up to whole vectors here. No checks: the caller validates.
    """
    panel, lanes = panel_of(c), lanes_of(c)
    n_vectors = (n_columns + lanes - 1) // lanes
    for j in range(n_lists):
        multiply_list(values, places, starts[j], starts[j + 1], b, b_group, offset(c, j * panel), c_group,
                      offset(init, j * init_row), init_group, n_vectors)  # fmt: skip
