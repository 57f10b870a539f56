"""Subnormal numbers: the grid of numbers near and far from them, where they are, and whether arithmetic met one."""

import platform

import numpy as np
import pytest
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastbp._jit import leaf
from fastbp.kernels.emit import I8, emit_call
from fastbp.kernels.target import HAS_FMA
from leaves import call

# Without FMA the small products inside of a multiply-add are results of their own.
needs_status_flags = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or not HAS_FMA, reason="reads the status flags of x86 processors"
)

_DENORMAL, _UNDERFLOW = 1 << 1, 1 << 4  # of the status flags in MXCSR: of an operand, of a result
_ALL_FLAGS = 0x3F


def grid(dtype):
    """Numbers of both signs from 0 to 750, and of every magnitude down to the smallest subnormal."""
    limits = np.finfo(dtype)
    plain = np.concatenate([np.linspace(0, 40, 401), np.linspace(40, 750, 1421)])
    least = np.log2(float(limits.smallest_subnormal))
    with np.errstate(under="ignore"):
        small = np.exp2(np.linspace(least, 0, 1200)).astype(dtype)
        values = np.concatenate([plain.astype(dtype), small, np.array([1e-30, 1e-38, 1e-40, 1e-310], dtype)])
    return np.concatenate([values, -values])


def kept(values):
    """What is left of values that have been stored: the tiny ones are zero."""
    exponent = -119 if values.dtype == np.float32 else -1015
    return np.where(np.abs(values) < values.dtype.type(2.0**exponent), values.dtype.type(0), values)


def are_subnormal(values):
    """Mask of the subnormals."""
    return (values != 0) & (np.abs(values) < np.finfo(values.dtype).tiny)


def assert_no_subnormals(values, message=""):
    found = np.flatnonzero(are_subnormal(values))
    assert found.size == 0, f"{message}: {found.size} subnormals, first {values.ravel()[found[0]]} at {found[0]}"


def _status(name):
    @intrinsic
    def access(typingctx, word):
        def codegen(context, builder, sig, args):
            emit_call(builder, name, ir.VoidType(), builder.bitcast(args[0], I8.as_pointer()))
            return context.get_dummy_value()

        return types.void(word), codegen

    @leaf(lambda T: types.void(types.CPointer(types.int32)))
    def body(word):
        access(word)

    return body


_read, _write = _status("llvm.x86.sse.stmxcsr"), _status("llvm.x86.sse.ldmxcsr")


class StatusFlags:
    """Context in which arithmetic on subnormals leaves a trace: `operand` and `result` say whether there were any."""

    def __enter__(self):
        self._word = np.zeros(1, np.int32)
        call(_read, "float32", self._word)
        self._word[0] &= ~_ALL_FLAGS
        call(_write, "float32", self._word)
        return self

    def __exit__(self, *error):
        call(_read, "float32", self._word)
        self.operand, self.result = (bool(self._word[0] & flag) for flag in (_DENORMAL, _UNDERFLOW))
