"""From the user's rows to panels: the only kernels that see the user's arrays.

Whatever dtype, order or strides the user's array has, the same machine code reads it.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastbp._jit import inline, leaf
from fastbp.kernels.calls import float64_at
from fastbp.kernels.panels import panel_of
from fastbp.kernels.simd import (
    address_of,
    flush,
    lanes_of,
    load,
    load_first,
    offset,
    store,
    store_first,
)
from fastbp.kernels.tables import source_at
from fastbp.kernels.transpose import transpose_rows

# The code of a dtype is its place here.
SOURCE_DTYPES = (
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float16",
    "float32",
    "float64",
    "bool",
)
UINT8, INT8, UINT16, INT16, UINT32, INT32, UINT64, INT64, FLOAT16, FLOAT32, FLOAT64, BOOL = range(len(SOURCE_DTYPES))


def _reader(dtype):
    @intrinsic
    def read(typingctx, address):
        """The number of this dtype at an address."""

        def codegen(context, builder, sig, args):
            return builder.load(builder.inttoptr(args[0], context.get_value_type(dtype).as_pointer()), align=1)

        return dtype(types.intp), codegen

    return read


read_uint8, read_int8 = _reader(types.uint8), _reader(types.int8)
read_uint16, read_int16 = _reader(types.uint16), _reader(types.int16)
read_uint32, read_int32 = _reader(types.uint32), _reader(types.int32)
read_uint64, read_int64 = _reader(types.uint64), _reader(types.int64)
read_float32, read_float64 = _reader(types.float32), _reader(types.float64)


@intrinsic
def half_to_float32(typingctx, bits):
    """The float32 of a float16's 16 bits, exactly; infinities and NaN become finite (they are rejected before)."""

    def codegen(context, builder, sig, args):
        wide = builder.zext(args[0], ir.IntType(32))
        magnitude = builder.and_(wide, ir.IntType(32)(0x7FFF))
        sign = builder.shl(builder.and_(wide, ir.IntType(32)(0x8000)), ir.IntType(32)(16))
        # The exponent bias differs by 112; a subnormal float16 is a whole number of 2**-24.
        normal = builder.add(builder.shl(magnitude, ir.IntType(32)(13)), ir.IntType(32)(112 << 23))
        small = builder.fmul(builder.uitofp(magnitude, ir.FloatType()), ir.Constant(ir.FloatType(), 2.0**-24))
        is_small = builder.icmp_unsigned("<", magnitude, ir.IntType(32)(1 << 10))
        scaled = builder.select(is_small, builder.bitcast(small, ir.IntType(32)), normal)
        return builder.bitcast(builder.or_(scaled, sign), ir.FloatType())

    return types.float32(types.uint16), codegen


@inline
def _read_integer(address, dtype):
    """The integer at an address; -1 for what is no integer. A uint64 beyond int64 reads as negative."""
    if dtype == UINT8:
        return np.int64(read_uint8(address))
    if dtype == INT8:
        return np.int64(read_int8(address))
    if dtype == UINT16:
        return np.int64(read_uint16(address))
    if dtype == INT16:
        return np.int64(read_int16(address))
    if dtype == UINT32:
        return np.int64(read_uint32(address))
    if dtype == INT32:
        return np.int64(read_int32(address))
    if dtype in (UINT64, INT64):
        return read_int64(address)
    if dtype == BOOL:  # a view of other bytes as bool may hold any
        return np.int64(read_uint8(address) != 0)
    return np.int64(-1)


@inline
def _cast_row(row, stride, dtype, n, out):
    """out[j] = the j-th number of a row of the user's array; `dtype` is a code.

    Loops of their own for floats and images; the other integers share one, which is half as fast and quick to compile.
    """
    if dtype == FLOAT32:
        for j in range(n):
            out[j] = read_float32(row + j * stride)
    elif dtype == FLOAT64:
        for j in range(n):
            out[j] = read_float64(row + j * stride)
    elif dtype == FLOAT16:
        for j in range(n):
            out[j] = half_to_float32(read_uint16(row + j * stride))
    elif dtype == UINT8:
        for j in range(n):
            out[j] = read_uint8(row + j * stride)
    elif dtype == UINT64:
        for j in range(n):
            out[j] = read_uint64(row + j * stride)
    else:
        for j in range(n):
            out[j] = _read_integer(row + j * stride, dtype)


