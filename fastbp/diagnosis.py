"""What a record of health means, in plain words: illnesses, since when, in which layer, and what usually helps.

Each illness is one function; its thresholds stand before it, with their sources. An illness counts if the last three
records show it, or all if there are fewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Column", "DataFacts", "Finding", "HealthReport", "LayerFacts", "Record", "diagnose"]

Array: TypeAlias = npt.NDArray[np.float64]

_PERSISTENT = 3  # records
_SHOWN = 5  # columns or layers that a sentence names


class LayerFacts(NamedTuple):
    """What is to be known of a layer. flat_sides : on how many sides its activation is flat; None of an output."""

    activation: str
    n_params: int
    flat_sides: int | None


class Column(NamedTuple):
    """The scale of a column of the data, over some thousand rows."""

    root_mean_square: float
    spread: float


class DataFacts(NamedTuple):
    """What is to be known of training data: constant columns of x, and the scales of all columns.

    y : of targets that are values of a regression, else none.
    """

    constant: tuple[int, ...]
    x: tuple[Column, ...]
    y: tuple[Column, ...]


class Record(NamedTuple):
    """All that is diagnosed: the columns of `Health`, and facts of layers and data."""

    step: npt.NDArray[np.int64]
    loss: Array
    gradient_norm: Array
    update_ratio: Array
    activation_spread: Array
    dead: Array
    saturated: Array
    first_non_finite: tuple[int, int | None] | None
    layers: tuple[LayerFacts, ...]
    data: DataFacts

    @property
    def n_records(self) -> int:
        """Steps that were looked at."""
        return len(self.step)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes
    ----------
    illness : str
        Its name: ``"vanishing gradient"``, ``"exploding"``, ``"dead units"``, ``"saturated units"``,
        ``"constant input"``, ``"unscaled inputs"``, ``"unscaled targets"``, ``"learning rate too small"``,
        ``"learning rate too large"``.
    layer : int or None
        The layer, from 0; None where it is of none.
    since : int
        The step from which on it is there.
    text, remedy : str
        What is wrong, and what usually helps.
    is_note : bool
        Whether it is worth knowing, but does no harm.
    """

    illness: str
    layer: int | None
    since: int
    text: str
    remedy: str
    is_note: bool = False

    def __str__(self) -> str:
        note = "Note: " if self.is_note else ""
        illness = self.illness if note else self.illness.capitalize()
        return f"{note}{illness}, since step {self.since}: {self.text}\n    What usually helps: {self.remedy}"


@dataclass(frozen=True)
class HealthReport:
    """What `Health.report` says; print it. It is true if nothing is wrong, notes aside.

    Attributes
    ----------
    findings : tuple of Finding
        The likeliest cause of the others first.
    n_records, last_step : int
        How many steps were looked at, and the last of them.

    Examples
    --------
    >>> report = HealthReport((), n_records=4, last_step=300)
    >>> bool(report), str(report)
    (True, 'Nothing is wrong in the 4 steps looked at, up to step 300.')
    """

    findings: tuple[Finding, ...]
    n_records: int
    last_step: int

    def __bool__(self) -> bool:
        return all(finding.is_note for finding in self.findings)

    def __str__(self) -> str:
        steps = f"the {self.n_records} steps looked at, up to step" if self.n_records > 1 else "the one step looked at,"
        lines = [f"Nothing is wrong in {steps} {self.last_step}."] if self and self.n_records else []
        return "\n".join([*lines, *map(str, self.findings)]) or "No step was looked at."


def diagnose(record: Record) -> HealthReport:
    """Return what is wrong, the likeliest cause of the others first."""
    findings = [*_of_data(record.data), *_exploding(record)]
    if record.n_records:
        findings += [*_vanishing(record), *_dead(record), *_saturated(record)]
    if record.n_records >= _PERSISTENT and all(each.is_note for each in findings):  # or else the rate is not to blame
        findings += [*_rate_too_small(record), *_rate_too_large(record)]
    last_step = int(record.step[-1]) if record.n_records else 0
    return HealthReport(tuple(findings), record.n_records, last_step)


def _since(record: Record, is_ill: npt.NDArray[np.bool_]) -> int | None:
    """Return the first step of the last records in a row that are ill, None if these are too few."""
    n_in_a_row = int(np.argmin(np.append(is_ill[::-1], False)))
    if n_in_a_row < min(_PERSISTENT, len(is_ill)):
        return None
    return int(record.step[-n_in_a_row])


