import copy
import itertools
import pickle
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastbp
from cases import OPTIMIZERS
from fastbp import schedules
from problems import bits, classes, classifier, regression, regressor, rows_of, state_of
from shown import shown

SCHEDULED = fastbp.SGD(schedules.Warmup(7, schedules.CosineDecay(0.1, 20)), momentum=0.9, nesterov=True)
WITH_SCHEDULES = (
    *OPTIMIZERS,
    SCHEDULED,
    fastbp.Adam(schedules.ExponentialDecay(0.01, 0.9)),
    fastbp.AdamW(lambda step: 0.01 / (1 + step)),
)


def clone_by_pickle(trainer):
    return pickle.loads(pickle.dumps(trainer))


@pytest.mark.parametrize("optimizer", WITH_SCHEDULES, ids=shown)
def test_fit_in_two_parts_equals_one_fit(optimizer):
    x, y = regression()
    parts, whole = (fastbp.Trainer(regressor(), optimizer=optimizer, batch_size=16, seed=1) for _ in range(2))

    parts.fit(x, y, epochs=2)
    history = parts.fit(x, y, epochs=3)
    whole.fit(x, y, epochs=5)

    assert state_of(parts) == state_of(whole)
    assert rows_of(parts.history) == rows_of(whole.history)
    assert history is parts.history is parts.model.history
    np.testing.assert_array_equal(history.epoch, [1, 2, 3, 4, 5])
    assert parts.n_steps == whole.n_steps == 20


@given(pieces=st.lists(st.integers(1, 9), min_size=1, max_size=6), drop_last=st.booleans(), data=st.data())
@settings(max_examples=40)
def test_fit_stopped_anywhere_equals_one_fit(pieces, drop_last, data):
    x, y = classes()
    options = {"optimizer": SCHEDULED, "batch_size": 16, "drop_last": drop_last, "seed": 3}
    trainer, whole = (fastbp.Trainer(classifier(), **options) for _ in range(2))

    for n_steps in pieces:
        trainer.fit(x, y, epochs=None, max_steps=n_steps)
        clone = data.draw(st.sampled_from([lambda same: same, copy.deepcopy, clone_by_pickle]))
        trainer = clone(trainer)
    whole.fit(x, y, epochs=None, max_steps=sum(pieces))

    assert state_of(trainer) == state_of(whole)
    assert rows_of(trainer.history) == rows_of(whole.history)
    assert (trainer.history.seconds > 0.0).all()
    assert trainer.history.stop_reason == "max_steps"


@pytest.mark.parametrize("clone", [lambda trainer: trainer, copy.deepcopy, clone_by_pickle])
@pytest.mark.parametrize(
    "again",
    [
        lambda array: array,
        np.copy,
        np.asfortranarray,
        lambda array: np.repeat(array, 2, axis=0)[::2],
        lambda array: array.view(),
    ],
)
def test_fit_after_stop_in_mid_epoch_goes_on_with_the_same_data(clone, again):
    x, y = regression()
    trainer, whole = (fastbp.Trainer(regressor(), batch_size=8, seed=1) for _ in range(2))

    trainer.fit(x, y, max_steps=3)
    assert len(trainer.history) == 1
    trainer = clone(trainer)
    trainer.fit(again(x), again(y), epochs=1)
    whole.fit(x, y, epochs=1)

    assert trainer.n_steps == 8
    assert state_of(trainer) == state_of(whole)
    assert rows_of(trainer.history) == rows_of(whole.history)


@pytest.mark.parametrize("clone", [lambda trainer: trainer, clone_by_pickle])
@pytest.mark.parametrize(
    "change",
    [
        lambda x, y: (x + 1.0, y),
        lambda x, y: (x, -y),
        lambda x, y: (x[:-1], y[:-1]),
        lambda x, y: (x[::-1], y[::-1]),
        lambda x, y: (x.astype(np.float32), y),
    ],
)
def test_fit_after_stop_in_mid_epoch_starts_an_epoch_on_other_data(clone, change):
    x, y = regression()
    trainer = fastbp.Trainer(regressor(), batch_size=8, seed=1)
    trainer.fit(x, y, max_steps=3)
    first_loss = trainer.history.loss[0]
    trainer = clone(trainer)

    trainer.fit(*change(x, y), epochs=1)

    assert trainer.n_steps == 3 + 8
    np.testing.assert_array_equal(trainer.history.epoch, [1, 2])
    assert trainer.history.loss[0] == first_loss
    assert (trainer.history.seconds > 0.0).all()


def test_fit_new_data_at_an_epochs_end_goes_on_with_moments_and_shuffle():
    x, y = regression()
    trainer = fastbp.Trainer(regressor(), batch_size=8, seed=1)
    trainer.fit(x, y, epochs=1)
    moments = bits(trainer._run.buffers.moments)
    trainer.fit(x[:30], y[:30], epochs=1)

    assert bits(trainer._run.buffers.moments) != moments
    assert trainer.n_steps == 8 + 4
    np.testing.assert_array_equal(trainer.history.epoch, [1, 2])


