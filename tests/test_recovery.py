"""Divergences: the layer that is named, and what a fit does that goes back from one."""

import pickle
import signal
import warnings

import numpy as np
import pytest

import fastbp
from fastbp import MLP, SGD, Adam, DivergenceError, ReduceRate, Trainer, schedules
from fastbp.recovery import Divergence

SIZES = {"one task": (4, 8, 8, 2), "tiles": (4, 150, 150, 2)}


def data(n=64, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    return x, np.sin(x[:, :2])


def diverging(layer, sizes, dtype="float32"):
    """A linear network whose layer `layer` is the first with outputs that are not finite."""
    model = MLP(sizes, "identity", dtype=dtype, seed=0)
    large = np.finfo(dtype).max / 8
    for index in range(layer):
        model.weights[index][:] = 0.0
        model.weights[index][0, :] = 1.0
    model.weights[layer][:] = large
    return model


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("n", [64, 2500])
def test_error_names_the_first_layer_whose_outputs_are_not_finite(layer, sizes, dtype, n):
    x, y = data(n)
    model = diverging(layer, sizes, dtype)
    with pytest.raises(
        DivergenceError, match=rf"nor are the outputs of layer {layer}; the parameters are those"
    ) as caught:
        model.fit(np.abs(x) + 10.0, y, batch_size=None, shuffle=False, health=True)
    assert (caught.value.layer, caught.value.step, caught.value.step_taken) == (layer, 0, False)
    assert model.history.health.first_non_finite == (0, layer)
    with pytest.raises(DivergenceError) as caught:
        Trainer(model).step(np.abs(x) + 10.0, y)
    assert caught.value.layer == layer


def test_error_says_where_all_outputs_are_finite():
    x, y = data()
    with pytest.raises(DivergenceError, match=r"not finite in step 0 \(epoch 1\), though all outputs are") as caught:
        MLP((4, 2), seed=0).fit(x, y * 1e25)
    assert caught.value.layer is None


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_error_names_the_layer_of_a_parameter(sizes):
    x, y = data()
    with pytest.raises(DivergenceError, match="a parameter of layer 2 is not finite after step 0") as caught:
        MLP(sizes, seed=0).fit(x, y * 1e15, optimizer=SGD(1e35))
    assert (caught.value.layer, caught.value.step_taken) == (2, True)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(
    ("size", "layer", "message"),
    [(1e20, 0, r"in layer 0; the parameters"), (1e25, None, r"by its square alone; the parameters")],
)
def test_error_names_the_layer_of_a_gradient(sizes, size, layer, message):
    x, _ = data()
    model = MLP(sizes, "identity", seed=0)
    model.params = np.zeros(model.n_params)  # all outputs are 0, and so are the gradients of weights behind them
    model.weights[2][:] = size
    model.weights[1][:] = size if layer == 0 else 0.0
    with pytest.raises(DivergenceError, match=rf"gradient is not finite in step 0 \(epoch 1\), {message}") as caught:
        model.fit(x, np.ones((64, 2)), clip_norm=1.0)
    assert caught.value.layer == layer
    assert not caught.value.step_taken


def run(on_divergence, rate=3.0, epochs=30, stop=(), **options):
    """A fit on data whose last rows make it diverge with this rate."""
    x, y = data(256)
    trainer = Trainer(MLP((4, 8, 2), "relu", seed=0), optimizer=SGD(rate), batch_size=32, seed=0, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = trainer.fit(x, y, epochs=epochs, on_divergence=on_divergence, health=1, stop=stop)
    return trainer, history


def test_reduce_goes_back_and_on_with_a_smaller_rate():
    trainer, history = run("reduce")
    assert history.stop_reason == "epochs"
    assert len(history) == 30
    assert [d.rate_factor for d in history.divergences] == [0.1] * len(history.divergences)
    assert history.divergences
    assert trainer.learning_rate == pytest.approx(3.0 * 0.1 ** len(history.divergences))
    assert history.loss[-1] < history.loss[0]
    np.testing.assert_array_equal(history.epoch, np.arange(1, 31))
    np.testing.assert_array_equal(history.health.step, np.arange(trainer.n_steps))
    assert trainer.n_steps == 30 * 8


@pytest.mark.parametrize("make", [SGD, lambda rate: SGD(rate, momentum=0.5), Adam], ids=["SGD", "momentum", "Adam"])
def test_run_after_going_back_is_that_of_a_run_with_the_smaller_rate_from_there(make):
    x, y = data(256)
    y[100:140] *= 3e38 / 1e3  # a batch that no rate survives but after the first epochs: its loss overflows
    trainer = Trainer(MLP((4, 8, 2), seed=0), optimizer=make(0.01), batch_size=32, shuffle=False, seed=0)
    trainer.fit(x, data(256)[1], epochs=3)
    other = pickle.loads(pickle.dumps(trainer))
    with pytest.warns(RuntimeWarning, match="the fit diverged and ended"):
        trainer.fit(x, y, epochs=3, on_divergence=ReduceRate(0.5, times=1))
    assert [d.n_epochs for d in trainer.history.divergences] == [3, 3]
    assert trainer.model.params.tobytes() == other.model.params.tobytes()
    other.learning_rate = 0.005
    trainer.fit(x, data(256)[1], epochs=2)
    other.fit(x, data(256)[1], epochs=2)
    assert trainer.model.params.tobytes() == other.model.params.tobytes()
    assert trainer.history.loss.tobytes() == other.history.loss.tobytes()


def test_restore_ends_with_the_state_before_the_best_epoch():
    x, y = data(256)
    trainer = Trainer(MLP((4, 8, 2), seed=0), optimizer=Adam(0.01), batch_size=32, seed=0)
    states = []

    def watch(trainer, record):
        states.append(trainer.model.params.copy())
        if record["epoch"] == 6:
            trainer.learning_rate = 1e38

    with pytest.warns(RuntimeWarning, match="The model is that of 5 epochs again"):
        history = trainer.fit(x, y, epochs=9, on_divergence="restore", callbacks=watch)
    assert history.stop_reason == "DivergenceError"
    assert len(history) == 5
    assert trainer.model.params.tobytes() == states[4].tobytes()
    assert trainer.n_steps == 5 * 8
    (divergence,) = history.divergences
    assert divergence == Divergence(divergence.step, divergence.layer, 5, 1.0)
    assert divergence.step >= 6 * 8


def test_reduce_of_a_schedule_scales_it():
    rate = schedules.CosineDecay(3.0, 240)
    x, y = data(256)
    trainer = Trainer(MLP((4, 8, 2), "relu", seed=0), optimizer=SGD(rate), batch_size=32, seed=0)
    history = trainer.fit(x, y, epochs=30, on_divergence=ReduceRate(0.2, 9))
    n = len(history.divergences)
    assert n >= 1
    assert trainer.learning_rate.then == rate
    assert trainer.learning_rate.factor == pytest.approx(0.2**n)
    assert trainer.learning_rate(17) == pytest.approx(0.2**n * rate(17))


def test_stop_rules_and_the_average_go_back_too():
    stop = [fastbp.TargetLoss(-1.0), fastbp.Convergence(tol=1e9, patience=1000), fastbp.EarlyStopping(monitor="loss")]
    trainer, history = run(ReduceRate(0.1, 5), stop=stop, ema=0.9)
    assert history.divergences
    memory = trainer._run.state.memory
    assert memory.judged_epochs == len(history)
    assert memory.table["waited"][1] == len(history) - 1
    assert np.isfinite(trainer.ema_params).all()


def test_default_raises_and_without_a_divergence_nothing_changes():
    x, y = data(256)
    with pytest.raises(DivergenceError):
        run("raise")
    plain, careful = (Trainer(MLP((4, 8, 2), seed=0), seed=0) for _ in range(2))
    plain.fit(x, y, epochs=5)
    careful.fit(x, y, epochs=5, on_divergence="reduce")
    assert plain.model.params.tobytes() == careful.model.params.tobytes()
    assert careful.history.divergences == ()


def test_interrupt_while_it_goes_back_leaves_whole_steps():
    x, y = data(256)
    trainer = Trainer(MLP((4, 8, 2), "relu", seed=0), optimizer=SGD(3.0), batch_size=32, seed=0)

    def interrupt(trainer, record):
        if trainer.history.divergences:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer.fit(x, y, epochs=30, on_divergence="reduce", callbacks=interrupt)
    n_epochs = len(trainer.history)
    assert trainer.n_steps == 8 * n_epochs
    trainer.fit(x, y, epochs=30 - n_epochs)
    assert len(trainer.history) == 30


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("stop", ValueError, "on_divergence must be one of 'raise', 'restore', 'reduce', or ReduceRate"),
        (None, TypeError, "on_divergence must be a str or ReduceRate"),
        (3, TypeError, "on_divergence must be a str"),
    ],
)
def test_wrong_on_divergence_is_refused_before_the_first_step(value, error, message):
    x, y = data()
    trainer = Trainer(MLP((4, 8, 2), seed=0))
    with pytest.raises(error, match=message):
        trainer.fit(x, y, on_divergence=value)
    assert trainer.n_steps == 0


