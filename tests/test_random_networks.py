"""Random networks, options and data: one step each beside the naive twin, and nothing else is touched."""

import contextlib
import math
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastbp
import reference
from cases import ACTIVATIONS, PAIRS
from fastbp import program

sparse = pytest.importorskip("scipy.sparse")

WIDTHS = st.integers(1, 40)
SOURCES = ("uint8", "int8", "int16", "uint32", "int64", "float16", "float32", "float64", "bool", ">f8", "longdouble")
CANARY = 0xAB
RATE = 0.125


class Case(NamedTuple):
    sizes: list[int]
    activations: list[str]
    loss: str
    output: str
    dtype: str
    n_samples: int
    source: str
    layout: str
    weighted: bool
    standardize: bool
    standardize_y: bool
    l1: float
    l2: float
    clip_norm: float
    clip_value: float
    threads: int
    watched: bool
    seed: int


@st.composite
def cases(draw):
    loss, output = draw(st.sampled_from(PAIRS))
    sizes = draw(st.lists(WIDTHS, min_size=2, max_size=5))
    sizes[-1] = max(sizes[-1], 2) if output == "softmax" else sizes[-1]
    hidden = [draw(st.sampled_from(ACTIVATIONS)) for _ in sizes[1:-1]]
    is_free = loss in reference.OF_ERRORS and output in ("identity", "leaky_relu")
    often = st.sampled_from([0.0, 0.0, 0.01, 0.3])
    limit = st.sampled_from([math.inf, math.inf, 0.5, 0.01])
    return Case(
        sizes, hidden, loss, output, draw(st.sampled_from(["float32", "float64"])),
        draw(st.sampled_from([1, 2, 3, 8, 15, 16, 17, 33, 64, 65, 129])), draw(st.sampled_from(SOURCES)),
        draw(st.sampled_from(["C", "F", "strided", "reversed", "read-only", "unaligned", "sparse"])),
        draw(st.booleans()), draw(st.booleans()), draw(st.booleans()) and is_free,
        draw(often), draw(often), draw(limit), draw(limit), draw(st.sampled_from([1, 2])), draw(st.booleans()),
        draw(st.integers(0, 2**32)),
    )  # fmt: skip


def inputs_of(case, rng):
    """x, what of it must not change, and the same as float64 of the model's dtype."""
    shape = case.n_samples, case.sizes[0]
    x = rng.integers(0, 2 if case.source == "bool" else 5, shape)
    x = (x / 2 if np.dtype(case.source).kind == "f" else x).astype(case.source)
    if case.layout == "sparse" and case.source not in ("float16", ">f8", "longdouble"):
        matrix = sparse.csr_array(x)
        return matrix, (matrix.data, matrix.indices, matrix.indptr), x.astype(np.float64)
    rows, columns = (2 if case.layout == "strided" else 1), (3 if case.layout == "strided" else 1)
    around = np.full(
        (shape[0] * rows + 2, shape[1] * columns + 2), 7, x.dtype, order="F" if case.layout == "F" else "C"
    )
    if case.layout == "unaligned":
        buffer = np.full(x.nbytes + 16, 7, np.uint8)
        view = buffer[1 : 1 + x.nbytes].view(x.dtype).reshape(shape)
        view[...] = x
        return view, (buffer,), x.astype(np.float64)
    view = around[1:-1, 1:-1][::rows, ::columns]
    view = view[::-1, ::-1] if case.layout == "reversed" else view
    view[...] = x
    view.flags.writeable = case.layout != "read-only"
    return view, (around,), x.astype(np.float64)


def targets_of(case, rng):
    n, n_out = case.n_samples, case.sizes[-1]
    if case.loss == "cross_entropy":
        return rng.integers(0, n_out, n)
    if case.loss in ("binary_cross_entropy", "poisson"):
        return rng.integers(0, 2, (n, n_out)).astype(float)
    return rng.choice([-1.0, 1.0], (n, n_out)) if case.loss == "hinge" else rng.normal(size=(n, n_out))


def scaled(array, wanted):
    std = array.std(axis=0)
    return (array - array.mean(axis=0)) / np.where(std > 0, std, 1) if wanted else array