def test_fit_max_steps_and_epochs_whichever_comes_first():
    x, y = regression()
    trainer = fastbp.Trainer(regressor(), batch_size=20, seed=1)
    for arguments, n_steps, reason in [
        ({"epochs": 2, "max_steps": 100}, 6, "epochs"),
        ({"epochs": 2, "max_steps": 4}, 10, "max_steps"),
        ({"epochs": 1}, 12, "epochs"),
        ({"epochs": 1, "max_steps": 3}, 15, "epochs"),
        ({"epochs": 2**70, "max_steps": 2}, 17, "max_steps"),
        ({"epochs": 1, "max_steps": 2**70}, 18, "epochs"),
        ({"epochs": None, "max_steps": 3}, 21, "max_steps"),
    ]:
        history = trainer.fit(x, y, **arguments)
        assert (trainer.n_steps, history.stop_reason) == (n_steps, reason)


def test_fit_nothing_that_ends_it_raises():
    with pytest.raises(ValueError, match="epochs=None needs another limit: pass max_steps or a stop rule"):
        regressor().fit(*regression(), epochs=None)


def test_fit_batch_size_none_is_gradient_descent():
    x, y = regression()
    model, by_hand = regressor(dtype="float64"), regressor(dtype="float64")

    model.fit(x, y, optimizer=fastbp.SGD(0.1), batch_size=None, epochs=5)
    for _ in range(5):
        by_hand.params -= 0.1 * by_hand.loss_and_grad(x, y)[1]

    # fma rounds once where NumPy rounds twice.
    np.testing.assert_allclose(model.params, by_hand.params, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("batch_size", [60, 61, 10**6, 2**70])
def test_fit_batch_size_beyond_the_data_is_all_of_it(batch_size):
    x, y = regression()
    clamped, all_samples = regressor(), regressor()
    clamped.fit(x, y, batch_size=batch_size, epochs=3, seed=0)
    all_samples.fit(x, y, batch_size=None, epochs=3, seed=1)
    assert bits(clamped.params) == bits(all_samples.params)


@pytest.mark.parametrize(
    ("batch_size", "drop_last", "n_steps"),
    [(16, False, 4), (16, True, 3), (20, True, 3), (100, True, 1), (1, True, 60)],
)
def test_fit_drop_last_leaves_out_the_smaller_batch(batch_size, drop_last, n_steps):
    x, y = regression()
    trainer = fastbp.Trainer(regressor(), batch_size=batch_size, drop_last=drop_last)
    trainer.fit(x, y, epochs=2)
    assert trainer.n_steps == 2 * n_steps


@pytest.mark.parametrize("optimizer", WITH_SCHEDULES, ids=shown)
def test_fit_without_shuffle_equals_steps_on_consecutive_batches(optimizer):
    x, y = classes()
    fitted, stepped = (fastbp.Trainer(classifier(), optimizer=optimizer, batch_size=16, shuffle=False) for _ in "ab")

    fitted.fit(x, y, epochs=2)
    losses = [stepped.step(x[first : first + 16], y[first : first + 16]) for first in [0, 16, 32, 48] * 2]

    params = stepped.model.params if stepped.ema_params is None else stepped.ema_params
    assert bits(fitted.model.params) == bits(params)
    assert bits(fitted._run.buffers.moments) == bits(stepped._run.buffers.moments)
    assert fitted.n_steps == stepped.n_steps == 8
    np.testing.assert_allclose(fitted.history.loss[0], np.average(losses[:4], weights=[16, 16, 16, 12]), rtol=1e-12)


def test_fit_same_seed_same_bits_and_other_seed_others():
    x, y = regression()
    params = []
    for seed in (0, 0, 1, 2**64 - 1, np.int64(1)):
        model = regressor()
        model.fit(x, y, epochs=3, seed=seed)
        params.append(bits(model.params))
    assert params[0] == params[1]
    assert params[2] == params[4]
    assert len(set(params)) == 3


def test_seed_none_draws_one_that_repeats_the_run():
    x, y = regression()
    models = regressor(), regressor(), regressor()
    first, second = models[0].fit(x, y, epochs=2), models[1].fit(x, y, epochs=2)

    assert first.seed != second.seed
    assert bits(models[0].params) != bits(models[1].params)
    models[2].fit(x, y, epochs=2, seed=first.seed)
    assert bits(models[2].params) == bits(models[0].params)
    trainer = fastbp.Trainer(regressor())
    assert trainer.seed == trainer.history.seed == trainer.fit(x, y, epochs=1).seed


@pytest.mark.parametrize(
    "extra",
    [
        {"progress": True},
        {"validation_data": regression(7)},
        {"validation_data": regression(7), "metrics": {"bias": lambda y, prediction: float(np.mean(prediction - y))}},
        {"stop": [fastbp.TargetLoss(-1.0), fastbp.TimeLimit(1e6)]},
        {"max_steps": 10**9},
    ],
    ids=lambda extra: " ".join(extra),
)
def test_fit_what_is_watched_changes_no_bit(extra):
    x, y = regression()
    plain, watched = regressor(), regressor()
    history = plain.fit(x, y, epochs=4, seed=0)
    other = watched.fit(x, y, epochs=4, seed=0, **extra)
    assert bits(plain.params) == bits(watched.params)
    assert bits(history.loss) == bits(other.loss)


def test_step_returns_the_loss_before_it_and_counts():
    x, y = classes()
    trainer = fastbp.Trainer(classifier(), optimizer=fastbp.SGD(0.1))
    before = trainer.model.loss(x, y)

    loss = trainer.step(x, y)

    assert isinstance(loss, float)
    assert loss == pytest.approx(before, rel=1e-6)
    assert trainer.model.loss(x, y) < before
    assert trainer.n_steps == 1
    assert len(trainer.history) == 0
    assert trainer.model.history is None


def test_step_between_two_fits_leaves_the_position_in_the_epoch_alone():
    x, y = regression()
    trainer = fastbp.Trainer(regressor(), optimizer=fastbp.SGD(lambda step: 0.5 if step == 3 else 1e-30), batch_size=8)
    trainer.fit(x, y, max_steps=3)
    params = bits(trainer.model.params)
    trainer.step(x[:5], y[:5])
    assert bits(trainer.model.params) != params
    history = trainer.fit(x, y, epochs=1)

    assert trainer.n_steps == 8 + 1
    np.testing.assert_array_equal(history.epoch, [1])


def test_step_before_and_after_a_fit_goes_on_with_everything():
    x, y = classes()
    optimizer = fastbp.Adam(schedules.CosineDecay(0.1, 40))
    trainer, twin = (fastbp.Trainer(classifier(), optimizer=optimizer, batch_size=16, shuffle=False) for _ in "ab")

    trainer.step(x, y)
    trainer.fit(x, y, epochs=5)
    trainer.step(x, y)
    trainer.step(x[:7], y[:7])
    trainer = clone_by_pickle(trainer)
    trainer.step(x, y)

    twin.step(x, y)
    for first in [0, 16, 32, 48] * 5:
        twin.step(x[first : first + 16], y[first : first + 16])
    for n_samples in (60, 7, 60):
        twin.step(x[:n_samples].copy(), y[:n_samples].copy())
    assert trainer.n_steps == twin.n_steps == 24
    assert bits(trainer.model.params) == bits(twin.model.params)
    assert bits(trainer._run.buffers.moments) == bits(twin._run.buffers.moments)


def test_step_keeps_no_batch_alive():
    x, y = regression()
    trainer = fastbp.Trainer(regressor())
    trainer.step(x, y)
    batch = weakref.ref(x)
    del x
    assert batch() is None


def test_step_divergence_keeps_parameters_and_count():
    trainer = fastbp.Trainer(fastbp.MLP([1, 1], init=[1.0, 0.0]))
    trainer.step([[1.0]], [0.5])
    before = state_of(trainer)
    trainer.model.params[0] = 3e38
    with pytest.raises(fastbp.DivergenceError, match="the loss is not finite in step 1") as caught:
        trainer.step([[3e38]], [0.0])
    trainer.model.params[:] = np.frombuffer(before[0], np.float32)
    assert state_of(trainer) == before
    assert (caught.value.step, caught.value.step_taken) == (1, False)


@pytest.mark.parametrize(
    "learning_rate",
    [
        lambda step: 0.01 / (1 + step),
        schedules.Warmup(5, 0.1),
        schedules.Warmup(5, schedules.StepDecay(0.1, 0.5, 3)),
        schedules.CosineDecay(0.1, 10),
        schedules.PolynomialDecay(0.1, 10),
        schedules.InverseSqrtDecay(0.1, 5),
        schedules.OneCycle(0.1, 12),
        schedules.ExponentialDecay(0.1, 0.9),
    ],
)
def test_fit_takes_the_schedules_rate_at_each_step(learning_rate):
    x, y = regression()
    model, by_hand = regressor(dtype="float64"), regressor(dtype="float64")
    history = model.fit(x, y, optimizer=fastbp.SGD(learning_rate), batch_size=None, epochs=15)

    for step in range(15):
        by_hand.params -= learning_rate(step) * by_hand.loss_and_grad(x, y)[1]
    np.testing.assert_allclose(model.params, by_hand.params, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(history.learning_rate, [learning_rate(step) for step in range(15)])


@pytest.mark.parametrize(
    "arguments", [{"epochs": 3}, {"epochs": 3, "validation_data": regression(5)}, {"epochs": None, "max_steps": 12}]
)
def test_fit_schedule_is_never_asked_for_steps_beyond_the_end(arguments):
    x, y = regression()
    table = np.full(12, 0.01)
    trainer = fastbp.Trainer(regressor(), optimizer=fastbp.SGD(lambda step: table[step]), batch_size=16)
    trainer.fit(x, y, **arguments)
    assert trainer.n_steps == 12


def test_fit_schedule_is_asked_with_python_ints_that_go_on():
    x, y = regression()
    asked = set()

    def learning_rate(step):
        assert type(step) is int
        asked.add(step)
        return 0.01

    trainer = fastbp.Trainer(regressor(), optimizer=fastbp.SGD(learning_rate), batch_size=30)
    trainer.fit(x, y, epochs=2)
    trainer.fit(x, y, epochs=3)
    assert set(range(10)) <= asked


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.1])
@pytest.mark.parametrize("first_bad_step", [1, 5, 3000])
def test_fit_schedule_bad_later_raises_before_its_step(bad, first_bad_step):
    x, y = regression()
    trainer = fastbp.Trainer(
        regressor(),
        optimizer=fastbp.Adam(lambda step: 0.001 if step < first_bad_step else bad),
        batch_size=8,
        seed=1,
    )
    with pytest.raises(
        ValueError, match=rf"learning_rate must be finite and >= 0 at every step, got {bad} at step {first_bad_step}"
    ):
        trainer.fit(x, y, epochs=10**9)

    assert trainer.n_steps <= first_bad_step
    assert trainer.history.stop_reason == "ValueError"
    whole = fastbp.Trainer(regressor(), batch_size=8, seed=1)
    if trainer.n_steps > 0:
        whole.fit(x, y, max_steps=trainer.n_steps, epochs=None)
    assert bits(trainer.model.params) == bits(whole.model.params)
    assert rows_of(trainer.history) == rows_of(whole.history)
    trainer.model.fit(x, y, epochs=1)


