"""Stop rules: when a fit ends before its last epoch. They hold no state; the trainer remembers it from fit to fit."""

from __future__ import annotations

from dataclasses import dataclass

from fastbp import checks

__all__ = ["Convergence", "EarlyStopping", "StopRule", "TargetLoss", "TimeLimit", "check_rules"]


class StopRule:
    """Base class of all stop rules.

    They hold no state. A `Trainer` remembers it from fit to fit, so that several fits stop where one would have; it
    starts anew when the rule is another. `MLP.fit` always starts anew. A fit whose rule has no patience left takes one
    epoch more, which may renew it.
    """


@dataclass(frozen=True)
class Convergence(StopRule):
    """Stop when the training loss has ceased to improve.

    After each whole epoch its mean training loss is compared with `best`, the lowest of the earlier epochs.
    The epoch counts as an improvement if ``loss < best - tol``; the run stops after `patience` epochs in a row without
    one. `best` follows every lower loss, however small the gain, so a slow creep ends the run.

    Parameters
    ----------
    tol : float, default 1e-4
        Absolute improvement, >= 0, in units of the loss.
    patience : int, default 10
        Number of epochs in a row, >= 1.

    Notes
    -----
    The rule of scikit-learn's ``MLPClassifier(tol=, n_iter_no_change=)``, apart from two details: scikit-learn's code
    waits for one epoch more than `n_iter_no_change`, and there a gain of exactly `tol` counts as an improvement.

    Examples
    --------
    >>> Convergence(tol=1e-5)
    Convergence(tol=1e-05, patience=10)
    """

    tol: float = 1e-4
    patience: int = 10

    def __post_init__(self) -> None:
        object.__setattr__(self, "tol", checks.finite_float(self.tol, "tol", low=0.0))
        object.__setattr__(self, "patience", checks.positive_int(self.patience, "patience"))


@dataclass(frozen=True)
class EarlyStopping(StopRule):
    """Stop when the validation loss, or another column of the history, has ceased to improve; go back to the best.

    After each whole epoch that was validated its value is compared with `best`, the lowest of the earlier epochs and,
    of validation loss and accuracy, of the parameters at the start. The epoch counts as an improvement if
    ``value < best - min_delta``; the run stops after `patience` such epochs in a row without one. A rule on a
    validation column needs validation data; on other data it starts anew.

    Parameters
    ----------
    patience : int, default 10
        Number of epochs in a row, >= 1.
    min_delta : float, default 0.0
        Absolute improvement, >= 0, in units of the loss.
    restore_best : bool, default True
        Whether the model gets the parameters of the best epoch, or of the start, however the run ends. Of several
        rules, the first one's. The run itself does not go back: the next `Trainer.fit` goes on from its last step, as
        if it had been one fit, unless somebody has written to the parameters since or taken a step.

    monitor : str, default "validation_loss"
        Name of the column: ``"validation_loss"``, ``"validation_accuracy"``, ``"loss"``, ``"accuracy"`` (these two of
        training), or of one of the fit's `metrics`.
    mode : {"min", "max"}, default "min"
        Whether lower or higher is better.

    References
    ----------
    L. Prechelt, "Early stopping - but when?", in Neural Networks: Tricks of the Trade, Springer, 1998, section 2.

    Examples
    --------
    >>> EarlyStopping(patience=5).monitor
    'validation_loss'
    >>> EarlyStopping(monitor="validation_accuracy", mode="max").patience
    10
    """

    patience: int = 10
    min_delta: float = 0.0
    restore_best: bool = True
    monitor: str = "validation_loss"
    mode: str = "min"

    def __post_init__(self) -> None:
        if not isinstance(self.monitor, str):
            raise TypeError(f"monitor must be the name of a column, a str, got {checks.shown(self.monitor)}")
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {checks.shown(self.mode)}")
        object.__setattr__(self, "patience", checks.positive_int(self.patience, "patience"))
        object.__setattr__(self, "min_delta", checks.finite_float(self.min_delta, "min_delta", low=0.0))
        object.__setattr__(self, "restore_best", checks.flag(self.restore_best, "restore_best"))

    @property
    def needs_validation(self) -> bool:
        """Whether the column is one of validation data."""
        return self.monitor not in ("loss", "accuracy")


@dataclass(frozen=True)
class TargetLoss(StopRule):
    """Stop after the first whole epoch whose mean training loss is at most `value`.

    Parameters
    ----------
    value : float
        The loss to reach.

    Examples
    --------
    >>> TargetLoss(0.01)
    TargetLoss(value=0.01)
    """

    value: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", checks.finite_float(self.value, "value"))


@dataclass(frozen=True)
class TimeLimit(StopRule):
    """Stop after `seconds` of training, after a whole step but not necessarily a whole epoch.

    The clock is the wall's and starts with the first step: compilation, which only a first run pays for, does not
    count. A fit takes one step at least.

    Parameters
    ----------
    seconds : float
        Length of the run, > 0, in seconds.

    Examples
    --------
    >>> TimeLimit(60)
    TimeLimit(seconds=60.0)
    """

    seconds: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "seconds", checks.finite_float(self.seconds, "seconds", low=0.0, low_open=True))


def check_rules(stop: object) -> tuple[StopRule, ...]:
    """Return one stop rule, or an iterable of them, as a tuple.

    Raises
    ------
    TypeError
        If `stop` is neither, or an entry is no stop rule.
    """
    expected = "a stop rule such as fastbp.EarlyStopping(), or a sequence of them"
    if isinstance(stop, StopRule):
        return (stop,)
    rules = checks.entries(stop, "stop", expected)
    for index, rule in enumerate(rules):
        if not isinstance(rule, StopRule):
            raise TypeError(f"stop must be {expected}, got {rule!r} as entry {index}")
    return rules
