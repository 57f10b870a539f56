"""What `callbacks=` of a fit takes: functions of (trainer, record) that are called after each epoch.

Such a function returns None, or a str, which stops the fit with that reason. `record` is a dict of the epoch's columns,
as `History` has them. It may set ``trainer.learning_rate``.
"""

from __future__ import annotations

import csv
import io
import json
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from fastbp import checks

if TYPE_CHECKING:
    import os

__all__ = ["CSVLog", "Callback", "JSONLog", "ReduceOnPlateau", "TensorBoardLog", "check_callbacks"]

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


@dataclass(frozen=True)
class _Log:
    """A text file with a line for each epoch, which is on the disk when the next one begins.

    Lines of the same epoch, and of later ones, are replaced: a run that is resumed goes on in its file. So is a last
    line that was not written to its end.
    """

    path: str | os.PathLike[str]
    _written: list[int] = field(default_factory=list, init=False, repr=False, compare=False)  # the last epoch

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", checks.path(self.path, "path"))

    def __call__(self, trainer: Any, record: dict[str, float]) -> None:  # noqa: ARG002 - a callback gets both
        """Write the epoch's line. Errors of the file system are raised."""
        path, epoch = Path(self.path), int(record["epoch"])
        if self._written != [epoch - 1]:
            self._cut(path, record)
        with path.open("a", encoding="utf-8") as file:
            file.write(self._line(record))
        self._written[:] = [epoch]

    def _cut(self, path: Path, record: dict[str, float]) -> None:
        """Leave in the file what comes before a record's line: replace it as a whole, or not at all."""
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        beside = path.with_name(path.name + ".new")
        beside.write_text("".join(self._kept(lines, record)), encoding="utf-8")
        beside.replace(path)

    def _line(self, record: dict[str, float]) -> str:
        raise NotImplementedError

    def _kept(self, lines: list[str], record: dict[str, float]) -> list[str]:
        """Return the lines of a file that come before that of a record."""
        raise NotImplementedError


@dataclass(frozen=True)
class CSVLog(_Log):
    """Write the columns of each epoch to a CSV file, with their names as its first line; what is NaN is left empty.

    Parameters
    ----------
    path : path_like
        Lines of earlier epochs stay, if there are any and their columns are the same; others are a ValueError.

    Examples
    --------
    >>> CSVLog("run.csv").path.name
    'run.csv'
    """

    def _line(self, record: dict[str, float]) -> str:
        return _csv_line(["" if math.isnan(value) else repr(value) for value in record.values()])

    def _kept(self, lines: list[str], record: dict[str, float]) -> list[str]:
        header = _csv_line(record)
        if lines and lines[0] != header:
            raise ValueError(f"{self.path} has other columns than this fit: {lines[0].strip()}")
        epochs = [line.partition(",")[0] for line in lines[1:] if line.endswith("\n")]
        return [header, *[line for line, epoch in zip(lines[1:], epochs, strict=False) if int(epoch) < record["epoch"]]]


@dataclass(frozen=True)
class JSONLog(_Log):
    """Write the columns of each epoch to a file of JSON lines; what is NaN, or infinite, is null.

    Parameters
    ----------
    path : path_like
        Lines of earlier epochs stay.

    Examples
    --------
    >>> JSONLog("run.jsonl").path.name
    'run.jsonl'
    """

    def _line(self, record: dict[str, float]) -> str:
        finite = {name: value if math.isfinite(value) else None for name, value in record.items()}
        return json.dumps(finite) + "\n"

    def _kept(self, lines: list[str], record: dict[str, float]) -> list[str]:
        try:
            return [line for line in lines if line.endswith("\n") and json.loads(line)["epoch"] < record["epoch"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is no log of epochs: {type(error).__name__}: {error}") from None


@dataclass(frozen=True)
class TensorBoardLog:
    """Write the columns of each epoch as scalars for TensorBoard, by tensorboardX or PyTorch, within a second.

    Parameters
    ----------
    folder : path_like

    Raises
    ------
    ImportError
        If neither is installed.
    """

    folder: str | os.PathLike[str]
    _writers: list[Any] = field(default_factory=list, init=False, repr=False, compare=False)
    _make: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", checks.path(self.folder, "folder"))
        object.__setattr__(self, "_make", _summary_writer())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder,)

    def __call__(self, trainer: Any, record: dict[str, float]) -> None:  # noqa: ARG002 - a callback gets both
        """Write the epoch's scalars."""
        epoch = int(record["epoch"])
        if not self._writers:
            writer = self._make(str(self.folder), purge_step=epoch, flush_secs=1)
            self._writers.append(writer)
            weakref.finalize(self, writer.close)  # at the interpreter's end at the latest: it writes in a thread
        for name, value in record.items():
            if name != "epoch" and not math.isnan(value):
                self._writers[0].add_scalar(name, value, epoch)


def _summary_writer() -> Any:
    """Return the class that writes what TensorBoard reads."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoardLog needs tensorboardX: pip install tensorboardX") from error
    return SummaryWriter


def _csv_line(cells: Any) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


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
    entries = checks.entries(callbacks, "callbacks", expected)
    for index, entry in enumerate(entries):
        if not callable(entry):
            raise TypeError(f"callbacks must be {expected}, got {checks.shown(entry)} as entry {index}")
    return entries
