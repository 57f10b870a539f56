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
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numba
import numpy as np
from numba.extending import overload

from fastbp import checks
from fastbp.kernels import online, overloads
from fastbp.kernels.embedding import BATCH, BUSY, MOVED, OK, OUT_SHAPE, OVERLAP, X_SHAPE, Y_SHAPE
from fastbp.kernels.learning import DIVERGED, LABELS, OVERFLOWED, RATE, RATES_ENDED, TORN, WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

__all__ = [
    "BATCH",
    "BUSY",
    "DIVERGED",
    "LABELS",
    "MOVED",
    "OK",
    "OUT_SHAPE",
    "OVERFLOWED",
    "OVERLAP",
    "RATE",
    "RATES_ENDED",
    "TORN",
    "WEIGHTS",
    "X_SHAPE",
    "Y_SHAPE",
    "backward_step",
    "jvp",
    "loss",
    "loss_and_grad",
    "message",
    "n_steps",
    "normalizer",
    "normalizer_apply",
    "normalizer_update",
    "params",
    "predict",
    "replay_buffer",
    "replay_push",
    "replay_sample",
    "reset",
    "set_learning_rate",
    "train",
    "train_step",
    "vjp",
]

_Function = TypeVar("_Function", bound="Callable[..., Any]")

_MESSAGES = {
    OK: "ok",
    X_SHAPE: "x must have shape (n_in,) or (n, n_in)",
    Y_SHAPE: "y, or a direction, must have a row for each of x, as wide as the outputs (a tangent of x: as x); or "
    "integer classes if the loss is cross_entropy",
    OUT_SHAPE: "what is written must have as many rows as x, and be as wide as what it is for",
    OVERLAP: "what is written must overlap neither what is read nor the parameters",
    BATCH: "a batch must have at least one sample, and no more than the learner was made for",
    BUSY: "another thread is at work with this handle, or training the model: give each thread a handle of its own",
    MOVED: "the handle is a copy, or comes from another process or version of fastbp: make one with compiled()",
    DIVERGED: "the loss is not finite: parameters, moments and count are those before the step",
    LABELS: "a class is out of range: parameters, moments and count are those before the step",
    OVERFLOWED: "a parameter is not finite after the step, which was taken",
    RATES_ENDED: "the learning rates that were sampled beforehand are used up: make a handle with more n_steps",
    RATE: "a learning rate must be finite and not negative",
    WEIGHTS: "weight must have one number for each row of x, finite and not negative; for a gradient not all 0",
    TORN: "this process was forked while a step was changing the parameters: make a new trainer from whole ones",
}


def message(status: int) -> str:
    """Return what a status means.

    Raises
    ------
    ValueError
        If it is none.
    """
    if status not in _MESSAGES:
        raise ValueError(f"status must be one of 0 to {max(_MESSAGES)}, got {checks.shown(status)}")
    return _MESSAGES[status]


def _embedded(typing: Callable[..., Any]) -> Callable[[_Function], _Function]:
    """Make a function one that compiled code may call, typed by `overloads`; from Python it runs compiled as well."""

    def register(function: _Function) -> _Function:
        @functools.cache
        def compiled() -> Any:
            return numba.njit(nogil=True)(lambda *arguments: twin(*arguments))

        @functools.wraps(function)
        def twin(*arguments: Any) -> Any:
            return compiled()(*arguments)

        overload(twin, jit_options={"forceinline": True, "error_model": "numpy"})(typing)
        return cast("_Function", twin)

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


@_embedded(overloads.train_step)
def train_step(
    learner: npt.NDArray[Any], x: npt.NDArray[Any], y: npt.NDArray[Any], weight: npt.NDArray[Any] | None = None
) -> int:
    """Take one optimizer step on a batch, in place; the bits are those of `Trainer.step`.

    Parameters
    ----------
    learner : handle
        Of `Trainer.compiled`. One thread at a time may train a network, by whatever handle, or from Python.
    x : ndarray, shape (n_in,) or (n, n_in), of float32 or float64, any strides
        Not looked at for infinities and NaN, which end in DIVERGED or OVERFLOWED.
    y : ndarray, shape as the outputs, of float32 or float64, any strides
        For one output also (n,). For cross_entropy integer classes (n,), of any width, or probabilities. Not checked
        otherwise.
    weight : ndarray, shape (n,), of float32 or float64, any strides, optional
        Of the samples, as `sample_weight` of `Trainer.step`. If all are 0 the step counts, and changes nothing else.

    Returns
    -------
    int
        OK. OVERFLOWED: the step was taken. DIVERGED, LABELS: parameters, moments and count are as before. X_SHAPE,
        Y_SHAPE, BATCH, BUSY, MOVED, RATES_ENDED, TORN, WEIGHTS: nothing was written.
    """
    raise NotImplementedError


