"""One step's two kinds of task: a block of samples, and a tile of parameters.

Everything here works on addresses, so one compilation serves every dtype and architecture: widths, leaves and buffers
are data, which lie in the records of `tables`.
"""

from numba import types

from fastbp._jit import inline, leaf
from fastbp.kernels.calls import call, float64_at, int64_at
from fastbp.kernels.gather import FLOAT32, FLOAT64
from fastbp.kernels.simd import address_of
from fastbp.kernels.sums import LONG, PART, part_of
from fastbp.kernels.tables import LOSS_SUMS_BYTES, layer_at, layer_of, optimizer_at, plan_at, source_at, tile_of
from fastbp.kernels.tile import TILE_ROWS


@inline
def _even(n, most):
    """The size of the blocks into which n is cut, as equal as can be, none larger than `most`."""
    return (n - 1) // ((n - 1) // most + 1) + 1


@inline
def _place_of_part(k, n_terms, c, partial):
    """Where the part of a sum of n_terms goes that term k belongs to: the first one into c."""
    return c if k < part_of(n_terms) else partial


@inline
def _start_of_part(plan, k, n_terms, init, place):
    """What a part goes on from at term k: `init` at the sum's beginning, zeros, or what is in its place.

    Each is an address and what else a product is told of it, 0 and 0 of zeros.
    """
    if k == 0:
        return init
    return (plan.zeros, 0, 0) if k == part_of(n_terms) else place


@inline
def _end_part(plan, k, n_terms, c, partial, n):
    """Add n partial sums to their totals in c where a part, but the first one, ends before term k."""
    part = part_of(n_terms)
    if k > part and (k % part == 0 or k == n_terms):
        call(plan.leaves.add_parts, (c, partial, n, 1, n))


@inline
def _multiply(plan, n_m, width, a, a_tile, a_row, a_k, b, b_k, c, partial, init, k, n_k, n_terms):
    """Terms k..k+n_k-1, where a and b begin, of c = init + a @ b; the others of n_terms come before and after.

    c, partial : n_m rows of `width`, at most a panel. init : address, init_row and init_is_column.
    """
    place = _place_of_part(k, n_terms, c, partial)
    start, start_row, is_column = _start_of_part(plan, k, n_terms, init, (place, width, 0))
    call(
        plan.leaves.multiply,
        (n_m, width, a, a_tile, a_row, a_k, 0, 0, b, b_k, place, width, start, start_row, is_column, n_k, 1),
    )
    _end_part(plan, k + n_k, n_terms, c, partial, n_m * width)


@inline
def _multiply_all(plan, n_m, width, a, a_row, a_k, b, b_k, c, init, n_terms):
    """All terms of c = init + a @ b, as in `_multiply`, part by part."""
    size, a_tile = plan.sizes.itemsize, TILE_ROWS * a_row
    if n_terms <= LONG:  # straight away: 1 % of a step of small layers
        call(plan.leaves.multiply, (n_m, width, a, a_tile, a_row, a_k, 0, 0, b, b_k, c, width, *init, n_terms, 1))
        return
    for k in range(0, n_terms, PART):
        _multiply(
            plan,
            n_m,
            width,
            a + k * a_k * size,
            a_tile,
            a_row,
            a_k,
            b + k * b_k * size,
            b_k,
            c,
            plan.scratch.partial,
            init,
            k,
            min(PART, n_terms - k),
            n_terms,
        )


