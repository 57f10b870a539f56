"""Your own activations, losses and update rules, as ``@njit`` functions of numbers."""

from __future__ import annotations

import functools
import inspect
import pickle
import sys
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numba.core.errors import NumbaError

from fastbp import _jit, checks
from fastbp.choices import Choice
from fastbp.initializers import INITIALIZERS
from fastbp.kernels import own
from fastbp.kernels.activations import ACTIVATIONS
from fastbp.kernels.losses import LOSSES
from fastbp.kernels.panels import panel_width
from fastbp.kernels.updates import RULES
from fastbp.names import name_of
from fastbp.optimizers.base import Optimizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastbp.kernels import activations, losses, updates
    from fastbp.optimizers.base import Float64Array
    from fastbp.schedules import LearningRate

__all__ = ["Activation", "Loss", "UpdateRule"]

# Where derivatives are compared: numbers at which hardly any formula has a kink.
_POINTS = np.array(
    [-5.1273, -2.9177, -1.3141, -0.7213, -0.3117, -0.0671, 0.0593, 0.2719, 0.6871, 1.2923, 3.0391, 4.9167]
)
_TARGETS = np.array([-1.7311, 0.1273, 0.8821, 2.2139])
_STEP = 1e-6
_TOLERANCE = 1e-5
_MOST_MOMENTS, _MOST_HYPERPARAMETERS = 8, 16


class _ByReference:
    """Functions of a user's, adopted when they are handed over, and pickled as the names that they have there."""

    _functions: ClassVar[tuple[str, ...]]

    def __copy__(self) -> Any:
        return self  # nothing in it ever changes

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        named = {name: _place_of(values[name], name) for name in self._functions if values[name] is not None}
        return _restored, (type(self), values | named, tuple(named))

    def _adopted(self, name: str, *parameters: str) -> Any:
        """Return a function of these parameters as a helper of ours."""
        function, what = getattr(self, name), f"{name} of {type(self).__name__} {getattr(self, 'name')!r}"  # noqa: B009
        expected = f"a function ({', '.join(parameters)}) made by numba.njit"
        if not _jit.is_compiled(function):
            raise TypeError(f"{what} must be {expected}, got {checks.shown(function)}")
        given = list(inspect.signature(function.py_func).parameters)
        if len(given) != len(parameters):
            raise TypeError(f"{what} must be {expected}, got one of ({', '.join(given)})")
        return _explained(what, lambda: _jit.adopt(function))


def _explained(what: str, compiled: Callable[[], Any]) -> Any:
    """Return ``compiled()``; an error says what is wrong with the user's function, not all that Numba went through.

    Raises
    ------
    TypeError
    """
    try:
        return compiled()
    except NumbaError as error:
        first = str(error).strip().split("\n\n")[0]
        raise TypeError(f"{what} does not compile for float32 and float64 numbers: {first}") from error
    except TypeError as error:
        raise TypeError(f"{what}: {error}") from error


def _refuse_exceptions(what: str, call: Callable[[], Any]) -> None:
    """Make a call of a user's functions; a TypeError if they raise, such as for an index that is out of range."""
    try:
        call()
    except RuntimeError as error:
        raise TypeError(
            f"{what} must not raise exceptions, which nobody could catch, and does so for some numbers, 0 among them: "
            "an index out of range, or 0 to a negative power (write 1 / z**2)"
        ) from error


def _place_of(function: Any, what: str) -> tuple[str, str]:
    """Return module and name under which a process to come finds a function."""
    module, name = function.py_func.__module__, function.py_func.__qualname__
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not function:
        raise pickle.PicklingError(
            f"{what} is pickled by its name, and {module}.{name} is something else: define it at the top of a module"
        )
    return module, name


def _restored(kind: type[_ByReference], values: dict[str, Any], functions: tuple[str, ...]) -> Any:
    """Return what was pickled, its functions imported by their names."""
    for name in functions:
        module, path = values[name]
        __import__(module)
        found: Any = sys.modules[module]
        for part in path.split("."):
            found = getattr(found, part)
        values[name] = found
    return kind(**values)


def _checked_name(name: object, known: dict[str, Any], what: str) -> str:
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"name of {what} must be a str such as a variable may be called, got {checks.shown(name)}")
    if name in known:
        raise ValueError(f"name of {what} must be none of fastbp's own, got {name!r}")
    return name


