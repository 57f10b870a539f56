"""What `border` calls: training for some steps, evaluation and prediction of a range of samples."""

import numpy as np
from numba import types

from fastbp._jit import inline, leaf
from fastbp.kernels.calls import call, cycle_counter, float64_at, int64_at
from fastbp.kernels.health import is_due, observe, record_health
from fastbp.kernels.shaping import N_SUMS, PENALTY, SQUARES
from fastbp.kernels.simd import address_of
from fastbp.kernels.tables import (
    CURSOR,
    LOSS_SUMS_BYTES,
    cursor_at,
    dealing_at,
    epoch_record_of,
    layer_of,
    loss_sums_of,
    optimizer_at,
    plan_at,
    plan_of,
    rule_of,
    run_at,
    source_at,
    totals_at,
)
from fastbp.kernels.team import enter, leave, meet, publish
from fastbp.kernels.transpose import to_rows
from fastbp.kernels.updates import N_COEFFICIENTS

# Why `train_steps` came back.
PAUSED, STEP_LIMIT, EPOCH_LIMIT, STOPPED, DIVERGED, OVERFLOWED, LABELS_CHANGED, GRADIENT_DIVERGED, SOURCE_ENDED = range(
    9
)

# Phases of a step: of each super-block the first two; after the last one those of the others that the plan has.
SAMPLES_PHASE, PARAMETERS_PHASE, UPDATE_PHASE, CONSTRAINTS_PHASE = range(4)

# Kinds of stop rules.
TARGET_LOSS, CONVERGENCE = range(2)

_UPDATING = CURSOR.fields["updating"][1] // 8

# Worker 0 waits for helpers for some 2 % of the call at most, at 20 to 30 multiply-adds a cycle.
_BUDGET_OF_A_PATIENT_CYCLE = 1250


