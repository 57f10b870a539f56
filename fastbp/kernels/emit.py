"""LLVM IR of vector operations: what the intrinsics of `simd` and `tile` are written with.

Every function takes llvmlite's builder first and appends instructions where it stands.
"""

from llvmlite import ir

from fastbp.kernels.target import HAS_FMA, VECTOR_BYTES, cpu_family

I1, I8, I32, I64 = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64)

_N_LOST = 3  # lowest bits of an exponent: a number that has none of the others is flushed to zero


def emit_splat(builder, scalar, n):
    """A vector with the scalar in each of n lanes."""
    vector_type = ir.VectorType(scalar.type, n)
    first = builder.insert_element(ir.Constant(vector_type, ir.Undefined), scalar, I32(0))
    return builder.shuffle_vector(
        first, ir.Constant(vector_type, ir.Undefined), ir.Constant(ir.VectorType(I32, n), [0] * n)
    )


def llvm_suffix(vector_type):
    """The vector type's name in those of LLVM's intrinsics, such as v16f32."""
    element = vector_type.element
    kind = "i" if isinstance(element, ir.IntType) else "f"
    width = element.width if kind == "i" else (32 if isinstance(element, ir.FloatType) else 64)
    return f"v{vector_type.count}{kind}{width}"


def emit_call(builder, name, result, *args):
    """Call the LLVM intrinsic `name`, declared when first used in the module."""
    module = builder.module
    function = module.globals.get(name) or ir.Function(module, ir.FunctionType(result, [a.type for a in args]), name)
    return builder.call(function, args)


def size_of(element):
    """Bytes of an element type."""
    return 4 if isinstance(element, ir.FloatType) else 8 if isinstance(element, ir.DoubleType) else element.width // 8


def emit_vector_pointer(builder, pointer, index, vector_type):
    """The pointer to the vector at `pointer[index:]`."""
    return builder.bitcast(builder.gep(pointer, [index]), vector_type.as_pointer())


def emit_load(builder, pointer, vector_type, mask=None):
    """Load a vector; lanes outside the mask are zero and their memory is not touched."""
    align = size_of(vector_type.element)
    if mask is None:
        return builder.load(pointer, align=align)
    zero = ir.Constant(vector_type, None)
    name = f"llvm.masked.load.{llvm_suffix(vector_type)}.p0"
    return emit_call(builder, name, vector_type, pointer, I32(align), mask, zero)


def emit_store(builder, value, pointer, mask=None):
    """Store a vector, or those of its lanes that are in the mask."""
    align = size_of(value.type.element)
    if mask is None:
        builder.store(value, pointer, align=align)
    else:
        name = f"llvm.masked.store.{llvm_suffix(value.type)}.p0"
        emit_call(builder, name, ir.VoidType(), value, pointer, I32(align), mask)


def emit_opaque(builder, value):
    """The same value, of which LLVM knows nothing: no instruction, only a barrier to its reasoning."""
    register = "r"
    if isinstance(value.type, ir.VectorType):
        register = {"x86": "x", "arm64": "w"}.get(cpu_family())
    if register is None:
        return value
    return builder.asm(ir.FunctionType(value.type, [value.type]), "", f"={register},0", [value], False)


def emit_row_offsets(builder, pointer, stride, n_rows):
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


def emit_advance(builder, pointer, n_bytes):
    """The pointer so many bytes further on."""
    data = builder.bitcast(pointer, I8.as_pointer())
    return builder.bitcast(builder.gep(data, [n_bytes]), pointer.type)


def emit_kept(builder, mask):
    """The same mask, which is not computed anew wherever it is used: AVX-512 keeps it as an integer's bits."""
    if VECTOR_BYTES < 64:
        return mask
    return builder.bitcast(emit_opaque(builder, builder.bitcast(mask, ir.IntType(mask.type.count))), mask.type)


def emit_prefetch(builder, pointer):
    """Ask for the cache line behind a pointer, which may point anywhere."""
    to_read, to_all_caches, data = I32(0), I32(3), I32(1)
    address = builder.bitcast(pointer, I8.as_pointer())
    emit_call(builder, "llvm.prefetch.p0", ir.VoidType(), address, to_read, to_all_caches, data)


