"""One sample through a network, with everything on the way on the stack: any number of threads may use one plan.

The products are those of `dense` for a sample alone. A plan fits if its layers' outputs, each rounded up to whole
panels, are `STACK` elements at most (`plan.fits_stack`): 4096 hidden units in some dozens of layers do.
"""

from llvmlite import ir
from numba.extending import intrinsic

from fastbp._jit import inline
from fastbp.kernels.calls import call
from fastbp.kernels.gather import FLOAT32, read_float32, read_float64
from fastbp.kernels.products.dense import dense_of_one, multiply_row_at
from fastbp.kernels.scaling import rescale_sample
from fastbp.kernels.simd import address_of, flush, lanes_of, load_upto, pointer_at, store_upto
from fastbp.kernels.sums import LONG
from fastbp.kernels.tables import layer_of

STACK = 5120  # elements
_LINE = 64  # bytes: a vector that crosses cache lines is forwarded slowly to the loads that follow


@intrinsic
def on_stack(typingctx, like):
    """Room for `STACK` elements on the stack, as a pointer such as `like`."""

    def codegen(context, builder, sig, args):
        kind = ir.ArrayType(context.get_value_type(like.dtype), STACK)
        with builder.goto_entry_block():
            place = builder.alloca(kind)
            place.align = _LINE
        return builder.bitcast(place, context.get_value_type(like))

    return like(like), codegen


@inline
def cast_sample(x, step, dtype, n, out):
    """out[j] = the j-th of n numbers `step` bytes apart, float32's or float64's; of any alignment."""
    if dtype == FLOAT32:
        for j in range(n):
            out[j] = read_float32(x + j * step)
    else:
        for j in range(n):
            out[j] = read_float64(x + j * step)


@inline
def _product(plan, product, x, y, like, partial):
    """`dense_of_one` forward, or of tangents, and of a sum of usual length without a call: which counts here."""
    if product.n_terms > LONG:
        dense_of_one(plan, product, x, y, partial)
    else:
        multiply_row_at(pointer_at(x, like), pointer_at(product.a, like), pointer_at(product.init, like),
                        product.init_row, pointer_at(y, like), product.n_terms, product.n_rows)  # fmt: skip


@inline
def forward_sample(plan, x, h_stack, z, partial):
    """Run the sample at x through all layers, whose outputs and, unless z is 0, pre-activations go to the stack.

    x, z, partial : addresses. Returns that of the last layer's outputs, of which tiny ones are not zero yet.
    """
    size, h_in, h = plan.sizes.itemsize, x, address_of(h_stack)
    for index in range(plan.n_layers):
        layer = layer_of(plan, index)
        n_out, h_out = layer.n_out, h + layer.stack_start * size
        _product(plan, layer.forward, h_in, h_out, h_stack, partial)
        if z != 0 and layer.z != layer.h_out:
            call(plan.leaves.copy, (h_out, z + layer.stack_start * size, n_out))
        if layer.is_identity == 0 or index < plan.n_layers - 1:  # a call less: 5 % of a small network
            call(layer.activation, (h_out, n_out, 1, layer.constants))
        h_in = h_out
    return h_in


@inline
def _differentiate(plan, layer, d, h, z):
    """d = J.T @ d of a layer's activation, which is J @ d as well."""
    at = layer.stack_start * plan.sizes.itemsize
    kept = z if layer.z != layer.h_out else h
    call(layer.derivative, (d, kept + at, h + at, layer.n_out, 1, layer.constants))


@inline
def copy_sample(source, out, n):
    """out = source, n elements, what is tiny as zero."""
    for j in range(0, n, lanes_of(out)):
        store_upto(out, j, flush(load_upto(source, j, n - j)), n - j)


@inline
def predict_sample(plan, x, out):
    """Write the outputs of the sample at x to `out`."""
    h, partial = on_stack(out), on_stack(out)
    outputs, n_out = forward_sample(plan, x, h, 0, address_of(partial)), layer_of(plan, plan.n_layers - 1).n_out
    copy_sample(pointer_at(outputs, out), out, n_out)
    if plan.scaling.output_factors != 0:
        rescale_sample(out, n_out, plan.scaling.output_factors, plan.scaling.output_shifts)


@inline
def vjp_sample(plan, x, d_out, d_x):
    """Write J.T @ d_out of the sample at x to `d_x`. d_out : on the stack, overwritten."""
    h, z, partial, d_other = on_stack(d_x), on_stack(d_x), on_stack(d_x), address_of(on_stack(d_x))
    forward_sample(plan, x, h, address_of(z), address_of(partial))
    d, n_in = address_of(d_out), layer_of(plan, 0).n_in
    if plan.scaling.output_factors != 0:
        n_out = layer_of(plan, plan.n_layers - 1).n_out
        rescale_sample(d_out, n_out, plan.scaling.output_factors, plan.scaling.zeros)
    for index in range(plan.n_layers - 1, -1, -1):
        layer = layer_of(plan, index)
        _differentiate(plan, layer, d, address_of(h), address_of(z))
        into = d_other if index > 0 else address_of(d_x)
        dense_of_one(plan, layer.backward, d, into, address_of(partial))
        d, d_other = into, d
    if plan.scaling.x_factors != 0:
        rescale_sample(d_x, n_in, plan.scaling.x_factors, plan.scaling.zeros)
    copy_sample(d_x, d_x, n_in)


@inline
def jvp_sample(plan, x, t_x, t_out):
    """Write J @ t_x of the sample at x to `t_out`. t_x : the address of contiguous elements, already standardized."""
    h, z, partial = on_stack(t_out), on_stack(t_out), on_stack(t_out)
    forward_sample(plan, x, h, address_of(z), address_of(partial))
    t, into, other = t_x, address_of(on_stack(t_out)), address_of(on_stack(t_out))
    for index in range(plan.n_layers):
        layer = layer_of(plan, index)
        _product(plan, layer.tangent, t, into, t_out, address_of(partial))
        _differentiate(plan, layer, into, address_of(h), address_of(z))
        t, into, other = into, other, into
    n_out, t = layer_of(plan, plan.n_layers - 1).n_out, pointer_at(t, t_out)
    if plan.scaling.output_factors != 0:
        rescale_sample(t, n_out, plan.scaling.output_factors, plan.scaling.zeros)
    copy_sample(t, t_out, n_out)
