"""Initial parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastbp import arrays
from fastbp.layout import Layout
from fastbp.names import name_of

__all__ = ["INITIALIZERS", "initialize"]

Float64Array: TypeAlias = npt.NDArray[np.float64]
_Initializer: TypeAlias = Callable[[int, int, np.random.Generator], Float64Array]


def initialize(
    init: str | npt.ArrayLike,
    sizes: Sequence[int],
    defaults: Sequence[str],
    dtype: npt.DTypeLike,
    rng: np.random.Generator,
) -> npt.NDArray[Any]:
    """Return the initial parameters of a network, with biases 0.

    ===============  =====================================================================
    name             weights of a layer with n_in inputs and n_out outputs
    ===============  =====================================================================
    he_normal        normal, standard deviation sqrt(2 / n_in) [1]_
    he_uniform       uniform in +-sqrt(6 / n_in) [1]_
    glorot_normal    normal, standard deviation sqrt(2 / (n_in + n_out)) [2]_
    glorot_uniform   uniform in +-sqrt(6 / (n_in + n_out)) [2]_
    lecun_normal     normal, standard deviation sqrt(1 / n_in) [3]_
    lecun_uniform    uniform in +-sqrt(3 / n_in) [3]_
    orthogonal       w.T @ w = 1 (n_in >= n_out) or w @ w.T = 1, uniformly among such matrices [4]_ [5]_
    auto             by the activation that follows: he_normal for relu, leaky_relu, elu, gelu, silu and softplus,
                     lecun_normal for selu, else glorot_uniform
    ===============  =====================================================================

    Parameters
    ----------
    init : str or array_like of shape (n_params,)
        A name of the table, or all parameters, which are copied.
    sizes : sequence of int, length n_layers + 1
        Widths of the network.
    defaults : sequence of str, length n_layers
        The name of the table that stands for auto in each layer: that of the activation that follows.
    dtype : dtype
        float32 or float64. Numbers are drawn in float64 and cast, so that both start from the same ones.
    rng : numpy.random.Generator
        Advanced by the numbers drawn.

    Returns
    -------
    ndarray, shape (n_params,), dtype `dtype`

    Raises
    ------
    TypeError
        If `init` is neither a name nor an array of real numbers.
    ValueError
        If the name is unknown, or the array has another shape or a value that is not finite in `dtype`.

    Notes
    -----
    The normal distributions are not truncated. `orthogonal` uses NumPy's QR decomposition: its last bits may depend
    on NumPy's LAPACK.

    References
    ----------
    .. [1] K. He et al., "Delving deep into rectifiers", ICCV 2015, equation 10.
    .. [2] X. Glorot and Y. Bengio, "Understanding the difficulty of training deep feedforward neural networks",
       AISTATS 2010, equations 12 and 16.
    .. [3] Y. LeCun et al., "Efficient BackProp", in Neural Networks: Tricks of the Trade, Springer, 1998, section 4.6.
    .. [4] A. M. Saxe, J. L. McClelland and S. Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep
       linear neural networks", ICLR 2014.
    .. [5] F. Mezzadri, "How to generate random matrices from the classical compact groups", Notices of the AMS 54(5),
       2007.
    """
    layout = Layout(sizes)
    if init is None:
        raise TypeError(
            f"init must be an array of all parameters or one of {', '.join(('auto', *INITIALIZERS))}, got None"
        )
    if not isinstance(init, str):
        return arrays.parameters(init, layout.n_params, dtype, name="init")
    name = name_of(init, ("auto", *INITIALIZERS), "init")
    params = np.zeros(layout.n_params, dtype=dtype)
    for w, default in zip(layout.weights(params), defaults, strict=True):
        layer_name = default if name == "auto" else name
        n_in, n_out = w.shape
        with np.errstate(under="ignore"):
            w[...] = INITIALIZERS[layer_name](n_in, n_out, rng)
    return params


def _he_normal(n_in: int, n_out: int, rng: np.random.Generator) -> Float64Array:
    return rng.normal(0.0, np.sqrt(2.0 / n_in), (n_in, n_out))


def _he_uniform(n_in: int, n_out: int, rng: np.random.Generator) -> Float64Array:
    return _uniform(np.sqrt(6.0 / n_in), n_in, n_out, rng)


def _glorot_normal(n_in: int, n_out: int, rng: np.random.Generator) -> Float64Array:
    return rng.normal(0.0, np.sqrt(2.0 / (n_in + n_out)), (n_in, n_out))


def _glorot_uniform(n_in: int, n_out: int, rng: np.random.Generator) -> Float64Array:
    return _uniform(np.sqrt(6.0 / (n_in + n_out)), n_in, n_out, rng)


def _lecun_normal(n_in: int, n_out: int, rng: np.random.Generator) -> Float64Array:
    return rng.normal(0.0, np.sqrt(1.0 / n_in), (n_in, n_out))


def _lecun_uniform(n_in: int, n_out: int, rng: np.random.Generator) -> Float64Array:
    return _uniform(np.sqrt(3.0 / n_in), n_in, n_out, rng)


def _orthogonal(n_in: int, n_out: int, rng: np.random.Generator) -> Float64Array:
    tall = rng.normal(size=(max(n_in, n_out), min(n_in, n_out)))
    q, r = np.linalg.qr(tall)
    # The signs make the decomposition unique and with it the distribution uniform [5].
    q *= np.where(np.diagonal(r) < 0.0, -1.0, 1.0)
    return q if n_in >= n_out else q.T


def _uniform(limit: float, n_in: int, n_out: int, rng: np.random.Generator) -> Float64Array:
    return rng.uniform(-limit, limit, (n_in, n_out))


INITIALIZERS: dict[str, _Initializer] = {
    "he_normal": _he_normal,
    "he_uniform": _he_uniform,
    "glorot_normal": _glorot_normal,
    "glorot_uniform": _glorot_uniform,
    "lecun_normal": _lecun_normal,
    "lecun_uniform": _lecun_uniform,
    "orthogonal": _orthogonal,
}
"""Named initializers: (n_in, n_out, rng) -> float64 weights of shape (n_in, n_out)."""
