"""One step's two kinds of task: a block of samples, and a tile of parameters.

Everything here works on addresses, so one compilation serves every dtype and architecture: widths, leaves and buffers
are data. They lie in tables of int64 whose rows Python fills as the NamedTuples below and the kernels read by the
column names that follow each: a pointer is all that the functions pass on, which keeps them small and quick to compile.
"""

from typing import NamedTuple

from numba import types

from fastbp._jit import inline, leaf
from fastbp.kernels.calls import call, float64_at, int64_at
from fastbp.kernels.gather import FLOAT32, FLOAT64
from fastbp.kernels.simd import address_of
from fastbp.kernels.sums import LONG, PART, part_of
from fastbp.kernels.tile import TILE_ROWS


class Layer(NamedTuple):
    """A row of the table of layers: widths, and addresses.

    w : weights with the biases behind them; dw : their gradient. h_in, h_out : activations of the super-block before
    and after the layer; z : pre-activations (h_out itself where the activation needs no z). forward, backward :
    activation leaves or 0. dz : loss derivative with respect to z, as `scatter_rows` groups it, or of narrow layers as
    `split_features` does; 0 where there is no gradient. lists_h, lists_dz : whether the forward and the backward
    product list what is not zero of h_in and dz.

    For a gradient of lists, else 0: h_rows : h_in as `scatter_rows` groups it, the last group as wide as the others.
    dz, places, starts, sums : what `_list_derivative` keeps of dz, one chunk of samples after the other.
    """

    n_in: int
    n_out: int
    w: int
    dw: int
    h_in: int
    z: int
    h_out: int
    forward: int
    backward: int
    lists_h: int
    lists_dz: int
    dz: int = 0
    h_rows: int = 0
    places: int = 0
    starts: int = 0
    sums: int = 0


(
    N_IN, N_OUT, W, DW, H_IN, Z, H_OUT, FORWARD, BACKWARD, LISTS_H, LISTS_DZ, DZ, H_ROWS, PLACES, STARTS, SUMS,
) = range(len(Layer._fields))  # fmt: skip
_LAYER_SIZE = len(Layer._fields)


class Tile(NamedTuple):
    """A row of the table of tiles: `n_rows` rows of one layer's w, of which row n_in is b."""

    layer: int
    first_row: int
    n_rows: int


LAYER, FIRST_ROW, N_ROWS = range(len(Tile._fields))
_TILE_SIZE = len(Tile._fields)


class Plan(NamedTuple):
    """A network made ready for one worker. Whoever holds it must keep the memory behind the addresses alive.

    n_layers, n_tiles; layers, tiles : addresses of their tables. itemsize : bytes. panel : width of the register tile.
    block : samples of a task; super_block : samples that the buffers hold; loss_unit : samples whose losses are one
    sum. block_gradients : of small networks, the gradients of a super-block's blocks, gradient_row elements apart.
    partial_gradient : where a batch has several super-blocks, sums that are not in the gradient yet, as `partial`.
    k_block, m_block, c_block : cache blocks of a product, in terms of a sum, rows and columns. s_block : terms of a
    gradient, which are samples. chunk, strip : cache blocks of a product with lists, in terms and columns. pack_above,
    list_product, pack_product : weights of a layer and multiply-adds of a product above which w is copied, for lists or
    packed in rows of packed_row elements. narrow : most outputs of a layer whose gradient is summed over lanes of
    samples; few : most samples whose products run with the lanes over outputs.

    Addresses of leaves, 0 for what is not used: multiply to dense_of_lists.

    Addresses of the worker's scratch buffers: d, d_other : derivatives of a block, of the widest layer. targets : of a
    block, as panels. rows : int64 row numbers of a block. row_addresses, cast : of `gather_rows`. packed : a block of
    w. gradient : a rectangle of it. partial : sums over a part of the terms (`sums`) that are not in their totals yet.
    turned : a strip that a product with lists writes, as panels; columns : the strip of w that it reads. list_rows : x
    of `dense_of_lists` by samples; list_values to list_sums : its lists. Shared: count : 0, 1, ... for a strip. zeros,
    ones : a panel wide.
    """

    n_layers: int
    n_tiles: int
    layers: int
    tiles: int
    itemsize: int
    panel: int
    block: int
    super_block: int
    loss_unit: int
    block_gradients: int
    gradient_row: int
    partial_gradient: int
    k_block: int
    m_block: int
    c_block: int
    s_block: int
    chunk: int
    strip: int
    pack_above: int
    list_product: int
    pack_product: int
    packed_row: int
    narrow: int
    few: int
    multiply: int
    pack_rows: int
    pack_columns: int
    multiply_row: int
    multiply_column: int
    narrow_gradient: int
    list_nonzeros: int
    multiply_nonzeros: int
    gather: int
    labels: int
    add_rows: int
    scatter: int
    split: int
    order: int
    copy: int
    add_parts: int
    flush_rows: int
    loss: int
    update: int
    shrink: int
    forward_block: int
    loss_block: int
    backward_block: int
    gradient_block: int
    parameters: int
    dense_packed: int
    dense_of_lists: int
    d: int
    d_other: int
    targets: int
    rows: int
    row_addresses: int
    cast: int
    packed: int
    gradient: int
    partial: int
    turned: int
    columns: int
    list_rows: int
    list_values: int
    list_places: int
    list_starts: int
    list_sums: int
    count: int
    zeros: int
    ones: int


