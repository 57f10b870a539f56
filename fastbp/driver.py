"""Calls of the training kernel: what each needs to be told, how long it may last, and that steps stay whole."""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from fastbp import schedules
from fastbp.errors import DivergenceError
from fastbp.kernels import border, updates
from fastbp.kernels import training as kernel
from fastbp.kernels.tables import RECORD, RULE, RUN
from fastbp.optimizers import OPTIMIZERS, Optimizer
from fastbp.own import UpdateRule
from fastbp.pacing import Crew
from fastbp.plan import Plan, capacity_for, step_cost
from fastbp.program import MOST_HEALTH_RECORDS
from fastbp.state import NO_LIMIT, Buffers, Position
from fastbp.workers import run_team

if TYPE_CHECKING:
    from fastbp.architecture import Architecture
    from fastbp.program import Program, Programs
    from fastbp.shaping import Shaping
    from fastbp.sources import Data
    from fastbp.sparse import Features
    from fastbp.state import RunState, SetAside, Snapshot

__all__ = ["Dealing", "Driver", "Rule", "Stepper", "rule_of", "single_step", "training_plan"]

_MAX_STEPS_PER_CALL = 1 << 16  # bounds the table of learning rates
_LARGE = 1e4  # data of this size is more likely to blame for a divergence than the learning rate

Array = npt.NDArray[Any]


class Rule(NamedTuple):
    """What a step does with a gradient: an optimizer, the leaves that carry it out, and what else shapes the step.

    All is taken once: an optimizer that is initialised a second time changes nothing here.

    n_moments : the optimizer's, and the average of the parameters, if one is kept, as the last. shows_average : whether
    validation sees that average, and whoever looks at the parameters after a fit.
    """

    optimizer: Optimizer
    n_moments: int
    constants: Array
    leaves: updates.Rule
    decays_biases: bool
    shaping: Shaping
    shows_average: bool

    def average(self, present: Snapshot) -> Array | None:
        """Return the average of the parameters that the run goes on from, as a new array; None if there is none."""
        if self.shaping.averages:
            last: Array = present.moments[-1].copy()
            return last
        optimizer = self.optimizer
        return optimizer.average(present.params, present.moments) if optimizer.has_average else None

    def describe(self, program: Program, buffers: Buffers) -> None:
        """Write into a program's tables where moments and constants lie."""
        if program.buffers is not buffers or program.rule is not self:
            moments = buffers.moments
            row = moments.strides[0] // moments.itemsize
            averages = moments[-1].ctypes.data if self.shaping.averages else 0
            program.optimizer[0] = (
                moments.ctypes.data,
                row,
                averages,
                self.constants.ctypes.data,
                self.decays_biases,
                buffers.first_step,
            )
            program.buffers, program.rule = buffers, self


def rule_of(optimizer: Optimizer, shaping: Shaping, shows_average: bool) -> Rule:
    """Return the rule of an optimizer, and of what else shapes its steps."""
    # By the type itself: a subclass could describe other moments and constants than the kernel reads.
    if type(optimizer) not in (*OPTIMIZERS, UpdateRule):
        raise TypeError(f"optimizer must be one of fastbp's own or an UpdateRule, got {optimizer!r}")
    leaves = optimizer.row if isinstance(optimizer, UpdateRule) else updates.RULES[optimizer.rule]
    decays_biases = getattr(optimizer, "decay_biases", False)
    n_moments = len(optimizer.moments) + shaping.averages
    shows_average |= optimizer.has_average
    return Rule(optimizer, n_moments, optimizer.constants, leaves, decays_biases, shaping, shows_average)


class Dealing(NamedTuple):
    """How the samples are dealt out to steps and epochs, as in the table of that name."""

    batch_size: int
    epoch_size: int
    shuffle: int = 0  # as in `sample_order`
    seed: int = 0  # of 64 bits, with a sign
    last_epoch: int = NO_LIMIT
    offset: int = 0
    more: bool = False


class _Rates(NamedTuple):
    """The learning rates of the step before `first_step`, of that one, and of those that follow."""

    first_step: int
    rates: Array

    def of(self, steps: Array | int) -> Array:
        """Return those of these steps."""
        rates: Array = self.rates[steps - (self.first_step - 1)]
        return rates


