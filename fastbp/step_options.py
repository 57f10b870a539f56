"""What a user says of a step beside its optimizer, as numbers for each layer of a network."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fastbp import checks
from fastbp.kernels.losses import FRACTIONS, LABELS
from fastbp.regularization import regularized
from fastbp.shaping import PLAIN, Group, LayerShaping, Shaping

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fastbp.network import Network
    from fastbp.optimizers import Optimizer
    from fastbp.regularization import Regularizer

__all__ = ["shaping_of", "with_decay"]


def shaping_of(
    network: Network,
    seed: int,
    regularize: Regularizer | Iterable[Regularizer],
    clip_norm: float | None,
    clip_value: float | None,
    ema: float | None,
    rate_factors: Sequence[tuple[float, float]] | None,
) -> Shaping:
    """Return what shapes a step of this network beside the optimizer, as `Trainer`'s parameters of these names say."""
    n_layers = network.architecture.layout.n_layers
    factors = [(1.0, 1.0)] * n_layers if rate_factors is None else _checked_factors(rate_factors, n_layers)
    layers = [LayerShaping(Group(rate_factor=of_w), Group(rate_factor=of_b)) for of_w, of_b in factors]
    shaping = regularized(Shaping(layers=tuple(layers)), regularize, network.targets in (FRACTIONS, LABELS))
    shaping = shaping._replace(
        clip_norm=_positive_or_none(clip_norm, "clip_norm"),
        clip_value=_positive_or_none(clip_value, "clip_value"),
        average_share=0.0 if ema is None else 1.0 - checks.finite_float(ema, "ema", low=0.0, high=1.0, high_open=True),
    )
    return PLAIN if shaping == Shaping(layers=(LayerShaping(),) * n_layers) else shaping.seeded(seed)


def with_decay(shaping: Shaping, optimizer: Optimizer, network: Network) -> Shaping:
    """Return what shapes a step with the decay that the gradient of this optimizer has, if it has any."""
    decay, of_biases = optimizer.coupled_decay, getattr(optimizer, "decay_biases", False)
    if decay == 0.0:
        return shaping
    layers = [
        layer._replace(
            of_weights=layer.of_weights._replace(decay=decay),
            of_biases=layer.of_biases._replace(decay=decay * of_biases),
        )
        for layer in shaping.layers or (LayerShaping(),) * network.architecture.layout.n_layers
    ]
    return shaping._replace(layers=tuple(layers))


def _positive_or_none(value: float | None, name: str) -> float:
    """Return a positive number, infinity for None."""
    return math.inf if value is None else checks.finite_float(value, name, low=0.0, low_open=True)


def _checked_factors(rate_factors: object, n_layers: int) -> list[tuple[float, float]]:
    """Return a pair of factors for each layer."""
    expected = f"a sequence of {n_layers} pairs (weights, biases), one for each layer"
    try:
        pairs = [tuple(pair) for pair in rate_factors]  # type: ignore[attr-defined]
    except TypeError:
        raise TypeError(f"rate_factors must be {expected}, got {checks.shown(rate_factors)}") from None
    if len(pairs) != n_layers or True in [len(pair) != 2 for pair in pairs]:
        raise ValueError(f"rate_factors must be {expected}, got {checks.shown(rate_factors)}")
    return [
        (
            checks.finite_float(of_w, f"rate_factors[{index}][0]", low=0.0),
            checks.finite_float(of_b, f"rate_factors[{index}][1]", low=0.0),
        )
        for index, (of_w, of_b) in enumerate(pairs)
    ]
