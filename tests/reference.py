"""Naive NumPy twin of fastbp: the same definitions, written to be read, not to be fast.

Everything works on whole arrays in the dtype of its input, meant to be float64. Samples are rows, parameters are one
flat vector: per layer `w.ravel()` with `w` of shape (n_in, n_out), then `b`. A loss is a mean over the batch (mse, mae,
huber and binary_cross_entropy: over samples and outputs), and a gradient its exact derivative.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.floating[Any]]

LEAKY_SLOPE = 0.01
ELU_ALPHA = 1.0
SELU_ALPHA = 1.6732632423543772848170429916717  # Klambauer et al. 2017, section 2
SELU_SCALE = 1.0507009873554804934193349852946
MOST_LOG_VARIANCE = math.log(1e6)  # of gaussian_nll
HUBER_DELTA = 1.0
QUANTILE = 0.5


def erf(z: Array) -> Array:
    """Error function of every element."""
    return np.array([math.erf(value) for value in z.ravel()], dtype=z.dtype).reshape(z.shape)


def sigmoid(z: Array) -> Array:
    """1 / (1 + exp(-z)), without overflow for any z."""
    small = np.exp(-np.abs(z))
    return np.where(z >= 0, 1, small) / (1 + small)


def softplus(z: Array) -> Array:
    """log(1 + exp(z)), without overflow for any z."""
    return np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))


def softmax(z: Array) -> Array:
    """exp(z) / sum(exp(z)) of every row."""
    shifted = np.exp(z - z.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def log_softmax(z: Array) -> Array:
    """Logarithm of the softmax of every row."""
    shifted = z - z.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def elu(z: Array, alpha: float = ELU_ALPHA) -> Array:
    """Z where positive, alpha * (exp(z) - 1) elsewhere."""
    return np.where(z > 0, z, alpha * np.expm1(np.minimum(z, 0)))


def elu_derivative(z: Array, alpha: float = ELU_ALPHA) -> Array:
    """1 where positive, alpha * exp(z) elsewhere."""
    return np.where(z > 0, 1, alpha * np.exp(np.minimum(z, 0)))


def gelu(z: Array) -> Array:
    """Z times the standard normal distribution function, exactly (no tanh)."""
    return z * (1 + erf(z / math.sqrt(2))) / 2


def gelu_derivative(z: Array) -> Array:
    """Phi(z) + z * phi(z)."""
    return (1 + erf(z / math.sqrt(2))) / 2 + z * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def silu_derivative(z: Array) -> Array:
    """s * (1 + z * (1 - s)) with s = sigmoid(z)."""
    s = sigmoid(z)
    return s * (1 + z * (1 - s))


def mish_derivative(z: Array) -> Array:
    """T + z * (1 - t²) * sigmoid(z) with t = tanh(softplus(z))."""
    t = np.tanh(softplus(z))
    return t + z * (1 - t**2) * sigmoid(z)


# name: (h(z), dh/dz); at a kink the derivative is the one from the left, as PyTorch's.
ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "identity": (lambda z: z, np.ones_like),
    "sigmoid": (sigmoid, lambda z: sigmoid(z) * (1 - sigmoid(z))),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(z.dtype)),
    "leaky_relu": (
        lambda z: np.where(z > 0, z, LEAKY_SLOPE * z),
        lambda z: np.where(z > 0, z.dtype.type(1), LEAKY_SLOPE),
    ),
    "elu": (elu, elu_derivative),
    "selu": (lambda z: SELU_SCALE * elu(z, SELU_ALPHA), lambda z: SELU_SCALE * elu_derivative(z, SELU_ALPHA)),
    "gelu": (gelu, gelu_derivative),
    "silu": (lambda z: z * sigmoid(z), silu_derivative),
    "mish": (lambda z: z * np.tanh(softplus(z)), mish_derivative),
    "softplus": (softplus, sigmoid),
    "hard_tanh": (lambda z: np.clip(z, -1, 1), lambda z: (abs(z) < 1).astype(z.dtype)),
    "exp": (np.exp, np.exp),
}

# Losses that are the mean of a function of the error output - target: (the function, its derivative).
OF_ERRORS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "mse": (lambda error: error**2, lambda error: 2 * error),
    "mae": (np.abs, np.sign),
    "huber": (
        lambda error: np.where(abs(error) <= HUBER_DELTA, error**2 / 2, HUBER_DELTA * (abs(error) - HUBER_DELTA / 2)),
        lambda error: np.clip(error, -HUBER_DELTA, HUBER_DELTA),
    ),
    "log_cosh": (lambda error: np.logaddexp(error, -error) - math.log(2), np.tanh),
    "quantile": (
        lambda error: np.maximum((1 - QUANTILE) * error, -QUANTILE * error),
        lambda error: np.where(error > 0, 1 - QUANTILE, np.where(error < 0, -QUANTILE, 0)),
    ),
}

# loss: the outputs it is defined for. Not gaussian_nll, whose outputs are twice as many as its targets: test_gaussian.
PERMITTED_OUTPUTS: dict[str, tuple[str, ...]] = dict.fromkeys((*OF_ERRORS, "hinge"), tuple(ACTIVATIONS)) | {
    "poisson": ("exp",),
    "binary_cross_entropy": ("sigmoid",),
    "cross_entropy": ("softmax",),
}


def default_loss(output: str) -> str:
    """Return the loss that `loss=None` stands for."""
    return {"softmax": "cross_entropy", "sigmoid": "binary_cross_entropy", "exp": "poisson"}.get(output, "mse")


def targets(y: ArrayLike, loss_name: str, n_out: int, dtype: Any = np.float64) -> Array:
    """Return y as (n_samples, n_out): one-hot rows for class labels, a column for a vector."""
    y = np.asarray(y)
    if loss_name == "cross_entropy" and np.issubdtype(y.dtype, np.integer) and y.size == len(y):
        return np.eye(n_out, dtype=dtype)[y.ravel()]
    return y.reshape(len(y), n_out // 2 if loss_name == "gaussian_nll" else n_out).astype(dtype)


def loss_of_outputs(loss_name: str, output: str, z: Array, y: Array) -> Array:
    """Return the mean loss of the last layer's pre-activations z against targets y, both (n_samples, n_out)."""
    if loss_name == "cross_entropy":
        return -(y * log_softmax(z)).sum(axis=1).mean()
    if loss_name == "binary_cross_entropy":
        return (softplus(z) - y * z).mean()
    if loss_name == "poisson":
        return (np.exp(z) - y * z).mean()
    h = ACTIVATIONS[output][0](z)
    if loss_name == "gaussian_nll":
        mean, s = np.split(h, 2, axis=1)
        s = np.clip(s, -MOST_LOG_VARIANCE, MOST_LOG_VARIANCE)
        return ((s + (y - mean) ** 2 * np.exp(-s)) / 2).mean()
    return np.maximum(0, 1 - y * h).mean() if loss_name == "hinge" else OF_ERRORS[loss_name][0](h - y).mean()


