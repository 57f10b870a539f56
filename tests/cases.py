"""The table of networks and data that gradient checks, dtype tests and parity with peers run through."""

from typing import Any, NamedTuple

import numpy as np

import fastbp
import reference

ACTIVATIONS = tuple(name for name in reference.ACTIVATIONS if name != "exp")  # which is for outputs
OUTPUTS = (*reference.ACTIVATIONS, "softmax")
# Every activation, and every output.
NETWORKS = (*((name, "identity") for name in ACTIVATIONS), *(("tanh", name) for name in OUTPUTS))
# One loss with every output; of the others some, as nothing but the loss's own leaf is different there.
PAIRS = tuple(
    (loss, output)
    for loss, outputs in reference.PERMITTED_OUTPUTS.items()
    for output in outputs
    if loss == "mse" or len(outputs) == 1 or output in ("identity", "sigmoid", "leaky_relu")
)
DTYPES = ("float32", "float64")

# Every rule, with each of its options.
OPTIMIZERS = (
    fastbp.SGD(0.05),
    fastbp.SGD(0.05, momentum=0.9),
    fastbp.SGD(0.05, momentum=0.9, nesterov=True),
    fastbp.Adagrad(0.05),
    fastbp.RMSprop(0.01),
    fastbp.RMSprop(0.01, alpha=0.9, momentum=0.8),
    fastbp.RMSprop(0.01, centered=True),
    fastbp.RMSprop(0.01, alpha=0.8, eps=1e-3, momentum=0.5, centered=True),
    fastbp.Adam(0.01),
    fastbp.Adam(0.01, beta1=0.0, beta2=0.5, eps=1e-2),
    fastbp.SGD(0.05, momentum=0.9, weight_decay=0.1),
    fastbp.Adam(0.01, amsgrad=True, weight_decay=0.1, decay_biases=True),
    fastbp.Adadelta(0.5, rho=0.8),
    fastbp.NAdam(0.01),
    fastbp.RAdam(0.01, beta2=0.9),
    fastbp.Lion(0.001, weight_decay=0.1),
    fastbp.ScheduleFreeAdamW(0.01, weight_decay=0.1, warmup_steps=3),
    fastbp.AdamW(0.01, weight_decay=0.1, decay_biases=True),
    fastbp.AdamW(0.01, weight_decay=0.0),
)

# Widths of the layers, and samples: odd ones, the edges of vectors, panels, blocks and super-blocks, depth 1 to 4.
SHAPES = (
    ((1, 1), 1),
    ((3, 2), 33),
    ((7, 1, 3), 2),
    ((1, 33, 1), 8),
    ((8, 7, 8), 1),
    ((33, 8, 7), 9),
    ((3, 7, 33, 2), 33),
    ((1, 3, 1, 3), 129),
    ((7, 3, 8, 7, 1), 9),
    ((2, 33, 8, 3, 7), 2),
    ((5, 9, 4), 300),
    ((3, 7, 2), 1025),
    ((2, 3, 1), 2333),
)
# Small enough to look at every derivative.
SMALL_SHAPES = (((1, 1), 1), ((3, 3), 8), ((3, 7, 1), 2), ((2, 7, 3), 9), ((3, 1, 3, 2), 9), ((1, 3, 3, 3, 2), 8))
KINKED = {"relu": 0.0, "leaky_relu": 0.0, "elu": 0.0, "selu": 0.0, "hard_tanh": 1.0}  # kinks are at this abs(z)


class Problem(NamedTuple):
    """A network at some parameters, and data for it; all in float64, but numbers that float32 holds too."""

    sizes: tuple[int, ...]
    activation: str
    output: str
    loss: str
    params: Any
    x: Any
    y: Any

    @property
    def architecture(self):
        """The first arguments of the twin's functions."""
        return self.sizes, self.activation, self.output, self.loss

    def model(self, dtype):
        return fastbp.MLP(self.sizes, self.activation, self.output, loss=self.loss, init=self.params, dtype=dtype)

    def loss_and_grad(self):
        """The twin's loss and gradient."""
        return reference.loss_and_grad(*self.architecture, self.params, self.x, self.y)

    def distance_of_kinks(self):
        """How far the nearest pre-activation or error is from where a derivative jumps."""
        _, zs = reference.pre_activations(self.sizes, self.activation, self.params, self.x)
        kinked = [np.abs(z) - KINKED[self.activation] for z in zs[:-1] if self.activation in KINKED]
        if self.output in KINKED:
            kinked.append(np.abs(zs[-1]) - KINKED[self.output])
        if self.loss in ("mae", "huber", "quantile"):
            error = np.abs(reference.ACTIVATIONS[self.output][0](zs[-1]) - self.y)
            kinked.append(error - reference.HUBER_DELTA if self.loss == "huber" else error)
        if self.loss == "hinge":
            kinked.append(1 - self.y * reference.ACTIVATIONS[self.output][0](zs[-1]))
        return min((np.abs(values).min() for values in kinked), default=np.inf)


def make_problem(sizes, n_samples, activation, loss, output, distance=3e-6):
    """Return random parameters and data, all pre-activations and errors `distance` away from kinks."""
    if loss == "cross_entropy":
        sizes = (*sizes[:-1], max(2, sizes[-1]))
    for seed in range(100):
        rng = np.random.default_rng(seed)
        params = rng.normal(size=reference.n_params(sizes))
        for w, b in reference.unpack(sizes, params):
            w *= 1.5 / np.sqrt(len(w))
            b *= 0.5
        x = rng.normal(size=(n_samples, sizes[0]))
        arrays = [array.astype(np.float32).astype(float) for array in (params, x)]
        problem = Problem(sizes, activation, output, loss, *arrays, _targets(rng, loss, n_samples, sizes[-1]))
        if problem.distance_of_kinks() > distance:
            return problem
    raise AssertionError(f"no data of {sizes}, {activation}, {loss}, {output} stays away from the kinks")


def _targets(rng, loss, n_samples, n_out):
    if loss == "cross_entropy":
        return rng.integers(0, n_out, n_samples)
    if loss == "binary_cross_entropy":
        return rng.integers(0, 2, (n_samples, n_out)).astype(float)
    if loss == "hinge":
        return rng.choice([-1.0, 1.0], (n_samples, n_out))
    if loss == "poisson":
        return rng.poisson(2.0, (n_samples, n_out)).astype(float)
    return (2 * rng.normal(size=(n_samples, n_out))).astype(np.float32).astype(float)


def relative_error(actual, expected):
    """Norm of the error over the norm of what is expected; the norm itself where that is zero."""
    error, scale = np.linalg.norm(np.asarray(actual, float) - expected), np.linalg.norm(expected)
    return error / scale if scale > 0 else error
