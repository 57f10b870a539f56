"""The record of health beside the naive twin; what is found and what is not; and that nothing else changes."""

import copy
import pickle

import numpy as np
import pytest
from sklearn import datasets

import fastbp
import reference
from fastbp import MLP, SGD, Adam, Trainer
from fastbp.plan import SMALL_NETWORK

SIZES = {"one task": (5, 9, 7, 3), "tiles": (5, 190, 80, 3), "wide": (3, 30, 600, 2)}
FLAT = {
    "relu": lambda z, h: h <= 0,
    "sigmoid": lambda z, h: h * (1 - h) < 0.25 / 20,
    "tanh": lambda z, h: 1 - h * h < 1 / 20,
    "hard_tanh": lambda z, h: abs(h) >= 1,
    "elu": lambda z, h: (h < 0) & (h + 1 < 1 / 20),
    "elu(2.0)": lambda z, h: (h < 0) & (h + 2 < 2 / 20),
    "selu": lambda z, h: h < -1.67,
    "softplus": lambda z, h: h < 0.0513,  # the slope is 1 - exp(-h)
    "gelu": lambda z, h: z < -2.3,
    "silu": lambda z, h: z < -4,
    "mish": lambda z, h: z < -4,
}
TWO_SIDED = ("sigmoid", "tanh", "hard_tanh")


def data(n=200, n_in=5, n_out=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, n_in)), rng.normal(size=(n, n_out))