@dataclass(frozen=True, repr=False)
class Activation(_ByReference, Choice):
    """An activation of your own, wherever one of fastbp's may be named: ``MLP(sizes, activation=Activation(...))``.

    Parameters
    ----------
    name : str
        A name of its own.
    f : function of z
        h = f(z): an ``@njit`` function of one number.
    df : function of z and h
        The derivative f'(z), with h = f(z) at hand. If it never reads z, the pre-activations need not be kept.
    initializer : str, default "glorot_uniform"
        What ``init="auto"`` draws the weights before it by, as in `MLP`.
    check : bool, default True
        Whether to compare `df` with differences of `f`. False for a derivative that is meant to be another one, such as
        a straight-through estimator.

    Raises
    ------
    TypeError
        If a function is none that ``@njit`` has made, raises exceptions, or does not compile.
    ValueError
        If `df` is not the derivative of `f`, with the places where it differs; or of other wrong arguments.

    Notes
    -----
    The functions are compiled by fastbp: for whole SIMD vectors, if they are written with operators, ``abs``, ``max``,
    ``min``, powers of a whole number, and what `fastbp.elementary` has; else (with ``if``, or ``math.sin``) for one
    number after the other, which takes longer. They must depend on their arguments alone, as any thread may call them
    at any time, in any order. Their code is kept on disk like fastbp's own, if all that they name are numbers, other
    ``@njit`` functions, and functions of `math`, NumPy and `fastbp.elementary`.

    Models with it pickle, with the functions by their names: define them at the top of a module.

    Examples
    --------
    >>> from numba import njit
    >>> @njit
    ... def softsign(z):
    ...     return z / (1.0 + abs(z))
    >>> @njit
    ... def softsign_derivative(z, h):
    ...     return (1.0 - abs(h)) ** 2
    >>> activation = Activation("softsign", softsign, softsign_derivative)
    >>> import fastbp
    >>> fastbp.MLP([2, 8, 1], activation, seed=0).activations
    ('softsign', 'identity')
    """

    name: str
    f: Any
    df: Any
    initializer: str = "glorot_uniform"
    check: bool = True
    _functions: ClassVar[tuple[str, ...]] = ("f", "df")

    def __post_init__(self) -> None:
        _checked_name(self.name, ACTIVATIONS, "an activation")
        checks.flag(self.check, "check")
        name_of(self.initializer, INITIALIZERS, "initializer")
        f, df = self._adopted("f", "z"), self._adopted("df", "z", "h")
        z = next(iter(inspect.signature(self.df.py_func).parameters))
        row = _explained(
            f"f or df of Activation {self.name!r}",
            lambda: own.activation(f, df, _jit.reads(self.df, z), self.initializer),
        )
        object.__setattr__(self, "row", row)
        _refuse_exceptions(f"f or df of Activation {self.name!r}", lambda: self._evaluate(np.append(_POINTS, 0.0)))
        if self.check:
            _check_derivative(f"Activation {self.name!r}", self._evaluate, _POINTS, "z")

    row: ClassVar[activations.Activation]

    def _evaluate(self, z: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Return f and its derivative at float64 numbers, by the leaves."""
        n = -(-z.size // panel_width(np.float64)) * panel_width(np.float64)
        kept, h, d, nothing = np.resize(z, n), np.resize(z, n), np.ones(n), np.zeros(1)
        self.row.forward.call(np.float64, h, n, 1, nothing)
        self.row.backward.call(np.float64, d, kept, h, n, 1, nothing)
        return h[: z.size], d[: z.size]

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Activation({self.name!r}, {self.f.__name__}, {self.df.__name__})"


@dataclass(frozen=True, repr=False)
class Loss(_ByReference, Choice):
    """A loss of your own, wherever one of fastbp's may be named: ``MLP(sizes, loss=Loss(...))``.

    The mean over samples and outputs of ``f(output, y)``, for any output activation but a softmax.

    Parameters
    ----------
    name : str
        A name of its own.
    f : function of output and y
        An ``@njit`` function of two numbers, an output and its target.
    df : function of output and y
        Its derivative with respect to the output.
    check : bool, default True
        Whether to compare `df` with differences of `f`, at outputs from -5 to 5 and targets from -1.7 to 2.2. False for
        one that is meant to be another, or a formula that is not for all of these numbers.

    Raises
    ------
    TypeError, ValueError
        As `Activation`.

    Notes
    -----
    As of `Activation`.

    Examples
    --------
    >>> from numba import njit
    >>> from fastbp import elementary
    >>> @njit
    ... def asymmetric(output, y):
    ...     e = output - y
    ...     return elementary.where(e > 0.0, 3.0 * e * e, e * e)
    >>> @njit
    ... def asymmetric_derivative(output, y):
    ...     e = output - y
    ...     return elementary.where(e > 0.0, 6.0 * e, 2.0 * e)
    >>> import fastbp
    >>> fastbp.MLP([2, 8, 1], loss=Loss("asymmetric", asymmetric, asymmetric_derivative), seed=0).loss_name
    'asymmetric'
    """

    name: str
    f: Any
    df: Any
    check: bool = True
    _functions: ClassVar[tuple[str, ...]] = ("f", "df")

    def __post_init__(self) -> None:
        _checked_name(self.name, LOSSES, "a loss")
        checks.flag(self.check, "check")
        f, df = self._adopted("f", "output", "y"), self._adopted("df", "output", "y")
        row = _explained(f"f or df of Loss {self.name!r}", lambda: own.loss(f, df))
        object.__setattr__(self, "row", row)
        _refuse_exceptions(f"f or df of Loss {self.name!r}", lambda: self._evaluate(0.0, np.append(_POINTS, 0.0)))
        if self.check:
            for y in _TARGETS:
                at_y = functools.partial(self._evaluate, y)
                _check_derivative(f"Loss {self.name!r} at y = {y}", at_y, _POINTS, "output")

    row: ClassVar[losses.Loss]

    def _evaluate(self, y: float, output: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Return f and its derivative of float64 outputs and one target, by the leaf."""
        panel = panel_width(np.float64)
        values, derivatives, sums = np.empty(output.size), np.empty(output.size), np.empty(2)
        for i, value in enumerate(output):
            outputs, targets, d = np.full(panel, value), np.full(panel, y), np.empty(panel)
            self.row.leaf.call(np.float64, outputs, targets, outputs, d, 1, 1, 1.0, outputs, sums)
            values[i], derivatives[i] = sums[0], d[0]
        return values, derivatives

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Loss({self.name!r}, {self.f.__name__}, {self.df.__name__})"


def _check_derivative(
    what: str,
    evaluate: Callable[[Float64Array], tuple[Float64Array, Float64Array]],
    points: Float64Array,
    variable: str,
) -> None:
    """Raise a ValueError where a derivative is not that of its function, or one of both is not finite."""
    step = _STEP * np.maximum(1.0, np.abs(points))
    values, derivatives = evaluate(points)
    differences = (evaluate(points + step)[0] - evaluate(points - step)[0]) / (2.0 * step)
    scale = np.maximum(1.0, np.abs(differences))
    for i in np.flatnonzero(~np.isfinite(values) | ~np.isfinite(derivatives)):
        raise ValueError(f"{what}: at {variable} = {points[i]} it is {values[i]}, and its derivative {derivatives[i]}")
    for i in np.flatnonzero(np.abs(derivatives - differences) > _TOLERANCE * scale):
        raise ValueError(
            f"{what}: df is {derivatives[i]:.7g} at {variable} = {points[i]}, where f changes by {differences[i]:.7g} "
            "(check=False if that is meant)"
        )


@dataclass(frozen=True, repr=False)
class UpdateRule(_ByReference, Optimizer):
    """An optimizer of your own, wherever one of fastbp's may be passed.

    Parameters
    ----------
    name : str
        A name of its own.
    n_moments : int
        How many numbers each parameter has beside it, from 0 on: 0 to 8.
    f : function of p, g, moments and numbers
        An ``@njit`` function that returns the new parameter and a tuple of its new moments, from the parameter, its
        gradient, a tuple of its moments, and a tuple of numbers that are the same for all parameters: the coefficients
        and then the hyper-parameters.
    learning_rate : float, schedule or callable, default 0.01
    hyperparameters : tuple of float, default ()
        At most 16.
    coefficients : function of rate, t and hyperparameters, optional
        What changes from step to step: an ``@njit`` function that returns a tuple of 1 to 4 numbers, from the learning
        rate, the number t of the step from 1 on, and the tuple of the hyper-parameters; called once for each step, in
        float64. By default it is the learning rate alone.

    Raises
    ------
    TypeError, ValueError
        As `Activation`.

    Notes
    -----
    As of `Activation`. Gradients below 1e-19 (1e-154 in float64) come as 0, so that their squares are no subnormals;
    moments and parameters that small are stored as 0.

    Examples
    --------
    Momentum as in the papers, with the learning rate in the buffer:

    >>> from numba import njit
    >>> @njit
    ... def heavy_ball(p, g, moments, numbers):
    ...     rate, momentum = numbers
    ...     velocity = momentum * moments[0] - rate * g
    ...     return p + velocity, (velocity,)
    >>> optimizer = UpdateRule("heavy_ball", 1, heavy_ball, 0.1, hyperparameters=(0.9,))
    >>> import fastbp, numpy as np
    >>> x = np.linspace(-1, 1, 100)[:, np.newaxis]
    >>> history = fastbp.MLP([1, 8, 1], "tanh", seed=0).fit(x, x**2, optimizer=optimizer, epochs=50, seed=0)
    >>> bool(history.loss[-1] < 0.1 * history.loss[0])
    True
    """

    name: str
    n_moments: int
    f: Any
    learning_rate: LearningRate = 0.01
    hyperparameters: tuple[float, ...] = ()
    coefficients: Any = None
    _functions: ClassVar[tuple[str, ...]] = ("f", "coefficients")

    def _check(self) -> None:
        _checked_name(self.name, RULES, "an update rule")
        n = checks.non_negative_int(self.n_moments, "n_moments", _MOST_MOMENTS)
        object.__setattr__(self, "n_moments", n)
        numbers = _checked_numbers(self.hyperparameters)
        object.__setattr__(self, "hyperparameters", numbers)
        what = f"f or coefficients of UpdateRule {self.name!r}"
        # A rule is made anew for each other rate or number; its leaves are the same.
        given = [function for function in (self.f, self.coefficients) if function is not None]
        are_functions = False not in [_jit.is_compiled(function) for function in given]
        key: tuple[Any, ...] = (self.f, self.coefficients, n, len(numbers)) if are_functions else ()
        if key not in _RULES:
            f = self._adopted("f", "p", "g", "moments", "numbers")
            coefficients = None
            if self.coefficients is not None:
                coefficients = self._adopted("coefficients", "rate", "t", "hyperparameters")
            while len(_RULES) >= _MOST_RULES:
                _RULES.pop(next(iter(_RULES)))
            _RULES[key] = _explained(what, lambda: own.rule(f, coefficients, n, len(numbers)))
        object.__setattr__(self, "row", _RULES[key])
        _refuse_exceptions(what, self._take_a_step)

    row: ClassVar[updates.Rule]

    def _take_a_step(self) -> None:
        """Update a few float64 parameters, zeros among them."""
        params, grads, constants = np.arange(8.0), np.arange(8.0), np.append(self.constants, 0.0)
        state, coefficients = np.zeros(8 * max(1, self.n_moments)), np.zeros(8)
        self.row.coefficients.call(np.float64, 0.1, 0, constants, coefficients)
        self.row.update.call(np.float64, params, grads, state, 8, 1, 8, 8, 8, constants, coefficients)

    @property
    def moments(self) -> tuple[str, ...]:
        """``m0``, ``m1`` and so on."""
        return tuple([f"m{i}" for i in range(self.n_moments)])

    @property
    def constants(self) -> Float64Array:
        """The hyper-parameters."""
        return np.array(self.hyperparameters, np.float64)

    def __repr__(self) -> str:
        return f"UpdateRule({self.name!r}, {self.n_moments}, {self.f.__name__}, {self.learning_rate!r})"


_MOST_RULES = 64
_RULES: dict[tuple[Any, ...], updates.Rule] = {}  # by functions, and how many numbers they take


def _checked_numbers(values: object) -> tuple[float, ...]:
    """Return a tuple of finite numbers, not too many."""
    if not isinstance(values, (tuple, list)) or len(values) > _MOST_HYPERPARAMETERS:
        raise TypeError(f"hyperparameters must be a tuple of at most {_MOST_HYPERPARAMETERS} numbers, got {values!r}")
    return tuple([checks.finite_float(value, f"hyperparameters[{i}]") for i, value in enumerate(values)])
