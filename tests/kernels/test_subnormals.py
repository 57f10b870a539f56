"""Activations, losses and updates store no subnormal and do no arithmetic on one, whatever products have left."""

import numpy as np
import pytest

import fastbp
import leaves
from cases import OPTIMIZERS
from fastbp.kernels import gather, updates
from fastbp.kernels.activations import ACTIVATIONS
from fastbp.kernels.losses import COUNTS, LABELS, LOSSES, SIGNS, VALUES
from fastbp.kernels.panels import panel_width
from leaves import call, coefficients_of, panels_of
from subnormals import StatusFlags, are_subnormal, assert_no_subnormals, grid, kept, needs_status_flags

DTYPES = ["float32", "float64"]
# Derivatives that come in, down to the smallest subnormals.
DERIVATIVES = (1.0, -1e-3, 1e-10, -1e-18, 1e-20, 1e-30, 1e-37, -1e-40, 1e-45, 1e-150, 1e-160, 1e-300, -1e-310)


def whole_panels(values):
    """The values, and as many zeros as fill the last panel."""
    return np.pad(values, (0, -values.size % panel_width(values.dtype)))


def pre_activations(name, dtype):
    """Number of features, and all numbers of the grid as panels: of a softmax each beside 0, its half and negative."""
    z, n_features = whole_panels(grid(dtype)), 4 if name == "softmax" else 1
    if name == "exp":
        z = np.minimum(z, 80)  # whose power is finite
    return n_features, panels_of(np.stack([z, 0 * z, z / 2, -z][:n_features], axis=1))


