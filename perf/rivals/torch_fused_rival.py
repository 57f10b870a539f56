"""PyTorch with the fused kernel of Adam."""

from __future__ import annotations

from rivals import torch_rival


class Rival(torch_rival.Rival):
    fused = True
