"""No activation, derivative or moment of a fit is subnormal, whatever the data, nor what a user gets to see."""

import ctypes

import numpy as np
import pytest

import fastbp
from cases import ACTIVATIONS, DTYPES
from fastbp import program
from fastbp.program import Program
from subnormals import are_subnormal, assert_no_subnormals

# Pre-activations, and scales of the data, at which activations or derivatives vanish.
SHIFTS = (-1.0, -13.0, -40.0, -75.0, -87.5, -95.0, -104.0, -710.0, -740.0, 30.0)
SCALES = (1.0, 1e-10, 1e-19, 1e-30, 1e-37, 1e-40, 1e-150, 1e-300, 1e-310)


@pytest.fixture
def programs(monkeypatch):
    """The programs that are made during a test."""
    made = []

    class Kept(Program):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            if self.plan.trains:
                made.append(self)

    monkeypatch.setattr(program, "Program", Kept)
    return made


def floats_at(address, n, dtype):
    return np.frombuffer((ctypes.c_char * (int(n) * dtype.itemsize)).from_address(int(address)), dtype)


def buffers(each):
    """Names and contents of all that holds activations and derivatives; the loss reads the outputs as they come."""
    dtype = each.plan.architecture.dtype
    for index, layer in enumerate(each.layers):
        n_out, n = layer["n_out"], each.plan.super_block
        yield f"dz of layer {index}", floats_at(layer["gradient"]["dz"], n_out * n, dtype)
        for name in ("z", "h_out") if layer["activation"] else ():
            yield f"{name} of layer {index}", floats_at(layer[name], n_out * n, dtype)


def assert_clean(trainer, programs):
    assert programs
    for each in programs:
        for name, values in buffers(each):
            assert_no_subnormals(values, name)
    assert_no_subnormals(trainer._run.buffers.moments, "moments")


def data(sizes, n_samples, shift, scale, dtype):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n_samples, sizes[0])), rng.normal(size=(n_samples, sizes[-1]))
    x[:, 0] = shift
    with np.errstate(under="ignore"):
        x[:, 1:] *= scale
        return x, (y * scale).astype(dtype)


def fit(sizes, activation, dtype, x, y, optimizer, batch_size=64, **options):
    """Train a model whose first pre-activations are near the first column of x."""
    model = fastbp.MLP(sizes, activation, seed=0, dtype=dtype, **options)
    model.weights[0][0] = 1
    trainer = fastbp.Trainer(model, optimizer=optimizer, batch_size=batch_size, seed=0)
    trainer.fit(x, y, epochs=2)
    return trainer


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_fit_of_saturated_units_leaves_no_subnormal(activation, dtype, programs):
    sizes = (3, 17, 9, 2)
    for shift in SHIFTS:
        x, y = data(sizes, 200, shift, 1.0, dtype)
        trainer = fit(sizes, activation, dtype, x, y, fastbp.SGD(1e-30))
        assert_clean(trainer, programs)
        loss, grad = trainer.model.loss_and_grad(x, y)
        assert np.isfinite(loss)
        assert_no_subnormals(grad, "gradient of the whole data")
        assert_no_subnormals(trainer.model.predict(x), "outputs")
        programs.clear()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_fit_of_tiny_data_leaves_no_subnormal(activation, dtype, programs):
    sizes = (3, 17, 9, 2)
    for scale in SCALES:
        x, y = data(sizes, 200, scale, scale, dtype)
        trainer = fit(sizes, activation, dtype, x, y, fastbp.Adam(1e-3))
        assert_clean(trainer, programs)
        assert_no_subnormals(trainer.model.predict(x), "outputs")
        assert_no_subnormals(trainer.model.loss_and_grad(x, y)[1], "gradient of the whole data")
        programs.clear()


