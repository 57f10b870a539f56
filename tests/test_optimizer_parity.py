"""100 steps of every optimizer and option against the naive twin, and against PyTorch where it is installed."""

import importlib.util
import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import fastbp
import reference
from cases import relative_error
from fastbp import schedules

# The rates are low enough that the steps themselves do not amplify a rounding error.
N_STEPS = 100
# Norm-wise, relative to the way that the parameters have gone.
TOLERANCE = {"float64": 1e-10, "float32": 1e-4}
SIZES = (5, 9, 7, 3)
LARGE_SIZES = (40, 150, 90, 10)  # beyond what one tile of parameters holds

CASES = {
    "sgd": fastbp.SGD(0.1),
    "momentum": fastbp.SGD(0.05, momentum=0.9),
    "nesterov": fastbp.SGD(0.05, momentum=0.9, nesterov=True),
    "adagrad": fastbp.Adagrad(0.02),
    "adagrad with eps": fastbp.Adagrad(0.02, eps=1e-2),
    "rmsprop": fastbp.RMSprop(0.002),
    "rmsprop with momentum": fastbp.RMSprop(0.001, momentum=0.9),
    "rmsprop centered": fastbp.RMSprop(0.001, alpha=0.9, centered=True),
    "rmsprop with all": fastbp.RMSprop(0.001, alpha=0.95, eps=1e-4, momentum=0.5, centered=True),
    "adam": fastbp.Adam(0.005),
    "adam with other betas": fastbp.Adam(0.0005, beta1=0.5, beta2=0.9, eps=1e-4),
    "adam without memory": fastbp.Adam(0.0005, beta1=0.0, beta2=0.99),
    "adamw": fastbp.AdamW(0.005, weight_decay=0.1),
    "adamw of biases too": fastbp.AdamW(0.005, weight_decay=0.1, decay_biases=True),
    "adamw without decay": fastbp.AdamW(0.005, weight_decay=0.0),
    "sgd with decay": fastbp.SGD(0.05, weight_decay=0.3),
    "nesterov with decay of biases too": fastbp.SGD(
        0.02, momentum=0.9, nesterov=True, weight_decay=0.1, decay_biases=True
    ),
    "adam with decay": fastbp.Adam(0.002, weight_decay=0.1),
    "amsgrad": fastbp.Adam(0.002, beta2=0.9, amsgrad=True),
    "amsgrad with decay of biases too": fastbp.Adam(0.002, amsgrad=True, weight_decay=0.1, decay_biases=True),
    "adadelta": fastbp.Adadelta(0.3),
    "adadelta with others": fastbp.Adadelta(0.3, rho=0.7, eps=1e-4),
    "nadam": fastbp.NAdam(0.001),
    "nadam with others": fastbp.NAdam(0.001, beta1=0.8, beta2=0.99, momentum_decay=0.1),
    "radam": fastbp.RAdam(0.002),
    "radam that is never sure": fastbp.RAdam(0.01, beta2=0.6),
    "lion": fastbp.Lion(0.0005),
    "lion with decay": fastbp.Lion(0.0005, beta1=0.8, beta2=0.95, weight_decay=0.3, decay_biases=True),
    "schedule-free": fastbp.ScheduleFreeAdamW(0.003),
    "schedule-free with all": fastbp.ScheduleFreeAdamW(0.003, beta1=0.8, weight_decay=0.1, warmup_steps=40),
}
# A sign jumps where rounding decides it: in float32 that is met within 100 steps.
JUMPING = {"float64": 1e-10, "float32": 3e-2}

SCHEDULES = {
    "warm-up": schedules.Warmup(30, 0.02),
    "warm-up, then cosine": schedules.Warmup(10, schedules.CosineDecay(0.02, 60)),
    "steps": schedules.StepDecay(0.02, 0.5, 20),
    "exponential": schedules.ExponentialDecay(0.02, 0.98),
    "cosine": schedules.CosineDecay(0.02, 80, 0.001),
    "polynomial": schedules.PolynomialDecay(0.02, 70, 2.0, 0.002),
    "inverse root": schedules.InverseSqrtDecay(0.02, 10),
    "one cycle": schedules.OneCycle(0.03, N_STEPS),
    "callable": lambda step: 0.01 * (1.0 + math.sin(step)),
}


def problem(sizes=SIZES, n_samples=20):
    """Parameters and data of a smooth network, numbers that float32 holds too."""
    rng = np.random.default_rng(0)
    params = rng.normal(size=reference.n_params(sizes)) / math.sqrt(sum(sizes))
    x, y = rng.normal(size=(n_samples, sizes[0])), rng.normal(size=(n_samples, sizes[-1]))
    return [array.astype(np.float32).astype(float) for array in (params, x, y)]


