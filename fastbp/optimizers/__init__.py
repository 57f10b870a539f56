"""Optimizers: frozen descriptions of an update rule, with the numbers that its kernel needs.

Every rule is PyTorch's, so that recipes carry over. Nothing here holds state: the moments belong to the trainer and
lie in flat buffers like the parameters.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastbp import checks
from fastbp.names import nearest
from fastbp.optimizers.adam import Adam, AdamW, NAdam, RAdam, ScheduleFreeAdamW
from fastbp.optimizers.base import Moments, Optimizer
from fastbp.optimizers.descent import SGD, Adadelta, Adagrad, Lion, RMSprop

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Lion",
    "Moments",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "ScheduleFreeAdamW",
    "check_optimizer",
]

OPTIMIZERS = (SGD, Adagrad, Adadelta, RMSprop, Adam, AdamW, NAdam, RAdam, Lion, ScheduleFreeAdamW)
"""All that there are: another class could describe other moments and constants than its kernel reads."""

_NAMED = (
    "SGD()",
    "SGD(momentum=0.9)",
    "SGD(momentum=0.9, nesterov=True)",
    "Adagrad()",
    "Adadelta()",
    "RMSprop()",
    "Adam()",
    "AdamW()",
    "NAdam()",
    "RAdam()",
    "Lion()",
    "ScheduleFreeAdamW()",
)
"""What stands for an optimizer's name."""


def check_optimizer(optimizer: object, dtype: npt.DTypeLike) -> Optimizer:
    """Return `optimizer` if it is one, and its numbers are some in the model's `dtype`.

    Raises
    ------
    TypeError
        If it is no optimizer; the message proposes the one that a name or a class stands for.
    ValueError
        If its `eps` would be 0, subnormal or infinite in `dtype`.
    """
    if not isinstance(optimizer, Optimizer):
        name = optimizer.__name__ if isinstance(optimizer, type) else optimizer
        meant = nearest(name, _NAMED) if isinstance(name, str) else None
        proposal = f" (did you mean fastbp.{meant}?)" if meant else ""
        raise TypeError(
            f"optimizer must be an optimizer such as fastbp.Adam(), got {checks.shown(optimizer)}{proposal}"
        )
    eps, info = getattr(optimizer, "eps", None), np.finfo(dtype)
    low, high = float(info.tiny), float(info.max)
    if eps is not None and not low <= eps <= high:
        raise ValueError(f"eps must be in [{low:.2g}, {high:.2g}] for a model of {np.dtype(dtype)}, got {eps!r}")
    return optimizer
