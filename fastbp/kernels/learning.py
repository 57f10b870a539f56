"""What the functions of `fastbp.embed` do with a learner's handle: checks, as in `embedding`, and then steps.

A learner shares parameters, moments and counts with its trainer, and has programs and learning rates of its own.
"""

import numpy as np
from numba import types

from fastbp._jit import inline, leaf
from fastbp.kernels import training
from fastbp.kernels.calls import call, float64_at, int64_at
from fastbp.kernels.embedding import BATCH, BUSY, OK, OUT_SHAPE, OVERLAP, X_SHAPE, Y_SHAPE, give_back, is_apart, take
from fastbp.kernels.gather import FLOAT32, FLOAT64, read_float32, read_float64
from fastbp.kernels.handles import LEARNER, array_of, learner_at, positions_at
from fastbp.kernels.owners import LEARNER as IS_LEARNER
from fastbp.kernels.owners import NOBODY, give_word_back, take_word
from fastbp.kernels.simd import lanes_of, load_upto, pointer_at, store_upto
from fastbp.kernels.steps import TORN as STEP_TORN
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

# Beside those of `embedding`; MOVED comes before the first.
DIVERGED, LABELS, OVERFLOWED, RATES_ENDED, RATE, TORN, WEIGHTS = range(8, 15)

_RATE_OFFSET = LEARNER.fields["rate"][1]
_NO_LIMIT = np.iinfo(np.int64).max


@inline
def _is_label(array):
    """Whether these are integers, classes."""
    return array.dtype not in (FLOAT32, FLOAT64)


@inline
def _check_batch(learner, x, y, n_columns):
    """The status of the shapes of a batch: rows, and so many values for each or a class."""
    if x.n_columns != learner.n_in:
        return X_SHAPE
    if y.n_rows != x.n_rows:
        return Y_SHAPE
    if _is_label(y):
        if learner.takes_labels == 0 or y.n_columns != 1:
            return Y_SHAPE
    elif y.n_columns != n_columns:
        return Y_SHAPE
    return BATCH if x.n_rows == 0 else OK


@inline
def _check_weights(x, arrays, index, weighted):
    """The status of weights, one for each row of x, if there are any."""
    if weighted == 0:
        return OK
    weights, n_wrong = array_of(arrays, index), 0
    if weights.n_rows != x.n_rows:
        return WEIGHTS
    for i in range(weights.n_rows):
        place = weights.address + i * weights.row
        weight = read_float32(place) if weights.dtype == FLOAT32 else read_float64(place)
        n_wrong += not 0.0 <= weight < np.inf
    return WEIGHTS if n_wrong > 0 else OK


@inline
def _weighs_nothing(weights):
    """Whether all these weights are 0."""
    n_zero = 0
    for i in range(weights.n_rows):
        place = weights.address + i * weights.row
        n_zero += (read_float32(place) if weights.dtype == FLOAT32 else read_float64(place)) == 0.0
    return n_zero == weights.n_rows


@inline
def _take_to_change(learner):
    """Whether the learner was free, and the network too: both are the caller's now, until `_give_both_back`."""
    if not take(learner):
        return False
    if take_word(learner.word, NOBODY, IS_LEARNER) != NOBODY:
        give_back(learner)
        return False
    return True


@inline
def _give_both_back(learner):
    give_word_back(learner.word)
    give_back(learner)


@inline
def _lay_ready(border, x, y, arrays, index, weighted):
    """Tell a program where its batch lies, and, if it has weights, where these do: in the array of this index."""
    source = source_at(border.source)
    source.x, source.x_row, source.x_column, source.x_dtype = x.address, x.row, x.column, x.dtype
    source.y, source.y_row, source.y_column, source.y_dtype = y.address, y.row, y.column, y.dtype
    source.y_is_label = 1 if _is_label(y) else 0
    source.n_samples = x.n_rows
    source.w = source.w_row = source.w_dtype = 0
    if weighted != 0:
        weights = array_of(arrays, index)
        source.w, source.w_row, source.w_dtype = weights.address, weights.row, weights.dtype


@inline
def _status_of(status):
    """The status for the user of what a step has said."""
    if status in (training.DIVERGED, training.GRADIENT_DIVERGED):
        return DIVERGED
    if status == training.LABELS_CHANGED:
        return LABELS
    if status == training.OVERFLOWED:
        return OVERFLOWED
    return TORN if status == STEP_TORN else OK


@inline
def _n_steps(positions):
    return max(cursor_at(positions.fit_cursor).step, cursor_at(positions.cursor).step)


