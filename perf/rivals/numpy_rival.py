"""NumPy as an expert writes it: every buffer allocated once, every operation in place, products by BLAS."""

from __future__ import annotations

import math

import numpy as np

from harness import shapes
from rivals.blas import describe_blas


class Rival:
    def __init__(self, shape: shapes.Shape, dtype: str, threads: int | None, shuffle: bool) -> None:
        self.shape, self.n_done = shape, 0
        x, y = shapes.make_data(shape, dtype)
        n = shape.batch_size
        self.batches = [(x[start : start + n], y[start : start + n]) for start in range(0, shape.n_samples, n)]
        self.flat = shapes.make_start(shape, dtype)
        flat_state = self.flat, *(np.zeros_like(self.flat) for _ in range(4))
        per_layer = [shapes.layers_of(shape, a) for a in flat_state]
        self.layers, self.gradient_layers = per_layer[:2]
        self.state = self._arrays(flat_state, per_layer)
        self.h = [np.empty((n, width), dtype) for width in shape.sizes[1:]]
        self.dz = [np.empty((n, width), dtype) for width in shape.sizes[1:]]
        self.derivative = [np.empty_like(h) for h in self.h]
        self.row = np.empty((n, 1), dtype)
        self.rows = np.arange(n)

    @staticmethod
    def _arrays(flat_state: tuple, per_layer: list) -> list[tuple]:
        """Return (params, grads, m, v, scratch) of every array that gets an update of its own: each w and each b."""
        return [arrays for layer in zip(*per_layer, strict=True) for arrays in zip(*layer, strict=True)]

    def run(self, n_steps: int) -> None:
        for _ in range(n_steps):
            x, y = self.batches[self.n_done % len(self.batches)]
            self.n_done += 1
            self._forward(x)
            self._loss_derivative(y)
            self._backward(x)
            self._adam()

    def _forward(self, x: np.ndarray) -> None:
        last = len(self.layers) - 1
        for i, (w, b) in enumerate(self.layers):
            z = self.h[i]
            np.dot(x, w, out=z)
            z += b
            if i < last and self.shape.activation == "tanh":
                np.tanh(z, out=z)
            elif i < last:
                np.maximum(z, 0, out=z)
            x = z

    def _loss_derivative(self, y: np.ndarray) -> None:
        z, dz = self.h[-1], self.dz[-1]
        if self.shape.loss == "mse":
            np.subtract(z, y, out=dz)
            dz *= 2 / dz.size
            return
        np.maximum.reduce(z, axis=1, keepdims=True, out=self.row)
        np.subtract(z, self.row, out=dz)
        np.exp(dz, out=dz)
        np.add.reduce(dz, axis=1, keepdims=True, out=self.row)
        dz /= self.row
        dz[self.rows, y] -= 1
        dz *= 1 / len(dz)

    def _backward(self, x: np.ndarray) -> None:
        for i in range(len(self.layers) - 1, -1, -1):
            dz, (dw, db) = self.dz[i], self.gradient_layers[i]
            h = self.h[i - 1] if i else x
            np.dot(h.T, dz, out=dw)
            np.add.reduce(dz, axis=0, out=db)
            if i == 0:
                return
            dh, derivative = self.dz[i - 1], self.derivative[i - 1]
            np.dot(dz, self.layers[i][0].T, out=dh)
            if self.shape.activation == "tanh":
                np.multiply(h, h, out=derivative)
                np.subtract(1, derivative, out=derivative)
            else:
                np.sign(h, out=derivative)  # 1 where the unit is active, 0 where it is not
            dh *= derivative

    def _adam(self) -> None:
        rate = self.shape.learning_rate / (1 - shapes.BETA1**self.n_done)
        scale = 1 / math.sqrt(1 - shapes.BETA2**self.n_done)
        for p, g, m, v, scratch in self.state:
            m *= shapes.BETA1
            np.multiply(g, 1 - shapes.BETA1, out=scratch)
            m += scratch
            v *= shapes.BETA2
            np.multiply(g, g, out=scratch)
            scratch *= 1 - shapes.BETA2
            v += scratch
            np.sqrt(v, out=scratch)
            scratch *= scale
            scratch += shapes.EPS
            np.divide(m, scratch, out=scratch)
            scratch *= rate
            p -= scratch

    def params(self) -> np.ndarray:
        return self.flat

    @staticmethod
    def describe() -> str:
        return f"NumPy {np.__version__}, {describe_blas()}"
