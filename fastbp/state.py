"""What a trainer keeps from call to call: where its run stands, its buffers, and what its stop rules remember.

An exception may end a call between any two instructions. So what has to change together is one object, swapped by one
assignment, or one array, written by one store or by the kernel. (And no generator is left half consumed: an exception
that comes while it is closed is lost.)
"""

from __future__ import annotations

import copy
import math
import os
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastbp.buffers import aligned_rows, owned
from fastbp.kernels import training as kernel
from fastbp.kernels.tables import CURSOR, RULE, TOTALS
from fastbp.stopping import Convergence, EarlyStopping, StopRule, TargetLoss

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fastbp.sources import Data

__all__ = ["NO_LIMIT", "Buffers", "Mark", "Position", "RuleMemory", "RunState", "Seen", "SetAside", "Snapshot"]

NO_LIMIT = int(np.iinfo(np.int64).max)

Array = npt.NDArray[Any]

_OF_RUN = ["epoch", "position", "stop_rule", "spent"]  # fields of CURSOR, beside "step" and "n_records"
_OF_STEP = ["super_blocks_done", "phase", "task", "updating"]
_NOTHING_DONE = 0, 0, 0, 0
_OF_CHUNKS = "chunks"  # in the place of a fingerprint, which it equals none


class Position:
    """Where a run stands, in the arrays that the kernel reads and writes."""

    def __init__(self, n_steps: int = 0) -> None:
        self.cursor = np.zeros((), CURSOR)
        self.cursor["step"] = n_steps
        self.totals = np.zeros((), TOTALS)
        self.epoch_seconds = 0.0  # spent on an epoch that was stopped midway
        self.data: Data | None = None  # of the fit that runs
        self.is_in_chunks = False  # whether that goes through chunks: then no later one can go on in mid-epoch
        self._fingerprint: str | None = None  # in mid-epoch, of the data
        self.unvalidated: Array | None = None  # the parameters after an epoch that a call could not validate, or judge

    @property
    def n_steps(self) -> int:
        """Steps taken."""
        return int(self.cursor["step"])

    @property
    def n_epochs(self) -> int:
        """Epochs ended."""
        return int(self.cursor["epoch"])

    @property
    def is_mid_epoch(self) -> bool:
        """Whether steps were taken since the last epoch's end."""
        return int(self.cursor["position"]) > 0

    @property
    def is_torn(self) -> bool:
        """Whether a step has begun to change parameters and is not counted yet."""
        return int(self.cursor["updating"]) != 0

    @property
    def fingerprint(self) -> str | None:
        """Of the data in whose epoch the run stands."""
        if self.is_in_chunks:
            return _OF_CHUNKS
        return self._fingerprint if self.data is None else self.data.fingerprint()

    def leave(self) -> None:
        """Keep of the data what tells whether the next fit goes on in mid-epoch."""
        self._fingerprint = self.fingerprint if self.is_mid_epoch else None
        self.data = None

    @property
    def is_mid_step(self) -> bool:
        """Whether a step has begun that is not counted yet."""
        return self.cursor[_OF_STEP].item() != _NOTHING_DONE

    def abandon_step(self) -> None:
        """Go back to the beginning of the present step, in which no parameter has changed yet."""
        self.cursor[_OF_STEP] = 0
        self.totals[["step_loss", "step_right"]] = 0.0

    def start_at(self, n_steps: int) -> None:
        """Forget everything but the number of steps taken."""
        self.cursor[...] = Position(n_steps).cursor
        self.totals[...] = 0.0

    def whole(self, n_steps: int) -> Position:
        """Return a copy at the beginning of the present step, without records, as if `n_steps` had been taken."""
        other = Position(n_steps)
        for name in _OF_RUN:
            other.cursor[name] = self.cursor[name]
        other.totals[()] = self.totals.item()  # a tenth of the time of arrays
        other.epoch_seconds, other.unvalidated = self.epoch_seconds, self.unvalidated
        other._fingerprint = self.fingerprint if self.is_mid_epoch else None
        other.totals["step_loss"] = other.totals["step_right"] = 0.0
        return other

    def next_epoch(self) -> Position:
        """Return a position at the beginning of the next epoch, which leaves out what is left of the present one."""
        following = Position(self.n_steps)
        following.cursor["epoch"] = self.n_epochs + 1
        return following

    def __getstate__(self) -> dict[str, Any]:
        # In mid-step, where another thread may copy it, the cursor means nothing without that fit's buffers.
        return self.whole(self.n_steps).__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Kernels write here by address: the arrays that come back may be read-only, or somebody else's.
        self.__dict__.update(state)
        self.cursor = owned(self.cursor, CURSOR)
        self.totals = owned(self.totals, TOTALS)
        self.unvalidated = None if self.unvalidated is None else owned(self.unvalidated)


