"""Not a network: the multiply-add peak of one core, measured between the others. A run is worth its GFLOP/s."""

from __future__ import annotations

import numba

from harness import peak, shapes


class Rival:
    def __init__(self, shape: shapes.Shape, dtype: str, threads: int | None, shuffle: bool) -> None:
        self.dtype = dtype

    def measure(self) -> float:
        return peak.measure(self.dtype)

    @staticmethod
    def describe() -> str:
        return f"FMA chains in {8 * peak.vector_bytes()}-bit registers, Numba {numba.__version__}"
