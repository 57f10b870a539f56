"""scikit-learn's callbacks (SLEP023), which it has from 1.9 on: one task for a fit, and one for each iteration."""

from __future__ import annotations

from typing import Any

try:
    from sklearn.callback import CallbackSupportMixin as CallbackSupport
    from sklearn.callback import with_callbacks as in_callbacks

    HAS_CALLBACKS = True
except ImportError:
    HAS_CALLBACKS = False

    class CallbackSupport:  # type: ignore[no-redef]
        """Nothing, as there are no callbacks."""

    def in_callbacks(method: Any) -> Any:
        """Return the method."""
        return method


__all__ = ["HAS_CALLBACKS", "CallbackSupport", "Tasks", "in_callbacks"]


class Tasks:
    """The tasks of one fit, as callbacks are told of them; does nothing where there are none.

    Parameters
    ----------
    estimator : estimator
    X, y : of the fit
    sample_weight : optional
    max_iterations : int
    """

    def __init__(self, estimator: Any, X: Any, y: Any, sample_weight: Any, max_iterations: int) -> None:
        self._of = estimator
        self._context: Any = None
        self._iteration: Any = None
        metadata = None if sample_weight is None else {"sample_weight": sample_weight}
        self._about = {"estimator": estimator, "X": X, "y": y, "metadata": metadata}
        if HAS_CALLBACKS and getattr(estimator, "_skl_callbacks", None):
            # One more: an iteration begins where the one before it ends, and the last one has none behind it.
            self._context = context = estimator._init_callback_context(max_subtasks=max_iterations + 1)
            context.call_on_fit_task_begin(**self._about)
            self._begin_iteration()

    def _begin_iteration(self) -> None:
        self._iteration = self._context.subcontext(task_name="iteration")
        self._iteration.call_on_fit_task_begin(**self._about, reconstruction_attributes=self._attributes())

    def _attributes(self) -> dict[str, Any]:
        parts = {name: [part.copy() for part in getattr(self._of, name)] for name in ("coefs_", "intercepts_")}
        return parts | {"_model": None, "_trainer": None}

    def after_iteration(self, _params: Any = None) -> bool:
        """Tell of an iteration that has ended, and of the next one; returns whether a callback wants to stop."""
        if self._iteration is None:
            return False
        stops = self._iteration.call_on_fit_task_end(**self._about, reconstruction_attributes=self._attributes())
        self._begin_iteration()
        return bool(stops)

    def end(self) -> None:
        """Tell that the fit has ended."""
        if self._context is not None and self._iteration is not None:
            self._iteration.call_on_fit_task_end(estimator=self._of)
            self._context.call_on_fit_task_end(**self._about, reconstruction_attributes={})