@pytest.mark.parametrize(
    ("bad", "error"), [(np.nan, ValueError), (-1.0, ValueError), ("0.1", TypeError), (None, TypeError)]
)
def test_fit_schedule_bad_at_once_changes_nothing(bad, error):
    x, y = regression()
    model = regressor()
    before = bits(model.params)
    with pytest.raises(error, match=r"learning_rate must .*, got .* at step 0"):
        model.fit(x, y, optimizer=fastbp.Adam(lambda step: bad))
    assert bits(model.params) == before
    assert model.history is None


def test_fit_schedule_that_raises_passes_it_on_after_whole_steps():
    x, y = regression()

    def learning_rate(step):
        if step == 7:
            raise ZeroDivisionError("step 7")
        return 0.01

    trainer = fastbp.Trainer(regressor(), optimizer=fastbp.SGD(learning_rate), batch_size=8, seed=1)
    trainer.fit(x, y, max_steps=5)
    before, rows = state_of(trainer), rows_of(trainer.history)
    with pytest.raises(ZeroDivisionError, match="step 7"):
        trainer.fit(x, y, epochs=1)
    assert state_of(trainer) == before
    assert rows_of(trainer.history) == rows
    with pytest.raises(ZeroDivisionError, match="step 7"):
        trainer.fit(-x, y, epochs=1)
    assert state_of(trainer) == before
    trainer.fit(x, y, max_steps=2)
    assert trainer.n_steps == 7