@_embedded(overloads.backward_step)
def backward_step(learner: npt.NDArray[Any], x: npt.NDArray[Any], d_out: npt.NDArray[Any]) -> int:
    """Take one optimizer step from the derivative of a loss of your own; the bits are those of `Trainer.step_from`.

    Parameters
    ----------
    learner, x
        As for `train_step`.
    d_out : ndarray, shape as the outputs, for one output also (n,), of float32 or float64, any strides
        With respect to the outputs behind the output activation. Not divided by n.

    Returns
    -------
    int
        As `train_step`; there is no loss that could be DIVERGED.
    """
    raise NotImplementedError


@_embedded(overloads.loss_and_grad)
def loss_and_grad(
    learner: npt.NDArray[Any],
    x: npt.NDArray[Any],
    y: npt.NDArray[Any],
    grad: npt.NDArray[Any],
    weight: npt.NDArray[Any] | None = None,
) -> int:
    """Write the gradient of the batch's mean loss to `grad`; `loss` tells the loss. The bits of `MLP.loss_and_grad`.

    Several threads may do so at once, each with a handle of its own.

    Parameters
    ----------
    learner, x, y
        As for `train_step`.
    grad : ndarray, shape (n_params,), of the network's dtype, C-contiguous
        Overwritten. Overlaps neither `x`, `y` nor `weight` nor the parameters.
    weight
        As for `train_step`, but not all 0.

    Returns
    -------
    int
        OK. DIVERGED, LABELS, X_SHAPE, Y_SHAPE, OUT_SHAPE, OVERLAP, BATCH, BUSY, MOVED, WEIGHTS: `grad` is as before.
    """
    raise NotImplementedError


@_embedded(overloads.train)
def train(
    learner: npt.NDArray[Any],
    x: npt.NDArray[Any],
    y: npt.NDArray[Any],
    n_steps: int,
    weight: npt.NDArray[Any] | None = None,
) -> int:
    """Train for some steps as `Trainer.fit` does: in batches of the trainer's size, in its order, from where it stands.

    There is no history. Ctrl-C does not reach compiled code: train in chunks, and return to Python in between.

    Parameters
    ----------
    learner : handle
        Of `Trainer.compiled`, for as large batches as the trainer's at least.
    x, y : ndarray, shape (n, n_in) and as the outputs
        As for `train_step`: the whole data. A call goes on in the middle of an epoch where the one before has ended.
    n_steps : int
    weight : ndarray, shape (n,)
        As for `train_step`, of all samples.

    Returns
    -------
    int
        As `train_step`. The steps before the one that went wrong were taken.
    """
    raise NotImplementedError


@_embedded(overloads.reset)
def reset(learner: npt.NDArray[Any]) -> int:
    """Set the optimizer's moments and the count of steps, the trainer's too, to zero; parameters stay.

    Returns
    -------
    int
        OK, BUSY, MOVED, TORN.
    """
    raise NotImplementedError


@_embedded(overloads.set_learning_rate)
def set_learning_rate(learner: npt.NDArray[Any], rate: float) -> int:
    """Set the learning rate of this handle's steps from now on.

    Returns
    -------
    int
        OK, RATE, BUSY, MOVED.
    """
    raise NotImplementedError


@_embedded(overloads.loss)
def loss(learner: npt.NDArray[Any]) -> float:
    """Return the mean loss of this handle's last batch before its step, or of all samples that `train` has seen.

    NaN before the first, and if the handle was copied.
    """
    raise NotImplementedError


@_embedded(overloads.n_steps)
def n_steps(learner: npt.NDArray[Any]) -> int:
    """Return the steps taken so far, the trainer's included; -1 if the handle was copied."""
    raise NotImplementedError