# Y. LeCun et al., "Efficient BackProp" (1998), section 4.3, wants inputs of mean 0 and variance 1; what is ten times as
# large trains all the same. As to targets: a network begins with outputs of about 1, and errors of a hundred make
# gradients of a hundred.
_LARGE_INPUT, _LARGE_TARGET, _SMALL = 10.0, 100.0, 1e-3


def _of_data(data: DataFacts) -> Iterable[Finding]:
    """Find columns without information, and data of an unusual size."""
    if data.constant:
        text = f"{_named('column', data.constant)} of x {_have(data.constant)} one value in all samples."
        remedy = "leave it out, or look for what went wrong where it was made."
        yield Finding("constant input", None, 0, text, remedy, is_note=True)
    varying = [column for index, column in enumerate(data.x) if index not in data.constant]
    large = [index for index, column in enumerate(data.x) if column.root_mean_square > _LARGE_INPUT]
    remedy = "MLP(standardize=True), which subtracts each column's mean and divides by its standard deviation."
    if large:
        most = max(column.root_mean_square for column in data.x)
        text = f"{_named('column', large)} of x {_have(large)} values of the size of {most:.3g}; about 1 is wanted."
        yield Finding("unscaled inputs", None, 0, text, remedy)
    elif 0.0 < max((column.spread for column in varying), default=0.0) < _SMALL:
        most = max(column.spread for column in varying)
        text = f"no column of x has a standard deviation above {most:.3g}; about 1 is wanted."
        yield Finding("unscaled inputs", None, 0, text, remedy)
    yield from _of_targets(data.y)


def _of_targets(columns: tuple[Column, ...]) -> Iterable[Finding]:
    most = max((column.root_mean_square for column in columns), default=0.0)
    spread = max((column.spread for column in columns), default=0.0)
    remedy = "MLP(standardize_y=True), which learns (y - mean) / standard deviation; predictions stay in your units."
    if most > _LARGE_TARGET:
        text = f"the targets are of the size of {most:.3g}; about 1 is wanted."
        yield Finding("unscaled targets", None, 0, text, remedy)
    elif 0.0 < spread < _SMALL:
        text = f"no target has a standard deviation above {spread:.3g}; about 1 is wanted."
        yield Finding("unscaled targets", None, 0, text, remedy)


# R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent neural networks" (2013): what explodes
# does so by powers of the depth. K. He et al., "Delving deep into rectifiers" (2015), equation 10, wants outputs of
# layers that vary alike; a hundred times as much, from the first hidden layer to a later one, is our own limit.
_GROWTH = 100.0


def _exploding(record: Record) -> Iterable[Finding]:
    """Find a divergence, or outputs that grow from layer to layer."""
    remedy = (
        "initial weights that suit the activation (init='auto'), a smaller learning rate or a warm-up, clip_norm=1.0, "
        "on_divergence='reduce'."
    )
    if record.first_non_finite is not None:
        step, layer = record.first_non_finite
        where = "the loss was" if layer is None else f"the numbers of layer {layer} were"
        yield Finding("exploding", layer, step, f"{where} not finite in step {step}.", remedy)
        return
    spreads = record.activation_spread[:, :-1]
    with np.errstate(all="ignore"):
        growth = spreads / spreads[:, :1]
    for layer in range(1, spreads.shape[1] if record.n_records else 0):
        since = _since(record, (growth[:, layer] > _GROWTH) & (spreads[:, layer] > 1.0))
        if since is not None:
            text = f"the outputs of layer {layer} vary {growth[-1, layer]:.3g} times as much as those of layer 0."
            yield Finding("exploding", layer, since, text, remedy)
            return


# Layers should have gradients alike: X. Glorot and Y. Bengio, "Understanding the difficulty of training deep
# feedforward neural networks" (2010), section 4.2. S. Hochreiter (1991) and Y. Bengio, P. Simard and P.
# Frasconi (1994) show that they vanish by powers of the depth.
_VANISHED = 1e-3