def test_history_of_regression_has_no_accuracy():
    x, y = regression()
    history = regressor().fit(x, y, epochs=3)
    assert len(history) == 3
    assert np.isfinite(history.loss).all()
    for name in ("accuracy", "validation_loss", "validation_accuracy"):
        assert np.isnan(history[name]).all()
    assert history.metrics == ()
    assert history.stop_reason == "epochs"
    np.testing.assert_array_equal(history.learning_rate, [1e-3] * 3)


@pytest.mark.parametrize("targets", ["labels", "column", "rows"])
def test_history_accuracy_of_classes_is_the_share_of_right_ones(targets):
    x, y = classes()
    model = classifier()
    expected_loss = model.loss(x, y)
    expected = np.mean(model.predict(x).argmax(axis=1) == y)
    given = {"labels": y, "column": y[:, np.newaxis], "rows": np.eye(4)[y]}[targets]

    history = model.fit(x, given, batch_size=None, epochs=1)  # measured in the step, so before its update

    assert history.accuracy[0] == expected
    assert history.loss[0] == pytest.approx(expected_loss, rel=1e-6)


@pytest.mark.parametrize("n_out", [1, 3])
def test_history_accuracy_of_binary_outputs_is_the_share_of_right_ones(n_out):
    x, y = regression(n_out=n_out)
    model = fastbp.MLP([3, 5, n_out], output="sigmoid", seed=0)
    expected = np.mean((model.predict(x) > 0.5) == (y > 0.0))
    assert model.fit(x, y > 0.0, batch_size=None, epochs=1).accuracy[0] == pytest.approx(expected, rel=1e-12)


