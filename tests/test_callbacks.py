"""Callbacks, monitors of early stopping, and validation data that are split off or looked at now and then."""

import pickle

import numpy as np
import pytest

import fastbp
from fastbp import EarlyStopping, Trainer, callbacks
from fastbp.callbacks import ReduceOnPlateau


def data(n=64, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    return x, np.sin(x[:, :2])


def classes(n=90, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 4)), rng.integers(0, 3, n)


def regressor(**options):
    return Trainer(fastbp.MLP((4, 8, 2), "tanh", dtype="float64", seed=0), seed=0, **options)


def classifier(**options):
    return Trainer(fastbp.MLP((4, 8, 3), "tanh", "softmax", dtype="float64", seed=0), seed=0, **options)


def test_callback_gets_the_trainer_and_each_epochs_columns():
    seen, (x, y) = [], data()

    def callback(trainer, record):
        seen.append((trainer, record))

    trainer = regressor()
    metrics = {"worst": lambda y, p: float(np.abs(y - p).max())}
    history = trainer.fit(x, y, epochs=3, validation_data=(x, y), metrics=metrics, callbacks=callback)
    assert all(each is trainer for each, _ in seen)
    for row, (_, record) in enumerate(seen):
        assert record == {name: pytest.approx(history[name][row], nan_ok=True) for name in record}
        assert {"epoch", "loss", "validation_loss", "learning_rate", "worst"} <= set(record)
        assert type(record["epoch"]) is int
    assert [record["epoch"] for _, record in seen] == [1, 2, 3]


def test_callbacks_change_no_bit_and_stop_with_their_reason():
    x, y = data()
    plain, called = regressor(), regressor()
    plain.fit(x, y, epochs=5)
    order = []
    history = called.fit(
        x,
        y,
        epochs=9,
        callbacks=[
            lambda t, r: order.append(1),
            lambda t, r: "enough" if r["epoch"] == 5 else None,
            lambda t, r: order.append(2),
        ],
    )
    assert history.stop_reason == "enough"
    assert order == [1, 2] * 5
    assert called.model.params.tobytes() == plain.model.params.tobytes()


def test_callback_of_mlp_fit_gets_a_trainer_of_the_model():
    x, y = data()
    model, seen = fastbp.MLP((4, 8, 2), seed=0), []
    model.fit(x, y, epochs=1, callbacks=lambda trainer, record: seen.append(trainer))
    assert isinstance(seen[0], Trainer)
    assert seen[0].model is model


def test_callback_that_raises_leaves_whole_epochs_from_which_the_run_goes_on():
    x, y = data()
    whole, broken = regressor(), regressor()
    whole.fit(x, y, epochs=4)

    def fails(trainer, record):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken.fit(x, y, epochs=4, callbacks=fails)
    assert len(broken.history) == 1
    broken.fit(x, y, epochs=3)
    assert broken.model.params.tobytes() == whole.model.params.tobytes()
    assert broken.history.loss.tobytes() == whole.history.loss.tobytes()


