"""Panels: how activations and derivatives lie in memory.

A panel holds `panel_width` samples side by side, [feature][sample]; the last panel of a block is as narrow as the
samples that are left. The lanes of a vector then run over samples, and every feature starts a new row of them.
"""

from fastbp.kernels.simd import constant_of
from fastbp.kernels.target import lanes

# Two vectors per row of the register tile: two loads then serve a row of FMAs.
VECTORS = 2


def panel_width(dtype) -> int:
    """Samples (or outputs) side by side in one panel: the width of the register tile."""
    return VECTORS * lanes(dtype)


panel_of = constant_of(panel_width)