def test_history_validation_is_that_of_the_parameters_after_the_epoch():
    x, y = classes()
    x_val, y_val = classes(37, seed=0)
    trainer = fastbp.Trainer(classifier())
    for epochs in (1, 2):
        history = trainer.fit(x, y, epochs=epochs, validation_data=(x_val, y_val))
        assert history.validation_loss[-1] == trainer.model.loss(x_val, y_val)
        expected = np.mean(trainer.model.predict(x_val).argmax(axis=1) == y_val)
        assert history.validation_accuracy[-1] == pytest.approx(expected, rel=1e-12)
    assert np.isfinite(history.validation_loss).all()


@pytest.mark.parametrize("with_validation", [False, True])
def test_history_seconds_are_positive_and_add_up(with_validation):
    x, y = regression()
    validation = {"validation_data": (x, y)} if with_validation else {}

    def learning_rate(step):
        time.sleep(0.001)
        return 0.01

    trainer = fastbp.Trainer(regressor(), optimizer=fastbp.SGD(learning_rate), batch_size=None)
    start = time.perf_counter()
    trainer.fit(x, y, epochs=20, **validation)
    trainer.fit(x, y, epochs=20, **validation)
    elapsed = time.perf_counter() - start

    seconds = trainer.history.seconds
    assert (seconds > 0.0).all()
    # The schedule's own time is part of it; what comes before and after the training is not.
    assert 0.02 < seconds.sum() < elapsed


def test_history_seconds_of_a_resumed_epoch_leave_the_pause_out():
    x, y = regression()
    trainer = fastbp.Trainer(regressor(), batch_size=8)
    start = time.perf_counter()
    trainer.fit(x, y, max_steps=3)
    pause_start = time.perf_counter()
    time.sleep(0.1)
    pause = time.perf_counter() - pause_start
    trainer.fit(x, y, epochs=1)
    trainer.fit(x, y, max_steps=3)
    trainer.fit(-x, y, epochs=1)  # whose epoch has nothing of the one given up
    assert trainer.history.seconds.sum() < time.perf_counter() - start - pause
    assert (trainer.history.seconds > 0.0).all()


def test_history_compile_seconds_second_fit_needs_none():
    x, y = regression()
    model = regressor()
    model.fit(x, y, epochs=1)
    assert model.fit(x, y, epochs=1).compile_seconds == 0.0


def test_metrics_are_recorded_by_their_names():
    x, y = regression()
    seen = []

    def mean_error(y, prediction):
        seen.append((y, prediction))
        return np.mean(np.abs(y - prediction))

    model = regressor()
    metrics = {"mean_error": mean_error, "one": lambda y, prediction: 1}
    history = model.fit(x, y[:, 0], epochs=2, validation_data=(x[:10], y[:10, 0]), metrics=metrics)

    assert history.metrics == ("mean_error", "one")
    np.testing.assert_array_equal(history.one, [1.0, 1.0])
    # Targets have the shape of the predictions: y - prediction must not broadcast.
    np.testing.assert_array_equal(seen[-1][0], y[:10])
    assert bits(seen[-1][1]) == bits(model.predict(x[:10]))
    assert history["mean_error"][-1] == np.mean(np.abs(y[:10] - model.predict(x[:10])))


def test_metrics_of_classes_get_labels():
    x, y = classes()
    history = classifier().fit(
        x,
        y[:, np.newaxis],
        epochs=1,
        validation_data=(x, y[:, np.newaxis]),
        metrics={"right": lambda y, prediction: np.mean(prediction.argmax(axis=1) == y)},
    )
    assert history.right[0] == pytest.approx(history.validation_accuracy[0], rel=1e-12)


@pytest.mark.parametrize("value", [None, "0.5", [0.5], 1j, np.ones(1)])
def test_metrics_value_that_is_no_number_raises_after_whole_epochs(value):
    x, y = regression()
    trainer = fastbp.Trainer(regressor(), seed=0)
    with pytest.raises(TypeError, match=r"metrics\['odd'\] must return a float, got"):
        trainer.fit(x, y, validation_data=(x, y), metrics={"odd": lambda y, prediction: value})
    assert len(trainer.history) == 1
    assert trainer.history.stop_reason == "TypeError"
    assert np.isfinite(trainer.history.validation_loss[0])
    assert trainer.n_steps == 2


def test_metrics_that_raise_pass_it_on_and_keep_the_record():
    x, y = regression()
    epochs = itertools.count(1)

    def metric(y, prediction):
        if next(epochs) == 3:
            raise ZeroDivisionError("third epoch")
        return 0.5

    model, twin = regressor(), regressor()
    with pytest.raises(ZeroDivisionError, match="third epoch"):
        model.fit(x, y, validation_data=(x, y), metrics={"half": metric}, seed=0)
    twin.fit(x, y, epochs=3, seed=0)

    assert bits(model.params) == bits(twin.params)
    assert model.history.stop_reason == "ZeroDivisionError"
    np.testing.assert_array_equal(model.history.half, [0.5, 0.5, np.nan])
    np.testing.assert_array_equal(model.history.loss, twin.history.loss)
    model.fit(x, y, epochs=1)


