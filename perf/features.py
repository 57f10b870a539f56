"""What does each feature cost when it is on? Time per step with it over that without it.

    python perf/features.py [--shapes tiny,digits,mnist] [--rounds 15] [--dtype float32] [--threads 1]

The same network with and without take turns in one process, short fits in random order; the ratio is the median over
the rounds of two times that were measured one after the other. Formulas of a user's own are compared with fastbp's of
the same formula. The look at every value of the data is compared with `check_finite=False`, in fits of one epoch. What
is off costs, `compare.py` says.
"""

from __future__ import annotations

import random
import time
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numba import njit

import fastbp
from fastbp import elementary
from harness import options
from harness.shapes import Shape, make_data

SECONDS = 0.05  # of one fit
SHORT = 5  # times as many rounds of fits that are short


class Feature(NamedTuple):
    """Options of `Trainer`, of `fit` and of `MLP` that switch it on."""

    name: str
    of_trainer: dict[str, Any]
    of_fit: dict[str, Any]
    of_model: dict[str, Any] = {}  # noqa: RUF012 - never changed


def features_of(shape: Shape) -> list[Feature]:
    """Return what is timed on a shape."""
    n_layers, weights = len(shape.sizes) - 1, np.random.default_rng(0).uniform(0.5, 1.5, shape.n_samples)
    regularizers = [
        fastbp.L2(1e-4),
        fastbp.L1(1e-5),
        fastbp.MaxNorm(3.0),
        fastbp.Dropout(0.2),
        fastbp.Dropout(0.2, input_rate=0.1),
        fastbp.InputNoise(0.1),
    ]
    if shape.loss == "cross_entropy":
        regularizers.append(fastbp.LabelSmoothing(0.1))
    return [
        *[Feature(repr(regularizer), {"regularize": regularizer}, {}) for regularizer in regularizers],
        Feature("clip_norm", {"clip_norm": 1.0}, {}),
        Feature("clip_value", {"clip_value": 0.01}, {}),
        Feature("ema", {"ema": 0.999}, {}),
        Feature("rate_factors", {"rate_factors": [(1.0, 0.1)] * n_layers}, {}),
        Feature("sample_weight", {}, {"sample_weight": weights}),
        Feature("health", {}, {"health": True}),
        Feature("standardize", {}, {}, {"standardize": True}),
        *([Feature("standardize_y", {}, {}, {"standardize_y": True})] if shape.loss == "mse" else []),
        *[Feature(name, {"optimizer": optimizer}, {}) for name, optimizer in OPTIMIZERS.items()],
    ]


# Beside Adam, which is on everywhere else.
OPTIMIZERS = {
    "SGD": fastbp.SGD(),
    "AdamW": fastbp.AdamW(),
    "Adam(amsgrad=True)": fastbp.Adam(amsgrad=True),
    "NAdam": fastbp.NAdam(),
    "RAdam": fastbp.RAdam(),
    "Adadelta": fastbp.Adadelta(),
    "Lion": fastbp.Lion(),
    "ScheduleFreeAdamW": fastbp.ScheduleFreeAdamW(),
}


class Run:
    """Fits of one network that go on; the time per step of each. n_epochs : of a fit; as many as 50 ms take."""

    def __init__(self, shape: Shape, dtype: str, feature: Feature, threads: int, n_epochs: int | None = None) -> None:
        self.x, self.y = make_data(shape, dtype)
        of_model = {"activation": shape.activation, "output": shape.output, "loss": shape.loss} | feature.of_model
        model = fastbp.MLP(shape.sizes, **of_model, dtype=dtype, seed=0)
        options = {"batch_size": shape.batch_size, "seed": 0, "threads": threads} | feature.of_trainer
        self.trainer = fastbp.Trainer(model, **options)
        self.of_fit, self.n_epochs = feature.of_fit, n_epochs or 1
        self.seconds()  # compiles
        while n_epochs is None and self.seconds() < SECONDS:
            self.n_epochs *= 2

    def seconds(self) -> float:
        """Train for some epochs; return the seconds."""
        begin = time.perf_counter()
        self.trainer.fit(self.x, self.y, epochs=self.n_epochs, **self.of_fit)
        return time.perf_counter() - begin

    def seconds_per_epoch(self) -> float:
        return self.seconds() / self.n_epochs


