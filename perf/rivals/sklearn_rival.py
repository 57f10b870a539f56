"""scikit-learn's network, an epoch per call. Its start cannot be set, so its loss is not compared."""

from __future__ import annotations

import numpy as np
import sklearn
from sklearn.neural_network import MLPClassifier, MLPRegressor

from harness import shapes
from rivals import Unavailable
from rivals.blas import describe_blas


class Rival:
    def __init__(self, shape: shapes.Shape, dtype: str, threads: int | None, shuffle: bool) -> None:
        self.shape = shape
        self.x, y = shapes.make_data(shape, dtype)
        network = MLPRegressor if shape.loss == "mse" else MLPClassifier
        self.y = y.ravel() if shape.sizes[-1] == 1 else y
        self.model = network(
            hidden_layer_sizes=shape.sizes[1:-1],
            activation=shape.activation,
            solver="adam",
            alpha=0.0,
            batch_size=shape.batch_size,
            learning_rate_init=shape.learning_rate,
            shuffle=shuffle,
            random_state=0,
        )
        self.classes = {} if shape.loss == "mse" else {"classes": np.arange(shape.sizes[-1])}

    def run(self, n_steps: int) -> None:
        if n_steps % self.shape.n_batches:
            raise Unavailable("scikit-learn takes whole epochs only")
        for _ in range(n_steps // self.shape.n_batches):
            self.model.partial_fit(self.x, self.y, **self.classes)
            self.classes = {}

    def params(self) -> np.ndarray:
        layers = zip(self.model.coefs_, self.model.intercepts_, strict=True)
        return np.concatenate([part.ravel() for layer in layers for part in layer])

    @staticmethod
    def describe() -> str:
        return f"scikit-learn {sklearn.__version__}, {describe_blas()}"
