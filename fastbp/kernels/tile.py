"""The register tile of the matrix product, the packing for it and the in-register transpose, as LLVM vector IR.

All accumulators of a tile stay in registers for the whole sum over k: one vector load per vector of b, one broadcast
per element of a, one FMA per pair. That reaches 98 % of the FMA peak (perf/kernels.py). Sizes follow the CPU that Numba
compiles for, so the same source serves AVX-512, AVX2, SSE and NEON.
"""

from math import gcd

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastbp.kernels.emit import (
    I8,
    I64,
    emit_first,
    emit_fma,
    emit_kept,
    emit_load,
    emit_opaque,
    emit_prefetch,
    emit_shuffle,
    emit_splat,
    emit_store,
    size_of,
)
from fastbp.kernels.simd import constant_of
from fastbp.kernels.target import N_REGISTERS, lanes

# Two vectors per row, and as many rows as the register file has accumulators for, beside two vectors of b and some
# broadcasts: the more rows, the fewer loads and other instructions per FMA. On processors that start four instructions
# a cycle (Intel's Skylake) these bound the loop as soon as 12 rows take more than 48.
VECTORS = 2
TILE_ROWS = 12 if N_REGISTERS >= 32 else 6
_STEPS_AHEAD = 12  # of k, in which a line of a is fetched before it is needed: w by columns has a new line for each k


def panel_width(dtype) -> int:
    """Samples (or outputs) side by side in one panel: the width of the register tile."""
    return VECTORS * lanes(dtype)


panel_of = constant_of(panel_width)


def _emit_row_offsets(builder, pointer, stride, n_rows):
    """Bytes from the first of some rows, `stride` elements apart, to each, as shifts of few numbers.

    Then base + offset * 2**n is an address that a load takes as it is. Left to itself, LLVM computes the addresses from
    each other, with an addition for each row, or keeps more of them than there are registers.
    """
    odd, offsets = {}, []
    size = I64(size_of(pointer.type.pointee))
    for row in range(n_rows):
        power = (row & -row).bit_length() - 1 if row else 0
        factor = row >> power
        if factor not in odd:
            n_bytes = builder.mul(stride, builder.mul(size, I64(factor)))
            odd[factor] = emit_opaque(builder, n_bytes) if row else I64(0)
        offsets.append(builder.shl(odd[factor], I64(power)))
    return offsets


def _emit_advance(builder, pointer, n_bytes):
    """The pointer so many bytes further on."""
    data = builder.bitcast(pointer, I8.as_pointer())
    return builder.bitcast(builder.gep(data, [n_bytes]), pointer.type)


