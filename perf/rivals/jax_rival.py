"""JAX: the whole epoch is one compiled scan with the update inside, and the loop over epochs around it too."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from harness import shapes


class Rival:
    def __init__(self, shape: shapes.Shape, dtype: str, threads: int | None, shuffle: bool) -> None:
        jax.config.update("jax_enable_x64", dtype == "float64")
        self.shape = shape
        x, y = shapes.make_data(shape, dtype)
        self.batches = tuple(
            jnp.asarray(a.reshape(shape.n_batches, shape.batch_size, *a.shape[1:]))
            for a in (x, y.astype(np.int32) if y.ndim == 1 else y)
        )
        params = [(jnp.array(w), jnp.array(b)) for w, b in shapes.layers_of(shape, shapes.make_start(shape, dtype))]
        zeros = jax.tree.map(jnp.zeros_like, params)
        self.state = (params, zeros, jax.tree.map(jnp.copy, zeros), jnp.asarray(0.0, dtype))
        self.train_epochs = jax.jit(self._train_epochs, donate_argnums=0)
        self.train_step = jax.jit(self._step, donate_argnums=0)

    def _loss(self, params: list, x: jax.Array, y: jax.Array) -> jax.Array:
        for w, b in params[:-1]:
            x = x @ w + b
            x = jnp.tanh(x) if self.shape.activation == "tanh" else jax.nn.relu(x)
        z = x @ params[-1][0] + params[-1][1]
        if self.shape.loss == "mse":
            return jnp.mean((z - y) ** 2)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], axis=1))

    def _step(self, state: tuple, batch: tuple[jax.Array, jax.Array]) -> tuple[tuple, None]:
        params, m, v, t = state
        grads = jax.grad(self._loss)(params, *batch)
        t = t + 1
        # 1 - beta**t, without the rounding of beta**t close to 1, which would be felt after 100 steps.
        m_scale = -1 / jnp.expm1(t * math.log(shapes.BETA1))
        v_scale = -1 / jnp.expm1(t * math.log(shapes.BETA2))
        m = jax.tree.map(lambda m, g: shapes.BETA1 * m + (1 - shapes.BETA1) * g, m, grads)
        v = jax.tree.map(lambda v, g: shapes.BETA2 * v + (1 - shapes.BETA2) * g * g, v, grads)
        params = jax.tree.map(
            lambda p, m, v: p - self.shape.learning_rate * (m * m_scale) / (jnp.sqrt(v * v_scale) + shapes.EPS),
            params,
            m,
            v,
        )
        return (params, m, v, t), None

    def _train_epochs(self, state: tuple, batches: tuple, n_epochs: int) -> tuple:
        return jax.lax.fori_loop(0, n_epochs, lambda _, s: jax.lax.scan(self._step, s, batches)[0], state)

    def run(self, n_steps: int) -> None:
        n_epochs, n_left = divmod(n_steps, self.shape.n_batches)
        self.state = self.train_epochs(self.state, self.batches, n_epochs)
        for i in range(n_left):
            self.state = self.train_step(self.state, tuple(a[i] for a in self.batches))[0]
        jax.block_until_ready(self.state)

    def params(self) -> np.ndarray:
        return np.concatenate([np.asarray(a).ravel() for layer in self.state[0] for a in layer])

    @staticmethod
    def describe() -> str:
        return f"JAX {jax.__version__}, jit + scan"
