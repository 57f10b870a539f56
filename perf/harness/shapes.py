"""The training problems that every benchmark times, and their data and start."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Shape:
    """One network, its batch and its loss; hidden layers share an activation."""

    name: str
    sizes: tuple[int, ...]
    activation: str
    output: str
    loss: str
    batch_size: int
    full_batch: bool = False

    @property
    def learning_rate(self) -> float:
        """The usual 1e-3, less for large networks: these would know the data by heart after the 100 steps of the check,
        and rounding errors would be all that is left of the loss."""
        return 1e-3 if self.n_params < 200_000 else 1e-4

    @property
    def n_samples(self) -> int:
        """8 batches, at least 1024 samples; a full-batch problem is one batch."""
        return self.batch_size if self.full_batch else max(8 * self.batch_size, 1024)

    @property
    def n_batches(self) -> int:
        return self.n_samples // self.batch_size

    @property
    def n_params(self) -> int:
        return sum((n_in + 1) * n_out for n_in, n_out in pairwise(self.sizes))

    @property
    def flops(self) -> int:
        """Multiplications and additions of one step's matrix products; the first layer needs no input gradient."""
        products = [n_in * n_out for n_in, n_out in pairwise(self.sizes)]
        return 2 * self.batch_size * (3 * sum(products) - products[0])

    def __str__(self) -> str:
        words = "-".join(map(str, self.sizes))
        return f"{self.name}: {words} {self.activation} {self.loss}, batch {self.batch_size}"


def _regression(name: str, sizes: tuple[int, ...], activation: str, batch_size: int, full_batch: bool = False) -> Shape:
    return Shape(name, sizes, activation, "identity", "mse", batch_size, full_batch)


def _classification(name: str, sizes: tuple[int, ...], batch_size: int) -> Shape:
    return Shape(name, sizes, "relu", "softmax", "cross_entropy", batch_size)


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        _regression("online", (8, 64, 64, 4), "relu", 1),
        _regression("xor", (2, 10, 10, 10, 1), "tanh", 4),
        _regression("tiny", (4, 32, 32, 1), "tanh", 32),
        _classification("digits", (64, 32, 10), 32),
        _regression("surrogate", (8, 64, 64, 1), "tanh", 256),
        _regression("expm", (4, 32, 16, 4), "tanh", 10_000, full_batch=True),
        _classification("mnist", (784, 128, 10), 128),
        _classification("mid", (784, 512, 512, 10), 256),
        _classification("nl", (784, 1000, 1000, 10), 500),
        _classification("wide", (1024, 2048, 2048, 10), 512),
    )
}


def make_data(shape: Shape, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Return x (n_samples, n_in) and y, targets (n_samples, n_out) or labels (n_samples,), of a random teacher."""
    rng = np.random.default_rng(20)
    x = rng.standard_normal((shape.n_samples, shape.sizes[0]))
    scores = x @ rng.standard_normal((shape.sizes[0], shape.sizes[-1])) / np.sqrt(shape.sizes[0])
    y = scores.argmax(axis=1) if shape.loss == "cross_entropy" else np.tanh(scores).astype(dtype)
    return x.astype(dtype), y


def make_start(shape: Shape, dtype: str) -> np.ndarray:
    """Return the parameters that every rival starts from: per layer `w.ravel()`, w (n_in, n_out), then b = 0."""
    rng = np.random.default_rng(7)
    parts = []
    for n_in, n_out in pairwise(shape.sizes):
        limit = np.sqrt(6 / (n_in + n_out))
        parts += [rng.uniform(-limit, limit, n_in * n_out), np.zeros(n_out)]
    return np.concatenate(parts).astype(dtype)


def layers_of(shape: Shape, params: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return views (w, b) of every layer, (n_in, n_out) and (n_out,)."""
    layers, start = [], 0
    for n_in, n_out in pairwise(shape.sizes):
        end = start + n_in * n_out
        layers.append((params[start:end].reshape(n_in, n_out), params[end : end + n_out]))
        start = end + n_out
    return layers


def first_batch_loss(shape: Shape, params: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    """Return the mean loss of the first batch, in float64 whatever the rival computed in."""
    h, y = x[: shape.batch_size].astype(np.float64), y[: shape.batch_size]
    layers = layers_of(shape, params.astype(np.float64))
    for w, b in layers[:-1]:
        h = h @ w + b
        h = np.tanh(h) if shape.activation == "tanh" else np.maximum(h, 0)
    z = h @ layers[-1][0] + layers[-1][1]
    if shape.loss == "mse":
        return float(((z - y) ** 2).mean())
    z -= z.max(axis=1, keepdims=True)
    return float((np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y]).mean())