def test_callback_may_set_the_learning_rate_from_the_next_step_on():
    x, y = data()
    trainer = regressor(optimizer=fastbp.Adam(0.01), batch_size=16)

    def halve(trainer, record):
        trainer.learning_rate = trainer.learning_rate / 2

    trainer.fit(x, y, epochs=3, callbacks=halve)
    assert trainer.history.learning_rate.tolist() == [0.01, 0.005, 0.0025]
    assert trainer.learning_rate == trainer.optimizer.learning_rate == 0.00125
    by_schedule = regressor(optimizer=fastbp.Adam(lambda step: 0.01 / 2 ** (step // 4)), batch_size=16)
    by_schedule.fit(x, y, epochs=3)
    assert trainer.model.params.tobytes() == by_schedule.model.params.tobytes()
    trainer.learning_rate = 0.5
    trainer.step(x, y)
    assert trainer.optimizer == fastbp.Adam(0.5)


def test_trainer_may_be_pickled_in_a_callback():
    x, y = data()
    copies, whole = [], regressor()
    whole.fit(x, y, epochs=4, callbacks=lambda trainer, record: copies.append(pickle.dumps(trainer)))
    for done, text in enumerate(copies, 1):
        if done < 4:
            other = pickle.loads(text)
            other.fit(x, y, epochs=4 - done)
            assert other.model.params.tobytes() == whole.model.params.tobytes()


@pytest.mark.parametrize(
    ("monitor", "mode", "needs_data"),
    [("accuracy", "max", False), ("loss", "min", False), ("validation_accuracy", "max", True), ("hits", "max", True)],
)
def test_early_stopping_on_any_column_stops_and_goes_back(monitor, mode, needs_data):
    x, y = classes()
    trainer, params = classifier(optimizer=fastbp.Adam(0.1)), []
    options = {"validation_data": classes(seed=1), "metrics": {"hits": lambda y, p: np.mean(p.argmax(1) == y)}}
    rule = EarlyStopping(4, monitor=monitor, mode=mode)
    history = trainer.fit(
        x,
        y,
        epochs=300,
        stop=rule,
        callbacks=lambda t, r: params.append(t.model.params.copy()),
        **options if needs_data else {},
    )
    assert history.stop_reason == "EarlyStopping"
    values = history[monitor] * (-1 if mode == "max" else 1)
    start = trainer_start_value(monitor) if monitor == "validation_accuracy" else np.inf
    best = int(values.argmin())
    if values[best] < start:
        assert trainer.model.params.tobytes() == params[best].tobytes()
    waited = len(values) - 1 - best
    assert waited == 4 or values[best] >= start


def trainer_start_value(monitor):
    x, y = classes(seed=1)
    return -np.mean(classifier().model.predict(x).argmax(1) == y)


def test_early_stopping_in_several_fits_stops_where_one_would():
    x, y = classes()
    rule = EarlyStopping(3, monitor="accuracy", mode="max")
    one, several = (classifier(optimizer=fastbp.Adam(0.1)) for _ in range(2))
    one.fit(x, y, epochs=200, stop=rule)
    while several.history.stop_reason != "EarlyStopping":
        several.fit(x, y, epochs=2, stop=rule)
        several = pickle.loads(pickle.dumps(several))
    assert len(several.history) - len(one.history) in (0, 1)
    assert several.model.params.tobytes() == one.model.params.tobytes()


def test_validation_every_looks_at_multiples_of_epochs_and_changes_no_bit():
    x, y = data()
    seldom, always = regressor(), regressor()
    for n in (1, 4, 5):
        seldom.fit(x, y, epochs=n, validation_data=(x, y), validation_every=3)
    always.fit(x, y, epochs=10, validation_data=(x, y))
    is_due = np.arange(1, 11) % 3 == 0
    np.testing.assert_array_equal(np.isnan(seldom.history.validation_loss), ~is_due)
    np.testing.assert_array_equal(seldom.history.validation_loss[is_due], always.history.validation_loss[is_due])
    assert seldom.model.params.tobytes() == always.model.params.tobytes()


def test_patience_counts_the_epochs_that_were_validated():
    x, y = data()
    trainer = regressor(optimizer=fastbp.SGD(1e-12))
    rule = EarlyStopping(3, min_delta=1.0)
    history = trainer.fit(x, y, epochs=100, validation_data=(x, y), validation_every=4, stop=rule)
    assert history.stop_reason == "EarlyStopping"
    assert len(history) == 12


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
def test_validation_split_of_classes_has_the_same_share_of_each(fraction):
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], [60, 30, 10])
    rng.shuffle(y)
    x = np.arange(100.0)[:, np.newaxis] / 100
    parts = {}
    model = fastbp.MLP((1, 3), output="softmax", seed=0)
    for seed in (0, 0, 1):
        trainer, seen = Trainer(model, seed=seed), []
        trainer.fit(
            x,
            y,
            epochs=1,
            validation_split=fraction,
            metrics={"n": lambda y, p, seen=seen: seen.append(y.copy()) or len(y)},
        )
        assert trainer.history["n"][0] == round(100 * fraction)
        counts = np.bincount(seen[0], minlength=3)
        assert np.abs(counts - fraction * np.array([60, 30, 10])).max() <= 1
        parts.setdefault(seed, []).append(seen[0])
    np.testing.assert_array_equal(*parts[0])


def test_validation_split_leaves_the_rest_to_train_on_and_is_the_same_in_each_fit():
    x, y = data(50)
    x[:, 0] = np.arange(50)
    held = []
    trainer = regressor()
    for _ in range(2):
        trainer.fit(
            x / 50, y, epochs=1, validation_split=0.3, metrics={"rows": lambda y, p: held.append(y.copy()) or 0.0}
        )
    np.testing.assert_array_equal(held[0], held[1])
    assert len(held[0]) == 15
    is_held = (y[:, None] == held[0]).all(axis=2).any(axis=1)
    assert is_held.sum() == 15
    twin = regressor()
    twin.fit(x[~is_held] / 50, y[~is_held], epochs=2)
    assert trainer.model.params.tobytes() == twin.model.params.tobytes()


def test_split_takes_each_sample_as_often_as_any_other():
    counts = np.zeros(40)
    x, y = np.zeros((40, 1)), np.arange(40.0)
    for seed in range(400):
        model = fastbp.MLP((1, 1), dtype="float64", seed=0)
        model.fit(
            x, y, epochs=1, validation_split=0.25, seed=seed, batch_size=None,
            metrics={"n": lambda y, p: counts.__setitem__(y[:, 0].astype(int), counts[y[:, 0].astype(int)] + 1) or 0.0},
        )  # fmt: skip
    # Binomial, 400 draws of 1/4: mean 100, deviation 8.7.
    assert np.abs(counts - 100).max() < 4.5 * 8.7


def test_reduce_on_plateau_equals_pytorchs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    values = np.concatenate([np.linspace(1, 0.5, 10), 0.5 + 0.001 * rng.normal(size=60)])
    for options, more in (
        ({"factor": 0.5, "patience": 2}, {}),
        ({"factor": 0.3, "patience": 0, "cooldown": 3}, {}),
        ({"factor": 0.1, "patience": 1, "threshold": 0.01, "mode": "max"}, {"lowest": 1e-4}),
    ):
        peer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(peer, min_lr=more.get("lowest", 0), eps=0, **options)
        callback, trainer = ReduceOnPlateau(monitor="loss", **options, **more), regressor(optimizer=fastbp.SGD(0.1))
        for value in values:
            callback(trainer, {"loss": value})
            scheduler.step(value)
            assert trainer.learning_rate == pytest.approx(peer.param_groups[0]["lr"], rel=1e-12)


def test_reduce_on_plateau_goes_on_in_a_pickled_trainer():
    x, y = data()
    callback = ReduceOnPlateau(0.5, patience=2, monitor="loss", threshold=0.9)
    whole, cut = (regressor(optimizer=fastbp.Adam(0.01)) for _ in range(2))
    whole.fit(x, y, epochs=12, callbacks=callback)
    for _ in range(4):
        cut.fit(x, y, epochs=3, callbacks=[callback])
        cut = pickle.loads(pickle.dumps(cut))
    assert cut.history.learning_rate.tolist() == whole.history.learning_rate.tolist()
    assert len(set(whole.history.learning_rate)) > 2
    assert cut.model.params.tobytes() == whole.model.params.tobytes()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"callbacks": 3}, TypeError, "callbacks must be a function of"),
        ({"callbacks": [len, 3]}, TypeError, "as entry 1"),
        ({"validation_every": 0}, ValueError, "validation_every must be a positive integer"),
        ({"validation_split": 1.0}, ValueError, "validation_split must be a finite number > 0 and < 1"),
        ({"validation_split": 0.001}, ValueError, "validation_split=0.001 of 64 samples leaves nothing to validate"),
        ({"validation_split": 0.999}, ValueError, "leaves nothing to train on"),
        ({"validation_split": 0.1, "validation_data": data()}, ValueError, "pass one of them"),
        ({"stop": EarlyStopping(monitor="accuracy")}, ValueError, "monitor of EarlyStopping must be one of 'loss' in"),
        ({"stop": EarlyStopping(monitor="hits"), "validation_data": data()}, ValueError, "got 'hits'"),
        ({"stop": EarlyStopping()}, ValueError, "EarlyStopping watches the validation loss: pass validation_data"),
    ],
)
def test_wrong_options_are_refused_before_the_first_step(options, error, message):
    trainer = regressor()
    with pytest.raises(error, match=message):
        trainer.fit(*data(), **options)
    assert trainer.n_steps == 0


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: EarlyStopping(mode="up"), ValueError),
        (lambda: EarlyStopping(monitor=3), TypeError),
        (lambda: ReduceOnPlateau(factor=1.0), ValueError),
        (lambda: ReduceOnPlateau(patience=-1), ValueError),
        (lambda: ReduceOnPlateau(mode="up"), ValueError),
        (lambda: ReduceOnPlateau(monitor=3), TypeError),
    ],
)
def test_rules_with_wrong_numbers_are_refused(make, error):
    with pytest.raises(error):
        make()