@inline
def _standardize_row(row, stride, dtype, means, factors, n, out):
    """out[j] = the j-th number of a row, less its mean and times its factor, in float64; as `_cast_row`."""
    if dtype == FLOAT32:
        for j in range(n):
            out[j] = (read_float32(row + j * stride) - means[j]) * factors[j]
    elif dtype == FLOAT64:
        for j in range(n):
            out[j] = (read_float64(row + j * stride) - means[j]) * factors[j]
    elif dtype == FLOAT16:
        for j in range(n):
            out[j] = (half_to_float32(read_uint16(row + j * stride)) - means[j]) * factors[j]
    elif dtype == UINT8:
        for j in range(n):
            out[j] = (read_uint8(row + j * stride) - means[j]) * factors[j]
    elif dtype == UINT64:
        for j in range(n):
            out[j] = (read_uint64(row + j * stride) - means[j]) * factors[j]
    else:
        for j in range(n):
            out[j] = (_read_integer(row + j * stride, dtype) - means[j]) * factors[j]


@inline
def _transpose_panel(addresses, panel, width, n_features):
    """Write a panel of samples whose rows lie at these addresses."""
    lanes = lanes_of(panel)
    for s in range(0, width, lanes):
        for f in range(0, n_features, lanes):
            transpose_rows(offset(addresses, s), f, offset(panel, f * width + s), width, width - s, n_features - f)


def _gather_rows_signature(T):
    size = types.intp
    return types.void(size, size, size, size, types.CPointer(types.int64), size, size, types.CPointer(T),
                      types.CPointer(types.int64), types.CPointer(T))  # fmt: skip


@leaf(_gather_rows_signature)
def gather_rows(x, row_stride, column_stride, dtype, rows, n_samples, n_features, panels, addresses, scratch):
    """Write the rows `rows[:n_samples]` of the user's array as panels, cast and transposed.

    x, row_stride, column_stride : address and strides in bytes; dtype : code of the source dtype.
    panels : n_samples * n_features elements, overwritten. addresses : panel int64, scratch : panel * n_features
    elements, both overwritten. No checks: the caller validates rows and shape; any content is safe.
    """
    panel = panel_of(panels)
    itemsize = address_of(offset(panels, 1)) - address_of(panels)
    is_native = column_stride == itemsize and dtype == (FLOAT32 if itemsize == 4 else FLOAT64)
    for start in range(0, n_samples, panel):
        width = min(panel, n_samples - start)
        if is_native:  # a loop of its own: with a test in one loop, rows of 8 features took 1.4 times as long
            for s in range(width):
                addresses[s] = x + rows[start + s] * row_stride
        else:
            for s in range(width):
                cast = offset(scratch, s * n_features)
                _cast_row(x + rows[start + s] * row_stride, column_stride, dtype, n_features, cast)
                addresses[s] = address_of(cast)
        _transpose_panel(addresses, offset(panels, start * n_features), width, n_features)


def _gather_standardized_signature(T):
    plain = _gather_rows_signature(T)
    return plain.return_type(*plain.args, types.intp, types.intp)


@leaf(_gather_standardized_signature)
def gather_standardized(
    x, row_stride, column_stride, dtype, rows, n_samples, n_features, panels, addresses, scratch, means, factors
):
    """As `gather_rows`, each number less its column's mean and times its factor.

    means, factors : addresses of n_features float64.
    """
    panel, means, factors = panel_of(panels), float64_at(means), float64_at(factors)
    for start in range(0, n_samples, panel):
        width = min(panel, n_samples - start)
        for s in range(width):
            row, out = x + rows[start + s] * row_stride, offset(scratch, s * n_features)
            _standardize_row(row, column_stride, dtype, means, factors, n_features, out)
            addresses[s] = address_of(out)
        _transpose_panel(addresses, offset(panels, start * n_features), width, n_features)


@inline
def _scatter_row(values, dtype, indices, index_dtype, first, last, n, out):
    """Write numbers first..last-1 of those that are kept to their places among the n of a row."""
    size = _size_of(dtype)
    for k in range(first, last):
        j, place = _read_index(indices, index_dtype, k), values + k * size
        if 0 <= j < n:
            if dtype == FLOAT32:
                out[j] = read_float32(place)
            elif dtype == FLOAT64:
                out[j] = read_float64(place)
            elif dtype == UINT64:
                out[j] = read_uint64(place)
            else:
                out[j] = _read_integer(place, dtype)


