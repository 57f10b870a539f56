"""What does each feature cost when it is on? Time per step with it over that without it.

    python perf/features.py [--shapes tiny,digits,mnist] [--rounds 15] [--dtype float32]

The same network with and without take turns in one process, short fits in random order; the ratio is the median over
the rounds of two times that were measured one after the other. What is off, `compare.py` says.
"""

from __future__ import annotations

import random
import time
from statistics import median
from typing import Any, NamedTuple

import numpy as np

import fastbp
from harness import options
from harness.shapes import Shape, make_data

SECONDS = 0.05  # of one fit


class Feature(NamedTuple):
    """Options of `Trainer` and of `fit` that switch it on."""

    name: str
    of_trainer: dict[str, Any]
    of_fit: dict[str, Any]


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
    """Fits of one network that go on; the time per step of each."""

    def __init__(self, shape: Shape, dtype: str, feature: Feature) -> None:
        self.x, self.y = make_data(shape, dtype)
        model = fastbp.MLP(shape.sizes, shape.activation, shape.output, loss=shape.loss, dtype=dtype, seed=0)
        self.trainer = fastbp.Trainer(model, batch_size=shape.batch_size, seed=0, **feature.of_trainer)
        self.of_fit, self.n_epochs = feature.of_fit, 1
        self.seconds()  # compiles
        while self.seconds() < SECONDS:
            self.n_epochs *= 2

    def seconds(self) -> float:
        """Train for some epochs; return the seconds."""
        begin = time.perf_counter()
        self.trainer.fit(self.x, self.y, epochs=self.n_epochs, **self.of_fit)
        return time.perf_counter() - begin

    def seconds_per_epoch(self) -> float:
        return self.seconds() / self.n_epochs


def ratios(shape: Shape, dtype: str, rounds: int) -> dict[str, float]:
    """Return the median ratio of each feature."""
    plain, found = Run(shape, dtype, Feature("off", {}, {})), {}
    for feature in features_of(shape):
        run, pairs = Run(shape, dtype, feature), []
        for _ in range(rounds):
            order = [run, plain]
            random.shuffle(order)
            times = {id(each): each.seconds_per_epoch() for each in order}
            pairs.append(times[id(run)] / times[id(plain)])
        found[feature.name] = median(pairs)
    return found


def main() -> None:
    parser = options.parser_of(__doc__)
    options.add_shapes(parser, "tiny,digits,mnist")
    options.add_dtype(parser)
    options.add_rounds(parser, 15)
    arguments = parser.parse_args()
    print(f"{options.processor()}; one thread, {arguments.dtype}; time per step with a feature over that without it")
    columns = {shape.name: ratios(shape, arguments.dtype, arguments.rounds) for shape in arguments.shapes}
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    width = max(map(len, names))
    print(" " * width, *[f"{name:>9}" for name in columns])
    for name in names:
        cells = [f"{column[name]:9.2f}" if name in column else " " * 9 for column in columns.values()]
        print(f"{name:{width}}", *cells)


if __name__ == "__main__":
    main()
