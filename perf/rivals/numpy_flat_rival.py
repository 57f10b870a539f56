"""As `numpy_rival`, with all parameters in one vector: Adam takes one call per operation instead of one per array."""

from __future__ import annotations

from rivals import numpy_rival


class Rival(numpy_rival.Rival):
    @staticmethod
    def _arrays(flat_state: tuple, per_layer: list) -> list[tuple]:
        return [flat_state]