def norms(sizes, values):
    return [np.sqrt(sum(np.square(part).sum() for part in pair)) for pair in reference.unpack(sizes, values)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_gradients_and_updates_are_the_twins(sizes, dtype):
    assert (reference.n_params(sizes) > SMALL_NETWORK) == (sizes in (SIZES["tiles"], SIZES["wide"]))
    x, y = data(1300, sizes[0], sizes[-1])
    model = MLP(sizes, "tanh", dtype=dtype, seed=0)
    params, rate = model.params.astype(np.float64), 0.03
    health = model.fit(x, y, optimizer=SGD(rate), batch_size=None, epochs=3, health=2, seed=0).health
    np.testing.assert_array_equal(health.step, [0, 2])
    for step in range(3):
        loss, grad = reference.loss_and_grad(sizes, "tanh", "identity", "mse", params, x, y)
        if step % 2 == 0:
            row, tolerance = step // 2, 1e-4 if dtype == "float32" else 1e-10
            assert health.loss[row] == pytest.approx(loss, rel=tolerance)
            np.testing.assert_allclose(health.gradient_norm[row], norms(sizes, grad), rtol=tolerance)
            ratio = rate * np.array(norms(sizes, grad)) / norms(sizes, params)
            np.testing.assert_allclose(health.update_ratio[row], ratio, rtol=50 * tolerance)
        params = reference.sgd(params, grad, {}, learning_rate=rate)


@pytest.mark.parametrize(
    "options", [{"clip_norm": 1e-3}, {"clip_value": 1e-4}, {"regularize": fastbp.L2(0.5)}], ids=str
)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_gradient_is_that_of_the_batch_and_the_update_what_comes_of_it(sizes, options):
    x, y = data(64, sizes[0], sizes[-1])
    model = MLP(sizes, "tanh", dtype="float64", seed=0)
    before = model.params.copy()
    _, grad = model.loss_and_grad(x, y)
    health = model.fit(x, y, optimizer=SGD(0.1), batch_size=64, max_steps=1, health=True, **options).health
    np.testing.assert_allclose(health.gradient_norm[0], norms(sizes, grad), rtol=1e-9)
    ratio = np.array(norms(sizes, model.params - before)) / norms(sizes, before)
    np.testing.assert_allclose(health.update_ratio[0], ratio, rtol=1e-9)


def test_frozen_layers_do_not_move():
    x, y = data()
    for sizes in SIZES.values():
        model = MLP((5, *sizes[1:-1], 3), "tanh", seed=0)
        factors = [(0.0, 0.0)] + [(1.0, 0.5)] * (len(sizes) - 2)
        health = model.fit(x, y, max_steps=1, health=True, rate_factors=factors).health
        assert health.update_ratio[0, 0] == 0.0
        assert (health.update_ratio[0, 1:] > 0.0).all()
        assert health.gradient_norm[0, 0] > 0.0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", FLAT)
@pytest.mark.parametrize("n", [1, 7, 33, 64, 100])
def test_units_are_the_twins(activation, n, dtype):
    sizes = (5, 33, 9, 3)
    rng = np.random.default_rng(n)
    params = 2.0 * rng.normal(size=reference.n_params(sizes))
    x, y = data(n, seed=n)
    model = MLP(sizes, activation, dtype=dtype, init=params)
    health = model.fit(x, y, batch_size=None, shuffle=False, max_steps=1, health=True, seed=0).health
    model.params = params
    h = x[:64]
    name = activation.partition("(")[0]
    for layer, (w, b) in enumerate(reference.unpack(sizes, params)):
        z = h @ w + b
        is_hidden = layer < len(sizes) - 2
        h = MLP((1, 1), output=activation, init=[1.0, 0.0], dtype="float64", loss="mse").predict(z.reshape(-1, 1))
        h = h.reshape(z.shape) if is_hidden else z
        assert health.activation_mean[0, layer] == pytest.approx(h.mean(), rel=1e-4, abs=1e-4)
        assert health.activation_spread[0, layer] == pytest.approx(np.sqrt(h.var(axis=0).mean()), rel=1e-4, abs=1e-6)
        flat = FLAT[activation](z, h)
        if is_hidden and name in TWO_SIDED:
            assert health.saturated[0, layer] == pytest.approx(
                (flat.mean(axis=0) >= 0.95).mean(), abs=1.01 / sizes[layer + 1]
            )
            assert np.isnan(health.dead[0, layer])
        elif is_hidden:
            assert health.dead[0, layer] == pytest.approx(flat.all(axis=0).mean(), abs=1.01 / sizes[layer + 1])
            assert np.isnan(health.saturated[0, layer])
        else:
            assert np.isnan([health.dead[0, layer], health.saturated[0, layer]]).all()


@pytest.mark.parametrize("activation", ["identity", "leaky_relu", "leaky_relu(0.0)"])
def test_activations_that_are_flat_nowhere_have_no_dead_units(activation):
    x, y = data()
    health = MLP((5, 8, 3), activation, seed=0).fit(x, y, epochs=1, health=True).health
    assert np.isnan(health.dead).all()
    assert np.isnan(health.saturated).all()
    assert health.report()


CASES = {
    "plain": {},
    "clipped, averaged, dropped": {
        "clip_norm": 0.1,
        "ema": 0.9,
        "regularize": [fastbp.Dropout(0.3), fastbp.MaxNorm(2.0), fastbp.L1(1e-3)],
        "rate_factors": [(1.0, 0.1)] * 3,
    },
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_health_changes_no_bit_and_is_the_same_for_any_threads_and_cuts(sizes, options):
    x, y = data(700, sizes[0], sizes[-1])

    def trainer(**more):
        return Trainer(MLP(sizes, "tanh", seed=0), batch_size=97, seed=0, **options, **more)

    plain, watched, threads, cut = trainer(), trainer(), trainer(threads=2), trainer()
    plain.fit(x, y, epochs=3)
    watched.fit(x, y, epochs=3, health=5)
    threads.fit(x, y, epochs=3, health=5)
    for n in (1, 7, 3, 11, 2):
        cut.fit(x, y, max_steps=n, epochs=None, health=5)
        cut = pickle.loads(pickle.dumps(cut))
    for other in (watched, threads, cut):
        assert other.model.params.tobytes() == plain.model.params.tobytes()
        health = other.history.health
        np.testing.assert_array_equal(health.step, [0, 5, 10, 15, 20])
        for name in ("loss", "gradient_norm", "update_ratio", "activation_mean", "activation_spread"):
            assert getattr(health, name).tobytes() == getattr(watched.history.health, name).tobytes(), name


def test_many_records_of_one_call_are_all_there():
    x, y = data(64)
    health = MLP((5, 4, 3), seed=0).fit(x, y, batch_size=1, epochs=20, health=1).health
    np.testing.assert_array_equal(health.step, np.arange(20 * 64))
    assert np.isfinite(health.gradient_norm).all()


def test_copies_share_nothing_and_nobody_else_writes():
    x, y = data()
    history = MLP((5, 4, 3), seed=0).fit(x, y, epochs=2, health=1)
    other = copy.copy(history.health)
    history.health.loss[:] = 0.0
    history.health.gradient_norm[:] = 0.0
    assert other.loss.tobytes() == history.health.loss.tobytes()
    assert (history.health.gradient_norm > 0.0).all()
    assert len(other) == 14
    with pytest.raises(AttributeError, match="no attribute 'gradients'"):
        history.health.gradients  # noqa: B018


@pytest.mark.parametrize(
    ("health", "message"),
    [
        (0, "health, if it is no bool, must be a positive integer, got 0"),
        (-1, "positive"),
        (1.5, "positive"),
        ("yes", "pos"),
    ],
)
def test_wrong_health_is_refused_before_the_first_step(health, message):
    x, y = data()
    model = MLP((5, 4, 3), seed=0)
    before = model.params.copy()
    with pytest.raises((TypeError, ValueError), match=message):
        model.fit(x, y, health=health)
    assert model.params.tobytes() == before.tobytes()


def scaled(x):
    return (x - x.mean(axis=0)) / np.where(x.std(axis=0) > 0, x.std(axis=0), 1)


def function(n=2000):
    x = np.random.default_rng(0).normal(size=(n, 6))
    return x, np.sin(x[:, 0] * 2) + x[:, 1] * x[:, 2]


def digits():
    x, y = datasets.load_digits(return_X_y=True)
    return x[:, x.std(axis=0) > 0] / 16, y


def of(load, scales_y=False):
    x, y = load(return_X_y=True)
    return scaled(x), scaled(y) if scales_y else y


def deep(n_hidden, width=64):
    return [6] + [width] * n_hidden + [1]


# Each is a fit that reaches what can be reached: its network, data and options.
HEALTHY = {
    "digits relu": lambda: (MLP([61, 64, 10], "relu", "softmax", seed=0), digits(), {"epochs": 30}),
    "digits tanh": lambda: (
        MLP([61, 32, 32, 10], "tanh", "softmax", seed=0),
        (scaled(digits()[0]), digits()[1]),
        {"epochs": 30, "optimizer": SGD(0.05, momentum=0.9)},
    ),
    "digits dropout": lambda: (
        MLP([61, 128, 10], "relu", "softmax", seed=0),
        digits(),
        {"epochs": 60, "regularize": fastbp.Dropout(0.5)},
    ),
    "cancer": lambda: (
        MLP([30, 16, 1], "sigmoid", "sigmoid", seed=0),
        of(datasets.load_breast_cancer),
        {"epochs": 60},
    ),
    "wine": lambda: (MLP([13, 32, 3], "elu", "softmax", seed=0), of(datasets.load_wine), {"epochs": 100}),
    "iris": lambda: (MLP([4, 16, 16, 3], "selu", "softmax", seed=0), of(datasets.load_iris), {"epochs": 100}),
    "diabetes": lambda: (MLP([10, 64, 64, 1], seed=0), of(datasets.load_diabetes, True), {"epochs": 60}),
    "moons": lambda: (
        MLP([2, 32, 32, 1], "gelu", "sigmoid", seed=0),
        datasets.make_moons(1000, noise=0.2, random_state=0),
        {"epochs": 60, "optimizer": Adam(3e-3)},
    ),
    "function silu": lambda: (MLP([6, 64, 64, 1], "silu", seed=0), function(), {"epochs": 50}),
    "function deep relu": lambda: (MLP(deep(6), "relu", seed=0), function(), {"epochs": 50}),
    "function deep tanh": lambda: (MLP(deep(6, 50), "tanh", seed=0), function(), {"epochs": 50}),
    "function full batch": lambda: (
        MLP([6, 64, 1], "leaky_relu", seed=0),
        function(),
        {"epochs": 2000, "batch_size": None, "optimizer": Adam(1e-2)},
    ),
    "function hard_tanh": lambda: (
        MLP([6, 32, 1], "hard_tanh", seed=0),
        function(),
        {"epochs": 50, "optimizer": SGD(0.05)},
    ),
    "xor": lambda: (
        MLP([2, 8, 1], "tanh", "sigmoid", seed=0),
        ([[0, 0], [0, 1], [1, 0], [1, 1]], [0, 1, 1, 0]),
        {"epochs": 3000},
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_run_gives_no_alarm(name):
    model, (x, y), options = HEALTHY[name]()
    history = model.fit(x, y, health=100, seed=0, **options)
    assert len(history.health) >= 5
    assert history.health.report().findings == ()
    assert bool(history.health.report())
    assert history.loss[-1] < 0.5 * history.loss[0]


def large_weights(*arguments):
    model = MLP(*arguments, seed=0)
    model.params = 0.6 * np.random.default_rng(0).normal(size=model.n_params)
    return model


def constant_column():
    x, y = function()
    x[:, 3] = 7.0
    return x, y


ILL = {
    "vanishing gradient": lambda: (MLP(deep(8, 32), "sigmoid", seed=0), function(), {"optimizer": SGD(0.1)}),
    "exploding": lambda: (large_weights(deep(8), "relu"), function(), {}),
    "exploding, and diverging": lambda: (large_weights(deep(8), "relu"), function(), {"optimizer": SGD(0.01)}),
    "dead units": lambda: (MLP([6, 64, 64, 1], "relu", seed=0), function(), {"optimizer": Adam(1.0)}),
    "saturated units": lambda: (
        MLP([6, 64, 1], "tanh", seed=0),
        (300 * function()[0], function()[1]),
        {},
    ),
    "constant input": lambda: (MLP([6, 64, 1], "tanh", seed=0), constant_column(), {}),
    "unscaled inputs": lambda: (MLP([6, 64, 1], "relu", seed=0), (function()[0] + 50, function()[1]), {}),
    "unscaled inputs, small": lambda: (MLP([6, 64, 1], "relu", seed=0), (1e-5 * function()[0], function()[1]), {}),
    "unscaled targets": lambda: (MLP([6, 64, 1], "tanh", seed=0), (function()[0], 1e6 * function()[1]), {}),
    "unscaled targets, small": lambda: (MLP([6, 64, 1], seed=0), (function()[0], 1e-6 * function()[1]), {}),
    "learning rate too small": lambda: (MLP([6, 64, 64, 1], seed=0), function(), {"optimizer": Adam(1e-5)}),
    "learning rate too large": lambda: (MLP([6, 64, 64, 1], "identity", seed=0), function(), {"optimizer": Adam(1.0)}),
}


@pytest.mark.parametrize("name", ILL)
def test_planted_illness_is_found(name):
    model, (x, y), options = ILL[name]()
    try:
        model.fit(x, y, health=100, seed=0, epochs=20, **options)
    except fastbp.DivergenceError:
        assert name == "exploding, and diverging"
    report = model.history.health.report()
    illness = name.partition(",")[0]
    found = {finding.illness: finding for finding in report.findings}
    assert illness in found, str(report)
    assert bool(report) == found[illness].is_note == (name == "constant input")
    finding = found[illness]
    assert illness in str(report).lower()
    assert f"since step {finding.since}" in str(report)
    assert finding.remedy in str(report)
    if finding.layer is not None:
        assert f"layer {finding.layer}" in finding.text


def test_illness_that_comes_later_says_since_when():
    x, y = function()
    trainer = Trainer(MLP([6, 64, 64, 1], "relu", seed=0), seed=0)
    trainer.fit(x, y, epochs=20, health=50)
    assert trainer.history.health.report()
    began = trainer.n_steps
    trainer.learning_rate = 1.0
    trainer.fit(x, y, epochs=20, health=50)
    found = {finding.illness: finding for finding in trainer.history.health.report().findings}
    assert began <= found["dead units"].since <= began + 300


def test_report_of_nothing_says_so():
    health = Trainer(MLP([6, 4, 1], seed=0)).fit(*function(), max_steps=1, health=True).health
    assert str(health.report()) == "Nothing is wrong in the one step looked at, 0."


def test_pictures_show_every_column(tmp_path):
    from matplotlib import pyplot

    model = MLP([6, 16, 16, 1], "relu", seed=0)
    history = model.fit(*function(), epochs=5, health=20)
    figure = history.health.plot()
    assert [ax.get_ylabel() for ax in figure.axes] == [
        "gradient norm",
        "update ratio",
        "activation mean",
        "activation spread",
        "dead",
        "saturated",
    ]
    assert [len(ax.get_lines()) for ax in figure.axes] == [3, 3, 3, 3, 2, 0]
    figure.savefig(tmp_path / "health.png")
    pyplot.close("all")


def test_facts_are_of_the_data_of_the_last_fit():
    x, y = function()
    one = Trainer(MLP([6, 16, 1], seed=0), seed=0)
    one.fit(300 * x, y, epochs=1, health=10)
    assert "unscaled inputs" in str(one.history.health.report()).lower()
    one.fit(x, y, epochs=1, health=10)
    assert "unscaled inputs" not in str(one.history.health.report()).lower()
    x *= 300  # in its place
    one.fit(x, y, epochs=1, health=10)
    assert "unscaled inputs" in str(one.history.health.report()).lower()


def test_runs_that_have_converged_give_no_alarm():
    x, _ = function(500)
    y = x @ [1.0, -2.0, 0.5, 0.0, 1.0, 0.3]
    exact = MLP([6, 1], seed=0).fit(x, y, epochs=300, seed=0, health=10, optimizer=Adam(0.01))
    assert exact.loss[-1] < 1e-6
    assert exact.health.report(), str(exact.health.report())
    late = Trainer(MLP([6, 32, 1], seed=0), optimizer=Adam(3e-3), seed=0)
    late.fit(x, np.sin(x[:, 0]), epochs=200)
    late.fit(x, np.sin(x[:, 0]), epochs=20, health=5)
    assert late.history.health.report(), str(late.history.health.report())


def test_networks_of_small_data_as_they_come_give_no_alarm():
    for seed in range(3):
        model = MLP([4, 64, 64, 3], output="softmax", seed=seed)
        history = model.fit(*datasets.load_iris(return_X_y=True), epochs=30, health=10, seed=seed)
        assert history.health.report(), str(history.health.report())
    x, y = datasets.load_digits(return_X_y=True)
    report = MLP([64, 32, 10], output="softmax", seed=0).fit(x / 16, y, epochs=20, health=50, seed=0).health.report()
    assert report
    assert "Note: constant input" in str(report)
    assert MLP([4, 1]).fit(x[:1, :4] / 16, [1.0], epochs=1, health=1).health.report()


def test_divergence_from_which_a_fit_has_gone_back_is_none_of_its_health():
    x, y = function()
    model = MLP([6, 16, 1], "relu", seed=0)
    history = model.fit(x, y, optimizer=SGD(5.0), epochs=20, on_divergence="reduce", health=20, seed=0)
    assert history.divergences
    assert history.health.first_non_finite is None
