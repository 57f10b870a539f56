"""Checks of the numbers and flags that a user passes in: the one place that words their errors."""

from __future__ import annotations

import math
import numbers
import operator
import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "MAX_STEP",
    "finite_float",
    "first_initialisation",
    "flag",
    "integer",
    "non_negative_int",
    "positive_int",
    "seed_of",
    "shown",
]

MAX_STEP = int(np.iinfo(np.int64).max)
"""The largest number of steps that kernels and schedules can count."""

_SHOWN_CHARACTERS = 100


def shown(value: object) -> str:
    """Return how an error shows a wrong value: its repr, cut if it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print integers of more than some thousand digits
        return "a number of too many digits to print"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def flag(value: object, name: str) -> bool:
    """Return `value` as a bool; only Python's and NumPy's bools pass.

    Raises
    ------
    TypeError
        If `value` is anything else.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be a bool, got {shown(value)} of type {type(value).__name__}")
    return bool(value)


def _integer(value: object, name: str, expected: str) -> int:
    if not isinstance(value, (bool, np.bool_)):
        try:
            return operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            pass
    raise TypeError(f"{name} must be {expected}, got {shown(value)} of type {type(value).__name__}")


def integer(value: object, name: str) -> int:
    """Return `value` as a Python int.

    Raises
    ------
    TypeError
        If `value` is no integer (bools and floats are none).
    """
    return _integer(value, name, "an integer")


def positive_int(value: object, name: str, expected: str = "a positive integer", high: int | None = None) -> int:
    """Return `value` as a Python int from 1 to `high`; `expected` says in the error what may be passed.

    Raises
    ------
    TypeError
        If `value` is no integer (bools and floats are none).
    ValueError
        If `value` is below 1 or above `high`.
    """
    integer = _integer(value, name, expected)
    if integer < 1:
        raise ValueError(f"{name} must be {expected}, got {shown(integer)}")
    return _at_most(high, integer, name, expected)


def entries(values: object, name: str, expected: str) -> tuple[Any, ...]:
    """Return the entries of an iterable, of which a str is none here; `expected` says what may be passed.

    Raises
    ------
    TypeError
        If `values` is none.
    """
    try:
        iterator = None if isinstance(values, (str, bytes)) else iter(values)  # type: ignore[call-overload]
    except TypeError:
        iterator = None
    if iterator is None:
        raise TypeError(f"{name} must be {expected}, got {shown(values)}")
    return tuple(iterator)


def path(value: object, name: str) -> Path:
    """Return the path of a file.

    Raises
    ------
    TypeError
        If `value` is none.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be a path, got {shown(value)}")
    return Path(value)


def non_negative_int(value: object, name: str, high: int | None = None) -> int:
    """Return `value` as a Python int from 0 to `high`.

    Raises
    ------
    TypeError
        If `value` is no integer (bools and floats are none).
    ValueError
        If `value` is below 0 or above `high`.
    """
    expected = "a non-negative integer"
    integer = _integer(value, name, expected)
    if integer < 0:
        raise ValueError(f"{name} must be {expected}, got {shown(integer)}")
    return _at_most(high, integer, name, expected)


def _at_most(high: int | None, integer: int, name: str, expected: str) -> int:
    if high is not None and integer > high:
        raise ValueError(f"{name} must be {expected} <= {high}, got {shown(integer)}")
    return integer


def finite_float(
    value: object,
    name: str,
    *,
    low: float | None = None,
    high: float | None = None,
    low_open: bool = False,
    high_open: bool = False,
) -> float:
    """Return `value` as a finite Python float within the given bounds.

    Parameters
    ----------
    value : object
        What the user passed: any real number but a bool.
    name : str
        The argument's name, for the message.
    low, high : float, optional
        Bounds, included unless `low_open` or `high_open`.
    low_open, high_open : bool
        Whether the bound itself is excluded.

    Raises
    ------
    TypeError
        If `value` is no real number.
    ValueError
        If `value` is not finite or out of bounds.
    """
    bounds = []
    if low is not None:
        bounds.append(f"{'>' if low_open else '>='} {low:g}")
    if high is not None:
        bounds.append(f"{'<' if high_open else '<='} {high:g}")
    expected = " ".join(["a finite number", " and ".join(bounds)]).strip()
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be {expected}, got {shown(value)} of type {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    too_low = low is not None and (number <= low if low_open else number < low)
    too_high = high is not None and (number >= high if high_open else number > high)
    if not math.isfinite(number) or too_low or too_high:
        raise ValueError(f"{name} must be {expected}, got {shown(value)}")
    return number


def first_initialisation(instance: object, attribute: str) -> None:
    """Refuse to initialise an object that has been: kernels, or others who hold it, rely on what it has.

    Raises
    ------
    RuntimeError
        If `instance` has the attribute.
    """
    if attribute in vars(instance):
        name = type(instance).__name__
        raise RuntimeError(f"this {name} has been initialised already: make a new {name} instead")


def seed_of(seed: object) -> int:
    """Return `seed` as a Python int, or draw one of 63 bits if it is None.

    Raises
    ------
    TypeError
        If `seed` is neither an integer nor None.
    ValueError
        If `seed` is not in [0, 2**64).
    """
    if seed is None:
        return secrets.randbits(63)
    integer = _integer(seed, "seed", "an integer or None")
    if not 0 <= integer < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {shown(integer)}")
    return integer
