"""Loss leaves against the naive twin, at odd sizes, with NaN in the padding and guard pages behind it."""

import re

import numpy as np
import pytest

import reference
from fastbp.kernels.losses import COUNTS, FRACTIONS, LABELS, LOSSES, SIGNS, VALUES
from fastbp.kernels.panels import panel_width
from fastbp.kernels.target import lanes
from guards import guarded, needs_guard_pages
from leaves import compare, panels_of

FLOATS = ["float32", "float64"]
OF_VALUES = [name for name, loss in LOSSES.items() if loss.targets == VALUES]
ELEMENTWISE = [name for name, loss in LOSSES.items() if loss.targets != LABELS]
# Relative to the largest value: float32 sums of some hundred terms.
RTOL = {"float32": 2e-6, "float64": 4e-15}


def padded(matrix, at_start=False):
    """The panels of a matrix, with NaN up to a whole vector, beside a guard page."""
    panels = panels_of(matrix)
    padding = -panels.size % lanes(matrix.dtype)
    return guarded(np.concatenate([panels, np.full(padding, np.nan, matrix.dtype)]), at_start)


def run(name, output, targets, scale=1.0, at_start=False, weights=None):
    """(d as panels, sum of the losses, number of right answers) for matrices of outputs and targets."""
    n_samples, n_out = output.shape
    d, sums = padded(np.full_like(output, 77), at_start), guarded(np.full(2, 77.0), at_start)
    arrays = padded(output, at_start), padded(targets, at_start)
    if weights is not None:
        weights = padded(weights[:, np.newaxis], at_start)
    compare(name, *arrays, d, n_out, n_samples, scale, sums, weights)
    return d[: output.size], *sums


def problem(name, n_samples, n_out, dtype):
    """Outputs and targets of both sides of every kink."""
    rng = np.random.default_rng(n_samples * 100 + n_out)
    output = rng.normal(0, 3, (n_samples, n_out))
    if LOSSES[name].outputs_per_target == 2:
        return np.hstack([output, output[:, ::-1]]).astype(dtype), rng.normal(0, 3, (n_samples, n_out)).astype(dtype)
    if LOSSES[name].targets == LABELS:
        targets = rng.dirichlet(np.ones(n_out), n_samples)
        targets[::2] = np.eye(n_out)[rng.integers(0, n_out, len(targets[::2]))]
    elif LOSSES[name].targets == FRACTIONS:
        targets = np.where(rng.random((n_samples, n_out)) < 0.7, rng.integers(0, 2, (n_samples, n_out)), 0.3)
    elif LOSSES[name].targets == SIGNS:
        targets = rng.choice([-1.0, 1.0], (n_samples, n_out))
    elif LOSSES[name].targets == COUNTS:
        targets = rng.poisson(1.0, (n_samples, n_out))
    else:
        targets = np.where(rng.random((n_samples, n_out)) < 0.1, output, rng.normal(0, 3, (n_samples, n_out)))
    return output.astype(dtype), targets.astype(dtype)


def sample_counts(dtype):
    panel = panel_width(dtype)
    return [1, 3, 7, 8, 33, panel - 1, panel, panel + 1, 2 * panel + 5]


def test_losses_are_all_there():
    assert set(LOSSES) == {*reference.PERMITTED_OUTPUTS, "gaussian_nll"}
    for name, loss in LOSSES.items():
        if loss.output is not None:
            assert reference.PERMITTED_OUTPUTS[name] == (loss.output,)


@needs_guard_pages
@pytest.mark.parametrize("at_start", [False, True])
@pytest.mark.parametrize("n_out", [1, 3, 10])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_derivative_any_size_equal_reference(name, dtype, n_out, at_start):
    for n_samples in sample_counts(dtype):
        output, targets = problem(name, n_samples, n_out, dtype)
        d, total, _ = run(name, output, targets, 1 / n_samples, at_start)
        z, t = output.astype(np.float64), targets.astype(np.float64)
        expected_d = reference.gradient_of_outputs(name, "identity", z, t)
        expected_total = reference.loss_of_outputs(name, "identity", z, t) * n_samples
        scale = np.abs(expected_d).max() + 1 / t.size
        np.testing.assert_allclose(d, panels_of(expected_d.astype(dtype)), rtol=0, atol=RTOL[dtype] * scale)
        np.testing.assert_allclose(total, expected_total, rtol=RTOL[dtype], atol=RTOL[dtype])