@njit
def adam(p, g, moments, numbers):
    rate, beta1, beta2, eps = numbers
    m, v = moments
    m, v = beta1 * m + (1.0 - beta1) * g, beta2 * v + (1.0 - beta2) * g * g
    return p - rate * m / (np.sqrt(v) + eps), (m, v)


@njit
def corrected(rate, t, hyperparameters):
    return (rate * np.sqrt(1.0 - hyperparameters[1] ** t) / (1.0 - hyperparameters[0] ** t),)


@njit
def tanh(z):
    return np.tanh(z)


@njit
def tanh_derivative(z, h):
    return 1.0 - h * h


@njit
def elu(z):
    return elementary.where(z > 0.0, z, elementary.expm1(z))


@njit
def elu_derivative(z, h):
    return elementary.where(h > 0.0, 1.0, h + 1.0)


@njit
def squared(output, y):
    return (output - y) ** 2


@njit
def squared_derivative(output, y):
    return 2.0 * (output - y)


def own_and_known() -> list[tuple[Feature, Feature]]:
    """Return formulas of a user's own, each with fastbp's of the same formula."""
    rule = fastbp.UpdateRule("own_adam", 2, adam, 1e-3, (0.9, 0.999, 1e-8), corrected)
    known_loss = {"loss": "mse", "output": "identity"}
    own_tanh = {"activation": fastbp.Activation("own_tanh", tanh, tanh_derivative)}
    own_elu = {"activation": fastbp.Activation("own_elu", elu, elu_derivative)}
    own_loss = {"loss": fastbp.Loss("squared", squared, squared_derivative), "output": "identity"}
    return [
        (Feature("own tanh", {}, {}, own_tanh), Feature("tanh", {}, {}, {"activation": "tanh"})),
        (Feature("own elu", {}, {}, own_elu), Feature("elu", {}, {}, {"activation": "elu"})),
        (Feature("own mse", {}, {}, own_loss), Feature("mse", {}, {}, known_loss)),
        (Feature("own Adam", {"optimizer": rule}, {}), Feature("Adam", {}, {})),
    ]


def ratio_of(run: Run, other: Run, rounds: int) -> float:
    """Return the median ratio of two fits' times."""
    pairs = []
    for _ in range(rounds):
        order = [run, other]
        random.shuffle(order)
        times = {id(each): each.seconds_per_epoch() for each in order}
        pairs.append(times[id(run)] / times[id(other)])
    return median(pairs)


def ratios(shape: Shape, dtype: str, threads: int, rounds: int) -> dict[str, float]:
    """Return the median ratio of each feature, and of each formula of a user's own to the known one."""

    def run(feature: Feature, n_epochs: int | None = None) -> Run:
        return Run(shape, dtype, feature, threads, n_epochs)

    plain = run(Feature("off", {}, {}))
    found = {feature.name: ratio_of(run(feature), plain, rounds) for feature in features_of(shape)}
    looks, does_not = [run(Feature("", {}, {"check_finite": looks}), n_epochs=1) for looks in (True, False)]
    found["check_finite, one epoch"] = ratio_of(looks, does_not, SHORT * rounds)
    for own, known in own_and_known():
        if shape.loss == "cross_entropy" and "loss" in own.of_model:
            continue  # of labels
        found[f"{own.name} / {known.name}"] = ratio_of(run(own), run(known), rounds)
    return found


def main() -> None:
    parser = options.parser_of(__doc__)
    options.add_shapes(parser, "tiny,digits,mnist")
    options.add_dtype(parser)
    options.add_rounds(parser, 15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    print(
        f"{options.processor()}; {arguments.threads} thread(s), {arguments.dtype}; time per step with a feature over "
        "that without it"
    )
    columns = {
        shape.name: ratios(shape, arguments.dtype, arguments.threads, arguments.rounds) for shape in arguments.shapes
    }
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    width = max(map(len, names))
    print(" " * width, *[f"{name:>9}" for name in columns])
    for name in names:
        cells = [f"{column[name]:9.2f}" if name in column else " " * 9 for column in columns.values()]
        print(f"{name:{width}}", *cells)


if __name__ == "__main__":
    main()
