"""A network inside the user's own compiled functions: without Python, without the GIL, without an allocation.

``model.compiled()`` makes a handle, a small read-only array, which functions compiled by Numba take as an argument and
pass on to the functions here. These return a status, `OK` or what was wrong (`message`): nothing raises in compiled
code. A wrong dtype or layout is a TypingError that names the argument, when the user's function is compiled.

Examples
--------
>>> import numpy as np
>>> from numba import njit
>>> import fastbp
>>> from fastbp import embed
>>> model = fastbp.MLP([2, 8, 1], "tanh", seed=0)
>>> net = model.compiled()
>>> @njit(nogil=True)
... def orbit(net, state, out, n_steps):
...     for _ in range(n_steps):
...         status = embed.predict(net, state, out)
...         if status != embed.OK:
...             return status
...         state[0] += 0.1 * state[1]
...         state[1] += 0.1 * out[0]
...     return embed.OK
>>> embed.message(orbit(net, np.ones(2, np.float32), np.empty(1, np.float32), 100))
'ok'
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numba
from numba.extending import overload

from fastbp.kernels import overloads
from fastbp.kernels.embedding import BATCH, BUSY, MOVED, OK, OUT_SHAPE, OVERLAP, X_SHAPE, Y_SHAPE

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

__all__ = [
    "BATCH",
    "BUSY",
    "MOVED",
    "OK",
    "OUT_SHAPE",
    "OVERLAP",
    "X_SHAPE",
    "Y_SHAPE",
    "jvp",
    "message",
    "predict",
    "vjp",
]

_MESSAGES = {
    OK: "ok",
    X_SHAPE: "x must have shape (n_in,) or (n, n_in)",
    Y_SHAPE: "y, or a direction, must have as many rows as x and as many columns as the network has outputs (a tangent "
    "of x: features)",
    OUT_SHAPE: "what is written must have as many rows as x, and as many columns as what it is for",
    OVERLAP: "what is written must overlap neither what is read nor the parameters",
    BATCH: "a batch must have at least one sample, and no more than the learner was made for",
    BUSY: "another thread is at work with this handle, or training the model: give each thread a handle of its own",
    MOVED: "the handle is a copy, or comes from another process or version of fastbp: make one with compiled()",
}


def message(status: int) -> str:
    """Return what a status means."""
    return _MESSAGES[int(status)]


def _embedded(typing: Callable[..., Any]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Make a function one that compiled code may call, typed by `overloads`; from Python it runs compiled as well."""

    def register(function: Callable[..., int]) -> Callable[..., int]:
        @functools.cache
        def compiled() -> Any:
            return numba.njit(nogil=True)(lambda *arguments: twin(*arguments))

        @functools.wraps(function)
        def twin(*arguments: Any) -> int:
            return int(compiled()(*arguments))

        overload(twin, jit_options={"forceinline": True, "error_model": "numpy"})(typing)
        return twin

    return register


@_embedded(overloads.predict)
def predict(net: npt.NDArray[Any], x: npt.NDArray[Any], out: npt.NDArray[Any]) -> int:
    """Write the network's outputs for `x` to `out`; the bits are those of `MLP.predict`.

    Parameters
    ----------
    net : handle
        Of `MLP.compiled`. One sample: any number of threads may use one handle at once, if the network has no more than
        4096 hidden units. Rows: a handle for each thread.
    x : ndarray, shape (n_in,) or (n, n_in), of float32 or float64, any strides
        Not looked at for infinities and NaN.
    out : ndarray, shape (n_out,) or (n, n_out), of the network's dtype, C-contiguous
        Overwritten. Overlaps neither `x` nor the parameters.

    Returns
    -------
    int
        OK; X_SHAPE, OUT_SHAPE, OVERLAP, BUSY, MOVED: then nothing was written.
    """
    raise NotImplementedError


@_embedded(overloads.vjp)
def vjp(net: npt.NDArray[Any], x: npt.NDArray[Any], d_out: npt.NDArray[Any], d_x: npt.NDArray[Any]) -> int:
    """Write ``J.T @ d_out`` of each sample to `d_x`, J being the Jacobian of its outputs; as `MLP.vjp`.

    Parameters
    ----------
    net, x
        As for `predict`.
    d_out : ndarray, shape (n_out,) or (n, n_out), of float32 or float64, any strides
        With respect to the outputs behind the output activation.
    d_x : ndarray, shape (n_in,) or (n, n_in), of the network's dtype, C-contiguous
        Overwritten. Overlaps neither `x` nor `d_out` nor the parameters.

    Returns
    -------
    int
        OK; X_SHAPE, Y_SHAPE, OUT_SHAPE, OVERLAP, BUSY, MOVED: then nothing was written.
    """
    raise NotImplementedError


@_embedded(overloads.jvp)
def jvp(net: npt.NDArray[Any], x: npt.NDArray[Any], t_x: npt.NDArray[Any], t_out: npt.NDArray[Any]) -> int:
    """Write ``J @ t_x`` of each sample to `t_out`, J being the Jacobian of its outputs; as `MLP.jvp`.

    Parameters
    ----------
    net, x
        As for `predict`.
    t_x : ndarray, shape (n_in,) or (n, n_in), of float32 or float64, any strides
    t_out : ndarray, shape (n_out,) or (n, n_out), of the network's dtype, C-contiguous
        Overwritten. Overlaps neither `x` nor `t_x` nor the parameters.

    Returns
    -------
    int
        OK; X_SHAPE, Y_SHAPE, OUT_SHAPE, OVERLAP, BUSY, MOVED: then nothing was written.
    """
    raise NotImplementedError
