"""What stands in the place of an activation's or a loss's name: one with an option, or a user's own."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

__all__ = ["Choice"]


class Choice:
    """Base class of the frozen dataclasses that stand for a name; the only field of fastbp's own is the option.

    `str` gives the name, with the option in parentheses unless it is the usual one: a text that may be passed instead.
    """

    _name: ClassVar[str]

    def __str__(self) -> str:
        (option,) = dataclasses.fields(self)  # type: ignore[arg-type]
        value = getattr(self, option.name)
        return self._name if value == option.default else f"{self._name}({value!r})"
