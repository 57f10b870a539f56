"""The tables that kernels read by name: what Python fills and compiled code sees as records.

A record is a pointer to its bytes, and an attribute of it a load at a constant offset. So a function gets one pointer
instead of dozens of arguments, which keeps it small and quick to compile; a name that no table has does not compile.

Leaves take records by their addresses; `plan_at` and its like turn these into records. Nothing is checked: whoever
holds a table keeps the memory behind its addresses alive.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import from_dtype, types
from numba.extending import intrinsic

from fastbp._jit import inline

ADDRESS, COUNT, VALUE = np.intp, np.int64, np.float64  # a flag is a count: 0 or 1

# The sizes of a network's plan, in elements and samples if nothing else is said.
SIZES = np.dtype(
    [
        ("itemsize", COUNT),  # bytes of an element
        ("panel", COUNT),  # width of the register tile
        ("block", COUNT),  # samples of a task
        ("super_block", COUNT),  # samples that the buffers hold
        ("loss_unit", COUNT),  # samples whose losses are one sum
        ("n_targets", COUNT),  # numbers of a sample that its outputs are compared with
        ("gradient_row", COUNT),  # between the gradients of two blocks, of small networks
        ("m_block", COUNT),  # cache block of a product: rows
        ("c_block", COUNT),  # cache block of a gradient: columns
        ("s_block", COUNT),  # cache block of a gradient: samples, which are the terms of its sums
        ("chunk", COUNT),  # cache block of a product with lists: terms
        ("strip", COUNT),  # cache block of a product with lists: columns
        ("packed_row", COUNT),  # between two rows of packed w
    ],
    align=True,
)

# The leaves of a network's plan; 0 for those that it does not use.
LEAVES = np.dtype(
    [
        (name, ADDRESS)
        for name in (
            # products
            *("multiply_panel", "multiply_row", "multiply_column", "dense_packed", "pack_rows", "pack_columns"),
            *("dense_of_lists", "list_nonzeros", "multiply_nonzeros", "narrow_gradient", "add_rows", "add_parts"),
            # samples in and out, and their losses
            *(
                "order",
                "gather",
                "gather_standardized",
                "gather_sparse",
                "labels",
                "panels_to_rows",
                "panels_to_features",
                "copy",
                "loss",
            ),
            *("weighted_loss", "weigh_batch", "rescale"),
            # parameters
            *("update", "coefficients", "shrink", "flush_rows"),
            # what shapes a step beside them
            *("drop", "add_noise", "smooth", "penalize", "clip", "scale", "limit_columns", "average"),
            # what looks at one
            *("observe_layer", "measure_gradient", "keep_rows", "measure_update"),
            # the phases of a step
            *(
                "forward_block",
                "loss_block",
                "backward_block",
                "gradient_block",
                "parameters",
                "clipped_update",
                "constrain",
            ),
            # whole calls
            *("train_steps", "take_step", "evaluate_range", "predict_range", "vjp_range", "jvp_range"),
        )
    ],
    align=True,
)

# What standardizes (`scaling`): float64, or 0 for what is not standardized.
SCALING = np.dtype(
    [
        ("x_means", ADDRESS),
        ("x_factors", ADDRESS),  # by which inputs less their means are multiplied
        ("y_means", ADDRESS),
        ("y_factors", ADDRESS),
        ("output_factors", ADDRESS),  # and back: from outputs to the user's
        ("output_shifts", ADDRESS),
        ("zeros", ADDRESS),  # shifts of derivatives
    ],
    align=True,
)

# Scratch buffers of one worker.
SCRATCH = np.dtype(
    [
        ("d", ADDRESS),  # derivatives of a block, of the widest layer
        ("d_other", ADDRESS),  # as d: those of the layer before
        ("targets", ADDRESS),  # of a block, in panels
        ("weights", ADDRESS),  # of a block
        ("rows", ADDRESS),  # int64 row numbers of a block's samples
        ("row_addresses", ADDRESS),  # of `gather_rows`
        ("cast", ADDRESS),  # of `gather_rows`
        ("packed", ADDRESS),  # a cache block of w
        ("gradient", ADDRESS),  # a rectangle of it
        ("coefficients", ADDRESS),  # float64, of the step's update; then of the weights and biases of each layer
        ("before", ADDRESS),  # parameters before their update, where it is measured
        ("partial", ADDRESS),  # sums over a part of the terms (`sums`) that are not in their totals yet
        # Of a product with lists:
        ("y_strip", ADDRESS),  # the strip that it writes, in panels of columns
        ("w_strip", ADDRESS),  # the strip of w that it reads, likewise
        ("x_transposed", ADDRESS),  # x, in panels of terms
        ("x_values", ADDRESS),  # its lists, one per sample: what is not zero,
        ("x_indices", ADDRESS),  # terms of these, uint16,
        ("x_indptr", ADDRESS),  # where each list begins, int64,
        ("x_sums", ADDRESS),  # and one sum per list
    ],
    align=True,
)

# What shapes a step beside the optimizer.
SHAPING = np.dtype(
    [
        # What is drawn at random depends on these, and on a sample's position in the batch.
        ("seed", COUNT),
        ("step", COUNT),
        ("first", COUNT),  # position of the first sample of the super-block
        ("weight", VALUE),  # of all samples of the batch
        ("noise", VALUE),  # standard deviation of what is added to the inputs
        ("smoothing_factor", VALUE),  # targets are multiplied by this
        ("smoothing_share", VALUE),  # and get this added
        ("clip_value", VALUE),  # largest magnitude of an element of the gradient
        ("clip_norm", VALUE),  # largest norm of the gradient
        ("average_share", VALUE),  # of the present parameters in their average
        ("has_rate_factors", COUNT),
        ("sums", ADDRESS),  # float64 rows as in `shaping`, for each row of each layer's c_block columns
        ("n_sums", COUNT),
    ],
    align=True,
)

# What looks at a step (`health`).
HEALTH = np.dtype(
    [
        ("every", COUNT),  # steps from one that is looked at to the next; 0 if none is
        ("is_due", COUNT),  # whether the present one is
        ("observed", ADDRESS),  # float64, of each layer, as `health.observe_layer` writes them
        ("records", ADDRESS),  # rows of HEALTH_RECORD, n_layers for each step; 0 but for the first worker
    ],
    align=True,
)

# A layer in a step that was looked at: norms of all its parameters, and of its outputs what `observe_layer` says.
HEALTH_RECORD = np.dtype(
    [
        ("step", VALUE),
        ("loss", VALUE),  # of the batch
        ("gradient", VALUE),
        ("update", VALUE),
        ("weights", VALUE),  # before it
        ("mean", VALUE),
        ("spread", VALUE),
        ("flat", VALUE),
        ("nearly_flat", VALUE),
    ],
    align=True,
)

# A network made ready for one worker.
PLAN = np.dtype(
    [
        ("n_layers", COUNT),
        ("layers", ADDRESS),  # rows of LAYER
        ("tiles", ADDRESS),  # rows of TILE
        ("n_tasks", COUNT),  # of the parameters phase: its tiles, or 1 of a small network
        ("sizes", SIZES),
        ("leaves", LEAVES),
        ("scratch", SCRATCH),
        ("scaling", SCALING),
        ("shaping", SHAPING),
        ("health", HEALTH),
        # Shared by all workers.
        ("block_gradients", ADDRESS),  # of small networks, else 0: the gradients of a super-block's blocks
        ("partial_gradient", ADDRESS),  # of several super-blocks: sums that are not in the gradient yet, as `partial`
        ("loss_constants", ADDRESS),  # float64
        ("count", ADDRESS),  # int64 0, 1, ... for a strip
        ("zeros", ADDRESS),  # a panel of them
        ("ones", ADDRESS),  # a panel of them
    ],
    align=True,
)

# A product of a layer for n samples: y = init + a @ x, forward with a = w.T, backward with a = w.
PRODUCT = np.dtype(
    [
        ("n_terms", COUNT),  # of each sum: features of x
        ("n_rows", COUNT),  # features of y
        ("a", ADDRESS),
        ("a_row", COUNT),  # elements between two rows of a
        ("a_k", COUNT),  # elements between two terms
        ("init", ADDRESS),  # what the sums begin with: the biases, or zeros
        ("init_row", COUNT),  # elements between two of them
        ("init_is_column", COUNT),  # whether they are one per row, or else a panel of zeros
        ("is_backward", COUNT),
        # Which way is taken: up to `few_to` samples with the lanes over rows; from `lists_from` on with lists of what
        # is not zero of x; else from `packed_from` on on packed copies of a; else panel by panel.
        ("few_to", COUNT),
        ("lists_from", COUNT),
        ("packed_from", COUNT),
        ("k_block", COUNT),  # cache block of a packed product: terms of a sum
    ],
    align=True,
)

# The gradient of a layer.
GRADIENT = np.dtype(
    [
        ("dw", ADDRESS),  # of the weights, with that of the biases behind it
        # Which way is taken, by the samples of the batch: from `lists_from` on with lists of what is not zero of dz;
        # else from `narrow_from` on with sums over lanes of samples; else with sums over one sample after the other.
        ("lists_from", COUNT),
        ("narrow_from", COUNT),
        # Loss derivative with respect to z: in panels of outputs, on the narrow way as one row per output; of lists the
        # values, one chunk of samples after the other.
        ("dz", ADDRESS),
        # Of lists, else 0:
        ("indices", ADDRESS),  # samples of the values, uint16
        ("indptr", ADDRESS),  # where each output's list begins, int64
        ("sums", ADDRESS),  # of each list: the gradient of the bias
        ("h_transposed", ADDRESS),  # `h_in` in panels of inputs, the last one as wide as the others
    ],
    align=True,
)

# A group of parameters: the weights, or the biases, of a layer.
GROUP = np.dtype(
    [
        ("l1", VALUE),
        ("l1_per_batch", VALUE),  # divided by the samples of the batch, or the sum of their weights
        ("l2", VALUE),
        ("l2_per_batch", VALUE),
        ("decay", VALUE),  # as l2, but no part of the loss
        ("rate_factor", VALUE),  # of the learning rate; 0 leaves the parameters alone
    ],
    align=True,
)

LAYER = np.dtype(
    [
        ("n_in", COUNT),
        ("n_out", COUNT),
        ("w", ADDRESS),  # weights, with the biases behind them
        ("h_in", ADDRESS),  # activations of the super-block before the layer
        ("z", ADDRESS),  # pre-activations; `h_out` itself where the activation needs none
        ("h_out", ADDRESS),  # activations of the super-block behind the layer
        ("activation", ADDRESS),  # its leaf, or 0
        ("derivative", ADDRESS),  # its leaf, or 0
        ("is_identity", COUNT),  # whether the activation changes nothing but what is tiny
        ("constants", ADDRESS),  # float64, of the activation
        ("stack_start", COUNT),  # element of its outputs among those of one sample on the stack (`single`)
        ("forward", PRODUCT),
        ("tangent", PRODUCT),  # as forward, from tangents of x to those of y
        ("backward", PRODUCT),
        ("gradient", GRADIENT),
        ("h_whole", ADDRESS),  # activations of which `h_in` has some dropped, or `h_in` itself
        ("dropout", VALUE),  # probability of that
        ("of_weights", GROUP),
        ("of_biases", GROUP),
        ("max_norm", VALUE),  # of the weights that come into a unit
        ("flat_below", VALUE),  # z, or h where z is not kept, from which on the activation is flat
        ("flat_above", VALUE),
        ("first_sum", COUNT),  # place of its sums among `shaping.sums`
    ],
    align=True,
)

# Some rows of one layer's w, of which row n_in is b.
TILE = np.dtype([("layer", COUNT), ("first_row", COUNT), ("n_rows", COUNT)], align=True)

# The user's data; strides in bytes, dtypes as places in `gather.SOURCE_DTYPES`.
SOURCE = np.dtype(
    [
        ("x", ADDRESS),
        ("x_row", COUNT),
        ("x_column", COUNT),
        ("x_dtype", COUNT),
        ("y", ADDRESS),
        ("y_row", COUNT),
        ("y_column", COUNT),
        ("y_dtype", COUNT),
        ("y_is_label", COUNT),  # whether y is one integer class per sample
        ("w", ADDRESS),  # weights of the samples, or 0 if all count alike
        ("w_row", COUNT),
        ("w_dtype", COUNT),
        ("n_samples", COUNT),
        # Of sparse rows, else 0; `x` are then the numbers that are kept, and the strides of x nothing.
        ("x_indices", ADDRESS),  # their columns
        ("x_indptr", ADDRESS),  # where each row begins
        ("x_index_dtype", COUNT),  # of both
        ("n_kept", COUNT),
    ],
    align=True,
)

OPTIMIZER = np.dtype(
    [
        ("state", ADDRESS),  # the moments
        ("state_row", COUNT),  # elements between two of them
        ("averages", ADDRESS),  # of the parameters, or 0
        ("constants", ADDRESS),  # float64
        ("decay_biases", COUNT),  # whether biases decay too
        ("first_step", COUNT),  # of the run, since when there have been these moments
    ],
    align=True,
)

# How the samples are dealt out to steps and epochs, and where a call ends.
DEALING = np.dtype(
    [
        ("batch_size", COUNT),  # samples of a step
        ("epoch_size", COUNT),  # samples of an epoch: fewer than the data's where the rest is dropped
        ("offset", COUNT),  # samples of the epoch before those of the source, where it comes in chunks
        ("more", COUNT),  # whether more of them may follow: then a call ends with those of the source, and no epoch
        ("shuffle", COUNT),
        ("seed", COUNT),  # key of the order
        ("last_step", COUNT),  # return when these counts are reached
        ("last_epoch", COUNT),
        ("budget", COUNT),  # cost that one call may spend
        ("block_cost", COUNT),  # of a task of the samples phase
        ("task_cost", COUNT),  # of a task of the parameters phase
    ],
    align=True,
)

# Where a run stands. A step is cut into the tasks of two phases for each super-block.
CURSOR = np.dtype(
    [
        ("step", COUNT),
        ("epoch", COUNT),
        ("position", COUNT),  # samples of the epoch that steps have seen
        ("super_blocks_done", COUNT),  # of the step
        ("phase", COUNT),
        ("task", COUNT),  # of the phase: the next one
        ("n_records", COUNT),  # epochs recorded
        ("n_health", COUNT),  # steps that were looked at and are recorded
        ("stop_rule", COUNT),  # the one that was fulfilled
        ("spent", COUNT),  # cost of the last call
        # 1 from before the first parameter of a step may change until all that counts the step is written: a child
        # that is forked in between has parameters of no whole step.
        ("updating", COUNT),
    ],
    align=True,
)

# Over some samples: losses, and outputs that are right.
LOSS_SUMS = np.dtype([("loss", VALUE), ("right", VALUE)], align=True)

# Sums over the samples of the present epoch, and of the present step.
TOTALS = np.dtype(
    [
        ("epoch_loss", VALUE),  # each sample's times its weight
        ("epoch_right", VALUE),
        ("epoch_weight", VALUE),  # of the samples
        ("step_loss", VALUE),
        ("step_right", VALUE),
        ("step_weight", VALUE),  # of the whole batch, from the step's beginning on
        ("gradient_norm", VALUE),  # of the present step, where it is clipped
        ("call_cycles", VALUE),  # of the last call
    ],
    align=True,
)

# A finished epoch.
RECORD = np.dtype(
    [
        ("loss", VALUE),
        ("right", VALUE),
        ("weight", VALUE),  # of its samples
        ("step", VALUE),  # steps so far
        ("cycles", VALUE),  # since the call began
    ],
    align=True,
)

# A stop rule that needs the training loss only.
RULE = np.dtype(
    [("kind", VALUE), ("value", VALUE), ("patience", VALUE), ("best", VALUE), ("waited", VALUE)], align=True
)

# What a call of `train` reads and writes.
RUN = np.dtype(
    [
        # Of each worker its own: all come to the same decisions.
        ("cursor", ADDRESS),  # CURSOR, updated
        ("totals", ADDRESS),  # TOTALS, updated
        ("records", ADDRESS),  # rows of RECORD, one written per finished epoch
        ("rules", ADDRESS),  # rows of RULE, updated
        # Scratch that all workers share.
        ("unit_sums", ADDRESS),  # rows of LOSS_SUMS, one per loss unit of a super-block
        ("label_flags", ADDRESS),  # int64 per block: how many labels are out of range
        (
            "update_flags",
            ADDRESS,
        ),  # int64 per task of the parameters phase: how many updates left a parameter not finite
        # Read.
        ("optimizer", ADDRESS),  # OPTIMIZER
        ("rates", ADDRESS),  # float64, learning rates of the steps from `first_step` on
        ("n_records", COUNT),  # rows of `records`
        ("n_rules", COUNT),
        ("first_step", COUNT),
    ],
    align=True,
)


# What an entry for Python's arrays knows of its program.
BORDER = np.dtype(
    [
        ("plan", ADDRESS),
        ("source", ADDRESS),  # SOURCE, written
        ("n_in", COUNT),
        ("n_out", COUNT),
        ("n_targets", COUNT),
        ("itemsize", COUNT),
        ("least_samples", COUNT),  # that the program is for
        ("most_samples", COUNT),
        ("params", ADDRESS),
        ("n_params", COUNT),
        ("has_bad", ADDRESS),  # leaf that looks for infinities and NaN
        # Of a program that trains:
        ("dealing", ADDRESS),  # DEALING, written
        ("run", ADDRESS),  # RUN, with a row for one rate and one record
        ("fit_cursor", ADDRESS),  # CURSOR of the fits of the same run
        ("targets", COUNT),  # their kind, as in `losses`
        ("word", ADDRESS),  # of the network, or 0 if nobody shares it (`owners`)
        ("status", COUNT),  # of the last call
        ("loss", VALUE),  # mean over the batch of the last step, before it
    ],
    align=True,
)


def fill(records: npt.NDArray[np.void], index: int, values: Mapping[str, Any]) -> None:
    """Write a record: a value for every field and for no other; those of a nested record are such values, or a tuple.

    Examples
    --------
    >>> tiles = np.zeros(2, TILE)
    >>> fill(tiles, 1, {"layer": 1, "first_row": 0, "n_rows": 5})
    >>> tiles["n_rows"]
    array([0, 5])
    """
    records[index] = _in_order(records.dtype, values)


def _in_order(dtype: np.dtype[Any], values: Mapping[str, Any]) -> tuple[Any, ...]:
    names = dtype.names or ()
    if set(values) != set(names):
        raise TypeError(f"fields {sorted(set(values) ^ set(names))} are missing, or there are no such")
    ordered = []
    for name, value in zip(names, map(values.__getitem__, names), strict=True):
        ordered.append(_in_order(dtype[name], value) if type(value) is dict else value)
    return tuple(ordered)


def record_at(dtype):
    """An intrinsic that reads an address as a record of `dtype`."""
    record = from_dtype(dtype)

    @intrinsic
    def at(typingctx, address):
        """The record at an address."""

        def codegen(context, builder, sig, args):
            return builder.inttoptr(args[0], context.get_value_type(record))

        return record(types.intp), codegen

    return at


plan_at, layer_at, product_at = record_at(PLAN), record_at(LAYER), record_at(PRODUCT)
tile_at, source_at = record_at(TILE), record_at(SOURCE)
optimizer_at, dealing_at, run_at = record_at(OPTIMIZER), record_at(DEALING), record_at(RUN)
border_at = record_at(BORDER)
cursor_at, totals_at, loss_sums_at = record_at(CURSOR), record_at(TOTALS), record_at(LOSS_SUMS)
epoch_record_at, rule_at = record_at(RECORD), record_at(RULE)
health_record_at = record_at(HEALTH_RECORD)

_LAYER_BYTES, _TILE_BYTES = LAYER.itemsize, TILE.itemsize
_RECORD_BYTES, _RULE_BYTES, _PLAN_BYTES, LOSS_SUMS_BYTES = (
    RECORD.itemsize,
    RULE.itemsize,
    PLAN.itemsize,
    LOSS_SUMS.itemsize,
)


@inline
def layer_of(plan, index):
    """The record of a layer."""
    return layer_at(plan.layers + index * _LAYER_BYTES)


@inline
def tile_of(plan, index):
    """The record of a tile."""
    return tile_at(plan.tiles + index * _TILE_BYTES)


@inline
def plan_of(plans, worker):
    """The plan of a worker."""
    return plan_at(plans + worker * _PLAN_BYTES)


@inline
def loss_sums_of(sums, unit):
    """The sums of a unit of samples in the table at the address `sums`."""
    return loss_sums_at(sums + unit * LOSS_SUMS_BYTES)


@inline
def epoch_record_of(run, index):
    """The record of a finished epoch."""
    return epoch_record_at(run.records + index * _RECORD_BYTES)


@inline
def rule_of(run, index):
    """The state of a stop rule."""
    return rule_at(run.rules + index * _RULE_BYTES)
