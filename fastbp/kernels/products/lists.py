"""Products with an operand that is mostly zero, as ReLU makes them: only what is not zero is listed and multiplied.

A unit that is off for a sample has an activation and a derivative of exactly zero there, usually for half of the
samples and more. The lanes then run over the columns of the other operand:

    c[j] = sum of a[j, k] * b[k] over the k in list j

The lists are those of a matrix in compressed sparse rows: the values one behind the other, `indices` of their terms,
and `indptr`, where each list begins. They are cut into chunks of k, so that the rows of b that they refer to stay in
the first-level cache. Each sum has the order of the dense product, which adds the zeros as well: the results are the
same, but for the sign of a zero.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastbp._jit import inline, leaf
from fastbp.kernels.calls import call, int64_at
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
from fastbp.kernels.gather import FLOAT32, FLOAT64
from fastbp.kernels.panels import VECTORS, panel_of
from fastbp.kernels.products.dense import dense_in_panels, multiply
from fastbp.kernels.simd import address_of, lanes_of, load_upto, offset, splat, sum_lanes
from fastbp.kernels.sums import end_part, place_of_part, start_of_part
from fastbp.kernels.tables import plan_at, product_at
from fastbp.kernels.target import VECTOR_BYTES, lanes
from fastbp.kernels.transpose import to_panels
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


def _emit_appended(builder, vector, indices, is_kept, value_pointer, index_pointer, n):
    """Append the lanes of the mask and their indices; the number of entries then."""
    count, index = vector.type.count, index_pointer.type.pointee
    if VECTOR_BYTES == 64:  # not compressed into memory at once: that takes 100 cycles on some processors
        closed_up = builder.trunc(_emit_closed_up(builder, indices, is_kept), ir.VectorType(index, count))
        for values, pointer in ((_emit_closed_up(builder, vector, is_kept), value_pointer), (closed_up, index_pointer)):
            emit_store(builder, values, emit_vector_pointer(builder, pointer, n, values.type))
        bits = builder.bitcast(is_kept, ir.IntType(count))
        return builder.add(n, builder.zext(builder.ctpop(bits), I64))
    for lane in range(count):  # without a branch: what is not kept is overwritten by the next
        lane_id = I32(lane)
        builder.store(builder.extract_element(vector, lane_id), builder.gep(value_pointer, [n]))
        builder.store(builder.trunc(builder.extract_element(indices, lane_id), index), builder.gep(index_pointer, [n]))
        n = builder.add(n, builder.zext(builder.extract_element(is_kept, lane_id), I64))
    return n


@intrinsic
def append_nonzeros(typingctx, values, indices, n, vector, first_index, step):
    """Append the lanes of a vector that are not zero to values[n:], and first_index + lane*step to indices[n:].

    Returns the number of entries then. Overwrites as many elements behind n as the vector has lanes.
    """
    sig = types.intp(values, indices, types.intp, vector_of(vector), types.intp, types.intp)

    def codegen(context, builder, sig, args):
        values, indices, n, vector, first, step = args
        # Integers as wide as the values: so vectors of both have as many lanes.
        count, integer = vector.type.count, ir.IntType(8 * size_of(vector.type.element))
        first, step = (emit_splat(builder, builder.trunc(number, integer), count) for number in (first, step))
        lane_ids = ir.Constant(ir.VectorType(integer, count), list(range(count)))
        here = builder.add(first, builder.mul(lane_ids, step))
        # Unordered: NaN is not zero, and must not be lost.
        is_kept = builder.fcmp_unordered("!=", vector, ir.Constant(vector.type, None))
        return _emit_appended(builder, vector, here, is_kept, values, indices, n)

    return sig, codegen


def _emit_sums(builder, vectors, values, indices, start, stop, pointer_of):
    """Add values[e] * (vectors at indices[e]) to the vectors for the entries start <= e < stop, one after the other.

    pointer_of : from a index and the number of a vector to its pointer.
    """
    before = builder.block
    head, body, done = (builder.append_basic_block(name) for name in ("entry", "term", "sums"))
    builder.branch(head)
    builder.position_at_end(head)
    entry, *sums = phis = [builder.phi(first.type) for first in (start, *vectors)]
    builder.cbranch(builder.icmp_signed("<", entry, stop), body, done)
    builder.position_at_end(body)
    value = emit_splat(builder, builder.load(builder.gep(values, [entry])), vectors[0].type.count)
    index = builder.zext(builder.load(builder.gep(indices, [entry])), I64)
    terms = [emit_fma(builder, value, emit_load(builder, pointer_of(index, v), value.type), total)
             for v, total in enumerate(sums)]  # fmt: skip
    following = [builder.add(entry, I64(1)), *terms]
    for phi, first, after in zip(phis, [start, *vectors], following, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(after, body)
    builder.branch(head)
    builder.position_at_end(done)
    return sums


@intrinsic
def multiply_list(typingctx, values, indices, start, stop, b, b_group, c, c_group, init, init_group, n_vectors):
    """Write c = init + sum over start <= e < stop of values[e] * b[indices[e]:], for n_vectors vectors.

    Two vectors lie side by side, the next two b_group, c_group or init_group elements further on.
    """
    size = types.intp
    sig = types.void(values, indices, size, size, b, size, c, size, init, size, size)

    def codegen(context, builder, sig, args):
        values, indices, start, stop, b, b_group, c, c_group, init, init_group, n_vectors = args
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
                builder, initial, values, indices, start, stop, lambda index, v: pointer_of(b, b_group, index, v)
            )
            for v, total in enumerate(sums):
                emit_store(builder, total, pointer_of(c, c_group, I64(0), v))
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return sig, codegen


_INDICES, _INDPTR = types.CPointer(types.uint16), types.CPointer(types.int64)


def _list_nonzeros_signature(T):
    pointer, size = types.CPointer(T), types.intp
    return types.void(pointer, size, size, pointer, _INDICES, _INDPTR, pointer)


@leaf(_list_nonzeros_signature)
def list_nonzeros(panels, n_features, n_samples, values, indices, indptr, sums):
    """List for each feature the samples where it is not zero, with its values there.

    The lists lie one behind the other: that of feature f are the entries indptr[f]..indptr[f+1]-1 of `values` and
    `indices`, in which sample s is s*panel.

    panels : n_samples with n_features each. values, indices : room for n_features * n_samples elements and one vector
    more. indptr : (n_features + 1,). sums : (n_features,), over the samples, first over lanes and then across them by a
    fixed tree. All overwritten. No checks: the caller validates; n_samples * panel < 2**16.
    """
    panel, lanes = panel_of(panels), lanes_of(panels)
    n = 0
    for f in range(n_features):
        indptr[f], total = n, splat(panels, 0)
        for start in range(0, n_samples, panel):
            width = min(panel, n_samples - start)
            for s in range(0, width, lanes):
                d = load_upto(panels, start * n_features + f * width + s, width - s)
                n = append_nonzeros(values, indices, n, d, (start + s) * panel, panel)
                total += d
        sums[f] = sum_lanes(total)
    indptr[n_features] = n


def _multiply_nonzeros_signature(T):
    pointer, size = types.CPointer(T), types.intp
    return types.void(pointer, _INDICES, _INDPTR, size, pointer, size, pointer, size, pointer, size, size, size)


@leaf(_multiply_nonzeros_signature)
def multiply_nonzeros(values, indices, indptr, n_lists, b, b_group, c, c_group, init, init_row, init_group, n_columns):
    """Write c[j] = init[j] + sum over the entries e of list j of value e * b[index e], in their order, for each list.

    values, indices, indptr : as `list_nonzeros` writes them. b : a panel of columns wide, one row behind the other; the
    next panel of columns b_group elements further on. c : likewise, c_group apart, a row for each list; overwritten.
    init : likewise, init_group apart, its rows init_row apart; may be c itself. n_columns : at most `strip_width`,
    rounded up to whole vectors here. No checks: the caller validates.
    """
    panel, lanes = panel_of(c), lanes_of(c)
    n_vectors = (n_columns + lanes - 1) // lanes
    for j in range(n_lists):
        multiply_list(values, indices, indptr[j], indptr[j + 1], b, b_group, offset(c, j * panel), c_group,
                      offset(init, j * init_row), init_group, n_vectors)  # fmt: skip


@inline
def chunk_of(plan, values, indices, indptr, index, n_lists):
    """The addresses of values, indices and indptr of a chunk of lists; they are written in vectors, hence the room."""
    first = index * (n_lists * plan.sizes.chunk + plan.sizes.panel)
    return values + first * plan.sizes.itemsize, indices + first * 2, indptr + index * (n_lists + 1) * 8


@inline
def n_listed(indptr, n_lists):
    """How many entries the lists of a chunk have."""
    return int64_at(indptr)[n_lists]


@inline
def is_full(n_nonzero, n):
    """Whether the dense product is faster than one with lists of what is not zero of n elements."""
    return 4 * n_nonzero > 3 * n


@leaf(lambda T: types.void(types.intp, types.intp, types.intp, types.intp, types.intp))
def dense_of_lists(plan, product, x, y, n):
    """As `dense`, for an x that is mostly zero: as a list of what is not zero for each sample.

    The lanes run over the rows of y; rows that fill no panel go panel by panel, and an x that turns out to be mostly
    full goes by packed blocks. The results are the same on each way, in every bit but the sign of a zero.
    """
    plan, product = plan_at(plan), product_at(product)
    panel, n_terms, n_rows = plan.sizes.panel, product.n_terms, product.n_rows
    if is_full(_list_samples(plan, x, n_terms, n), n_terms * n):
        call(plan.leaves.dense_packed, (address_of(plan), address_of(product), x, y, n))
        return
    n_whole = n_rows - n_rows % panel
    for first in range(0, n_whole, plan.sizes.strip):
        n_columns = min(plan.sizes.strip, n_whole - first)
        _multiply_strip(plan, product, first, n_columns, n)
        to_panels(plan, plan.scratch.y_strip, n, n_columns, y, first, n_rows)
    if n_whole < n_rows:
        dense_in_panels(plan, product, x, y, n, n_whole)


@inline
def _list_samples(plan, x, n_terms, n):
    """List what is not zero of n samples in panels, for each sample; returns how many entries there are."""
    scratch, chunk, n_nonzero = plan.scratch, plan.sizes.chunk, 0
    # As n features of n_terms samples, they are what `list_nonzeros` expects.
    to_panels(plan, x, n_terms, n, scratch.x_transposed, 0, n)
    for k in range(0, n_terms, chunk):
        values, indices, indptr = chunk_of(plan, scratch.x_values, scratch.x_indices, scratch.x_indptr, k // chunk, n)
        call(plan.leaves.list_nonzeros, (scratch.x_transposed + k * n * plan.sizes.itemsize, n, min(chunk, n_terms - k),
                                         values, indices, indptr, scratch.x_sums))  # fmt: skip
        n_nonzero += n_listed(indptr, n)
    return n_nonzero


@inline
def _pack_strip(plan, product, first, n_columns):
    """Copy the columns of a.T from `first` on into panels; returns where a strip of y begins, as `init`."""
    size, panel, n_terms, scratch = plan.sizes.itemsize, plan.sizes.panel, product.n_terms, plan.scratch
    a = product.a + first * product.a_row * size
    if product.is_backward != 0:
        dtype = FLOAT32 if size == 4 else FLOAT64
        call(plan.leaves.gather, (a, product.a_row * size, size, dtype, plan.count, n_columns, n_terms,
                                  scratch.w_strip, scratch.row_addresses, scratch.cast))  # fmt: skip
        return plan.zeros, 0, 0
    for j in range(0, n_columns, panel):
        here = scratch.w_strip + j * n_terms * size
        call(plan.leaves.pack_rows, (a + j * size, product.a_k, n_terms, panel, here, panel))
        # The biases, plus zero times every weight: one that is not finite must not be skipped unnoticed.
        multiply(plan, 1, panel, plan.zeros, (0, 0, 0), here, panel, scratch.x_sums + j * size,
                 (product.init + (first + j) * size, 0, 0), n_terms)  # fmt: skip
    return scratch.x_sums, 0, panel


@inline
def _multiply_strip(plan, product, first, n_columns, n):
    """Write the rows of y from `first` on, as panels of them, from the lists of x."""
    size, panel, chunk, scratch = plan.sizes.itemsize, plan.sizes.panel, plan.sizes.chunk, plan.scratch
    n_terms = product.n_terms
    init, c = _pack_strip(plan, product, first, n_columns), scratch.y_strip
    for k in range(0, n_terms, chunk):
        values, indices, indptr = chunk_of(plan, scratch.x_values, scratch.x_indices, scratch.x_indptr, k // chunk, n)
        place = place_of_part(k, n_terms, c, scratch.partial)
        start, start_row, start_group = start_of_part(plan, k, n_terms, init, (place, panel, panel * n))
        call(plan.leaves.multiply_nonzeros, (values, indices, indptr, n, scratch.w_strip + k * panel * size,
                                             panel * n_terms, place, panel * n, start, start_row, start_group,
                                             n_columns))  # fmt: skip
        end_part(plan, min(k + chunk, n_terms), n_terms, c, scratch.partial, n * n_columns)
