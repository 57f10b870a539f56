"""The register tile of the matrix product, and the packing for it, as LLVM vector IR.

All accumulators of a tile stay in registers for the whole sum over k: one vector load per vector of b, one broadcast
per element of a, one FMA per pair. That reaches 98 % of the FMA peak (perf/leaves.py floors). Sizes follow the CPU that
Numba compiles for, so the same source serves AVX-512, AVX2, SSE and NEON.
"""

from contextlib import contextmanager
from math import gcd
from typing import NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastbp.kernels.emit import (
    I64,
    emit_advance,
    emit_first,
    emit_fma,
    emit_kept,
    emit_load,
    emit_opaque,
    emit_prefetch,
    emit_row_offsets,
    emit_shuffle,
    emit_splat,
    emit_store,
    size_of,
)
from fastbp.kernels.panels import VECTORS
from fastbp.kernels.simd import constant_of
from fastbp.kernels.target import N_REGISTERS, VECTOR_BYTES, lanes

# As many rows as the register file has accumulators for, beside two vectors of b and some broadcasts: the more rows,
# the fewer loads and other instructions per FMA. On processors that start four instructions a cycle (Intel's Skylake)
# these bound the loop as soon as 12 rows take more than 48.
TILE_ROWS = 12 if N_REGISTERS >= 32 else 6
_STEPS_AHEAD = 12  # of k, in which a line of a is fetched before it is needed: w by columns has a new line for each k


class _Product(NamedTuple):
    """The operands of `multiply_tiles`, as LLVM values."""

    n_m: ir.Value
    n_left: ir.Value
    a: ir.Value
    a_tile: ir.Value
    a_row: ir.Value
    a_k: ir.Value
    a_outer: ir.Value
    ones: ir.Value
    b: ir.Value
    b_k: ir.Value
    c: ir.Value
    c_row: ir.Value
    init: ir.Value
    init_row: ir.Value
    init_is_column: ir.Value
    n_inner: ir.Value
    n_outer: ir.Value

    def tile_after(self, builder, n_tiles):
        """The operands of the tiles behind the first n_tiles."""
        n_rows = builder.mul(n_tiles, I64(TILE_ROWS))
        return self._replace(
            a=builder.gep(self.a, [builder.mul(n_tiles, self.a_tile)]),
            c=builder.gep(self.c, [builder.mul(n_rows, self.c_row)]),
            init=builder.gep(self.init, [builder.mul(n_rows, self.init_row)]),
        )


def _emit_phis(builder, values, block):
    """Phis that have these values when `block` comes before."""
    phis = []
    for value in values:
        phi = builder.phi(value.type)
        phi.add_incoming(value, block)
        phis.append(phi)
    return phis


@contextmanager
def _emit_loop(builder, n, values):
    """Emit a loop of n >= 1 turns; gives a list of what `values` are in this turn, to be replaced by the next ones.

    Behind the loop the list holds what the last turn has put there.
    """
    before, body, done = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("done")
    builder.branch(body)
    builder.position_at_end(body)
    count, *phis = _emit_phis(builder, [I64(0), *values], before)
    carried = list(phis)
    yield carried
    next_count = builder.add(count, I64(1))
    for phi, value in zip([count, *phis], [next_count, *carried], strict=True):
        phi.add_incoming(value, builder.block)
    builder.cbranch(builder.icmp_signed("<", next_count, n), body, done)
    builder.position_at_end(done)


