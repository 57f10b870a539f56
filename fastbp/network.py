"""A network: what a model and its trainers share, below both."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fastbp import arrays
from fastbp.architecture import loss_of
from fastbp.buffers import aligned_copy
from fastbp.kernels.losses import COUNTS, FRACTIONS, LABELS, SIGNS
from fastbp.program import Programs
from fastbp.scaling import Scaling
from fastbp.sharing import Word
from fastbp.sources import Data
from fastbp.turn import Turn
from fastbp.weighting import weights_of_classes

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from fastbp.architecture import Architecture
    from fastbp.history import History
    from fastbp.sparse import Features

__all__ = ["Network", "Trainable", "network_of"]

_CLASSES = np.dtype(np.int64)
_PERMITTED = {FRACTIONS: "fractions", COUNTS: "counts", SIGNS: "signs"}


class Network:
    """Architecture and parameters, the right to change these, and the programs that work on them.

    Parameters
    ----------
    architecture : Architecture
    params : ndarray, shape (n_params,)
        Copied.

    Attributes
    ----------
    params : ndarray, shape (n_params,)
        In the memory that kernels share.
    scaling : Scaling
        What standardizes inputs and targets.
    turn : Turn
        Whose turn it is to change them.
    programs : Programs
    word : Word or None
        What learners in compiled code take to change them, where there are any.
    history : History or None
        Of the last fit.
    """

    def __init__(self, architecture: Architecture, params: npt.NDArray[Any]) -> None:
        self.architecture, self.history = architecture, None
        self._own(params)

    history: History | None

    def _own(self, params: npt.NDArray[Any]) -> None:
        self.params = aligned_copy(params, self.architecture.dtype)
        self.scaling = Scaling(self.architecture)
        self.turn, self.programs = Turn(), Programs(self.architecture, self.params, self.scaling)
        self.word: Word | None = None

    def share(self) -> Word:
        """Return the word that says who may change the parameters, which learners in compiled code take too.

        Only who has the turn may call this.
        """
        if self.word is None:
            self.word = word = Word()
            self.turn.shared = word
            self.programs.share(word.address)
        return self.word

    @property
    def n_in(self) -> int:
        """Number of features."""
        return self.architecture.layout.sizes[0]

    @property
    def n_out(self) -> int:
        """Number of outputs."""
        return self.architecture.layout.sizes[-1]

    @property
    def n_targets(self) -> int:
        """Number of values that the outputs of a sample are compared with."""
        return self.n_out // loss_of(self.architecture.loss).outputs_per_target

    @property
    def decisions_per_sample(self) -> float:
        """How many classes each sample decides on; NaN where the output is no class."""
        return {LABELS: 1.0, FRACTIONS: float(self.n_out), SIGNS: float(self.n_out)}.get(self.targets, math.nan)

    @property
    def targets(self) -> int:
        """The kind of targets, as in `kernels.losses`."""
        return loss_of(self.architecture.loss).targets

    def checked_data(
        self,
        x: npt.ArrayLike,
        y: npt.ArrayLike,
        names: tuple[str, str, str] = ("x", "y", "sample_weight"),
        sample_weight: npt.ArrayLike | None = None,
        class_weight: Mapping[int, float] | str | None = None,
        may_weigh_nothing: bool = False,
        check_finite: bool = True,
    ) -> Data:
        """Check features, targets and perhaps weights, and return them in the form that the kernels read.

        may_weigh_nothing : whether the weights may all be 0. check_finite : whether to look at every value of x and y.

        Raises
        ------
        TypeError, ValueError
            Naming the argument, what was expected and what was passed.
        """
        features = self.checked_features(x, names[0], check_finite=check_finite)
        targets, is_labels = arrays.targets(
            y,
            features.shape[0],
            self.n_targets,
            np.float64 if self.architecture.standardizes_y else self.architecture.dtype,
            classes=self.targets == LABELS,
            permitted=_PERMITTED.get(self.targets),
            name=names[1],
            check_finite=check_finite,
        )
        weights = None if sample_weight is None else arrays.weights(sample_weight, len(features), names[2])
        if weights is not None and not may_weigh_nothing:
            arrays.check_some_weight(weights, names[2])
        if class_weight is not None:
            of_classes = weights_of_classes(class_weight, targets, is_labels, self.n_out, self.targets == FRACTIONS)
            weights = of_classes if weights is None else weights * of_classes
            if not may_weigh_nothing:
                arrays.check_some_weight(weights, "class_weight")
        return Data(features, targets, is_labels, weights)

    def checked_features(
        self, x: npt.ArrayLike, name: str = "x", allow_empty: bool = False, check_finite: bool = True
    ) -> Features:
        """Check features, and return them as the kernels read them; as `arrays.features`."""
        # What is standardized is so in float64: what float32 cannot hold may lie near its mean.
        dtype = np.dtype(np.float64) if self.architecture.standardizes_x else self.architecture.dtype
        return arrays.features(x, self.n_in, dtype, name, allow_empty=allow_empty, check_finite=check_finite)

    def checked_directions(
        self, x: npt.ArrayLike, directions: npt.ArrayLike, name: str, width: int
    ) -> tuple[Features, npt.NDArray[Any]]:
        """Check features, and directions of some width, one for each sample; return both as kernels read them.

        Raises
        ------
        TypeError, ValueError
            Naming the argument, what was expected and what was passed.
        """
        dtype, features = self.architecture.dtype, self.checked_features(x)
        return features, arrays.targets(directions, len(features), width, dtype, classes=False, name=name)[0]

    def batch_at_once(self, x: object, y: object) -> tuple[npt.NDArray[Any], npt.NDArray[Any]] | None:
        """Return views of a batch if its arrays are of the kind that `kernels.border` takes, else None.

        Rows of the dtype, and as the loss wants values (n_samples, n_targets) of it or int64 classes (n_samples,).
        """
        if type(x) is not np.ndarray or type(y) is not np.ndarray:
            return None
        rows, targets, dtype = x.view(), y.view(), self.architecture.dtype  # nobody else can reshape these
        if rows.ndim != 2 or rows.dtype is not dtype:
            return None
        if self.targets == LABELS:
            return (rows, targets) if targets.ndim == 1 and targets.dtype is _CLASSES else None
        if targets.ndim == 1 and self.n_targets == 1:
            targets = targets[:, np.newaxis]
        return (rows, targets) if targets.ndim == 2 and targets.dtype is dtype else None

    def __getstate__(self) -> dict[str, Any]:
        self.turn.settle()
        params = self.params
        if self.word is not None:
            with self.word.kept_from_learners():
                params = params.copy()
        learnt = self.scaling.learnt
        return {"architecture": self.architecture, "params": params, "history": self.history, "learnt": learnt}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.architecture, self.history = state["architecture"], state["history"]
        self._own(state["params"])
        self.scaling.put(state["learnt"])


class Trainable(Protocol):
    """An `MLP`, of which trainers know its network alone."""

    _network: Network
    seed: int


def network_of(model: object) -> Network:
    """Return the network of an `MLP`.

    Raises
    ------
    TypeError
        If `model` is no such.
    """
    network = getattr(model, "_network", None)
    if not isinstance(network, Network):
        raise TypeError(f"model must be an MLP, got {type(model).__name__}")
    return network
