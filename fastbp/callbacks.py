"""What `callbacks=` of a fit takes: functions of (trainer, record) that are called after each epoch.

Such a function returns None, or a str, which stops the fit with that reason. `record` is a dict of the epoch's columns,
as `History` has them. It may set ``trainer.learning_rate``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from fastbp import checks

__all__ = ["Callback", "ReduceOnPlateau", "check_callbacks"]

Callback: TypeAlias = Callable[[Any, dict[str, float]], str | None]


@dataclass(frozen=True)
class ReduceOnPlateau:
    """Multiply the learning rate by `factor` when a column of the history has ceased to improve.

    After each epoch its value is compared with the best one so far. The epoch counts as an improvement if
    ``value < best * (1 - threshold)``, or with ``mode="max"`` if ``value > best * (1 + threshold)``. After more than
    `patience` epochs in a row without one the rate is reduced, and the next `cooldown` epochs do not count. Epochs
    without a value, which were not validated, do not count either. What has been seen is kept in the trainer, from fit
    to fit and through pickles.

    Parameters
    ----------
    factor : float, default 0.1
        In (0, 1).
    patience : int, default 10
        Epochs, >= 0.
    monitor : str, default "validation_loss"
        Name of the column: also ``"loss"``, ``"accuracy"``, ``"validation_accuracy"``, or one of the fit's metrics.
    mode : {"min", "max"}, default "min"
    threshold : float, default 1e-4
        Relative improvement, in [0, 1).
    cooldown : int, default 0
        Epochs, >= 0.
    lowest : float, default 0.0
        Below which the rate does not fall, >= 0.

    Notes
    -----
    PyTorch's ``ReduceLROnPlateau``, but for its ``eps``.

    Examples
    --------
    >>> ReduceOnPlateau(factor=0.5, patience=5).monitor
    'validation_loss'
    """

    factor: float = 0.1
    patience: int = 10
    monitor: str = "validation_loss"
    mode: str = "min"
    threshold: float = 1e-4
    cooldown: int = 0
    lowest: float = 0.0

    def __post_init__(self) -> None:
        bounds: dict[str, Any] = {"low": 0.0, "high": 1.0, "high_open": True}
        object.__setattr__(self, "factor", checks.finite_float(self.factor, "factor", low_open=True, **bounds))
        object.__setattr__(self, "threshold", checks.finite_float(self.threshold, "threshold", **bounds))
        object.__setattr__(self, "lowest", checks.finite_float(self.lowest, "lowest", low=0.0))
        for name in ("patience", "cooldown"):
            object.__setattr__(self, name, checks.non_negative_int(getattr(self, name), name))
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {checks.shown(self.mode)}")
        if not isinstance(self.monitor, str):
            raise TypeError(f"monitor must be the name of a column, a str, got {checks.shown(self.monitor)}")

    def __call__(self, trainer: Any, record: dict[str, float]) -> None:
        """Look at an epoch's value, and reduce the trainer's learning rate if it is time.

        Raises
        ------
        KeyError
            If there is no such column.
        TypeError
            If the learning rate is no number.
        """
        if self.monitor not in record:
            raise KeyError(f"monitor must be one of {', '.join(map(repr, record))}, got {self.monitor!r}")
        value = record[self.monitor]
        if math.isnan(value):
            return
        memory = trainer.callback_memory
        best, n_bad, n_cool = memory.get(self, (math.inf if self.mode == "min" else -math.inf, 0, 0))
        is_better = value < best * (1 - self.threshold) if self.mode == "min" else value > best * (1 + self.threshold)
        if math.isinf(best):
            is_better = value < best if self.mode == "min" else value > best
        best, n_bad = (value, 0) if is_better else (best, n_bad + 1)
        if n_cool > 0:
            n_cool, n_bad = n_cool - 1, 0
        if n_bad > self.patience:
            rate = trainer.learning_rate
            if not isinstance(rate, float):
                raise TypeError(f"ReduceOnPlateau needs a learning rate that is a number, got {checks.shown(rate)}")
            reduced = max(rate * self.factor, self.lowest)
            if 0.0 < reduced < rate:
                trainer.learning_rate = reduced
            n_bad, n_cool = 0, self.cooldown
        memory[self] = best, n_bad, n_cool


def check_callbacks(callbacks: object) -> tuple[Callback, ...]:
    """Return one callable, or an iterable of them, as a tuple.

    Raises
    ------
    TypeError
        If `callbacks` is neither.
    """
    expected = "a function of (trainer, record), or a sequence of them"
    if callable(callbacks):
        return (callbacks,)
    entries: tuple[Any, ...]
    try:
        entries = tuple(callbacks)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"callbacks must be {expected}, got {checks.shown(callbacks)}") from None
    for index, entry in enumerate(entries):
        if not callable(entry):
            raise TypeError(f"callbacks must be {expected}, got {checks.shown(entry)} as entry {index}")
    return entries
