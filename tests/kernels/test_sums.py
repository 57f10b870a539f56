"""Long sums in parts: the leaves that have them, with terms that are alike, and guard pages around the totals."""

from fractions import Fraction

import numpy as np
import pytest

import reference
from fastbp.kernels.losses import LOSSES
from fastbp.kernels.panels import panel_width
from fastbp.kernels.sums import PART, add_parts
from guards import guarded, needs_guard_pages
from leaves import activate, call, compare, panels_of

DTYPES = ["float32", "float64"]
CANARY = -77.0
MILLION = 10**6
RTOL = 1e-5


def added(totals, parts, row=None):
    """`add_parts` of two matrices, in place, whose rows may lie in longer ones."""
    n_rows, n = totals.shape
    call(add_parts, totals.dtype, totals, parts, row or n, n_rows, n)
    return totals, parts


@needs_guard_pages
@pytest.mark.parametrize("at_start", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_add_parts_any_size_loses_nothing(dtype, at_start):
    rng = np.random.default_rng(0)
    for n_rows in (1, 2, 3):
        for n in (1, 3, 7, 8, 16, 33):
            totals = (rng.normal(size=(n_rows, n)) * 2.0 ** rng.integers(-30, 30, (n_rows, n))).astype(dtype)
            parts = (rng.normal(size=(n_rows, n)) * 2.0 ** rng.integers(-30, 30, (n_rows, n))).astype(dtype)
            sums, rests = added(guarded(totals, at_start), guarded(parts, at_start))
            np.testing.assert_array_equal(sums, totals + parts)
            for terms in zip(totals.flat, parts.flat, sums.flat, rests.flat, strict=True):
                total, part, new, rest = (Fraction(float(term)) for term in terms)
                assert total + part == new + rest


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_parts_leaves_what_lies_between_the_rows(dtype):
    totals, parts = np.full((3, 11), CANARY, dtype), np.full((3, 11), CANARY, dtype)
    totals[:, :7], parts[:, :7] = 3, np.finfo(dtype).eps
    call(add_parts, dtype, totals, parts, 11, 3, 7)
    np.testing.assert_array_equal(totals[:, :7], 3)
    np.testing.assert_array_equal(parts[:, :7], np.finfo(dtype).eps)
    assert (totals[:, 7:] == CANARY).all()
    assert (parts[:, 7:] == CANARY).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_parts_of_what_is_not_finite_loses_nothing_that_would_spoil_it(dtype):
    largest = np.finfo(dtype).max
    totals = np.array([[np.inf, -np.inf, 1, largest, np.nan, 1, np.inf]], dtype)
    parts = np.array([[1, 1, np.inf, largest, 1, np.nan, -np.inf]], dtype)
    sums, rests = added(totals, parts)
    np.testing.assert_array_equal(sums, [[np.inf, -np.inf, np.inf, np.inf, np.nan, np.nan, np.nan]])
    np.testing.assert_array_equal(rests, 0)


def alike(rng, *shape):
    """Random numbers from 0.1 to 1, the same along the last axis."""
    return np.broadcast_to(rng.uniform(0.1, 1, (*shape[:-1], 1)), shape).astype(np.float32)


def loss_problem(name, n_samples, n_out):
    """Outputs and targets that are alike for all outputs but one."""
    rng = np.random.default_rng(n_out)
    output, targets = alike(rng, n_samples, n_out).copy(), 2 + alike(rng, n_samples, n_out)
    if name == "binary_cross_entropy":
        targets = np.ones_like(output)
    elif name == "cross_entropy":
        targets = np.where(np.arange(n_out) < n_out // 2, alike(rng, n_samples, n_out), 0).astype(np.float32)
        output[:, 1] += 0.3
    return output, targets


@pytest.mark.parametrize("n_samples", [1, 3])
@pytest.mark.parametrize("n_out", [PART * 3 + 1, MILLION])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_over_any_number_of_outputs_is_right(name, n_out, n_samples):
    output, targets = loss_problem(name, n_samples, n_out)
    if LOSSES[name].outputs_per_target == 2:
        output, n_out = np.hstack([output, output]), 2 * n_out
    panels, sums = np.append(panels_of(output), np.zeros(64, np.float32)), np.zeros(2)
    target_panels, d = np.append(panels_of(targets), np.zeros(64, np.float32)), np.zeros_like(panels)
    compare(name, panels, target_panels, d, n_out, n_samples, 1.0, sums)
    z, t = output.astype(float), targets.astype(float)
    assert sums[0] / n_samples == pytest.approx(reference.loss_of_outputs(name, "identity", z, t), rel=RTOL)
    expected_d = n_samples * panels_of(reference.gradient_of_outputs(name, "identity", z, t))
    np.testing.assert_allclose(d[: output.size], expected_d, rtol=3 * RTOL)
    if name == "binary_cross_entropy":
        assert sums[1] == output.size


@pytest.mark.parametrize("n_samples", [1, 3])
@pytest.mark.parametrize("n_features", [PART * 3 + 1, MILLION])
def test_softmax_over_any_number_of_features_is_right(n_features, n_samples):
    z = alike(np.random.default_rng(2), n_samples, n_features).copy()
    z[:, 1] += 0.3
    h = np.append(panels_of(z), np.zeros(panel_width("float32"), np.float32))
    activate("softmax", h, n_features, n_samples)
    np.testing.assert_allclose(h[: z.size], panels_of(reference.softmax(z.astype(float))), rtol=RTOL)
