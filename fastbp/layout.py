"""Layout of the flat buffers: where each layer's weights and biases lie among the parameters."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from fastbp import checks

__all__ = ["Layout", "Views"]

# The address space of a 64-bit process in user mode, and what an intp can count elsewhere.
_MAX_BYTES = min(2**47, sys.maxsize)
_ITEMSIZE = np.dtype(np.float64).itemsize


class Views(tuple[npt.NDArray[Any], ...]):
    """Views of a flat buffer, one per layer; assigning to one of them writes into the buffer.

    Without that ``views[0] *= 2`` would double the numbers, and then raise because a tuple takes no new entry.

    Examples
    --------
    >>> flat = np.arange(4.0)
    >>> views = Views([flat[:2], flat[2:]])
    >>> views[0] *= 2
    >>> views[1] = [7.0, 8.0]
    >>> flat
    array([0., 2., 7., 8.])
    """

    def __setitem__(self, index: int, values: npt.ArrayLike) -> None:
        """Write `values`, of the shape of the view or broadcast to it."""
        self[index][...] = values


@dataclass(frozen=True)
class Layout:
    """Offsets of all weights and biases in the flat parameters, gradients and moments of a dense network.

    Layer after layer a buffer holds ``w.ravel()`` for w of shape (n_in, n_out) in C order, then b of shape (n_out,).

    Parameters
    ----------
    sizes : iterable of int
        Width of the input, of every hidden layer and of the output: at least two positive integers.

    Attributes
    ----------
    sizes : tuple of int
    weight_start, bias_start : tuple of int
        For each layer the index of its first weight and of its first bias, in elements.
    n_weights : int
        All weights, without the biases.
    n_params : int
        Length of the buffers, in elements.

    Raises
    ------
    TypeError
        If `sizes` is no sequence or an entry is no integer.
    ValueError
        If there are fewer than two entries, one is not positive, or the parameters would not fit in memory.

    Examples
    --------
    >>> layout = Layout([2, 3, 1])
    >>> layout.n_layers, layout.n_params
    (2, 13)
    >>> layout.weight_start, layout.bias_start
    ((0, 9), (6, 12))
    """

    sizes: tuple[int, ...]
    weight_start: tuple[int, ...] = field(init=False, repr=False, compare=False)
    bias_start: tuple[int, ...] = field(init=False, repr=False, compare=False)
    n_weights: int = field(init=False, repr=False, compare=False)
    n_params: int = field(init=False, repr=False, compare=False)

    def __init__(self, sizes: Sequence[int]) -> None:
        checked = _checked_sizes(sizes)
        weight_start, bias_start, n_params = [], [], 0
        for n_in, n_out in pairwise(checked):
            weight_start.append(n_params)
            bias_start.append(n_params + n_in * n_out)
            n_params += n_in * n_out + n_out
        if n_params * _ITEMSIZE >= _MAX_BYTES:
            raise ValueError(
                f"sizes must give fewer than {_MAX_BYTES // _ITEMSIZE} parameters, got {checked} with {n_params}"
            )
        object.__setattr__(self, "sizes", checked)
        object.__setattr__(self, "weight_start", tuple(weight_start))
        object.__setattr__(self, "bias_start", tuple(bias_start))
        object.__setattr__(self, "n_weights", n_params - sum(checked[1:]))
        object.__setattr__(self, "n_params", n_params)

    @property
    def n_layers(self) -> int:
        """Number of layers of weights: one less than the number of sizes."""
        return len(self.sizes) - 1

    def weights(self, params: npt.NDArray[Any]) -> Views:
        """Return views of each layer's weights, of shape (n_in, n_out).

        Parameters
        ----------
        params : ndarray, shape (n_params,), contiguous
            A flat buffer of this layout. No checks: the caller validates.
        """
        return Views(
            params[start:stop].reshape(n_in, n_out)
            for start, stop, (n_in, n_out) in zip(self.weight_start, self.bias_start, pairwise(self.sizes), strict=True)
        )

    def biases(self, params: npt.NDArray[Any]) -> Views:
        """Return views of each layer's biases, of shape (n_out,).

        Parameters
        ----------
        params : ndarray, shape (n_params,)
            A flat buffer of this layout. No checks: the caller validates.
        """
        return Views(
            params[start : start + n_out] for start, n_out in zip(self.bias_start, self.sizes[1:], strict=True)
        )


def _checked_sizes(sizes: object) -> tuple[int, ...]:
    """Return `sizes` as a tuple of at least two positive Python ints."""
    is_scalar = isinstance(sizes, (str, bytes)) or (isinstance(sizes, np.ndarray) and sizes.ndim == 0)
    if is_scalar or not isinstance(sizes, (Sequence, np.ndarray)):
        raise TypeError(f"sizes must be a sequence of positive integers, got {sizes!r} of type {type(sizes).__name__}")
    checked = tuple(checks.positive_int(size, f"sizes[{index}]") for index, size in enumerate(sizes))
    if len(checked) < 2:
        raise ValueError(f"sizes must have at least two entries, n_in and n_out, got {checked}")
    return checked