@pytest.mark.parametrize("options", [{"factor": 0.0}, {"factor": 1.0}, {"times": -1}, {"times": 1.5}, {"factor": "a"}])
def test_wrong_options_of_reduce_rate_are_refused(options):
    (name,) = options
    with pytest.raises((TypeError, ValueError), match=name):
        ReduceRate(**options)


def test_fit_goes_back_over_many_epochs_to_the_beginning_of_the_best_one_with_all_that_it_remembers():
    x, _ = data(256)
    y = x @ [1.0, -2.0, 0.5, 0.3]
    trainer = Trainer(MLP((4, 1), seed=0), optimizer=SGD(0.05), batch_size=64, seed=0)
    states, records = [], []

    def watch(trainer, record):
        states.append(trainer.model.params.copy())
        records.append(record)
        if record["epoch"] == 4:
            trainer.learning_rate = 1.5  # from here on the loss grows, and overflows some dozens of epochs later

    stop = [fastbp.Convergence(1e-12, 1000), fastbp.EarlyStopping(1000, monitor="loss", restore_best=False)]
    with pytest.warns(RuntimeWarning, match="The model is that of 3 epochs again"):
        history = trainer.fit(x, y, epochs=1000, on_divergence="restore", callbacks=watch, stop=stop, health=1)
    losses = [record["loss"] for record in records]
    assert len(losses) > 10
    assert np.argmin(losses) == 3
    assert trainer.model.params.tobytes() == states[2].tobytes()
    assert trainer.n_steps == 3 * 4
    np.testing.assert_array_equal(history.epoch, [1, 2, 3])
    np.testing.assert_array_equal(history.loss, losses[:3])
    np.testing.assert_array_equal(history.health.step, np.arange(12))
    memory = trainer._run.state.memory
    assert memory.judged_epochs == 3
    assert memory.judged[0].best == losses[2]
    assert (memory.table["best"][0], memory.table["waited"][0]) == (losses[2], 0.0)
    trainer.learning_rate = 0.05
    trainer.fit(x, y, epochs=1)
    assert trainer.model.params.tobytes() == states[3].tobytes()


def test_fit_goes_on_after_going_back_over_many_epochs():
    x, _ = data(256)
    y = x @ [1.0, -2.0, 0.5, 0.3]
    trainer = Trainer(MLP((4, 1), seed=0), optimizer=SGD(0.05), batch_size=64, seed=0)

    def watch(trainer, record):
        if record["epoch"] == 4 and not trainer.history.divergences:
            trainer.learning_rate = 1.5

    history = trainer.fit(x, y, epochs=60, on_divergence=ReduceRate(0.01), callbacks=watch)
    (divergence,) = history.divergences
    assert divergence.n_epochs == 3
    assert divergence.step > 40
    np.testing.assert_array_equal(history.epoch, np.arange(1, 61))
    np.testing.assert_allclose(history.learning_rate, [0.05] * 3 + [0.015] * 57)
    assert history.loss[-1] < history.loss[2]