class _Tile:
    """Emits c[rows, n_left] = init + a[rows, k] @ b[k, n_left] for one number of rows and one shape of the edge."""

    def __init__(self, builder, args, n_rows, n_vectors, masked):
        (_, self.n_left, self.a, self.a_row, self.a_k, self.a_outer, self.last, self.last_outer, self.b, self.b_k,
         self.c, self.c_row, self.init, self.init_row, self.init_is_column, self.n_inner,
         self.n_outer) = args  # fmt: skip
        self.builder, self.n_rows, self.n_vectors = builder, n_rows, n_vectors
        element = self.a.type.pointee
        self.lanes = lanes(types.float32 if isinstance(element, ir.FloatType) else types.float64)
        self.vector = ir.VectorType(element, self.lanes)
        self.cells = [(row, v) for row in range(n_rows) for v in range(n_vectors)]
        left_in_last = builder.sub(self.n_left, I64((n_vectors - 1) * self.lanes))
        mask = emit_kept(builder, emit_first(builder, left_in_last, self.lanes)) if masked else None
        self.masks = [None] * (n_vectors - 1) + [mask]

    def _rows_of(self, pointer, stride):
        return [self.builder.gep(pointer, [self.builder.mul(stride, I64(row))]) for row in range(self.n_rows)]

    def _rows_of_a(self, a, last):
        return [*(_emit_advance(self.builder, a, offset) for offset in self.a_offsets[:-1]), last]

    def _pointer(self, row_pointer, v):
        element = self.builder.gep(row_pointer, [I64(v * self.lanes)])
        return self.builder.bitcast(element, self.vector.as_pointer())

    def _load(self, row_pointer, v):
        return emit_load(self.builder, self._pointer(row_pointer, v), self.vector, self.masks[v])

    def _phis(self, values, block):
        phis = []
        for value in values:
            phi = self.builder.phi(value.type)
            phi.add_incoming(value, block)
            phis.append(phi)
        return phis

    def emit(self):
        self.a_offsets = _emit_row_offsets(self.builder, self.a, self.a_row, self.n_rows)
        accumulators = self._outer_loop(self._initial())
        rows = self._rows_of(self.c, self.c_row)
        for (row, v), value in zip(self.cells, accumulators, strict=True):
            emit_store(self.builder, value, self._pointer(rows[row], v), self.masks[v])

    def _initial(self):
        """One vector per cell: `init` row by row, or one element of it per row."""
        builder = self.builder
        rows = self._rows_of(self.init, self.init_row)
        column, matrix, start = (builder.append_basic_block(name) for name in ("column", "matrix", "start"))
        builder.cbranch(builder.icmp_signed("!=", self.init_is_column, I64(0)), column, matrix)
        builder.position_at_end(column)
        splats = [emit_splat(builder, builder.load(pointer), self.lanes) for pointer in rows]
        builder.branch(start)
        builder.position_at_end(matrix)
        loads = [self._load(rows[row], v) for row, v in self.cells]
        builder.branch(start)
        builder.position_at_end(start)
        initial = []
        for (row, _), load in zip(self.cells, loads, strict=True):
            phi = builder.phi(self.vector)
            phi.add_incoming(splats[row], column)
            phi.add_incoming(load, matrix)
            initial.append(phi)
        return initial

    def _outer_loop(self, initial):
        builder = self.builder
        before, outer, done = builder.block, builder.append_basic_block("outer"), builder.append_basic_block("done")
        builder.branch(outer)
        builder.position_at_end(outer)
        count, a, last, b, *accumulators = phis = self._phis([I64(0), self.a, self.last, self.b, *initial], before)
        b_end, sums = self._inner_loop(a, last, b, accumulators)
        next_count = builder.add(count, I64(1))
        after = [next_count, builder.gep(a, [self.a_outer]), builder.gep(last, [self.last_outer]), b_end, *sums]
        for phi, value in zip(phis, after, strict=True):
            phi.add_incoming(value, builder.block)
        builder.cbranch(builder.icmp_signed("<", next_count, self.n_outer), outer, done)
        builder.position_at_end(done)
        return sums

    def _inner_loop(self, a, last, b, accumulators):
        builder = self.builder
        before, inner, done = (
            builder.block,
            builder.append_basic_block("inner"),
            builder.append_basic_block("inner_done"),
        )
        builder.branch(inner)
        builder.position_at_end(inner)
        k, a, last, b, *accumulators = phis = self._phis([I64(0), a, last, b, *accumulators], before)
        b_vectors = [self._load(b, v) for v in range(self.n_vectors)]
        emit_prefetch(builder, builder.gep(a, [builder.mul(self.a_k, I64(_STEPS_AHEAD))]))
        rows = self._rows_of_a(a, last)
        broadcasts = [emit_splat(builder, builder.load(pointer), self.lanes) for pointer in rows]
        sums = [
            emit_fma(builder, broadcasts[row], b_vectors[v], accumulator)
            for (row, v), accumulator in zip(self.cells, accumulators, strict=True)
        ]
        next_k = builder.add(k, I64(1))
        b_next = builder.gep(b, [self.b_k])
        a_next = emit_opaque(builder, builder.gep(a, [self.a_k]))
        after = [next_k, a_next, builder.gep(last, [self.a_k]), b_next, *sums]
        for phi, value in zip(phis, after, strict=True):
            phi.add_incoming(value, inner)
        builder.cbranch(builder.icmp_signed("<", next_k, self.n_inner), inner, done)
        builder.position_at_end(done)
        return b_next, sums