# Both of many super-blocks and of one, with lists of what is not zero, and with packed weights.
LARGE = [((3, 150, 130, 1), 300, "tanh"), ((193, 353, 97, 5), 1100, "relu"), ((3, 300, 601, 35), 290, "relu")]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("sizes", "n_samples", "activation"), LARGE)
def test_fit_of_large_network_leaves_no_subnormal(sizes, n_samples, activation, dtype, programs):
    for shift, scale in ((-40.0, 1.0), (1e-20, 1e-20), (1.0, 1e-37), (1e-38, 1e-38)):
        x, y = data(sizes, n_samples, shift, scale, dtype)
        trainer = fit(sizes, activation, dtype, x, y, fastbp.AdamW(1e-3), batch_size=n_samples)
        assert_clean(trainer, programs)
        programs.clear()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("loss", "output"), [("binary_cross_entropy", "sigmoid"), ("cross_entropy", "softmax"),
                                              ("mse", "softplus"), ("huber", "gelu"), ("mae", "identity")])  # fmt: skip
def test_fit_of_each_loss_with_sure_outputs_leaves_no_subnormal(loss, output, dtype, programs):
    sizes = (3, 17, 9, 4)
    for shift in (0.0, 20.0, 44.0, 85.0, 95.0, 700.0):
        x, y = data(sizes, 200, 1.0, 1.0, dtype)
        if loss == "cross_entropy":
            y = np.arange(200) % 4
        elif loss == "binary_cross_entropy":
            y = (y > 0).astype(int)
        trainer = fit(sizes, "tanh", dtype, x, y, fastbp.SGD(1e-30), output=output, loss=loss)
        trainer.model.biases[-1][:] = (shift, -shift, 0, shift / 2)
        trainer.fit(x, y, epochs=1)
        assert_clean(trainer, programs)
        assert_no_subnormals(trainer.model.predict(x), "outputs")
        programs.clear()


@pytest.mark.parametrize("dtype", DTYPES)
def test_decayed_weights_of_an_unused_input_become_zero(dtype, programs):
    x = np.random.default_rng(0).normal(size=(64, 3))
    x[:, 1] = 0
    model = fastbp.MLP([3, 8, 1], seed=0, dtype=dtype)
    assert (model.weights[0][1] != 0).all()
    trainer = fastbp.Trainer(model, optimizer=fastbp.AdamW(0.5, weight_decay=1.0), batch_size=32, seed=0)
    for _ in range(30):
        trainer.fit(x, np.zeros(64), epochs=20)
        assert_clean(trainer, programs)
        assert_no_subnormals(trainer.model.params, "parameters")
    assert (model.weights[0][1] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
def test_prediction_near_the_subnormals_has_the_same_bits_alone_and_in_a_batch(activation, dtype):
    # Parts of the sums are subnormal, and some of the sums: in blocks of packed weights, in lists, and in one go.
    sizes, scale = [300, 301, 300, 2], {"float32": 1e-19, "float64": 1e-154}[dtype]
    model = fastbp.MLP(sizes, activation, seed=0, dtype=dtype)
    model.weights[0][:] *= scale
    x = np.random.default_rng(1).normal(size=(600, 300)) * scale * np.geomspace(1, 1e8, 600)[:, None]
    together = model.predict(x)
    assert_no_subnormals(together)
    assert (together != 0).any()
    alone = np.concatenate([model.predict(x[i : i + 1]) for i in range(0, 600, 7)])
    few = np.concatenate([model.predict(x[i : i + 3]) for i in range(0, 600, 30)])
    np.testing.assert_array_equal(alone, together[::7])
    np.testing.assert_array_equal(few, together.reshape(20, 30, 2)[:, :3].reshape(-1, 2))


def test_weights_that_a_user_sets_may_be_subnormal_and_are_used_as_they_are():
    model = fastbp.MLP([1, 1], seed=0)
    model.weights[0][:] = 1e-40
    assert are_subnormal(model.params).any()
    np.testing.assert_allclose(model.predict([[1e38]]), [[1e-2]], rtol=1e-5)
