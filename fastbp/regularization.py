"""Cures of overfitting: what `regularize=` of `Trainer` and `MLP.fit` takes. All are frozen and hold no state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fastbp import checks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fastbp.shaping import Group, LayerShaping, Shaping

__all__ = ["L1", "L2", "Dropout", "InputNoise", "LabelSmoothing", "MaxNorm", "Regularizer", "regularized"]


class Regularizer:
    """Base class of all regularizers."""

    def _check_layers(self) -> None:
        """Keep `layers` as a tuple, whatever iterable it was."""
        layers = getattr(self, "layers", None)
        if layers is None:
            return
        entries = checks.entries(layers, "layers", "None or a sequence of layers' numbers")
        numbers = tuple([checks.integer(number, f"layers[{index}]") for index, number in enumerate(entries)])
        if not numbers:
            raise ValueError("layers must name at least one layer, or be None for all of them")
        object.__setattr__(self, "layers", numbers)

    def _set_rate(self, name: str = "rate", high: float | None = None) -> None:
        """Check a number >= 0, and below `high` if that is given."""
        value = checks.finite_float(getattr(self, name), name, low=0.0, high=high, high_open=True)
        object.__setattr__(self, name, value)

    def _shaped(self, shaping: Shaping) -> Shaping:
        """Return what shapes a step with this, added to what there is. layers : one for each of the network."""
        raise NotImplementedError


def _numbers_of(layers: tuple[int, ...] | None, n: int, what: str) -> set[int]:
    """Return which of n layers are meant, counted from the end where they are negative."""
    if layers is None:
        return set(range(n))
    for number in layers:
        if not -n <= number < n:
            raise ValueError(f"layers of {what} must be in [{-n}, {n - 1}] for this model, got {number}")
    return {number % n for number in layers}


def _changed(
    shaping: Shaping, layers: tuple[int, ...] | None, what: str, change: Callable[[LayerShaping], LayerShaping]
) -> Shaping:
    """Return `shaping` with what is said of these layers changed."""
    meant = _numbers_of(layers, len(shaping.layers), what)
    own = [change(layer) if index in meant else layer for index, layer in enumerate(shaping.layers)]
    return shaping._replace(layers=tuple(own))


@dataclass(frozen=True)
class _Penalty(Regularizer):
    """A function of the weights that is added to the loss."""

    rate: float
    biases: bool = False
    per_batch: bool = False
    layers: tuple[int, ...] | None = None
    _field: ClassVar[str]  # of `Group`

    def __post_init__(self) -> None:
        self._set_rate()
        object.__setattr__(self, "biases", checks.flag(self.biases, "biases"))
        object.__setattr__(self, "per_batch", checks.flag(self.per_batch, "per_batch"))
        self._check_layers()

    def _shaped(self, shaping: Shaping) -> Shaping:
        field = self._field + ("_per_batch" if self.per_batch else "")

        def penalized(group: Group) -> Group:
            return group._replace(**{field: getattr(group, field) + self.rate})

        def change(layer: LayerShaping) -> LayerShaping:
            of_biases = penalized(layer.of_biases) if self.biases else layer.of_biases
            return layer._replace(of_weights=penalized(layer.of_weights), of_biases=of_biases)

        return _changed(shaping, self.layers, type(self).__name__, change)


@dataclass(frozen=True)
class L2(_Penalty):
    """Add ``rate / 2 * sum(w**2)`` to the training loss (ridge, Tikhonov): ``rate * w`` to the gradient.

    The penalty is in the training loss and in the history, not in `MLP.loss`. With adaptive optimizers, such as Adam,
    it is divided by the root of the mean square as all of the gradient is; `AdamW` decays weights beside the gradient.

    Parameters
    ----------
    rate : float
        >= 0.
    biases : bool, default False
        Whether biases are penalized too.
    per_batch : bool, default False
        Whether to divide by the samples of the batch, or the sum of their weights: scikit-learn's ``alpha``.
    layers : sequence of int, optional
        Numbers of the layers of weights, from 0, or from -1 backwards; all by default.

    References
    ----------
    A. Krogh and J. A. Hertz, "A simple weight decay can improve generalization", NeurIPS 1991.

    Examples
    --------
    >>> L2(1e-4)
    L2(rate=0.0001, biases=False, per_batch=False, layers=None)
    """

    _field: ClassVar[str] = "l2"


@dataclass(frozen=True)
class L1(_Penalty):
    """Add ``rate * sum(abs(w))`` to the training loss (lasso): ``rate * sign(w)`` to the gradient, 0 where w is 0.

    The penalty is in the training loss and in the history, not in `MLP.loss`.

    Parameters
    ----------
    rate, biases, per_batch, layers
        As for `L2`.

    References
    ----------
    R. Tibshirani, "Regression shrinkage and selection via the lasso", Journal of the Royal Statistical Society B 58(1),
    1996.

    Examples
    --------
    >>> L1(1e-5, layers=[0])
    L1(rate=1e-05, biases=False, per_batch=False, layers=(0,))
    """

    _field: ClassVar[str] = "l1"


@dataclass(frozen=True)
class MaxNorm(Regularizer):
    """Scale the weights that come into a unit down to this Euclidean norm, where they exceed it, after each update.

    Biases do not count, and stay.

    Parameters
    ----------
    value : float
        The largest norm, > 0.
    layers : sequence of int, optional
        As for `L2`.

    References
    ----------
    N. Srivastava et al., "Dropout: A simple way to prevent neural networks from overfitting", Journal of Machine
    Learning Research 15, 2014, section 5.1.

    Examples
    --------
    >>> MaxNorm(3)
    MaxNorm(value=3.0, layers=None)
    """

    value: float
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", checks.finite_float(self.value, "value", low=0.0, low_open=True))
        self._check_layers()

    def _shaped(self, shaping: Shaping) -> Shaping:
        def change(layer: LayerShaping) -> LayerShaping:
            return layer._replace(max_norm=min(self.value, layer.max_norm))

        return _changed(shaping, self.layers, "MaxNorm", change)


@dataclass(frozen=True)
class Dropout(Regularizer):
    """In each step set outputs of hidden units to zero at random, and divide the others by ``1 - rate`` (inverted).

    Predictions, validation and `MLP.loss` use all units. The training loss is that of the thinned network. What is
    dropped follows from the trainer's seed, the step, the layer and the sample's position in its batch: the same for
    any threads, and for a run that was stopped in between.

    Parameters
    ----------
    rate : float
        Probability, in [0, 1).
    input_rate : float, default 0.0
        That of the network's inputs, in [0, 1).
    layers : sequence of int, optional
        Numbers of the hidden layers, from 0, or from -1 backwards; all by default.

    References
    ----------
    N. Srivastava et al., "Dropout: A simple way to prevent neural networks from overfitting", Journal of Machine
    Learning Research 15, 2014.

    Examples
    --------
    >>> Dropout(0.5, input_rate=0.1)
    Dropout(rate=0.5, input_rate=0.1, layers=None)
    """

    rate: float
    input_rate: float = 0.0
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        self._set_rate(high=1.0)
        self._set_rate("input_rate", high=1.0)
        self._check_layers()

    def _shaped(self, shaping: Shaping) -> Shaping:
        n_hidden = len(shaping.layers) - 1
        if n_hidden == 0 and (self.rate > 0.0 or self.layers is not None):
            raise ValueError("Dropout(rate) drops hidden units, of which this model has none; see input_rate")
        before = {number + 1 for number in _numbers_of(self.layers, n_hidden, "Dropout")}  # the inputs of these layers
        rates = [self.input_rate if index == 0 else self.rate * (index in before) for index in range(n_hidden + 1)]
        layers = [
            layer._replace(dropout=1.0 - (1.0 - layer.dropout) * (1.0 - rate))
            for layer, rate in zip(shaping.layers, rates, strict=True)
        ]
        return shaping._replace(layers=tuple(layers))


@dataclass(frozen=True)
class InputNoise(Regularizer):
    """In each step add normal noise of this standard deviation to the inputs.

    Drawn as what `Dropout` drops is. Scale the inputs: the noise is the same for all of them.

    Parameters
    ----------
    std : float
        >= 0, in the units of the inputs.

    References
    ----------
    C. M. Bishop, "Training with noise is equivalent to Tikhonov regularization", Neural Computation 7(1), 1995.

    Examples
    --------
    >>> InputNoise(0.1)
    InputNoise(std=0.1)
    """

    std: float

    def __post_init__(self) -> None:
        self._set_rate("std")

    def _shaped(self, shaping: Shaping) -> Shaping:
        return shaping._replace(noise=(shaping.noise**2 + self.std**2) ** 0.5)


@dataclass(frozen=True)
class LabelSmoothing(Regularizer):
    """In the training loss replace each target t by ``(1 - rate) * t + rate / n_classes``.

    With a sigmoid output each target has two classes. `MLP.loss` and validation compare with the targets as they are.

    Parameters
    ----------
    rate : float
        In [0, 1).

    References
    ----------
    C. Szegedy et al., "Rethinking the inception architecture for computer vision", CVPR 2016, section 7.

    Examples
    --------
    >>> LabelSmoothing(0.1)
    LabelSmoothing(rate=0.1)
    """

    rate: float

    def __post_init__(self) -> None:
        self._set_rate(high=1.0)

    def _shaped(self, shaping: Shaping) -> Shaping:
        return shaping._replace(smoothing=1.0 - (1.0 - shaping.smoothing) * (1.0 - self.rate))


def regularized(shaping: Shaping, regularize: Regularizer | Iterable[Regularizer], of_classes: bool) -> Shaping:
    """Return what shapes a step with these regularizers too; several of a kind add up.

    Parameters
    ----------
    shaping : Shaping
        With an entry for each layer.
    regularize : Regularizer or iterable of them
    of_classes : bool
        Whether the loss compares probabilities of classes.

    Raises
    ------
    TypeError, ValueError
        If `regularize` is something else, or does not go with this network.
    """
    expected = "a regularizer such as fastbp.L2(1e-4), or a sequence of them"
    if isinstance(regularize, Regularizer):
        regularize = (regularize,)
    for index, entry in enumerate(checks.entries(regularize, "regularize", expected)):
        if not isinstance(entry, Regularizer):
            raise TypeError(f"regularize must be {expected}, got {checks.shown(entry)} as entry {index}")
        if isinstance(entry, LabelSmoothing) and not of_classes:
            raise ValueError("LabelSmoothing needs classes: cross_entropy or binary_cross_entropy as the loss")
        shaping = entry._shaped(shaping)
    return shaping