def test_fit_with_tqdm_shows_epoch_loss_accuracy_and_rate(capfd):
    pytest.importorskip("tqdm")
    x, y = classes()
    history = classifier().fit(x, y, epochs=3, validation_data=(x, y), progress=True)

    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert "epoch 3/3" in last
    assert "100%" in last
    assert f"loss {history.loss[-1]:.4g}, accuracy {history.accuracy[-1]:.4f}" in last
    assert f"validation loss {history.validation_loss[-1]:.4g}" in last
    assert "steps/s" in last


def test_fit_without_tqdm_prints_plain_lines(capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    x, y = regression()
    model = regressor()
    model.fit(x, y, epochs=1, progress=False)
    assert capfd.readouterr().err == ""
    history = model.fit(x, y, epochs=12, progress=True)

    out, err = capfd.readouterr()
    assert out == ""
    assert f"epoch 12/12: loss {history.loss[-1]:.4g}, " in err.splitlines()[-1]
    assert err.splitlines()[-1].endswith("steps/s")
    assert "accuracy" not in err


@pytest.mark.parametrize("has_tqdm", [False, True])
def test_fit_with_progress_any_limit_works(has_tqdm, capfd, monkeypatch):
    if not has_tqdm:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    x, y = regression()
    trainer = fastbp.Trainer(regressor(), batch_size=8)
    for arguments in (
        {"epochs": None, "max_steps": 3},
        {"epochs": 2},
        {"epochs": None, "stop": fastbp.TimeLimit(1e-9)},
        {"epochs": None, "stop": fastbp.TargetLoss(1e9)},
    ):
        trainer.fit(x, y, progress=True, **arguments)
    assert capfd.readouterr().err


@pytest.mark.parametrize("clone", [lambda trainer: trainer, clone_by_pickle])
def test_fit_divergence_names_the_step_and_keeps_the_parameters_before_it(clone):
    x, y = regression()
    options = {"optimizer": fastbp.SGD(50.0, momentum=0.5), "batch_size": 16, "seed": 0}
    trainer, twin = (fastbp.Trainer(fastbp.MLP([3, 4, 1], "relu", seed=0), **options) for _ in range(2))

    with pytest.raises(fastbp.DivergenceError, match=r"the loss is not finite in step \d+ \(epoch \d+\)") as caught:
        trainer.fit(x, y)

    step = caught.value.step
    assert f"in step {step} (epoch {step // 4 + 1})" in str(caught.value)
    assert not caught.value.step_taken
    assert trainer.n_steps == step > 0
    twin.fit(x, y, epochs=None, max_steps=step)
    assert state_of(trainer) == state_of(twin)
    assert np.isfinite(trainer.model.params).all()
    assert rows_of(trainer.history) == rows_of(twin.history)
    assert trainer.history.stop_reason == "DivergenceError"
    with pytest.raises(fastbp.DivergenceError) as again:
        clone(trainer).fit(x, y)
    assert again.value.step == step


def test_fit_gradient_overflow_with_finite_loss_says_that_the_step_was_taken():
    trainer = fastbp.Trainer(fastbp.MLP([1, 1], init=[1.0, 0.0]), optimizer=fastbp.SGD(lambda step: 3e38 * (step == 2)))

    with pytest.raises(
        fastbp.DivergenceError,
        match="a parameter of layer 0 is not finite after step 2, whose loss was finite; the step was taken",
    ) as caught:
        trainer.fit([[1.0]], [-100.0])

    assert (caught.value.step, caught.value.step_taken) == (2, True)
    assert trainer.n_steps == 3
    assert not np.isfinite(trainer.model.params).all()
    assert len(trainer.history) == 3
    assert np.isfinite(trainer.history.loss).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"optimizer": "adam"}, TypeError, r"optimizer must be an optimizer such as fastbp.Adam\(\), got 'adam'"),
        ({"optimizer": fastbp.Adam}, TypeError, "optimizer must be an optimizer such as"),
        ({"optimizer": None}, TypeError, "optimizer must be an optimizer such as"),
        ({"batch_size": 0}, ValueError, "batch_size must be a positive integer, got 0"),
        ({"batch_size": -3}, ValueError, "batch_size must be a positive integer, got -3"),
        ({"batch_size": 2.5}, TypeError, "batch_size must be a positive integer, got 2.5 of type float"),
        ({"batch_size": True}, TypeError, "batch_size must be a positive integer, got True of type bool"),
        ({"threads": 0}, ValueError, "threads must be a positive integer or 'auto', got 0"),
        ({"threads": -1}, ValueError, "threads must be a positive integer or 'auto', got -1"),
        ({"threads": 1.5}, TypeError, "threads must be a positive integer or 'auto', got 1.5 of type float"),
        ({"threads": True}, TypeError, "threads must be a positive integer or 'auto', got True of type bool"),
        ({"threads": None}, TypeError, "threads must be a positive integer or 'auto', got None of type NoneType"),
        ({"threads": "many"}, ValueError, "threads must be a positive integer or 'auto', got 'many'"),
        ({"shuffle": 1}, ValueError, "shuffle must be a bool, or the length of a window, 2 or more, got 1"),
        ({"drop_last": "no"}, TypeError, "drop_last must be a bool, got 'no' of type str"),
        ({"seed": "zero"}, TypeError, "seed must be an integer or None, got 'zero' of type str"),
        ({"seed": -1}, ValueError, r"seed must be in \[0, 2\*\*64\), got -1"),
    ],
)
def test_trainer_bad_argument_raises(arguments, error, message):
    with pytest.raises(error, match=message):
        fastbp.Trainer(regressor(), **arguments)