class _Tile:
    """Emits c[rows, n_left] = init + a[rows, k] @ b[k, n_left] for one number of rows and one shape of the edge.

    last : pointer of the last row of a, and its stride over o; None where that row lies behind the others.
    """

    def __init__(self, builder, product, a_offsets, n_vectors, mask, last=None):
        self.builder, self.product, self.a_offsets, self.last = builder, product, a_offsets, last
        element = product.a.type.pointee
        self.n_rows, self.n_vectors = len(a_offsets), n_vectors
        self.vector = ir.VectorType(element, VECTOR_BYTES // size_of(element))
        self.cells = [(row, v) for row in range(self.n_rows) for v in range(n_vectors)]
        self.masks = [None] * (n_vectors - 1) + [mask]

    def _rows_of(self, pointer, stride):
        """Pointers to the rows, each from the one before: an addition is cheaper than a register for each row."""
        pointers = [pointer]
        for _ in range(1, self.n_rows):
            pointers.append(emit_opaque(self.builder, self.builder.gep(pointers[-1], [stride])))
        return pointers

    def _rows_of_a(self, a, last):
        rows = [emit_advance(self.builder, a, offset) for offset in self.a_offsets]
        return rows if self.last is None else [*rows[:-1], last]

    def _pointer(self, row_pointer, v):
        element = self.builder.gep(row_pointer, [I64(v * self.vector.count)])
        return self.builder.bitcast(element, self.vector.as_pointer())

    def _load(self, row_pointer, v):
        return emit_load(self.builder, self._pointer(row_pointer, v), self.vector, self.masks[v])

    def emit(self):
        sums = self._outer_loop(self._initial())
        rows = self._rows_of(self.product.c, self.product.c_row)
        for (row, v), value in zip(self.cells, sums, strict=True):
            emit_store(self.builder, value, self._pointer(rows[row], v), self.masks[v])

    def _initial(self):
        """One vector per cell: `init` row by row, or one element of it per row."""
        builder, init, init_row = self.builder, self.product.init, self.product.init_row
        column, matrix, start = (builder.append_basic_block(name) for name in ("column", "matrix", "start"))
        builder.cbranch(builder.icmp_signed("!=", self.product.init_is_column, I64(0)), column, matrix)
        builder.position_at_end(column)
        splats = [emit_splat(builder, builder.load(pointer), self.vector.count)
                  for pointer in self._rows_of(init, init_row)]  # fmt: skip
        builder.branch(start)
        builder.position_at_end(matrix)
        rows = self._rows_of(init, init_row)
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
        builder, product = self.builder, self.product
        last, last_outer = self.last or (product.a, product.a_outer)
        with _emit_loop(builder, product.n_outer, [product.a, last, product.b, *initial]) as carried:
            a, last, b, *sums = carried
            b_end, sums = self._inner_loop(a, last, b, sums)
            carried[:] = [builder.gep(a, [product.a_outer]), builder.gep(last, [last_outer]), b_end, *sums]
        return carried[3:]

    def _inner_loop(self, a, last, b, sums):
        builder, product = self.builder, self.product
        with _emit_loop(builder, product.n_inner, [a, last, b, *sums]) as carried:
            a, last, b, *sums = carried
            b_vectors = [self._load(b, v) for v in range(self.n_vectors)]
            emit_prefetch(builder, builder.gep(a, [builder.mul(product.a_k, I64(_STEPS_AHEAD))]))
            rows = self._rows_of_a(a, last)
            broadcasts = [emit_splat(builder, builder.load(pointer), self.vector.count) for pointer in rows]
            sums = [
                emit_fma(builder, broadcasts[row], b_vectors[v], value)
                for (row, v), value in zip(self.cells, sums, strict=True)
            ]
            b_next = builder.gep(b, [product.b_k])
            a_next = emit_opaque(builder, builder.gep(a, [product.a_k]))
            carried[:] = [a_next, builder.gep(last, [product.a_k]), b_next, *sums]
        return carried[2], carried[3:]


def _emit_tiles(builder, product, n_vectors, mask):
    """Emit all tiles for one shape of the edge: whole ones in a loop, the last one by its number of rows."""
    n_whole = builder.sdiv(builder.sub(product.n_m, I64(1)), I64(TILE_ROWS))
    last_tile = builder.append_basic_block("last_tile")
    whole_tiles = builder.append_basic_block("whole_tiles")
    builder.cbranch(builder.icmp_signed(">", n_whole, I64(0)), whole_tiles, last_tile)
    builder.position_at_end(whole_tiles)
    a_offsets = emit_row_offsets(builder, product.a, product.a_row, TILE_ROWS)
    with _emit_loop(builder, n_whole, [product.a, product.c, product.init]) as carried:
        here = product._replace(a=carried[0], c=carried[1], init=carried[2])
        _Tile(builder, here, a_offsets, n_vectors, mask).emit()
        following = here.tile_after(builder, I64(1))
        carried[:] = [following.a, following.c, following.init]
    builder.branch(last_tile)
    builder.position_at_end(last_tile)
    _emit_last_tile(builder, product.tile_after(builder, n_whole), n_whole, n_vectors, mask)


def _emit_last_tile(builder, product, n_before, n_vectors, mask):
    """Emit a tile of 1 to TILE_ROWS rows, the last of which may be the row of ones."""
    n_rows = builder.sub(product.n_m, builder.mul(n_before, I64(TILE_ROWS)))
    last_row = builder.gep(product.a, [builder.mul(builder.sub(n_rows, I64(1)), product.a_row)])
    has_ones = builder.icmp_signed("!=", product.ones, I64(0))
    last = builder.select(has_ones, builder.inttoptr(product.ones, product.a.type), last_row)
    last_outer = builder.select(has_ones, I64(0), product.a_outer)
    end = builder.append_basic_block("end")
    choice = builder.switch(n_rows, end)
    for rows in range(1, TILE_ROWS + 1):
        block = builder.append_basic_block(f"rows_{rows}")
        choice.add_case(I64(rows), block)
        builder.position_at_end(block)
        a_offsets = emit_row_offsets(builder, product.a, product.a_row, rows)
        _Tile(builder, product, a_offsets, n_vectors, mask, (last, last_outer)).emit()
        builder.branch(end)
    builder.position_at_end(end)


@intrinsic
def multiply_tiles(typingctx, n_m, n_left, a, a_tile, a_row, a_k, a_outer, ones, b, b_k, c, c_row, init, init_row,
                   init_is_column, n_inner, n_outer):  # fmt: skip
    """Write c = init + a @ b for n_m >= 1 rows and min(n_left, panel) columns, a tile of TILE_ROWS rows at a time.

    c[m, n] = init[m, n] + sum over o < n_outer, i < n_inner of a[t*a_tile + r*a_row + o*a_outer + i*a_k]
    * b[(o*n_inner + i)*b_k + n] with row r of tile t, m = t*TILE_ROWS + r, one FMA after the other in the order of
    (o, i); n_inner and n_outer are positive.

    With `ones`, an address, the last row of a is read at ones[i*a_k] instead, so that a row of ones can stand below a
    matrix. init[m, n] is init[m*init_row + n], or init[m*init_row] for every n where `init_is_column`. Columns at and
    beyond n_left are neither read nor written.
    """
    size = types.intp
    sig = types.void(size, size, a, size, size, size, size, size, a, size, a, size, a, size, size, size, size)

    def codegen(context, builder, sig, args):
        product, width = _Product(*args), lanes(a.dtype)
        end = builder.append_basic_block("end")
        # A single full vector is masked too: it is rare.
        shapes = [(1, True, builder.icmp_signed("<=", product.n_left, I64(width))),
                  (VECTORS, True, builder.icmp_signed("<", product.n_left, I64(VECTORS * width))),
                  (VECTORS, False, None)]  # fmt: skip
        for n_vectors, is_masked, is_this in shapes:
            if is_this is not None:
                this, other = builder.append_basic_block("this"), builder.append_basic_block("other")
                builder.cbranch(is_this, this, other)
                builder.position_at_end(this)
            left_in_last = builder.sub(product.n_left, I64((n_vectors - 1) * width))
            mask = emit_kept(builder, emit_first(builder, left_in_last, width)) if is_masked else None
            _emit_tiles(builder, product, n_vectors, mask)
            builder.branch(end)
            if is_this is not None:
                builder.position_at_end(other)
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