@_embedded(overloads.params)
def params(handle: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return all parameters, shape (n_params,): a writable view, of a network's handle or a learner's.

    Empty if the handle was copied. In compiled code the view keeps the handle's memory alive, wherever it goes.
    """
    raise NotImplementedError


def replay_buffer(
    capacity: int, n_in: int, n_out: int, seed: int, dtype: npt.DTypeLike = "float32"
) -> npt.NDArray[Any]:
    """Return a replay buffer: it keeps the last `capacity` samples (x, y) that are pushed, and draws from them.

    Parameters
    ----------
    capacity, n_in, n_out : int
        Samples; numbers of x and of y, which may be whatever belongs together, such as a state and what followed.
    seed : int
        The draws are the same for the same seed and pushes.
    dtype : {"float32", "float64"}

    Returns
    -------
    ndarray, 1-D, of a dtype of its own
        It owns its memory: a copy, or a pickle, is a whole buffer. For one thread at a time.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was expected and what was passed.
    """
    capacity = checks.positive_int(capacity, "capacity")
    n_in, n_out = checks.positive_int(n_in, "n_in"), checks.positive_int(n_out, "n_out")
    number = np.dtype(dtype)
    if number.name not in ("float32", "float64"):
        raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r}")
    n_words = online.HEADER - (capacity * (n_in + n_out) * number.itemsize // -8)
    buffer = np.zeros(n_words, np.int64)
    state = np.uint64(checks.seed_of(seed)).astype(np.int64)
    buffer[: online.HEADER] = online.IS_BUFFER, capacity, n_in, n_out, 0, state
    return buffer.view([(overloads.field_name(overloads.REPLAY_KIND, number), np.int64)])


def normalizer(n: int) -> npt.NDArray[Any]:
    """Return running means and variances of n features (Welford 1962), with which to normalize them.

    Returns
    -------
    ndarray, 1-D, of a dtype of its own
        It owns its memory: a copy, or a pickle, is a whole one. For one thread at a time.

    Raises
    ------
    TypeError, ValueError
        If `n` is no positive integer.
    """
    sums = np.zeros(1 + 2 * checks.positive_int(n, "n"))
    return sums.view([(overloads.field_name(overloads.NORMALIZER_KIND, "float64"), np.float64)])


@_embedded(online.replay_push)
def replay_push(buffer: npt.NDArray[Any], x: npt.NDArray[Any], y: npt.NDArray[Any]) -> int:
    """Put samples into a replay buffer, in the place of the oldest where it is full.

    Parameters
    ----------
    buffer : replay buffer
    x, y : ndarray, shapes (n_in,) and (n_out,), or (n, n_in) and (n, n_out), of numbers, any strides

    Returns
    -------
    int
        OK. X_SHAPE, Y_SHAPE, MOVED: nothing was written.
    """
    raise NotImplementedError


@_embedded(online.replay_sample)
def replay_sample(buffer: npt.NDArray[Any], x_batch: npt.NDArray[Any], y_batch: npt.NDArray[Any]) -> int:
    """Draw samples from a replay buffer, with replacement, each as likely as any other.

    Parameters
    ----------
    buffer : replay buffer
    x_batch, y_batch : ndarray, shapes (n, n_in) and (n, n_out), of float32 or float64
        Overwritten.

    Returns
    -------
    int
        OK. BATCH: the buffer is empty. X_SHAPE, Y_SHAPE, MOVED. Then nothing was written.
    """
    raise NotImplementedError


@_embedded(online.normalizer_update)
def normalizer_update(normalizer: npt.NDArray[Any], x: npt.NDArray[Any]) -> int:
    """Take samples into the means and variances.

    Parameters
    ----------
    normalizer : normalizer
    x : ndarray, shape (n,) or (n_samples, n), of numbers, any strides

    Returns
    -------
    int
        OK. X_SHAPE, MOVED: nothing was written.
    """
    raise NotImplementedError


@_embedded(online.normalizer_apply)
def normalizer_apply(normalizer: npt.NDArray[Any], x: npt.NDArray[Any], out: npt.NDArray[Any]) -> int:
    """Write (x - mean) / standard deviation of each feature to `out`, which may be x; of a constant one x - mean.

    Parameters
    ----------
    normalizer : normalizer
    x : ndarray, shape (n,) or (n_samples, n), of numbers, any strides
    out : ndarray of that shape, of float32 or float64
        Overwritten.

    Returns
    -------
    int
        OK. X_SHAPE, OUT_SHAPE, MOVED: nothing was written.
    """
    raise NotImplementedError