@leaf(lambda T: types.void(types.intp, types.intp, types.intp, types.intp, types.intp, types.intp))
def dense_packed(plan, layer, x, y, n, is_backward):
    """As `_dense_forward` (h, z) or `_dense_backward` (dz, dh) for large layers, on packed cache blocks of w.

    Each block is packed once for all panels of the samples: columns tile by tile, as the register tile would otherwise
    read a part of a cache line for each term, and rows one behind the other.
    """
    plan, layer = plan_at(plan), layer_at(layer)
    size, panel, packed = plan.sizes.itemsize, plan.sizes.panel, plan.scratch.packed
    n_in, n_out, w = layer.n_in, layer.n_out, layer.w
    n_terms, n_rows = (n_out, n_in) if is_backward else (n_in, n_out)
    k_block = _even(part_of(n_terms), plan.sizes.k_block)  # a part is a whole number of them
    if is_backward:
        a_row, a_k = plan.sizes.packed_row, 1
        a_tile = TILE_ROWS * a_row
    else:
        a_row, a_k = 1, TILE_ROWS
        # With room for the vector that the last row's pieces reach into.
        a_tile = -(-k_block * TILE_ROWS // panel) * panel + panel
    for m in range(0, n_rows, plan.sizes.m_block):
        n_m = min(plan.sizes.m_block, n_rows - m)
        for k in range(0, n_terms, k_block):
            n_k = min(k_block, n_terms - k)
            if is_backward:
                call(plan.leaves.pack_rows, (w + (m * n_out + k) * size, n_out, n_m, n_k, packed, a_row))
                init = plan.zeros, 0, 0
            else:
                call(plan.leaves.pack_columns, (w + (k * n_out + m) * size, n_out, n_k, n_m, packed, a_tile))
                init = w + (n_in * n_out + m) * size, 1, 1  # the biases
            for start in range(0, n, panel):
                width = min(panel, n - start)
                _multiply(
                    plan,
                    n_m,
                    width,
                    packed,
                    a_tile,
                    a_row,
                    a_k,
                    x + (start * n_terms + k * width) * size,
                    width,
                    y + (start * n_rows + m * width) * size,
                    plan.scratch.partial + start * n_m * size,
                    init,
                    k,
                    n_k,
                    n_terms,
                )


@leaf(lambda T: types.void(types.intp, types.intp, types.intp, types.intp, types.intp, types.intp))
def dense_of_lists(plan, layer, x, y, n, is_backward):
    """As `dense_packed`, for an x (h or dz) that is mostly zero: as a list of what is not zero for each sample.

    The lanes run over the rows of y; rows that fill no panel go the usual way, and so does all of an x that turns out
    not to be mostly zero. The results are the same on each way, in every bit but the sign of a zero.
    """
    plan, layer = plan_at(plan), layer_at(layer)
    size, panel, chunk, strip = plan.sizes.itemsize, plan.sizes.panel, plan.sizes.chunk, plan.sizes.strip
    n_in, n_out, w = layer.n_in, layer.n_out, layer.w
    n_terms, n_rows = (n_out, n_in) if is_backward else (n_in, n_out)
    if _is_full(_list_samples(plan, x, n_terms, n), n_terms * n):
        call(plan.leaves.dense_packed, (address_of(plan), address_of(layer), x, y, n, is_backward))
        return
    c, columns, n_whole = plan.scratch.turned, plan.scratch.columns, n_rows - n_rows % panel
    bias = w + n_in * n_out * size
    for first in range(0, n_whole, strip):
        n_columns = min(strip, n_whole - first)
        if is_backward:
            call(
                plan.leaves.gather,
                (
                    w + first * n_out * size,
                    n_out * size,
                    size,
                    FLOAT32 if size == 4 else FLOAT64,
                    plan.count,
                    n_columns,
                    n_terms,
                    columns,
                    plan.scratch.row_addresses,
                    plan.scratch.cast,
                ),
            )
            init = plan.zeros, 0, 0
        else:
            for j in range(0, n_columns, panel):
                here, start = columns + j * n_terms * size, plan.scratch.list_sums + j * size
                call(plan.leaves.pack_rows, (w + (first + j) * size, n_out, n_terms, panel, here, panel))
                # The biases, plus zero times every weight: one that is not finite must not be skipped unnoticed.
                call(
                    plan.leaves.multiply,
                    (
                        1,
                        panel,
                        plan.zeros,
                        0,
                        0,
                        0,
                        0,
                        0,
                        here,
                        panel,
                        start,
                        panel,
                        bias + (first + j) * size,
                        0,
                        0,
                        n_terms,
                        1,
                    ),
                )
            init = plan.scratch.list_sums, 0, panel
        for k in range(0, n_terms, chunk):
            values, places, starts = _lists_of_terms(plan, k // chunk, n)
            place = _place_of_part(k, n_terms, c, plan.scratch.partial)
            start, start_row, start_group = _start_of_part(plan, k, n_terms, init, (place, panel, panel * n))
            call(
                plan.leaves.multiply_nonzeros,
                (
                    values,
                    places,
                    starts,
                    n,
                    columns + k * panel * size,
                    panel * n_terms,
                    place,
                    panel * n,
                    start,
                    start_row,
                    start_group,
                    n_columns,
                ),
            )
            _end_part(plan, min(k + chunk, n_terms), n_terms, c, plan.scratch.partial, n * n_columns)
        # As panels of n features and n_columns samples, the strip is turned into rows of y.
        call(plan.leaves.scatter, (c, n, n_columns, y, first, panel * n_rows, panel, n % panel))
    if n_whole < n_rows:
        a, a_row, a_k = (w + n_whole * n_out * size, n_out, 1) if is_backward else (w + n_whole * size, 1, n_out)
        init = (plan.zeros, 0, 0) if is_backward else (bias + n_whole * size, 1, 1)
        for start in range(0, n, panel):
            width = min(panel, n - start)
            _multiply_all(
                plan,
                n_rows - n_whole,
                width,
                a,
                a_row,
                a_k,
                x + start * n_terms * size,
                width,
                y + (start * n_rows + n_whole * width) * size,
                init,
                n_terms,
            )


@inline
def _is_full(n_nonzero, n):
    """Whether the dense product is faster than one with lists of what is not zero of n elements."""
    return 4 * n_nonzero > 3 * n


@inline
def _lists_of_terms(plan, index, n):
    """The addresses of a chunk's lists for n samples: values, places and starts."""
    first = index * (n * plan.sizes.chunk + plan.sizes.panel)  # with room behind each chunk's, as in `_lists_of_chunk`
    return (
        plan.scratch.list_values + first * plan.sizes.itemsize,
        plan.scratch.list_places + first * 2,
        plan.scratch.list_starts + index * (n + 1) * 8,
    )


@inline
def _list_samples(plan, x, n_terms, n):
    """List what is not zero of n samples in panels, for each sample; returns how many that are."""
    size, panel, chunk, rows, n_nonzero = (
        plan.sizes.itemsize,
        plan.sizes.panel,
        plan.sizes.chunk,
        plan.scratch.list_rows,
        0,
    )
    # Turned into n features and n_terms samples, they are what `list_nonzeros` expects.
    call(plan.leaves.scatter, (x, n_terms, n, rows, 0, panel * n, panel, n_terms % panel))
    for k in range(0, n_terms, chunk):
        values, places, starts = _lists_of_terms(plan, k // chunk, n)
        call(
            plan.leaves.list_nonzeros,
            (rows + k * n * size, n, min(chunk, n_terms - k), values, places, starts, plan.scratch.list_sums),
        )
        n_nonzero += int64_at(starts)[n]
    return n_nonzero


@inline
def _is_large(plan, layer, n, product):
    """Whether a layer is large enough for copies of w, and its product with n samples for making them."""
    n_weights = layer.n_in * layer.n_out
    return n_weights > plan.sizes.pack_above and n_weights * n > product and 2 * n > plan.sizes.panel


@inline
def _dense_forward(plan, layer, h, z, n):
    """z = b + w.T @ h for n samples in panels; each output is its bias plus FMAs in the order of k, part by part."""
    size, panel = plan.sizes.itemsize, plan.sizes.panel
    n_in, n_out, w = layer.n_in, layer.n_out, layer.w
    b = w + n_in * n_out * size
    if n == 1:
        _dense_forward_of_one(plan, layer, h, z)
    elif n <= plan.sizes.few and panel <= n_out <= plan.sizes.k_block * plan.sizes.m_block // n:
        _dense_forward_of_few(plan, layer, h, z, n)
    elif layer.lists_h != 0 and _is_large(plan, layer, n, plan.sizes.list_product):
        call(plan.leaves.dense_of_lists, (address_of(plan), address_of(layer), h, z, n, 0))
    elif _is_large(plan, layer, n, plan.sizes.pack_product):
        call(plan.leaves.dense_packed, (address_of(plan), address_of(layer), h, z, n, 0))
    else:
        for start in range(0, n, panel):
            width = min(panel, n - start)
            _multiply_all(
                plan,
                n_out,
                width,
                w,
                1,
                n_out,
                h + start * n_in * size,
                width,
                z + start * n_out * size,
                (b, 1, 1),
                n_in,
            )


@inline
def _dense_forward_of_one(plan, layer, h, z):
    """As `_dense_forward` for one sample: the lanes run over the outputs."""
    size, n_in, n_out, w = plan.sizes.itemsize, layer.n_in, layer.n_out, layer.w
    bias, part = w + n_in * n_out * size, part_of(n_in)
    for k in range(0, n_in, part):
        n_k, place = min(part, n_in - k), _place_of_part(k, n_in, z, plan.scratch.partial)
        start, step, _ = _start_of_part(plan, k, n_in, (bias, 1, 0), (place, 1, 0))
        call(plan.leaves.multiply_row, (h + k * size, w + k * n_out * size, start, step, place, n_k, n_out))
        _end_part(plan, k + n_k, n_in, z, plan.scratch.partial, n_out)


@inline
def _dense_forward_of_few(plan, layer, h, z, n):
    """As `_dense_forward` for a few samples, which would leave most lanes empty: the lanes run over the outputs."""
    size, panel, rows = plan.sizes.itemsize, plan.sizes.panel, plan.scratch.packed
    n_in, n_out, w = layer.n_in, layer.n_out, layer.w
    b = w + n_in * n_out * size
    for j in range(0, n_out, panel):
        group = min(panel, n_out - j)
        _multiply_all(plan, n, group, h, 1, n, w + j * size, n_out, rows + j * n * size, (b + j * size, 0, 0), n_in)
    # As panels of n features and n_out samples, these rows are turned into n_out features and n samples.
    call(plan.leaves.scatter, (rows, n, n_out, z, 0, 0, n, n))


@inline
def _dense_backward(plan, layer, dz, dh, n, is_alone):
    """dh = w @ dz for n samples in panels.

    Each sum over the outputs goes in their order, part by part, or over the lanes first for a sample that `is_alone`:
    that must not depend on how a step is cut into blocks.
    """
    size, panel, n_in, n_out, w = plan.sizes.itemsize, plan.sizes.panel, layer.n_in, layer.n_out, layer.w
    if is_alone:
        call(plan.leaves.multiply_column, (w, dz, dh, n_in, n_out))
    elif layer.lists_dz != 0 and _is_large(plan, layer, n, plan.sizes.list_product):
        call(plan.leaves.dense_of_lists, (address_of(plan), address_of(layer), dz, dh, n, 1))
    elif _is_large(plan, layer, n, plan.sizes.pack_product):
        call(plan.leaves.dense_packed, (address_of(plan), address_of(layer), dz, dh, n, 1))
    else:
        for start in range(0, n, panel):
            width = min(panel, n - start)
            _multiply_all(
                plan,
                n_in,
                width,
                w,
                n_out,
                1,
                dz + start * n_out * size,
                width,
                dh + start * n_in * size,
                (plan.zeros, 0, 0),
                n_out,
            )


@leaf(lambda T: types.void(types.intp, types.intp, types.intp, types.intp))
def forward_block(plan, source, start, n):
    """Gather the rows in the plan's `rows` and run them through all layers: samples start..start+n-1 of the buffers."""
    plan, source = plan_at(plan), source_at(source)
    size, first = plan.sizes.itemsize, layer_of(plan, 0)
    call(
        plan.leaves.gather,
        (
            source.x,
            source.x_row,
            source.x_column,
            source.x_dtype,
            plan.scratch.rows,
            n,
            first.n_in,
            first.h_in + start * first.n_in * size,
            plan.scratch.row_addresses,
            plan.scratch.cast,
        ),
    )
    for index in range(plan.n_layers):
        layer = layer_of(plan, index)
        n_in, n_out = layer.n_in, layer.n_out
        z, h_out = layer.z + start * n_out * size, layer.h_out + start * n_out * size
        _dense_forward(plan, layer, layer.h_in + start * n_in * size, h_out, n)
        if z != h_out:
            call(plan.leaves.copy, (h_out, z, n * n_out))
        if layer.forward != 0:
            call(layer.forward, (h_out, n_out, n))


@leaf(lambda T: types.intp(types.intp, types.intp, types.intp, types.intp, types.float64, types.intp))
def loss_block(plan, source, start, n, scale, sums):
    """Compare the outputs with the targets: loss and hits into `sums`, the scaled loss derivative into the plan's `d`.

    `sums` : address of a row of LOSS_SUMS for each `loss_unit` of samples, so that no total depends on the size of a
    block. Returns how many labels were out of range.
    """
    plan, source = plan_at(plan), source_at(source)
    last, rows, targets, n_outside = layer_of(plan, plan.n_layers - 1), plan.scratch.rows, plan.scratch.targets, 0
    n_out = last.n_out
    if source.y_is_label != 0:
        n_outside = call(plan.leaves.labels, (source.y, source.y_row, source.y_dtype, rows, n, n_out, targets))
    else:
        call(
            plan.leaves.gather,
            (
                source.y,
                source.y_row,
                source.y_column,
                source.y_dtype,
                rows,
                n,
                n_out,
                targets,
                plan.scratch.row_addresses,
                plan.scratch.cast,
            ),
        )
    output, unit = last.h_out + start * n_out * plan.sizes.itemsize, plan.sizes.loss_unit
    for s in range(0, n, unit):
        here = s * n_out * plan.sizes.itemsize
        call(
            plan.leaves.loss,
            (
                output + here,
                targets + here,
                plan.scratch.d + here,
                n_out,
                min(unit, n - s),
                scale,
                sums + s // unit * LOSS_SUMS_BYTES,
            ),
        )
    return n_outside


@inline
def _regroup(plan, layer, d, start, n):
    """From the derivative of a layer's outputs to that of its z, in place and as the gradient wants it.

    A panel at a time, which is still in the nearest cache when it is regrouped. d : of samples start..start+n-1.
    """
    size, panel, super_block, n_out = plan.sizes.itemsize, plan.sizes.panel, plan.sizes.super_block, layer.n_out
    for s in range(start, start + n, panel):
        width, here = min(panel, start + n - s), s * n_out * size
        own = d + (s - start) * n_out * size
        if layer.backward != 0:
            call(layer.backward, (own, layer.z + here, layer.h_out + here, width * n_out))
        if layer.h_rows != 0:
            continue
        if n_out <= plan.sizes.narrow:
            call(plan.leaves.split, (own, n_out, width, layer.dz + s * size, super_block))
        else:  # rows of the last, narrower group are as long as the group is wide
            call(plan.leaves.scatter, (own, n_out, width, layer.dz, s, panel * super_block, panel, n_out % panel))
    if layer.h_rows != 0:
        _list_derivative(plan, layer, d, start, n)


@inline
def _lists_of_chunk(plan, layer, index):
    """The addresses of a chunk's lists: values, places, starts and sums."""
    size, n_out = plan.sizes.itemsize, layer.n_out
    first = index * (
        n_out * plan.sizes.chunk + plan.sizes.panel
    )  # with room behind each chunk's, which are written in vectors
    return (
        layer.dz + first * size,
        layer.places + first * 2,
        layer.starts + index * (n_out + 1) * 8,
        layer.sums + index * n_out * size,
    )


@inline
def _list_derivative(plan, layer, d, start, n):
    """List what is not zero of dz, and regroup h_in, as `_gradient_of_lists` wants both. As `_regroup`.

    A chunk that is not mostly zero is kept as rows of samples instead; its first start is then negative.
    """
    size, panel, chunk, n_in, n_out = plan.sizes.itemsize, plan.sizes.panel, plan.sizes.chunk, layer.n_in, layer.n_out
    for s in range(start, start + n, chunk):
        here, n_s = d + (s - start) * n_out * size, min(chunk, start + n - s)
        values, places, starts, sums = _lists_of_chunk(plan, layer, s // chunk)
        call(plan.leaves.list_nonzeros, (here, n_out, n_s, values, places, starts, sums))
        if _is_full(int64_at(starts)[n_out], n_out * n_s):
            call(plan.leaves.split, (here, n_out, n_s, values, chunk))
            int64_at(starts)[0] = -1
    call(
        plan.leaves.scatter,
        (layer.h_in + start * n_in * size, n_in, n, layer.h_rows, start, panel * plan.sizes.super_block, panel, panel),
    )


@leaf(lambda T: types.void(types.intp, types.intp, types.intp))
def backward_block(plan, start, n):
    """From the loss derivative in the plan's `d` to every layer's dz, regrouped for the gradient."""
    plan = plan_at(plan)
    d, d_other = plan.scratch.d, plan.scratch.d_other
    for index in range(plan.n_layers - 1, -1, -1):
        layer = layer_of(plan, index)
        _regroup(plan, layer, d, start, n)
        if index > 0:
            _dense_backward(plan, layer, d, d_other, n, start == 0 and n == 1)
            d, d_other = d_other, d


@inline
def _gradient(plan, layer, first_row, n_rows, first_column, n_columns, start, n, g, g_row, accumulate):
    """g = a rectangle of dw = h_in @ dz.T over n samples from `start` on, or added to what is there.

    Rows of g are `g_row` apart. Row n_in of dw is db.
    """
    size, panel, super_block = plan.sizes.itemsize, plan.sizes.panel, plan.sizes.super_block
    n_in, n_out, h, dz = layer.n_in, layer.n_out, layer.h_in, layer.dz
    if n_out <= plan.sizes.narrow:
        for j in range(n_out):
            call(
                plan.leaves.narrow_gradient,
                (
                    h + start * n_in * size,
                    n_in,
                    first_row,
                    n_rows,
                    dz + (j * super_block + start) * size,
                    n,
                    g + j * size,
                    g_row,
                    accumulate,
                ),
            )
        return
    ones = plan.ones if first_row + n_rows > n_in else 0
    s, stop = start, start + n
    while s < stop:
        # As many whole panels as a cache block has, or the narrow one at the end.
        n_panels = min((stop - s) // panel, plan.sizes.s_block // panel)
        n_s, width, n_outer = (n_panels * panel, panel, n_panels) if n_panels > 0 else (stop - s, stop - s, 1)
        for j in range(first_column, first_column + n_columns, panel):
            group = min(panel, n_out - j)
            out = g + (j - first_column) * size
            init, init_row = (out, g_row) if accumulate != 0 or s > start else (plan.zeros, 0)
            call(
                plan.leaves.multiply,
                (
                    n_rows,
                    group,
                    h + (s * n_in + first_row * width) * size,
                    TILE_ROWS * width,
                    width,
                    1,
                    panel * n_in,
                    ones,
                    dz + (j * super_block + s * group) * size,
                    group,
                    out,
                    g_row,
                    init,
                    init_row,
                    0,
                    width,
                    n_outer,
                ),
            )
        s += n_s


@inline
def _sum_of_rows(plan, rows, row, n_rows, out, n, accumulate):
    """out = the sum of some rows of n elements, `row` apart, or added to what is there if `accumulate`."""
    size, panel = plan.sizes.itemsize, plan.sizes.panel
    for j in range(0, n, panel):
        here = out + j * size
        call(
            plan.leaves.multiply,
            (
                1,
                min(panel, n - j),
                plan.ones,
                0,
                0,
                0,
                0,
                0,
                rows + j * size,
                row,
                here,
                0,
                here if accumulate != 0 else plan.zeros,
                0,
                0,
                n_rows,
                1,
            ),
        )


@inline
def _gradient_of_lists(plan, layer, first_row, n_rows, first_column, n_columns, start, n, g, g_row, accumulate):
    """As `_gradient`, of a layer that lists what is not zero of its dz; `start` is the first sample of a chunk.

    The rectangle is a strip of rows, which may have the biases below it; it comes out turned. Unlike there, these
    samples have a sum of their own, which is added to what is there.
    """
    size, panel, super_block, chunk = plan.sizes.itemsize, plan.sizes.panel, plan.sizes.super_block, plan.sizes.chunk
    n_out, n_inputs, turned = layer.n_out, min(n_rows, layer.n_in - first_row), plan.scratch.turned
    for s in range(start, start + n, chunk):
        values, places, starts, _ = _lists_of_chunk(plan, layer, s // chunk)
        h = layer.h_rows + (first_row * super_block + s * panel) * size
        init, init_row, init_group = (plan.zeros, 0, 0) if s == start else (turned, panel, panel * n_columns)
        if int64_at(starts)[0] < 0:
            for i in range(0, n_inputs, panel):
                call(
                    plan.leaves.multiply,
                    (
                        n_columns,
                        panel,
                        values + first_column * chunk * size,
                        TILE_ROWS * chunk,
                        chunk,
                        1,
                        0,
                        0,
                        h + i * super_block * size,
                        panel,
                        turned + i * n_columns * size,
                        panel,
                        init + i // panel * init_group * size,
                        init_row,
                        0,
                        min(chunk, start + n - s),
                        1,
                    ),
                )
        else:
            call(
                plan.leaves.multiply_nonzeros,
                (
                    values,
                    places,
                    starts + first_column * 8,
                    n_columns,
                    h,
                    panel * super_block,
                    turned,
                    panel * n_columns,
                    init,
                    init_row,
                    init_group,
                    n_inputs,
                ),
            )
    upright = plan.scratch.gradient
    # All rows of a panel: those beyond n_inputs fall behind the strip, where the biases then overwrite the first.
    call(
        plan.leaves.scatter, (turned, n_columns, -(-n_inputs // panel) * panel, upright, 0, panel, n_columns, n_columns)
    )
    if g != upright:
        for i in range(n_inputs):
            _sum_of_rows(
                plan, upright + i * n_columns * size, n_columns, 1, g + i * g_row * size, n_columns, accumulate
            )
    if n_rows > n_inputs:
        _sum_of_rows(
            plan,
            layer.sums + (start // chunk * n_out + first_column) * size,
            n_out,
            (n - 1) // chunk + 1,
            g + n_inputs * g_row * size,
            n_columns,
            accumulate,
        )


@inline
def _update(plan, optimizer, coefficients, start, n_rows, n_columns, row, g, g_row):
    """Update a rectangle of parameters at the address `start`; returns 1 if one is not finite any more."""
    moments = optimizer.state + (start - layer_of(plan, 0).w)
    return call(
        plan.leaves.update,
        (start, g, moments, optimizer.state_row, n_rows, n_columns, row, g_row, optimizer.constants, coefficients),
    )


@inline
def _shrink(plan, optimizer, coefficients, layer, first_row, n_rows, first_column, n_columns):
    """Decay the weights, and if wanted the biases, of a rectangle of a layer."""
    if plan.leaves.shrink != 0:
        n_decayed = min(n_rows, layer.n_in + optimizer.decay_biases - first_row)
        start = layer.w + (first_row * layer.n_out + first_column) * plan.sizes.itemsize
        factor = float64_at(coefficients)[optimizer.n_coefficients - 1]
        call(plan.leaves.shrink, (start, n_decayed, n_columns, layer.n_out, factor))


@leaf(lambda T: types.void(types.intp, types.intp, types.intp, types.intp))
def gradient_block(plan, start, n, super_blocks_done):
    """The gradient of a small network over one block of samples, whose activations are still in this core's caches.

    The first block of a step writes the step's own buffer, any other one its row of `block_gradients`.
    """
    plan = plan_at(plan)
    first, into = layer_of(plan, 0), layer_of(plan, 0).dw
    if start > 0 or super_blocks_done > 0:
        into = plan.block_gradients + start // plan.sizes.block * plan.sizes.gradient_row * plan.sizes.itemsize
    for index in range(plan.n_layers):
        layer = layer_of(plan, index)
        g, n_out = into + layer.dw - first.dw, layer.n_out
        _gradient(plan, layer, 0, layer.n_in + 1, 0, n_out, start, n, g, n_out, 0)


@inline
def _partial_gradient(plan, g):
    """Where the sums lie that are not yet in the gradient at the address g."""
    return plan.partial_gradient + g - layer_of(plan, 0).dw


@leaf(lambda T: types.intp(types.intp, types.intp, types.intp, types.intp, types.intp, types.intp, types.intp))
def parameters_of_layers(plan, optimizer, coefficients, index, n, super_blocks_done, is_last):
    """Sum of the blocks' gradients, and update, of all layers of a small network. As `parameters_of_rows`."""
    plan, optimizer = plan_at(plan), optimizer_at(optimizer)
    size, row, rows = plan.sizes.itemsize, plan.sizes.gradient_row, plan.block_gradients
    first, last = layer_of(plan, 0), layer_of(plan, plan.n_layers - 1)
    g, n_params = first.dw, (last.w - first.w) // size + (last.n_in + 1) * last.n_out
    n_blocks = (n - 1) // plan.sizes.block + 1
    if super_blocks_done > 0:
        partial = _partial_gradient(plan, g)
        call(plan.leaves.add_rows, (rows, row, n_blocks, partial, n_params, super_blocks_done - 1))
        call(plan.leaves.add_parts, (g, partial, n_params, 1, n_params))
    elif n_blocks > 1:
        call(plan.leaves.add_rows, (rows + row * size, row, n_blocks - 1, g, n_params, 1))
    if is_last == 0:
        return 0
    if plan.leaves.update == 0:
        call(plan.leaves.flush_rows, (g, 1, n_params, n_params))
        return 0
    for number in range(plan.n_layers):
        layer = layer_of(plan, number)
        _shrink(plan, optimizer, coefficients, layer, 0, layer.n_in + 1, 0, layer.n_out)
    return _update(plan, optimizer, coefficients, first.w, 1, n_params, n_params, g, n_params)


@inline
def _gradient_of_part(plan, layer, first_row, n_rows, first_column, n_columns, start, n, n_before, g, g_row):
    """Add a rectangle of the gradient over n samples from `start` on to g, that over n_before samples of the batch.

    These are whole parts of a sum. The first one is written to g, the others come by way of the partial gradient.
    """
    into, row = (g, g_row) if n_before == 0 else (_partial_gradient(plan, g), layer.n_out)
    accumulate = 1 if n_before > PART else 0
    if layer.h_rows != 0:
        _gradient_of_lists(plan, layer, first_row, n_rows, first_column, n_columns, start, n, into, row, accumulate)
    else:
        _gradient(plan, layer, first_row, n_rows, first_column, n_columns, start, n, into, row, accumulate)
    if n_before > 0:
        call(plan.leaves.add_parts, (g, into, row, n_rows, n_columns))


@leaf(lambda T: types.intp(types.intp, types.intp, types.intp, types.intp, types.intp, types.intp, types.intp))
def parameters_of_rows(plan, optimizer, coefficients, index, n, super_blocks_done, is_last):
    """Gradient and update of a tile of rows of one layer, a rectangle at a time.

    The gradient over the n samples of a super-block is added to that of those before; the update follows the last one.
    One super-block is one part of a sum, several have the usual ones. A gradient that nobody else reads stays in a
    small buffer, hence in the cache. Returns how many updates left a parameter not finite.
    """
    plan, optimizer = plan_at(plan), optimizer_at(optimizer)
    tile, size, c_block = tile_of(plan, index), plan.sizes.itemsize, plan.sizes.c_block
    layer, first_row, n_rows, n_bad = layer_of(plan, tile.layer), tile.first_row, tile.n_rows, 0
    n_out, n_before = layer.n_out, super_blocks_done * plan.sizes.super_block
    is_only, updates = super_blocks_done == 0 and is_last != 0, is_last != 0 and plan.leaves.update != 0
    part = n if is_only else PART
    for column in range(0, n_out, c_block):
        n_columns = min(c_block, n_out - column)
        here = (first_row * n_out + column) * size
        g, g_row = (plan.scratch.gradient, n_columns) if is_only and updates else (layer.dw + here, n_out)
        for s in range(0, n, part):
            _gradient_of_part(
                plan, layer, first_row, n_rows, column, n_columns, s, min(part, n - s), n_before + s, g, g_row
            )
        if updates:
            _shrink(plan, optimizer, coefficients, layer, first_row, n_rows, column, n_columns)
            n_bad += _update(plan, optimizer, coefficients, layer.w + here, n_rows, n_columns, n_out, g, g_row)
        elif is_last != 0:
            call(plan.leaves.flush_rows, (g, n_rows, n_columns, g_row))
    return n_bad
