"""The exact gradient of a model beside differences of its loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastbp import checks
from fastbp.model import MLP

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["GradientReport", "check_gradient"]

_STEP = 1e-6  # of a parameter of 1 or less
_TOLERANCE = 1e-5  # of the largest derivative in a layer, and the noise of differences


@dataclass(frozen=True)
class GradientReport:
    """What `check_gradient` has found; printed, it is a table.

    Attributes
    ----------
    rows : tuple of (str, int, int, float)
        For the weights and the biases of each layer: name, derivatives compared, how many of them are wrong, and the
        largest difference, over the largest derivative there.
    is_right : bool
        Whether none is wrong.

    Examples
    --------
    >>> bool(GradientReport((("weights[0]", 24, 1, 0.5),)))
    False
    """

    rows: tuple[tuple[str, int, int, float], ...]

    @property
    def is_right(self) -> bool:
        """Whether every derivative agrees."""
        return not any(n_wrong for _, _, n_wrong, _ in self.rows)

    def __bool__(self) -> bool:
        return self.is_right

    def __str__(self) -> str:
        lines = [f"{'':12}{'compared':>10}{'wrong':>8}{'largest difference':>21}"]
        lines += [f"{name:12}{n:10}{n_wrong:8}{error:21.1e}" for name, n, n_wrong, error in self.rows]
        return "\n".join([*lines, "The gradient is right." if self.is_right else "The gradient is WRONG."])


def check_gradient(
    model: MLP,
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    sample_weight: npt.ArrayLike | None = None,
    *,
    n_per_layer: int = 100,
    seed: int = 0,
) -> GradientReport:
    """Compare the exact gradient of a model's loss with central differences, in float64 whatever the model's dtype.

    Parameters
    ----------
    model : MLP
        Not changed.
    x, y, sample_weight : array_like
        As in `MLP.loss`; some tens of samples do.
    n_per_layer : int, default 100
        Of the weights of a layer, and of its biases, at most so many are compared, drawn at random.
    seed : int, default 0
        For that.

    Returns
    -------
    GradientReport
        True if all is right. A difference that a kink of an activation or of the loss explains is none: there the
        derivatives of both sides differ, and the gradient may be any number between them.

    Raises
    ------
    TypeError, ValueError
        As `MLP.loss_and_grad`.

    Examples
    --------
    >>> import fastbp, numpy as np
    >>> x = np.random.default_rng(0).normal(size=(20, 3))
    >>> print(fastbp.check_gradient(fastbp.MLP([3, 8, 1], "tanh", seed=0), x, x[:, 0]))
                  compared   wrong   largest difference
    weights[0]          24       0              ...
    biases[0]            8       0              ...
    weights[1]           8       0              ...
    biases[1]            1       0              ...
    The gradient is right.
    """
    if not isinstance(model, MLP):
        raise TypeError(f"model must be an MLP, got {type(model).__name__}")
    n_per_layer = checks.positive_int(n_per_layer, "n_per_layer")
    twin = _twin_of(model)
    _, grad = twin.loss_and_grad(x, y, sample_weight)
    generator, rows = np.random.default_rng(checks.seed_of(seed)), []
    layout, places_of_all = twin._network.architecture.layout, np.arange(grad.size)
    views = zip(layout.weights(places_of_all), layout.biases(places_of_all), strict=True)
    for index, pair in enumerate(views):
        for name, places in zip(("weights", "biases"), pair, strict=True):
            chosen = generator.permutation(places.ravel())[:n_per_layer]
            errors = np.array([_error(twin, place, grad[place], (x, y, sample_weight)) for place in chosen])
            scale = max(np.abs(grad[chosen]).max(), float(np.finfo(float).tiny))
            rows.append((f"{name}[{index}]", chosen.size, _count_wrong(errors, scale), float(errors.max() / scale)))
    return GradientReport(tuple(rows))


def _twin_of(model: MLP) -> MLP:
    """Return a model of the same parameters in float64."""
    architecture = model._network.architecture
    *hidden, output = architecture.activations
    loss: Any = architecture.loss
    return MLP(model.sizes, hidden, output, loss=loss, init=model.params, dtype="float64", seed=0)


def _count_wrong(errors: npt.NDArray[Any], scale: float) -> int:
    return int((~(errors <= _TOLERANCE * max(scale, 1e-4))).sum())  # a NaN is wrong


def _error(twin: MLP, place: int, derivative: float, data: tuple[Any, ...]) -> float:
    """Return by how much a derivative lies outside of what the differences to both sides, and around it, allow."""
    params, here = twin.params, float(twin.params[place])
    step = _STEP * max(1.0, abs(here))
    middle = twin.loss(*data)
    params[place] = here + step
    above = twin.loss(*data)
    params[place] = here - step
    below = twin.loss(*data)
    params[place] = here
    central = abs(derivative - (above - below) / (2.0 * step))
    sides = sorted([(above - middle) / step, (middle - below) / step])
    return min(central, max(sides[0] - derivative, derivative - sides[1], 0.0))
