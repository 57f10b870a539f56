"""Leaves made of users' own functions of numbers: activations, losses and update rules.

A function is compiled for whole vectors where it is written with operators and with `formulas`; one that branches, or
calls something else, is called for each lane. What goes in and comes out is flushed as everywhere: no derivative,
activation or moment is subnormal.
"""

import hashlib
import uuid
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastbp._jit import inline, leaf
from fastbp._jit.cache import identity
from fastbp._jit.uninterrupted import uninterrupted
from fastbp.kernels.activations import Activation, elementwise_backward, elementwise_forward
from fastbp.kernels.losses import Loss, loss_of_outputs
from fastbp.kernels.simd import (
    first_lanes,
    flush,
    flush_factor,
    flushed_product,
    lanes_of,
    load_upto,
    offset,
    splat,
    store_upto,
    where,
)
from fastbp.kernels.target import lanes
from fastbp.kernels.updates import N_COEFFICIENTS, Rule, coefficients_signature, learning_rate, update_rule
from fastbp.kernels.vector import Vector

_FLOATS = types.float32, types.float64


def activation(f: Any, df: Any, reads_z: bool, initializer: str) -> Activation:
    """Return the row of h = f(z) with derivative df(z, h), two adopted functions.

    Raises
    ------
    NumbaError
        If one of them compiles neither for vectors nor for numbers.
    """
    value, derivative, code = _of_vectors(_first_of_two(f), 2), _of_vectors(df, 2), _code_of(f, df)

    def forward(z, numbers):
        return flush(splat(z, value(z, z)))

    def backward(d, z, h, numbers):
        return flushed_product(d, flush_factor(splat(z, derivative(z, h))))

    return Activation(
        elementwise_forward(f"own_forward_{code}", _inline(forward, "own_forward_formula")),
        elementwise_backward(f"own_backward_{code}", _inline(backward, "own_backward_formula")),
        keeps_z=reads_z,
        initializer=initializer,
    )


def loss(f: Any, df: Any) -> Loss:
    """Return the row of the mean over outputs of f(output, target), with derivative df(output, target); as above."""
    value, derivative = _of_vectors(f, 2), _of_vectors(df, 2)

    def of_output(output, target, numbers):
        o, t = flush(output), flush(target)
        return splat(o, value(o, t)), flush_factor(splat(o, derivative(o, t))), splat(o, 0.0)

    return Loss(*loss_of_outputs(f"own_loss_{_code_of(f, df)}", _inline(of_output, "own_loss_formula")))


def rule(f: Any, coefficients: Any, n_moments: int, n_constants: int) -> Rule:
    """Return the row of a rule f(p, g, moments, numbers), adopted functions as `fastbp.UpdateRule` has them.

    Raises
    ------
    NumbaError
        If one of them does not compile.
    TypeError
        If one of them returns something else than it has to.
    """
    n_coefficients = 1 if coefficients is None else _count_of_coefficients(coefficients, n_constants)
    n_numbers = n_coefficients + n_constants
    if _is_of_vectors(f, n_moments, n_numbers):
        update = _update_of_vectors(f, n_moments)
    else:
        _check_moments(f, n_moments, n_numbers)
        update = _update_of_lanes(f, n_moments)
    name = f"own_rule_{_code_of(f)}_{n_moments}_{n_coefficients}_{n_constants}"
    row = update_rule(name, _numbers_of(n_coefficients, n_constants), update)
    return Rule(row, learning_rate if coefficients is None else _coefficients_leaf(coefficients, n_constants))


def _inline(function: Callable[..., Any], name: str) -> Any:
    """Return a helper under the name that its callers are kept on disk by."""
    function.__name__ = function.__qualname__ = name
    return inline(function)


def _code_of(*functions: Any) -> str:
    """Return what tells leaves of different functions apart: files of several processes meet in one, by their names."""
    texts = [identity(function) or uuid.uuid4().hex for function in functions]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _result(function: Any, *arguments: Any) -> Any:
    """Return the type that a helper returns for arguments of these types; NumbaError if it does not compile."""

    def compiled() -> Any:
        function.compile(arguments)
        return function.overloads[arguments].signature.return_type

    return uninterrupted(compiled)