def test_callback_that_returns_something_else_is_refused():
    with pytest.raises(TypeError, match="callbacks must return None, or a reason to stop as a str, got 5"):
        regressor().fit(*data(), callbacks=lambda t, r: 5)


def test_reduce_on_plateau_needs_its_column_and_a_number():
    trainer = regressor(optimizer=fastbp.Adam(lambda step: 0.1))
    with pytest.raises(KeyError, match="monitor must be one of 'epoch'"):
        trainer.fit(*data(), epochs=2, callbacks=callbacks.ReduceOnPlateau(monitor="hits"))
    with pytest.raises(TypeError, match="needs a learning rate that is a number"):
        trainer.fit(*data(), epochs=5, callbacks=ReduceOnPlateau(patience=0, monitor="loss", threshold=0.9))


def test_find_learning_rate_suggests_where_the_loss_falls_and_leaves_the_trainer_as_it_was():
    x, y = data(256)
    for optimizer in (fastbp.Adam(), fastbp.SGD(), fastbp.ScheduleFreeAdamW(), fastbp.Adam(lambda step: 1e-3)):
        trainer = regressor(optimizer=optimizer, batch_size=32, regularize=fastbp.Dropout(0.1))
        trainer.fit(x, y, epochs=1)
        before = pickle.dumps(trainer) if isinstance(trainer.learning_rate, float) else None
        params = trainer.model.params.copy()
        curve = trainer.find_learning_rate(x, y)
        assert trainer.model.params.tobytes() == params.tobytes()
        assert before is None or pickle.dumps(trainer) == before
        assert trainer.optimizer == optimizer
        assert (np.diff(curve.rates) > 0).all()
        assert curve.losses.shape == curve.rates.shape
        assert curve.rates[0] < curve.suggestion < curve.rates[-1]
        again = trainer.find_learning_rate(x, y)
        assert again.losses.tobytes() == curve.losses.tobytes()


def test_find_learning_rate_stops_where_the_loss_diverges_and_plots(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    x, y = data(256)
    curve = regressor(optimizer=fastbp.SGD(), batch_size=32).find_learning_rate(x, y, high=1e6)
    assert curve.rates[-1] < 1e6
    ax = curve.plot()
    assert (ax.get_xlabel(), ax.get_xscale()) == ("learning rate", "log")
    ax.figure.savefig(tmp_path / "curve.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 0.0}, "low must be a finite number > 0"),
        ({"low": 1.0, "high": 0.5}, "high must be a finite number > 1"),
        ({"n_steps": 2}, "n_steps must be 3 or more, got 2"),
    ],
)
def test_find_learning_rate_refuses_wrong_bounds(options, message):
    with pytest.raises(ValueError, match=message):
        regressor().find_learning_rate(*data(), **options)
