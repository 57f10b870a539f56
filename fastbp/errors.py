"""Errors and warnings of fastbp's own."""

from __future__ import annotations

import sys
import warnings

__all__ = ["CheckpointError", "DivergenceError", "warn"]

_PACKAGE = __name__.partition(".")[0]


class DivergenceError(ArithmeticError):
    """Training left the finite numbers.

    Attributes
    ----------
    step : int
        The step in which it happened, from 0.
    step_taken : bool
        False if the loss was not finite: the parameters are those before the step. True if the loss was finite but a
        new parameter is not.
    layer : int or None
        The layer, from 0, whose outputs, gradient or parameters were the first not to be finite; None if all were, and
        the loss alone was not.

    Examples
    --------
    >>> import fastbp
    >>> model = fastbp.MLP([1, 1], init=[1.0, 0.0])
    >>> try:
    ...     history = model.fit([[1.0]], [0.0], optimizer=fastbp.SGD(1e3), batch_size=None)
    ... except fastbp.DivergenceError as error:
    ...     print(error.step_taken, len(model.history) == error.step > 0)
    False True
    """

    def __init__(self, message: str, step: int, step_taken: bool, layer: int | None = None) -> None:
        super().__init__(message)
        self.step = step
        self.step_taken = step_taken
        self.layer = layer

    def __reduce__(self) -> tuple[type, tuple[str, int, bool, int | None]]:
        return type(self), (str(self), self.step, self.step_taken, self.layer)


class CheckpointError(ValueError):
    """A file cannot be read, or not by this program; or a model or trainer cannot be written to one. It says why.

    Examples
    --------
    >>> import fastbp, pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "notes.npz"
    ...     _ = path.write_text("Not a network.")
    ...     try:
    ...         fastbp.load(path)
    ...     except fastbp.CheckpointError as error:
    ...         print("no file of fastbp's" in str(error))
    True
    """


def warn(message: str) -> None:
    """Give a RuntimeWarning that names the line of the user's that called into fastbp."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, RuntimeWarning, stacklevel=level)