def test_trainer_other_model_raises():
    with pytest.raises(TypeError, match="model must be an MLP, got type"):
        fastbp.Trainer(fastbp.MLP)


def test_trainer_cloned_keeps_model_and_history_together():
    x, y = regression()
    trainer = fastbp.Trainer(regressor(), optimizer=fastbp.Adam(schedules.CosineDecay(0.1, 9)), seed=1)
    trainer.fit(x, y, epochs=2)
    for clone in (copy.deepcopy, clone_by_pickle):
        other = clone(trainer)
        assert other.model.history is other.history
        assert (other.seed, other.n_steps, other.optimizer) == (1, 4, trainer.optimizer)
        assert not np.shares_memory(other.model.params, trainer.model.params)
        assert state_of(other) == state_of(trainer)


def test_trainer_pickled_goes_on_in_another_process_with_the_same_bits(tmp_path):
    x, y = classes()
    optimizer = fastbp.AdamW(schedules.OneCycle(0.1, 40))
    trainer = fastbp.Trainer(classifier(), optimizer=optimizer, batch_size=8, seed=1)
    trainer.fit(x, y, max_steps=11)
    (tmp_path / "run").write_bytes(pickle.dumps((trainer, x, y)))
    program = """
import pickle, sys
with open(sys.argv[1], "rb") as file:
    trainer, x, y = pickle.load(file)
trainer.fit(x, y, epochs=2)
with open(sys.argv[1], "wb") as file:
    pickle.dump(trainer, file)
"""
    subprocess.run([sys.executable, "-c", program, tmp_path / "run"], check=True)
    other = pickle.loads((tmp_path / "run").read_bytes())

    trainer.fit(x, y, epochs=2)
    assert trainer.n_steps == 24
    assert state_of(other) == state_of(trainer)
    assert rows_of(other.history) == rows_of(trainer.history)


def test_trainer_pickle_does_not_hold_the_data():
    x, y = regression(5000)
    trainer = fastbp.Trainer(regressor())
    trainer.fit(x, y, max_steps=3)
    assert len(pickle.dumps(trainer)) < x.nbytes / 4


def test_trainer_copied_in_a_metric_goes_on_like_the_original():
    x, y = regression()
    trainer = fastbp.Trainer(regressor(), batch_size=8, seed=1)
    copies = []

    def checkpoint(y, prediction):
        copies.append(clone_by_pickle(trainer))
        return 0.0

    trainer.fit(x, y, epochs=3, validation_data=(x, y), metrics={"saved": checkpoint})
    early = copies[0]
    assert early.n_steps == 8
    early.fit(x, y, epochs=2, validation_data=(x, y))
    assert state_of(early) == state_of(trainer)


def test_model_and_seed_of_a_trainer_are_read_only():
    trainer = fastbp.Trainer(fastbp.MLP([2, 1], seed=0), seed=0)
    with pytest.raises(AttributeError):
        trainer.model = fastbp.MLP([2, 2000, 1])
    with pytest.raises(AttributeError):
        trainer.seed = -5


@pytest.mark.parametrize("where", ["between", "metric", "schedule"])
def test_second_initialisation_is_refused_and_changes_nothing(where):
    x, y = regression()

    def again(*_):
        for instance, arguments in ((trainer.model, ([3, 2000, 1],)), (trainer, (fastbp.MLP([3, 2000, 1]),))):
            with pytest.raises(RuntimeError, match="has been initialised already"):
                instance.__init__(*arguments)
        return 0.001

    optimizer = fastbp.Adam(again if where == "schedule" else 0.001)
    trainer, twin = (fastbp.Trainer(regressor(), optimizer=each, seed=0) for each in (optimizer, fastbp.Adam(0.001)))
    metrics = {"again": again} if where == "metric" else {}
    for _ in range(2):
        trainer.step(x, y)
        trainer.fit(x, y, epochs=2, validation_data=(x, y), metrics=metrics)
        again()
        twin.step(x, y)
        twin.fit(x, y, epochs=2)
    assert state_of(trainer) == state_of(twin)


