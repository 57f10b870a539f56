"""The multiply-add peak of one core: independent FMA chains in registers, no memory."""

from __future__ import annotations

import time

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

CHAINS = 12  # 2 FMAs per cycle with a latency of 4 to 5 need 10; 16 registers hold 12 and their two operands


def target_features() -> set[str]:
    """Return the instruction sets of the processor that Numba compiles for (`NUMBA_CPU_NAME` honoured)."""
    features = cpu_target.target_context.codegen().magic_tuple()[2]
    return {feature[1:] for feature in features.split(",") if feature.startswith("+")}


def vector_bytes() -> int:
    """Return the width of that processor's vector registers."""
    features = target_features()
    if "avx512f" in features:
        return 64
    return 32 if "avx" in features else 16


@intrinsic
def _fma_chains(typingctx, n, start):
    """Run n rounds of `CHAINS` independent x = x * a + b on whole vectors; return one lane of their sum."""

    def codegen(context, builder, sig, args):
        element = context.get_value_type(start)
        lanes = vector_bytes() // (8 if start == types.float64 else 4)
        vector = ir.VectorType(element, lanes)
        a, b = (ir.Constant(vector, [value] * lanes) for value in (0.5, 1.0))
        if "fma" in target_features() or vector_bytes() == 64:
            suffix = f"v{lanes}f{64 if start == types.float64 else 32}"
            fma = builder.module.declare_intrinsic(f"llvm.fma.{suffix}", (), ir.FunctionType(vector, [vector] * 3))
            advance = lambda x: builder.call(fma, [x, a, b])  # noqa: E731
        else:
            advance = lambda x: builder.fadd(builder.fmul(x, a), b)  # noqa: E731
        entry, loop, done = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("done")
        seed = builder.insert_element(ir.Constant(vector, ir.Undefined), args[1], ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        seed = builder.shuffle_vector(seed, seed, zeros)
        starts = [builder.fadd(seed, ir.Constant(vector, [float(chain)] * lanes)) for chain in range(CHAINS)]
        builder.branch(loop)

        builder.position_at_end(loop)
        i = builder.phi(args[0].type)
        i.add_incoming(args[0].type(0), entry)
        chains = [builder.phi(vector) for _ in range(CHAINS)]
        next_chains = [advance(chain) for chain in chains]
        for chain, first, following in zip(chains, starts, next_chains, strict=True):
            chain.add_incoming(first, entry)
            chain.add_incoming(following, loop)
        next_i = builder.add(i, args[0].type(1))
        i.add_incoming(next_i, loop)
        builder.cbranch(builder.icmp_signed("<", next_i, args[0]), loop, done)

        builder.position_at_end(done)
        total = next_chains[0]
        for chain in next_chains[1:]:
            total = builder.fadd(total, chain)
        return builder.extract_element(total, ir.IntType(32)(0))

    return start(n, start), codegen


@njit
def _run(n, start):
    return _fma_chains(n, start)


def measure(dtype: str, seconds: float = 0.05) -> float:
    """Return GFLOP/s of one core, over at least `seconds`."""
    start = types.float64 if dtype == "float64" else types.float32
    one = np.dtype(dtype).type(1)
    lanes = vector_bytes() // (start.bitwidth // 8)
    n = 1000
    _run(n, one)
    while True:
        begin = time.perf_counter()
        _run(n, one)
        elapsed = time.perf_counter() - begin
        if elapsed >= seconds:
            return 2 * lanes * CHAINS * n / elapsed / 1e9
        n *= 2


if __name__ == "__main__":
    for name in ("float32", "float64"):
        print(f"{name}: {measure(name):.1f} GFLOP/s per core, {8 * vector_bytes()}-bit vectors")
