"""What a model is apart from its numbers, and the checks of what a user says of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastbp import activations, checks, losses
from fastbp.choices import Choice
from fastbp.kernels.activations import ACTIVATIONS
from fastbp.kernels.losses import LOSSES, VALUES
from fastbp.layout import Layout
from fastbp.names import name_of, nearest
from fastbp.own import Activation as OwnActivation
from fastbp.own import Loss as OwnLoss

if TYPE_CHECKING:
    import numpy.typing as npt

    from fastbp.kernels.activations import Activation
    from fastbp.kernels.losses import Loss

__all__ = ["Architecture", "activation_of", "architecture_of", "loss_of"]

_ACTIVATION_CHOICES = activations.LeakyReLU, activations.ELU
_LOSS_CHOICES = losses.Huber, losses.Quantile

_DTYPES = ("float32", "float64")
# Outputs that reach only some values, which are not those of standardized targets.
_LIMITED = ("tanh", "relu", "elu", "selu", "gelu", "silu", "mish", "softplus", "hard_tanh")


class Architecture(NamedTuple):
    """What a model is apart from its numbers: the layout, one activation per layer, the loss, the dtype.

    standardizes_x, standardizes_y : whether inputs, and targets, are standardized as they are read (`Scaling`).

    Names with an option have it in parentheses, as `Choice` writes them; what is a user's own stands there itself.
    """

    layout: Layout
    activations: tuple[str | OwnActivation, ...]
    loss: str | OwnLoss
    dtype: np.dtype[Any]
    standardizes_x: bool = False
    standardizes_y: bool = False


def activation_of(name: str | OwnActivation) -> Activation:
    """Return the row of an activation of an `Architecture`, with its option as the constant."""
    if isinstance(name, OwnActivation):
        return name.row
    known, option = _parts(name)
    row = ACTIVATIONS[known]
    if option is None:
        return row
    value = float(option)  # elu's alpha, or a slope, of an activation that is flat nowhere
    flat_below = row.flat_below * value if math.isfinite(row.flat_below) else row.flat_below
    return row._replace(constants=(value,), flat_below=flat_below)


def loss_of(name: str | OwnLoss) -> Loss:
    """Return the row of a loss of an `Architecture`, with its option as the constant."""
    if isinstance(name, OwnLoss):
        return name.row
    known, option = _parts(name)
    row = LOSSES[known]
    return row if option is None else row._replace(constants=(float(option),))


def _parts(name: str) -> tuple[str, str | None]:
    """Return a name without its option, and that."""
    known, _, option = name.partition("(")
    return known, option.removesuffix(")") if option else None


def _split(given: object, choices: tuple[type[Choice], ...], what: str) -> tuple[object, str]:
    """Return what a user passes for a name, and its option in parentheses, checked; the name is not."""
    text = str(given) if isinstance(given, Choice) else given
    if not isinstance(text, str) or not text.endswith(")"):
        return text, ""
    known, option = _parts(text)
    choice = {choice._name: choice for choice in choices}.get(known)
    if choice is None:
        return text, ""  # nobody knows that name
    try:
        value = float(option or "")
    except ValueError:
        raise ValueError(f"{what} must have a number in parentheses, such as {choice()!r}, got {text!r}") from None
    return known, str(choice(value)).removeprefix(known)  # type: ignore[call-arg]


def architecture_of(
    sizes: Sequence[int],
    activation: str | Choice | Sequence[str | Choice],
    output: str | Choice,
    loss: str | Choice | None,
    dtype: npt.DTypeLike,
    standardize: bool = False,
    standardize_y: bool = False,
) -> Architecture:
    """Return the architecture that `MLP`'s parameters of these names describe.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was expected and what was passed.
    """
    layout = Layout(sizes)
    names = (*_hidden_activations(activation, layout.n_layers - 1), _output_activation(output, layout.sizes[-1]))
    number = _dtype_of(dtype)
    architecture = Architecture(
        layout,
        names,
        _loss_of(loss, names[-1], layout.sizes[-1]),
        number,
        checks.flag(standardize, "standardize"),
        checks.flag(standardize_y, "standardize_y"),
    )
    limited = [name for name in _LIMITED if names[-1] == name or str(names[-1]).startswith(f"{name}(")]
    if architecture.standardizes_y and limited:
        raise ValueError(f"standardize_y needs an output without limits, such as 'identity', got {limited[0]!r}")
    if architecture.standardizes_y and loss_of(architecture.loss).targets != VALUES:
        raise ValueError(
            f"standardize_y is for targets of any size, those of mse and the like, not for loss {architecture.loss!s}"
        )
    return architecture


def _hidden_activations(
    activation: str | Choice | Sequence[str | Choice], n_hidden: int
) -> tuple[str | OwnActivation, ...]:
    if isinstance(activation, (str, Choice)):
        return (_hidden_activation(activation, "activation"),) * n_hidden
    if not isinstance(activation, Sequence):
        raise TypeError(f"activation must be a str or a sequence of str, got {type(activation).__name__}")
    names = tuple(activation)
    if len(names) != n_hidden:
        raise ValueError(f"activation must have one name per hidden layer, {n_hidden}, got {len(names)}")
    return tuple(_hidden_activation(name, f"activation[{i}]") for i, name in enumerate(names))


def _hidden_activation(given: object, what: str) -> str | OwnActivation:
    if isinstance(given, OwnActivation):
        return given
    name, option = _split(given, _ACTIVATION_CHOICES, what)
    known = [known for known, entry in ACTIVATIONS.items() if entry.is_hidden]
    if isinstance(name, str) and (meant := nearest(name, ACTIVATIONS)) is not None and meant not in known:
        raise ValueError(f"{what} must be one of {', '.join(map(repr, known))}, got {name!r}, which is for output only")
    return name_of(name, known, what) + option


def _output_activation(output: object, n_out: int) -> str | OwnActivation:
    if isinstance(output, OwnActivation):
        return output
    given, option = _split(output, _ACTIVATION_CHOICES, "output")
    name = name_of(given, ACTIVATIONS, "output") + option
    if name == "softmax" and n_out == 1:
        raise ValueError(
            "output='softmax' needs one output per class, at least two: for one that tells two classes apart use "
            "output='sigmoid'"
        )
    return name


def _loss_of(given: object, output: str | OwnActivation, n_out: int) -> str | OwnLoss:
    if isinstance(given, OwnLoss):
        if output == "softmax":
            raise ValueError(
                f"loss with output 'softmax' must be 'cross_entropy', got {str(given)!r}, which is your own"
            )
        return given
    loss, option = _split(given, _LOSS_CHOICES, "loss")
    fused = next((name for name, entry in LOSSES.items() if entry.output == output), None)
    if loss is None:
        return fused or "mse"
    unfused = tuple(known for known, entry in LOSSES.items() if entry.output is None and output != "softmax")
    permitted = (*((fused,) if fused else ()), *unfused)
    name = name_of(loss, (*permitted, *(known for known in LOSSES if known not in permitted)), "loss")
    if name not in permitted:
        needed = LOSSES[name].output
        hint = f", which goes with output={needed!r}" if needed else ""
        raise ValueError(
            f"loss with output {output!r} must be one of {', '.join(map(repr, permitted))}, got {name!r}{hint}"
        )
    if n_out % LOSSES[name].outputs_per_target != 0:
        raise ValueError(
            f"loss {name!r} needs an even number of outputs, the means and then as many logarithms of variances, got "
            f"{n_out}"
        )
    return name + option


def _dtype_of(dtype: npt.DTypeLike) -> np.dtype[Any]:
    try:
        resolved = np.dtype(dtype)
    except Exception:  # any: NumPy hands a text to Python's parser
        if isinstance(dtype, str):
            name_of(dtype, _DTYPES, "dtype")
        resolved = None
    if dtype is None or resolved is None or resolved.name not in _DTYPES or not resolved.isnative:
        raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r}")
    return resolved
