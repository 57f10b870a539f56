"""What the CPU that Numba compiles for can do: vector width, registers, fused multiply-add."""

from functools import cache

import numpy as np
from numba.core.registry import cpu_target


@cache
def _target() -> tuple[int, int, bool]:
    """Vector bytes, registers and hardware FMA of the CPU that Numba compiles for (`NUMBA_CPU_NAME` honoured)."""
    triple, _, features = cpu_target.target_context.codegen().magic_tuple()
    enabled = {feature[1:] for feature in features.split(",") if feature.startswith("+")}
    if triple.startswith(("aarch64", "arm64")):
        return 16, 32, True
    if "avx512f" in enabled:
        return 64, 32, True
    return (32 if "avx" in enabled else 16), 16, "fma" in enabled


VECTOR_BYTES, N_REGISTERS, HAS_FMA = _target()


def cpu_family() -> str:
    """The name of the instruction set: x86, arm64 or another that LLVM uses."""
    name = cpu_target.target_context.codegen().magic_tuple()[0].split("-")[0]
    return {"x86_64": "x86", "i386": "x86", "i686": "x86", "aarch64": "arm64"}.get(name, name)


def lanes(dtype) -> int:
    """Elements of `dtype` (NumPy or Numba) in one vector register."""
    bits = getattr(dtype, "bitwidth", None)
    return VECTOR_BYTES // (bits // 8 if bits else np.dtype(dtype).itemsize)
