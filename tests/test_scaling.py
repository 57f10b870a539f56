"""Models that standardize: what they learn, and that nobody notices it but by the result."""

import copy
import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numba import njit

import fastbp
from fastbp import MLP, SGD, Adam, DivergenceError, Trainer, embed
from fastbp.scaling import spread_of

SIZES = [4, 9, 2]
# Inputs far from 0, tiny, constant, and nearly as they should be.
CENTRES, SPREADS = np.array([1e6, 0.0, 7.0, 0.3]), np.array([3.0, 1e-4, 0.0, 1.5])
Y_CENTRES, Y_SPREADS = np.array([-2e3, 5.0]), np.array([40.0, 1e-3])
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])


def data(n=90, seed=0):
    """Inputs and targets in the user's units, and standardized."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4)) * SPREADS + CENTRES
    y = np.sin(x[:, 1:2] * 1e4) * Y_SPREADS + Y_CENTRES + 0.1 * Y_SPREADS * rng.normal(size=(n, 2))
    std = x.std(axis=0)
    std[2] = 1.0
    return x, y, (x - x.mean(axis=0)) / std, (y - y.mean(axis=0)) / y.std(axis=0)


def models(dtype="float64", **options):
    """A model that standardizes, and the same one without."""
    return [MLP(SIZES, "tanh", seed=1, dtype=dtype, **options, **scaling)
            for scaling in ({"standardize": True, "standardize_y": True}, {})]  # fmt: skip


def tolerance(dtype):
    return 1e-8 if dtype == "float64" else 2e-5


@DTYPES
@pytest.mark.parametrize("loss", ["mse", "mae", "huber", "log_cosh", "quantile(0.3)"])
def test_fit_is_the_fit_of_standardized_data(loss, dtype):
    x, y, scaled_x, scaled_y = data()
    model, plain = models(dtype, loss=loss)
    options = {"epochs": 5, "optimizer": Adam(0.01), "seed": 3, "batch_size": 16}
    history = model.fit(x, y, **options, validation_data=(x, y))
    scaled = scaled_x.astype(dtype), scaled_y.astype(dtype)
    expected = plain.fit(*scaled, **options, validation_data=scaled)
    assert np.allclose(history.loss, expected.loss, rtol=tolerance(dtype))
    assert np.allclose(history.validation_loss, expected.validation_loss, rtol=tolerance(dtype))
    assert np.allclose(model.params, plain.params, atol=tolerance(dtype))


def test_metrics_are_in_the_users_units_and_what_is_left_out_is_not_learnt_from():
    x, y, _, _ = data()
    model, seen = models()[0], []

    def error(targets, outputs):
        seen.append(targets)
        return abs(outputs - targets)[:, 0].mean()

    history = model.fit(x, y, epochs=2, validation_split=0.2, metrics={"error": error}, seed=0)
    assert 1.0 < history["error"][-1] < 100.0  # one target spreads by 40
    left_out = np.isin(y[:, 0], seen[-1][:, 0])
    assert left_out.sum() == 18
    assert np.allclose(model.x_mean, x[~left_out].mean(axis=0), rtol=1e-12, atol=1e-12)
    assert np.allclose(model.y_std, y[~left_out].std(axis=0), rtol=1e-12)


@DTYPES
def test_predictions_and_derivatives_are_in_the_users_units(dtype):
    x, y, scaled_x, _ = data()
    model, plain = models(dtype)
    model.fit(x, y, epochs=3, seed=0)
    plain.params = model.params
    close = {"rtol": tolerance(dtype), "atol": tolerance(dtype)}
    outputs = plain.predict(scaled_x)
    assert np.allclose((model.predict(x) - model.y_mean) / model.y_std, outputs, atol=1e-9 + 1e4 * tolerance(dtype))
    assert np.allclose(model.loss(x, y), plain.loss(scaled_x, (y - model.y_mean) / model.y_std), **close)
    rng = np.random.default_rng(1)
    d_out, t_x = rng.normal(size=(len(x), 2)), rng.normal(size=x.shape)
    assert np.allclose(model.vjp(x, d_out) * model.x_std, plain.vjp(scaled_x, d_out * model.y_std), **close)
    scaled_t = plain.jvp(scaled_x, t_x / model.x_std)
    assert np.allclose(model.jvp(x, t_x) / model.y_std, scaled_t, rtol=1e-3, atol=1e3 * tolerance(dtype))
    jacobian = plain.jacobian(scaled_x) * model.y_std[:, np.newaxis] / model.x_std
    assert np.allclose(model.jacobian(x) / jacobian, 1.0, atol=1e-6 if dtype == "float64" else 0.02)


def test_gradients_agree_with_differences():
    x, y, _, _ = data()
    model, _ = models()
    model.learn_scaling(x, y)
    assert fastbp.check_gradient(model, x, y)
    trainer, d_out = Trainer(model, optimizer=SGD(1.0), seed=0), np.random.default_rng(2).normal(size=y.shape)
    before = model.params.copy()
    trainer.step_from(x, d_out)
    gradient = before - model.params
    for index in range(0, model.n_params, 5):
        sides = []
        for step in (1e-6, -1e-6):
            model.params = before
            model.params[index] += step
            sides.append((model.predict(x) * d_out).sum())
        assert gradient[index] == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-4, abs=1e-3)


@DTYPES
def test_embedded_functions_have_the_bits_of_the_models(dtype):
    x, y, _, _ = data()
    model = models(dtype)[0]
    model.learn_scaling(x, y)
    rng = np.random.default_rng(3)
    d_out, t_x, net = rng.normal(size=y.shape), rng.normal(size=x.shape), model.compiled()
    for name, arguments, width in (("predict", (x,), 2), ("vjp", (x, d_out), 4), ("jvp", (x, t_x), 2)):
        expected, function = getattr(model, name)(*arguments), getattr(embed, name)
        out = np.empty((len(x), width), dtype)
        assert function(net, *arguments, out) == embed.OK
        assert out.tobytes() == expected.tobytes()
        for row in range(3):
            one = np.empty(width, dtype)
            samples = [array[row] for array in arguments]
            assert function(net, *samples, one) == embed.OK
            alone = getattr(model, name)(*[array[row : row + 1] for array in arguments])
            assert one.tobytes() == alone.tobytes(), name
            native = [np.ascontiguousarray(array[row].astype(dtype)) for array in arguments]
            assert function(net, *native, one) == embed.OK
            of_native = getattr(model, name)(*[array[np.newaxis] for array in native])
            assert one.tobytes() == of_native.tobytes(), name


def test_a_sample_that_fits_no_stack_is_standardized_too():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 6000)) + 3, rng.normal(size=(8, 1)) - 9
    model = MLP([6000, 3, 1], seed=0, standardize=True, standardize_y=True)
    model.learn_scaling(x, y)
    rows, net = x.astype(np.float32), model.compiled()
    expected = model.predict(rows)

    @njit
    def run(net, x, out):
        return embed.predict(net, x, out)

    out = np.empty(1, np.float32)
    for row in range(3):
        assert run(net, rows[row], out) == embed.OK
        assert out[0] == expected[row, 0]


def test_learners_in_compiled_code_have_the_bits_of_the_trainer():
    x, y, _, _ = data()
    model = models("float32")[0]
    model.learn_scaling(x, y)
    trainer = Trainer(model, optimizer=Adam(0.01), batch_size=16, seed=0)
    other = copy.deepcopy(trainer)
    learner = other.compiled(max_batch=len(x))
    assert trainer.step(x, y) == other.model.loss(x, y)
    assert embed.train_step(learner, x, y) == embed.OK
    d_out = np.ones_like(y)
    trainer.step_from(x, d_out)
    assert embed.backward_step(learner, x, d_out) == embed.OK
    grad = np.empty(model.n_params, np.float32)
    assert embed.loss_and_grad(learner, x, y, grad) == embed.OK
    assert grad.tobytes() == model.loss_and_grad(x, y)[1].tobytes()
    trainer.fit(x, y, max_steps=20)
    assert embed.train(learner, x, y, 20) == embed.OK
    assert other.model.params.tobytes() == model.params.tobytes()


def test_handles_see_what_is_learnt_later():
    x, y, _, _ = data()
    model = models("float32")[0]
    net, out = model.compiled(), np.empty(2, np.float32)
    assert embed.predict(net, x[0], out) == embed.OK
    assert model.predict(x[:1]).tobytes() == out.tobytes()
    model.fit(x, y, epochs=1)
    assert embed.predict(net, x[0], out) == embed.OK
    assert model.predict(x[:1]).tobytes() == out.tobytes()


def test_gaussian_nll_has_means_and_log_variances_in_the_users_units():
    x, y, scaled_x, scaled_y = data()
    model = MLP([4, 9, 4], "tanh", loss="gaussian_nll", dtype="float64", seed=1, standardize=True, standardize_y=True)
    plain = MLP([4, 9, 4], "tanh", loss="gaussian_nll", dtype="float64", seed=1)
    model.fit(x, y, epochs=3, seed=0)
    plain.fit(scaled_x, scaled_y, epochs=3, seed=0)
    mean, log_variance = np.split(model.predict(x), 2, axis=1)
    scaled_mean, scaled_log_variance = np.split(plain.predict(scaled_x), 2, axis=1)
    assert np.allclose((mean - model.y_mean) / model.y_std, scaled_mean, atol=1e-6)
    assert np.allclose(np.exp(log_variance / 2), np.exp(scaled_log_variance / 2) * model.y_std, rtol=1e-6)


@pytest.mark.parametrize("options", [{"standardize": True}, {"standardize_y": True}])
def test_one_without_the_other(options):
    x, y, scaled_x, scaled_y = data()
    model, plain = MLP(SIZES, seed=0, dtype="float64", **options), MLP(SIZES, seed=0, dtype="float64")
    inputs, targets = (scaled_x, y) if "standardize" in options else (x / 1e6, scaled_y)
    model.fit(x if "standardize" in options else x / 1e6, y, epochs=2, seed=0, optimizer=Adam(1e-3))
    plain.fit(inputs, targets, epochs=2, seed=0, optimizer=Adam(1e-3))
    assert np.allclose(model.params, plain.params, atol=1e-8)
    assert (model.x_mean is None) == ("standardize" not in options)
    assert (model.y_std is None) == ("standardize_y" not in options)


def test_classes_are_no_targets_to_standardize():
    x, _, _, _ = data()
    for output in ("softmax", "sigmoid", "exp"):
        with pytest.raises(ValueError, match="standardize_y is for targets of any size"):
            MLP(SIZES, output=output, standardize_y=True)
    model = MLP(SIZES, output="softmax", standardize=True, seed=0)
    model.fit(x, np.arange(len(x)) % 2, epochs=1)
    assert model.predict(x).sum(axis=1) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("option", ["standardize", "standardize_y"])
def test_bad_options_are_named(option):
    with pytest.raises(TypeError, match=f"{option} must be a bool, got 'yes'"):
        MLP(SIZES, **{option: "yes"})


@pytest.mark.parametrize("source", ["uint8", "int16", "float16", "float32", "float64", "bool", "uint64"])
def test_any_dtype_and_order_is_standardized_alike(source):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2 if source == "bool" else 200, (40, 4)).astype(source)
    y = rng.normal(size=(40, 2))
    results = []
    for array in (x, np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], x.astype(np.float64)):
        model = models("float32")[0]
        model.fit(array, y, epochs=1, seed=0)
        results.append(model.params.tobytes() + model.predict(array).tobytes())
    assert len(set(results)) == 1


@given(
    hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 30), st.integers(1, 3)),
        elements=st.floats(-1e300, 1e300, allow_subnormal=False),
    )
)
def test_spread_is_numpys(x):
    mean, std = spread_of(x, "x")
    scale = abs(x).max(initial=1e-290)
    with np.errstate(over="ignore"):
        expected = (x / scale).std(axis=0) * scale
    assert np.allclose(mean, x.mean(axis=0), rtol=1e-9, atol=1e-9 * scale)
    is_constant = (x == x[0]).all(axis=0)
    assert (std[is_constant] == 1.0).all()
    varies = ~is_constant & (expected > 1e-150)  # squares of less are 0 in NumPy's, and what has no inverse is 1 here
    assert np.allclose(std[varies], expected[varies], rtol=1e-6, atol=1e-9 * scale)
    assert np.isfinite(1.0 / std).all()


def test_spread_far_from_zero_keeps_its_digits():
    x = 1.7e9 + np.arange(200_000, dtype=np.float64)[:, np.newaxis] / 1000
    mean, std = spread_of(x, "x")
    assert mean[0] == pytest.approx(1.7e9 + 99.9995, rel=1e-15)
    assert std[0] == pytest.approx(200 / 12**0.5, rel=1e-6)


@pytest.mark.parametrize(("value", "name"), [(np.nan, "x"), (np.inf, "y")])
def test_what_has_no_spread_is_refused_before_anything_happens(value, name):
    x, y, _, _ = data()
    (x if name == "x" else y)[3, 1] = value
    model = models()[0]
    before = model.params.copy()
    with pytest.raises(ValueError, match=f"{name} must have a finite mean and spread .* in column 1"):
        model.fit(x, y, epochs=1, check_finite=False)
    assert model.x_mean is None
    assert model.params.tobytes() == before.tobytes()
    assert model.history is None or len(model.history) == 0


def test_what_float32_cannot_hold_may_lie_near_its_mean():
    rng = np.random.default_rng(0)
    x, y = 1e40 + 1e30 * rng.normal(size=(50, 4)), 1e39 * rng.normal(size=(50, 2))
    model = models("float32")[0]
    model.fit(x, y, epochs=2)
    assert np.isfinite(model.history.loss).all()
    with pytest.warns(RuntimeWarning, match="not finite"):  # their unit is the user's
        model.predict(x)


def test_only_the_first_fit_learns():
    x, y, _, _ = data()
    model = models()[0]
    model.fit(x, y, epochs=1)
    mean = model.x_mean
    model.fit(x + 100.0, y, epochs=1)
    assert (model.x_mean == mean).all()
    model.learn_scaling(x + 100.0, y)
    assert (model.x_mean != mean).all()
    with pytest.raises(ValueError, match="standardizes nothing"):
        MLP(SIZES).learn_scaling(x, y)


def test_a_fit_without_a_step_learns_nothing():
    x, y, _, _ = data()
    model = models()[0]
    model.biases[-1][0] = np.inf
    with pytest.raises(DivergenceError):
        model.fit(x, y, epochs=1)
    assert model.x_mean is None
    model = MLP(SIZES, seed=0)
    assert (model.x_mean, model.x_std, model.y_mean, model.y_std) == (None,) * 4


def test_steps_before_anything_is_learnt_are_refused():
    x, y, _, _ = data()
    trainer = Trainer(models()[0], seed=0)
    before = trainer.model.params.copy()
    for act in (
        lambda: trainer.step(x, y),
        lambda: trainer.step_from(x, y),
        lambda: trainer.compiled(max_batch=8),
    ):
        with pytest.raises(RuntimeError, match=r"call model\.learn_scaling"):
            act()
    assert trainer.model.params.tobytes() == before.tobytes()
    trainer.find_learning_rate(x, y)  # takes its steps on a copy
    assert trainer.model.x_mean is None


def test_copies_pickles_and_files_keep_it(tmp_path):
    x, y, _, _ = data()
    model = models("float32")[0]
    unlearnt = pickle.loads(pickle.dumps(model))
    assert unlearnt.x_mean is None
    model.fit(x, y, epochs=2)
    expected = model.predict(x).tobytes()
    model.save(tmp_path / "model.npz")
    for other in (copy.copy(model), pickle.loads(pickle.dumps(model)), fastbp.load(tmp_path / "model.npz")):
        assert other.predict(x).tobytes() == expected
        assert (other.y_std == model.y_std).all()
        other.fit(x + 1, y, epochs=1)
        assert (other.x_mean == model.x_mean).all()
    unlearnt.save(tmp_path / "unlearnt.npz")
    assert fastbp.load(tmp_path / "unlearnt.npz").x_mean is None


@pytest.mark.parametrize("threads", [1, 2])
def test_any_threads_cuts_and_resumption_have_the_same_bits(threads, tmp_path):
    x, y, _, _ = data(400)
    whole = models("float32")[0]
    whole.fit(x, y, epochs=4, seed=0, batch_size=300)
    model = models("float32")[0]
    options = {"seed": 0, "batch_size": 300, "threads": threads, "checkpoint": tmp_path / "run.npz", "resume": True}
    model.fit(x, y, epochs=4, max_steps=3, **options)
    resumed = models("float32")[0]
    resumed.fit(x, y, epochs=4, **options)
    assert resumed.params.tobytes() == whole.params.tobytes()
    assert resumed.predict(x).tobytes() == whole.predict(x).tobytes()


def test_health_looks_at_what_the_network_sees():
    x, y, _, _ = data(400)
    y = y * 1e6
    model = models("float32")[0]
    history = model.fit(x[:, [0, 1, 3, 3]] * 1e3, y, epochs=20, optimizer=Adam(0.01), health=True)
    for word in ("inputs", "targets"):
        assert word not in str(history.health.report())


def test_repr_says_so():
    assert repr(models()[0]).endswith("standardize=True, standardize_y=True)")
    assert "standardize" not in repr(models()[1])


@pytest.mark.parametrize(
    "output", ["tanh", "relu", "elu", "elu(2.0)", "selu", "gelu", "silu", "mish", "softplus", "hard_tanh"]
)
def test_outputs_with_limits_are_refused_for_standardized_targets(output):
    with pytest.raises(ValueError, match="standardize_y needs an output without limits"):
        MLP(SIZES, output=output, loss="mse", standardize_y=True)
    MLP(SIZES, output="leaky_relu(0.1)", standardize_y=True)


def test_samples_without_weight_are_not_learnt_from():
    x, y, _, _ = data()
    wild = np.vstack([x, [[1e9] * 4]]), np.vstack([y, [[1e9] * 2]])
    one, other = models()[0], models()[0]
    one.fit(*wild, epochs=1, sample_weight=np.append(np.full(len(x), 0.5), 0.0))
    other.fit(x, y, epochs=1)
    assert np.allclose(one.x_std, other.x_std, rtol=1e-12)
    assert np.allclose(one.y_mean, other.y_mean, rtol=1e-12)


def test_what_varies_by_its_rounding_only_is_constant():
    p = np.random.default_rng(0).dirichlet(np.ones(7), 500)
    for dtype in (np.float32, np.float64):
        mean, std = spread_of(p.astype(dtype).sum(axis=1, keepdims=True), "x")
        assert std[0] == 1.0
        assert mean[0] == pytest.approx(1.0)


def test_rules_forget_losses_in_other_units():
    x, y, _, _ = data(200)
    model = models("float32")[0]
    trainer, rule = Trainer(model, optimizer=Adam(0.01), seed=0), fastbp.EarlyStopping(3)
    options = {"validation_data": (x, y), "stop": rule}
    trainer.fit(x, y, epochs=20, **options)
    before, n_epochs = model.params.copy(), len(trainer.history)
    model.learn_scaling(x, y / 10)
    trainer.fit(x, y, epochs=10, **options)
    assert len(trainer.history) > n_epochs + 3
    assert (model.params != before).any()


def test_targets_whose_predictions_float32_cannot_hold_are_warned_of():
    x = np.random.default_rng(0).normal(size=(200, 1))
    y = 1.7e9 + 10 * x
    with pytest.warns(RuntimeWarning, match='column 0 of y: .* use dtype="float64"'):
        MLP([1, 2, 1], seed=0, standardize_y=True).fit(x, y, epochs=1)
    x += 1.7e9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MLP([1, 2, 1], seed=0, standardize=True).fit(x, x - 1.7e9, epochs=1)
