import copy
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastbp
from fastbp import pacing
from fastbp.kernels import training
from fastbp.loop import Loop
from problems import bits, regression, regressor, rows_of, state_of

EPOCHS = 60
X, Y = regression(40, seed=1)
X_VAL, Y_VAL = regression(20, seed=2)  # of another function: its loss falls, then rises


def new_trainer(learning_rate=0.1, momentum=0.0):
    """Return a trainer with a learning rate so high that the loss does not fall steadily."""
    model = fastbp.MLP([3, 5, 1], seed=0)
    return fastbp.Trainer(model, optimizer=fastbp.SGD(learning_rate, momentum), batch_size=8, seed=1)


def fit(trainer=None, **arguments):
    trainer = new_trainer() if trainer is None else trainer
    trainer.fit(X, Y, **{"epochs": EPOCHS, "validation_data": (X_VAL, Y_VAL), **arguments})
    return trainer


@pytest.fixture(scope="module")
def curve():
    """The history that every fit of this module follows until a rule ends it."""
    return fit().history


START_LOSS = new_trainer().model.loss(X_VAL, Y_VAL)


def convergence(losses, tol, patience, best=np.inf):
    """Return the epochs after which the rule of `Convergence` stops, by its definition.

    That of `EarlyStopping` too, if `best` is the validation loss of the start.
    """
    waited = 0
    for epoch, loss in enumerate(losses, 1):
        waited = 0 if loss < best - tol else waited + 1
        best = min(best, loss)
        if waited >= patience:
            return epoch
    return len(losses)


tolerances = st.sampled_from([0.0, 1e-4, 1e-2, 0.1, 10.0])
patiences = st.integers(1, 12)


@given(tol=tolerances, patience=patiences, with_validation=st.booleans())
@settings(max_examples=40)
def test_convergence_stops_by_its_definition(curve, tol, patience, with_validation):
    watched = {} if with_validation else {"validation_data": None}
    history = fit(stop=fastbp.Convergence(tol, patience), **watched).history
    assert len(history) == convergence(curve.loss, tol, patience)
    assert history.stop_reason == ("Convergence" if len(history) < EPOCHS else history.stop_reason)
    assert bits(history.loss) == bits(curve.loss[: len(history)])


@given(min_delta=tolerances, patience=patiences)
@settings(max_examples=40)
def test_early_stopping_stops_by_its_definition_and_restores_the_best(curve, min_delta, patience):
    trainer = fit(stop=fastbp.EarlyStopping(patience, min_delta))
    history = trainer.history
    assert len(history) == convergence(curve.validation_loss, min_delta, patience, START_LOSS)
    assert history.stop_reason == ("EarlyStopping" if len(history) < EPOCHS else history.stop_reason)
    assert trainer.model.loss(X_VAL, Y_VAL) == min(START_LOSS, history.validation_loss.min())
    assert history.best_epoch == np.argmin([START_LOSS, *history.validation_loss])


def test_early_stopping_does_happen_before_the_last_epoch(curve):
    assert convergence(curve.validation_loss, 0.0, 5) < EPOCHS
    assert curve.validation_loss.argmin() not in (0, EPOCHS - 1)


def test_convergence_patience_beyond_any_count_never_stops(curve):
    history = fit(stop=fastbp.Convergence(patience=10**400), validation_data=None).history
    assert len(history) == EPOCHS == len(curve)


@given(st.floats(0.0, 2.0))
@settings(max_examples=20)
def test_target_loss_stops_after_the_first_epoch_that_reaches_it(curve, value):
    reached = np.flatnonzero(curve.loss <= value)
    history = fit(stop=fastbp.TargetLoss(value)).history
    assert len(history) == (reached[0] + 1 if reached.size else EPOCHS)
    assert history.stop_reason == ("TargetLoss" if reached.size else "epochs")