@inline
def _cut(n_left, cost, budget, n_workers):
    """How many tasks of this cost may still run: at least one for each worker, so that every call makes progress."""
    return min(n_left, max(1, budget // (cost * n_workers)) * n_workers)


@inline
def _samples_tasks(plan, source, dealing, run, first, last, stride, batch, n, shapes):
    """Every `stride`-th of the blocks first..last-1 of the super-block of n samples: forward, loss and backward.

    And the block's gradient, where the network is small.
    """
    cursor, label_flags, block = cursor_at(run.cursor), int64_at(run.label_flags), plan.sizes.block
    n_before = cursor.super_blocks_done * plan.sizes.super_block
    position, scale = cursor.position - dealing.offset + n_before, 1.0 / totals_at(run.totals).step_weight
    if shapes:
        plan.shaping.step, plan.shaping.first = cursor.step, n_before
    for task in range(first, last, stride):
        start = task * block
        n_block = min(block, n - start)
        call(
            plan.leaves.order,
            (
                plan.scratch.rows,
                position + start,
                n_block,
                source.n_samples,
                dealing.shuffle,
                dealing.seed,
                cursor.epoch,
            ),
        )
        sums = run.unit_sums + start // plan.sizes.loss_unit * LOSS_SUMS_BYTES
        call(plan.leaves.forward_block, (address_of(plan), address_of(source), start, n_block))
        if shapes and plan.health.is_due != 0 and start == 0 and n_before == 0:
            observe(plan, n_block)
        label_flags[task] = call(
            plan.leaves.loss_block, (address_of(plan), address_of(source), start, n_block, scale, sums)
        )
        call(plan.leaves.backward_block, (address_of(plan), start, n_block, batch))
        if plan.leaves.gradient_block != 0:
            call(plan.leaves.gradient_block, (address_of(plan), start, n_block, batch, cursor.super_blocks_done))


@inline
def _coefficients(plan, run, shapes):
    """The coefficients of a step: those of all parameters, and of each group, where these have rates of their own."""
    cursor, optimizer, coefficients = cursor_at(run.cursor), optimizer_at(run.optimizer), plan.scratch.coefficients
    rate, step = float64_at(run.rates)[cursor.step - run.first_step], cursor.step - optimizer.first_step
    call(plan.leaves.coefficients, (rate, step, optimizer.constants, coefficients))
    if not shapes or plan.shaping.has_rate_factors == 0:
        return
    for index in range(plan.n_layers):
        layer, own = layer_of(plan, index), coefficients + (1 + 2 * index) * 8 * N_COEFFICIENTS
        of_weights, of_biases = rate * layer.of_weights.rate_factor, rate * layer.of_biases.rate_factor
        call(plan.leaves.coefficients, (of_weights, step, optimizer.constants, own))
        call(plan.leaves.coefficients, (of_biases, step, optimizer.constants, own + 8 * N_COEFFICIENTS))


@inline
def _parameters_tasks(plan, run, first, last, stride, batch, n, is_last, shapes):
    """Every `stride`-th of the tasks first..last-1 of the present phase, any but the first.

    Gradient, and after the last super-block update, of their tiles; or what has to wait for those of all tiles.
    """
    cursor, totals, update_flags = cursor_at(run.cursor), totals_at(run.totals), int64_at(run.update_flags)
    if shapes:
        plan.shaping.step, plan.shaping.weight = cursor.step, totals.step_weight
    if plan.leaves.update != 0:
        _coefficients(plan, run, shapes)
    coefficients = plan.scratch.coefficients
    for task in range(first, last, stride):
        if not shapes or cursor.phase == PARAMETERS_PHASE:
            update_flags[task] = call(
                plan.leaves.parameters,
                (address_of(plan), run.optimizer, coefficients, task, n, batch, cursor.super_blocks_done, is_last),
            )
        elif cursor.phase == UPDATE_PHASE:
            factor = min(1.0, plan.shaping.clip_norm / totals.gradient_norm) if totals.gradient_norm > 0.0 else 1.0
            update_flags[task] = call(
                plan.leaves.clipped_update, (address_of(plan), run.optimizer, coefficients, task, factor)
            )
        else:
            call(plan.leaves.constrain, (address_of(plan), run.optimizer, task))


@inline
def _sum_of_flags(address, n):
    flags, total = int64_at(address), 0
    for task in range(n):
        total += flags[task]
    return total


@inline
def _check_rules(run, loss):
    """The first stop rule that this epoch's loss fulfils, else -1. Keeps each rule's best loss and patience."""
    for i in range(run.n_rules):
        rule = rule_of(run, i)
        if rule.kind == TARGET_LOSS:
            if loss <= rule.value:
                return i
        else:
            improved = loss < rule.best - rule.value
            rule.waited = 0.0 if improved else rule.waited + 1.0
            rule.best = min(rule.best, loss)
            if rule.waited >= rule.patience:
                return i
    return -1


@inline
def _end_epoch(dealing, run, start_cycles):
    """Record the epoch, open the next one, and ask the stop rules. Returns the status to go on with."""
    cursor, totals = cursor_at(run.cursor), totals_at(run.totals)
    record = epoch_record_of(run, cursor.n_records)
    loss = totals.epoch_loss / totals.epoch_weight
    record.loss = loss
    record.right = totals.epoch_right / totals.epoch_weight
    record.weight = totals.epoch_weight
    record.step = cursor.step
    record.cycles = cycle_counter() - start_cycles
    cursor.n_records += 1
    cursor.epoch += 1
    cursor.position = 0
    totals.epoch_loss = totals.epoch_right = totals.epoch_weight = 0.0
    rule = _check_rules(run, loss)
    if rule >= 0:
        cursor.stop_rule = rule
        return STOPPED
    if cursor.epoch == dealing.last_epoch:
        return EPOCH_LIMIT
    return STEP_LIMIT if cursor.step == dealing.last_step else PAUSED


@inline
def _end_step(dealing, run, batch, n_bad, start_cycles):
    """Count the step and its loss. Returns the status to go on with: PAUSED while nothing ends the call.

    n_bad : updates that left a parameter not finite.
    """
    cursor, totals = cursor_at(run.cursor), totals_at(run.totals)
    cursor.step += 1
    cursor.position += batch
    cursor.super_blocks_done = 0
    totals.epoch_loss += totals.step_loss
    totals.epoch_right += totals.step_right
    totals.epoch_weight += totals.step_weight
    totals.step_loss = totals.step_right = 0.0
    status = STEP_LIMIT if cursor.step == dealing.last_step else PAUSED
    if cursor.position == dealing.epoch_size:
        status = SOURCE_ENDED if dealing.more != 0 else _end_epoch(dealing, run, start_cycles)
    publish(int64_at(run.cursor), _UPDATING, 0)
    return OVERFLOWED if n_bad > 0 else status


@inline
def _end_samples(plan, run, n, n_blocks):
    """Add up the super-block's losses unit by unit. Returns DIVERGED, LABELS_CHANGED or PAUSED."""
    totals = totals_at(run.totals)
    for unit in range((n + plan.sizes.loss_unit - 1) // plan.sizes.loss_unit):
        sums = loss_sums_of(run.unit_sums, unit)
        totals.step_loss += sums.loss
        totals.step_right += sums.right
    if _sum_of_flags(run.label_flags, n_blocks) > 0:
        return LABELS_CHANGED
    return PAUSED if np.isfinite(totals.step_loss) else DIVERGED


@inline
def _end_gradient(plan, run, batch):
    """Add the penalties to the loss, and take the norm of the gradient. Returns GRADIENT_DIVERGED or PAUSED."""
    totals, sums = totals_at(run.totals), float64_at(plan.shaping.sums)
    penalty = squares = 0.0
    for place in range(0, N_SUMS * plan.shaping.n_sums, N_SUMS):
        penalty += sums[place + PENALTY]
        squares += sums[place + SQUARES]
    totals.step_loss += penalty * totals.step_weight
    totals.gradient_norm = np.sqrt(squares)
    return PAUSED if plan.leaves.clipped_update == 0 or np.isfinite(squares) else GRADIENT_DIVERGED


@inline
def _next_phase(plan, phase, is_last, shapes):
    """The phase after this one, SAMPLES_PHASE of the next super-block or step if there is none."""
    if phase == SAMPLES_PHASE:
        return PARAMETERS_PHASE
    if not shapes:
        return SAMPLES_PHASE
    if is_last and phase == PARAMETERS_PHASE and plan.leaves.clipped_update != 0:
        return UPDATE_PHASE
    if is_last and phase != CONSTRAINTS_PHASE and plan.leaves.constrain != 0:
        return CONSTRAINTS_PHASE
    return SAMPLES_PHASE


@inline
def _may_change(plan, phase, shapes):
    """Whether the phase that comes with, or after, this one changes parameters, if the super-block is the last."""
    return not shapes or phase != SAMPLES_PHASE or plan.leaves.clipped_update == 0


@inline
def _end_phase(plan, dealing, run, n_tasks, batch, n, is_last, start_cycles, shapes):
    """Go on to the next phase, super-block or step. Returns the status to go on with."""
    cursor, status = cursor_at(run.cursor), PAUSED
    if cursor.phase == SAMPLES_PHASE:
        status = _end_samples(plan, run, n, n_tasks)
    elif shapes and cursor.phase == PARAMETERS_PHASE and is_last and plan.shaping.n_sums > 0:
        status = _end_gradient(plan, run, batch)
    cursor.task = 0
    cursor.phase = _next_phase(plan, cursor.phase, is_last, shapes)
    if cursor.phase != SAMPLES_PHASE:
        return status
    cursor.super_blocks_done += 1
    if not is_last:
        return PAUSED
    if shapes and plan.health.is_due != 0:
        record_health(plan, run)
    return _end_step(dealing, run, batch, _sum_of_flags(run.update_flags, plan.n_tasks), start_cycles)


@inline
def _begin_step(plan, source, dealing, run, batch, shapes):
    """Weigh the batch. Returns whether there is anything to learn from it."""
    totals = totals_at(run.totals)
    totals.step_weight = batch
    if shapes:
        plan.health.is_due = is_due(plan, cursor_at(run.cursor).step)
    if shapes and source.w != 0:
        place = address_of(source), address_of(dealing), address_of(run)
        call(plan.leaves.weigh_batch, (address_of(plan), place[0], place[1], place[2], batch))
    return not shapes or totals.step_weight != 0.0


@inline
def _advance(plan, source, dealing, run, sync, worker, n_workers, start_cycles, shapes):
    """The loop of `train_steps`: each worker takes every n_workers-th task, and all meet after each phase.

    shapes : a constant, whether anything may shape a step beside its optimizer, weights of samples among them.
    """
    cursor, n_meetings = cursor_at(run.cursor), 0
    if shapes:  # the last call may have left a step to go on with
        plan.health.is_due = is_due(plan, cursor.step)
    if cursor.position == dealing.epoch_size:  # of a source that nothing has followed
        return _end_epoch(dealing, run, start_cycles)
    while cursor.spent < dealing.budget and cursor.n_records < run.n_records:
        batch = min(dealing.batch_size, dealing.epoch_size - cursor.position)
        is_begin = cursor.phase == SAMPLES_PHASE and cursor.super_blocks_done == 0 and cursor.task == 0
        if is_begin and not _begin_step(plan, source, dealing, run, batch, shapes):
            cursor.spent += dealing.block_cost
            status = _end_step(dealing, run, batch, 0, start_cycles)
            if status != PAUSED:
                return status
            continue
        done = cursor.super_blocks_done * plan.sizes.super_block
        n = min(plan.sizes.super_block, batch - done)
        is_last = done + n == batch
        first, left = cursor.task, dealing.budget - cursor.spent
        if cursor.phase == SAMPLES_PHASE:
            n_tasks, cost = (n + plan.sizes.block - 1) // plan.sizes.block, dealing.block_cost
            last = first + _cut(n_tasks - first, cost, left, n_workers)
            _samples_tasks(plan, source, dealing, run, first + worker, last, n_workers, batch, n, shapes)
        else:
            n_tasks, cost = plan.n_tasks, dealing.task_cost
            if shapes and cursor.phase == CONSTRAINTS_PHASE:
                n_tasks = plan.n_layers
            last = first + _cut(n_tasks - first, cost, left, n_workers)
            _parameters_tasks(plan, run, first + worker, last, n_workers, batch, n, is_last, shapes)
        if (
            is_last and last == n_tasks and _may_change(plan, cursor.phase, shapes)
        ):  # before they meet: the next may begin
            cursor.updating = 1
        n_meetings += 1
        meet(sync, n_workers, n_meetings)
        cursor.spent += (last - first) * cost
        cursor.task = last
        if last == n_tasks:
            status = _end_phase(plan, dealing, run, n_tasks, batch, n, is_last, start_cycles, shapes)
            if status != PAUSED:
                return status
    return PAUSED


@inline
def _train_steps(plans, source, dealing, run, sync, is_helper, n_wanted, shapes):
    """`train_steps`, or if the constant `shapes` is true `train_shaped_steps`."""
    start_cycles = cycle_counter()
    meeting = int64_at(sync)
    patience = 0 if is_helper else dealing_at(dealing).budget // _BUDGET_OF_A_PATIENT_CYCLE
    worker, n_workers = enter(meeting, is_helper, n_wanted, patience)
    if worker < 0:  # a helper that comes too late: it has touched nothing but `sync`
        return PAUSED
    run = run_at(run)
    cursor_at(run.cursor).spent = 0
    status = _advance(
        plan_of(plans, worker),
        source_at(source),
        dealing_at(dealing),
        run,
        meeting,
        worker,
        n_workers,
        start_cycles,
        shapes,
    )
    leave(meeting, worker, n_workers)
    totals_at(run.totals).call_cycles = cycle_counter() - start_cycles
    return status


@leaf(lambda T: types.intp(*(types.intp,) * 7))
def train_steps(plans, source, dealing, run, sync, is_helper, n_wanted):
    """Train until something ends the call; returns why. Resumes where the cursor stands, in mid-step too.

    plans, source, dealing, run : addresses of the tables, `plans` one row per worker. sync : address of the team's
    array (`team`). is_helper : 0 or 1. n_wanted : workers at most.

    The caller gives learning rates for all steps up to the last and room for at least one record. Cuts into calls and
    the number of workers change no bit: every sum has one order. Each worker passes a cursor, totals, records and rules
    of its own with the same contents, and all come to the same decisions. No checks: the caller validates.
    """
    return _train_steps(plans, source, dealing, run, sync, is_helper, n_wanted, False)


@leaf(lambda T: types.intp(*(types.intp,) * 7))
def train_shaped_steps(plans, source, dealing, run, sync, is_helper, n_wanted):
    """As `train_steps`, for plans that shape a step beside its optimizer, or give samples weights."""
    return _train_steps(plans, source, dealing, run, sync, is_helper, n_wanted, True)


@inline
def forward_range(plan, source, start, last):
    """Run a block of samples from `start` on, in their own order, through the network; returns how many they are."""
    n = min(plan.sizes.block, last - start)
    call(plan.leaves.order, (plan.scratch.rows, start, n, source.n_samples, 0, 0, 0))
    call(plan.leaves.forward_block, (address_of(plan), address_of(source), 0, n))
    return n


@leaf(lambda T: types.intp(*(types.intp,) * 5))
def evaluate_range(plan, source, first, last, sums):
    """Add the losses and hits of samples first..last-1 to the first row of `sums`; the others are scratch.

    plan, source, sums : addresses of the tables; `sums` has a row of LOSS_SUMS, and one more per loss unit of a block.
    The result is the same for any cut of the samples at multiples of the block. Returns how many labels were out of
    range. No checks: the caller validates.
    """
    plan, source, totals, n_outside = plan_at(plan), source_at(source), loss_sums_of(sums, 0), 0
    for start in range(first, last, plan.sizes.block):
        n = forward_range(plan, source, start, last)
        n_outside += call(
            plan.leaves.loss_block, (address_of(plan), address_of(source), 0, n, 1.0, sums + LOSS_SUMS_BYTES)
        )
        for unit in range((n + plan.sizes.loss_unit - 1) // plan.sizes.loss_unit):
            here = loss_sums_of(sums, 1 + unit)
            totals.loss += here.loss
            totals.right += here.right
    return n_outside


@leaf(lambda T: types.void(*(types.intp,) * 5))
def predict_range(plan, source, first, last, out):
    """Write the outputs of samples first..last-1 to the rows of a C-contiguous matrix at the address `out`.

    plan, source : addresses of the tables. No checks: the caller validates.
    """
    plan, source = plan_at(plan), source_at(source)
    output = layer_of(plan, plan.n_layers - 1)
    n_out = output.n_out
    for start in range(first, last, plan.sizes.block):
        n = forward_range(plan, source, start, last)
        if plan.scaling.output_factors != 0:
            call(plan.leaves.rescale, (output.h_out, n_out, n, plan.scaling.output_factors, plan.scaling.output_shifts))
        rows = out + start * n_out * plan.sizes.itemsize
        to_rows(plan, output.h_out, n_out, n, rows, n_out)
