"""One step on a batch of the caller's own, outside the epochs of a run."""

import numpy as np
from numba import types

from fastbp._jit import leaf
from fastbp.kernels.calls import call, float64_at
from fastbp.kernels.tables import (
    border_at,
    cursor_at,
    dealing_at,
    epoch_record_of,
    plan_at,
    run_at,
    source_at,
    totals_at,
)
from fastbp.kernels.training import OVERFLOWED, STEP_LIMIT

TORN = -1  # beside what `train_steps` says: a step of another process has left parameters of no whole step

_NO_LIMIT = np.iinfo(np.int64).max


@leaf(lambda T: types.intp(types.intp, types.float64))
def take_step(border, rate):
    """One step on all samples of a program's source; returns STEP_LIMIT, OVERFLOWED, or why nothing has changed.

    border : address of the program's BORDER, whose `loss` becomes the batch's mean before the step. rate : learning
    rate. The step counts in the cursor of the program's run, from the larger of that and the one of the run's fits on.
    No checks: the caller validates.
    """
    border = border_at(border)
    source, dealing, run, plan = (
        source_at(border.source),
        dealing_at(border.dealing),
        run_at(border.run),
        plan_at(border.plan),
    )
    cursor, totals, of_fit, n = (
        cursor_at(run.cursor),
        totals_at(run.totals),
        cursor_at(border.fit_cursor),
        source.n_samples,
    )
    if cursor.updating != 0 or of_fit.updating != 0:
        return TORN
    n_steps = max(cursor.step, of_fit.step)
    float64_at(run.rates)[0] = rate
    run.first_step = n_steps
    dealing.batch_size = dealing.epoch_size = n
    dealing.last_step, dealing.last_epoch, dealing.budget = n_steps + 1, _NO_LIMIT, _NO_LIMIT
    dealing.shuffle = dealing.seed = 0
    cursor.epoch = cursor.position = cursor.n_records = 0
    cursor.super_blocks_done = cursor.phase = cursor.task = 0
    totals.epoch_loss = totals.epoch_right = totals.epoch_weight = totals.step_loss = totals.step_right = 0.0
    before, cursor.step = cursor.step, n_steps
    status = call(plan.leaves.train_steps, (border.plan, border.source, border.dealing, border.run, 0, 0, 1))
    if status in (STEP_LIMIT, OVERFLOWED):
        border.loss = epoch_record_of(run, 0).loss
        return status
    border.loss = totals.step_loss / totals.step_weight
    cursor.step = before
    cursor.super_blocks_done = cursor.phase = cursor.task = cursor.updating = 0
    totals.step_loss = totals.step_right = 0.0
    return status