class Snapshot(NamedTuple):
    """Parameters and moments at one time, as copies."""

    params: Array
    moments: Array

    def owned(self) -> Snapshot:
        """Return a copy whose arrays are nobody else's."""
        return Snapshot(owned(self.params), owned(self.moments))


class SetAside(NamedTuple):
    """What a run goes on from, while its buffers show something else."""

    present: Snapshot
    shown: Snapshot

    def owned(self) -> SetAside:
        """Return a copy whose arrays are nobody else's."""
        return SetAside(self.present.owned(), self.shown.owned())


class Buffers:
    """The model's parameters with the moments, in the memory that kernels write.

    Parameters
    ----------
    params : ndarray, shape (n_params,)
        The model's own.
    n_moments : int
    first_step : int
        Of the run, since when there have been these moments.

    Attributes
    ----------
    params : ndarray, shape (n_params,)
    moments : ndarray, shape (n_moments, n_params)
    set_aside : SetAside or None
        What the run goes on from, if the buffers show the parameters and moments of an earlier epoch.
    """

    def __init__(self, params: Array, n_moments: int, first_step: int = 0) -> None:
        self.params, self.first_step = params, first_step
        self.moments = aligned_rows(n_moments, params.size, params.dtype)
        self.set_aside: SetAside | None = None
        self._process, self._calls = os.getpid(), threading.RLock()

    def with_other_moments(self, n_moments: int, first_step: int, keeps_last: bool) -> Buffers:
        """Return buffers of the same parameters whose moments are 0, but for the last, which may be kept."""
        other = Buffers(self.params, n_moments, first_step)

        def renewed(before: Snapshot) -> Snapshot:
            moments = np.zeros_like(other.moments)
            if keeps_last:
                moments[-1] = before.moments[-1]
            return Snapshot(before.params, moments)

        other.moments[:] = renewed(Snapshot(self.params, self.moments)).moments
        if self.set_aside is not None:
            other.set_aside = SetAside(*map(renewed, self.set_aside))
        return other

    @property
    def calls(self) -> threading.RLock:
        """Held while a kernel is at work on the buffers, so that another thread can copy them in between."""
        if self._process != os.getpid():  # forked: the thread that held it is not in this process
            self._process, self._calls = os.getpid(), threading.RLock()
        return self._calls

    @property
    def present(self) -> Snapshot:
        """The parameters and moments that the run goes on from: no copies."""
        return Snapshot(self.params, self.moments) if self.set_aside is None else self.set_aside.present

    def snapshot(self) -> Snapshot:
        """Return a copy of parameters and moments."""
        return Snapshot(self.params.copy(), self.moments.copy())

    @property
    def is_untouched(self) -> bool:
        """Whether the parameters are still those that are shown, to the bit: nobody has written to them since."""
        return self.set_aside is not None and self.params.tobytes() == self.set_aside.shown.params.tobytes()

    def show(self, best: Snapshot) -> None:
        """Show these instead of the present parameters and moments, from which the run will go on all the same."""
        present = self.snapshot() if self.set_aside is None else self.set_aside.present
        self.set_aside = SetAside(present, best)
        self.params[:], self.moments[:] = best

    def show_average(self, average: Array) -> None:
        """Show this average of the parameters instead of the present ones; it is kept."""
        self.show(Snapshot(average, self.present.moments.copy()))

    def go_on(self) -> None:
        """Bring back what was set aside, unless somebody has written to the parameters since."""
        if self.set_aside is not None and self.is_untouched:
            self.params[:], self.moments[:] = self.set_aside.present
        self.set_aside = None

    def put_back(self, set_aside: SetAside | None) -> None:
        """Show again what was shown before `go_on`, if anything was, or else the present parameters."""
        if set_aside is not None:
            self.set_aside = set_aside
            self.params[:], self.moments[:] = set_aside.shown
        elif self.set_aside is not None:
            self.params[:], self.moments[:] = self.set_aside.present
            self.set_aside = None