@needs_guard_pages
@pytest.mark.parametrize("at_start", [False, True])
@pytest.mark.parametrize("n_out", [1, 3, 10])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", LOSSES)
def test_weighted_samples_count_as_much_as_their_weights(name, dtype, n_out, at_start):
    for n_samples in sample_counts(dtype):
        output, targets = problem(name, n_samples, n_out, dtype)
        weights = np.random.default_rng(n_samples).integers(0, 4, n_samples).astype(dtype) / 2
        d, total, right = run(name, output, targets, 0.25, at_start, weights)
        alone = [run(name, output[[i]], targets[[i]]) for i in range(n_samples)]
        expected = np.array([weight * each[0] / 4 for weight, each in zip(weights, alone, strict=True)], dtype)
        np.testing.assert_allclose(d, panels_of(expected), rtol=0, atol=RTOL[dtype] * (np.abs(expected).max() + 1))
        sums = [np.sum([w * each[k] for w, each in zip(weights, alone, strict=True)]) for k in (1, 2)]
        np.testing.assert_allclose([total, right], sums, rtol=RTOL[dtype], atol=RTOL[dtype])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", LOSSES)
def test_derivative_is_proportional_to_the_scale(name, dtype):
    output, targets = problem(name, 9, 3, dtype)
    d, total, _ = run(name, output, targets)
    d_quarter, total_quarter, _ = run(name, output, targets, 0.25)
    np.testing.assert_array_equal(d_quarter, d * d.dtype.type(0.25))
    assert total_quarter == total


@pytest.mark.parametrize("dtype", FLOATS)
def test_cross_entropy_counts_samples_whose_first_largest_output_is_right(dtype):
    for n_samples in sample_counts(dtype):
        output, targets = problem("cross_entropy", n_samples, 4, dtype)
        output[::3] = np.round(output[::3])
        expected = np.sum(targets[np.arange(n_samples), output.argmax(axis=1)] == targets.max(axis=1))
        assert run("cross_entropy", output, targets)[2] == expected
    tied = np.array([[1, 1, 0]], dtype)
    assert run("cross_entropy", tied, np.array([[1, 0, 0]], dtype))[2] == 1
    assert run("cross_entropy", tied, np.array([[0, 1, 0]], dtype))[2] == 0


@pytest.mark.parametrize("dtype", FLOATS)
def test_binary_cross_entropy_counts_outputs_on_their_side(dtype):
    for n_samples in sample_counts(dtype):
        output, targets = problem("binary_cross_entropy", n_samples, 3, dtype)
        assert run("binary_cross_entropy", output, targets)[2] == np.sum((output > 0) == (targets > 0.5))
    assert run("binary_cross_entropy", np.zeros((1, 2), dtype), np.array([[0, 1]], dtype))[2] == 1


@pytest.mark.parametrize("name", OF_VALUES)
def test_losses_of_numbers_count_nothing(name):
    assert run(name, np.ones((3, 2)), np.ones((3, 2)))[2] == 0


@pytest.mark.parametrize("dtype", FLOATS)
def test_mae_derivative_at_zero_is_zero(dtype):
    d, total, _ = run("mae", np.array([[1], [2], [3]], dtype), np.array([[1], [5], [1]], dtype))
    np.testing.assert_array_equal(d, [0, -1, 1])
    assert total == 5


@pytest.mark.parametrize("dtype", FLOATS)
def test_cross_entropy_extreme_logits_stay_exact(dtype):
    output = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 0], [5, -np.inf, -np.inf], [-1e30, 0, 1e30]], dtype)
    targets = np.eye(3, dtype=dtype)[[0, 0, 0, 2]]
    d, total, right = run("cross_entropy", output, targets)
    np.testing.assert_array_equal(d, panels_of(np.array([[0, 0, 0], [-1, 1, 0], [0, 0, 0], [0, 0, 0]], dtype)))
    assert (total, right) == (2e4, 3)
    assert run("cross_entropy", output[2:3], targets[1:2] * 0 + np.array([0, 1, 0], dtype))[1] == np.inf


