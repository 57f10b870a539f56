"""Learning-rate schedules: functions of the optimizer step, counted from 0, to the learning rate.

A schedule runs on the host only: the trainer samples it for a chunk of steps at once with `sample`. Any callable of
the step that returns a float serves as well as the classes of this module.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from fastbp import checks

__all__ = [
    "CosLog",
    "CosineDecay",
    "CosineRestarts",
    "ExponentialDecay",
    "InverseSqrtDecay",
    "LearningRate",
    "OneCycle",
    "PolynomialDecay",
    "Scaled",
    "Schedule",
    "StepDecay",
    "Warmup",
    "check_learning_rate",
    "sample",
]

Float64Array: TypeAlias = npt.NDArray[np.float64]


class Schedule:
    """Base class of the schedules: a function of the step that takes one step or an array of them."""

    @overload
    def __call__(self, step: int) -> float: ...

    @overload
    def __call__(self, step: npt.NDArray[np.integer[Any]]) -> Float64Array: ...

    def __call__(self, step: int | npt.NDArray[np.integer[Any]]) -> float | Float64Array:
        """Return the learning rate of `step`.

        Parameters
        ----------
        step : int or integer ndarray
            Steps from 0.

        Returns
        -------
        float or float64 ndarray of the same shape

        Raises
        ------
        TypeError
            If `step` is no integer.
        ValueError
            If a step is negative or does not fit in an int64.
        """
        if not isinstance(step, np.ndarray):
            one_step = checks.non_negative_int(step, "step", high=checks.MAX_STEP)
            return float(self._at(np.array([one_step], dtype=np.int64))[0])
        if step.dtype.kind not in "iu":
            raise TypeError(f"step must be an integer or an array of integers, got dtype {step.dtype}")
        if step.size and step.min() < 0:
            raise ValueError(f"step must be >= 0, got {step.min()}")
        if step.size and step.max() > checks.MAX_STEP:
            raise ValueError(f"step must be <= {checks.MAX_STEP}, got {step.max()}")
        # Always one contiguous dimension: NumPy's code for scalars and for strides may round otherwise.
        return self._at(np.ascontiguousarray(step, dtype=np.int64).reshape(-1)).reshape(step.shape)

    def _at(self, steps: npt.NDArray[np.int64]) -> Float64Array:
        """Return the learning rates of contiguous 1-D `steps`.

        Silently, whatever the user's `np.errstate`: a rate that vanishes is 0, and one that is not finite is refused
        by `sample`.
        """
        raise NotImplementedError


LearningRate: TypeAlias = float | Schedule | Callable[[int], float]


@dataclass(frozen=True)
class StepDecay(Schedule):
    """Multiply the learning rate by `factor` after every `every` steps: ``initial * factor**(step // every)``.

    Parameters
    ----------
    initial : float
        Learning rate of step 0, > 0.
    factor : float
        In (0, 1].
    every : int
        Number of steps between two changes, from 1 to 2**63 - 1.

    Notes
    -----
    PyTorch's ``StepLR(gamma=factor, step_size=every)``.

    Examples
    --------
    >>> StepDecay(0.1, factor=0.5, every=100)(250)
    0.025
    """

    initial: float
    factor: float
    every: int

    def __post_init__(self) -> None:
        _check_positive(self, "initial")
        _check_fraction(self, "factor")
        _check_steps(self, "every")

    @np.errstate(all="ignore")
    def _at(self, steps: npt.NDArray[np.int64]) -> Float64Array:
        return self.initial * np.power(self.factor, (steps // self.every).astype(np.float64))


@dataclass(frozen=True)
class ExponentialDecay(Schedule):
    """Multiply the learning rate by `rate` after every step: ``initial * rate**step``.

    Parameters
    ----------
    initial : float
        Learning rate of step 0, > 0.
    rate : float
        Factor per step, in (0, 1]; ``0.5 ** (1 / n)`` halves the learning rate every n steps.

    Notes
    -----
    PyTorch's ``ExponentialLR(gamma=rate)``.

    Examples
    --------
    >>> ExponentialDecay(0.1, rate=0.5)(2)
    0.025
    """

    initial: float
    rate: float

    def __post_init__(self) -> None:
        _check_positive(self, "initial")
        _check_fraction(self, "rate")

    @np.errstate(all="ignore")
    def _at(self, steps: npt.NDArray[np.int64]) -> Float64Array:
        return self.initial * np.power(self.rate, steps.astype(np.float64))


@dataclass(frozen=True)
class CosineDecay(Schedule):
    """Go from `initial` to `final` along half a cosine, and stay there.

    ``final + (initial - final) * (1 + cos(pi * t)) / 2`` with ``t = min(step, steps) / steps``.

    Parameters
    ----------
    initial : float
        Learning rate of step 0, > 0.
    steps : int
        Length of the decay, from 1 to 2**63 - 1.
    final : float, default 0.0
        Learning rate from step `steps` on, >= 0.

    Notes
    -----
    Up to step `steps` PyTorch's ``CosineAnnealingLR(T_max=steps, eta_min=final)``, which rises again after it.

    References
    ----------
    I. Loshchilov and F. Hutter, "SGDR: Stochastic gradient descent with warm restarts", ICLR 2017, equation 5, without
    restarts.

    Examples
    --------
    >>> decay = CosineDecay(0.1, steps=1000)
    >>> decay(0), decay(1000)
    (0.1, 0.0)
    """

    initial: float
    steps: int
    final: float = 0.0

    def __post_init__(self) -> None:
        _check_positive(self, "initial")
        _check_steps(self, "steps")
        _check_non_negative(self, "final")

    @np.errstate(all="ignore")
    def _at(self, steps: npt.NDArray[np.int64]) -> Float64Array:
        return _cosine(self.initial, self.final, np.minimum(steps, self.steps) / self.steps)


@dataclass(frozen=True)
class CosineRestarts(Schedule):
    """Decay from `initial` to `final` along half a cosine, again and again, each time over `factor` times the steps.

    Parameters
    ----------
    initial : float
        Learning rate at the beginning of each cycle, > 0.
    steps : int
        Length of the first cycle, from 1 to 2**63 - 1.
    factor : int, default 1
        By which each cycle is longer than the one before, >= 1.
    final : float, default 0.0
        Towards which each cycle decays, >= 0.

    Notes
    -----
    PyTorch's ``CosineAnnealingWarmRestarts(T_0=steps, T_mult=factor, eta_min=final)``.

    References
    ----------
    I. Loshchilov and F. Hutter, "SGDR: Stochastic gradient descent with warm restarts", ICLR 2017, equation 5.

    Examples
    --------
    >>> CosineRestarts(0.1, steps=100, factor=2)(np.array([0, 50, 100, 200]))
    array([0.1 , 0.05, 0.1 , 0.05])
    """

    initial: float
    steps: int
    factor: int = 1
    final: float = 0.0

    def __post_init__(self) -> None:
        _check_positive(self, "initial")
        _check_steps(self, "steps")
        object.__setattr__(self, "factor", checks.positive_int(self.factor, "factor", high=checks.MAX_STEP))
        _check_non_negative(self, "final")

    @np.errstate(all="ignore")
    def _at(self, steps: npt.NDArray[np.int64]) -> Float64Array:
        starts, length = [0], self.steps
        while self.factor > 1 and starts[-1] + length <= checks.MAX_STEP:
            starts.append(starts[-1] + length)
            length *= self.factor
        if self.factor == 1:
            progress = (steps % self.steps) / self.steps
        else:
            cycle = np.searchsorted(np.array(starts), steps, side="right") - 1
            lengths = np.array([float(self.steps) * float(self.factor) ** number for number in range(len(starts))])
            progress = (steps - np.array(starts)[cycle]) / lengths[cycle]
        return _cosine(self.initial, self.final, progress)


@dataclass(frozen=True)
class CosLog(Schedule):
    """Cosine cycles whose length doubles, all within `steps`: RealMLP's, which ends at 0.

    With u the step over `steps`: ``initial * (1 - cos(2 * pi * log2(1 + (2**cycles - 1) * u))) / 2``; 0 at the end.

    Parameters
    ----------
    initial : float
        The highest learning rate, > 0.
    steps : int
        Length of the run, from 1 to 2**63 - 1.
    cycles : int, default 4
        From 1 to 50.

    Notes
    -----
    Each cycle begins at 0, so that the first step has learning rate 0 and moves nothing.

    References
    ----------
    D. Holzmüller, L. Grinsztajn and I. Steinwart, "Better by default: Strong pre-tuned MLPs and boosted trees on
    tabular data", NeurIPS 2024, arXiv:2407.04491, appendix A.

    Examples
    --------
    >>> CosLog(0.1, steps=300, cycles=2)(np.array([0, 100, 300])).round(3)
    array([0., 0., 0.])
    """

    initial: float
    steps: int
    cycles: int = 4

    def __post_init__(self) -> None:
        _check_positive(self, "initial")
        _check_steps(self, "steps")
        object.__setattr__(self, "cycles", checks.positive_int(self.cycles, "cycles", high=50))

    @np.errstate(all="ignore")
    def _at(self, steps: npt.NDArray[np.int64]) -> Float64Array:
        progress = np.minimum(steps / self.steps, 1.0)
        turns = np.log2(1.0 + (2.0**self.cycles - 1.0) * progress)
        rates: Float64Array = self.initial * 0.5 * (1.0 - np.cos(2.0 * np.pi * (turns - np.floor(turns))))
        return rates


@dataclass(frozen=True)
class PolynomialDecay(Schedule):
    """Go from `initial` to `final` along a power of the remaining time, and stay there.

    ``final + (initial - final) * (1 - min(step, steps) / steps)**power``.

    Parameters
    ----------
    initial : float
        Learning rate of step 0, > 0.
    steps : int
        Length of the decay, from 1 to 2**63 - 1.
    power : float, default 1.0
        Exponent, > 0; 1 is a straight line.
    final : float, default 0.0
        Learning rate from step `steps` on, >= 0.

    Notes
    -----
    With `final` 0 PyTorch's ``PolynomialLR(total_iters=steps, power=power)``.

    Examples
    --------
    >>> PolynomialDecay(0.1, steps=100)(50)
    0.05
    """

    initial: float
    steps: int
    power: float = 1.0
    final: float = 0.0

    def __post_init__(self) -> None:
        _check_positive(self, "initial")
        _check_steps(self, "steps")
        _check_positive(self, "power")
        _check_non_negative(self, "final")

    @np.errstate(all="ignore")
    def _at(self, steps: npt.NDArray[np.int64]) -> Float64Array:
        remaining = 1.0 - np.minimum(steps, self.steps) / self.steps
        return self.final + (self.initial - self.final) * np.power(remaining, self.power)


@dataclass(frozen=True)
class InverseSqrtDecay(Schedule):
    """Decay with the inverse square root of the step: ``initial / sqrt(1 + step / steps)``.

    Parameters
    ----------
    initial : float
        Learning rate of step 0, > 0.
    steps : int
        Time scale, from 1 to 2**63 - 1: at this step the learning rate is ``initial / sqrt(2)``.

    Notes
    -----
    ``Warmup(n, InverseSqrtDecay(peak, n))`` is the schedule of the Transformer, ``peak * min(step / n,
    sqrt(n / step))``.

    References
    ----------
    A. Vaswani et al., "Attention is all you need", NeurIPS 2017, equation 3.

    Examples
    --------
    >>> InverseSqrtDecay(0.1, steps=100)(300)
    0.05
    """

    initial: float
    steps: int

    def __post_init__(self) -> None:
        _check_positive(self, "initial")
        _check_steps(self, "steps")

    @np.errstate(all="ignore")
    def _at(self, steps: npt.NDArray[np.int64]) -> Float64Array:
        return np.asarray(self.initial / np.sqrt(1.0 + steps / self.steps))


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Rise to `peak` along half a cosine during 30 % of the steps, then fall to almost nothing along another.

    With ``start = peak / 25``, ``final = start / 1e4``, ``top = 0.3 * steps - 1`` and ``end = steps - 1``::

        step <= top     peak  + (start - peak) * (1 + cos(pi * step / top)) / 2
        otherwise       final + (peak - final) * (1 + cos(pi * min((step - top) / (end - top), 1))) / 2

    Parameters
    ----------
    peak : float
        Highest learning rate, > 0.
    steps : int
        Length of the cycle, from 1 to 2**63 - 1; the learning rate stays at ``peak / 2.5e5`` after it.

    Notes
    -----
    PyTorch's ``OneCycleLR(max_lr=peak, total_steps=steps, cycle_momentum=False)`` with its defaults.

    References
    ----------
    L. N. Smith and N. Topin, "Super-convergence: Very fast training of neural networks using large learning rates",
    2018, arXiv:1708.07120, section 3.

    Examples
    --------
    >>> cycle = OneCycle(0.1, steps=1000)
    >>> cycle(299), cycle(1_000_000)
    (0.1, 4e-07)
    """

    peak: float
    steps: int

    def __post_init__(self) -> None:
        _check_positive(self, "peak")
        _check_steps(self, "steps")

    @np.errstate(all="ignore")
    def _at(self, steps: npt.NDArray[np.int64]) -> Float64Array:
        start = self.peak / 25.0
        final = start / 1e4
        top = 0.3 * self.steps - 1.0
        end = self.steps - 1.0
        # Below a `top` of 1 only step 0 can be part of the rise, where the length of the rise does not matter.
        rise = _cosine(start, self.peak, np.minimum(steps / max(top, 1.0), 1.0))
        fall = _cosine(self.peak, final, np.clip((steps - top) / (end - top), 0.0, 1.0))
        return np.where(steps <= top, rise, fall)


@dataclass(frozen=True)
class Warmup(Schedule):
    """Rise linearly from 0 during the first `steps` steps, then follow `then`, which starts from its own step 0.

    ``step < steps``: ``then(0) * step / steps``; otherwise ``then(step - steps)``.

    Parameters
    ----------
    steps : int
        Length of the rise, from 1 to 2**63 - 1. The learning rate of step 0 is 0.
    then : float, schedule or callable
        What follows. A callable takes the int ``step - steps`` and returns a float.

    References
    ----------
    P. Goyal et al., "Accurate, large minibatch SGD: Training ImageNet in 1 hour", 2017, arXiv:1706.02677, section 2.2.

    Examples
    --------
    >>> warmup = Warmup(10, CosineDecay(0.1, steps=1000))
    >>> warmup(0), warmup(5), warmup(10), warmup(1010)
    (0.0, 0.05, 0.1, 0.0)
    """

    steps: int
    then: LearningRate

    def __post_init__(self) -> None:
        _check_steps(self, "steps")
        object.__setattr__(self, "then", check_learning_rate(self.then, "then"))

    def _at(self, steps: npt.NDArray[np.int64]) -> Float64Array:
        is_rise = steps < self.steps
        values = np.empty(steps.shape, dtype=np.float64)
        if is_rise.any():
            peak = _values(self.then, np.zeros(1, dtype=np.int64))
            with np.errstate(all="ignore"):
                values[is_rise] = peak * (steps[is_rise] / self.steps)
        if not is_rise.all():
            values[~is_rise] = _values(self.then, steps[~is_rise] - self.steps)
        return values


@dataclass(frozen=True)
class Scaled(Schedule):
    """A constant times another schedule: ``factor * then(step)``. What `ReduceRate` leaves of a schedule.

    Parameters
    ----------
    factor : float
        > 0.
    then : float, schedule or callable

    Examples
    --------
    >>> Scaled(0.5, StepDecay(0.1, factor=0.5, every=100))(250)
    0.0125
    """

    factor: float
    then: LearningRate

    def __post_init__(self) -> None:
        _check_positive(self, "factor")
        object.__setattr__(self, "then", check_learning_rate(self.then, "then"))

    def _at(self, steps: npt.NDArray[np.int64]) -> Float64Array:
        with np.errstate(all="ignore"):
            return self.factor * _values(self.then, steps)


# Exactly these are asked for many steps at once: a subclass might answer for another number of them.
_VECTORISED = (
    StepDecay,
    ExponentialDecay,
    CosineDecay,
    CosineRestarts,
    CosLog,
    PolynomialDecay,
    InverseSqrtDecay,
    OneCycle,
    Warmup,
    Scaled,
)


def check_learning_rate(value: object, name: str = "learning_rate") -> LearningRate:
    """Return a constant learning rate as a float > 0, a schedule or other callable as it is.

    Raises
    ------
    TypeError
        If `value` is neither a number nor callable.
    ValueError
        If it is a number that is not finite or not > 0.
    """
    if isinstance(value, type) or not (callable(value) or isinstance(value, (int, float, np.number))):
        raise TypeError(
            f"{name} must be a number, a schedule or a callable of the step, got {checks.shown(value)} of type "
            f"{type(value).__name__}"
        )
    if callable(value):
        return value
    return checks.finite_float(value, name, low=0.0, low_open=True)


def sample(learning_rate: LearningRate, first_step: int, n_steps: int) -> Float64Array:
    """Return the learning rates of consecutive steps; the same bits however a run is cut into calls.

    Parameters
    ----------
    learning_rate : float, schedule or callable
        A user's callable is called once per step, in order, with a Python int.
    first_step, n_steps : int
        The steps are ``first_step, ..., first_step + n_steps - 1``.

    Returns
    -------
    float64 ndarray, shape (n_steps,)

    Raises
    ------
    TypeError
        If the callable returns no real number.
    ValueError
        If a value is not finite or negative; the message names the step.
    """
    if isinstance(learning_rate, float) and 0.0 <= learning_rate < math.inf:
        return np.full(n_steps, learning_rate)
    values = _values(learning_rate, np.arange(first_step, first_step + n_steps, dtype=np.int64))
    good = np.isfinite(values) & (values >= 0.0)
    if not good.all():
        index = int(np.argmin(good))
        raise ValueError(
            f"learning_rate must be finite and >= 0 at every step, got {values[index]} at step {first_step + index}"
        )
    return values


def _values(learning_rate: LearningRate, steps: npt.NDArray[np.int64]) -> Float64Array:
    """Return the learning rates of 1-D `steps`, unchecked but for their type."""
    if isinstance(learning_rate, _VECTORISED) and type(learning_rate) in _VECTORISED:
        return learning_rate(steps)
    if callable(learning_rate):
        rates = (_as_float(learning_rate(step), step) for step in steps.tolist())
        return np.fromiter(rates, dtype=np.float64, count=steps.size)
    return np.full(steps.shape, learning_rate, dtype=np.float64)


def _as_float(value: object, step: int) -> float:
    """Return what a user's callable returned as a float; arrays without dimensions, such as JAX's, are numbers too."""
    if isinstance(value, float):
        return value
    number = np.asarray(value)
    if number.ndim != 0 or number.dtype.kind not in "iuf":
        got = f"{checks.shown(value)} of type {type(value).__name__}"
        raise TypeError(f"learning_rate must return a float, got {got} at step {step}")
    return float(number)


def _cosine(start: float, end: float, progress: Float64Array) -> Float64Array:
    """Return the half cosine from `start` at progress 0 to `end` at progress 1."""
    return end + (start - end) * ((1.0 + np.cos(math.pi * progress)) / 2.0)


def _check_positive(schedule: Schedule, name: str) -> None:
    value = checks.finite_float(getattr(schedule, name), name, low=0.0, low_open=True)
    object.__setattr__(schedule, name, value)


def _check_non_negative(schedule: Schedule, name: str) -> None:
    object.__setattr__(schedule, name, checks.finite_float(getattr(schedule, name), name, low=0.0))


def _check_fraction(schedule: Schedule, name: str) -> None:
    value = checks.finite_float(getattr(schedule, name), name, low=0.0, low_open=True, high=1.0)
    object.__setattr__(schedule, name, value)


def _check_steps(schedule: Schedule, name: str) -> None:
    object.__setattr__(schedule, name, checks.positive_int(getattr(schedule, name), name, high=checks.MAX_STEP))
