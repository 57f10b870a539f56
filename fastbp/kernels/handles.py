"""The tables of handles: what a network, and a learner, are for the user's compiled code. As those of `tables`."""

import numpy as np

from fastbp._jit import inline
from fastbp.kernels.tables import ADDRESS, COUNT, VALUE, record_at

# An array that is passed to a function of `fastbp.embed`; one sample is a row. Strides in bytes.
ARRAY = np.dtype(
    [
        ("address", ADDRESS),
        ("n_rows", COUNT),
        ("n_columns", COUNT),
        ("row", COUNT),
        ("column", COUNT),
        ("dtype", COUNT),  # place in `gather.SOURCE_DTYPES`
    ],
    align=True,
)

# What a handle (`fastbp.embed`) is for compiled code: an array of which `self` is the first element.
HANDLE = np.dtype(
    [
        ("self", ADDRESS),  # of this record: a copy of it has another one
        ("busy", COUNT),  # 1 while somebody works in its buffers
        ("plan", ADDRESS),
        ("source", ADDRESS),  # SOURCE, written
        ("n_in", COUNT),
        ("n_out", COUNT),
        ("itemsize", COUNT),
        ("fits_stack", COUNT),  # whether one sample goes through on the stack
        ("params", ADDRESS),
        ("n_params", COUNT),
        # Leaves:
        ("embedded_predict", ADDRESS),
        ("embedded_predict_sample", ADDRESS),
        ("embedded_vjp", ADDRESS),
        ("embedded_jvp", ADDRESS),
    ],
    align=True,
)


# Where the fits of a run stand, and its steps on batches of the caller's own.
POSITIONS = np.dtype(
    [
        ("fit_cursor", ADDRESS),  # CURSOR
        ("fit_totals", ADDRESS),  # TOTALS
        ("cursor", ADDRESS),
        ("totals", ADDRESS),
    ],
    align=True,
)

# What a learner's handle is, as `HANDLE`.
LEARNER = np.dtype(
    [
        ("self", ADDRESS),
        ("busy", COUNT),
        ("word", ADDRESS),  # of the network (`owners`)
        ("n_in", COUNT),
        ("n_out", COUNT),
        ("n_targets", COUNT),
        ("itemsize", COUNT),
        ("takes_labels", COUNT),
        ("max_batch", COUNT),
        ("params", ADDRESS),
        ("n_params", COUNT),
        ("moments", ADDRESS),
        ("n_moment_bytes", COUNT),
        # BORDER of the programs
        ("step", ADDRESS),
        ("step_from", ADDRESS),  # from the derivative of the loss with respect to the outputs
        ("gradient", ADDRESS),
        ("grads", ADDRESS),  # what the last one writes
        ("positions", ADDRESS),  # POSITIONS
        # How fits deal the samples out
        ("batch_size", COUNT),  # 0 for all
        ("drop_last", COUNT),
        ("shuffle", COUNT),
        ("seed", COUNT),
        # Learning rates: `rate` for all steps, or `n_rates` in a table from `first_step` on
        ("rate", VALUE),
        ("rates", ADDRESS),
        ("n_rates", COUNT),
        ("first_step", COUNT),
        ("loss", VALUE),  # mean over the last batch, before its step
        # Leaves
        ("embedded_train_step", ADDRESS),
        ("embedded_backward_step", ADDRESS),
        ("embedded_loss_and_grad", ADDRESS),
        ("embedded_train", ADDRESS),
        ("embedded_reset", ADDRESS),
        ("embedded_set_learning_rate", ADDRESS),
    ],
    align=True,
)

array_at, handle_at = record_at(ARRAY), record_at(HANDLE)
learner_at, positions_at = record_at(LEARNER), record_at(POSITIONS)

_ARRAY_BYTES = ARRAY.itemsize


@inline
def array_of(arrays, index):
    """The record of an array."""
    return array_at(arrays + index * _ARRAY_BYTES)
