"""Progress of a fit on the terminal: tqdm's bar where tqdm is installed, else a line per epoch."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Progress"]

# Epochs may take microseconds: lines come at most this often, in seconds.
_LINE_INTERVAL = 0.1


class Progress:
    """Shows how a fit gets on, on standard error. A context manager: leaving it closes the bar, errors or not.

    Parameters
    ----------
    total_epochs : int or None
        Epochs of the fit, None if only steps bound it.
    total_steps : int or None
        Optimizer steps of the fit, None if unknown.
    enabled : bool
        If false, nothing is ever shown.

    Examples
    --------
    >>> with Progress(total_epochs=2, total_steps=20, enabled=False) as progress:
    ...     progress.update(epoch=1, step=10, loss=0.5)
    """

    def __init__(self, total_epochs: int | None, total_steps: int | None, enabled: bool) -> None:
        self._total_epochs = total_epochs
        self._total_steps = total_steps
        self._enabled = enabled and sys.stderr is not None  # pythonw has none
        self._bar: Any = None
        self._shown_epoch = 0
        self._shown_time = -float("inf")
        self._pending_line: str | None = None
        self._last_step = 0
        self._last_time = time.perf_counter()

    def __enter__(self) -> Progress:
        if self._enabled:
            self._last_time = time.perf_counter()
            self._bar = _new_bar(self._total_steps)
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            # Show the last update even if it came within the bar's own refresh interval.
            self._bar.refresh()
            self._bar.close()
            self._bar = None
        elif self._pending_line is not None:
            self._print_line()

    def update(
        self,
        epoch: int,
        step: int,
        loss: float,
        accuracy: float | None = None,
        steps_per_second: float | None = None,
        validation_loss: float | None = None,
    ) -> None:
        """Show the state of the fit.

        Parameters
        ----------
        epoch, step : int
            Epochs and steps completed in this fit.
        loss : float
            Mean training loss of the epoch, as far as it has come.
        accuracy, validation_loss : float, optional
            Shown where given.
        steps_per_second : float, optional
            By default measured between two updates.
        """
        if not self._enabled:
            return
        if steps_per_second is None:
            steps_per_second = self._measured_rate(step)
        state = _state(loss, accuracy, validation_loss, steps_per_second)
        label = _fraction("epoch", epoch, self._total_epochs)
        if self._bar is not None:
            self._bar.set_description_str(label, refresh=False)
            self._bar.set_postfix_str(state, refresh=False)
            self._bar.update(step - self._bar.n)
            return
        if epoch <= self._shown_epoch:
            return
        self._pending_line = f"{label}: {state}"
        self._shown_epoch = epoch
        if time.perf_counter() - self._shown_time >= _LINE_INTERVAL:
            self._print_line()

    @property
    def is_shown(self) -> bool:
        """Whether anything is shown at all."""
        return self._enabled

    def message(self, text: str) -> None:
        """Print a line without breaking the bar."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def _print_line(self) -> None:
        print(self._pending_line, file=sys.stderr, flush=True)
        self._pending_line = None
        self._shown_time = time.perf_counter()

    def _measured_rate(self, step: int) -> float:
        now = time.perf_counter()
        rate = (step - self._last_step) / max(now - self._last_time, 1e-9)
        self._last_step, self._last_time = step, now
        return rate


def _new_bar(total_steps: int | None) -> Any:
    """Return tqdm's bar, or None where tqdm is not installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    bar_format = "{desc}|{bar}| {percentage:3.0f}% [{elapsed}<{remaining}{postfix}]"
    if total_steps is None:
        bar_format = "{desc} [{elapsed}{postfix}]"
    # One iteration as the least is right for any speed: tqdm's own guess would skip updates after a long chunk.
    return tqdm(total=total_steps, miniters=1, bar_format=bar_format, file=sys.stderr, dynamic_ncols=True)


def _fraction(what: str, count: int, total: int | None) -> str:
    return f"{what} {count}" if total is None else f"{what} {count:{len(str(total))}d}/{total}"


def _state(loss: float, accuracy: float | None, validation_loss: float | None, steps_per_second: float) -> str:
    parts = [f"loss {loss:.4g}"]
    if accuracy is not None:
        parts.append(f"accuracy {accuracy:.4f}")
    if validation_loss is not None:
        parts.append(f"validation loss {validation_loss:.4g}")
    parts.append(f"{_with_prefix(steps_per_second)} steps/s")
    return ", ".join(parts)


def _with_prefix(value: float) -> str:
    """Return `value` to three digits with k or M, as 12.3k."""
    for factor, prefix in ((1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{prefix}"
    return f"{value:.3g}"
