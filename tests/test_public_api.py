"""The names, their order and defaults: users and benchmarks rely on them."""

import dataclasses
import inspect
import pickle
import re
from importlib import metadata

import numpy as np
import pytest

import fastbp
from fastbp import schedules
from fastbp.optimizers import Moments, Optimizer
from fastbp.regularization import Regularizer
from fastbp.stopping import StopRule

NAMES = [
    "L1",
    "L2",
    "MLP",
    "SGD",
    "Activation",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "CheckpointError",
    "Convergence",
    "DivergenceError",
    "Dropout",
    "EarlyStopping",
    "GradientReport",
    "Health",
    "HealthReport",
    "History",
    "InputNoise",
    "LabelSmoothing",
    "Lion",
    "Loss",
    "MaxNorm",
    "NAdam",
    "RAdam",
    "RMSprop",
    "ReduceRate",
    "ScheduleFreeAdamW",
    "TargetLoss",
    "TimeLimit",
    "Trainer",
    "UpdateRule",
    "activations",
    "callbacks",
    "check_gradient",
    "elementary",
    "load",
    "losses",
    "precompile",
    "schedules",
    "show_versions",
]
SHAPING = "regularize=(), clip_norm=None, clip_value=None, ema=None, use_ema=False, rate_factors=None"
RUN = """sample_weight=None, class_weight=None, callbacks=(), validation_split=None, validation_every=1, health=False,
    on_divergence='raise', checkpoint=None, checkpoint_every=60.0, resume=False,
    check_finite=True"""
MLP = """sizes, activation="relu", output="identity", *, loss=None, init="auto", dtype="float32", seed=None,
standardize=False, standardize_y=False"""
MLP_FIT = f"""x, y=None, *, optimizer=Adam(), batch_size=32, epochs=100, max_steps=None, validation_data=None, stop=(),
    metrics=None, shuffle=True, drop_last=False, progress=False, threads=1, seed=None, {SHAPING}, {RUN}"""
TRAINER = f"""model, *, optimizer=Adam(), batch_size=32, shuffle=True, drop_last=False, threads=1, seed=None,
    {SHAPING}"""
TRAINER_FIT = f"""x, y=None, *, epochs=100, max_steps=None, validation_data=None, stop=(), metrics=None, progress=False,
    {RUN}"""
ADAM = "learning_rate=1e-3, beta1=0.9, beta2=0.999, eps=1e-8"


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (fastbp.MLP, MLP),
        (fastbp.MLP.fit, MLP_FIT),
        (fastbp.MLP.predict, "x, out=None, *, threads=1"),
        (fastbp.MLP.loss, "x, y, sample_weight=None"),
        (fastbp.MLP.loss_and_grad, "x, y, sample_weight=None"),
        (fastbp.Trainer, TRAINER),
        (fastbp.Trainer.fit, TRAINER_FIT),
        (fastbp.Trainer.step, "x, y, sample_weight=None"),
        (fastbp.MLP.save, "path"),
        (fastbp.Trainer.save, "path"),
        (fastbp.load, "path, custom=None"),
        (fastbp.precompile, ""),
        (fastbp.show_versions, ""),
        (fastbp.SGD, "learning_rate=0.01, momentum=0.0, nesterov=False, weight_decay=0.0, decay_biases=False"),
        (fastbp.Adagrad, "learning_rate=0.01, eps=1e-10"),
        (fastbp.RMSprop, "learning_rate=0.01, alpha=0.99, eps=1e-8, momentum=0.0, centered=False"),
        (fastbp.Adam, f"{ADAM}, amsgrad=False, weight_decay=0.0, decay_biases=False"),
        (fastbp.Adadelta, "learning_rate=1.0, rho=0.9, eps=1e-6"),
        (fastbp.NAdam, "learning_rate=2e-3, beta1=0.9, beta2=0.999, eps=1e-8, momentum_decay=4e-3"),
        (fastbp.RAdam, ADAM),
        (fastbp.Lion, "learning_rate=1e-4, beta1=0.9, beta2=0.99, weight_decay=0.0, decay_biases=False"),
        (
            fastbp.ScheduleFreeAdamW,
            "learning_rate=0.0025, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, warmup_steps=0",
        ),
        (fastbp.AdamW, f"{ADAM}, weight_decay=0.01, decay_biases=False"),
        (fastbp.ReduceRate, "factor=0.1, times=3"),
        (fastbp.L1, "rate, biases=False, per_batch=False, layers=None"),
        (fastbp.L2, "rate, biases=False, per_batch=False, layers=None"),
        (fastbp.MaxNorm, "value, layers=None"),
        (fastbp.Dropout, "rate, input_rate=0.0, layers=None"),
        (fastbp.InputNoise, "std"),
        (fastbp.LabelSmoothing, "rate"),
        (fastbp.Convergence, "tol=1e-4, patience=10"),
        (
            fastbp.EarlyStopping,
            "patience=10, min_delta=0.0, restore_best=True, monitor='validation_loss', mode='min'",
        ),
        (fastbp.TargetLoss, "value"),
        (fastbp.TimeLimit, "seconds"),
        (schedules.Warmup, "steps, then"),
        (schedules.StepDecay, "initial, factor, every"),
        (schedules.ExponentialDecay, "initial, rate"),
        (schedules.CosineDecay, "initial, steps, final=0.0"),
        (schedules.CosineRestarts, "initial, steps, factor=1, final=0.0"),
        (schedules.CosLog, "initial, steps, cycles=4"),
        (schedules.PolynomialDecay, "initial, steps, power=1.0, final=0.0"),
        (schedules.InverseSqrtDecay, "initial, steps"),
        (schedules.OneCycle, "peak, steps"),
        (schedules.Scaled, "factor, then"),
    ],
)
def test_signature_is_as_documented(function, expected):
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self"
    ]
    namespace = {"Adam": fastbp.Adam}
    exec(f"def expected({expected}): pass", namespace)
    assert parameters == list(inspect.signature(namespace["expected"]).parameters.values())


