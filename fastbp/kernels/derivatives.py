"""Derivatives of the outputs with respect to the inputs: J.T @ d_out (vjp) and J @ t_x (jvp) of each sample.

They go through the output activation, and are with respect to the outputs behind it. A single sample's vjp sums over
lanes (`dense`), so that its bits may differ from those of the same sample among others.
"""

from numba import types

from fastbp._jit import inline, leaf
from fastbp.kernels.calls import call
from fastbp.kernels.products.dense import dense
from fastbp.kernels.tables import layer_of, plan_at, source_at
from fastbp.kernels.training import forward_range
from fastbp.kernels.transpose import to_rows


@inline
def _gather_second(plan, source, n, n_features, panels):
    """Gather what stands in the source as y, of the rows in the plan's `rows`."""
    call(plan.leaves.gather, (source.y, source.y_row, source.y_column, source.y_dtype, plan.scratch.rows, n, n_features,
                              panels, plan.scratch.row_addresses, plan.scratch.cast))  # fmt: skip


@leaf(lambda T: types.void(*(types.intp,) * 5))
def vjp_range(plan, source, first, last, out):
    """Write J.T @ d_out of samples first..last-1, d_out being the source's y, to the rows of a matrix at `out`.

    plan, source : addresses of the tables. out : C-contiguous. No checks: the caller validates.
    """
    plan, source = plan_at(plan), source_at(source)
    size, n_in, n_out = plan.sizes.itemsize, layer_of(plan, 0).n_in, layer_of(plan, plan.n_layers - 1).n_out
    for start in range(first, last, plan.sizes.block):
        n = forward_range(plan, source, start, last)
        d, d_other = plan.scratch.d, plan.scratch.d_other
        _gather_second(plan, source, n, n_out, d)
        if plan.scaling.output_factors != 0:
            call(plan.leaves.rescale, (d, n_out, n, plan.scaling.output_factors, plan.scaling.zeros))
        for index in range(plan.n_layers - 1, -1, -1):
            layer = layer_of(plan, index)
            call(layer.derivative, (d, layer.z, layer.h_out, layer.n_out, n, layer.constants))
            dense(plan, layer.backward, d, d_other, n, source.n_samples == 1)
            d, d_other = d_other, d
        if plan.scaling.x_factors != 0:
            call(plan.leaves.rescale, (d, n_in, n, plan.scaling.x_factors, plan.scaling.zeros))
        call(plan.leaves.copy, (d, d_other, n * n_in))  # what is tiny as zero
        to_rows(plan, d_other, n_in, n, out + start * n_in * size, n_in)


@leaf(lambda T: types.void(*(types.intp,) * 5))
def jvp_range(plan, source, first, last, out):
    """Write J @ t_x of samples first..last-1, t_x being the source's y, to the rows of a matrix at `out`.

    plan, source : addresses of the tables. out : C-contiguous. No checks: the caller validates.
    """
    plan, source = plan_at(plan), source_at(source)
    size, n_in, n_out = plan.sizes.itemsize, layer_of(plan, 0).n_in, layer_of(plan, plan.n_layers - 1).n_out
    for start in range(first, last, plan.sizes.block):
        n = forward_range(plan, source, start, last)
        t, t_other = plan.scratch.d, plan.scratch.d_other
        _gather_second(plan, source, n, n_in, t)
        if plan.scaling.x_factors != 0:
            call(plan.leaves.rescale, (t, n_in, n, plan.scaling.x_factors, plan.scaling.zeros))
        for index in range(plan.n_layers):
            layer = layer_of(plan, index)
            dense(plan, layer.tangent, t, t_other, n, n == 1)
            call(layer.derivative, (t_other, layer.z, layer.h_out, layer.n_out, n, layer.constants))
            t, t_other = t_other, t
        if plan.scaling.output_factors != 0:
            call(plan.leaves.rescale, (t, n_out, n, plan.scaling.output_factors, plan.scaling.zeros))
        to_rows(plan, t, n_out, n, out + start * n_out * size, n_out)
