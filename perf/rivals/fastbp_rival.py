"""fastbp itself, through its public API."""

from __future__ import annotations

import numba
import numpy as np

import fastbp
from harness import shapes


class Rival:
    def __init__(self, shape: shapes.Shape, dtype: str, threads: int | None, shuffle: bool) -> None:
        self.shape = shape
        self.x, self.y = shapes.make_data(shape, dtype)
        model = fastbp.MLP(
            shape.sizes,
            activation=shape.activation,
            output=shape.output,
            loss=shape.loss,
            init=shapes.make_start(shape, dtype),
            dtype=dtype,
            seed=0,
        )
        self.trainer = fastbp.Trainer(
            model,
            optimizer=fastbp.Adam(shape.learning_rate, shapes.BETA1, shapes.BETA2, shapes.EPS),
            batch_size=shape.batch_size,
            shuffle=shuffle,
            threads="auto" if threads is None else threads,
            seed=0,
        )

    def run(self, n_steps: int) -> None:
        n_epochs = -(-n_steps // self.shape.n_batches) + 1  # one more: a fit may start and end in mid-epoch
        self.trainer.fit(self.x, self.y, epochs=n_epochs, max_steps=n_steps)

    def params(self) -> np.ndarray:
        return self.trainer.model.params

    @staticmethod
    def describe() -> str:
        return f"fastbp {fastbp.__version__}, Numba {numba.__version__}"
