"""What a step says of a network's health: the sizes of its gradients and updates, and how its units behave.

Nothing here changes a step. Sums over parameters are those of `shaping`, a few for each row of a layer, so that no cut
of the parameters into tiles changes a bit. Units are looked at in the first samples of a batch.
"""

import numpy as np
from numba import types

from fastbp._jit import inline, leaf
from fastbp.kernels.calls import call, float64_at
from fastbp.kernels.panels import panel_of
from fastbp.kernels.shaping import GRADIENT, N_SUMS, UPDATE, WEIGHTS
from fastbp.kernels.simd import (
    first_lanes,
    flush_factor,
    fma,
    lanes_of,
    load_upto,
    splat,
    store_upto,
    sum_lanes,
    where,
)
from fastbp.kernels.tables import HEALTH_RECORD, cursor_at, health_record_at, layer_of, totals_at

SAMPLES = 64  # of a batch, in which units are looked at

_RECORD_BYTES = HEALTH_RECORD.itemsize
_MEAN, _SPREAD, _FLAT, _NEARLY_FLAT, N_OBSERVED = range(5)


@leaf(lambda T: types.void(types.CPointer(T), types.CPointer(T), types.intp, types.intp, types.float64, types.float64,
                           types.CPointer(types.float64)))  # fmt: skip
def observe_layer(h, z, n_units, n, flat_below, flat_above, observed):
    """Look at the outputs h of a layer for n samples, in panels as everywhere, and at its pre-activations z, or h.

    observed : overwritten. The mean over units and samples; the root of the mean over the units of their variances over
    the samples; the share of units that are flat in all samples, z being no larger than `flat_below` or no smaller than
    `flat_above`, and of those that are in 19 of 20.
    """
    panel, lanes = panel_of(h), lanes_of(h)
    below, above, one = splat(h, flat_below), splat(h, flat_above), splat(h, 1.0)
    total = squares = 0.0
    n_flat = n_nearly = 0
    for unit in range(n_units):
        first = splat(h, h[unit * min(n, panel)])  # subtracted, lest the digits of a spread are lost
        sums = square_sums = flat_sums = splat(h, 0.0)
        for start in range(0, n, panel):
            width = min(panel, n - start)
            place = start * n_units + unit * width
            for i in range(0, width, lanes):
                is_sample = first_lanes(one, width - i)
                value = load_upto(h, place + i, width - i)
                slope_at = load_upto(z, place + i, width - i)
                difference = where(is_sample, flush_factor(value - first), 0.0)
                sums, square_sums = sums + difference, fma(difference, difference, square_sums)
                is_flat = is_sample & ((slope_at <= below) | (slope_at >= above))
                flat_sums = flat_sums + where(is_flat, one, 0.0)
        mean, flat = np.float64(sum_lanes(sums)) / n, np.float64(sum_lanes(flat_sums))
        total += np.float64(h[unit * min(n, panel)]) + mean
        squares += max(0.0, np.float64(sum_lanes(square_sums)) / n - mean * mean)
        n_flat += np.int64(flat == n)
        n_nearly += np.int64(20.0 * flat >= 19.0 * n)
    observed[_MEAN] = total / n_units
    observed[_SPREAD] = np.sqrt(squares / n_units)
    observed[_FLAT] = n_flat / n_units
    observed[_NEARLY_FLAT] = n_nearly / n_units


@leaf(lambda T: types.void(types.CPointer(T), types.intp, types.intp, types.intp,
                           types.CPointer(types.float64), types.intp))  # fmt: skip
def measure_gradient(grads, n_rows, n_columns, g_row, sums, sums_row):
    """Sum the squares of each row of a gradient."""
    for r in range(n_rows):
        total = splat(grads, 0.0)
        for j in range(0, n_columns, lanes_of(grads)):
            g = flush_factor(load_upto(grads, r * g_row + j, n_columns - j))
            total = fma(g, g, total)
        sums[r * sums_row + GRADIENT] = sum_lanes(total)


@leaf(lambda T: types.void(types.CPointer(T), types.intp, types.intp, types.intp, types.CPointer(T)))
def keep_rows(params, n_rows, n_columns, row, before):
    """before = params, whose rows lie one behind the other there."""
    for r in range(n_rows):
        for j in range(0, n_columns, lanes_of(params)):
            store_upto(before, r * n_columns + j, load_upto(params, r * row + j, n_columns - j), n_columns - j)


@leaf(lambda T: types.void(types.CPointer(T), types.CPointer(T), types.intp, types.intp, types.intp,
                           types.CPointer(types.float64), types.intp))  # fmt: skip
def measure_update(params, before, n_rows, n_columns, row, sums, sums_row):
    """Sum for each row the squares of what parameters were before an update, and of what it has added."""
    for r in range(n_rows):
        moved = kept = splat(params, 0.0)
        for j in range(0, n_columns, lanes_of(params)):
            w = load_upto(before, r * n_columns + j, n_columns - j)
            step = flush_factor(load_upto(params, r * row + j, n_columns - j) - w)
            w = flush_factor(w)
            moved, kept = fma(step, step, moved), fma(w, w, kept)
        sums[r * sums_row + UPDATE] = sum_lanes(moved)
        sums[r * sums_row + WEIGHTS] = sum_lanes(kept)


@inline
def is_due(plan, step):
    """Whether a step is looked at."""
    return plan.health.every > 0 and step % plan.health.every == 0


@inline
def observe(plan, n):
    """Look at the outputs of every layer for the first of the n samples of a batch's first block."""
    for index in range(plan.n_layers):
        layer = layer_of(plan, index)
        observed = plan.health.observed + 8 * N_OBSERVED * index
        call(plan.leaves.observe_layer, (layer.h_out, layer.z, layer.n_out, min(n, SAMPLES), layer.flat_below,
                                         layer.flat_above, observed))  # fmt: skip


@inline
def record_health(plan, run):
    """Write a row for each layer of what the step that is ending was like. Only one worker has where to write."""
    cursor, totals = cursor_at(run.cursor), totals_at(run.totals)
    sums = float64_at(plan.shaping.sums)
    if plan.health.records != 0:
        for index in range(plan.n_layers):
            last = layer_of(plan, index + 1).first_sum if index + 1 < plan.n_layers else plan.shaping.n_sums
            gradient = update = weights = 0.0
            for place in range(N_SUMS * layer_of(plan, index).first_sum, N_SUMS * last, N_SUMS):
                gradient += sums[place + GRADIENT]
                update += sums[place + UPDATE]
                weights += sums[place + WEIGHTS]
            observed = float64_at(plan.health.observed + 8 * N_OBSERVED * index)
            record = health_record_at(plan.health.records + (cursor.n_health * plan.n_layers + index) * _RECORD_BYTES)
            record.step, record.loss = cursor.step, totals.step_loss / totals.step_weight
            record.gradient, record.update, record.weights = np.sqrt(gradient), np.sqrt(update), np.sqrt(weights)
            record.mean, record.spread = observed[_MEAN], observed[_SPREAD]
            record.flat, record.nearly_flat = observed[_FLAT], observed[_NEARLY_FLAT]
    cursor.n_health += 1
