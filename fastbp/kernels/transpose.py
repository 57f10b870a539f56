"""Transposes: squares in registers, and panels as rows, as other panels or as one row per feature."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastbp._jit import inline, leaf
from fastbp.kernels.calls import call
from fastbp.kernels.emit import (
    I64,
    emit_advance,
    emit_first,
    emit_load,
    emit_opaque,
    emit_row_offsets,
    emit_shuffle,
    emit_store,
)
from fastbp.kernels.panels import panel_of
from fastbp.kernels.simd import lanes_of, load_upto, offset, store, store_upto
from fastbp.kernels.target import lanes


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
            offsets = emit_row_offsets(builder, src_pointer, src_row, n)
            return [emit_advance(builder, src_pointer, offset) for offset in offsets]

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


@leaf(lambda T: types.void(types.CPointer(T), types.intp, types.intp, types.CPointer(T), types.intp, types.intp,
                           types.intp, types.intp))  # fmt: skip
def panels_to_rows(panels, n_features, n_samples, out, first_row, group_stride, row_stride, last_row_stride):
    """Write panels as rows of samples, one group of `panel` features after the other.

    Feature g*panel + j of sample s goes to out[g*group_stride + (first_row + s)*row_stride + j]; in a last, narrower
    group `last_row_stride` stands for `row_stride`. No checks: the caller validates.
    """
    panel, lanes = panel_of(panels), lanes_of(panels)
    if n_samples == 1:  # rows and columns of one sample lie alike
        for f in range(0, n_features, lanes):
            group, column = f // panel, f % panel
            stride = row_stride if n_features - group * panel >= panel else last_row_stride
            i = group * group_stride + first_row * stride + column
            store_upto(out, i, load_upto(panels, f, n_features - f), n_features - f)
        return
    for start in range(0, n_samples, panel):
        width = min(panel, n_samples - start)
        for group in range(0, n_features, panel):
            left = min(panel, n_features - group)
            stride = row_stride if left == panel else last_row_stride
            for s in range(0, width, lanes):
                for f in range(0, left, lanes):
                    square = offset(panels, start * n_features + (group + f) * width + s)
                    rows = offset(out, group // panel * group_stride + (first_row + start + s) * stride + f)
                    transpose_square(square, width, rows, stride, left - f, width - s)


@leaf(lambda T: types.void(types.CPointer(T), types.intp, types.intp, types.CPointer(T), types.intp))
def panels_to_features(panels, n_features, n_samples, out, out_row):
    """Write each feature of the panels as one row of samples, whole vectors of it: out[f*out_row + s].

    No checks: the caller validates; out_row is at least n_samples rounded up to whole vectors.
    """
    panel, lanes = panel_of(panels), lanes_of(panels)
    for start in range(0, n_samples, panel):
        width = min(panel, n_samples - start)
        for f in range(n_features):
            for s in range(0, width, lanes):
                store(out, f * out_row + start + s, load_upto(panels, start * n_features + f * width + s, width - s))


@inline
def to_rows(plan, panels, n_features, n_samples, out, row):
    """Panels as a matrix of samples: feature f of sample s goes to out[s*row + f]."""
    call(plan.leaves.panels_to_rows, (panels, n_features, n_samples, out, 0, plan.sizes.panel, row, row))


@inline
def to_panels(plan, panels, n_features, n_samples, out, first, n_rows):
    """The transposed matrix as panels, whose features are samples first..first+n_samples-1 of n_rows."""
    panel = plan.sizes.panel
    call(
        plan.leaves.panels_to_rows,
        (panels, n_features, n_samples, out, first, panel * n_rows, panel, n_features % panel),
    )


@inline
def to_groups(plan, panels, n_features, n_samples, out, first, n_rows):
    """As `to_panels`, the last panel as wide as the others; what no feature fills there is left alone."""
    panel = plan.sizes.panel
    call(plan.leaves.panels_to_rows, (panels, n_features, n_samples, out, first, panel * n_rows, panel, panel))


@inline
def to_features(plan, panels, n_features, n_samples, out, row):
    """Each feature as one row of samples: feature f of sample s goes to out[f*row + s]."""
    call(plan.leaves.panels_to_features, (panels, n_features, n_samples, out, row))
