"""The entry points that Python calls: training for some steps, evaluation and prediction of a range of samples."""

from typing import NamedTuple

import numpy as np

from fastbp._jit import inline, kernel
from fastbp.kernels.calls import call, cycle_counter, float64_at, int64_at
from fastbp.kernels.simd import address_of
from fastbp.kernels.step import (
    BACKWARD_BLOCK,
    BLOCK,
    FORWARD_BLOCK,
    GRADIENT_BLOCK,
    H_OUT,
    ITEMSIZE,
    LOSS_BLOCK,
    LOSS_UNIT,
    N_COEFFICIENTS,
    N_LAYERS,
    N_OUT,
    N_SAMPLES,
    N_TILES,
    ORDER,
    PANEL,
    PARAMETERS,
    PLAN_SIZE,
    ROWS,
    SCATTER,
    SUPER_BLOCK,
    Optimizer,
    layer_of,
)
from fastbp.kernels.team import enter, leave, meet, publish

__all__ = ["Optimizer", "Run", "Schedule", "evaluate", "predict", "train"]

# Why `train` came back.
PAUSED, STEP_LIMIT, EPOCH_LIMIT, STOPPED, DIVERGED, OVERFLOWED, LABELS_CHANGED = range(7)

# Elements of the cursor: where the run stands. A step is cut into the tasks of two phases for each super-block.
# SPENT is the cost of the last call. UPDATING is 1 from before the first parameter of a step may change until all that
# counts the step is written: a child that is forked in between has parameters of no whole step.
STEP, EPOCH, POSITION, SUPER_BLOCKS_DONE, PHASE, TASK, N_RECORDS, STOP_RULE, SPENT, UPDATING = range(10)
CURSOR_SIZE = 10
SAMPLES_PHASE, PARAMETERS_PHASE = range(2)

# Elements of the totals: sums over the samples of the present epoch, and of the present step; cycles of the last call.
EPOCH_LOSS, EPOCH_RIGHT, STEP_LOSS, STEP_RIGHT, CALL_CYCLES = range(5)
TOTALS_SIZE = 5

# Columns of the records, one row per finished epoch (steps so far, cycles since the call began), and of the rules, one
# row per stop rule.
RECORD_LOSS, RECORD_RIGHT, RECORD_STEP, RECORD_CYCLES = range(4)
RECORD_SIZE = 4
RULE_KIND, RULE_VALUE, RULE_PATIENCE, RULE_BEST, RULE_WAITED = range(5)
RULE_SIZE = 5
TARGET_LOSS, CONVERGENCE = range(2)

# Worker 0 waits for helpers for some 2 % of the call at most, at 20 to 30 multiply-adds a cycle.
_BUDGET_OF_A_PATIENT_CYCLE = 1250


class Schedule(NamedTuple):
    """How the samples are dealt out, and where this call ends: a table as in `step`.

    batch_size : samples of a step; epoch_size : samples of an epoch, fewer than the data's where the rest is dropped.
    shuffle : 0 or 1. seed : key of the order. last_step, last_epoch : return when these counts are reached.
    budget : cost that one call may spend; block_cost, tile_cost : of one task.
    """

    batch_size: int
    epoch_size: int
    shuffle: int
    seed: int
    last_step: int
    last_epoch: int
    budget: int
    block_cost: int
    tile_cost: int


BATCH_SIZE, EPOCH_SIZE, SHUFFLE, SEED, LAST_STEP, LAST_EPOCH, BUDGET, BLOCK_COST, TILE_COST = range(
    len(Schedule._fields)
)


class Run(NamedTuple):
    """The arrays that `train` reads and writes, by their addresses: a table as in `step`.

    cursor : (CURSOR_SIZE,) int64, and totals : (TOTALS_SIZE,) float64, updated. records : (n_records, RECORD_SIZE)
    float64, a row written per finished epoch. rules : (n_rules, RULE_SIZE) float64, updated. unit_sums : (n_units, 2)
    float64,
    label_flags : (n_blocks,) and update_flags : (n_tiles,) int64, scratch that all workers share. optimizer : table of
    an `Optimizer`; coefficients : (n_steps, n_coefficients) float64 for the steps from `first_step` on.
    """

    cursor: int
    totals: int
    records: int
    rules: int
    unit_sums: int
    label_flags: int
    update_flags: int
    optimizer: int
    coefficients: int
    n_records: int
    n_rules: int
    first_step: int