def gradient_of_outputs(loss_name: str, output: str, z: Array, y: Array) -> Array:
    """Return the derivative of `loss_of_outputs` by z, (n_samples, n_out)."""
    if loss_name == "cross_entropy":
        return (softmax(z) * y.sum(axis=1, keepdims=True) - y) / len(z)
    if loss_name == "binary_cross_entropy":
        return (sigmoid(z) - y) / z.size
    if loss_name == "poisson":
        return (np.exp(z) - y) / z.size
    h, derivative = ACTIVATIONS[output]
    if loss_name == "gaussian_nll":
        mean, s = np.split(h(z), 2, axis=1)
        s = np.clip(s, -MOST_LOG_VARIANCE, MOST_LOG_VARIANCE)
        scaled = (mean - y) * np.exp(-s)
        return np.hstack([scaled, (1 - (mean - y) * scaled) / 2]) * derivative(z) / y.size
    if loss_name == "hinge":
        return np.where(y * h(z) < 1, -y, 0) * derivative(z) / z.size
    return OF_ERRORS[loss_name][1](h(z) - y) * derivative(z) / z.size


def n_params(sizes: Sequence[int]) -> int:
    """Return the length of the flat parameter vector."""
    return sum((n_in + 1) * n_out for n_in, n_out in pairwise(sizes))