@intrinsic
def tile(typingctx, n_rows, n_left, a, a_row, a_k, a_outer, last, last_outer, b, b_k, c, c_row, init, init_row,
         init_is_column, n_inner, n_outer):  # fmt: skip
    """Write c = init + a @ b for a tile of `n_rows` <= TILE_ROWS rows and min(n_left, panel) columns.

    c[m, n] = init[m, n] + sum over o < n_outer, i < n_inner of
    a[o*a_outer + m*a_row + i*a_k] * b[(o*n_inner + i)*b_k + n], one FMA after the other in the order of (o, i).

    The last row of a is read at `last[o*last_outer + i*a_k]` instead, so that a row of ones can stand below a matrix.
    init[m, n] is init[m*init_row + n], or init[m*init_row] for every n where `init_is_column`. Columns at and beyond
    n_left are neither read nor written.
    """  # fmt: skip
    strides = types.intp
    sig = types.void(strides, strides, a, strides, strides, strides, a, strides, a, strides, a, strides, a, strides,
                     strides, strides, strides)  # fmt: skip

    def codegen(context, builder, sig, args):
        width = lanes(a.dtype)
        n_rows, n_left = args[0], args[1]
        # Cases: 0 one vector, masked; 1 two, the second masked; 2 two. A single full vector is masked too: it is rare.
        beyond_first = builder.zext(builder.icmp_signed(">", n_left, I64(width)), I64)
        is_whole = builder.zext(builder.icmp_signed(">=", n_left, I64(VECTORS * width)), I64)
        shape = builder.add(beyond_first, is_whole)
        end = builder.append_basic_block("end")
        choice = builder.switch(builder.add(builder.shl(n_rows, I64(2)), shape), end)
        for rows in range(1, TILE_ROWS + 1):
            for case in range(3):
                block = builder.append_basic_block(f"tile_{rows}_{case}")
                choice.add_case(I64(4 * rows + case), block)
                builder.position_at_end(block)
                _Tile(builder, args, rows, 1 + (case > 0), case < 2).emit()
                builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return sig, codegen


def _group_size(dtype):
    """The rows that `pack_group` packs at once: the fewest that fill whole vectors, one behind the other."""
    return lanes(dtype) // gcd(TILE_ROWS, lanes(dtype))


def _emit_picked(builder, vectors, picks):
    """The vector whose lanes are (vector, lane) of `picks`, which come from one or two of the vectors."""
    used = sorted({vector for vector, _ in picks})
    lane_ids = [used.index(vector) * len(picks) + lane for vector, lane in picks]
    return emit_shuffle(builder, vectors[used[0]], vectors[used[-1]], lane_ids)


group_size = constant_of(_group_size)


@intrinsic
def pack_group(typingctx, a, a_row, packed):
    """packed[r*TILE_ROWS + c] = a[r*a_row + c] for `group_size` rows r and c < TILE_ROWS, as whole vectors.

    Reads whole vectors too, the last of which may reach beyond TILE_ROWS.
    """

    def codegen(context, builder, sig, args):
        a, a_row, packed = args
        n, n_rows = lanes(sig.args[0].dtype), _group_size(sig.args[0].dtype)
        vector = ir.VectorType(a.type.pointee, n)
        loads = {}
        for row in range(n_rows):
            for column in range(0, TILE_ROWS, n):
                pointer = builder.gep(a, [builder.add(builder.mul(a_row, I64(row)), I64(column))])
                loads[row, column] = emit_load(builder, builder.bitcast(pointer, vector.as_pointer()), vector)
        for start in range(0, n_rows * TILE_ROWS, n):
            places = [divmod(element, TILE_ROWS) for element in range(start, start + n)]
            picks = [((row, column - column % n), column % n) for row, column in places]
            pointer = builder.bitcast(builder.gep(packed, [I64(start)]), vector.as_pointer())
            emit_store(builder, _emit_picked(builder, loads, picks), pointer)
        return context.get_dummy_value()

    return types.void(a, types.intp, packed), codegen


def _emit_swaps(builder, rows):
    """Transpose the square of the vectors `rows` in place: swap its off-diagonal blocks of growing width."""
    n, width = len(rows), 1

    while width < n:
        for i in range(n):
            if not i & width:
                x, y = rows[i], rows[i | width]
                rows[i] = emit_shuffle(builder, x, y, [j if not j & width else n + (j ^ width) for j in range(n)])
                rows[i | width] = emit_shuffle(builder, x, y, [j | width if not j & width else n + j for j in range(n)])
        width *= 2


