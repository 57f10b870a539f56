"""Which way products go, how work is cut into tasks, and which leaves are compiled for it."""

from itertools import pairwise

import pytest

import fastbp
from fastbp import plan
from fastbp.kernels.panels import panel_width
from fastbp.kernels.products.tile import TILE_ROWS
from fastbp.plan import NEVER
from ways import backward_way, forward_way, gradient_way, prediction_plan, training_plan

PANEL = panel_width("float32")
STRIP = training_plan(fastbp.MLP([1, 1]), 1).strip


def ways_of(sizes, n_samples, activation="tanh", layer=-1, make=training_plan):
    return make(fastbp.MLP(sizes, activation, activation, seed=0), n_samples).ways[layer]


@pytest.mark.parametrize("n", [1, 2, PANEL // 4, PANEL // 4 + 1, PANEL])
@pytest.mark.parametrize("n_out", [1, PANEL - 1, PANEL, 3 * PANEL])
def test_few_samples_run_over_outputs_where_these_fill_a_panel(n, n_out):
    few = "few" if n <= PANEL // 4 and n_out >= PANEL else "panels"
    assert forward_way(ways_of([5, n_out], 100), n) == ("row" if n == 1 else few)


def test_few_samples_never_run_over_more_outputs_than_the_scratch_holds():
    n_out = plan.K_BLOCK * plan.M_BLOCK // 2
    assert ways_of([1, n_out], 10).forward_few_to == 2
    assert ways_of([1, n_out + 1], 10).forward_few_to == 1
    assert ways_of([1, 2 * n_out + 2], 10).forward_few_to == 0


@pytest.mark.parametrize("make", [training_plan, prediction_plan])
def test_large_layers_are_packed_from_the_samples_on_that_repay_the_copy(make):
    ways = ways_of([300, 400, 400], 512, make=make)
    first = plan.PACK_PRODUCT // 400**2 + 1
    assert [forward_way(ways, n) for n in (first - 1, first, 512)] == ["panels", "packed", "packed"]
    if make is training_plan:
        assert [backward_way(ways, n, 512) for n in (first - 1, first, 512)] == ["panels", "packed", "packed"]
    else:
        assert ways.backward_packed_from == NEVER


def test_large_layers_are_never_packed_for_few_samples():
    ways = ways_of([9000, 9000], 512)
    assert [forward_way(ways, n) for n in (PANEL // 2, PANEL // 2 + 1)] == ["panels", "packed"]


def test_small_layers_and_blocks_too_short_to_repay_it_are_never_packed():
    assert ways_of([256, 256], 512).forward_packed_from == NEVER
    assert ways_of([300, 400], 64).forward_packed_from == NEVER
    assert training_plan(fastbp.MLP([300, 400]), 64).leaves()["dense_packed"] is None


def test_backward_of_one_sample_alone_sums_over_lanes_and_of_the_first_layer_never_is():
    ways = ways_of([3, 4, 5], 100)
    assert backward_way(ways, 1, 1) == "column"
    assert backward_way(ways, 1, 33) == "panels"
    first = ways_of([600, 600, 5], 512, "relu", layer=0)
    assert (first.backward_packed_from, first.backward_lists_from) == (NEVER, NEVER)


@pytest.mark.parametrize("activation", ["relu", "tanh", "leaky_relu"])
def test_lists_are_for_what_a_relu_turns_off(activation):
    n = 512
    is_off = activation == "relu"
    ways = ways_of([600, 2 * STRIP + 200, 2 * STRIP + 200], n, activation)
    assert (forward_way(ways, n) == "lists") == is_off
    assert (backward_way(ways, n, n) == "lists") == is_off
    assert (gradient_way(ways, n) == "lists") == is_off


def test_lists_need_two_strips_of_the_other_operand_and_a_panel_of_their_own():
    assert gradient_way(ways_of([2 * STRIP, PANEL, 2000], 64, "relu", layer=0), 64) == "lists"
    assert gradient_way(ways_of([2 * STRIP - 1, PANEL, 2000], 64, "relu", layer=0), 64) == "dense"
    assert gradient_way(ways_of([2 * STRIP, PANEL - 1, 2000], 64, "relu", layer=0), 64) == "dense"


@pytest.mark.parametrize("n_out", [1, plan.NARROW, plan.NARROW + 1])
def test_gradient_of_few_outputs_sums_over_lanes_if_the_batch_fills_them(n_out):
    ways = ways_of([7, n_out], 100)
    assert gradient_way(ways, PANEL - 1) == "dense"
    assert gradient_way(ways, PANEL) == ("narrow" if n_out <= plan.NARROW else "dense")


@pytest.mark.parametrize("sizes", [(5, 3), (300, 600, 4), (40, 1300, 160, 3)])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_gradient_goes_the_same_way_whatever_the_capacity(sizes, activation):
    model = fastbp.MLP(sizes, activation, seed=0)
    for batch in (1, PANEL - 1, PANEL, 100):
        ways = {
            tuple(gradient_way(ways, batch) for ways in training_plan(model, n_samples).ways)
            for n_samples in (batch, batch + 1, 128, 5000)
        }
        assert len(ways) == 1


def test_leaves_are_those_that_a_way_leads_to():
    small = training_plan(fastbp.MLP([4, 32, 1], "tanh"), 100).leaves()
    used = {name for name, leaf in small.items() if leaf is not None}
    assert {"narrow_gradient", "add_rows", "gradient_block"} <= used
    assert not used & {
        "copy",
        "dense_packed",
        "dense_of_lists",
        "list_nonzeros",
        "pack_rows",
        "pack_columns",
        "add_parts",
    }
    large = training_plan(fastbp.MLP([784, 512, 512, 10], "relu", "softmax"), 256).leaves()
    assert {name for name, leaf in large.items() if leaf is None} == {
        "add_noise",
        "add_parts",
        "add_rows",
        "average",
        "clip",
        "clipped_update",
        "coefficients",
        "constrain",
        "copy",
        "drop",
        "evaluate_range",
        "gather_sparse",
        "gather_standardized",
        "gradient_block",
        "jvp_range",
        "keep_rows",
        "limit_columns",
        "measure_gradient",
        "measure_update",
        "narrow_gradient",
        "observe_layer",
        "penalize",
        "predict_range",
        "rescale",
        "scale",
        "shrink",
        "smooth",
        "update",
        "vjp_range",
        "weigh_batch",
        "weighted_loss",
    }
    architecture = fastbp.MLP([4, 32, 2], "tanh", "softmax")._network.architecture
    derives = plan.Plan(architecture, 100, trains=False, with_loss=False, derives=True).leaves()
    assert {"predict_range", "vjp_range", "jvp_range", "copy"} <= {name for name, leaf in derives.items() if leaf}
    assert not {"train_steps", "backward_block", "loss_block", "narrow_gradient"} & {
        name for name, leaf in derives.items() if leaf
    }


@pytest.mark.parametrize("sizes", [(300, 400, 3), (784, 128, 10), (9, 3000, 7), (2, 20_000)])
def test_tiles_cover_every_row_once_and_serve_all_workers_alike(sizes):
    model = fastbp.MLP(sizes, "tanh", seed=0)
    for n_workers in (1, 2, 3, 8):
        tiles = training_plan(model, 100, n_workers=n_workers).tiles
        assert len(tiles) == training_plan(model, 100, n_workers=n_workers).n_tasks
        for layer, (n_in, n_out) in enumerate(pairwise(sizes)):
            pieces = [(first, n) for number, first, n in tiles if number == layer]
            assert [row for first, n in pieces for row in range(first, first + n)] == list(range(n_in + 1))
            assert all(n > 0 for _, n in pieces)
            assert len(pieces) % n_workers == 0 or all(n <= TILE_ROWS for _, n in pieces)
            assert max(n * min(n_out, plan.C_BLOCK) for _, n in pieces) <= plan.RECTANGLE


@pytest.mark.parametrize("n_in", [2 * STRIP, 2 * STRIP + 1, 3 * STRIP - 1, 3 * STRIP, 3 * STRIP + 1])
def test_strips_cover_every_row_once_and_have_the_biases_last(n_in):
    tiles = training_plan(fastbp.MLP((n_in, 257, 3), "relu", seed=0), 100, n_workers=2).tiles
    pieces = [(first, n) for layer, first, n in tiles if layer == 0]
    assert [row for first, n in pieces for row in range(first, first + n)] == list(range(n_in + 1))
    assert all(first % STRIP == 0 and n == STRIP for first, n in pieces[:-1])
    assert 1 < pieces[-1][1] <= STRIP + 1


def test_small_network_is_one_task():
    small = training_plan(fastbp.MLP([4, 32, 32, 1], seed=0), 100, n_workers=2)
    assert (small.is_small, small.tiles, small.n_tasks) == (True, (), 1)