@inline
def _rate_ends(learner):
    """The first step that has no learning rate."""
    return _NO_LIMIT if learner.n_rates == 0 else learner.first_step + learner.n_rates


@inline
def _rate_of(learner, step):
    """The learning rate of a step that has one."""
    return learner.rate if learner.n_rates == 0 else float64_at(learner.rates)[step - learner.first_step]


@inline
def _take_step(learner, program, x, y, arrays, weighted):
    """One step by a program, on a batch that has been checked."""
    if not _take_to_change(learner):
        return BUSY
    border, positions = border_at(program), positions_at(learner.positions)
    step = _n_steps(positions)
    if step < learner.first_step or step >= _rate_ends(learner):
        _give_both_back(learner)
        return RATES_ENDED
    run = run_at(border.run)
    run.cursor, run.totals, border.fit_cursor = positions.cursor, positions.totals, positions.fit_cursor
    _lay_ready(border, x, y, arrays, 2, weighted)
    status = _status_of(call(plan_at(border.plan).leaves.take_step, (program, _rate_of(learner, step))))
    learner.loss = border.loss
    _give_both_back(learner)
    return status


@leaf(lambda T: types.intp(types.intp, types.intp, types.intp))
def embedded_train_step(handle, arrays, weighted):
    """One step on a batch. arrays : x, y and, if `weighted`, weights."""
    learner, x, y = learner_at(handle), array_of(arrays, 0), array_of(arrays, 1)
    status = _check_batch(learner, x, y, learner.n_targets)
    if status == OK and x.n_rows > learner.max_batch:
        status = BATCH
    if status == OK:
        status = _check_weights(x, arrays, 2, weighted)
    return status if status != OK else _take_step(learner, learner.step, x, y, arrays, weighted)


@leaf(lambda T: types.intp(types.intp, types.intp))
def embedded_backward_step(handle, arrays):
    """One step from the derivative of a loss of the user's. arrays : x and d_out."""
    learner, x, d_out = learner_at(handle), array_of(arrays, 0), array_of(arrays, 1)
    status = Y_SHAPE if _is_label(d_out) else _check_batch(learner, x, d_out, learner.n_out)
    if status == OK and x.n_rows > learner.max_batch:
        status = BATCH
    return status if status != OK else _take_step(learner, learner.step_from, x, d_out, arrays, 0)


@leaf(lambda T: types.intp(types.intp, types.intp, types.CPointer(T), types.intp))
def embedded_loss_and_grad(handle, arrays, grad, weighted):
    """Loss and gradient of a batch; several learners may compute them at once.

    arrays : x, y, `grad` and, if `weighted`, weights.
    """
    learner, x, y, out = learner_at(handle), array_of(arrays, 0), array_of(arrays, 1), array_of(arrays, 2)
    status = _check_batch(learner, x, y, learner.n_targets)
    if status != OK:
        return status
    if x.n_rows > learner.max_batch:
        return BATCH
    if out.n_columns != learner.n_params:
        return OUT_SHAPE
    if not is_apart(learner, out, x) or not is_apart(learner, out, y):
        return OVERLAP
    status = _check_weights(x, arrays, 3, weighted)
    if status != OK:
        return status
    if weighted != 0:
        if _weighs_nothing(array_of(arrays, 3)):
            return WEIGHTS
        if not is_apart(learner, out, array_of(arrays, 3)):
            return OVERLAP
    if not take(learner):
        return BUSY
    border = border_at(learner.gradient)
    _lay_ready(border, x, y, arrays, 3, weighted)
    status = _status_of(call(plan_at(border.plan).leaves.take_step, (learner.gradient, 0.0)))
    learner.loss = border.loss
    if status == OK:
        grads = pointer_at(learner.grads, grad)
        for i in range(0, learner.n_params, lanes_of(grad)):
            store_upto(grad, i, load_upto(grads, i, learner.n_params - i), learner.n_params - i)
    give_back(learner)
    return status


@inline
def _deal_out(learner, dealing, cursor, totals, n):
    """Tell a program how a fit on n samples deals them out; other data, or the end of an epoch, begin one."""
    batch_size = n if learner.batch_size == 0 else min(learner.batch_size, n)
    dealing.batch_size = batch_size
    dealing.epoch_size = n // batch_size * batch_size if learner.drop_last != 0 else n
    window = learner.shuffle if learner.shuffle < n else 1  # as in `Loop`
    dealing.shuffle = window if batch_size < n else 0
    dealing.seed = learner.seed
    dealing.last_epoch = dealing.budget = _NO_LIMIT
    if cursor.position >= dealing.epoch_size:
        cursor.position = 0
        cursor.epoch += 1
        totals.epoch_loss = totals.epoch_right = totals.epoch_weight = 0.0


