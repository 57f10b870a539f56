"""Files of models and trainers: what comes back, what is refused, and that nothing is lost."""

import contextlib
import hashlib
import io
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numba import njit

import cases
import fastbp
from fastbp import MLP, SGD, Adam, CheckpointError, Trainer, archive, callbacks, schedules

FORMATS = Path(__file__).parent / "formats"
SHAPED = {
    "regularize": [fastbp.Dropout(0.2), fastbp.InputNoise(0.1), fastbp.L2(1e-3), fastbp.MaxNorm(2.0)],
    "clip_norm": 1.0,
    "ema": 0.9,
    "rate_factors": [(1.0, 0.1), (0.5, 1.0)],
}


def data(n=100, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    return x, np.sin(x[:, :2])


def trainer(seed=1, **options):
    return Trainer(MLP((4, 8, 2), "tanh", seed=0), seed=seed, **options)


def assert_same(one, other):
    """Assert that two trainers have the same bits, but for times."""
    assert one.n_steps == other.n_steps
    assert one.model.params.tobytes() == other.model.params.tobytes()
    first, second = one._run.__getstate__(), other._run.__getstate__()
    for a, b in zip(first["_buffers"][:2], second["_buffers"][:2], strict=True):
        assert a.tobytes() == b.tobytes()
    assert list(one.history._columns) == list(other.history._columns)
    for name in one.history._columns:
        if name != "seconds":
            assert one.history[name].tobytes() == other.history[name].tobytes(), name
    assert one.history.stop_reason == other.history.stop_reason
    assert one.history.best_epoch == other.history.best_epoch
    if one.history.health is not None:
        for name, array in one.history.health._arrays().items():
            assert array.tobytes() == other.history.health._arrays()[name].tobytes()


def saved(thing, folder):
    path = folder / "file.npz"
    thing.save(path)
    assert [each.name for each in folder.iterdir()] == ["file.npz"]
    return fastbp.load(path)


@pytest.mark.parametrize("optimizer", cases.OPTIMIZERS, ids=repr)
@pytest.mark.parametrize("options", [{}, SHAPED], ids=["plain", "shaped"])
def test_trainer_comes_back_and_goes_on_with_the_same_bits(optimizer, options, tmp_path):
    if optimizer.has_average and options:
        options = {name: value for name, value in options.items() if name != "ema"}
    x, y = data()
    stop = [fastbp.EarlyStopping(50), fastbp.Convergence(1e-9, 50)]
    arguments = {
        "validation_data": (x, y),
        "stop": stop,
        "health": 3,
        "callbacks": callbacks.ReduceOnPlateau(patience=0),
    }
    one = trainer(optimizer=optimizer, **options)
    one.fit(x, y, epochs=None, max_steps=6, **arguments)
    one.step(x[:7], y[:7])
    one.fit(x, y, epochs=None, max_steps=5, **arguments)
    other = saved(one, tmp_path)
    assert repr(other) == repr(one)
    assert_same(one, other)
    for each in (one, other):
        each.fit(x, y, epochs=None, max_steps=9, **arguments)
        each.step(x[:7], y[:7])
    assert_same(one, other)


@pytest.mark.parametrize("loss_output", cases.PAIRS, ids=str)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_model_comes_back_as_it_was(loss_output, dtype, tmp_path):
    loss, output = loss_output
    model = MLP((3, 5, 4), "elu(0.5)", output, loss=loss, dtype=dtype, seed=5)
    other = saved(model, tmp_path)
    assert type(other) is MLP
    assert repr(other) == repr(model)
    assert other.seed == model.seed
    assert other.params.tobytes() == model.params.tobytes()
    x = np.random.default_rng(0).normal(size=(7, 3))
    assert other.predict(x).tobytes() == model.predict(x).tobytes()
    assert other.history is None


def test_model_keeps_the_history_of_its_fit(tmp_path):
    x, y = data()
    model = MLP((4, 8, 2), seed=0)
    model.fit(x, y, epochs=3, validation_data=(x, y), metrics={"worst": lambda y, p: float(abs(y - p).max())}, health=2)
    other = saved(model, tmp_path)
    assert repr(other.history) == repr(model.history)
    assert list(other.history._columns) == list(model.history._columns)
    assert str(other.history.health.report()) == str(model.history.health.report())


def test_file_is_an_npz_that_numpy_reads(tmp_path):
    one = trainer()
    one.fit(*data(), epochs=2)
    one.save(str(tmp_path / "run"))
    with np.load(tmp_path / "run", allow_pickle=False) as file:
        record = json.loads(file["record"].tobytes())
        assert file["params"].tobytes() == one.model.params.tobytes()
        for name, described in record["arrays"].items():
            assert hashlib.sha256(file[name].tobytes()).hexdigest() == described["sha256"]
        assert hashlib.sha256(file["record"].tobytes()).digest() == file["sha256"].tobytes()
    assert record["program"] == "fastbp"
    assert record["format"] == 2
    assert set(record["environment"]) == {"fastbp", "Numba", "llvmlite", "CPU target"}
    assert record["model"]["sizes"] == [4, 8, 2]


def test_state_that_early_stopping_has_set_aside_comes_back(tmp_path):
    x, y = data()
    one = trainer(optimizer=Adam(0.1))
    one.fit(x, y, epochs=30, validation_data=(x, -y), stop=fastbp.EarlyStopping(5))
    assert one._run.buffers.set_aside is not None
    other = saved(one, tmp_path)
    for each in (one, other):
        each.fit(x, y, epochs=2)
    assert_same(one, other)


def test_interrupted_epoch_that_was_not_validated_is_validated_by_the_next_fit(tmp_path):
    x, y = data()
    one = trainer()

    def broken(y, prediction):
        raise OSError("no metric")

    with pytest.raises(OSError, match="no metric"):
        one.fit(x, y, epochs=2, validation_data=(x, y), metrics={"m": broken})
    other = saved(one, tmp_path)
    for each in (one, other):
        each.fit(x, y, epochs=2, validation_data=(x, y), metrics={"m": lambda y, p: float(p.sum())})
    assert_same(one, other)


@njit
def softsign(z):
    return z / (1.0 + abs(z))


@njit
def softsign_derivative(z, h):
    return (1.0 - abs(h)) ** 2


@njit
def cubic(output, y):
    return abs(output - y) ** 3


@njit
def cubic_derivative(output, y):
    return 3.0 * abs(output - y) * (output - y)


@njit
def heavy_ball(p, g, moments, numbers):
    rate, beta = numbers
    (velocity,) = moments
    velocity = beta * velocity + g
    return p - rate * velocity, (velocity,)


def test_formulas_of_ones_own_come_back_by_their_names(tmp_path):
    activation = fastbp.Activation("softsign", softsign, softsign_derivative)
    loss, rule = fastbp.Loss("cubic", cubic, cubic_derivative), fastbp.UpdateRule("ball", 1, heavy_ball, 1e-2, (0.9,))
    x, y = data()
    one = Trainer(MLP((4, 8, 2), activation, loss=loss, seed=0), optimizer=rule, seed=0)
    one.fit(x, y, epochs=1)
    one.learning_rate = 0.005
    path = tmp_path / "own.npz"
    one.save(path)
    custom = {"softsign": activation, "cubic": loss, "ball": rule}
    other = fastbp.load(path, custom=custom)
    assert other.learning_rate == 0.005
    for each in (one, other):
        each.fit(x, y, epochs=2)
    assert_same(one, other)
    for name in custom:
        with pytest.raises(CheckpointError, match=rf"the file needs your \w+ '{name}': pass custom="):
            fastbp.load(path, custom={key: value for key, value in custom.items() if key != name})
    with pytest.raises(CheckpointError, match="must be the Activation of that name"):
        fastbp.load(path, custom=custom | {"softsign": loss})


def test_what_cannot_be_written_is_refused_with_the_way_out_and_nothing_is_touched(tmp_path):
    path = tmp_path / "run.npz"
    path.write_bytes(b"before")
    one = trainer(optimizer=SGD(lambda step: 0.1 / (1 + step)))
    with pytest.raises(CheckpointError, match=r"optimizer cannot be written to a file: .*use one of fastbp\.schedules"):
        one.save(path)
    with pytest.raises(CheckpointError, match=r"use one of fastbp\.schedules"):
        one.fit(*data(), epochs=1, checkpoint=path)
    assert one.n_steps == 0
    other = trainer()
    other.callback_memory[print] = (1.0,)
    with pytest.raises(CheckpointError, match="what a callback remembers cannot be written"):
        other.save(path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
    for wrong in (None, 3, b"run.npz"):
        with pytest.raises(TypeError, match="path must be a path"):
            other.save(wrong)
    with pytest.raises(FileNotFoundError):
        trainer().save(tmp_path / "no" / "folder.npz")
    with pytest.raises(FileNotFoundError):
        fastbp.load(tmp_path / "nothing.npz")


def whole_file(folder):
    x, y = data(20)
    one = trainer(**SHAPED)
    one.fit(
        x, y, epochs=2, validation_data=(x, y), stop=fastbp.EarlyStopping(3), health=1, checkpoint=folder / "whole.npz"
    )
    return one, (folder / "whole.npz").read_bytes()


def test_damaged_files_raise_checkpoint_errors_alone(tmp_path):
    one, content = whole_file(tmp_path)
    path, generator = tmp_path / "damaged.npz", np.random.default_rng(0)
    for trial in range(400):
        changed = bytearray(content)
        kind = trial % 4
        if kind == 0:
            changed = changed[: generator.integers(len(changed))]
        elif kind == 1:
            changed[generator.integers(len(changed))] ^= 1 << generator.integers(8)
        elif kind == 2:
            start = generator.integers(len(changed))
            del changed[start : start + generator.integers(1, 100)]
        else:
            start = generator.integers(len(changed))
            changed[start : start + 50] = generator.integers(0, 256, 50, np.uint8).tobytes()
        path.write_bytes(changed)
        other = None
        with contextlib.suppress(CheckpointError):
            other = fastbp.load(path)
        if other is not None:  # what no reader looks at, such as a time in the directory
            assert_same(one, other)


def rewritten(content, change):
    """A file with another record, whose digest is right: what somebody could make who wants to."""
    with np.load(io.BytesIO(content)) as file:
        entries = dict(file)
    record = json.loads(entries["record"].tobytes())
    record = change(record) or record
    text = json.dumps(record).encode()
    entries["record"] = np.frombuffer(text, np.uint8)
    entries["sha256"] = np.frombuffer(hashlib.sha256(text).digest(), np.uint8)
    stream = io.BytesIO()
    np.savez(stream, **entries)
    return stream.getvalue()


def put(*names, value):
    def change(record):
        part = record
        for name in names[:-1]:
            part = part[name]
        part[names[-1]] = value

    return change


def without(*names):
    def change(record):
        part = record
        for name in names[:-1]:
            part = part[name]
        del part[names[-1]]

    return change


FORGED = {
    "program": (put("program", value="other"), "no file of fastbp's"),
    "format 0": (put("format", value=0), "format 0; fastbp .* reads 1 to 2"),
    "format 3": (put("format", value=3), "format 3; fastbp .* reads 1 to 2"),
    "format text": (put("format", value="1"), "format '1'"),
    "kind": (put("kind", value="forest"), "unknown kind, 'forest'"),
    "sizes": (put("model", "sizes", value=[4, 1 << 40, 2]), "."),
    "more sizes": (put("model", "sizes", value=[4, 9, 2]), "params should be"),
    "size text": (put("model", "sizes", value="[4]"), "expected"),
    "activation": (put("model", "activations", value=["os.system", "identity"]), "activation"),
    "no activations": (put("model", "activations", value=[]), "."),
    "loss": (put("model", "loss", value="cross_entropy"), "loss"),
    "dtype": (put("model", "dtype", value="float16"), "dtype"),
    "optimizer": (put("trainer", "optimizer", value={"class": "Popen", "args": "ls"}), "something unknown"),
    "optimizer's field": (put("trainer", "optimizer", "beta1", value=2.0), "wrong Adam: beta1"),
    "optimizer's fields": (put("trainer", "optimizer", "more", value=2.0), "something unknown"),
    "no optimizer": (put("trainer", "optimizer", value=None), "expected"),
    "batch_size": (put("options", "batch_size", value=-1), "batch_size"),
    "threads": (put("options", "threads", value=1e9), "threads"),
    "shaping": (put("options", "shaping", "noise", value="a"), "where a number"),
    "shaping NaN": (put("options", "shaping", "noise", value={"float": "nan"}), "where a number"),
    "layers": (put("options", "shaping", "layers", value=[]), None),
    "layer": (put("options", "shaping", "layers", value=[1, 2]), "wrong layer"),
    "step": (put("trainer", "position", "cursor", "step", value=-1), "step = -1"),
    "huge step": (put("trainer", "position", "cursor", "step", value=1 << 70), "step"),
    "bool step": (put("trainer", "position", "cursor", "step", value=True), "expected"),
    "no position": (without("trainer", "position"), "no part 'position'"),
    "no step": (without("trainer", "position", "cursor", "step"), "no 'step'"),
    "totals": (put("trainer", "position", "totals", "epoch_loss", value="x"), "expected"),
    "table": (put("trainer", "memory", "table", value=[[0.0] * 5]), "stop rules"),
    "judged": (put("trainer", "memory", "judged", value=[]), "."),
    "snapshot": (
        put("trainer", "memory", "judged", value=[{"best": 1.0, "waited": 0, "snapshot": {"params": "loss"}}]),
        ".",
    ),
    "moments": (put("trainer", "first_step", value=-3), "first_step"),
    "callback": (put("trainer", "callback_memory", value=[[1]]), "callback remembers"),
    "metric": (put("history", "names", value=["__class__"]), "."),
    "column": (put("history", "columns", "loss", value="params"), "should be"),
    "health": (put("history", "health", "layers", value=[]), "health"),
    "infinite": (put("trainer", "position", "epoch_seconds", value={"float": "inf", "b": 1}), "something unknown"),
    "text float": (put("trainer", "position", "epoch_seconds", value={"float": "ten"}), "."),
    "list": (lambda record: [record], "no JSON object"),
    "deep": (put("more", value=json.loads("[" * 100 + "]" * 100)), "no JSON object"),
    "arrays": (put("arrays", "params", "sha256", value="0" * 64), "params is not what was written"),
    "other arrays": (without("arrays", "params"), "other arrays"),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_records_raise_checkpoint_errors(name, tmp_path):
    change, message = FORGED[name]
    _, content = whole_file(tmp_path)
    path = tmp_path / "forged.npz"
    path.write_bytes(rewritten(content, change))
    if message is None:  # what is left is a whole trainer
        fastbp.load(path)
        return
    with pytest.raises(CheckpointError, match=message):
        fastbp.load(path)


def test_run_that_stands_beyond_its_data_is_refused_before_a_kernel_reads(tmp_path):
    x, y = data(20)
    one = trainer(batch_size=7)
    one.fit(x, y, epochs=None, max_steps=1)
    one.save(tmp_path / "run.npz")
    content = (tmp_path / "run.npz").read_bytes()
    (tmp_path / "run.npz").write_bytes(rewritten(content, put("trainer", "position", "cursor", "position", value=1000)))
    other = fastbp.load(tmp_path / "run.npz")
    with pytest.raises(ValueError, match="stands at sample 1000 of 20"):
        other.fit(x, y, epochs=1)


def test_bombs_are_refused_without_the_memory_that_they_ask_for(tmp_path):
    path = tmp_path / "bomb.npz"

    def refused(message):
        tracemalloc.start()
        with pytest.raises(CheckpointError, match=message):
            fastbp.load(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3 * path.stat().st_size + (1 << 20)

    np.savez_compressed(path, record=np.zeros(1 << 26, np.uint8))
    refused("promises more|compressed")
    header = (
        b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,), }".ljust(127)
        + b"\n"
    )
    for name in ("record", "params"):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(f"{name}.npy", header + bytes(8))
        refused("no entry|does not fit")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("record.npy", b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535)
        file.writestr("sha256.npy", b"")
    refused(".")
    np.savez(path, record=np.array([{"a": print}], object))
    refused(".")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(path, "w") as file:
            for _ in range(2):
                file.writestr("record.npy", b"")
    refused("unexpected entry")
    path.write_bytes(b"")
    refused(".")
    path.write_bytes(b"PK\x05\x06" + bytes(18))
    refused("no entry 'record'")


def test_file_of_another_machine_or_version_says_what_is_different(tmp_path):
    one = trainer()
    path = tmp_path / "run.npz"
    one.save(path)
    path.write_bytes(rewritten(path.read_bytes(), put("environment", "CPU target", value="z80")))
    with pytest.warns(RuntimeWarning, match="written with CPU target z80, now .*other last bits") as caught:
        assert_same(one, fastbp.load(path))
    assert caught[0].filename == __file__


@pytest.mark.parametrize("kind", ["model", "trainer"])
def test_files_of_every_format_stay_readable(kind):
    for path in sorted(FORMATS.glob(f"format_*_{kind}.npz")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            loaded = fastbp.load(path)
        model = loaded if kind == "model" else loaded.model
        assert model.sizes == (3, 4, 2)
        assert model.params.size == 26
        with np.load(path) as file:
            assert model.params.tobytes() == file["params"].tobytes()
        if kind == "trainer":
            assert loaded.n_steps == 7
            assert loaded.optimizer == Adam(schedules.CosineDecay(0.01, 100))
            assert len(loaded.history) == 4
            rng = np.random.default_rng(0)
            loaded.fit(rng.normal(size=(40, 3)), rng.normal(size=(40, 2)), epochs=1)
        assert (model.x_mean is None) == (path.name == f"format_1_{kind}.npz")
        if model.x_mean is not None:
            assert model.x_mean.tolist() == [1.0, 2.0, 3.0]
            assert model.y_std.tolist() == [0.5, 4.0]
    assert len(list(FORMATS.glob(f"format_*_{kind}.npz"))) == 2


def test_a_run_of_format_1_is_completed(tmp_path):
    path = tmp_path / "run.npz"
    fit_of("plain", max_steps=5, checkpoint=path)
    names = ("scaling",), ("model", "standardize"), ("model", "standardize_y")
    for change in (put("format", value=1), *[without(*name) for name in names]):
        path.write_bytes(rewritten(path.read_bytes(), change))
    assert_same(fit_of("plain", checkpoint=path, resume=True), fit_of("plain"))


def test_forged_scaling_is_refused(tmp_path):
    x, y = data()
    model = MLP((4, 8, 2), seed=0, standardize=True, standardize_y=True)
    model.learn_scaling(x, y)
    model.save(tmp_path / "model.npz")
    content = (tmp_path / "model.npz").read_bytes()
    for change, message in (
        (put("scaling", "x", "std", value="y.std"), r"y\.std should be \(4,\)"),
        (put("scaling", "x", "std", value="params"), "params should be"),
        (put("scaling", "y", "std", value="y.mean"), "no means and deviations"),
        (without("scaling", "y"), "no part 'y'"),
        (put("scaling", value=3), "no part 'scaling'"),
        (put("model", "standardize", value="no"), "'bool'"),
    ):
        (tmp_path / "forged.npz").write_bytes(rewritten(content, change))
        with pytest.raises(CheckpointError, match=message):
            fastbp.load(tmp_path / "forged.npz")


RUNS = {
    "plain": ({}, {}),
    "shaped, validated": (
        SHAPED | {"use_ema": True, "batch_size": 9},
        {"validation": True, "stop": [fastbp.EarlyStopping(2), fastbp.Convergence(1e-3, 100)], "health": 2},
    ),
    "schedule-free, weights": (
        {"optimizer": fastbp.ScheduleFreeAdamW(0.01), "batch_size": 7, "drop_last": True},
        {"sample_weight": np.linspace(0.0, 1.0, 60), "validation_split": 0.2},
    ),
    "schedule, plateau": (
        {"optimizer": SGD(0.05, momentum=0.9), "threads": 2, "batch_size": 16},
        {"callbacks": [callbacks.ReduceOnPlateau(factor=0.5, patience=0, monitor="loss")]},
    ),
    "all samples": ({"optimizer": fastbp.AdamW(schedules.CosineDecay(0.02, 20)), "batch_size": None}, {}),
}


def fit_of(name, epochs=7, seed=1, **more):
    options, arguments = RUNS[name]
    x, y = data(60)
    arguments = dict(arguments)
    if arguments.pop("validation", False):
        arguments["validation_data"] = data(30, seed=5)
    one = trainer(seed, **options)
    one.fit(x, y, epochs=epochs, **arguments, **more)
    return one


@pytest.mark.parametrize("name", RUNS)
def test_fit_that_was_interrupted_after_any_step_ends_as_an_uninterrupted_one(name, tmp_path):
    whole = fit_of(name)
    path = tmp_path / "run.npz"
    for n_steps in sorted({1, 2, 3, 5, 8, 13, whole.n_steps - 1, whole.n_steps}):
        path.unlink(missing_ok=True)
        fit_of(name, checkpoint=path, max_steps=n_steps)
        if n_steps < whole.n_steps:
            fit_of(name, checkpoint=path, resume=True, max_steps=min(n_steps + 2, whole.n_steps))
        resumed = fit_of(name, seed=77, checkpoint=path, resume=True)
        if n_steps == whole.n_steps:  # a rule may have ended it
            assert resumed.model.params.tobytes() == whole.model.params.tobytes()
        else:
            assert_same(whole, resumed)
        assert_same(resumed, fastbp.load(path))


def test_exception_leaves_a_file_from_which_the_fit_is_completed(tmp_path):
    whole, path = fit_of("plain"), tmp_path / "run.npz"

    def stop(trainer, record):
        if record["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_of("plain", checkpoint=path, callbacks=stop)
    assert_same(whole, fit_of("plain", checkpoint=path, resume=True))


def test_resume_without_a_file_starts_and_a_finished_fit_stays(tmp_path):
    path = tmp_path / "run.npz"
    whole = fit_of("plain", checkpoint=path, resume=True)
    before = path.read_bytes()
    assert_same(whole, fit_of("plain", checkpoint=path, resume=True))
    assert path.read_bytes() == before
    longer = fit_of("plain", epochs=9, checkpoint=path, resume=True)
    assert_same(longer, fit_of("plain", epochs=9))
    fresh = fit_of("plain", epochs=2, checkpoint=path)
    assert len(fresh.history) == 2


def test_fit_that_a_rule_has_ended_is_not_gone_on_with(tmp_path):
    path = tmp_path / "run.npz"
    arguments = {"stop": fastbp.TargetLoss(10.0), "checkpoint": path}
    one = fit_of("plain", **arguments)
    assert one.history.stop_reason == "TargetLoss"
    assert_same(one, fit_of("plain", **arguments, resume=True))


def test_model_fit_takes_a_checkpoint_too(tmp_path):
    x, y = data()
    path, whole, one, other = tmp_path / "run.npz", *[MLP((4, 8, 2), seed=seed) for seed in (0, 0, 3)]
    whole.fit(x, y, epochs=5, seed=2)
    one.fit(x, y, epochs=5, max_steps=6, seed=2, checkpoint=path)
    history = other.fit(x, y, epochs=5, checkpoint=path, resume=True)
    assert other.params.tobytes() == whole.params.tobytes()
    assert other.history is history
    assert len(history) == 5


def test_resume_refuses_other_runs_and_other_data(tmp_path):
    x, y = data(60)
    path = tmp_path / "run.npz"
    fit_of("plain", checkpoint=path, max_steps=3)
    refused = {
        "but x changed": {"x": x + 1.0},
        "but x, y changed": {"x": x[:50], "y": y[:50]},
        "but sample_weight changed": {"sample_weight": np.ones(60)},
        "but the validation data changed": {"validation_data": (x, y)},
        "but x, y, the validation data changed": {"validation_split": 0.2},
        "epochs must be": {"epochs": -1},
    }
    for message, changed in refused.items():
        one = trainer()
        before = one.model.params.copy()
        with pytest.raises(ValueError, match=message):
            one.fit(**{"x": x, "y": y, "epochs": 9} | changed, checkpoint=path, resume=True)
        assert one.n_steps == 0
        assert one.model.params.tobytes() == before.tobytes()
    wrong = {
        "batch_size is 32 there, and 16 here": trainer(batch_size=16),
        "activations is": Trainer(MLP((4, 8, 2), "relu")),
        "sizes is": Trainer(MLP((4, 9, 2), "tanh")),
        "dtype is": Trainer(MLP((4, 8, 2), "tanh", dtype="float64")),
        "clip_value, ema or rate_factors are others": trainer(ema=0.5),
        "optimizer was Adam.* here it is Adam": trainer(optimizer=Adam(0.5)),
        "optimizer was Adam.* here it is SGD": trainer(optimizer=SGD()),
    }
    for message, other in wrong.items():
        before = other.model.params.copy()
        with pytest.raises(CheckpointError, match=message):
            other.fit(x, y, checkpoint=path, resume=True)
        assert other.model.params.tobytes() == before.tobytes()
        assert other.n_steps == 0
    trainer().save(path)
    with pytest.raises(CheckpointError, match="without a fit to complete"):
        trainer().fit(x, y, checkpoint=path, resume=True)
    trainer().model.save(path)
    with pytest.raises(CheckpointError, match="the file is of a model"):
        trainer().fit(x, y, checkpoint=path, resume=True)
    path.write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"run\.npz"):
        trainer().fit(x, y, checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="resume=True needs the file"):
        trainer().fit(x, y, resume=True)
    for every in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="checkpoint_every"):
            trainer().fit(x, y, checkpoint=path, checkpoint_every=every)


PROGRAM = """
import sys
import numpy as np
import fastbp

rng = np.random.default_rng(0)
x = rng.normal(size=(4000, 4))
y = np.sin(x[:, :2])
trainer = fastbp.Trainer(fastbp.MLP((4, 64, 64, 2), "tanh", seed=0), batch_size=16, seed=1, ema=0.9)
trainer.fit(x, y, epochs=int(sys.argv[2]), checkpoint=sys.argv[1], checkpoint_every=float(sys.argv[3]), resume=True)
"""


def start(folder, epochs, every):
    command = [sys.executable, "-c", PROGRAM, str(folder / "run.npz"), str(epochs), str(every)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def wait_for(condition):
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise TimeoutError


def run_to_the_end(folder, epochs):
    assert start(folder, epochs, 1e9).wait(300) == 0
    return fastbp.load(folder / "run.npz")


def test_terminated_fit_saves_exits_and_is_completed_by_another_process(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    process = start(one, 4000, 1e-3)
    wait_for((one / "run.npz").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    stopped = fastbp.load(one / "run.npz")
    assert stopped.history.stop_reason == "SIGTERM"
    n_epochs = len(stopped.history) + 2
    assert_same(run_to_the_end(one, n_epochs), run_to_the_end(two, n_epochs))


def test_killed_fit_leaves_a_whole_file_and_is_completed(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    n_steps = 0
    for _ in range(5):
        process = start(one, 4000, 1e-6)
        wait_for(lambda before=n_steps: (one / "run.npz").exists() and fastbp.load(one / "run.npz").n_steps > before)
        process.kill()
        process.wait(60)
        n_steps = fastbp.load(one / "run.npz").n_steps
    for left in one.glob(".run.npz.*"):  # what a process was writing when it was killed
        left.unlink()
    n_epochs = n_steps // 250 + 2
    assert_same(run_to_the_end(one, n_epochs), run_to_the_end(two, n_epochs))


def test_handler_of_the_users_own_is_left_alone(tmp_path):
    called = []
    before = signal.signal(signal.SIGTERM, lambda *_: called.append(1))
    try:
        fit_of("plain", checkpoint=tmp_path / "run.npz", callbacks=lambda t, r: signal.raise_signal(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(called) == 7
    fit_of("plain", checkpoint=tmp_path / "run.npz")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_full_disk_at_any_byte_leaves_the_old_file(tmp_path):
    path = tmp_path / "run.npz"
    one = trainer()
    one.fit(*data(), epochs=1)
    one.save(path)
    old, size = path.read_bytes(), path.stat().st_size
    one.fit(*data(), epochs=1)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for most in [*range(0, size, max(1, size // 50)), size - 1]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
            with pytest.raises(OSError, match="File too large"):
                one.save(path)
            with pytest.raises(OSError, match="File too large"):
                pickle.loads(pickle.dumps(one)).fit(*data(), epochs=1, checkpoint=path)
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert path.read_bytes() == old
            assert list(tmp_path.iterdir()) == [path]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    one.save(path)
    assert_same(one, fastbp.load(path))


def test_file_that_cannot_be_written_ends_the_fit_with_whole_steps(tmp_path):
    one, path = trainer(), tmp_path / "folder" / "run.npz"
    with pytest.raises(FileNotFoundError):
        one.fit(*data(), epochs=1, checkpoint=path)
    one.fit(*data(), epochs=2)
    assert one.n_steps % 4 == 0


def test_archive_reads_what_it_has_written(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.int64).reshape(2, 3), "b.c": np.zeros((0, 3)), "d": np.float32([np.nan, -0.0])}
    archive.write(tmp_path / "x", {"one": [1, None, True, "ä"]}, arrays)
    record, read = archive.read(tmp_path / "x")
    assert record == {"one": [1, None, True, "ä"]}
    for name, array in arrays.items():
        assert read[name].tobytes() == array.tobytes()
        assert read[name].shape == array.shape
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_links_are_followed_rights_stay_and_what_is_no_file_is_left_alone(tmp_path):
    model, there, link = MLP((2, 1), seed=0), tmp_path / "there.npz", tmp_path / "link.npz"
    there.write_bytes(b"before")
    there.chmod(0o600)
    link.symlink_to(there)
    model.save(link)
    assert link.is_symlink()
    assert there.stat().st_mode & 0o777 == 0o600
    assert fastbp.load(there).params.tobytes() == model.params.tobytes()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(CheckpointError, match="no file that could be replaced"):
            model.save(tmp_path / name)
    assert (tmp_path / "pipe").is_fifo()


def test_record_that_is_not_the_one_that_was_written_is_refused(tmp_path):
    path = tmp_path / "model.npz"
    MLP((2, 1), seed=0).save(path)
    with np.load(path) as file:
        entries = dict(file)
    entries["record"] = np.frombuffer(entries["record"].tobytes().replace(b'"seed": 0', b'"seed": 1'), np.uint8)
    np.savez(path, **entries)  # a whole archive, with checksums of its own
    with pytest.raises(CheckpointError, match="the record is not the one that was written"):
        fastbp.load(path)


def test_file_is_replaced_as_a_whole_under_those_who_read_it(tmp_path):
    path = tmp_path / "model.npz"
    MLP((2, 1), seed=0).save(path)
    old = path.read_bytes()
    with path.open("rb") as reader:
        MLP((2, 1), seed=1).save(path)
        assert reader.read() == old
    assert path.read_bytes() != old


def test_seconds_of_a_time_limit_count_from_where_the_fit_began(tmp_path):
    path = tmp_path / "run.npz"
    fit_of("plain", checkpoint=path, max_steps=3)
    path.write_bytes(rewritten(path.read_bytes(), put("trainer", "fit", "seconds", value=1e6)))
    resumed = fit_of("plain", epochs=None, checkpoint=path, resume=True, stop=fastbp.TimeLimit(1e6))
    assert resumed.history.stop_reason == "TimeLimit"
    assert resumed.n_steps > 3
    assert fastbp.load(path)._run.fit_record.seconds > 1e6


def test_fit_without_a_checkpoint_leaves_none_to_complete(tmp_path):
    path = tmp_path / "run.npz"
    one = fit_of("plain", checkpoint=path, max_steps=3)
    one.fit(*data(60), epochs=1)
    one.save(path)
    with pytest.raises(CheckpointError, match="without a fit to complete"):
        fit_of("plain", checkpoint=path, resume=True)