(CURSOR, TOTALS, RECORDS, RULES, UNIT_SUMS, LABEL_FLAGS, UPDATE_FLAGS, OPTIMIZER, COEFFICIENTS, RUN_RECORDS, RUN_RULES,
 FIRST_STEP) = range(len(Run._fields))  # fmt: skip


@inline
def _cut(n_left, cost, budget, n_workers):
    """How many tasks of this cost may still run: at least one for each worker, so that every call makes progress."""
    return min(n_left, max(1, budget // (cost * n_workers)) * n_workers)


@inline
def _samples_tasks(plan, source, schedule, run, first, last, stride, batch, n):
    """Every `stride`-th of the blocks first..last-1 of the super-block of n samples: forward, loss and backward.

    And the block's gradient, where the network is small.
    """
    cursor, label_flags, block = int64_at(run[CURSOR]), int64_at(run[LABEL_FLAGS]), plan[BLOCK]
    position = cursor[POSITION] + cursor[SUPER_BLOCKS_DONE] * plan[SUPER_BLOCK]
    for task in range(first, last, stride):
        start = task * block
        n_block = min(block, n - start)
        call(plan[ORDER], (plan[ROWS], position + start, n_block, source[N_SAMPLES], schedule[SHUFFLE], schedule[SEED],
                           cursor[EPOCH]))  # fmt: skip
        sums = run[UNIT_SUMS] + start // plan[LOSS_UNIT] * 16
        call(plan[FORWARD_BLOCK], (address_of(plan), address_of(source), start, n_block))
        label_flags[task] = call(
            plan[LOSS_BLOCK], (address_of(plan), address_of(source), start, n_block, 1.0 / batch, sums)
        )
        call(plan[BACKWARD_BLOCK], (address_of(plan), start, n_block))
        if plan[GRADIENT_BLOCK] != 0:
            call(plan[GRADIENT_BLOCK], (address_of(plan), start, n_block, cursor[SUPER_BLOCKS_DONE]))


@inline
def _parameters_tasks(plan, run, first, last, stride, n, is_last):
    """Every `stride`-th of the tiles first..last-1: their gradient, and after the last super-block their update."""
    cursor, update_flags, optimizer = int64_at(run[CURSOR]), int64_at(run[UPDATE_FLAGS]), int64_at(run[OPTIMIZER])
    coefficients = run[COEFFICIENTS] + (cursor[STEP] - run[FIRST_STEP]) * optimizer[N_COEFFICIENTS] * 8
    for task in range(first, last, stride):
        update_flags[task] = call(plan[PARAMETERS], (address_of(plan), run[OPTIMIZER], coefficients, task, n,
                                                     cursor[SUPER_BLOCKS_DONE], is_last))  # fmt: skip


@inline
def _sum_of_flags(address, n):
    flags, total = int64_at(address), 0
    for task in range(n):
        total += flags[task]
    return total


@inline
def _check_rules(run, loss):
    """The first stop rule that this epoch's loss fulfils, else -1. Keeps each rule's best loss and patience."""
    for i in range(run[RUN_RULES]):
        rule = float64_at(run[RULES] + i * RULE_SIZE * 8)
        if rule[RULE_KIND] == TARGET_LOSS:
            if loss <= rule[RULE_VALUE]:
                return i
        else:
            improved = loss < rule[RULE_BEST] - rule[RULE_VALUE]
            rule[RULE_WAITED] = 0.0 if improved else rule[RULE_WAITED] + 1.0
            rule[RULE_BEST] = min(rule[RULE_BEST], loss)
            if rule[RULE_WAITED] >= rule[RULE_PATIENCE]:
                return i
    return -1


@inline
def _end_epoch(schedule, run, start_cycles):
    """Record the epoch, open the next one, and ask the stop rules. Returns the status to go on with."""
    cursor, totals = int64_at(run[CURSOR]), float64_at(run[TOTALS])
    record = float64_at(run[RECORDS] + cursor[N_RECORDS] * RECORD_SIZE * 8)
    loss = totals[EPOCH_LOSS] / schedule[EPOCH_SIZE]
    record[RECORD_LOSS] = loss
    record[RECORD_RIGHT] = totals[EPOCH_RIGHT] / schedule[EPOCH_SIZE]
    record[RECORD_STEP] = cursor[STEP]
    record[RECORD_CYCLES] = cycle_counter() - start_cycles
    cursor[N_RECORDS] += 1
    cursor[EPOCH] += 1
    cursor[POSITION] = 0
    totals[EPOCH_LOSS] = totals[EPOCH_RIGHT] = 0.0
    rule = _check_rules(run, loss)
    if rule >= 0:
        cursor[STOP_RULE] = rule
        return STOPPED
    if cursor[EPOCH] == schedule[LAST_EPOCH]:
        return EPOCH_LIMIT
    return STEP_LIMIT if cursor[STEP] == schedule[LAST_STEP] else PAUSED


@inline
def _end_step(plan, schedule, run, batch, start_cycles):
    """Count the step and its loss. Returns the status to go on with: PAUSED while nothing ends the call."""
    cursor, totals = int64_at(run[CURSOR]), float64_at(run[TOTALS])
    cursor[STEP] += 1
    cursor[POSITION] += batch
    cursor[SUPER_BLOCKS_DONE] = 0
    totals[EPOCH_LOSS] += totals[STEP_LOSS]
    totals[EPOCH_RIGHT] += totals[STEP_RIGHT]
    totals[STEP_LOSS] = totals[STEP_RIGHT] = 0.0
    overflowed = _sum_of_flags(run[UPDATE_FLAGS], plan[N_TILES]) > 0
    status = STEP_LIMIT if cursor[STEP] == schedule[LAST_STEP] else PAUSED
    if cursor[POSITION] == schedule[EPOCH_SIZE]:
        status = _end_epoch(schedule, run, start_cycles)
    publish(cursor, UPDATING, 0)
    return OVERFLOWED if overflowed else status


@inline
def _end_samples(plan, run, n, n_blocks, is_last):
    """Add up the super-block's losses unit by unit. Returns DIVERGED, LABELS_CHANGED or PAUSED."""
    totals, unit_sums = float64_at(run[TOTALS]), float64_at(run[UNIT_SUMS])
    for unit in range((n + plan[LOSS_UNIT] - 1) // plan[LOSS_UNIT]):
        totals[STEP_LOSS] += unit_sums[2 * unit]
        totals[STEP_RIGHT] += unit_sums[2 * unit + 1]
    if _sum_of_flags(run[LABEL_FLAGS], n_blocks) > 0:
        return LABELS_CHANGED
    return DIVERGED if is_last and not np.isfinite(totals[STEP_LOSS]) else PAUSED


@inline
def _end_phase(plan, schedule, run, n_tasks, batch, n, is_last, start_cycles):
    """Go on to the next phase, super-block or step. Returns the status to go on with."""
    cursor = int64_at(run[CURSOR])
    cursor[TASK] = 0
    if cursor[PHASE] == SAMPLES_PHASE:
        cursor[PHASE] = PARAMETERS_PHASE
        return _end_samples(plan, run, n, n_tasks, is_last)
    cursor[PHASE] = SAMPLES_PHASE
    cursor[SUPER_BLOCKS_DONE] += 1
    return _end_step(plan, schedule, run, batch, start_cycles) if is_last else PAUSED


@inline
def _advance(plan, source, schedule, run, sync, worker, n_workers, start_cycles):
    """The loop of `train`: each worker takes every n_workers-th task, and all meet after each phase."""
    cursor, n_meetings = int64_at(run[CURSOR]), 0
    while cursor[SPENT] < schedule[BUDGET] and cursor[N_RECORDS] < run[RUN_RECORDS]:
        batch = min(schedule[BATCH_SIZE], schedule[EPOCH_SIZE] - cursor[POSITION])
        done = cursor[SUPER_BLOCKS_DONE] * plan[SUPER_BLOCK]
        n = min(plan[SUPER_BLOCK], batch - done)
        is_last = done + n == batch
        first, left = cursor[TASK], schedule[BUDGET] - cursor[SPENT]
        if cursor[PHASE] == SAMPLES_PHASE:
            n_tasks, cost = (n + plan[BLOCK] - 1) // plan[BLOCK], schedule[BLOCK_COST]
            last = first + _cut(n_tasks - first, cost, left, n_workers)
            _samples_tasks(plan, source, schedule, run, first + worker, last, n_workers, batch, n)
        else:
            n_tasks, cost = plan[N_TILES], schedule[TILE_COST]
            last = first + _cut(n_tasks - first, cost, left, n_workers)
            _parameters_tasks(plan, run, first + worker, last, n_workers, n, is_last)
        if is_last and last == n_tasks:  # before they meet: the next one to come may begin the update
            cursor[UPDATING] = 1
        n_meetings += 1
        meet(sync, n_workers, n_meetings)
        cursor[SPENT] += (last - first) * cost
        cursor[TASK] = last
        if last == n_tasks:
            status = _end_phase(plan, schedule, run, n_tasks, batch, n, is_last, start_cycles)
            if status != PAUSED:
                return status
    return PAUSED


@kernel
def train(plans, source, schedule, run, sync, is_helper, n_wanted):
    """Train until something ends the call; returns why. Resumes where the cursor stands, in mid-step too.

    plans, source, schedule, run : addresses of the tables, `plans` one row per worker. sync : address of the team's
    array (`team`). is_helper : 0 or 1. n_wanted : workers at most.

    The caller gives coefficients for all steps up to the last and room for at least one record. Cuts into calls and the
    number of workers change no bit: every sum has one order. Each worker passes a cursor, totals, records and rules of
    its own with the same contents, and all come to the same decisions. No checks: the caller validates.
    """
    start_cycles = cycle_counter()
    meeting = int64_at(sync)
    patience = 0 if is_helper else int64_at(schedule)[BUDGET] // _BUDGET_OF_A_PATIENT_CYCLE
    worker, n_workers = enter(meeting, is_helper, n_wanted, patience)
    if worker < 0:  # a helper that comes too late: it has touched nothing but `sync`
        return PAUSED
    table, plan = int64_at(run), int64_at(plans + worker * PLAN_SIZE * 8)
    int64_at(table[CURSOR])[SPENT] = 0
    status = _advance(plan, int64_at(source), int64_at(schedule), table, meeting, worker, n_workers, start_cycles)
    leave(meeting, worker, n_workers)
    float64_at(table[TOTALS])[CALL_CYCLES] = cycle_counter() - start_cycles
    return status


@inline
def _forward_range(plan, source, start, last):
    """Run a block of samples from `start` on, in their own order, through the network; returns how many they are."""
    n = min(plan[BLOCK], last - start)
    call(plan[ORDER], (plan[ROWS], start, n, source[N_SAMPLES], 0, 0, 0))
    call(plan[FORWARD_BLOCK], (address_of(plan), address_of(source), 0, n))
    return n


@kernel
def evaluate(plan, source, first, last, sums):
    """Add the losses and hits of samples first..last-1 to sums[0] and sums[1]; the rest of `sums` is scratch.

    plan, source, sums : addresses of the tables and of 2 float64 and 2 more per loss unit of a block. The result is the
    same for any cut of the samples at multiples of the block. Returns how many labels were out of range. No checks: the
    caller validates.
    """
    plan_table, source_table, totals, n_outside = int64_at(plan), int64_at(source), float64_at(sums), 0
    for start in range(first, last, plan_table[BLOCK]):
        n = _forward_range(plan_table, source_table, start, last)
        n_outside += call(plan_table[LOSS_BLOCK], (plan, source, 0, n, 1.0, sums + 16))
        for unit in range((n + plan_table[LOSS_UNIT] - 1) // plan_table[LOSS_UNIT]):
            totals[0] += totals[2 + 2 * unit]
            totals[1] += totals[3 + 2 * unit]
    return n_outside


@kernel
def predict(plan, source, first, last, out):
    """Write the outputs of samples first..last-1 to the rows of a C-contiguous matrix at the address `out`.

    plan, source : addresses of the tables. No checks: the caller validates.
    """
    table = int64_at(plan)
    output = layer_of(table, table[N_LAYERS] - 1)
    n_out = output[N_OUT]
    for start in range(first, last, table[BLOCK]):
        n = _forward_range(table, int64_at(source), start, last)
        rows = out + start * n_out * table[ITEMSIZE]
        call(table[SCATTER], (output[H_OUT], n_out, n, rows, 0, table[PANEL], n_out, n_out))