(
    N_LAYERS, N_TILES, LAYERS, TILES, ITEMSIZE, PANEL, BLOCK, SUPER_BLOCK, LOSS_UNIT, BLOCK_GRADIENTS, GRADIENT_ROW,
    PARTIAL_GRADIENT, K_BLOCK, M_BLOCK, C_BLOCK, S_BLOCK, CHUNK, STRIP, PACK_ABOVE, LIST_PRODUCT, PACK_PRODUCT,
    PACKED_ROW, NARROW, FEW, MULTIPLY, PACK_ROWS, PACK_COLUMNS, MULTIPLY_ROW, MULTIPLY_COLUMN, NARROW_GRADIENT,
    LIST_NONZEROS, MULTIPLY_NONZEROS, GATHER, LABELS, ADD_ROWS, SCATTER, SPLIT, ORDER, COPY, ADD_PARTS, FLUSH_ROWS,
    LOSS, UPDATE, SHRINK, FORWARD_BLOCK, LOSS_BLOCK, BACKWARD_BLOCK, GRADIENT_BLOCK, PARAMETERS, DENSE_PACKED,
    DENSE_OF_LISTS, D, D_OTHER, TARGETS, ROWS, ROW_ADDRESSES, CAST, PACKED, GRADIENT, PARTIAL, TURNED, COLUMNS,
    LIST_ROWS, LIST_VALUES, LIST_PLACES, LIST_STARTS, LIST_SUMS, COUNT, ZEROS, ONES,
) = range(len(Plan._fields))  # fmt: skip
PLAN_SIZE = len(Plan._fields)


class Source(NamedTuple):
    """The user's data: address, strides in bytes and dtype code of x and y. y_is_label: an integer class per sample."""

    x: int
    x_row: int
    x_column: int
    x_dtype: int
    y: int
    y_row: int
    y_column: int
    y_dtype: int
    y_is_label: int
    n_samples: int


X, X_ROW, X_COLUMN, X_DTYPE, Y, Y_ROW, Y_COLUMN, Y_DTYPE, Y_IS_LABEL, N_SAMPLES = range(len(Source._fields))


class Optimizer(NamedTuple):
    """What updates need: addresses of the moments (`state_row` elements apart) and of the constants.

    n_coefficients : float64 per step; where weights decay, the last one is their factor. decay_biases : 0 or 1.
    """

    state: int
    state_row: int
    constants: int
    n_coefficients: int
    decay_biases: int


STATE, STATE_ROW, CONSTANTS, N_COEFFICIENTS, DECAY_BIASES = range(len(Optimizer._fields))

_TABLE = types.CPointer(types.int64)


@inline
def layer_of(plan, layer):
    """The row of a layer."""
    return int64_at(plan[LAYERS] + layer * _LAYER_SIZE * 8)


@inline
def tile_of(plan, tile):
    """The row of a tile."""
    return int64_at(plan[TILES] + tile * _TILE_SIZE * 8)


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
    return (plan[ZEROS], 0, 0) if k == part_of(n_terms) else place


@inline
def _end_part(plan, k, n_terms, c, partial, n):
    """Add n partial sums to their totals in c where a part, but the first one, ends before term k."""
    part = part_of(n_terms)
    if k > part and (k % part == 0 or k == n_terms):
        call(plan[ADD_PARTS], (c, partial, n, 1, n))


@inline
def _multiply(plan, n_m, width, a, a_tile, a_row, a_k, b, b_k, c, partial, init, k, n_k, n_terms):
    """Terms k..k+n_k-1, where a and b begin, of c = init + a @ b; the others of n_terms come before and after.

    c, partial : n_m rows of `width`, at most a panel. init : address, init_row and init_is_column.
    """
    place = _place_of_part(k, n_terms, c, partial)
    start, start_row, is_column = _start_of_part(plan, k, n_terms, init, (place, width, 0))
    call(plan[MULTIPLY], (n_m, width, a, a_tile, a_row, a_k, 0, 0, b, b_k, place, width, start, start_row, is_column,
                          n_k, 1))  # fmt: skip
    _end_part(plan, k + n_k, n_terms, c, partial, n_m * width)