class _Call:
    """One call of the kernel, for each worker; keeps alive whatever a helper may touch, however late it comes."""

    def __init__(self, program: Program, source: Array, n_workers: int, *kept: object) -> None:
        self._program, self._source, self._n_workers, self._kept = program, source, n_workers, kept

    def __call__(self, worker: int, sync: npt.NDArray[np.int64]) -> int:
        addresses = self._program.addresses
        status = border.train(
            self._program.train_steps,
            addresses["plans"],
            self._source.ctypes.data,
            addresses["dealing"],
            addresses["runs"] + worker * RUN.itemsize,
            sync.ctypes.data,
            int(worker > 0),
            self._n_workers,
        )
        return int(status)


class Driver:
    """Calls of the kernel for one program: prepares each, paces it, and keeps steps whole.

    Parameters
    ----------
    program : Program
        Nobody else's as long as this driver is at work.
    buffers : Buffers
    rule : Rule, optional
        Without it the gradient is computed and nothing is updated.
    position : Position
    data : Data
    dealing : Dealing
        Its batches are no larger than the program holds.
    records : ndarray, shape (n_records,), RECORD, optional
        Of epochs that end during one call; one by default.
    rules : ndarray, shape (n_rules,), RULE, optional
    look_every : int, optional
        Epochs, counted from the run's first, after which a call ends; no call goes on over their end.
    health_every : int, default 0
        Steps from one that is looked at to the next; 0 if none is, as must be where the plan does not watch.
    """

    def __init__(
        self,
        program: Program,
        buffers: Buffers,
        rule: Rule | None,
        position: Position,
        data: Data,
        dealing: Dealing,
        records: Array | None = None,
        rules: Array | None = None,
        look_every: int | None = None,
        health_every: int = 0,
    ) -> None:
        self._look_every, self._health_every = look_every, health_every
        self._program, plan = program, program.plan
        self._buffers, self._rule, self._position, self.data = buffers, rule, position, data
        self.dealing, self._process = dealing, os.getpid()
        self._step_cost = step_cost(plan.architecture, dealing.batch_size)
        self._crew = Crew(plan.most_workers)
        self.records = np.zeros(1, RECORD) if records is None else records
        self.rules = np.zeros(0, RULE) if rules is None else rules
        self._start = self._stop = 0.0  # of the last call, by time.perf_counter
        self._rates = _Rates(position.n_steps, np.zeros(2))

    def compile(self) -> None:
        """Compile or load the kernel, without taking a step."""
        if not border.train.overloads:
            self._call(self._position.n_steps, 0, n_workers=1)

    def advance(self, last_step: int, seconds_left: float = math.inf) -> int:
        """Train until `last_step`, or for about 50 ms; returns the kernel's status."""
        n_workers, budget = self._crew.next_call(seconds_left)
        n_steps = min(self._most_steps, budget // self._step_cost + 1, self._steps_in_reach())
        end = min(last_step, self._position.n_steps + n_steps)
        self._ask_schedule(end)
        if self._crew.is_short(min(budget, (end - self._position.n_steps) * self._step_cost)):
            n_workers = 1
        status = self._call(end, budget, n_workers)
        self._crew.learn(n_workers, int(self._position.cursor["spent"]), self.end - self._start)
        is_cut = status == kernel.STEP_LIMIT and self._position.n_steps < last_step
        return kernel.PAUSED if is_cut else status

    @property
    def _most_steps(self) -> int:
        """The most steps of a call: those that its tables have room for."""
        return min(_MAX_STEPS_PER_CALL, (MOST_HEALTH_RECORDS - 1) * (self._health_every or _MAX_STEPS_PER_CALL))

    @property
    def health_records(self) -> Array:
        """What is recorded of the steps that were looked at, and not yet collected, shape (n, n_layers)."""
        return self._program.health_records[: int(self._position.cursor["n_health"])]

    def use(self, rule: Rule) -> None:
        """Go on by another rule, with the same leaves and moments."""
        self._rule, self._program.user = rule, None

    def take(self, program: Program, data: Data, dealing: Dealing) -> None:
        """Go on with other data of the same epoch, or of the next one."""
        if program.plan.most_workers != self._program.plan.most_workers:
            self._crew = Crew(program.plan.most_workers)
        self._program, self.data, self.dealing = program, data, dealing
        self._step_cost = step_cost(program.plan.architecture, dealing.batch_size)
        program.user = None

    def end_source(self) -> None:
        """Let the epoch end with the data at hand."""
        self.dealing = self.dealing._replace(more=False)
        self._program.user = None

    def forget_rates(self) -> None:
        """Let the position be an earlier one than that of the last call."""
        self._rates = _Rates(self._position.n_steps, np.zeros(2))

    @property
    def is_lost(self) -> bool:
        """Whether the process was forked while the kernel was changing parameters: nobody can finish that step."""
        return self._process != os.getpid() and self._position.is_torn

    @property
    def end(self) -> float:
        """When the last call ended, by time.perf_counter."""
        return max(self._start, self._stop)

    def settle(self) -> int:
        """Make the step whole: finish its update if that has begun, else go back to the step's beginning.

        Returns the kernel's status, `kernel.PAUSED` if there was nothing to finish. May begin anew at any place.
        """
        if not self._position.is_mid_step:
            return kernel.PAUSED
        cursor, super_block = self._position.cursor, self._program.plan.super_block
        batch = min(self.dealing.batch_size, self.dealing.epoch_size - int(cursor["position"]))
        is_last = (int(cursor["super_blocks_done"]) + 1) * super_block >= batch
        step, status = self._position.n_steps, kernel.PAUSED
        first = kernel.UPDATE_PHASE if self._program.plan.shaping.clips_norm else kernel.PARAMETERS_PHASE
        if is_last and (cursor["phase"] > first or (cursor["phase"] == first and cursor["task"] > 0)):
            while self._position.n_steps == step:
                status = self._call(step + 1, NO_LIMIT, self._crew.size)
        else:
            self._position.abandon_step()
        return status

    def raise_if_failed(self, status: int) -> None:
        """Raise what the kernel's status stands for, if it is an error."""
        n_steps, program = self._position.n_steps, self._program
        if status in (kernel.DIVERGED, kernel.GRADIENT_DIVERGED):
            if status == kernel.DIVERGED:
                what, layer = "loss", program.first_not_finite_outputs()
                where = "though all outputs are" if layer is None else f"nor are the outputs of layer {layer}"
            else:
                what, layer = "norm of the gradient", program.last_not_finite(program.grads)
                where = "by its square alone" if layer is None else f"in layer {layer}"
            cure = _cure_of_divergence(program.plan.architecture, self._buffers.params, self.data)
            message = (
                f"the {what} is not finite in step {n_steps} (epoch {self._position.n_epochs + 1}), {where}; the "
                f"parameters are those before this step: {cure}"
            )
            raise DivergenceError(message, n_steps, step_taken=False, layer=layer)
        if status == kernel.OVERFLOWED:
            _raise_overflow(program, self._buffers.params, n_steps - 1)
        if status == kernel.LABELS_CHANGED:
            raise ValueError(f"y changed during the fit: labels in step {n_steps} are out of range")

    def rates_of(self, steps: Array) -> Array:
        """Return the learning rates of steps that the last call has taken, or of the one before it."""
        return self._rates.of(steps)

    def times(self, records: Array) -> Array:
        """Return when the epochs of these records of the last call ended, by time.perf_counter."""
        position, done, seconds = self._position, records["cycles"], self.end - self._start
        total = float(position.totals["call_cycles"])
        if total <= 0.0:  # this processor's cycles cannot be read: take all steps as equally long
            first_step = self._rates.first_step
            done, total = records["step"] - first_step, position.n_steps - first_step
        times: Array = np.minimum(done * (seconds / total), seconds)
        times += self._start
        return times

    def _steps_in_reach(self) -> int:
        """Return the most steps that one call can take: a schedule is never asked for steps beyond the run's end."""
        position, dealing = self._position, self.dealing
        n_epochs = min(len(self.records), dealing.last_epoch - position.n_epochs)
        if self._look_every is not None:
            n_epochs = min(n_epochs, self._look_every - position.n_epochs % self._look_every)
        per_epoch = -((dealing.epoch_size - dealing.offset) // -dealing.batch_size)
        n_taken = -((int(position.cursor["position"]) - dealing.offset) // -dealing.batch_size)
        return max(1, n_epochs * per_epoch - n_taken)

    def _ask_schedule(self, last_step: int) -> None:
        """Get the learning rates up to `last_step`."""
        if self._rule is None:
            return
        optimizer, first_step = self._rule.optimizer, self._position.n_steps
        n, before = max(1, last_step - first_step), self._rates
        rates = np.empty(n + 1)
        rates[1:] = schedules.sample(optimizer.learning_rate, first_step, n)
        # The last one again, but if others have taken steps in between.
        rates[0] = before.of(first_step - 1) if first_step - before.first_step < before.rates.size else before.rates[0]
        self._rates = _Rates(first_step, rates)

    def _use(self, program: Program) -> None:
        """Write into the program's tables what stays the same from call to call."""
        if self._rule is not None:
            self._rule.describe(program, self._buffers)
        batch_size, epoch_size, shuffle, seed, last_epoch, offset, more = self.dealing
        costs = program.plan.costs(batch_size)
        # In the table's order.
        program.dealing[0] = batch_size, epoch_size, offset, more, shuffle, seed, 0, last_epoch, 0, *costs
        program.of_worker[0] = _addresses(self._of_first_worker)
        program.numbers[...] = len(self.records), len(self.rules)
        program.plans["health"]["every"] = self._health_every
        program.user = self

    @property
    def _of_first_worker(self) -> tuple[Array, ...]:
        return self._position.cursor, self._position.totals, self.records, self.rules

    def _call(self, last_step: int, budget: int, n_workers: int) -> int:
        program, rates = self._program, self._rates
        if program.user is not self:
            self._use(program)
        program.limits[...] = last_step, budget
        program.rates[...] = rates.rates.ctypes.data + rates.rates.itemsize, rates.first_step
        # What the others decide by, each of its own: all come to the same decisions, and the first worker's are kept.
        own = [tuple([array.copy() for array in self._of_first_worker]) for _ in range(1, n_workers)]
        for worker, arrays in enumerate(own, 1):
            program.of_worker[worker] = _addresses(arrays)
        call = _Call(program, self.data.source(), n_workers, self, rates, own)
        self._start = time.perf_counter()
        try:
            with self._buffers.calls:
                status = run_team(n_workers, call)
        finally:
            self._stop = time.perf_counter()
        return status


class Stepper:
    """Takes single steps on batches of the caller's own, outside the epochs of a run.

    Parameters
    ----------
    programs : Programs
    architecture : Architecture
    buffers : Buffers
    rule : Rule
    state : RunState
        Steps count in its position `outside`.
    """

    def __init__(
        self, programs: Programs, architecture: Architecture, buffers: Buffers, rule: Rule, state: RunState
    ) -> None:
        self._programs, self._architecture, self._buffers, self._rule = programs, architecture, buffers, rule
        self._take_step = programs.step_on_batch  # compiled with the first step, whatever its arrays
        self.state, self._position = state, state.outside
        self._driver: Driver | None = None  # of the last step
        self._first_step = state.n_steps
        self._set_aside: SetAside | None = None
        self._rate, self._record, self._rules = np.zeros(1), np.zeros(1, RECORD), np.zeros(0, RULE)

    def step(self, data: Data, with_loss: bool = True) -> float:
        """Take one step on all the data; returns the mean loss before it.

        with_loss : if not, the data's y is the derivative of a loss with respect to the outputs; 0 is returned.
        """
        batch_size = data.x.shape[0]
        self._first_step = self.state.n_steps
        self._position.start_at(self._first_step)
        plan = training_plan(
            self._architecture,
            self._rule,
            batch_size,
            with_loss=with_loss,
            weighted=data.weights is not None,
            sparse=data.is_sparse,
        )
        program = self._programs.training(plan)
        self._set_aside = self._buffers.set_aside if self._buffers.is_untouched else None
        if self._rule.shows_average:
            self._buffers.go_on()
        self._driver = driver = Driver(
            program, self._buffers, self._rule, self._position, data, Dealing(batch_size, batch_size)
        )
        loss = single_step(driver, self._position)
        if not math.isfinite(loss) and self._position.n_steps == self._first_step:
            driver.raise_if_failed(kernel.DIVERGED)
        if with_loss and data.weights is None and not data.is_sparse:
            self._use(program)
        return loss

    def finish(self) -> None:
        """Make the step whole, or as if it had not begun. May begin anew at any place."""
        if self._driver is not None and not self._driver.is_lost:
            self._driver.settle()
            self._driver = None  # the caller's batch is not kept alive
        if self._position.n_steps > self._first_step:
            self._buffers.set_aside = None
        elif self._rule.shows_average:
            self._buffers.put_back(self._set_aside)

    def _use(self, program: Program) -> None:
        """Write what `step_at_once` leaves as it is into the program's tables."""
        shared = self._position.cursor, self._position.totals, self._record, self._rules
        program.of_worker[0] = _addresses(shared)
        program.rates[...], program.numbers[...] = (self._rate.ctypes.data, 0), (1, 0)
        program.border["fit_cursor"] = self.state.position.cursor.ctypes.data
        program.user = self

    def step_at_once(self, x: Array, y: Array) -> float | None:
        """Take one step on a batch as it should be; None if anything is unusual, and nothing has changed.

        x : ndarray, shape (n_samples, n_features), of the dtype. y : ndarray, (n_samples, n_out) of the dtype, or
        (n_samples,) of int64, classes. Both are nobody else's views.
        """
        program = self._programs.of_user(self, len(x))
        if program is None or self._buffers.set_aside is not None:
            return None
        rate = self._rule.optimizer.learning_rate
        if not isinstance(rate, float):
            rate = float(schedules.sample(rate, self.state.n_steps, 1)[0])
        with self._buffers.calls:
            loss = self._take_step(program.border_address, rate, x, y)
        if math.isnan(loss):
            return None
        if program.border["status"][0] == border.NOT_FINITE:
            _raise_overflow(program, self._buffers.params, self._position.n_steps - 1)
        return loss


def _addresses(arrays: tuple[Array, ...]) -> tuple[int, ...]:
    return tuple([array.ctypes.data if array.size > 0 else 0 for array in arrays])


def _raise_overflow(program: Program, params: Array, step: int) -> NoReturn:
    """Raise the error of a step that has left a parameter not finite."""
    layer = program.last_not_finite(params)
    message = f"a parameter of layer {layer} is not finite after step {step}, whose loss was finite; the step was taken"
    raise DivergenceError(message, step, step_taken=True, layer=layer)


def training_plan(
    architecture: Architecture,
    rule: Rule,
    n_samples: int,
    n_workers: int = 1,
    with_loss: bool = True,
    weighted: bool = False,
    sparse: bool = False,
    watches: bool = False,
) -> Plan:
    """Return the plan of steps by a rule on so many samples."""
    capacity = capacity_for(n_samples, architecture.dtype)
    return Plan(
        architecture,
        capacity,
        trains=True,
        with_loss=with_loss,
        weighted=weighted,
        sparse=sparse,
        rule=rule.leaves,
        shaping=rule.shaping,
        watches=watches,
        n_workers=n_workers,
    )


def single_step(driver: Driver, position: Position) -> float:
    """Take one step; returns the mean loss before it, which is NaN or infinite if it was not taken."""
    last_step, status = position.n_steps + 1, kernel.PAUSED
    while status == kernel.PAUSED and position.n_steps < last_step:
        status = driver.advance(last_step)
    if status == kernel.DIVERGED:
        return float(position.totals["step_loss"] / position.totals["step_weight"])
    driver.raise_if_failed(status)
    return float(driver.records["loss"][0])


def _cure_of_divergence(architecture: Architecture, params: Array, data: Data) -> str:
    """Return what to try: no learning rate helps where the data are too large from the start."""
    if not np.isfinite(params).all():
        return "they are not finite themselves"
    sizes = {"targets": 0.0 if data.is_labels else _largest(data.y), "inputs": _largest(data.x)}
    for name, size in sizes.items():
        if not math.isfinite(size):
            return f"the {name} hold NaN or infinities themselves"
    if architecture.standardizes_x:
        sizes["inputs"] = 1.0
    if architecture.standardizes_y:
        sizes["targets"] = 1.0
    name = max(sizes, key=lambda which: sizes[which])
    if sizes[name] >= _LARGE:
        option = "standardize" if name == "inputs" else "standardize_y"
        return f"the {name} are as large as {sizes[name]:.3g}: scale them to about 1, as {option}=True does"
    return "try a smaller learning rate, a warm-up or scaled inputs"


def _largest(array: Features) -> float:
    """Return the largest magnitude, without a temporary of the array's size."""
    return max(float(array.max()), -float(array.min()))