def options_of(optimizer, sizes):
    """The arguments of the twin's function."""
    options = {name: getattr(optimizer, name) for name in type(optimizer).__dataclass_fields__}
    if "decay_biases" in options:
        options["mask"] = True if options.pop("decay_biases") else reference.weight_mask(sizes)
    return options


def batches(x, y, batch_size):
    """Batches in the order of the data, epoch after epoch, for `N_STEPS` steps."""
    starts = range(0, len(x), batch_size)
    epochs = [(x[start : start + batch_size], y[start : start + batch_size]) for start in starts]
    return [epochs[step % len(epochs)] for step in range(N_STEPS)]


def trained_by_twin(optimizer, sizes, params, x, y, batch_size):
    """The parameters after all steps and the loss before each."""
    step_of, state, losses = reference.OPTIMIZERS[type(optimizer).__name__], {}, []
    rates = schedules.sample(optimizer.learning_rate, 0, N_STEPS)
    options = options_of(optimizer, sizes)
    for rate, batch in zip(rates, batches(x, y, batch_size), strict=True):
        loss, grads = reference.loss_and_grad(sizes, "tanh", "identity", "mse", params, *batch)
        losses.append(float(loss))
        params = step_of(params, grads, state, **options | {"learning_rate": rate})
    return state.get("x", params), losses


def tolerance_of(optimizer, dtype):
    return (JUMPING if isinstance(optimizer, fastbp.Lion) else TOLERANCE)[dtype]