@pytest.mark.parametrize("dtype", FLOATS)
def test_binary_cross_entropy_extreme_logits_stay_exact(dtype):
    output = np.array([[1e4], [-1e4], [np.inf], [-np.inf], [1e4], [-1e4]], dtype)
    targets = np.array([[1], [0], [1], [0], [0], [1]], dtype)
    d, total, right = run("binary_cross_entropy", output, targets)
    np.testing.assert_array_equal(d, [0, 0, 0, 0, 1, -1])
    assert (total, right) == (2e4, 4)
    assert run("binary_cross_entropy", output[2:3], targets[1:2])[1] == np.inf


@pytest.mark.parametrize("dtype", FLOATS)
def test_confident_right_answers_keep_a_small_loss(dtype):
    z = np.array([[20.0]], dtype)
    expected = np.log1p(np.exp(-20.0))
    rtol = 8 * np.finfo(dtype).eps
    np.testing.assert_allclose(run("binary_cross_entropy", z, np.ones_like(z))[1], expected, rtol=rtol)
    d, _, _ = run("binary_cross_entropy", -z, np.zeros_like(z))
    np.testing.assert_allclose(d, np.exp(-20.0) / (1 + np.exp(-20.0)), rtol=rtol)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", OF_VALUES)
def test_non_finite_output_anywhere_gives_a_non_finite_sum(name, dtype, bad):
    for position in range(9):
        output, targets = problem(name, 3, 3, dtype)
        output.flat[position] = bad
        assert not np.isfinite(run(name, output, targets)[1])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["binary_cross_entropy", "cross_entropy"])
def test_nan_output_anywhere_gives_a_nan_sum(name, dtype):
    for position in range(9):
        output, targets = problem(name, 3, 3, dtype)
        output.flat[position] = np.nan
        assert np.isnan(run(name, output, targets)[1])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", LOSSES)
def test_derivative_equals_central_differences(name, dtype):
    output, targets = problem(name, 5, 3, np.float64)
    # No step of h may cross a kink.
    if output.shape == targets.shape:
        output += np.where(np.abs(output - targets) < 1e-3, 0.5, 0)
    h = 1e-6

    def loss_at(position, step):
        moved = output.copy()
        moved.flat[position] += step
        return run(name, moved, targets)[1]

    expected = [(loss_at(i, h) - loss_at(i, -h)) / (2 * h) for i in range(output.size)]
    d, _, _ = run(name, output.astype(dtype), targets.astype(dtype))
    tolerance = 1e-7 if dtype == "float64" else 1e-5
    expected = panels_of(np.reshape(expected, output.shape).astype(dtype))
    np.testing.assert_allclose(d, expected, rtol=1e-6, atol=tolerance)


@pytest.mark.parametrize("name", LOSSES)
def test_float32_code_holds_no_double_arithmetic(name):
    # The scale comes and the sums go as float64: these conversions are allowed.
    assert not re.search(
        r"(\b(fadd|fsub|fmul|fdiv|fneg|fcmp)\b.*\bdouble\b|@llvm\.\w+\.(v\d+)?f64)", LOSSES[name].leaf.llvm("float32")
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["binary_cross_entropy", "cross_entropy"])
def test_probabilities_too_small_to_count_leave_no_subnormals(name, dtype):
    n_samples, n_out = 40, 4
    limits = np.finfo(dtype)
    output = np.linspace(0.0, 1.2 * np.log(limits.tiny), n_samples * n_out).reshape(n_samples, n_out).astype(dtype)
    output[:, 0] = 0.0  # the largest of each sample, and the right class
    targets = np.zeros_like(output)
    targets[:, 0] = 1.0
    d, total, n_right = run(name, output, targets, scale=1.0)

    assert np.isfinite(total)
    assert n_right == (n_samples if name == "cross_entropy" else output.size - n_samples)
    small = np.abs(d[d != 0.0])
    assert small.min() >= 0.2 * np.sqrt(limits.tiny)
    assert small.min() < 1e6 * np.sqrt(limits.tiny)  # no larger ones are lost
    assert (d == 0.0).sum() > n_samples