def _compiles(function: Any, *arguments: Any) -> bool:
    try:
        return _result(function, *arguments) in (arguments[0], *_FLOATS, types.int64)
    except Exception:  # what vectors have not got may raise whatever it likes
        return False


def _of_vectors(function: Any, n: int) -> Any:
    """Return a function of two vectors, by itself if it takes them, or else by calls for each lane."""
    if all(_compiles(function, *[Vector(T, 2 * lanes(T.name))] * n) for T in _FLOATS):
        return function
    for T in _FLOATS:
        result = _result(function, *[T] * n)
        if not isinstance(result, (types.Float, types.Integer, types.Boolean)):
            raise TypeError(f"it must return a number, got {result}")
    return _for_each_lane(function)


@intrinsic
def _on_stack(typingctx, vector):
    """A pointer to a copy of a vector on the stack."""

    def codegen(context, builder, sig, args):
        place = cgutils.alloca_once(builder, args[0].type)
        builder.store(args[0], place)
        return builder.bitcast(place, context.get_value_type(sig.return_type))

    return types.CPointer(vector.dtype)(vector), codegen


@intrinsic
def _from_stack(typingctx, pointer, like):
    """The vector that lies at a pointer of `_on_stack`."""

    def codegen(context, builder, sig, args):
        return builder.load(builder.bitcast(args[0], args[1].type.as_pointer()))

    return like(pointer, like), codegen


@intrinsic
def _width_of(typingctx, vector):
    """How many lanes a vector has."""

    def codegen(context, builder, sig, args):
        return ir.Constant(ir.IntType(64), vector.n)

    return types.intp(vector), codegen


def _for_each_lane(function: Any) -> Any:
    def formula(a, b):
        a_lanes, b_lanes = _on_stack(a), _on_stack(b)
        for i in range(_width_of(a)):
            a_lanes[i] = function(a_lanes[i], b_lanes[i])
        return _from_stack(a_lanes, a)

    return _inline(formula, "for_each_lane")


def _first_of_two(function: Any) -> Any:
    def formula(a, b):
        return function(a)

    return _inline(formula, "first_of_two")


def _is_of_vectors(f: Any, n_moments: int, n_numbers: int) -> bool:
    """Return whether a rule takes vectors."""
    try:
        for T in _FLOATS:
            _check_moments(f, n_moments, n_numbers, Vector(T, lanes(T.name)))
    except Exception:
        return False
    return True


def _check_moments(f: Any, n_moments: int, n_numbers: int, kind: Any = None) -> None:
    """Raise a TypeError unless a rule returns a parameter and a tuple of moments, for vectors or numbers alike."""
    for T in _FLOATS if kind is None else (kind,):
        moments, numbers = types.UniTuple(T, n_moments), types.UniTuple(types.float64, n_numbers)
        result = _result(f, T, T, moments, numbers)
        pair = tuple(result) if isinstance(result, types.BaseTuple) else ()
        after = tuple(pair[1]) if len(pair) == 2 and isinstance(pair[1], types.BaseTuple) else None
        numeric = (T, types.float32, types.float64, types.int64)
        if after is None or len(after) != n_moments or pair[0] not in numeric or set(after) - set(numeric):
            expected = f"a parameter and a tuple of {n_moments} moments"
            raise TypeError(f"it must return {expected}, got {result}")


def _count_of_coefficients(function: Any, n_constants: int) -> int:
    """Return how many coefficients a function returns; a TypeError unless it is a tuple of few numbers."""
    result = _result(function, types.float64, types.int64, types.UniTuple(types.float64, n_constants))
    n = len(result) if isinstance(result, types.BaseTuple) else 0
    if not 1 <= n <= N_COEFFICIENTS or not all(isinstance(each, types.Number) for each in result):
        raise TypeError(f"coefficients must return a tuple of 1 to {N_COEFFICIENTS} numbers, got {result}")
    return n