@inline
def _scatter_standardized_row(values, dtype, indices, index_dtype, first, last, n, means, factors, out):
    """As `_scatter_row`, each number less its column's mean and times its factor."""
    size = _size_of(dtype)
    for k in range(first, last):
        j, place = _read_index(indices, index_dtype, k), values + k * size
        if 0 <= j < n:
            if dtype == FLOAT32:
                out[j] = (read_float32(place) - means[j]) * factors[j]
            elif dtype == FLOAT64:
                out[j] = (read_float64(place) - means[j]) * factors[j]
            elif dtype == UINT64:
                out[j] = (read_uint64(place) - means[j]) * factors[j]
            else:
                out[j] = (_read_integer(place, dtype) - means[j]) * factors[j]


@inline
def _size_of(dtype):
    """Bytes of a number of this dtype; of float16 there are no sparse ones."""
    if dtype in (UINT8, INT8, BOOL):
        return 1
    if dtype in (UINT16, INT16):
        return 2
    return 4 if dtype in (UINT32, INT32, FLOAT32) else 8


@inline
def _read_index(indices, dtype, k):
    return np.int64(read_int32(indices + 4 * k)) if dtype == INT32 else read_int64(indices + 8 * k)


@leaf(lambda T: types.void(types.intp, types.CPointer(types.int64), types.intp, types.intp, types.CPointer(T),
                           types.CPointer(types.int64), types.CPointer(T), types.intp, types.intp))  # fmt: skip
def gather_sparse(source, rows, n_samples, n_features, panels, addresses, scratch, means, factors):
    """As `gather_rows` of a source with sparse rows, or, unless these addresses are 0, as `gather_standardized`.

    source : address of the table. What it points at may change under a running fit: nothing is read beyond it.
    """
    source, panel, means_of, factors_of = source_at(source), panel_of(panels), float64_at(means), float64_at(factors)
    for start in range(0, n_samples, panel):
        width = min(panel, n_samples - start)
        for s in range(width):
            row, out = rows[start + s], offset(scratch, s * n_features)
            first = min(max(_read_index(source.x_indptr, source.x_index_dtype, row), 0), source.n_kept)
            last = min(_read_index(source.x_indptr, source.x_index_dtype, row + 1), source.n_kept)
            kept = source.x, source.x_dtype, source.x_indices, source.x_index_dtype
            if means == 0:
                for j in range(n_features):
                    out[j] = 0
                _scatter_row(kept[0], kept[1], kept[2], kept[3], first, last, n_features, out)
            else:
                for j in range(n_features):
                    out[j] = (0.0 - means_of[j]) * factors_of[j]
                _scatter_standardized_row(
                    kept[0], kept[1], kept[2], kept[3], first, last, n_features, means_of, factors_of, out
                )
            addresses[s] = address_of(out)
        _transpose_panel(addresses, offset(panels, start * n_features), width, n_features)


@leaf(lambda T: types.intp(types.intp, types.intp, types.intp, types.CPointer(types.int64), types.intp, types.intp,
                           types.CPointer(T)))  # fmt: skip
def gather_labels(y, stride, dtype, rows, n_samples, n_classes, panels):
    """Write the labels of `rows[:n_samples]` as one-hot panels; return how many were outside 0..n_classes-1.

    A label outside its range leaves its column zero, so data that changes under a running fit cannot make the kernel
    write out of bounds. panels : n_samples * n_classes elements, overwritten.
    """
    panel, lanes = panel_of(panels), lanes_of(panels)
    n, n_outside = n_samples * n_classes, 0
    for i in range(0, n, lanes):
        store_first(panels, i, load_first(panels, i, 0), n - i)
    for start in range(0, n_samples, panel):
        width = min(panel, n_samples - start)
        for s in range(width):
            label = _read_integer(y + rows[start + s] * stride, dtype)
            if 0 <= label < n_classes:
                panels[start * n_classes + label * width + s] = 1
            else:
                n_outside += 1
    return n_outside


@leaf(lambda T: types.void(types.CPointer(T), types.CPointer(T), types.intp))
def copy(source, out, n):
    """out = source, what is tiny as zero, n elements rounded up to whole vectors; the two do not overlap."""
    for i in range(0, n, lanes_of(source)):
        store(out, i, flush(load(source, i)))
