"""What the diagnosis of a fit's health wants to know beside its record: of the layers, and of the training data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from fastbp.architecture import activation_of
from fastbp.blocks import numbers, row_blocks
from fastbp.diagnosis import Column, DataFacts, LayerFacts
from fastbp.kernels.losses import VALUES

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastbp.architecture import Architecture
    from fastbp.network import Network
    from fastbp.sources import Data
    from fastbp.sparse import Features

__all__ = ["data_facts", "layer_facts"]

Rows: TypeAlias = npt.NDArray[np.float64]

_ROWS = 256  # at most, for the scales of data


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
    """Return what is to be known of training data, as the network sees them."""
    scaling = network.scaling
    y = _columns_of(data.y, scaling.of_targets) if network.targets == VALUES else ()
    return DataFacts(_constant_columns(data.x), _columns_of(data.x, scaling.of_inputs), y)


def _constant_columns(x: Features) -> tuple[int, ...]:
    """Return the columns with one value in all rows, of several; nearly every column shows within the first block."""
    first = numbers(x[:1])[0]
    columns = np.arange(x.shape[1])
    for _, block in row_blocks(x):
        columns = columns[(block[:, columns] == first[columns]).all(axis=0)]
        if columns.size == 0:
            break
    return tuple(columns.tolist()) if x.shape[0] > 1 else ()


def _columns_of(array: Features, scaled: Callable[[Rows], Rows]) -> tuple[Column, ...]:
    rows = scaled(numbers(array[:: -(-array.shape[0] // _ROWS)]).astype(np.float64))
    with np.errstate(all="ignore"):
        sizes, spreads = np.sqrt(np.square(rows).mean(axis=0)), rows.std(axis=0)
    return tuple([Column(*pair) for pair in zip(sizes.tolist(), spreads.tolist(), strict=True)])