def test_package_exports_exactly_the_public_names():
    assert fastbp.__all__ == NAMES
    assert all(hasattr(fastbp, name) for name in NAMES)


def test_version_is_that_of_the_distribution():
    try:
        installed = metadata.version("fastbp")
    except metadata.PackageNotFoundError:
        pytest.skip("fastbp is not installed, only on the path")
    assert fastbp.__version__ == installed


@pytest.mark.parametrize("make", [lambda: fastbp.MLP([2, 1]), lambda: fastbp.Trainer(fastbp.MLP([2, 1]))])
def test_objects_have_the_documented_attributes(make):
    value = make()
    names = {
        fastbp.MLP: ("params", "weights", "biases", "n_params", "history", "seed"),
        fastbp.Trainer: ("model", "history", "n_steps", "seed", "ema_params", "optimizer", "learning_rate"),
    }
    for name in names[type(value)]:
        assert hasattr(value, name)
        assert re.search(rf"^(\w+, )*{name}\b.* : ", inspect.getdoc(type(value)), re.MULTILINE), name


def test_optimizers_and_stop_rules_are_frozen_dataclasses():
    for base in (Optimizer, Moments, Regularizer, StopRule, schedules.Schedule):
        for cls in set(base.__subclasses__()) - {Moments}:
            assert dataclasses.is_dataclass(cls)
            assert cls.__dataclass_params__.frozen


@pytest.mark.parametrize(
    "value", [getattr(fastbp, name) for name in NAMES if isinstance(getattr(fastbp, name), type)], ids=str
)
def test_public_class_has_a_runnable_example(value):
    assert ">>> " in value.__doc__


@pytest.mark.parametrize("function", [fastbp.MLP, fastbp.Trainer, fastbp.Trainer.fit, fastbp.MLP.predict])
def test_docstring_names_every_parameter_in_order(function):
    documented = inspect.getdoc(function).split("Parameters\n----------\n")[1].split("\n\n")[0]
    names = [name for line in re.findall(r"^(\S[^:]*) : ", documented, re.MULTILINE) for name in line.split(", ")]
    assert names == [name for name in inspect.signature(function).parameters if name != "self"]


def test_example_as_in_the_documentation():
    rng = np.random.default_rng(0)
    x, y = rng.random((200, 784)), rng.integers(10, size=200)
    x_val, y_val = x[:50], y[:50]

    model = fastbp.MLP([784, 128, 10], activation="relu", output="softmax", seed=0)
    history = model.fit(
        x,
        y,
        optimizer=fastbp.Adam(learning_rate=1e-3),
        batch_size=128,
        epochs=10,
        validation_data=(x_val, y_val),
        stop=[fastbp.EarlyStopping(patience=5)],
        seed=0,
    )

    assert history is model.history
    assert len(history) == 10
    assert model.predict(x_val).shape == (50, 10)


def test_divergence_error_pickled_keeps_step():
    error = fastbp.DivergenceError("the loss is not finite", 7, step_taken=False, layer=2)
    copied = pickle.loads(pickle.dumps(error))
    assert (str(copied), copied.step, copied.step_taken, copied.layer) == (str(error), 7, False, 2)
    assert isinstance(error, ArithmeticError)