def trained(optimizer, sizes, params, x, y, batch_size, dtype):
    model = fastbp.MLP(sizes, "tanh", init=params, dtype=dtype)
    trainer = fastbp.Trainer(model, optimizer=optimizer, batch_size=batch_size, shuffle=False)
    history = trainer.fit(x, y, epochs=None, max_steps=N_STEPS)
    assert trainer.n_steps == N_STEPS
    return model.params, history


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("optimizer", CASES.values(), ids=CASES)
def test_fit_hundred_steps_on_all_data_equal_twin(optimizer, dtype):
    params, x, y = problem()
    expected, losses = trained_by_twin(optimizer, SIZES, params, x, y, len(x))
    actual, history = trained(optimizer, SIZES, params, x, y, None, dtype)
    assert relative_error(actual - params, expected - params) <= tolerance_of(optimizer, dtype)
    assert relative_error(history.loss, losses) <= tolerance_of(optimizer, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("optimizer", CASES.values(), ids=CASES)
def test_fit_hundred_steps_on_batches_equal_twin(optimizer, dtype):
    params, x, y = problem(LARGE_SIZES, n_samples=45)  # three batches of 14, and one of 3
    expected, losses = trained_by_twin(optimizer, LARGE_SIZES, params, x, y, 14)
    actual, history = trained(optimizer, LARGE_SIZES, params, x, y, 14, dtype)
    assert relative_error(actual - params, expected - params) <= tolerance_of(optimizer, dtype)
    means = np.reshape(losses, (-1, 4)) @ np.array([14, 14, 14, 3]) / 45
    assert relative_error(history.loss, means) <= tolerance_of(optimizer, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_fit_hundred_steps_on_single_samples_equal_twin(name, batch_size, dtype):
    params, x, y = problem()
    expected, _ = trained_by_twin(CASES[name], SIZES, params, x, y, batch_size)
    actual, _ = trained(CASES[name], SIZES, params, x, y, batch_size, dtype)
    assert relative_error(actual - params, expected - params) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("optimizer", CASES.values(), ids=CASES)
def test_step_hundred_times_equals_fit(optimizer, dtype):
    params, x, y = problem()
    expected, history = trained(optimizer, SIZES, params, x, y, None, dtype)
    trainer = fastbp.Trainer(fastbp.MLP(SIZES, "tanh", init=params, dtype=dtype), optimizer=optimizer)
    losses = [trainer.step(x, y) for _ in range(N_STEPS)]
    average = trainer.ema_params
    np.testing.assert_array_equal(trainer.model.params if average is None else average, expected)
    np.testing.assert_array_equal(losses, history.loss)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("optimizer_class", [fastbp.SGD, fastbp.Adam, fastbp.AdamW])
def test_fit_with_schedule_equals_twin(optimizer_class, schedule, dtype):
    params, x, y = problem()
    optimizer = optimizer_class(schedule)
    expected, losses = trained_by_twin(optimizer, SIZES, params, x, y, len(x))
    actual, history = trained(optimizer, SIZES, params, x, y, None, dtype)
    assert relative_error(actual - params, expected - params) <= tolerance_of(optimizer, dtype)
    assert relative_error(history.loss, losses) <= tolerance_of(optimizer, dtype)
    np.testing.assert_array_equal(history.learning_rate, schedules.sample(schedule, 0, N_STEPS))


@pytest.fixture(scope="module")
def torch():
    module = pytest.importorskip("torch")
    n_threads, dtype = module.get_num_threads(), module.get_default_dtype()
    module.set_default_dtype(module.float64)  # of what NAdam multiplies up
    module.set_num_threads(1)  # a step needs microseconds: more threads only wait for each other
    yield module
    module.set_num_threads(n_threads)
    module.set_default_dtype(dtype)


def torch_optimizer(torch, optimizer, flat):
    options = {name: getattr(optimizer, name) for name in type(optimizer).__dataclass_fields__}
    options.pop("decay_biases", None)
    options["lr"] = options.pop("learning_rate")
    if "beta1" in options:
        options["betas"] = options.pop("beta1"), options.pop("beta2")
    if isinstance(optimizer, fastbp.ScheduleFreeAdamW):
        return pytest.importorskip("schedulefree").AdamWScheduleFree(flat, **options)
    return getattr(torch.optim, type(optimizer).__name__)(flat, **options)


def trained_by_torch(torch, optimizer, sizes, params, x, y, batch_size):
    flat, layers, start = torch.tensor(params), [], 0
    for n_in, n_out in pairwise(sizes):
        end = start + n_in * n_out
        w, b = flat[start:end].reshape(n_in, n_out).clone(), flat[end : end + n_out].clone()
        layers.append((w.requires_grad_(), b.requires_grad_()))
        start = end + n_out
    decays_biases = getattr(optimizer, "decay_biases", True)
    groups = [
        {"params": [w for w, _ in layers]},
        {"params": [b for _, b in layers]} | ({} if decays_biases else {"weight_decay": 0.0}),
    ]
    peer = torch_optimizer(torch, optimizer, groups)
    is_free = isinstance(optimizer, fastbp.ScheduleFreeAdamW)
    if is_free:
        peer.train()
    for batch_x, batch_y in batches(torch.tensor(x), torch.tensor(y), batch_size):
        h = batch_x
        for w, b in layers[:-1]:
            h = torch.tanh(h @ w + b)
        loss = torch.nn.functional.mse_loss(h @ layers[-1][0] + layers[-1][1], batch_y)
        peer.zero_grad()
        loss.backward()
        peer.step()
    if is_free:
        peer.eval()
    return np.concatenate([tensor.detach().numpy().ravel() for layer in layers for tensor in layer])


@pytest.mark.parametrize("batch_size", [20, 7])
@pytest.mark.parametrize(
    "optimizer", [optimizer for optimizer in CASES.values() if not isinstance(optimizer, fastbp.Lion)], ids=str
)
def test_fit_hundred_steps_equal_torch(torch, optimizer, batch_size):
    params, x, y = problem()
    expected = trained_by_torch(torch, optimizer, SIZES, params, x, y, batch_size)
    for dtype, tolerance in TOLERANCE.items():
        actual, _ = trained(optimizer, SIZES, params, x, y, batch_size, dtype)
        assert relative_error(actual - params, expected - params) <= tolerance, dtype


# In a process of its own: JAX warns of forks for as long as its process lives.
_OPTAX_LION = """
import json, sys
import jax, numpy as np, optax
import reference
jax.config.update("jax_enable_x64", True)
given = json.load(sys.stdin)
params, x, y = (np.array(given[name]) for name in ("params", "x", "y"))
peer = optax.lion(given["rate"], given["beta1"], given["beta2"], weight_decay=given["weight_decay"])
params = jax.numpy.asarray(params)
state = peer.init(params)
for _ in range(given["n_steps"]):
    _, grads = reference.loss_and_grad(given["sizes"], "tanh", "identity", "mse", np.asarray(params), x, y)
    changes, state = peer.update(jax.numpy.asarray(grads), state, params)
    params = optax.apply_updates(params, changes)
print(json.dumps(np.asarray(params).tolist()))
"""


@pytest.mark.parametrize("name", ["lion", "lion with decay"])
def test_lion_hundred_steps_equal_optax(name):
    if importlib.util.find_spec("optax") is None:
        pytest.importorskip("optax")
    params, x, y = problem()
    optimizer = CASES[name]
    given = {
        "params": params.tolist(),
        "x": x.tolist(),
        "y": y.tolist(),
        "rate": optimizer.learning_rate,
        "beta1": optimizer.beta1,
        "beta2": optimizer.beta2,
        "weight_decay": optimizer.weight_decay,
        "n_steps": N_STEPS,
        "sizes": SIZES,
    }
    finished = subprocess.run(
        [sys.executable, "-c", _OPTAX_LION],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    expected = np.array(json.loads(finished.stdout))
    actual, _ = trained(optimizer, SIZES, params, x, y, None, "float64")
    assert relative_error(actual - params, expected - params) <= 1e-10


def test_rates_and_warm_up_of_schedule_free_steps_do_not_depend_on_where_a_fit_is_cut():
    params, x, y = problem()
    optimizer = CASES["schedule-free with all"]
    expected, _ = trained(optimizer, SIZES, params, x, y, None, "float64")
    trainer = fastbp.Trainer(
        fastbp.MLP(SIZES, "tanh", init=params, dtype="float64"), optimizer=optimizer, batch_size=None, shuffle=False
    )
    for n_steps in (1, 20, 30, 49):
        trainer.fit(x, y, epochs=None, max_steps=n_steps, validation_data=(x, y))
        assert trainer.history.validation_loss[-1] == trainer.model.loss(x, y)
    np.testing.assert_array_equal(trainer.model.params, expected)


class TestAssignedOptimizers:
    def test_moments_of_the_same_names_stay(self):
        params, x, y = problem()
        trainers = [fastbp.Trainer(fastbp.MLP(SIZES, "tanh", init=params, dtype="float64")) for _ in range(2)]
        for trainer in trainers:
            trainer.step(x, y)
        trainers[0].optimizer = fastbp.AdamW(1e-3, weight_decay=0.0)  # the same steps
        trainers[0].optimizer = fastbp.Adam(1e-3)
        for trainer in trainers:
            trainer.step(x, y)
        np.testing.assert_array_equal(trainers[0].model.params, trainers[1].model.params)
        trainers[0].optimizer = fastbp.Adam(1e-3, beta1=0.5)
        for trainer in trainers:
            trainer.step(x, y)
        assert not np.array_equal(trainers[0].model.params, trainers[1].model.params)
        assert trainers[0].optimizer.beta1 == 0.5

    def test_other_moments_start_anew_with_their_corrections_while_steps_and_schedule_go_on(self):
        params, x, y = problem()
        trainer = fastbp.Trainer(
            fastbp.MLP(SIZES, "tanh", init=params, dtype="float64"), optimizer=fastbp.SGD(0.1), batch_size=None, ema=0.9
        )
        trainer.fit(x, y, epochs=5)
        at, average = trainer.model.params.copy(), trainer.ema_params
        trainer.optimizer = fastbp.Adam(lambda step: 1e-3 * step)
        np.testing.assert_array_equal(trainer.ema_params, average)
        trainer.fit(x, y, epochs=1)
        grads = reference.loss_and_grad(SIZES, "tanh", "identity", "mse", at, x, y)[1]
        np.testing.assert_allclose(trainer.model.params, reference.adam(at, grads, {}, 5e-3), rtol=1e-12)
        assert trainer.n_steps == 6
        expected = 0.9 * average + 0.1 * trainer.model.params
        np.testing.assert_allclose(trainer.ema_params, expected, rtol=1e-12)

    @pytest.mark.parametrize("optimizer", [fastbp.Adam(0.05), fastbp.SGD(0.01)])
    def test_what_a_fit_has_left_in_the_model_stays_and_the_run_goes_on(self, optimizer):
        """Early stopping has gone back, and goes back again: to moments of the new kind."""
        _, x, y = problem()
        trainer = fastbp.Trainer(fastbp.MLP(SIZES, "tanh", seed=0), optimizer=fastbp.Adam(0.1), seed=0)
        options = {"validation_data": (-x, y), "stop": fastbp.EarlyStopping(3)}
        trainer.fit(x, y, epochs=50, **options)
        best, present = trainer.model.params.copy(), trainer._run.buffers.present.params.copy()
        assert best.tobytes() != present.tobytes()
        n_epochs = len(trainer.history)
        trainer.optimizer = optimizer
        assert trainer.model.params.tobytes() == best.tobytes()
        np.testing.assert_array_equal(trainer._run.buffers.present.params, present)
        trainer.fit(x, y, epochs=50, **options)
        loss = trainer.model.loss(-x, y)
        assert loss <= trainer.history.validation_loss[n_epochs:].min() * (1 + 1e-6)
        trainer.learning_rate = 0.01
        assert trainer.model.loss(-x, y) == loss

    def test_wrong_ones_are_refused(self):
        trainer = fastbp.Trainer(fastbp.MLP((2, 1)), ema=0.9)
        with pytest.raises(TypeError, match="optimizer must be an optimizer"):
            trainer.optimizer = "adam"
        with pytest.raises(ValueError, match="ema and ScheduleFreeAdamW both average"):
            trainer.optimizer = fastbp.ScheduleFreeAdamW()
        assert trainer.optimizer == fastbp.Adam()
