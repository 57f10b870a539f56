"""Calls of the training kernel: what each needs to be told, how long it may last, and that steps stay whole."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastbp import schedules
from fastbp.buffers import aligned_zeros
from fastbp.errors import DivergenceError
from fastbp.kernels import training as kernel
from fastbp.kernels import updates
from fastbp.optimizers import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
from fastbp.pacing import Crew
from fastbp.sources import NO_DATA
from fastbp.workers import run_team
from fastbp.workspace import Workspace, step_cost

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastbp._jit import Leaf
    from fastbp.model import MLP
    from fastbp.sources import Data

__all__ = [
    "NO_LIMIT",
    "Driver",
    "Position",
    "Rule",
    "Stepper",
    "finish_despite_interrupts",
    "gradient",
    "raise_if_failed",
    "rule_of",
]

_MAX_STEPS_PER_CALL = 1 << 16  # bounds the table of learning rates
NO_LIMIT = int(np.iinfo(np.int64).max)

Array = npt.NDArray[Any]


class Rule(NamedTuple):
    """An optimizer and the leaves that carry it out; `shrink` for decoupled weight decay."""

    optimizer: Optimizer
    update: Leaf
    shrink: Leaf | None
    decays_biases: bool


def rule_of(optimizer: Optimizer) -> Rule:
    """Return the leaves of an optimizer."""
    # A subclass could describe other moments and constants than the kernel reads.
    if type(optimizer) not in (SGD, Adagrad, RMSprop, Adam, AdamW):
        raise TypeError(f"optimizer must be one of fastbp's own, got {optimizer!r}")
    match optimizer:
        case SGD():
            return Rule(optimizer, updates.momentum if optimizer.momentum > 0.0 else updates.sgd, None, False)
        case Adagrad():
            return Rule(optimizer, updates.adagrad, None, False)
        case RMSprop():
            return Rule(optimizer, updates.rmsprop, None, False)
        case Adam():
            return Rule(optimizer, updates.adam, None, False)
        case AdamW():
            shrink = updates.shrink if optimizer.weight_decay > 0.0 else None
            return Rule(optimizer, updates.adam, shrink, optimizer.decay_biases)
        case _:
            raise TypeError(f"optimizer must be one of fastbp's, got {optimizer!r}")


class Position:
    """Where a run stands, in the arrays that the kernel reads and writes."""

    def __init__(self) -> None:
        self.cursor = np.zeros(kernel.CURSOR_SIZE, np.int64)
        self.totals = np.zeros(kernel.TOTALS_SIZE)
        self.epoch_seconds = 0.0  # spent on an epoch that was stopped midway

    @property
    def n_steps(self) -> int:
        """Steps taken."""
        return int(self.cursor[kernel.STEP])

    @property
    def n_epochs(self) -> int:
        """Epochs ended."""
        return int(self.cursor[kernel.EPOCH])

    @property
    def is_mid_epoch(self) -> bool:
        """Whether steps were taken since the last epoch's end."""
        return bool(self.cursor[kernel.POSITION] > 0)

    def __getstate__(self) -> dict[str, Any]:
        # In mid-step, where another thread may copy it, the cursor means nothing without that fit's buffers.
        whole = Position()
        whole.go_back_to(self)
        whole.abandon_step()
        whole.cursor[kernel.N_RECORDS] = 0
        return whole.__dict__

    def go_back_to(self, earlier: Position) -> None:
        """Stand where `earlier` does."""
        self.cursor[:], self.totals[:], self.epoch_seconds = earlier.cursor, earlier.totals, earlier.epoch_seconds

    def start_at(self, n_steps: int) -> None:
        """Forget everything but the number of steps taken."""
        self.cursor[:] = self.totals[:] = 0
        self.cursor[kernel.STEP] = n_steps

    def abandon_step(self) -> None:
        """Go back to the beginning of the present step, in which no parameter has changed yet."""
        self.cursor[[kernel.SUPER_BLOCKS_DONE, kernel.PHASE, kernel.TASK]] = 0
        self.totals[[kernel.STEP_LOSS, kernel.STEP_RIGHT]] = 0.0

    def start_epoch(self) -> None:
        """Leave out what is left of the present epoch."""
        self.cursor[kernel.EPOCH] += 1
        self.cursor[kernel.POSITION] = 0
        self.totals[:] = 0.0
        self.epoch_seconds = 0.0