def forward(name, n_features, h):
    """Turn pre-activations into activations."""
    leaves.activate(name, h, n_features, h.size // n_features)


def derivatives(dtype):
    with np.errstate(under="ignore"):
        return np.unique(np.array(DERIVATIVES, dtype))


def problems(name, dtype):
    """Derivatives that come in, and the z and h of each."""
    n_features, h = pre_activations(name, dtype)
    z = kept(h)  # as it is copied
    forward(name, n_features, h)
    for derivative in derivatives(dtype):
        yield np.full_like(z, derivative), z if ACTIVATIONS[name].keeps_z else h, h


def backward(name, d, z, h):
    """Turn derivatives by h into those by z."""
    leaves.differentiate(name, d, z, h, d.size, 4 if name == "softmax" else 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_forward_of_any_number_stores_no_subnormal(name, dtype):
    n_features, h = pre_activations(name, dtype)
    forward(name, n_features, h)
    assert np.isfinite(h).all()
    assert_no_subnormals(h)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_backward_of_any_derivative_stores_no_subnormal(name, dtype):
    for d, z, h in problems(name, dtype):
        backward(name, d, z, h)
        assert np.isfinite(d).all()
        assert_no_subnormals(d)


@needs_status_flags
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_forward_does_no_arithmetic_on_subnormals(name, dtype):
    n_features, h = pre_activations(name, dtype)
    forward(name, n_features, h.copy())  # compiles
    with StatusFlags() as flags:
        forward(name, n_features, h)
    assert not flags.operand
    assert not flags.result


@needs_status_flags
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_backward_does_no_arithmetic_on_subnormals(name, dtype):
    for d, z, h in problems(name, dtype):
        backward(name, d.copy(), z, h)  # compiles
        with StatusFlags() as flags:
            backward(name, d, z, h)
        assert not flags.operand
        assert not flags.result


@needs_status_flags
@pytest.mark.parametrize("dtype", DTYPES)
def test_status_flags_tell_subnormal_operands_and_results(dtype):
    limits = np.finfo(dtype)
    for value, factor, operand, result in (
        (1.0, 1.0, False, False),
        (limits.tiny, 1.0, False, False),
        (limits.smallest_subnormal, 1.0, True, False),
        (limits.tiny * 1.25, 0.3, False, True),
    ):
        params = np.full(panel_width(dtype), value, dtype)
        call(updates.shrink, dtype, params, 1, params.size, params.size, 1.0)  # compiles
        params[:] = value
        with StatusFlags() as flags:
            call(updates.shrink, dtype, params, 1, params.size, params.size, factor)
        assert (flags.operand, flags.result) == (operand, result)


def comparisons(name, dtype):
    """Outputs and targets, whole panels of 4 outputs: all combinations of numbers of the grid, kept as they are stored.

    Targets are probabilities where the loss wants such, and any number near the output elsewhere.
    """
    z = kept(grid(dtype)[::5])
    if LOSSES[name].targets == VALUES:
        steps = (0.0, 1.0, 1 + np.finfo(dtype).eps, 0.5)
        output, targets = (np.concatenate(parts) for parts in ([z] * len(steps), [z * z.dtype.type(s) for s in steps]))
        return np.resize(output, (output.size // 4, 4)), np.resize(targets, (output.size // 4, 4))
    if LOSSES[name].targets == COUNTS:
        z = np.minimum(z, 80)  # whose power is finite
    probabilities = np.resize(np.abs(z[np.abs(z) <= 1]), (z.size, 4))
    if LOSSES[name].targets == LABELS:
        probabilities[:, 1:] /= 4
        probabilities[:, 0] = 1 - probabilities[:, 1:].sum(axis=1)
    if LOSSES[name].targets == SIGNS:
        probabilities = np.where(probabilities < 0.5, -1, 1).astype(dtype)
    return kept(np.stack([z, 0 * z, z / 2, -z if LOSSES[name].targets != COUNTS else -z / 10], axis=1)), kept(
        probabilities
    )


def compare(name, arrays, n_out, scale):
    """Write the loss's derivatives to the last of the arrays of panels: outputs, targets, derivatives."""
    sums = np.zeros(2)
    leaves.compare(name, *arrays, n_out, arrays[0].size // n_out, scale, sums)


SCALES = [1.0, 1 / 64, 1e-6]


def compared(name, dtype):
    """Panels of outputs, targets and derivatives with room for a vector more, and the number of outputs."""
    output, targets = comparisons(name, dtype)
    arrays = [whole_panels(panels_of(matrix)) for matrix in (output, targets)]
    return [*arrays, np.zeros_like(arrays[0])], output.shape[1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LOSSES)
def test_loss_stores_no_subnormal(name, dtype):
    arrays, n_out = compared(name, dtype)
    for scale in SCALES:
        compare(name, arrays, n_out, scale)
        assert np.isfinite(arrays[2]).all()
        assert (arrays[2] != 0).any()
        assert_no_subnormals(arrays[2])


@needs_status_flags
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LOSSES)
def test_loss_does_no_arithmetic_on_subnormals(name, dtype):
    arrays, n_out = compared(name, dtype)
    compare(name, arrays, n_out, 1.0)  # compiles
    for scale in SCALES:
        with StatusFlags() as flags:
            compare(name, arrays, n_out, scale)
        assert not flags.operand
        assert not flags.result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("leaf", [gather.copy, updates.flush_rows])
def test_copies_and_gradients_without_update_are_flushed(leaf, dtype):
    values = whole_panels(grid(dtype))
    out = values.copy()
    call(leaf, dtype, *((values, out, out.size) if leaf is gather.copy else (out, 1, out.size, out.size)))
    np.testing.assert_array_equal(out, kept(values))
    assert are_subnormal(values).any()


# Steps large enough for the moments of some to matter, and decay to end.
VANISHING = (*OPTIMIZERS, fastbp.Adam(0.01, beta1=0.5, beta2=0.6, eps=1.0), fastbp.AdamW(0.5, weight_decay=1.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", VANISHING, ids=repr)
def test_updates_with_vanishing_gradients_store_no_subnormal(optimizer, dtype):
    limits, rule = np.finfo(dtype), updates.RULES[optimizer.rule]
    with np.errstate(under="ignore"):
        start = np.resize(np.geomspace(limits.tiny, 1.0, 40).astype(dtype), 128)
        start[::3] = 0  # as biases begin: nothing hides a tiny step
    params, state = start.copy(), np.zeros((max(1, len(optimizer.moments)), start.size), dtype)
    shrinking = 0.5 if dtype == "float32" else 0.3  # reaches 0 within the steps
    grads = (np.where(np.arange(start.size) % 2, 1, -1) * np.geomspace(limits.tiny, 1e3, start.size)).astype(dtype)
    for step in range(900):
        coefficients = coefficients_of(optimizer, step)
        if rule.shrink is not None:
            call(rule.shrink, dtype, params, 1, params.size, params.size, coefficients[updates.DECAY])
            assert_no_subnormals(params, f"shrunk, step {step}")
        flag = call(rule.update, dtype, params, grads, state, start.size, 1, start.size, start.size, start.size,
                    optimizer.constants, coefficients)  # fmt: skip
        assert flag == 0
        assert_no_subnormals(state, f"moments, step {step}")
        with np.errstate(under="ignore"):
            grads = (grads * shrinking).astype(dtype)
    assert (grads == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_shrink_decays_to_zero_without_subnormals(dtype):
    params = np.geomspace(np.finfo(dtype).tiny, 1, 64).astype(dtype)
    for _ in range(2000):
        call(updates.shrink, dtype, params, 1, params.size, params.size, 0.5)
        assert_no_subnormals(params)
    assert (params == 0).all()
