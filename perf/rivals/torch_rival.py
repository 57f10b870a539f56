"""PyTorch in its usual form: a module, autograd, an optimizer."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from harness import shapes


class Rival:
    fused = False

    def __init__(self, shape: shapes.Shape, dtype: str, threads: int | None, shuffle: bool) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.n_done = 0
        x, y = (torch.from_numpy(a) for a in shapes.make_data(shape, dtype))
        self.batches = list(zip(x.split(shape.batch_size), y.split(shape.batch_size), strict=True))
        activation = torch.nn.Tanh if shape.activation == "tanh" else torch.nn.ReLU
        layers: list[torch.nn.Module] = []
        for n_in, n_out in pairwise(shape.sizes):
            layers += [torch.nn.Linear(n_in, n_out, dtype=x.dtype), activation()]
        self.model = torch.nn.Sequential(*layers[:-1])
        self.linear = layers[::2]
        with torch.no_grad():
            for layer, (w, b) in zip(
                self.linear, shapes.layers_of(shape, shapes.make_start(shape, dtype)), strict=True
            ):
                layer.weight.copy_(torch.from_numpy(w.T))
                layer.bias.copy_(torch.from_numpy(b))
        self.loss = torch.nn.functional.mse_loss if shape.loss == "mse" else torch.nn.functional.cross_entropy
        self.optimizer = torch.optim.Adam(
            self.model.parameters(),
            lr=shape.learning_rate,
            betas=(shapes.BETA1, shapes.BETA2),
            eps=shapes.EPS,
            fused=self.fused,
        )

    def run(self, n_steps: int) -> None:
        for _ in range(n_steps):
            x, y = self.batches[self.n_done % len(self.batches)]
            self.n_done += 1
            self.optimizer.zero_grad()
            self.loss(self.model(x), y).backward()
            self.optimizer.step()

    def params(self) -> np.ndarray:
        with torch.no_grad():
            parts = [part for layer in self.linear for part in (layer.weight.T.ravel(), layer.bias)]
            return torch.cat(parts).numpy()

    @classmethod
    def describe(cls) -> str:
        blas = "MKL" if torch.backends.mkl.is_available() else "no MKL"
        capability = torch.backends.cpu.get_cpu_capability()
        adam = "fused" if cls.fused else "eager"
        return f"PyTorch {torch.__version__}, {adam} Adam, {blas}, {capability}, {torch.get_num_threads()} threads"