def emit_first(builder, n_left, n):
    """Mask of the first `n_left` of `n` lanes."""
    lane_ids = ir.Constant(ir.VectorType(I64, n), list(range(n)))
    return builder.icmp_signed("<", lane_ids, emit_splat(builder, n_left, n))


def emit_if_whole(builder, n_left, n, whole, partial):
    """Emit `whole()` for at least `n` elements, else `partial(mask)`; the value of either where they have one."""
    is_whole = builder.icmp_signed(">=", n_left, I64(n))
    with builder.if_else(is_whole, likely=True) as (then, otherwise):
        with then:
            first, first_block = whole(), builder.block
        with otherwise:
            second, second_block = partial(emit_first(builder, n_left, n)), builder.block
    if first is None:
        return None
    phi = builder.phi(first.type)
    phi.add_incoming(first, first_block)
    phi.add_incoming(second, second_block)
    return phi


def emit_fma(builder, x, y, z):
    """x * y + z, rounded once where the target has FMA."""
    if not HAS_FMA:  # llvm.fma would call libm: 500 times slower
        return builder.fadd(builder.fmul(x, y), z)
    return emit_call(builder, f"llvm.fma.{llvm_suffix(x.type)}", x.type, x, y, z)


def emit_horner(builder, x, coefficients):
    """The polynomial with these coefficients, lowest power first."""
    *lower, value = [ir.Constant(x.type, [c] * x.type.count) for c in coefficients]
    for coefficient in reversed(lower):
        value = emit_fma(builder, value, x, coefficient)
    return value


def emit_shuffle(builder, x, y, lane_ids):
    """The lanes with these numbers of x, followed by y."""
    return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(lane_ids)), lane_ids))


def emit_split(builder, x):
    """The lower and the upper half of the lanes."""
    n, undefined = x.type.count, ir.Constant(x.type, ir.Undefined)
    return [emit_shuffle(builder, x, undefined, list(range(start, start + n // 2))) for start in (0, n // 2)]


def emit_concatenate(builder, low, high):
    """The lanes of `low`, then those of `high`."""
    return emit_shuffle(builder, low, high, list(range(2 * low.type.count)))


def _exponent_bits(vector_type, n_lost):
    """The bits of an exponent without its `n_lost` lowest ones, in every lane."""
    bits, mantissa_bits = (32, 23) if isinstance(vector_type.element, ir.FloatType) else (64, 52)
    integers = ir.VectorType(ir.IntType(bits), vector_type.count)
    return ir.Constant(integers, [(1 << bits - 1) - (1 << mantissa_bits + n_lost)] * integers.count)


def _emit_has_any(builder, x, bits):
    """Mask of the lanes in which any of these bits is set."""
    common = builder.and_(builder.bitcast(x, bits.type), bits)
    return builder.icmp_unsigned("!=", common, ir.Constant(bits.type, None))


def emit_flush(builder, x):
    """x, or 0 in the lanes where it is below 2**-119, or 2**-1015."""
    is_kept = _emit_has_any(builder, x, _exponent_bits(x.type, _N_LOST))
    return builder.select(is_kept, x, ir.Constant(x.type, None))


def emit_flush_factor(builder, x):
    """x, or 0 in the lanes where its square were subnormal: below 2**-63, or 2**-511."""
    return builder.select(_emit_is_factor(builder, x), x, ir.Constant(x.type, None))


def _emit_is_factor(builder, x):
    """Mask of the lanes in which one of the highest two bits of the exponent is set."""
    n_exponent_bits = 8 if isinstance(x.type.element, ir.FloatType) else 11
    return _emit_has_any(builder, x, _exponent_bits(x.type, n_exponent_bits - 2))


def emit_flushed_product(builder, x, y):
    """x * y, or 0 in the lanes where `emit_flush_factor` makes x zero."""
    if VECTOR_BYTES < 64:
        return builder.fmul(emit_flush_factor(builder, x), y)
    # In lanes that a mask leaves out AVX-512 multiplies nothing: the mask of the product takes no instruction.
    return builder.select(_emit_is_factor(builder, x), builder.fmul(x, y), ir.Constant(x.type, None))


def emit_reduction(builder, value, combine):
    """Reduce a vector by a fixed tree: the upper half onto the lower, until one lane is left."""
    while value.type.count > 1:
        value = combine(*emit_split(builder, value))
    return builder.extract_element(value, I32(0))