def _tuple_of(n: int, read: Any, name: str) -> Any:
    """Return a helper of anything: the tuple of n results of `read`, with the number of each as its last argument."""
    if n == 0:

        def items(*of):
            return ()
    elif n == 1:

        def items(*of):
            return (read(0, *of),)
    else:
        before, last = _tuple_of(n - 1, read, name), n - 1

        def items(*of):
            return before(*of) + (read(last, *of),)  # noqa: RUF005

    return _inline(items, f"{name}_{n}")


@inline
def _number(k, pointer):
    return pointer[k]


@inline
def _moment(k, state, state_stride, i, left):
    return load_upto(offset(state, k * state_stride), i, left)


@inline
def _moment_of_lane(k, state, state_stride, i):
    return state[k * state_stride + i]


@inline
def _store_moment(state, state_stride, k, i, left, value):
    place = offset(state, k * state_stride)
    store_upto(place, i, flush(splat(load_upto(place, i, left), value)), left)


@inline
def _store_moment_of_lane(state, state_stride, k, i, left, value):
    state[k * state_stride + i] = value


@inline
def _store_number(pointer, unused_stride, k, unused, left, value):
    pointer[k] = value


def _write(n: int, store: Any, name: str) -> Any:
    """Return a helper that stores the first n items of a tuple."""
    if n == 0:

        def items(into, stride, i, left, values):
            pass
    else:
        before, last = _write(n - 1, store, name), n - 1

        def items(into, stride, i, left, values):
            before(into, stride, i, left, values)
            store(into, stride, last, i, left, values[last])

    return _inline(items, f"{name}_{n}")


def _numbers_of(n_coefficients: int, n_constants: int) -> Any:
    """Return the helper that makes the numbers of a rule of its coefficients and its constants, all float64."""
    of_coefficients = _tuple_of(n_coefficients, _number, "own_coefficients")
    of_constants = _tuple_of(n_constants, _number, "own_constants")

    def numbers(params, constants, coefficients):
        return of_coefficients(coefficients) + of_constants(constants)

    return _inline(numbers, "own_numbers")


def _update_of_vectors(f: Any, n_moments: int) -> Any:
    read, write = _tuple_of(n_moments, _moment, "own_moments"), _write(n_moments, _store_moment, "own_new_moments")

    def update(params, grads, state, state_stride, i, g_i, left, numbers):
        p, g = load_upto(params, i, left), flush_factor(load_upto(grads, g_i, left))
        after, moments = f(p, g, read(state, state_stride, i, left), numbers)
        after = where(first_lanes(p, left), flush(splat(p, after)), 0.0)
        write(state, state_stride, i, left, moments)
        store_upto(params, i, after, left)
        return after

    return _inline(update, "own_update")


def _update_of_lanes(f: Any, n_moments: int) -> Any:
    read = _tuple_of(n_moments, _moment_of_lane, "own_moments_of_lane")
    write = _write(n_moments, _store_moment_of_lane, "own_new_moments_of_lane")
    flushed = _write(n_moments, _flush_moment, "own_flushed_moments")

    def update(params, grads, state, state_stride, i, g_i, left, numbers):
        g = _on_stack(flush_factor(load_upto(grads, g_i, left)))
        for lane in range(min(left, lanes_of(params))):
            at = i + lane
            after, moments = f(params[at], g[lane], read(state, state_stride, at), numbers)
            params[at] = after
            write(state, state_stride, at, left, moments)
        flushed(state, state_stride, i, left, numbers)
        p = flush(load_upto(params, i, left))
        store_upto(params, i, p, left)
        return p

    return _inline(update, "own_update_of_lanes")


@inline
def _flush_moment(state, state_stride, k, i, left, unused):
    place = offset(state, k * state_stride)
    store_upto(place, i, flush(load_upto(place, i, left)), left)


def _coefficients_leaf(function: Any, n_constants: int) -> Any:
    read = _tuple_of(n_constants, _number, "own_constants")
    n = _count_of_coefficients(function, n_constants)
    write = _write(n, _store_number, "own_coefficients")

    def coefficients_of(rate, step, constants, coefficients):
        write(coefficients, 0, 0, 0, function(rate, step + 1, read(constants)))

    coefficients_of.__name__ = coefficients_of.__qualname__ = f"own_coefficients_{_code_of(function)}_{n_constants}"
    return leaf(coefficients_signature)(coefficients_of)