class Seen(NamedTuple):
    """What an early-stopping rule has seen: the best value (lower is better), how long ago, and what to go back to."""

    best: float = math.inf
    waited: int = -1
    snapshot: Snapshot | None = None

    def after(self, rule: EarlyStopping, value: float, buffers: Buffers) -> Seen:
        """Return this after a new value of the rule's column, of the parameters that the buffers show."""
        value = -value if rule.mode == "max" else value
        waited = 0 if value < self.best - rule.min_delta else self.waited + 1
        if not value < self.best:
            return self._replace(waited=waited)
        return Seen(value, waited, buffers.snapshot() if rule.restore_best else None)


class _Judged(NamedTuple):
    """How many epochs had ended when the rules were last asked, and what each has seen."""

    n_epochs: int
    seen: tuple[Seen, ...]


class _RuleMark(NamedTuple):
    """What rules remembered at one time, as copies."""

    table: Array
    start: tuple[int, float] | None
    seen: tuple[int, float, float] | None
    judged: _Judged | None


class RuleMemory:
    """What stop rules remember, from fit to fit.

    Parameters
    ----------
    rules : sequence of StopRule
    validation : str, optional
        Fingerprint of the validation data.

    Attributes
    ----------
    table : ndarray, shape (n_rules,), RULE
        The state of the rules that need the training loss only, which the kernel asks itself, as `RUN` has them.
    start : (int, float) or None
        Epochs that had ended when the validation data were first looked at, and the loss then.
    seen : (int, float, float) or None
        Epochs that had ended when they were last looked at, loss and accuracy then.
    """

    def __init__(self, rules: Sequence[StopRule] = (), validation: str | None = None) -> None:
        self._early = tuple(rule for rule in rules if isinstance(rule, EarlyStopping))
        self._of_kernel = tuple(rule for rule in rules if isinstance(rule, (TargetLoss, Convergence)))
        self._validation = validation
        self.table = np.array([_row_of(rule) for rule in self._of_kernel], RULE)
        self.start: tuple[int, float] | None = None
        self.seen: tuple[int, float, float] | None = None
        self._judged: _Judged | None = None

    def for_fit(self, rules: Sequence[StopRule], validation: str | None) -> RuleMemory:
        """Return the memory of a fit by these rules: it goes on where rules and validation data are the same."""
        if not rules and validation is None and self._remembers_nothing:
            return self
        memory = RuleMemory(rules, validation)
        known = dict(zip(self._of_kernel, self.table, strict=True))
        for index, rule in enumerate(memory._of_kernel):
            memory.table[index] = known.get(rule, memory.table[index])
        if validation == self._validation:
            memory.start = self.start
            if memory._early == self._early:
                memory.seen, memory._judged = self.seen, self._judged
        return memory

    @property
    def _remembers_nothing(self) -> bool:
        return not self._early and not self._of_kernel and self._validation is None

    @property
    def rules(self) -> tuple[StopRule, ...]:
        """All rules that it remembers something of."""
        return (*self._early, *self._of_kernel)

    @property
    def validation(self) -> str | None:
        """Fingerprint of the validation data."""
        return self._validation

    @property
    def judged(self) -> tuple[Seen, ...]:
        """What each early-stopping rule has seen."""
        return () if self._judged is None else self._judged.seen

    def judge_as(self, n_epochs: int, seen: Sequence[Seen]) -> None:
        """Remember what rules had seen when so many epochs had ended; nothing if that is -1."""
        if n_epochs >= 0 and len(seen) != len(self._early):
            raise ValueError(f"{len(self._early)} rules cannot have seen {len(seen)} things")
        self._judged = None if n_epochs < 0 else _Judged(n_epochs, tuple(seen))

    def rule(self, index: int) -> StopRule:
        """Return the rule in a row of the table."""
        return self._of_kernel[index]

    @property
    def monitors(self) -> tuple[str, ...]:
        """The columns that rules watch."""
        return tuple([rule.monitor for rule in self._early])

    @property
    def best(self) -> Snapshot | None:
        """The parameters and moments to go back to, if a rule wants that."""
        # No generator that is left before its end: what interrupts its closing would be lost.
        judged = () if self._judged is None else self._judged.seen
        snapshots = [seen.snapshot for seen in judged if seen.snapshot is not None]
        return snapshots[0] if snapshots else None

    @property
    def is_patience_over(self) -> bool:
        """Whether a rule has waited long enough."""
        seen = () if self._judged is None else self._judged.seen
        return True in [each.waited >= rule.patience for each, rule in zip(seen, self._early, strict=False)]

    @property
    def judged_epochs(self) -> int:
        """Epochs that had ended when the rules were last asked; -1 before that."""
        return -1 if self._judged is None else self._judged.n_epochs

    def mark(self) -> _RuleMark:
        """Return what `back_to` goes back to."""
        return _RuleMark(self.table.copy(), self.start, self.seen, self._judged)

    def back_to(self, mark: _RuleMark) -> None:
        """Forget what came after a mark. May begin anew at any place."""
        self.table[...] = mark.table
        self.start, self.seen, self._judged = mark.start, mark.seen, mark.judged

    def look(self, n_epochs: int, loss: float, accuracy: float) -> None:
        """Take in what the validation data say after `n_epochs`; the first is the start, which counts as no epoch."""
        if self.start is None:
            self.start = n_epochs, loss
        self.seen = n_epochs, loss, accuracy

    def judge(self, n_epochs: int, values: Mapping[str, float], buffers: Buffers) -> None:
        """Ask the rules about their columns after `n_epochs`; those without a value have nothing to say."""
        seen = (Seen(),) * len(self._early) if self._judged is None else self._judged.seen
        self._judged = _Judged(
            n_epochs,
            tuple(
                [
                    each.after(rule, values[rule.monitor], buffers) if rule.monitor in values else each
                    for each, rule in zip(seen, self._early, strict=True)
                ]
            ),
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.table = owned(self.table, RULE)
        if self._judged is not None:
            own = [
                each if each.snapshot is None else each._replace(snapshot=each.snapshot.owned())
                for each in self._judged.seen
            ]
            self._judged = self._judged._replace(seen=tuple(own))


def _row_of(rule: TargetLoss | Convergence) -> tuple[float, ...]:
    if isinstance(rule, TargetLoss):
        return kernel.TARGET_LOSS, rule.value, 0, math.inf, 0
    return kernel.CONVERGENCE, rule.tol, min(rule.patience, NO_LIMIT), math.inf, 0


class Mark(NamedTuple):
    """The state of a run between two steps, as copies, and how to go back to it in the memory that kernels write."""

    snapshot: Snapshot
    cursor: Array
    totals: Array
    memory: _RuleMark

    @staticmethod
    def of(position: Position, buffers: Buffers, memory: RuleMemory) -> Mark:
        """Return the present state."""
        return Mark(buffers.snapshot(), position.cursor.copy(), position.totals.copy(), memory.mark())

    def restore(self, position: Position, buffers: Buffers, memory: RuleMemory) -> None:
        """Go back to it. May begin anew at any place."""
        buffers.params[:], buffers.moments[:] = self.snapshot
        position.cursor[...], position.totals[...] = self.cursor, self.totals
        memory.back_to(self.memory)


class RunState(NamedTuple):
    """Where a run stands and what its rules remember; steps on batches of the caller's own count in `outside`."""

    position: Position
    outside: Position
    memory: RuleMemory

    @property
    def n_steps(self) -> int:
        """Steps taken: either position knows those of the other when it goes on, and no count ever falls."""
        return max(self.position.n_steps, self.outside.n_steps)

    @property
    def is_torn(self) -> bool:
        """Whether a step has begun to change parameters and is not counted yet."""
        return self.position.is_torn or self.outside.is_torn

    def copy(self) -> RunState:
        """Return a copy at the beginning of the present step, which shares nothing with this one."""
        return RunState(
            self.position.whole(self.position.n_steps),
            self.outside.whole(self.outside.n_steps),
            copy.deepcopy(self.memory),
        )

    def for_fit(self, fingerprint: Callable[[], str], memory: RuleMemory) -> RunState:
        """Return the state in which a fit on data of this fingerprint begins: the rest of an epoch only on the same."""
        position = self.position.whole(self.n_steps)
        if position.is_mid_epoch and position.fingerprint != fingerprint():
            position = position.next_epoch()
        return RunState(position, self.outside, memory)