def test_optimizer_initialised_a_second_time_changes_no_buffer():
    x, y = regression()
    optimizer = fastbp.RMSprop()
    trainer, twin = (
        fastbp.Trainer(regressor(), optimizer=optimizer, seed=0),
        fastbp.Trainer(regressor(), optimizer=fastbp.RMSprop(), seed=0),
    )
    optimizer.__init__(momentum=0.9, centered=True)  # which would need two more moments
    trainer.fit(x, y, epochs=3)
    twin.fit(x, y, epochs=3)
    assert state_of(trainer) == state_of(twin)


def test_trainer_subclass_of_an_optimizer_raises():
    class Broken(fastbp.Adam):
        moments = ()

    with pytest.raises(TypeError, match="optimizer must be one of fastbp's own"):
        fastbp.Trainer(fastbp.MLP([2, 1]), optimizer=Broken())


def test_divergence_after_a_best_epoch_says_that_it_was_restored():
    x = np.random.default_rng(0).standard_normal((64, 2))
    trainer = fastbp.Trainer(
        fastbp.MLP([2, 8, 1], seed=0), optimizer=fastbp.SGD(lambda step: 0.01 if step < 8 else 1e30), seed=0
    )
    with pytest.raises(fastbp.DivergenceError) as raised:
        trainer.fit(x, x[:, 0], validation_data=(x, x[:, 0]), stop=fastbp.EarlyStopping(50))
    assert "restored the parameters of the best epoch" in raised.value.__notes__[0]
    assert trainer.model.loss(x, x[:, 0]) == trainer.history.validation_loss[:4].min()


def test_metric_cannot_write_to_the_validation_targets():
    x, y = np.ones((8, 2)), np.ones((8, 1))
    with pytest.raises(ValueError, match="read-only"):
        fastbp.MLP([2, 1]).fit(x, y, epochs=1, validation_data=(x, y), metrics={"bad": lambda y, p: y.fill(7)})
    assert (y == 1).all()


@pytest.mark.parametrize("optimizer", [fastbp.Adam(eps=1e-60), fastbp.RMSprop(eps=1e-60), fastbp.Adagrad(eps=1e-60)])
def test_trainer_eps_that_vanishes_in_the_dtype_raises(optimizer):
    with pytest.raises(ValueError, match=r"eps must be in \[1\.2e-38, 3\.4e\+38\] for a model of float32, got 1e-60"):
        fastbp.Trainer(fastbp.MLP([2, 1]), optimizer=optimizer)
    fastbp.Trainer(fastbp.MLP([2, 1], dtype="float64"), optimizer=optimizer)


@pytest.mark.parametrize(
    ("x_scale", "y_scale", "cure"),
    [
        (1.0, 1.0, "try a smaller learning rate, a warm-up or scaled inputs"),
        (1.0, 1e20, r"the targets are as large as \de\+20: scale them to about 1"),
        (1.0, -1e20, r"the targets are as large as \de\+20: scale them to about 1"),
        (1e25, 1e20, r"the inputs are as large as \d(.\d+)?e\+25: scale them to about 1"),
    ],
)
@pytest.mark.parametrize("how", ["fit", "step"])
def test_divergence_is_blamed_on_the_size_of_the_data_where_that_is_it(x_scale, y_scale, cure, how):
    x, y = np.ones((20, 3)), np.ones(20)
    model = fastbp.MLP([3, 8, 1], "identity", init=np.full(41, 0.5))
    model.params[:] *= 1e19 if x_scale == y_scale == 1.0 else 1.0
    trainer = fastbp.Trainer(model)
    with pytest.raises(fastbp.DivergenceError, match=rf"not finite in step 0 \(epoch 1\).*before this step: {cure}"):
        getattr(trainer, how)(x_scale * x, y_scale * y)


def test_fit_on_other_data_that_does_not_come_to_its_first_step_keeps_the_place_in_the_epoch(monkeypatch):
    x, y = regression()
    trainer, twin = (fastbp.Trainer(regressor(), batch_size=8, seed=1) for _ in range(2))
    for each in (trainer, twin):
        each.fit(x, y, epochs=None, max_steps=5)

    def no_memory(*arguments, **options):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("fastbp.program.Programs.training", no_memory)
        with pytest.raises(MemoryError):
            trainer.fit(x[:50], y[:50])
    assert state_of(trainer) == state_of(twin)
    for each in (trainer, twin):
        each.fit(x, y, epochs=None, max_steps=20)
    assert state_of(trainer) == state_of(twin)
    assert rows_of(trainer.history) == rows_of(twin.history)


def test_divergence_of_parameters_that_are_not_finite_says_so():
    trainer = fastbp.Trainer(regressor())
    trainer.model.params[3] = np.nan
    with pytest.raises(fastbp.DivergenceError, match="before this step: they are not finite themselves"):
        trainer.step(*regression())
