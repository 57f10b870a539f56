"""The word that says who may change a network's parameters, which Python and learners in compiled code both take."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from fastbp.buffers import aligned_zeros
from fastbp.kernels.border import exchange_word
from fastbp.kernels.owners import COPY, LEARNER, NOBODY, PYTHON

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Word"]

_PATIENCE = 5.0  # seconds for a copy, which takes milliseconds: after that it was interrupted
_LEARNS = "the model is being trained: a learner in compiled code is at work in another thread"


class Word:
    """An int64 in memory, as `kernels.owners` has it.

    Attributes
    ----------
    memory : ndarray, shape (1,), int64
    address : int
    """

    def __init__(self) -> None:
        self.memory = aligned_zeros(1, np.int64)
        self.address = self.memory.ctypes.data
        exchange_word(self.address, NOBODY, NOBODY)  # compiled before anybody waits for it

    def take(self) -> None:
        """Take it for Python, one call of which may have left it taken; whoever calls this has the turn.

        Raises
        ------
        RuntimeError
            If a learner is at work.
        """
        end = time.monotonic() + _PATIENCE
        while True:
            owner = exchange_word(self.address, NOBODY, PYTHON)
            if owner == COPY and time.monotonic() > end:
                owner = exchange_word(self.address, COPY, PYTHON)
            if owner == LEARNER:
                raise RuntimeError(_LEARNS)
            if owner != COPY:
                return
            time.sleep(0)

    def give_back(self) -> None:
        """Make it nobody's if it is Python's."""
        exchange_word(self.address, PYTHON, NOBODY)

    @contextmanager
    def kept_from_learners(self) -> Iterator[None]:
        """Keep learners from beginning a step, while something is copied.

        Raises
        ------
        RuntimeError
            If one is at work.
        """
        try:
            if exchange_word(self.address, NOBODY, COPY) == LEARNER:
                raise RuntimeError(_LEARNS)
            yield
        finally:
            exchange_word(self.address, COPY, NOBODY)