def twin_of(case, params, x, y, weights):
    """Loss and gradient of the weighted mean, with penalties, clipped."""
    names = case.sizes, case.activations, case.output, case.loss, params
    x, y = scaled(x, case.standardize), scaled(y, case.standardize_y)
    parts = [reference.loss_and_grad(*names, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    loss = sum(w * part[0] for w, part in zip(weights, parts, strict=True)) / weights.sum()
    gradient = sum(w * part[1] for w, part in zip(weights, parts, strict=True)) / weights.sum()
    penalty, slope = reference.penalty(case.sizes, params, case.l1, case.l2)
    return loss, gradient, loss + penalty, reference.clipped(gradient + slope, case.clip_norm, case.clip_value)


@contextlib.contextmanager
def canaries():
    """Bytes between all buffers of the programs that are made here; none may change."""
    arenas, allocate = [], program._Arena.allocate

    def allocated(arena):
        address = allocate(arena)
        arena.memory[arena.gaps()] = CANARY
        arenas.append(arena)
        return address

    with mock.patch.object(program._Arena, "allocate", allocated):
        yield
    assert arenas
    for arena in arenas:
        assert (arena.memory[arena.gaps()] == CANARY).all()


def options_of(case) -> dict[str, Any]:
    penalties = [kind(rate) for kind, rate in ((fastbp.L1, case.l1), (fastbp.L2, case.l2)) if rate > 0.0]
    finite = {name: value for name in ("clip_norm", "clip_value") if (value := getattr(case, name)) < math.inf}
    return {"regularize": penalties, **finite, "optimizer": fastbp.SGD(RATE), "batch_size": None, "seed": 0,
            "threads": case.threads}  # fmt: skip


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_one_step_is_the_twins_and_touches_nothing_else(case):
    rng = np.random.default_rng(case.seed)
    x, guarded, dense = inputs_of(case, rng)
    y = targets_of(case, rng)
    weights = rng.uniform(0.25, 2.0, case.n_samples) if case.weighted else None
    with canaries():
        model = fastbp.MLP(
            case.sizes, case.activations, case.output, loss=case.loss, dtype=case.dtype, seed=case.seed,
            standardize=case.standardize, standardize_y=case.standardize_y,
        )  # fmt: skip
        for biases in model.biases:
            biases[:] = rng.uniform(-0.5, 0.5, biases.shape)
        before = model.params.astype(np.float64)
        content = [part.tobytes() for part in (*guarded, y)]
        if case.standardize or case.standardize_y:
            model.learn_scaling(x, y)
        loss, gradient = model.loss_and_grad(x, y, weights)
        prediction = model.predict(x)
        trainer = fastbp.Trainer(model, **options_of(case))
        history = trainer.fit(x, y, epochs=1, sample_weight=weights, health=case.watched)
        assert [part.tobytes() for part in (*guarded, y)] == content
    ones = np.ones(case.n_samples) if weights is None else weights
    is_double = case.dtype == "float64"
    twin_loss, twin_gradient, penalized, step = twin_of(case, before, dense, y, ones)
    # float32 sees other sides of kinks, and other last bits of what cancels.
    close = {"rtol": 1e-8, "atol": 1e-9} if is_double else {"rtol": 2e-3, "atol": 2e-3 * (1 + abs(twin_gradient).max())}
    assert np.isclose(loss, twin_loss, rtol=close["rtol"], atol=1e-9 if is_double else 1e-4)
    assert np.allclose(gradient, twin_gradient, **close)
    inputs = scaled(dense, case.standardize)
    outputs = reference.forward(case.sizes, case.activations, case.output, before, inputs)
    outputs = outputs * y.std(axis=0) + y.mean(axis=0) if case.standardize_y and len(y) > 1 else outputs
    if not (case.standardize_y and len(y) == 1):
        assert np.allclose(prediction, outputs, rtol=close["rtol"], atol=1e-9 if is_double else 1e-3)
    assert np.isclose(history.loss[0], penalized, rtol=close["rtol"], atol=1e-9 if is_double else 1e-4)
    assert np.allclose(model.params, before - RATE * step, **close)
    assert trainer.n_steps == 1


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(cases(), st.sampled_from(sorted(reference.OPTIMIZERS)))
def test_any_optimizer_follows_the_gradient_that_the_model_reports(case, name):
    rng = np.random.default_rng(case.seed)
    (x, _, _), y = inputs_of(case, rng), targets_of(case, rng)
    with canaries():
        model = fastbp.MLP(case.sizes, case.activations, case.output, loss=case.loss, dtype="float64", seed=case.seed)
        before, gradient = model.params.copy(), model.loss_and_grad(x, y)[1]
        model.fit(x, y, optimizer=getattr(fastbp, name)(), batch_size=None, epochs=1, threads=case.threads)
    mask = {"mask": reference.weight_mask(case.sizes)} if name in ("AdamW", "Lion") else {}
    expected = reference.OPTIMIZERS[name](before, gradient, {}, **mask)
    assert np.allclose(model.params, expected, rtol=1e-9, atol=1e-12)