def test_target_loss_without_validation_ends_a_run_without_epochs():
    value = 0.1
    trainer = fastbp.Trainer(regressor(), batch_size=8, seed=1)
    history = trainer.fit(X, Y, epochs=None, stop=fastbp.TargetLoss(value))
    assert history.stop_reason == "TargetLoss"
    assert (history.loss[:-1] > value).all()
    assert history.loss[-1] <= value
    assert trainer.n_steps == 5 * len(history)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "epochs": st.integers(1, EPOCHS),
            "max_steps": st.integers(1, EPOCHS * 5),
            "target": st.floats(0.0, 1.0),
            "convergence": st.tuples(tolerances, patiences),
            "early": st.tuples(tolerances, patiences),
        },
    ),
    st.randoms(),
)
@settings(max_examples=60)
def test_rules_combined_the_first_ends_the_fit(curve, limits, random):
    reached = np.flatnonzero(curve.loss <= limits.get("target", -1.0))
    whole_epochs = min(
        limits.get("epochs", EPOCHS),
        reached[0] + 1 if reached.size else EPOCHS,
        convergence(curve.loss, *limits["convergence"]) if "convergence" in limits else EPOCHS,
        convergence(curve.validation_loss, *limits["early"], START_LOSS) if "early" in limits else EPOCHS,
    )
    stop = [fastbp.TargetLoss(limits["target"])] if "target" in limits else []
    stop += [fastbp.Convergence(*limits["convergence"])] if "convergence" in limits else []
    stop += [fastbp.EarlyStopping(limits["early"][1], limits["early"][0], False)] if "early" in limits else []
    random.shuffle(stop)

    trainer = fit(epochs=limits.get("epochs", EPOCHS), max_steps=limits.get("max_steps"), stop=iter(stop))

    assert trainer.n_steps == min(5 * whole_epochs, limits.get("max_steps", 5 * EPOCHS))
    assert bits(trainer.history.loss[: trainer.n_steps // 5]) == bits(curve.loss[: trainer.n_steps // 5])


RULES = {
    "convergence": [fastbp.Convergence(0.05, 20)],
    "convergence that does not come": [fastbp.Convergence(1e-3, 30)],
    "early": [fastbp.EarlyStopping(7)],
    "early, no restoring": [fastbp.EarlyStopping(7, restore_best=False)],
    "two of a kind": [fastbp.EarlyStopping(30), fastbp.EarlyStopping(9, min_delta=0.01)],
    "all": [fastbp.EarlyStopping(9), fastbp.Convergence(1e-3, 12), fastbp.TargetLoss(1e-9)],
}


def clones():
    return st.sampled_from([lambda same: same, copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])


@pytest.mark.parametrize("rules", RULES)
@given(data=st.data())
@settings(max_examples=15)
def test_rules_in_several_fits_stop_and_restore_as_if_it_had_been_one(rules, data):
    whole, trainer = fit(stop=RULES[rules]), new_trainer()
    while trainer.n_steps < 5 * EPOCHS and trainer.history.stop_reason not in ("EarlyStopping", "Convergence"):
        epochs, steps = data.draw(st.sampled_from([(1, None), (4, None), (None, 3), (None, 11)]))
        steps_left = 5 * EPOCHS - trainer.n_steps
        fit(trainer, stop=RULES[rules], epochs=epochs, max_steps=min(steps or steps_left, steps_left))
        trainer = data.draw(clones())(trainer)
    assert rows_of(trainer.history) == rows_of(whole.history)
    assert state_of(trainer) == state_of(whole)
    assert trainer.history.best_epoch == whole.history.best_epoch


def test_rule_whose_patience_is_over_takes_one_epoch_more_and_keeps_the_best():
    trainer, rule = fit(stop=fastbp.EarlyStopping(4)), fastbp.EarlyStopping(4)
    n_epochs, best = len(trainer.history), bits(trainer.model.params)
    assert n_epochs < EPOCHS
    for more in (1, 2, 3):
        fit(trainer, stop=rule)
        assert trainer.history.stop_reason == "EarlyStopping"
        assert len(trainer.history) == n_epochs + more
        assert bits(trainer.model.params) == best


@pytest.mark.parametrize(
    "other",
    [
        {"stop": fastbp.EarlyStopping(5)},
        {"stop": [fastbp.EarlyStopping(4), fastbp.EarlyStopping(4)]},
        {"stop": ()},
        {"validation_data": (X_VAL + 1e-3, Y_VAL)},
        {"validation_data": None, "stop": ()},
    ],
)
def test_early_stopping_starts_anew_when_the_rule_or_the_validation_data_are_others(other):
    trainer = fit(stop=fastbp.EarlyStopping(4))
    fit(trainer, epochs=1, **({"stop": fastbp.EarlyStopping(4)} | other))
    fit(trainer, epochs=3, stop=fastbp.EarlyStopping(4))
    assert trainer.history.stop_reason == "epochs"


def test_convergence_starts_anew_when_the_rule_is_another():
    trainer, rule = new_trainer(), fastbp.Convergence(tol=10.0, patience=3)
    for stop, n_epochs in ((rule, 4), (rule, 5), (fastbp.Convergence(10.0, 4), 10), (rule, 14)):
        fit(trainer, stop=stop, validation_data=None)  # the first epoch improves on nothing at all
        assert len(trainer.history) == n_epochs


def test_model_fit_starts_its_rules_anew_each_time():
    model = new_trainer().model
    lengths = []
    for _ in range(3):
        history = model.fit(X, Y, stop=fastbp.Convergence(tol=10.0, patience=3), seed=0)
        lengths.append(len(history))
    assert lengths == [4, 4, 4]


def test_start_that_was_best_is_kept():
    trainer = fit()
    start = bits(trainer.model.params)
    rule, optimizer = fastbp.EarlyStopping(5), fastbp.SGD(0.1)
    history = trainer.model.fit(X, 10 - Y, optimizer=optimizer, validation_data=(X, Y), stop=rule, seed=0)
    assert (len(history), history.stop_reason) == (5, "EarlyStopping")
    assert history.best_epoch == 0
    assert bits(trainer.model.params) == start


def test_best_epoch_is_the_lowest_one_that_was_validated():
    assert fit(validation_data=None).history.best_epoch is None
    trainer = fit()
    history, expected = trainer.history, np.argmin([START_LOSS, *trainer.history.validation_loss])
    assert history.best_epoch == expected > 0
    fit(trainer, epochs=None, max_steps=3)
    assert np.isnan(history.validation_loss[-1])  # an epoch that was stopped midway
    assert history.best_epoch == expected

    fit(trainer, epochs=None, max_steps=2)
    start = trainer.model.loss(X, Y)
    fit(trainer, epochs=3, validation_data=(X, Y))
    assert history.best_epoch == EPOCHS + 1 + np.argmin([start, *history.validation_loss[-3:]])


STOPPED = len(fit(stop=fastbp.EarlyStopping(5)).history)


def stopped_early():
    """Return a trainer that has gone back to its best epoch, and whose learning rate is 0 from then on."""
    trainer = fit(new_trainer(lambda step: 0.1 if step < 5 * STOPPED else 0.0), stop=fastbp.EarlyStopping(5))
    assert len(trainer.history) == STOPPED
    return trainer


def test_restored_parameters_are_left_by_the_next_fit_which_goes_on_from_the_last_epoch():
    trainer, twin = stopped_early(), fit(epochs=STOPPED)
    best = bits(trainer.model.params)
    with pytest.raises(ValueError, match="y must have as many samples"):
        trainer.fit(X, Y[:3])
    assert bits(trainer.model.params) == best != bits(twin.model.params)
    fit(trainer, epochs=1, validation_data=None)
    assert bits(trainer.model.params) == bits(twin.model.params)


@pytest.mark.parametrize("write", ["params", "weights", "step of another trainer", "step"])
def test_restored_parameters_that_were_written_to_are_what_the_next_fit_starts_from(write):
    trainer = stopped_early()
    if write == "params":
        trainer.model.params = 2 * trainer.model.params
    elif write == "weights":
        trainer.model.weights[0][0, 0] += 1
    elif write == "step":
        trainer.step(X, Y)  # at a rate of 0, but a step all the same
    else:
        fastbp.Trainer(trainer.model).step(X, Y)
    written = bits(trainer.model.params)
    fit(trainer, epochs=1, validation_data=None)
    assert bits(trainer.model.params) == written


@pytest.mark.parametrize("write", [False, True])
def test_epoch_that_could_not_be_measured_is_by_the_next_fit_unless_the_parameters_were_written_to(write):
    calls = itertools.count(1)

    def metric(y, prediction):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return float(np.abs(prediction).max())

    trainer, watched = new_trainer(), {"metrics": {"largest": metric}, "stop": fastbp.EarlyStopping(100)}
    with pytest.raises(KeyboardInterrupt):
        fit(trainer, **watched)
    assert np.isnan(trainer.history.largest[2])
    if write:
        trainer.model.params[:] = 0
    fit(trainer, epochs=1, **watched)
    if write:
        assert np.isnan(trainer.history.largest[2])
    else:
        assert bits(trainer.history.largest) == bits(fit(epochs=4, **watched).history.largest)


def test_divergence_says_that_the_best_was_restored_each_time():
    trainer = new_trainer(lambda step: 0.1 if step < 30 else 1e30)
    for _ in range(2):
        with pytest.raises(fastbp.DivergenceError) as caught:
            fit(trainer, stop=fastbp.EarlyStopping(100))
        assert "restored the parameters of the best epoch" in caught.value.__notes__[0]


@pytest.mark.parametrize("rules", [fastbp.EarlyStopping(), [fastbp.TargetLoss(0.1), fastbp.EarlyStopping()]])
def test_early_stopping_without_validation_data_raises(rules):
    model = regressor()
    before = bits(model.params)
    with pytest.raises(ValueError, match=r"EarlyStopping watches the validation loss: pass validation_data=\(x, y\)"):
        model.fit(X, Y, stop=rules)
    assert bits(model.params) == before
    assert model.history is None


def after(n_epochs, error):
    """Return a metric that raises the error in an epoch."""
    epochs = itertools.count(1)

    def metric(y, prediction):
        if next(epochs) == n_epochs:
            raise error
        return 0.0

    return {"bomb": metric}


BEST = {"epochs": 40, "stop": fastbp.EarlyStopping(patience=1000)}
ENDS = {
    "epochs": ({}, None),
    "max_steps": ({"max_steps": 188}, None),
    "patience": ({"stop": fastbp.EarlyStopping(patience=5)}, None),
    "another rule": ({"stop": [fastbp.EarlyStopping(1000), fastbp.Convergence(10.0, 37)]}, None),
    "Ctrl-C": ({"metrics": after(38, KeyboardInterrupt())}, KeyboardInterrupt),
    "metric": ({"metrics": after(38, ArithmeticError())}, ArithmeticError),
    "schedule": ({}, ZeroDivisionError),
    "loss overflow": ({}, fastbp.DivergenceError),
    "update overflow": ({}, fastbp.DivergenceError),
}


def rate_of(end):
    def learning_rate(step):
        if end == "schedule" and step == 187:
            raise ZeroDivisionError
        if step >= 187 and end in ("loss overflow", "update overflow"):
            return 3e38 if end == "update overflow" else 1e12
        return 0.1

    return learning_rate


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("momentum", [0.0, 0.4])
def test_restore_best_however_the_run_ends(end, momentum):
    arguments, error = ENDS[end]
    trainer, twin = (new_trainer(rate_of(end), momentum) for _ in range(2))
    if "metrics" in arguments:
        arguments = arguments | {"metrics": after(38, error())}
    if error is None:
        fit(trainer, **(BEST | arguments))
    else:
        with pytest.raises(error):
            fit(trainer, **(BEST | arguments))

    best = int(np.nanargmin(trainer.history.validation_loss)) + 1
    assert 1 < best < len(trainer.history)
    fit(twin, epochs=best)
    assert bits(trainer.model.params) == bits(twin.model.params)
    assert bits(trainer._run.buffers.moments) == bits(twin._run.buffers.moments)
    assert trainer.model.loss(X_VAL, Y_VAL) == np.nanmin(trainer.history.validation_loss)


def test_restore_best_false_keeps_the_last():
    trainer = fit(stop=fastbp.EarlyStopping(5, restore_best=False))
    twin = fit(epochs=len(trainer.history))
    assert bits(trainer.model.params) == bits(twin.model.params)
    assert trainer.model.loss(X_VAL, Y_VAL) > trainer.history.validation_loss.min()


@pytest.mark.parametrize("arguments", [{}, {"validation_data": None}, {"progress": True}])
def test_time_limit_ends_the_run_after_a_whole_step(arguments):
    trainer = fit(epochs=None, stop=fastbp.TimeLimit(0.05), **arguments)
    history = trainer.history
    assert history.stop_reason == "TimeLimit"
    twin = fit(epochs=None, max_steps=trainer.n_steps, **arguments)
    assert bits(trainer.model.params) == bits(twin.model.params)
    assert rows_of(history) == rows_of(twin.history)


def test_time_limit_too_short_for_a_step_changes_nothing():
    trainer = fastbp.Trainer(regressor())
    history = trainer.fit(X, Y, epochs=None, stop=fastbp.TimeLimit(1e-9))
    assert trainer.n_steps >= 1
    assert history.stop_reason == "TimeLimit"


def test_time_limit_shorter_than_a_step_takes_one_step():
    x, y = np.ones((4096, 512), np.float32), np.ones((4096, 1), np.float32)
    trainer = fastbp.Trainer(fastbp.MLP([512, 512, 512, 1], seed=0), batch_size=None)
    for n_fits in (1, 2):
        history = trainer.fit(x, y, epochs=None, stop=fastbp.TimeLimit(1e-6))
        assert trainer.n_steps == n_fits
        assert history.stop_reason == "TimeLimit"


@pytest.mark.parametrize(("rate", "stops"), [(1e38, "DivergenceError"), (0.0, "TargetLoss")])
def test_time_limit_in_mid_update_does_not_hide_what_the_finished_step_says(rate, stops, monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((60, 40)), 1e3 * rng.standard_normal((60, 1))
    model = fastbp.MLP([40, 300, 100, 1], dtype="float32", seed=0)  # several tiles
    optimizer = fastbp.SGD(lambda step: rate if step == 1 else 1e-12)
    trainer = fastbp.Trainer(model, optimizer=optimizer, batch_size=30, seed=0)

    def seconds_left(loop):
        cursor = loop._position.cursor
        in_update = cursor["phase"] == training.PARAMETERS_PHASE and cursor["task"] > 0
        return 0.0 if cursor["step"] == 1 and in_update else 1e9

    monkeypatch.setattr(Loop, "_seconds_left", seconds_left)
    monkeypatch.setattr(pacing.Crew, "next_call", lambda crew, seconds_left: (1, 1))  # one task a call
    rules = [fastbp.TimeLimit(1e9), fastbp.TargetLoss(1e30)]
    if stops == "DivergenceError":
        with pytest.raises(fastbp.DivergenceError, match="after step 1"):
            trainer.fit(x, y, stop=rules)
    else:
        trainer.fit(x, y, stop=rules)
    assert trainer.n_steps == 2
    assert trainer.history.stop_reason == stops