@inline
def _train(learner, border, dealing, run, end):
    """Train until step `end`; returns the status. The loss becomes the mean over all samples that were seen."""
    cursor, totals, total, weight, status = cursor_at(run.cursor), totals_at(run.totals), 0.0, 0.0, OK
    plan = plan_at(border.plan)
    while cursor.step < end and status == OK:
        step = cursor.step
        if step < learner.first_step or step >= _rate_ends(learner):
            status = RATES_ENDED
            break
        if learner.n_rates == 0:
            run.rates, run.first_step, dealing.last_step = learner.self + _RATE_OFFSET, step, step + 1
        else:
            run.rates, run.first_step = learner.rates, learner.first_step
            dealing.last_step = min(end, _rate_ends(learner))
        cursor.n_records = 0
        loss_before, weight_before = totals.epoch_loss, totals.epoch_weight
        status = _status_of(
            call(plan.leaves.train_steps, (border.plan, border.source, border.dealing, border.run, 0, 0, 1))
        )
        if cursor.n_records > 0:
            record = epoch_record_of(run, 0)
            total += record.loss * record.weight
            weight += record.weight
        total += totals.epoch_loss - loss_before
        weight += totals.epoch_weight - weight_before
    cursor.n_records = 0
    if status in (DIVERGED, LABELS):
        cursor.super_blocks_done = cursor.phase = cursor.task = cursor.updating = 0
        totals.step_loss = totals.step_right = 0.0
    learner.loss = total / weight if weight > 0.0 else np.nan
    return status


@leaf(lambda T: types.intp(types.intp, types.intp, types.intp, types.intp))
def embedded_train(handle, arrays, n_steps, weighted):
    """Train for some steps, as the trainer's fits do. arrays : x, y and, if `weighted`, weights of the whole data."""
    learner, x, y = learner_at(handle), array_of(arrays, 0), array_of(arrays, 1)
    status = _check_batch(learner, x, y, learner.n_targets)
    if status != OK:
        return status
    if (x.n_rows if learner.batch_size == 0 else min(learner.batch_size, x.n_rows)) > learner.max_batch:
        return BATCH
    status = _check_weights(x, arrays, 2, weighted)
    if status != OK:
        return status
    if not _take_to_change(learner):
        return BUSY
    border, positions = border_at(learner.step), positions_at(learner.positions)
    run, dealing, cursor = run_at(border.run), dealing_at(border.dealing), cursor_at(positions.fit_cursor)
    if cursor.updating != 0 or cursor_at(positions.cursor).updating != 0:
        _give_both_back(learner)
        return TORN
    rates = run.rates
    run.cursor, run.totals = positions.fit_cursor, positions.fit_totals
    cursor.step = _n_steps(positions)
    _lay_ready(border, x, y, arrays, 2, weighted)
    _deal_out(learner, dealing, cursor, totals_at(positions.fit_totals), x.n_rows)
    status = _train(learner, border, dealing, run, cursor.step + max(0, n_steps))
    run.rates = rates
    _give_both_back(learner)
    return status


@leaf(lambda T: types.intp(types.intp))
def embedded_reset(handle):
    """Set moments and counts to zero."""
    learner = learner_at(handle)
    if not _take_to_change(learner):
        return BUSY
    positions, moments = positions_at(learner.positions), int64_at(learner.moments)
    if cursor_at(positions.fit_cursor).updating != 0 or cursor_at(positions.cursor).updating != 0:
        _give_both_back(learner)
        return TORN
    for i in range(learner.n_moment_bytes // 8):
        moments[i] = 0
    cursor_at(positions.cursor).step = 0
    fit, totals = cursor_at(positions.fit_cursor), totals_at(positions.fit_totals)
    fit.step = fit.epoch = fit.position = 0
    totals.epoch_loss = totals.epoch_right = totals.epoch_weight = 0.0
    _give_both_back(learner)
    return OK


@leaf(lambda T: types.intp(types.intp, types.float64))
def embedded_set_learning_rate(handle, rate):
    """Set the learning rate of all steps from now on."""
    learner = learner_at(handle)
    if not 0.0 <= rate < np.inf:
        return RATE
    if not take(learner):
        return BUSY
    learner.rate, learner.n_rates, learner.first_step = rate, 0, 0
    give_back(learner)
    return OK
