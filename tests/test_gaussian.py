"""The loss whose outputs are twice as many as its targets: means, and logarithms of variances."""

import numpy as np
import pytest
from numba import njit

import fastbp
import reference
from fastbp import embed
from problems import bits

SIZES = [(3, 2), (3, 8, 6), (3, 200, 180, 2)]


def data(n_targets, n=50, dtype=np.float64):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 3)).astype(dtype), rng.normal(0, 2, (n, n_targets)).astype(dtype)


def model(sizes=(3, 8, 6), output="identity", dtype="float64"):
    return fastbp.MLP(sizes, "tanh", output, loss="gaussian_nll", dtype=dtype, seed=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("output", ["identity", "tanh", "softplus"])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("n", [1, 7, 50, 1100])
def test_loss_and_gradient_are_those_of_the_twin(n, sizes, output, dtype):
    net = model(sizes, output, dtype)
    x, y = data(sizes[-1] // 2, n, dtype)
    loss, grad = net.loss_and_grad(x, y)
    expected, expected_grad = reference.loss_and_grad(
        sizes, "tanh", output, "gaussian_nll", net.params.astype(float), x.astype(float), y.astype(float)
    )
    tolerance = {"float32": 2e-4, "float64": 1e-10}[dtype]
    assert loss == net.loss(x, y) == pytest.approx(expected, rel=tolerance)
    np.testing.assert_allclose(grad, expected_grad, rtol=tolerance, atol=tolerance * np.abs(expected_grad).max())


@pytest.mark.parametrize("sizes", SIZES)
def test_loss_is_pytorchs(sizes):
    torch = pytest.importorskip("torch")
    net, (x, y) = model(sizes), data(sizes[-1] // 2)
    mean, s = np.split(net.predict(x), 2, axis=1)
    theirs = torch.nn.GaussianNLLLoss()(torch.tensor(mean), torch.tensor(y), torch.tensor(np.exp(s)))
    assert net.loss(x, y) == pytest.approx(theirs.item(), rel=1e-12)


def test_gradient_is_exact():
    assert fastbp.check_gradient(model(), *data(3))


def test_weighted_sample_counts_as_often_as_its_weight_says():
    x, y = data(3)
    weights = np.random.default_rng(1).integers(0, 4, 50)
    (loss, grad), (expected, expected_grad) = (
        model().loss_and_grad(x, y, weights),
        model().loss_and_grad(np.repeat(x, weights, axis=0), np.repeat(y, weights, axis=0)),
    )
    assert loss == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-9, atol=1e-13)


def test_log_variances_are_clipped_and_come_back():
    net = fastbp.MLP([1, 2], loss="gaussian_nll", dtype="float64", init=[0.0, 0.0, 0.0, -40.0])
    x, y = np.zeros((4, 1)), np.full(4, 1e-3)
    assert net.loss(x, y) == pytest.approx((-np.log(1e6) + 1e-6 * 1e6) / 2)
    assert net.loss_and_grad(x, 2 * y)[1][3] < 0, "a larger variance is better, so it grows"
    net.params[3] = np.inf
    with pytest.warns(RuntimeWarning):
        assert not np.isfinite(net.loss(x, y))


@njit
def step(learner, x, y):
    return embed.train_step(learner, x, y)


@njit
def gradient(learner, x, y, grad):
    return embed.loss_and_grad(learner, x, y, grad)


def trainer_of(threads=1, sizes=(3, 200, 180, 6)):
    net = model(sizes, dtype="float32")
    return fastbp.Trainer(net, batch_size=25, shuffle=False, threads=threads, seed=0)


def test_all_doors_and_threads_give_the_same_bits():
    x, y = data(3, dtype=np.float32)
    fits = [trainer_of(), trainer_of(2)]
    for trainer in fits:
        trainer.fit(x, y, epochs=3, validation_data=(x, y))
    by_steps, embedded = trainer_of(), trainer_of()
    learner = embedded.compiled(25)
    for _ in range(3):
        for batch in (slice(0, 25), slice(25, 50)):
            by_steps.step(x[batch], y[batch])
            assert step(learner, x[batch], y[batch]) == embed.OK
    expected = bits(fits[0].model.params)
    for other in (fits[1], by_steps, embedded):
        np.testing.assert_array_equal(bits(other.model.params), expected)


def test_targets_are_half_as_wide_as_outputs_for_every_caller():
    x, y = data(3, dtype=np.float32)
    trainer = trainer_of(sizes=(3, 8, 6))
    wide = np.hstack([y, y])
    for call in (trainer.fit, trainer.step, trainer.model.loss, trainer.model.loss_and_grad):
        with pytest.raises(ValueError, match=r"y must have shape \(n_samples, 3\), got \(50, 6\)"):
            call(x, wide)
    learner = trainer.compiled(50)
    assert step(learner, x, wide) == embed.Y_SHAPE
    assert step(learner, x, y) == embed.OK
    grad = np.empty(trainer.model.n_params, np.float32)
    loss = trainer.model.loss(x, y)
    assert gradient(learner, x, y, grad) == embed.OK
    assert embed.loss(learner) == loss
    trainer.step_from(x, np.zeros((50, 6), np.float32))  # what comes from outside is as wide as the outputs
    with pytest.raises(ValueError, match=r"d_out must have shape \(n_samples, 6\), got \(50, 3\)"):
        trainer.step_from(x, y)
    one = fastbp.MLP([3, 2], loss="gaussian_nll", seed=0)
    assert one.loss(x, y[:, 0]) == one.loss(x, y[:, :1])
    with pytest.raises(ValueError, match=r"gaussian_nll' needs an even number of outputs, .*, got 3"):
        fastbp.MLP([3, 3], loss="gaussian_nll")


def test_noise_that_grows_with_x_is_learnt():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (4000, 1))
    deviation = 0.1 + 0.4 * (x + 1)
    y = np.sin(3 * x) + deviation * rng.normal(size=x.shape)
    net = fastbp.MLP([1, 32, 32, 2], "tanh", loss="gaussian_nll", seed=0)
    net.fit(x, y, epochs=60, batch_size=64, optimizer=fastbp.Adam(3e-3), seed=0)
    mean, s = net.predict(x).T
    assert np.sqrt(np.mean((mean - np.sin(3 * x[:, 0])) ** 2)) < 0.1
    assert np.median(np.abs(np.exp(s / 2) / deviation[:, 0] - 1)) < 0.1
