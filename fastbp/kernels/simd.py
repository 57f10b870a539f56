"""Functions of SIMD vectors for Numba kernels: memory, arithmetic beyond the operators, reductions, raw pointers.

`load(pointer, index)` gives a `Vector` of `lanes(dtype)` elements; the operators of `vector` and the functions here
work on it lane by lane.

Arithmetic on subnormals is up to 100 times slower on some processors. Products are chains of multiply-adds, and keep
what they come to. Every other pass flushes to zero what it reads of their sums, and what it makes that could be so
small: by `flush`, or by `flush_factor` where factors could have such a product; -0 becomes 0 by the way. So no
activation, derivative or moment is subnormal, nor what users get to see. `least_kept` leaves a margin: what has passed
may be multiplied by any constant down to 1/128. The processor's mode (flush to zero) is left alone, as the same code
must give the same bits inside the user's program.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastbp.kernels.emit import (
    I64,
    emit_call,
    emit_first,
    emit_flush,
    emit_flush_factor,
    emit_flushed_product,
    emit_fma,
    emit_horner,
    emit_if_whole,
    emit_load,
    emit_opaque,
    emit_reduction,
    emit_store,
    emit_vector_pointer,
    llvm_suffix,
)
from fastbp.kernels.target import lanes
from fastbp.kernels.vector import Vector, mask_of, vector_behind, vector_of


def _accessors(vector_of_pointer):
    """load, load_first, store and store_first of the vectors that `vector_of_pointer` gives for a pointer."""

    @intrinsic
    def load(typingctx, pointer, index):
        """The vector at `pointer[index:]`."""
        vector = vector_of_pointer(pointer)

        def codegen(context, builder, sig, args):
            vector_type = context.get_value_type(vector)
            return emit_load(builder, emit_vector_pointer(builder, *args, vector_type), vector_type)

        return vector(pointer, types.intp), codegen

    @intrinsic
    def load_first(typingctx, pointer, index, n_left):
        """As `load`, of at most `n_left` elements; the other lanes are zero and their memory is not touched."""
        vector = vector_of_pointer(pointer)

        def codegen(context, builder, sig, args):
            vector_type = context.get_value_type(vector)
            mask = emit_first(builder, args[2], vector.n)
            return emit_load(builder, emit_vector_pointer(builder, args[0], args[1], vector_type), vector_type, mask)

        return vector(pointer, types.intp, types.intp), codegen

    @intrinsic
    def store(typingctx, pointer, index, value):
        """Write the vector `value` to `pointer[index:]`."""
        vector = vector_of_pointer(pointer)

        def codegen(context, builder, sig, args):
            pointer, index, value = args
            emit_store(builder, value, emit_vector_pointer(builder, pointer, index, value.type))
            return context.get_dummy_value()

        return types.void(pointer, types.intp, vector), codegen

    @intrinsic
    def store_first(typingctx, pointer, index, value, n_left):
        """As `store`, of the first `n_left` lanes only; the memory of the others is not touched."""
        vector = vector_of_pointer(pointer)

        def codegen(context, builder, sig, args):
            pointer, index, value, n_left = args
            mask = emit_first(builder, n_left, vector.n)
            emit_store(builder, value, emit_vector_pointer(builder, pointer, index, value.type), mask)
            return context.get_dummy_value()

        return types.void(pointer, types.intp, vector, types.intp), codegen

    return load, load_first, store, store_first


def _pair_behind(pointer):
    """The type of a vector of twice the length: two chains of instructions side by side hide their latency."""
    return Vector(pointer.dtype, 2 * lanes(pointer.dtype))


load, load_first, store, store_first = _accessors(vector_behind)
load_pair, load_first_pair, store_pair, store_first_pair = _accessors(_pair_behind)


@intrinsic
def load_upto(typingctx, pointer, index, n_left):
    """`load` where a whole vector is left, else `load_first`: masked stores are slow without AVX-512."""
    vector = vector_behind(pointer)

    def codegen(context, builder, sig, args):
        vector_type = context.get_value_type(vector)
        address = emit_vector_pointer(builder, args[0], args[1], vector_type)

        def partial(mask):
            return emit_load(builder, address, vector_type, mask)

        return emit_if_whole(builder, args[2], vector.n, lambda: emit_load(builder, address, vector_type), partial)

    return vector(pointer, types.intp, types.intp), codegen


@intrinsic
def store_upto(typingctx, pointer, index, value, n_left):
    """`store` where a whole vector is left, else `store_first`."""
    vector = vector_behind(pointer)

    def codegen(context, builder, sig, args):
        pointer, index, value, n_left = args
        address = emit_vector_pointer(builder, pointer, index, value.type)

        def partial(mask):
            emit_store(builder, value, address, mask)

        emit_if_whole(builder, n_left, vector.n, lambda: emit_store(builder, value, address), partial)
        return context.get_dummy_value()

    return types.void(pointer, types.intp, vector, types.intp), codegen


@intrinsic
def first_lanes(typingctx, like, n_left):
    """Mask of the first `n_left` lanes of a vector such as `like`."""
    mask = mask_of(like)

    def codegen(context, builder, sig, args):
        return emit_first(builder, args[1], like.n)

    return mask(like, types.intp), codegen


def constant_of(of_dtype):
    """A function of a pointer that is the compile-time constant `of_dtype(dtype)` of what lies behind it."""

    @intrinsic
    def constant(typingctx, pointer):
        def codegen(context, builder, sig, args):
            return I64(of_dtype(pointer.dtype))

        return types.intp(pointer), codegen

    return constant


lanes_of = constant_of(lanes)  # elements of a vector


@intrinsic
def fma(typingctx, x, y, z):
    """x * y + z, rounded once where the target has FMA, else twice."""
    vector = vector_of(x, y, z)

    def codegen(context, builder, sig, args):
        return emit_fma(builder, *args)

    return vector(vector, vector, vector), codegen


def _unary(llvm_name, doc):
    def function(typingctx, x):
        def codegen(context, builder, sig, args):
            return emit_call(builder, f"llvm.{llvm_name}.{llvm_suffix(args[0].type)}", args[0].type, *args)

        return x(x), codegen

    function.__doc__ = doc
    return intrinsic(function)


sqrt = _unary("sqrt", "Square root, correctly rounded.")
absolute = _unary("fabs", "Absolute value.")
floor = _unary("floor", "Largest integer not above x.")
round_even = _unary("rint", "Nearest integer, ties to even.")


@intrinsic
def where(typingctx, mask, x, y):
    """x where `mask`, else y."""
    vector = vector_of(x, y)

    def codegen(context, builder, sig, args):
        return builder.select(*args)

    return vector(mask, vector, vector), codegen


def _emit_extremum(symbol):
    def emit(builder, dtype, x, y):
        # `x < y ? x : y` is one instruction on x86; a NaN in x gives y.
        if isinstance(dtype, types.Float):
            return builder.select(builder.fcmp_ordered(symbol, x, y), x, y)
        return builder.select(builder.icmp_signed(symbol, x, y), x, y)

    return emit


@intrinsic
def minimum(typingctx, x, y):
    """The smaller of x and y; y where x is NaN or both are equal."""
    vector = vector_of(x, y)

    def codegen(context, builder, sig, args):
        return _emit_extremum("<")(builder, vector.dtype, *args)

    return vector(vector, vector), codegen


@intrinsic
def maximum(typingctx, x, y):
    """The larger of x and y; y where x is NaN or both are equal."""
    vector = vector_of(x, y)

    def codegen(context, builder, sig, args):
        return _emit_extremum(">")(builder, vector.dtype, *args)

    return vector(vector, vector), codegen


@intrinsic
def lane_numbers(typingctx, pointer):
    """0, 1, 2, ... in the lanes of a vector behind `pointer`."""
    vector = vector_behind(pointer)

    def codegen(context, builder, sig, args):
        return ir.Constant(context.get_value_type(vector), list(range(vector.n)))

    return vector(pointer), codegen


@intrinsic
def splat(typingctx, like, value):
    """`value` in every lane of a vector such as `like` (a vector, or a pointer to its elements)."""
    vector = like if isinstance(like, Vector) else vector_behind(like)

    def codegen(context, builder, sig, args):
        return args[1]

    return vector(like, vector), codegen


def _twin(vector):
    """The integer vector of the same bits as a float vector, or the float vector of an integer one."""
    bits = vector.dtype.bitwidth
    other = types.Integer if isinstance(vector.dtype, types.Float) else types.Float
    return Vector(getattr(types, ("int" if other is types.Integer else "float") + str(bits)), vector.n)


@intrinsic
def bitcast(typingctx, x):
    """The same bits as integers (of a float vector) or floats (of an integer one)."""
    twin = _twin(x)

    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], context.get_value_type(twin))

    return twin(x), codegen


@intrinsic
def convert(typingctx, x):
    """Float lanes truncated to integers of the same width, or integer lanes as floats."""
    twin = _twin(x)

    def codegen(context, builder, sig, args):
        emit = builder.fptosi if isinstance(x.dtype, types.Float) else builder.sitofp
        return emit(args[0], context.get_value_type(twin))

    return twin(x), codegen


@intrinsic
def is_finite(typingctx, x):
    """Mask of the lanes that are neither infinite nor NaN."""

    def codegen(context, builder, sig, args):
        zero = ir.Constant(args[0].type, None)
        difference = builder.fsub(*args, *args)  # 0, or NaN of infinities and NaN
        return builder.fcmp_ordered("==", difference, zero)

    return mask_of(x)(x), codegen


@intrinsic
def flush(typingctx, x):
    """x, or 0 where its magnitude is less than `least_kept`."""

    def codegen(context, builder, sig, args):
        return emit_flush(builder, *args)

    return x(x), codegen


@intrinsic
def flush_factor(typingctx, x):
    """x, or 0 where its magnitude is less than `root_of_tiny`: no product of two such numbers is subnormal."""

    def codegen(context, builder, sig, args):
        return emit_flush_factor(builder, *args)

    return x(x), codegen


@intrinsic
def flushed_product(typingctx, x, y):
    """x * y, or 0 where the magnitude of x is less than `root_of_tiny`."""

    def codegen(context, builder, sig, args):
        return emit_flushed_product(builder, *args)

    return x(x, x), codegen


@intrinsic
def copysign(typingctx, x, y):
    """The magnitude of x with the sign of y."""

    def codegen(context, builder, sig, args):
        return emit_call(builder, f"llvm.copysign.{llvm_suffix(args[0].type)}", args[0].type, *args)

    return x(x, x), codegen


def by_dtype(float32, float64):
    """A function of a vector or pointer: the first constant where its elements are float32, else the second.

    A scalar of that dtype, or an `intp` where the constants are integers.
    """

    @intrinsic
    def constant(typingctx, like):
        value = float32 if like.dtype == types.float32 else float64
        scalar = types.intp if isinstance(value, int) else like.dtype

        def codegen(context, builder, sig, args):
            return context.get_constant(scalar, value)

        return scalar(like), codegen

    return constant


smallest_normal = by_dtype(2.0**-126, 2.0**-1022)
least_kept = by_dtype(2.0**-119, 2.0**-1015)
root_of_tiny = by_dtype(2.0**-63, 2.0**-511)


def polynomial(float32, float64):
    """A function of a vector: the polynomial with these coefficients for its dtype, lowest power first.

    By Horner's rule; a long one in blocks, whose chains of FMAs run side by side (1.1 to 1.4 times faster).
    """

    @intrinsic
    def evaluate(typingctx, x):
        coefficients, least = (float32, 2.0**-50) if x.dtype == types.float32 else (float64, 2.0**-120)
        size = 4 if 8 < len(coefficients) <= 12 else 8
        blocks = [coefficients[start : start + size] for start in range(0, len(coefficients), size)]

        def codegen(context, builder, sig, args):
            *lower, value = [emit_horner(builder, args[0], block) for block in blocks]
            # Added where it does not count beside 1, so that no power is subnormal.
            power = emit_fma(builder, args[0], args[0], ir.Constant(args[0].type, [least] * x.n))
            for _ in range(size.bit_length() - 2):
                power = builder.fmul(power, power)
            for block in reversed(lower):
                value = emit_fma(builder, value, power, block)
            return value

        return x(x), codegen

    return evaluate


@intrinsic
def sum_lanes(typingctx, x):
    """The sum of all lanes, by a fixed tree."""

    def codegen(context, builder, sig, args):
        combine = builder.fadd if isinstance(x.dtype, types.Float) else builder.add
        return emit_reduction(builder, args[0], combine)

    return x.dtype(x), codegen


@intrinsic
def any_lane(typingctx, mask):
    """Whether any lane of `mask` is set."""

    def codegen(context, builder, sig, args):
        return emit_reduction(builder, args[0], builder.or_)

    return types.boolean(mask), codegen


@intrinsic
def offset(typingctx, pointer, index):
    """The pointer `index` elements further on."""

    def codegen(context, builder, sig, args):
        return builder.gep(args[0], [args[1]])

    return pointer(pointer, types.intp), codegen


@intrinsic
def pointer_at(typingctx, address, like):
    """The integer `address` as a pointer of the type of `like`."""

    def codegen(context, builder, sig, args):
        return builder.inttoptr(args[0], context.get_value_type(like))

    return like(types.intp, like), codegen


@intrinsic
def address_of(typingctx, pointer):
    """The integer address of a pointer."""

    def codegen(context, builder, sig, args):
        return builder.ptrtoint(args[0], I64)

    return types.intp(pointer), codegen


@intrinsic
def opaque(typingctx, x):
    """x itself, of which LLVM knows nothing."""

    def codegen(context, builder, sig, args):
        return emit_opaque(builder, args[0])

    return x(x), codegen
