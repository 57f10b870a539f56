"""Options as plain values that JSON has, and back: numbers, texts, and the frozen classes that this module lists.

Nothing is imported, and nothing is made, that is not in the list: a user's own formulas stand in a file by their names,
and come back from the `custom` that the reader is given.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fastbp import callbacks, optimizers, recovery, schedules, shaping, stopping
from fastbp.diagnosis import Column, DataFacts, LayerFacts
from fastbp.errors import CheckpointError
from fastbp.fits import FitRecord
from fastbp.own import Activation, Loss, UpdateRule

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["OWN", "decoded", "encoded"]

_CLASSES: dict[str, Any] = {
    cls.__name__: cls
    for cls in (
        *optimizers.OPTIMIZERS,
        schedules.StepDecay,
        schedules.ExponentialDecay,
        schedules.CosineDecay,
        schedules.CosineRestarts,
        schedules.CosLog,
        schedules.PolynomialDecay,
        schedules.InverseSqrtDecay,
        schedules.OneCycle,
        schedules.Warmup,
        schedules.Scaled,
        stopping.Convergence,
        stopping.EarlyStopping,
        stopping.TargetLoss,
        stopping.TimeLimit,
        callbacks.ReduceOnPlateau,
        shaping.Shaping,
        shaping.LayerShaping,
        shaping.Group,
        recovery.Divergence,
        FitRecord,
        LayerFacts,
        DataFacts,
        Column,
    )
}
OWN = Activation, Loss, UpdateRule


def encoded(value: object, what: str) -> Any:
    """Return a value as JSON has it.

    Parameters
    ----------
    value : object
    what : str
        What it is, for the message.

    Raises
    ------
    CheckpointError
        If it is nothing that a file can hold, with the way out.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (float, np.floating)):
        number = float(value)
        return number if math.isfinite(number) else {"float": repr(number)}
    if type(value) in (list, tuple):
        return [encoded(each, what) for each in value]  # type: ignore[attr-defined]
    if isinstance(value, OWN):
        rate = {"learning_rate": encoded(value.learning_rate, what)} if isinstance(value, UpdateRule) else {}
        return {"custom": value.name, "of": type(value).__name__} | rate
    cls = type(value)
    if _CLASSES.get(cls.__name__) is cls:
        return {"class": cls.__name__} | {name: encoded(getattr(value, name), what) for name in _fields(cls)}
    raise CheckpointError(
        f"{what} cannot be written to a file: {value!r}. Numbers, texts, fastbp's own optimizers, schedules and rules "
        "can, and Activation, Loss and UpdateRule by their names; for a learning rate use one of fastbp.schedules"
    )


def decoded(value: Any, custom: Mapping[str, object], wanted: type | tuple[type, ...] = object) -> Any:
    """Return what `encoded` has made such a value of; lists come back as tuples.

    Parameters
    ----------
    value : object
        Of JSON.
    custom : mapping of str to object
        A user's own formulas by their names.
    wanted : type or tuple of types
        What it must be.

    Raises
    ------
    CheckpointError
        If it is something else, or a formula is missing.
    """
    result = _decoded(value, custom)
    if not isinstance(result, wanted) or (isinstance(result, bool) and wanted is int):
        raise CheckpointError(f"expected {wanted} in the record, got {result!r}")
    return result


def _decoded(value: Any, custom: Mapping[str, object]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return tuple([_decoded(each, custom) for each in value])
    if set(value) == {"float"}:
        return float(value["float"])
    if {"custom", "of"} <= set(value) <= {"custom", "of", "learning_rate"}:
        own = _own(value["custom"], value["of"], custom)
        if isinstance(own, UpdateRule):
            return dataclasses.replace(own, learning_rate=_decoded(value["learning_rate"], custom))
        return own
    cls = _CLASSES.get(value.get("class"))
    if cls is None or set(value) != {"class", *_fields(cls)}:
        raise CheckpointError(f"the record has something unknown: {str(value)[:100]}")
    try:
        return cls(**{name: _decoded(value[name], custom) for name in _fields(cls)})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the record has a wrong {cls.__name__}: {error}") from None


def _own(name: object, kind: object, custom: Mapping[str, object]) -> object:
    own = custom.get(str(name))
    if own is None:
        raise CheckpointError(f"the file needs your {kind} {name!r}: pass custom={{{name!r}: ...}} to fastbp.load")
    if not isinstance(own, OWN) or type(own).__name__ != kind or own.name != name:
        raise CheckpointError(f"custom[{name!r}] must be the {kind} of that name, got {own!r}")
    return own


def _fields(cls: Any) -> tuple[str, ...]:
    """Return the names of what a class is made of."""
    if dataclasses.is_dataclass(cls):
        return tuple([field.name for field in dataclasses.fields(cls) if field.init])
    names: tuple[str, ...] = cls._fields
    return names
