"""What shapes a step beside its optimizer, resolved for a network: a number for every layer, whoever has given it."""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = ["PLAIN", "Group", "LayerShaping", "Shaping"]


class Group(NamedTuple):
    """A group of parameters, the weights or the biases of a layer, with the fields of the table of that name."""

    l1: float = 0.0
    l1_per_batch: float = 0.0
    l2: float = 0.0
    l2_per_batch: float = 0.0
    decay: float = 0.0
    rate_factor: float = 1.0

    @property
    def is_active(self) -> bool:
        """Whether it adds anything to a gradient."""
        return True in [rate > 0.0 for rate in self[:5]]


class LayerShaping(NamedTuple):
    """Of one layer. dropout : of its inputs. max_norm : of each unit's weights."""

    of_weights: Group = Group()
    of_biases: Group = Group()
    dropout: float = 0.0
    max_norm: float = math.inf


class Shaping(NamedTuple):
    """Of all steps of a run. layers : of each layer, or empty where there is nothing to say of any.

    seed : of what is drawn at random, 0 if nothing is.
    """

    layers: tuple[LayerShaping, ...] = ()
    noise: float = 0.0
    smoothing: float = 0.0
    clip_value: float = math.inf
    clip_norm: float = math.inf
    average_share: float = 0.0
    seed: int = 0

    def seeded(self, seed: int) -> Shaping:
        """Return this with a seed, where anything is drawn at random; `PLAIN` itself if it is nothing at all."""
        shaping = self._replace(seed=seed if self.drops or self.noise > 0.0 else 0)
        return PLAIN if shaping == PLAIN else shaping

    def layer(self, index: int) -> LayerShaping:
        """Return what is said of a layer."""
        return self.layers[index] if self.layers else _NOTHING

    @property
    def penalizes(self) -> bool:
        """Whether anything is added to a gradient."""
        return True in [layer.of_weights.is_active or layer.of_biases.is_active for layer in self.layers]

    @property
    def drops(self) -> bool:
        """Whether units are dropped."""
        return True in [layer.dropout > 0.0 for layer in self.layers]

    @property
    def limits_norms(self) -> bool:
        """Whether weights have a largest norm."""
        return True in [layer.max_norm < math.inf for layer in self.layers]

    @property
    def has_rate_factors(self) -> bool:
        """Whether layers have learning rates of their own."""
        factors = [part.rate_factor for layer in self.layers for part in (layer.of_weights, layer.of_biases)]
        return True in [factor != 1.0 for factor in factors]

    @property
    def clips(self) -> bool:
        """Whether gradients are clipped, in any way."""
        return self.clip_value < math.inf or self.clips_norm

    @property
    def clips_norm(self) -> bool:
        """Whether the norm of the whole gradient is needed before the update."""
        return self.clip_norm < math.inf

    @property
    def averages(self) -> bool:
        """Whether an average of the parameters is kept."""
        return self.average_share > 0.0


_NOTHING = LayerShaping()
PLAIN = Shaping()
"""Nothing at all; the only one that says so, which is asked for by `is`."""