def _emit_transpose(builder, row_pointers, dst, dst_row):
    """Transpose the square at `row_pointers`."""
    vector = ir.VectorType(dst.type.pointee, len(row_pointers))
    rows = [emit_load(builder, builder.bitcast(pointer, vector.as_pointer()), vector) for pointer in row_pointers]
    _emit_swaps(builder, rows)
    for row in rows:
        emit_store(builder, row, builder.bitcast(dst, vector.as_pointer()))
        dst = emit_opaque(builder, builder.gep(dst, [dst_row]))


def _emit_transpose_edge(builder, row_pointers, dst, dst_row, n_rows, n_cols):
    """The same of n_rows rows and n_cols columns; what is beyond them is neither read nor written."""
    n = len(row_pointers)
    vector = ir.VectorType(dst.type.pointee, n)
    column_mask, row_mask = (emit_first(builder, count, n) for count in (n_cols, n_rows))
    rows = [
        emit_load(builder, builder.bitcast(pointer, vector.as_pointer()), vector, column_mask)
        for pointer in row_pointers
    ]
    _emit_swaps(builder, rows)
    end = builder.append_basic_block("end")
    for j in range(n):
        block = builder.append_basic_block("column")
        builder.cbranch(builder.icmp_signed("<", I64(j), n_cols), block, end)
        builder.position_at_end(block)
        pointer = builder.gep(dst, [builder.mul(dst_row, I64(j))])
        emit_store(builder, rows[j], builder.bitcast(pointer, vector.as_pointer()), row_mask)
    builder.branch(end)
    builder.position_at_end(end)


def _emit_transpose_cases(builder, rows, pointer_of_row, dst, dst_row, n_rows, n_cols, n):
    """The transpose of the full square `rows()`, else the masked one, which reads row 0 for the rows beyond n_rows."""
    full = builder.and_(builder.icmp_signed(">=", n_rows, I64(n)), builder.icmp_signed(">=", n_cols, I64(n)))
    with builder.if_else(full) as (then, otherwise):
        with then:
            _emit_transpose(builder, rows(), dst, dst_row)
        with otherwise:
            inside = [builder.select(builder.icmp_signed("<", I64(i), n_rows), I64(i), I64(0)) for i in range(n)]
            _emit_transpose_edge(builder, [pointer_of_row(i) for i in inside], dst, dst_row, n_rows, n_cols)


@intrinsic
def transpose_square(typingctx, src, src_row, dst, dst_row, n_rows, n_cols):
    """dst[j*dst_row + i] = src[i*src_row + j] for i < min(n_rows, lanes), j < min(n_cols, lanes)."""
    sig = types.void(src, types.intp, src, types.intp, types.intp, types.intp)

    def codegen(context, builder, sig, args):
        src_pointer, src_row, dst, dst_row, n_rows, n_cols = args
        n = lanes(src.dtype)

        def pointer_of_row(i):
            return builder.gep(src_pointer, [builder.mul(src_row, i)])

        def rows():
            offsets = _emit_row_offsets(builder, src_pointer, src_row, n)
            return [_emit_advance(builder, src_pointer, offset) for offset in offsets]

        _emit_transpose_cases(builder, rows, pointer_of_row, dst, dst_row, n_rows, n_cols, n)
        return context.get_dummy_value()

    return sig, codegen


@intrinsic
def transpose_rows(typingctx, addresses, column, dst, dst_row, n_rows, n_cols):
    """As `transpose_square`, of rows anywhere: row i starts `column` elements after the address `addresses[i]`."""
    sig = types.void(addresses, types.intp, dst, types.intp, types.intp, types.intp)

    def codegen(context, builder, sig, args):
        addresses, column, dst, dst_row, n_rows, n_cols = args
        n = lanes(sig.args[2].dtype)

        def pointer_of_row(i):
            address = builder.load(builder.gep(addresses, [i]))
            return builder.gep(builder.inttoptr(address, dst.type), [column])

        def rows():
            return [pointer_of_row(I64(i)) for i in range(n)]

        _emit_transpose_cases(builder, rows, pointer_of_row, dst, dst_row, n_rows, n_cols, n)
        return context.get_dummy_value()

    return sig, codegen