def _vanishing(record: Record) -> Iterable[Finding]:
    """Find gradients that shrink from layer to layer on the way back."""
    if len(record.layers) < 3:
        return
    with np.errstate(all="ignore"):
        sizes = record.gradient_norm / np.sqrt([layer.n_params for layer in record.layers])
        ratio = sizes / sizes[:, -1:]
    for layer in range(len(record.layers) - 2, -1, -1):
        since = _since(record, ratio[:, layer] < _VANISHED)
        if since is not None:
            text = (
                f"on average a weight of layer {layer} has {ratio[-1, layer]:.1e} of the gradient of one of the last "
                f"layer, and one of layer 0 {ratio[-1, 0]:.1e}."
            )
            remedy = "activation='relu', 'leaky_relu' or 'elu' instead of sigmoid or tanh, init='auto', fewer layers."
            yield Finding("vanishing gradient", layer, since, text, remedy)
            return


# A. Karpathy, CS231n, "Neural networks part 1" (Stanford): as much as 40 % of a network can be dead where the learning
# rate is too high; but small ones that do well have been seen with half. L. Lu et al., "Dying ReLU and initialization"
# (2020), on how that comes to be.
_DEAD = 0.6


def _dead(record: Record) -> Iterable[Finding]:
    """Find units that are off, whatever the sample."""
    remedy = "a smaller learning rate or a warm-up, activation='leaky_relu' or 'elu', scaled inputs, init='auto'."
    for layer, since in _layers_with(record, record.dead, _DEAD):
        share, name = record.dead[-1, layer], record.layers[layer].activation
        text = (
            f"{share:.0%} of the units of layer {layer} ({name}) are off in all samples looked at: they learn nothing."
        )
        yield Finding("dead units", layer, since, text, remedy)


# Glorot and Bengio, section 3, look at percentiles of activations; A. Rakitianskaia and A. Engelbrecht, "Measuring
# saturation in neural networks" (2015), at their histograms. Half of a layer's units is our own limit.
_SATURATED = 0.5


def _saturated(record: Record) -> Iterable[Finding]:
    """Find units at the ends of their activation."""
    remedy = "scaled inputs, a smaller learning rate, L2 regularisation, init='auto', activation='relu'."
    for layer, since in _layers_with(record, record.saturated, _SATURATED):
        share, name = record.saturated[-1, layer], record.layers[layer].activation
        text = f"{share:.0%} of the units of layer {layer} ({name}) sit where it is flat: they learn next to nothing."
        yield Finding("saturated units", layer, since, text, remedy)


def _layers_with(record: Record, shares: Array, most: float) -> Iterable[tuple[int, int]]:
    """Return the layers of which a share exceeds `most`, and since when."""
    for layer in range(shares.shape[1]):
        since = _since(record, shares[:, layer] > most)
        if since is not None:
            yield layer, since


def _rate_too_large(record: Record) -> Iterable[Finding]:
    """Find a loss that is no better than at the start, once nothing else explains it."""
    half = record.n_records // 2
    loss, first = record.loss[half:].mean(), record.loss[0]
    if loss >= first and record.step[0] == 0:
        text = f"the loss, {first:.3g} at first, is {loss:.3g} on average in the second half."
        remedy = "a learning rate a third or a tenth as large (trainer.find_learning_rate), a warm-up, clip_norm=1.0."
        yield Finding("learning rate too large", None, int(record.step[half]), text, remedy)


# A. Karpathy, CS231n, "Neural networks part 3" (Stanford): an update should be some 1e-3 of the weights. From a tenth
# of that on it is slow; but not where a tenth of the first loss is all that is left.
_SLOW, _DONE = 1e-4, 0.1


def _rate_too_small(record: Record) -> Iterable[Finding]:
    """Find updates that hardly move the weights from the beginning on."""
    quarter = max(_PERSISTENT, record.n_records // 4)
    ratio = np.median(record.update_ratio[:quarter].max(axis=1))
    if ratio < _SLOW and record.loss[-quarter:].mean() > _DONE * record.loss[0]:
        text = f"a step changes the weights of no layer by more than {ratio:.1e} of their size; 1e-3 is usual."
        remedy = "a learning rate ten or a hundred times as large: trainer.find_learning_rate(x, y).plot()."
        yield Finding("learning rate too small", None, int(record.step[0]), text, remedy)


def _named(what: str, indices: Iterable[int]) -> str:
    """Return the first of some numbered things in words."""
    indices = list(indices)
    shown = ", ".join(map(str, indices[:_SHOWN]))
    more = f" and {len(indices) - _SHOWN} more" if len(indices) > _SHOWN else ""
    return f"{what}{'s' if len(indices) > 1 else ''} {shown}{more}"


def _have(indices: Iterable[int]) -> str:
    return "has" if len(list(indices)) == 1 else "have"