def unpack(sizes: Sequence[int], params: Array) -> list[tuple[Array, Array]]:
    """Return views (w, b) of every layer, (n_in, n_out) and (n_out,)."""
    layers, start = [], 0
    for n_in, n_out in pairwise(sizes):
        end = start + n_in * n_out
        layers.append((params[start:end].reshape(n_in, n_out), params[end : end + n_out]))
        start = end + n_out
    assert start == len(params)
    return layers


def weight_mask(sizes: Sequence[int]) -> NDArray[np.bool_]:
    """Return True where the flat vector holds a weight, False where it holds a bias."""
    mask = np.zeros(n_params(sizes))
    for w, _ in unpack(sizes, mask):
        w[...] = 1
    return mask.astype(bool)


def hidden_activations(sizes: Sequence[int], activations: str | Sequence[str]) -> list[str]:
    """Return one name per hidden layer."""
    return [activations] * (len(sizes) - 2) if isinstance(activations, str) else list(activations)


def pre_activations(
    sizes: Sequence[int],
    activations: str | Sequence[str],
    params: Array,
    x: Array,
    masks: Sequence[ArrayLike] | None = None,
) -> tuple[list[Array], list[Array]]:
    """Return the input of every layer and its pre-activations, both per layer and (n_samples, width)."""
    names = [*hidden_activations(sizes, activations), "identity"]
    h, inputs, zs = x, [], []
    for layer, ((w, b), name) in enumerate(zip(unpack(sizes, params), names, strict=True)):
        inputs.append(h if masks is None else h * masks[layer])
        zs.append(inputs[-1] @ w + b)
        h = ACTIVATIONS[name][0](zs[-1])
    return inputs, zs


def forward(sizes: Sequence[int], activations: str | Sequence[str], output: str, params: Array, x: Array) -> Array:
    """Return the network's output, (n_samples, n_out)."""
    z = pre_activations(sizes, activations, params, x)[1][-1]
    return softmax(z) if output == "softmax" else ACTIVATIONS[output][0](z)


def loss(
    sizes: Sequence[int],
    activations: str | Sequence[str],
    output: str,
    loss_name: str,
    params: Array,
    x: Array,
    y: ArrayLike,
) -> Array:
    """Return the mean loss."""
    z = pre_activations(sizes, activations, params, x)[1][-1]
    return loss_of_outputs(loss_name, output, z, targets(y, loss_name, sizes[-1], z.dtype))


def loss_and_grad(
    sizes: Sequence[int],
    activations: str | Sequence[str],
    output: str,
    loss_name: str,
    params: Array,
    x: Array,
    y: ArrayLike,
    masks: Sequence[ArrayLike] | None = None,
) -> tuple[Array, Array]:
    """Return the mean loss and its gradient, (n_params,), by backpropagation.

    masks : by which the inputs of each layer are multiplied.

    References
    ----------
    Nielsen, Neural Networks and Deep Learning (2015), chapter 2, equations BP1 to BP4.
    """
    names = hidden_activations(sizes, activations)
    inputs, zs = pre_activations(sizes, activations, params, x, masks)
    y = targets(y, loss_name, sizes[-1], zs[-1].dtype)
    grads = np.empty_like(params)
    dz = gradient_of_outputs(loss_name, output, zs[-1], y)
    layers, grad_layers = unpack(sizes, params), unpack(sizes, grads)
    for layer in reversed(range(len(layers))):
        dw, db = grad_layers[layer]
        dw[...] = inputs[layer].T @ dz
        db[...] = dz.sum(axis=0)
        if layer > 0:
            mask = 1 if masks is None else masks[layer]
            dz = (dz @ layers[layer][0].T) * mask * ACTIVATIONS[names[layer - 1]][1](zs[layer - 1])
    return loss_of_outputs(loss_name, output, zs[-1], y), grads