@inline
def _multiply_all(plan, n_m, width, a, a_row, a_k, b, b_k, c, init, n_terms):
    """All terms of c = init + a @ b, as in `_multiply`, part by part."""
    size, a_tile = plan[ITEMSIZE], TILE_ROWS * a_row
    if n_terms <= LONG:  # straight away: 1 % of a step of small layers
        call(plan[MULTIPLY], (n_m, width, a, a_tile, a_row, a_k, 0, 0, b, b_k, c, width, *init, n_terms, 1))
        return
    for k in range(0, n_terms, PART):
        _multiply(plan, n_m, width, a + k * a_k * size, a_tile, a_row, a_k, b + k * b_k * size, b_k,
                  c, plan[PARTIAL], init, k, min(PART, n_terms - k), n_terms)  # fmt: skip


@leaf(lambda T: types.void(_TABLE, _TABLE, types.intp, types.intp, types.intp, types.intp))
def dense_packed(plan, layer, x, y, n, is_backward):
    """As `_dense_forward` (h, z) or `_dense_backward` (dz, dh) for large layers, on packed cache blocks of w.

    Each block is packed once for all panels of the samples: columns tile by tile, as the register tile would otherwise
    read a part of a cache line for each term, and rows one behind the other.
    """
    size, panel, packed = plan[ITEMSIZE], plan[PANEL], plan[PACKED]
    n_in, n_out, w = layer[N_IN], layer[N_OUT], layer[W]
    n_terms, n_rows = (n_out, n_in) if is_backward else (n_in, n_out)
    k_block = _even(part_of(n_terms), plan[K_BLOCK])  # a part is a whole number of them
    if is_backward:
        a_row, a_k = plan[PACKED_ROW], 1
        a_tile = TILE_ROWS * a_row
    else:
        a_row, a_k = 1, TILE_ROWS
        # With room for the vector that the last row's pieces reach into.
        a_tile = -(-k_block * TILE_ROWS // panel) * panel + panel
    for m in range(0, n_rows, plan[M_BLOCK]):
        n_m = min(plan[M_BLOCK], n_rows - m)
        for k in range(0, n_terms, k_block):
            n_k = min(k_block, n_terms - k)
            if is_backward:
                call(plan[PACK_ROWS], (w + (m * n_out + k) * size, n_out, n_m, n_k, packed, a_row))
                init = plan[ZEROS], 0, 0
            else:
                call(plan[PACK_COLUMNS], (w + (k * n_out + m) * size, n_out, n_k, n_m, packed, a_tile))
                init = w + (n_in * n_out + m) * size, 1, 1  # the biases
            for start in range(0, n, panel):
                width = min(panel, n - start)
                _multiply(plan, n_m, width, packed, a_tile, a_row, a_k, x + (start * n_terms + k * width) * size, width,
                          y + (start * n_rows + m * width) * size, plan[PARTIAL] + start * n_m * size, init,
                          k, n_k, n_terms)  # fmt: skip


@leaf(lambda T: types.void(_TABLE, _TABLE, types.intp, types.intp, types.intp, types.intp))
def dense_of_lists(plan, layer, x, y, n, is_backward):
    """As `dense_packed`, for an x (h or dz) that is mostly zero: as a list of what is not zero for each sample.

    The lanes run over the rows of y; rows that fill no panel go the usual way, and so does all of an x that turns out
    not to be mostly zero. The results are the same on each way, in every bit but the sign of a zero.
    """
    size, panel, chunk, strip = plan[ITEMSIZE], plan[PANEL], plan[CHUNK], plan[STRIP]
    n_in, n_out, w = layer[N_IN], layer[N_OUT], layer[W]
    n_terms, n_rows = (n_out, n_in) if is_backward else (n_in, n_out)
    if _is_full(_list_samples(plan, x, n_terms, n), n_terms * n):
        call(plan[DENSE_PACKED], (address_of(plan), address_of(layer), x, y, n, is_backward))
        return
    c, columns, n_whole = plan[TURNED], plan[COLUMNS], n_rows - n_rows % panel
    bias = w + n_in * n_out * size
    for first in range(0, n_whole, strip):
        n_columns = min(strip, n_whole - first)
        if is_backward:
            call(plan[GATHER], (w + first * n_out * size, n_out * size, size, FLOAT32 if size == 4 else FLOAT64,
                                plan[COUNT], n_columns, n_terms, columns, plan[ROW_ADDRESSES], plan[CAST]))  # fmt: skip
            init = plan[ZEROS], 0, 0
        else:
            for j in range(0, n_columns, panel):
                here, start = columns + j * n_terms * size, plan[LIST_SUMS] + j * size
                call(plan[PACK_ROWS], (w + (first + j) * size, n_out, n_terms, panel, here, panel))
                # The biases, plus zero times every weight: one that is not finite must not be skipped unnoticed.
                call(plan[MULTIPLY], (1, panel, plan[ZEROS], 0, 0, 0, 0, 0, here, panel, start, panel,
                                      bias + (first + j) * size, 0, 0, n_terms, 1))  # fmt: skip
            init = plan[LIST_SUMS], 0, panel
        for k in range(0, n_terms, chunk):
            values, places, starts = _lists_of_terms(plan, k // chunk, n)
            place = _place_of_part(k, n_terms, c, plan[PARTIAL])
            start, start_row, start_group = _start_of_part(plan, k, n_terms, init, (place, panel, panel * n))
            call(plan[MULTIPLY_NONZEROS], (values, places, starts, n, columns + k * panel * size, panel * n_terms,
                                           place, panel * n, start, start_row, start_group, n_columns))  # fmt: skip
            _end_part(plan, min(k + chunk, n_terms), n_terms, c, plan[PARTIAL], n * n_columns)
        # As panels of n features and n_columns samples, the strip is turned into rows of y.
        call(plan[SCATTER], (c, n, n_columns, y, first, panel * n_rows, panel, n % panel))
    if n_whole < n_rows:
        a, a_row, a_k = (w + n_whole * n_out * size, n_out, 1) if is_backward else (w + n_whole * size, 1, n_out)
        init = (plan[ZEROS], 0, 0) if is_backward else (bias + n_whole * size, 1, 1)
        for start in range(0, n, panel):
            width = min(panel, n - start)
            _multiply_all(plan, n_rows - n_whole, width, a, a_row, a_k, x + start * n_terms * size, width,
                          y + (start * n_rows + n_whole * width) * size, init, n_terms)  # fmt: skip


@inline
def _is_full(n_nonzero, n):
    """Whether the dense product is faster than one with lists of what is not zero of n elements."""
    return 4 * n_nonzero > 3 * n


@inline
def _lists_of_terms(plan, index, n):
    """The addresses of a chunk's lists for n samples: values, places and starts."""
    first = index * (n * plan[CHUNK] + plan[PANEL])  # with room behind each chunk's, as in `_lists_of_chunk`
    return (plan[LIST_VALUES] + first * plan[ITEMSIZE], plan[LIST_PLACES] + first * 2,
            plan[LIST_STARTS] + index * (n + 1) * 8)  # fmt: skip


@inline
def _list_samples(plan, x, n_terms, n):
    """List what is not zero of n samples in panels, for each sample; returns how many that are."""
    size, panel, chunk, rows, n_nonzero = plan[ITEMSIZE], plan[PANEL], plan[CHUNK], plan[LIST_ROWS], 0
    # Turned into n features and n_terms samples, they are what `list_nonzeros` expects.
    call(plan[SCATTER], (x, n_terms, n, rows, 0, panel * n, panel, n_terms % panel))
    for k in range(0, n_terms, chunk):
        values, places, starts = _lists_of_terms(plan, k // chunk, n)
        call(plan[LIST_NONZEROS], (rows + k * n * size, n, min(chunk, n_terms - k), values, places, starts,
                                   plan[LIST_SUMS]))  # fmt: skip
        n_nonzero += int64_at(starts)[n]
    return n_nonzero


@inline
def _is_large(plan, layer, n, product):
    """Whether a layer is large enough for copies of w, and its product with n samples for making them."""
    n_weights = layer[N_IN] * layer[N_OUT]
    return n_weights > plan[PACK_ABOVE] and n_weights * n > product and 2 * n > plan[PANEL]


@inline
def _dense_forward(plan, layer, h, z, n):
    """z = b + w.T @ h for n samples in panels; each output is its bias plus FMAs in the order of k, part by part."""
    size, panel = plan[ITEMSIZE], plan[PANEL]
    n_in, n_out, w = layer[N_IN], layer[N_OUT], layer[W]
    b = w + n_in * n_out * size
    if n == 1:
        _dense_forward_of_one(plan, layer, h, z)
    elif n <= plan[FEW] and panel <= n_out <= plan[K_BLOCK] * plan[M_BLOCK] // n:
        _dense_forward_of_few(plan, layer, h, z, n)
    elif layer[LISTS_H] != 0 and _is_large(plan, layer, n, plan[LIST_PRODUCT]):
        call(plan[DENSE_OF_LISTS], (address_of(plan), address_of(layer), h, z, n, 0))
    elif _is_large(plan, layer, n, plan[PACK_PRODUCT]):
        call(plan[DENSE_PACKED], (address_of(plan), address_of(layer), h, z, n, 0))
    else:
        for start in range(0, n, panel):
            width = min(panel, n - start)
            _multiply_all(plan, n_out, width, w, 1, n_out, h + start * n_in * size, width, z + start * n_out * size,
                          (b, 1, 1), n_in)  # fmt: skip


@inline
def _dense_forward_of_one(plan, layer, h, z):
    """As `_dense_forward` for one sample: the lanes run over the outputs."""
    size, n_in, n_out, w = plan[ITEMSIZE], layer[N_IN], layer[N_OUT], layer[W]
    bias, part = w + n_in * n_out * size, part_of(n_in)
    for k in range(0, n_in, part):
        n_k, place = min(part, n_in - k), _place_of_part(k, n_in, z, plan[PARTIAL])
        start, step, _ = _start_of_part(plan, k, n_in, (bias, 1, 0), (place, 1, 0))
        call(plan[MULTIPLY_ROW], (h + k * size, w + k * n_out * size, start, step, place, n_k, n_out))
        _end_part(plan, k + n_k, n_in, z, plan[PARTIAL], n_out)


@inline
def _dense_forward_of_few(plan, layer, h, z, n):
    """As `_dense_forward` for a few samples, which would leave most lanes empty: the lanes run over the outputs."""
    size, panel, rows = plan[ITEMSIZE], plan[PANEL], plan[PACKED]
    n_in, n_out, w = layer[N_IN], layer[N_OUT], layer[W]
    b = w + n_in * n_out * size
    for j in range(0, n_out, panel):
        group = min(panel, n_out - j)
        _multiply_all(plan, n, group, h, 1, n, w + j * size, n_out, rows + j * n * size, (b + j * size, 0, 0), n_in)
    # As panels of n features and n_out samples, these rows are turned into n_out features and n samples.
    call(plan[SCATTER], (rows, n, n_out, z, 0, 0, n, n))


@inline
def _dense_backward(plan, layer, dz, dh, n, is_alone):
    """dh = w @ dz for n samples in panels.

    Each sum over the outputs goes in their order, part by part, or over the lanes first for a sample that `is_alone`:
    that must not depend on how a step is cut into blocks.
    """
    size, panel, n_in, n_out, w = plan[ITEMSIZE], plan[PANEL], layer[N_IN], layer[N_OUT], layer[W]
    if is_alone:
        call(plan[MULTIPLY_COLUMN], (w, dz, dh, n_in, n_out))
    elif layer[LISTS_DZ] != 0 and _is_large(plan, layer, n, plan[LIST_PRODUCT]):
        call(plan[DENSE_OF_LISTS], (address_of(plan), address_of(layer), dz, dh, n, 1))
    elif _is_large(plan, layer, n, plan[PACK_PRODUCT]):
        call(plan[DENSE_PACKED], (address_of(plan), address_of(layer), dz, dh, n, 1))
    else:
        for start in range(0, n, panel):
            width = min(panel, n - start)
            _multiply_all(plan, n_in, width, w, n_out, 1, dz + start * n_out * size, width, dh + start * n_in * size,
                          (plan[ZEROS], 0, 0), n_out)  # fmt: skip


@leaf(lambda T: types.void(_TABLE, _TABLE, types.intp, types.intp))
def forward_block(plan, source, start, n):
    """Gather the rows in the plan's `rows` and run them through all layers: samples start..start+n-1 of the buffers."""
    size, first = plan[ITEMSIZE], layer_of(plan, 0)
    call(plan[GATHER], (source[X], source[X_ROW], source[X_COLUMN], source[X_DTYPE], plan[ROWS], n, first[N_IN],
                        first[H_IN] + start * first[N_IN] * size, plan[ROW_ADDRESSES], plan[CAST]))  # fmt: skip
    for index in range(plan[N_LAYERS]):
        layer = layer_of(plan, index)
        n_in, n_out = layer[N_IN], layer[N_OUT]
        z, h_out = layer[Z] + start * n_out * size, layer[H_OUT] + start * n_out * size
        _dense_forward(plan, layer, layer[H_IN] + start * n_in * size, h_out, n)
        if z != h_out:
            call(plan[COPY], (h_out, z, n * n_out))
        if layer[FORWARD] != 0:
            call(layer[FORWARD], (h_out, n_out, n))


@leaf(lambda T: types.intp(_TABLE, _TABLE, types.intp, types.intp, types.float64, types.intp))
def loss_block(plan, source, start, n, scale, sums):
    """Compare the outputs with the targets: loss and hits into `sums`, the scaled loss derivative into the plan's `d`.

    `sums` : address of a pair of float64 for each `loss_unit` of samples, so that no total depends on the size of a
    block. Returns how many labels were out of range.
    """
    last, rows, targets, n_outside = layer_of(plan, plan[N_LAYERS] - 1), plan[ROWS], plan[TARGETS], 0
    n_out = last[N_OUT]
    if source[Y_IS_LABEL] != 0:
        n_outside = call(plan[LABELS], (source[Y], source[Y_ROW], source[Y_DTYPE], rows, n, n_out, targets))
    else:
        call(plan[GATHER], (source[Y], source[Y_ROW], source[Y_COLUMN], source[Y_DTYPE], rows, n, n_out, targets,
                            plan[ROW_ADDRESSES], plan[CAST]))  # fmt: skip
    output, unit = last[H_OUT] + start * n_out * plan[ITEMSIZE], plan[LOSS_UNIT]
    for s in range(0, n, unit):
        here = s * n_out * plan[ITEMSIZE]
        call(plan[LOSS], (output + here, targets + here, plan[D] + here, n_out, min(unit, n - s), scale,
                          sums + s // unit * 16))  # fmt: skip
    return n_outside


@inline
def _regroup(plan, layer, d, start, n):
    """From the derivative of a layer's outputs to that of its z, in place and as the gradient wants it.

    A panel at a time, which is still in the nearest cache when it is regrouped. d : of samples start..start+n-1.
    """
    size, panel, super_block, n_out = plan[ITEMSIZE], plan[PANEL], plan[SUPER_BLOCK], layer[N_OUT]
    for s in range(start, start + n, panel):
        width, here = min(panel, start + n - s), s * n_out * size
        own = d + (s - start) * n_out * size
        if layer[BACKWARD] != 0:
            call(layer[BACKWARD], (own, layer[Z] + here, layer[H_OUT] + here, width * n_out))
        if layer[H_ROWS] != 0:
            continue
        if n_out <= plan[NARROW]:
            call(plan[SPLIT], (own, n_out, width, layer[DZ] + s * size, super_block))
        else:  # rows of the last, narrower group are as long as the group is wide
            call(plan[SCATTER], (own, n_out, width, layer[DZ], s, panel * super_block, panel, n_out % panel))
    if layer[H_ROWS] != 0:
        _list_derivative(plan, layer, d, start, n)


@inline
def _lists_of_chunk(plan, layer, index):
    """The addresses of a chunk's lists: values, places, starts and sums."""
    size, n_out = plan[ITEMSIZE], layer[N_OUT]
    first = index * (n_out * plan[CHUNK] + plan[PANEL])  # with room behind each chunk's, which are written in vectors
    return (layer[DZ] + first * size, layer[PLACES] + first * 2, layer[STARTS] + index * (n_out + 1) * 8,
            layer[SUMS] + index * n_out * size)  # fmt: skip


@inline
def _list_derivative(plan, layer, d, start, n):
    """List what is not zero of dz, and regroup h_in, as `_gradient_of_lists` wants both. As `_regroup`.

    A chunk that is not mostly zero is kept as rows of samples instead; its first start is then negative.
    """
    size, panel, chunk, n_in, n_out = plan[ITEMSIZE], plan[PANEL], plan[CHUNK], layer[N_IN], layer[N_OUT]
    for s in range(start, start + n, chunk):
        here, n_s = d + (s - start) * n_out * size, min(chunk, start + n - s)
        values, places, starts, sums = _lists_of_chunk(plan, layer, s // chunk)
        call(plan[LIST_NONZEROS], (here, n_out, n_s, values, places, starts, sums))
        if _is_full(int64_at(starts)[n_out], n_out * n_s):
            call(plan[SPLIT], (here, n_out, n_s, values, chunk))
            int64_at(starts)[0] = -1
    call(plan[SCATTER], (layer[H_IN] + start * n_in * size, n_in, n, layer[H_ROWS], start, panel * plan[SUPER_BLOCK],
                         panel, panel))  # fmt: skip


@leaf(lambda T: types.void(_TABLE, types.intp, types.intp))
def backward_block(plan, start, n):
    """From the loss derivative in the plan's `d` to every layer's dz, regrouped for the gradient."""
    d, d_other = plan[D], plan[D_OTHER]
    for index in range(plan[N_LAYERS] - 1, -1, -1):
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
    size, panel, super_block = plan[ITEMSIZE], plan[PANEL], plan[SUPER_BLOCK]
    n_in, n_out, h, dz = layer[N_IN], layer[N_OUT], layer[H_IN], layer[DZ]
    if n_out <= plan[NARROW]:
        for j in range(n_out):
            call(plan[NARROW_GRADIENT], (h + start * n_in * size, n_in, first_row, n_rows,
                                         dz + (j * super_block + start) * size, n, g + j * size, g_row,
                                         accumulate))  # fmt: skip
        return
    ones = plan[ONES] if first_row + n_rows > n_in else 0
    s, stop = start, start + n
    while s < stop:
        # As many whole panels as a cache block has, or the narrow one at the end.
        n_panels = min((stop - s) // panel, plan[S_BLOCK] // panel)
        n_s, width, n_outer = (n_panels * panel, panel, n_panels) if n_panels > 0 else (stop - s, stop - s, 1)
        for j in range(first_column, first_column + n_columns, panel):
            group = min(panel, n_out - j)
            out = g + (j - first_column) * size
            init, init_row = (out, g_row) if accumulate != 0 or s > start else (plan[ZEROS], 0)
            call(plan[MULTIPLY], (n_rows, group, h + (s * n_in + first_row * width) * size, TILE_ROWS * width, width, 1,
                                  panel * n_in, ones, dz + (j * super_block + s * group) * size, group,
                                  out, g_row, init, init_row, 0, width, n_outer))  # fmt: skip
        s += n_s


@inline
def _sum_of_rows(plan, rows, row, n_rows, out, n, accumulate):
    """out = the sum of some rows of n elements, `row` apart, or added to what is there if `accumulate`."""
    size, panel = plan[ITEMSIZE], plan[PANEL]
    for j in range(0, n, panel):
        here = out + j * size
        call(plan[MULTIPLY], (1, min(panel, n - j), plan[ONES], 0, 0, 0, 0, 0, rows + j * size, row, here, 0,
                              here if accumulate != 0 else plan[ZEROS], 0, 0, n_rows, 1))  # fmt: skip


@inline
def _gradient_of_lists(plan, layer, first_row, n_rows, first_column, n_columns, start, n, g, g_row, accumulate):
    """As `_gradient`, of a layer that lists what is not zero of its dz; `start` is the first sample of a chunk.

    The rectangle is a strip of rows, which may have the biases below it; it comes out turned. Unlike there, these
    samples have a sum of their own, which is added to what is there.
    """
    size, panel, super_block, chunk = plan[ITEMSIZE], plan[PANEL], plan[SUPER_BLOCK], plan[CHUNK]
    n_out, n_inputs, turned = layer[N_OUT], min(n_rows, layer[N_IN] - first_row), plan[TURNED]
    for s in range(start, start + n, chunk):
        values, places, starts, _ = _lists_of_chunk(plan, layer, s // chunk)
        h = layer[H_ROWS] + (first_row * super_block + s * panel) * size
        init, init_row, init_group = (plan[ZEROS], 0, 0) if s == start else (turned, panel, panel * n_columns)
        if int64_at(starts)[0] < 0:
            for i in range(0, n_inputs, panel):
                call(plan[MULTIPLY], (n_columns, panel, values + first_column * chunk * size, TILE_ROWS * chunk, chunk,
                                      1, 0, 0, h + i * super_block * size, panel, turned + i * n_columns * size, panel,
                                      init + i // panel * init_group * size, init_row, 0, min(chunk, start + n - s),
                                      1))  # fmt: skip
        else:
            call(plan[MULTIPLY_NONZEROS], (values, places, starts + first_column * 8, n_columns, h,
                                           panel * super_block, turned, panel * n_columns, init, init_row, init_group,
                                           n_inputs))  # fmt: skip
    upright = plan[GRADIENT]
    # All rows of a panel: those beyond n_inputs fall behind the strip, where the biases then overwrite the first.
    call(plan[SCATTER], (turned, n_columns, -(-n_inputs // panel) * panel, upright, 0, panel, n_columns, n_columns))
    if g != upright:
        for i in range(n_inputs):
            _sum_of_rows(
                plan, upright + i * n_columns * size, n_columns, 1, g + i * g_row * size, n_columns, accumulate
            )
    if n_rows > n_inputs:
        _sum_of_rows(plan, layer[SUMS] + (start // chunk * n_out + first_column) * size, n_out, (n - 1) // chunk + 1,
                     g + n_inputs * g_row * size, n_columns, accumulate)  # fmt: skip


@inline
def _update(plan, optimizer, coefficients, start, n_rows, n_columns, row, g, g_row):
    """Update a rectangle of parameters at the address `start`; returns 1 if one is not finite any more."""
    moments = optimizer[STATE] + (start - layer_of(plan, 0)[W])
    return call(plan[UPDATE], (start, g, moments, optimizer[STATE_ROW], n_rows, n_columns, row, g_row,
                               optimizer[CONSTANTS], coefficients))  # fmt: skip


@inline
def _shrink(plan, optimizer, coefficients, layer, first_row, n_rows, first_column, n_columns):
    """Decay the weights, and if wanted the biases, of a rectangle of a layer."""
    if plan[SHRINK] != 0:
        n_decayed = min(n_rows, layer[N_IN] + optimizer[DECAY_BIASES] - first_row)
        start = layer[W] + (first_row * layer[N_OUT] + first_column) * plan[ITEMSIZE]
        factor = float64_at(coefficients)[optimizer[N_COEFFICIENTS] - 1]
        call(plan[SHRINK], (start, n_decayed, n_columns, layer[N_OUT], factor))


@leaf(lambda T: types.void(_TABLE, types.intp, types.intp, types.intp))
def gradient_block(plan, start, n, super_blocks_done):
    """The gradient of a small network over one block of samples, whose activations are still in this core's caches.

    The first block of a step writes the step's own buffer, any other one its row of `block_gradients`.
    """
    first, into = layer_of(plan, 0), layer_of(plan, 0)[DW]
    if start > 0 or super_blocks_done > 0:
        into = plan[BLOCK_GRADIENTS] + start // plan[BLOCK] * plan[GRADIENT_ROW] * plan[ITEMSIZE]
    for index in range(plan[N_LAYERS]):
        layer = layer_of(plan, index)
        g, n_out = into + layer[DW] - first[DW], layer[N_OUT]
        _gradient(plan, layer, 0, layer[N_IN] + 1, 0, n_out, start, n, g, n_out, 0)


@inline
def _partial_gradient(plan, g):
    """Where the sums lie that are not yet in the gradient at the address g."""
    return plan[PARTIAL_GRADIENT] + g - layer_of(plan, 0)[DW]


@leaf(lambda T: types.intp(_TABLE, _TABLE, types.intp, types.intp, types.intp, types.intp, types.intp))
def parameters_of_layers(plan, optimizer, coefficients, index, n, super_blocks_done, is_last):
    """Sum of the blocks' gradients, and update, of all layers of a small network. As `parameters_of_rows`."""
    size, row, rows = plan[ITEMSIZE], plan[GRADIENT_ROW], plan[BLOCK_GRADIENTS]
    first, last = layer_of(plan, 0), layer_of(plan, plan[N_LAYERS] - 1)
    g, n_params = first[DW], (last[W] - first[W]) // size + (last[N_IN] + 1) * last[N_OUT]
    n_blocks = (n - 1) // plan[BLOCK] + 1
    if super_blocks_done > 0:
        partial = _partial_gradient(plan, g)
        call(plan[ADD_ROWS], (rows, row, n_blocks, partial, n_params, super_blocks_done - 1))
        call(plan[ADD_PARTS], (g, partial, n_params, 1, n_params))
    elif n_blocks > 1:
        call(plan[ADD_ROWS], (rows + row * size, row, n_blocks - 1, g, n_params, 1))
    if is_last == 0:
        return 0
    if plan[UPDATE] == 0:
        call(plan[FLUSH_ROWS], (g, 1, n_params, n_params))
        return 0
    for number in range(plan[N_LAYERS]):
        layer = layer_of(plan, number)
        _shrink(plan, optimizer, coefficients, layer, 0, layer[N_IN] + 1, 0, layer[N_OUT])
    return _update(plan, optimizer, coefficients, first[W], 1, n_params, n_params, g, n_params)


@inline
def _gradient_of_part(plan, layer, first_row, n_rows, first_column, n_columns, start, n, n_before, g, g_row):
    """Add a rectangle of the gradient over n samples from `start` on to g, that over n_before samples of the batch.

    These are whole parts of a sum. The first one is written to g, the others come by way of the partial gradient.
    """
    into, row = (g, g_row) if n_before == 0 else (_partial_gradient(plan, g), layer[N_OUT])
    accumulate = 1 if n_before > PART else 0
    if layer[H_ROWS] != 0:
        _gradient_of_lists(plan, layer, first_row, n_rows, first_column, n_columns, start, n, into, row, accumulate)
    else:
        _gradient(plan, layer, first_row, n_rows, first_column, n_columns, start, n, into, row, accumulate)
    if n_before > 0:
        call(plan[ADD_PARTS], (g, into, row, n_rows, n_columns))


@leaf(lambda T: types.intp(_TABLE, _TABLE, types.intp, types.intp, types.intp, types.intp, types.intp))
def parameters_of_rows(plan, optimizer, coefficients, index, n, super_blocks_done, is_last):
    """Gradient and update of a tile of rows of one layer, a rectangle at a time.

    The gradient over the n samples of a super-block is added to that of those before; the update follows the last one.
    One super-block is one part of a sum, several have the usual ones. A gradient that nobody else reads stays in a
    small buffer, hence in the cache. Returns how many updates left a parameter not finite.
    """
    tile, size, c_block = tile_of(plan, index), plan[ITEMSIZE], plan[C_BLOCK]
    layer, first_row, n_rows, n_bad = layer_of(plan, tile[LAYER]), tile[FIRST_ROW], tile[N_ROWS], 0
    n_out, n_before = layer[N_OUT], super_blocks_done * plan[SUPER_BLOCK]
    is_only, updates = super_blocks_done == 0 and is_last != 0, is_last != 0 and plan[UPDATE] != 0
    part = n if is_only else PART
    for column in range(0, n_out, c_block):
        n_columns = min(c_block, n_out - column)
        here = (first_row * n_out + column) * size
        g, g_row = (plan[GRADIENT], n_columns) if is_only and updates else (layer[DW] + here, n_out)
        for s in range(0, n, part):
            _gradient_of_part(
                plan, layer, first_row, n_rows, column, n_columns, s, min(part, n - s), n_before + s, g, g_row
            )
        if updates:
            _shrink(plan, optimizer, coefficients, layer, first_row, n_rows, column, n_columns)
            n_bad += _update(plan, optimizer, coefficients, layer[W] + here, n_rows, n_columns, n_out, g, g_row)
        elif is_last != 0:
            call(plan[FLUSH_ROWS], (g, n_rows, n_columns, g_row))
    return n_bad
