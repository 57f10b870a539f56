"""What the diagnosis of a fit's health wants to know beside its record: of the layers, and of the training data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fastbp.architecture import activation_of
from fastbp.diagnosis import DataFacts, LayerFacts
from fastbp.health import facts_of
from fastbp.kernels.losses import VALUES

if TYPE_CHECKING:
    from fastbp.architecture import Architecture
    from fastbp.network import Network
    from fastbp.sources import Data

__all__ = ["data_facts", "layer_facts"]


def layer_facts(architecture: Architecture) -> tuple[LayerFacts, ...]:
    """Return what is to be known of each layer."""
    sizes, n_layers = architecture.layout.sizes, architecture.layout.n_layers
    facts = []
    for index, name in enumerate(architecture.activations):
        row = activation_of(name)
        n_sides = math.isfinite(row.flat_below) + math.isfinite(row.flat_above)
        n_params = (sizes[index] + 1) * sizes[index + 1]
        facts.append(LayerFacts(str(name), n_params, n_sides if index < n_layers - 1 else None))
    return tuple(facts)


def data_facts(network: Network, data: Data) -> DataFacts:
    """Return what is to be known of training data."""
    return facts_of(data.x, data.y if network.targets == VALUES else None)