def accuracy(prediction: Array, y: ArrayLike) -> float:
    """Return the share of right classes of probabilities (n_samples, n_out); one output is right on its side of 1/2."""
    y = np.asarray(y)
    if prediction.shape[1] == 1:
        return float(np.mean((prediction.ravel() > 0.5) == (y.ravel() > 0.5)))
    labels = y.ravel() if y.size == len(y) else y.argmax(axis=1)
    return float(np.mean(prediction.argmax(axis=1) == labels))


def central_differences(f: Callable[[Array], Any], params: Array, h: float = 1e-6) -> Array:
    """Return the gradient of the scalar f at params, with an error of O(h²) and rounding of O(eps / h)."""
    grads = np.empty_like(params)
    for i in range(len(params)):
        step = np.zeros_like(params)
        step[i] = h
        grads[i] = (f(params + step) - f(params - step)) / (2 * h)
    return grads


# Optimizers, after PyTorch's definitions. `state` is a dict that starts empty; each returns the new parameters.
State = dict[str, Any]


def sgd(
    params: Array,
    grads: Array,
    state: State,
    learning_rate: float = 0.01,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    mask: NDArray[np.bool_] | bool = True,
) -> Array:
    """Gradient descent; velocity = momentum * velocity + grads. The parameters in `mask` decay by the gradient."""
    grads = grads + np.where(mask, weight_decay * params, 0)
    velocity = state["velocity"] = momentum * state.get("velocity", 0) + grads
    return params - learning_rate * (grads + momentum * velocity if nesterov else velocity)


def adagrad(params: Array, grads: Array, state: State, learning_rate: float = 0.01, eps: float = 1e-10) -> Array:
    """Divide by the root of the sum of squares (Duchi et al. 2011)."""
    total = state["total"] = state.get("total", 0) + grads**2
    return params - learning_rate * grads / (np.sqrt(total) + eps)


def rmsprop(
    params: Array,
    grads: Array,
    state: State,
    learning_rate: float = 0.01,
    alpha: float = 0.99,
    eps: float = 1e-8,
    momentum: float = 0.0,
    centered: bool = False,
) -> Array:
    """Divide by the root of the running mean of squares, or of the running variance where `centered`."""
    square = state["square"] = alpha * state.get("square", 0) + (1 - alpha) * grads**2
    if centered:
        mean = state["mean"] = alpha * state.get("mean", 0) + (1 - alpha) * grads
        # Rounding may take a vanishing variance below zero.
        square = np.maximum(square - mean**2, 0)
    velocity = state["velocity"] = momentum * state.get("velocity", 0) + grads / (np.sqrt(square) + eps)
    return params - learning_rate * velocity


def adam(
    params: Array,
    grads: Array,
    state: State,
    learning_rate: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    amsgrad: bool = False,
    weight_decay: float = 0.0,
    mask: NDArray[np.bool_] | bool = True,
) -> Array:
    """Kingma and Ba 2015, algorithm 1; amsgrad: Reddi et al. 2018. As `sgd`, the parameters in `mask` may decay."""
    grads = grads + np.where(mask, weight_decay * params, 0)
    step = state["step"] = state.get("step", 0) + 1
    m = state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * grads
    v = state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * grads**2
    if amsgrad:
        v = state["largest"] = np.maximum(state.get("largest", 0), v)
    m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
    return params - learning_rate * m_hat / (np.sqrt(v_hat) + eps)