class Driver:
    """Calls of the kernel for one plan: prepares each, paces it, and keeps steps whole."""

    def __init__(
        self,
        model: MLP,
        data: Data,
        batch_size: int,
        position: Position,
        grads: Array,
        rule: Rule | None,
        state: Array,
        n_workers: int = 1,
    ) -> None:
        update, shrink = (rule.update, rule.shrink) if rule is not None else (None, None)
        self._workspace = Workspace(
            model._architecture,
            model._params,
            batch_size,
            grads=grads,
            update=update,
            shrink=shrink,
            n_workers=n_workers,
        )
        self._position, self._rule, self._state, self._grads, self.data = position, rule, state, grads, data
        block_cost, tile_cost = self._workspace.costs(batch_size)
        self._step_cost = step_cost(model._architecture, batch_size)
        self._crew = Crew(min(n_workers, max(self._workspace.n_blocks, self._workspace.n_tiles)))
        self._unit_sums = np.zeros((self._workspace.n_units, 2))
        self._label_flags = np.zeros(self._workspace.n_blocks, np.int64)
        self._update_flags = np.zeros(self._workspace.n_tiles, np.int64)
        self.schedule = kernel.Schedule(batch_size, batch_size, 0, 0, 0, NO_LIMIT, 0, block_cost, tile_cost)
        self.records = np.zeros((1, kernel.RECORD_SIZE))
        self.rules = np.zeros((0, kernel.RULE_SIZE))
        self.start = self.stop = 0.0  # of the last call, by time.perf_counter
        # From `first_step` on: the schedule's values, and what the update makes of them.
        self.first_step, self.rates, self._coefficients = position.n_steps, np.zeros(1), np.zeros((1, 1))
        self._last_rate = 0.0  # of the step before `first_step`

    def compile(self) -> None:
        """Compile or load the kernel, without taking a step."""
        self._ask_schedule(self._position.n_steps)
        self._call(self._position.n_steps, 0, n_workers=1)

    def advance(self, last_step: int, seconds_left: float = math.inf) -> int:
        """Train until `last_step`, or for about 50 ms; returns the kernel's status."""
        n_workers, budget = self._crew.next_call(seconds_left)
        n_steps = min(_MAX_STEPS_PER_CALL, budget // self._step_cost + 1, self._steps_in_reach())
        end = min(last_step, self._position.n_steps + n_steps)
        self._ask_schedule(end)
        if self._crew.is_short(min(budget, (end - self._position.n_steps) * self._step_cost)):
            n_workers = 1
        status = self._call(end, budget, n_workers)
        self._crew.learn(n_workers, int(self._position.cursor[kernel.SPENT]), self.stop - self.start)
        is_cut = status == kernel.STEP_LIMIT and self._position.n_steps < last_step
        return kernel.PAUSED if is_cut else status

    def settle(self) -> int:
        """Make the step whole: finish its update if that has begun, else go back to the step's beginning.

        Returns the kernel's status, `kernel.PAUSED` if there was nothing to finish.
        """
        cursor, super_block = self._position.cursor, self._workspace.super_block
        batch = min(self.schedule.batch_size, self.schedule.epoch_size - int(cursor[kernel.POSITION]))
        is_last = (int(cursor[kernel.SUPER_BLOCKS_DONE]) + 1) * super_block >= batch
        if is_last and cursor[kernel.PHASE] == kernel.PARAMETERS_PHASE and cursor[kernel.TASK] > 0:
            step, status = self._position.n_steps, kernel.PAUSED

            def finish_step() -> None:
                nonlocal status
                while self._position.n_steps == step:
                    status = self._call(step + 1, NO_LIMIT, self._crew.size)

            finish_despite_interrupts(finish_step)
            return status
        self._position.abandon_step()
        return kernel.PAUSED

    def rates_of(self, steps: Array) -> Array:
        """Return the learning rates of steps that the last call has taken, or of the one before it."""
        return np.where(steps >= self.first_step, self.rates[np.maximum(steps - self.first_step, 0)], self._last_rate)

    def times(self, records: Array) -> Array:
        """Return when the epochs of these records of the last call ended, by time.perf_counter."""
        position, done = self._position, records[:, kernel.RECORD_CYCLES]
        total = position.totals[kernel.CALL_CYCLES]
        if total <= 0.0:  # this processor's cycles cannot be read: take all steps as equally long
            done, total = records[:, kernel.RECORD_STEP] - self.first_step, position.n_steps - self.first_step
        times: Array = self.start + (self.stop - self.start) * np.minimum(done / total, 1.0)
        return times

    def _steps_in_reach(self) -> int:
        """Return the most steps that one call can take: a schedule is never asked for steps beyond the run's end."""
        schedule, position = self.schedule, self._position
        n_epochs = min(self.records.shape[0], schedule.last_epoch - position.n_epochs)
        per_epoch = -(-schedule.epoch_size // schedule.batch_size)
        return n_epochs * per_epoch + int(position.cursor[kernel.POSITION]) // -schedule.batch_size

    def _ask_schedule(self, last_step: int) -> None:
        """Get the learning rates up to `last_step`."""
        if self._rule is None:
            return
        optimizer, first_step = self._rule.optimizer, self._position.n_steps
        rates = schedules.sample(optimizer.learning_rate, first_step, max(1, last_step - first_step))
        if 0 < first_step - self.first_step <= self.rates.size:  # more, if others have taken steps in between
            self._last_rate = float(self.rates[first_step - self.first_step - 1])
        self._coefficients = np.ascontiguousarray(optimizer.coefficients(rates, first_step))
        self.first_step, self.rates = first_step, rates

    def _call(self, last_step: int, budget: int, n_workers: int) -> int:
        constants, decays_biases = np.zeros(1), False
        if self._rule is not None:
            constants, decays_biases = self._rule.optimizer.constants, self._rule.decays_biases
        optimizer = kernel.Optimizer(
            state=self._state.ctypes.data,
            state_row=self._state.strides[0] // self._state.itemsize,
            constants=constants.ctypes.data,
            n_coefficients=self._coefficients.shape[1],
            decay_biases=int(decays_biases),
        )
        optimizer_table = np.array(optimizer, np.int64)
        run = kernel.Run(
            **_addresses(self._position.cursor, self._position.totals, self.records, self.rules),
            unit_sums=self._unit_sums.ctypes.data,
            label_flags=self._label_flags.ctypes.data,
            update_flags=self._update_flags.ctypes.data,
            optimizer=optimizer_table.ctypes.data,
            coefficients=self._coefficients.ctypes.data,
            n_records=self.records.shape[0],
            n_rules=self.rules.shape[0],
            first_step=self.first_step,
        )
        source = np.array(self.data.source(), np.int64)
        schedule = np.array(self.schedule._replace(last_step=last_step, budget=budget), np.int64)
        # What a worker decides by, each of its own: all come to the same decisions, and worker 0's are kept.
        shared = (self._position.cursor, self._position.totals, self.records, self.rules)
        own = [shared, *(tuple(array.copy() for array in shared) for _ in range(1, n_workers))]
        runs = np.array([run._replace(**_addresses(*arrays)) for arrays in own], np.int64)
        tables = (self._workspace.plans.ctypes.data, source.ctypes.data, schedule.ctypes.data)

        def call(worker: int, sync: npt.NDArray[np.int64]) -> int:
            # `own` is named here so that a late helper finds its arrays alive.
            is_helper = int(worker > 0 and len(own) > 0)
            return int(kernel.train(*tables, runs[worker].ctypes.data, sync.ctypes.data, is_helper, n_workers))

        self.start = time.perf_counter()
        try:
            return run_team(n_workers, call)
        finally:
            self.stop = time.perf_counter()


def finish_despite_interrupts(function: Callable[[], None]) -> None:
    """Call until it has run through once, whatever Ctrl-C says meanwhile, and only then pass that on.

    For what has to be whole before anybody looks; `function` must be one that can begin anew at any place.
    """
    interrupt, is_done = None, False
    while not is_done:
        try:
            function()
            is_done = True
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


def _addresses(cursor: Array, totals: Array, records: Array, rules: Array) -> dict[str, int]:
    """Return the fields of `kernel.Run` of which each worker has its own."""
    arrays = {"cursor": cursor, "totals": totals, "records": records, "rules": rules}
    return {name: array.ctypes.data for name, array in arrays.items()}


def gradient(model: MLP, data: Data) -> tuple[float, Array]:
    """Return the mean loss over the data and its gradient; NaN where the loss is not finite."""
    grads = aligned_zeros(model.n_params, model.dtype)
    position = Position()
    driver = Driver(model, data, data.x.shape[0], position, grads, None, grads[np.newaxis, :0])
    loss = _single_step(driver, position)
    if not math.isfinite(loss):
        grads[:] = np.nan
    return loss, grads


class Stepper:
    """Takes single steps on batches of the caller's, outside the epochs of `position`."""

    def __init__(self, model: MLP, rule: Rule, position: Position, state: Array, grads: Array) -> None:
        self._model, self._rule, self._position, self._state, self._grads = model, rule, position, state, grads
        self._own = Position()
        self._driver: Driver | None = None  # for batches of one size, usually the only one

    def step(self, data: Data) -> float:
        """Take one step on all the data; returns the mean loss before it."""
        batch_size, own = data.x.shape[0], self._own
        own.start_at(self._position.n_steps)
        if self._driver is None or self._driver.schedule.batch_size != batch_size:
            self._driver = Driver(self._model, data, batch_size, own, self._grads, self._rule, self._state)
        self._driver.data = data
        try:
            loss = _single_step(self._driver, own)
            if not math.isfinite(loss):
                raise_if_failed(kernel.DIVERGED, own)
            return loss
        finally:
            self._driver.settle()
            self._driver.data = NO_DATA  # the caller's batch is not kept alive
            self._position.cursor[kernel.STEP] = own.n_steps


def _single_step(driver: Driver, position: Position) -> float:
    """Take one step; returns the mean loss before it, which is NaN or infinite if it was not taken."""
    last_step, status = position.n_steps + 1, kernel.PAUSED
    while status == kernel.PAUSED and position.n_steps < last_step:
        status = driver.advance(last_step)
    if status == kernel.DIVERGED:
        return float(position.totals[kernel.STEP_LOSS]) / driver.schedule.batch_size
    raise_if_failed(status, position)
    return float(driver.records[0, kernel.RECORD_LOSS])


def raise_if_failed(status: int, position: Position) -> None:
    """Raise what the kernel's status stands for, if it is an error."""
    if status == kernel.DIVERGED:
        step = position.n_steps
        message = (
            f"the loss is not finite in step {step} (epoch {position.n_epochs + 1}); the parameters are those before "
            "this step: try a smaller learning rate, a warm-up or scaled inputs"
        )
        raise DivergenceError(message, step, step_taken=False)
    if status == kernel.OVERFLOWED:
        step = position.n_steps - 1
        message = f"a parameter is not finite after step {step}, whose loss was finite; the step was taken"
        raise DivergenceError(message, step, step_taken=True)
    if status == kernel.LABELS_CHANGED:
        raise ValueError(f"y changed during the fit: labels in step {position.n_steps} are out of range")