def nadam(
    params: Array,
    grads: Array,
    state: State,
    learning_rate: float = 2e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    momentum_decay: float = 4e-3,
) -> Array:
    """Dozat 2016, algorithm 2."""
    step = state["step"] = state.get("step", 0) + 1
    m = state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * grads
    v = state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * grads**2
    mu, after = [beta1 * (1 - 0.96 ** (t * momentum_decay) / 2) for t in (step, step + 1)]
    product = state["product"] = state.get("product", 1) * mu
    root = np.sqrt(v / (1 - beta2**step)) + eps
    change = (1 - mu) / (1 - product) * grads / root + after / (1 - product * after) * m / root
    return params - learning_rate * change


def radam(
    params: Array,
    grads: Array,
    state: State,
    learning_rate: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> Array:
    """Liu et al. 2020, algorithm 2."""
    step = state["step"] = state.get("step", 0) + 1
    m = state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * grads
    v = state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * grads**2
    m_hat, longest = m / (1 - beta1**step), 2 / (1 - beta2) - 1
    length = longest - 2 * step * beta2**step / (1 - beta2**step)
    if length <= 5:
        return params - learning_rate * m_hat
    rectified = math.sqrt(
        (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length) * (1 - beta2**step)
    )
    return params - learning_rate * m_hat * rectified / (np.sqrt(v) + eps)


def adadelta(
    params: Array, grads: Array, state: State, learning_rate: float = 1.0, rho: float = 0.9, eps: float = 1e-6
) -> Array:
    """Zeiler 2012, algorithm 1."""
    v = state["v"] = rho * state.get("v", 0) + (1 - rho) * grads**2
    change = np.sqrt(state.get("a", 0) + eps) / np.sqrt(v + eps) * grads
    state["a"] = rho * state.get("a", 0) + (1 - rho) * change**2
    return params - learning_rate * change


def lion(
    params: Array,
    grads: Array,
    state: State,
    learning_rate: float = 1e-4,
    beta1: float = 0.9,
    beta2: float = 0.99,
    weight_decay: float = 0.0,
    mask: NDArray[np.bool_] | bool = True,
) -> Array:
    """Chen et al. 2023, algorithm 2."""
    m = state.get("m", np.zeros_like(params))
    decayed = np.where(mask, params * (1 - learning_rate * weight_decay), params)
    state["m"] = beta2 * m + (1 - beta2) * grads
    return decayed - learning_rate * np.sign(beta1 * m + (1 - beta1) * grads)


def schedule_free_adamw(
    params: Array,
    grads: Array,
    state: State,
    learning_rate: float = 0.0025,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    warmup_steps: int = 0,
) -> Array:
    """Defazio et al. 2024, algorithm 1; the parameters are y, and `state["x"]` is the average."""
    step = state["step"] = state.get("step", 0) + 1
    rate = learning_rate * min(1, step / max(1, warmup_steps))
    v = state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * grads**2
    change = grads / (np.sqrt(v / (1 - beta2**step)) + eps) + weight_decay * params
    z = state["z"] = state.get("z", params) - rate * change
    squares = state["squares"] = state.get("squares", 0) + rate**2
    x = state["x"] = (1 - rate**2 / squares) * state.get("x", params) + rate**2 / squares * z
    return (1 - beta1) * z + beta1 * x


def adamw(
    params: Array,
    grads: Array,
    state: State,
    learning_rate: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    mask: NDArray[np.bool_] | bool = True,
) -> Array:
    """Adam with decoupled decay (Loshchilov and Hutter 2019, algorithm 2) of the parameters in `mask`."""
    decayed = np.where(mask, params * (1 - learning_rate * weight_decay), params)
    return adam(decayed, grads, state, learning_rate, beta1, beta2, eps)


OPTIMIZERS: dict[str, Callable[..., Array]] = {
    "SGD": sgd,
    "Adagrad": adagrad,
    "RMSprop": rmsprop,
    "Adadelta": adadelta,
    "Adam": adam,
    "AdamW": adamw,
    "NAdam": nadam,
    "RAdam": radam,
    "Lion": lion,
    "ScheduleFreeAdamW": schedule_free_adamw,
}


def train(
    sizes: Sequence[int],
    activations: str | Sequence[str],
    output: str,
    loss_name: str,
    params: Array,
    batches: Iterable[tuple[Array, ArrayLike]],
    optimizer: Callable[..., Array],
    **options: Any,
) -> tuple[Array, list[float]]:
    """Take one optimizer step per batch; return the new parameters and the loss of every batch before its step."""
    state: State = {}
    losses = []
    for x, y in batches:
        value, grads = loss_and_grad(sizes, activations, output, loss_name, params, x, y)
        losses.append(float(value))
        params = optimizer(params, grads, state, **options)
    return params, losses


_WORD = 0xFFFFFFFF


def _mix(x: int) -> int:
    """SplitMix64's finaliser."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return x ^ (x >> 31)


def _scrambled(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of numbers below 2**32."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor) & np.uint64(_WORD)
    return x ^ (x >> np.uint64(16))


def draws(seed: int, step: int, layer: int, n_samples: int, features: Iterable[int]) -> NDArray[np.uint64]:
    """Return whole numbers below 2**24, (n_samples, number of features), as a step draws them; layer -1 is noise."""
    key = _mix((seed + _mix(step + 0x9E3779B97F4A7C15)) % 2**64)
    key = _mix((key + layer + 2) % 2**64)
    samples = _scrambled(np.arange(n_samples, dtype=np.uint64) ^ np.uint64(key & _WORD))
    places = np.array([(feature * 0x9E3779B1 + (key >> 32)) & _WORD for feature in features], np.uint64)
    return _scrambled(samples[:, np.newaxis] ^ places) >> np.uint64(8)


def dropout_mask(seed: int, step: int, layer: int, n_samples: int, n_features: int, rate: float) -> Array:
    """Return 0 where an input of a layer is dropped, else 1 / (1 - rate); (n_samples, n_features)."""
    return (draws(seed, step, layer, n_samples, range(n_features)) >= rate * 2**24) / (1 - rate)


def normal_noise(seed: int, step: int, n_samples: int, n_features: int) -> Array:
    """Return standard normal numbers (n_samples, n_features), by Box and Muller 1958 with angles of a half circle."""
    u = (draws(seed, step, -1, n_samples, range(0, 2 * n_features, 2)) + 0.5) / 2**24
    w = draws(seed, step, -1, n_samples, range(1, 2 * n_features, 2)) / 2**24 - 0.5
    return np.sqrt(-2 * np.log(u)) * np.sin(math.pi * w)


def penalty(sizes: Sequence[int], params: Array, l1: float, l2: float, biases: bool = False) -> tuple[float, Array]:
    """Return l1 * sum(abs(w)) + l2 / 2 * sum(w**2) and its gradient, of the weights and if wanted the biases."""
    counts = weight_mask(sizes) | biases
    w = np.where(counts, params, 0)
    return float(l1 * abs(w).sum() + l2 / 2 * (w**2).sum()), l1 * np.sign(w) + l2 * w


def clipped(grads: Array, clip_norm: float = math.inf, clip_value: float = math.inf) -> Array:
    """Return a gradient clipped by element, and then by its norm (Pascanu et al. 2013, algorithm 1)."""
    grads = np.clip(grads, -clip_value, clip_value)
    norm = math.sqrt((grads**2).sum())
    return grads * (clip_norm / norm) if norm > clip_norm else grads


def max_norm(sizes: Sequence[int], params: Array, value: float) -> Array:
    """Return the parameters with each unit's weights scaled down to this norm where they exceed it."""
    params = params.copy()
    for w, _ in unpack(sizes, params):
        norms = np.sqrt((w**2).sum(axis=0))
        w *= np.where(norms > value, value / np.where(norms > 0, norms, 1), 1)
    return params


def smoothed(y: Array, rate: float, n_classes: int) -> Array:
    """Return targets (n_samples, n_out) that keep 1 - rate and share the rest (Szegedy et al. 2016)."""
    return (1 - rate) * y + rate / n_classes
