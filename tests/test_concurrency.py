"""Several threads, copies in mid-fit, forks."""

import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastbp
from injection import Observer, call_with
from problems import bits, classes, classifier, regression, regressor, rows_of, state_of

FOREVER = 10**9


class Background:
    """A fit in another thread, in its second epoch or later, until `release` is called.

    A context manager: on leaving, the fit is released and its error, if any, raised.
    """

    def __init__(self, trainer, x, y, **arguments):
        self._released, self._begun = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(trainer, x, y), kwargs=arguments)
        self.error = None

    def _run(self, trainer, x, y, **arguments):
        def wait(y, prediction):
            if len(trainer.history) > 1:
                self._begun.set()
                assert self._released.wait(60)
            return 0.0

        try:
            trainer.fit(x, y, validation_data=(x, y), metrics={"wait": wait}, **{"epochs": 3, **arguments})
        except Exception as error:
            self.error = error
            self._begun.set()

    def __enter__(self):
        self._thread.start()
        assert self._begun.wait(60)
        return self

    def __exit__(self, *_):
        self._released.set()
        self._thread.join()
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_predict_from_several_threads_gives_the_same_bits(dtype):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3000, 20))
    y = rng.integers(5, size=3000)
    model = fastbp.MLP([20, 64, 64, 5], output="softmax", dtype=dtype, seed=0)
    expected = bits(model.predict(x)), model.loss(x, y), bits(model.loss_and_grad(x, y)[1])
    barrier = threading.Barrier(6)

    def call(_):
        barrier.wait()
        return [
            (bits(model.predict(x)), model.loss(x, y), bits(model.loss_and_grad(x, y)[1])) == expected
            and bits(model.predict(x[:3])) == bits(model.predict(x)[:3])
            for _ in range(5)
        ]

    with ThreadPoolExecutor(6) as pool:
        assert all(all(results) for results in pool.map(call, range(6)))


def test_fits_of_different_models_in_several_threads_give_the_same_bits():
    x, y = classes(300)

    def fit(seed):
        model = classifier(seed=seed)
        model.fit(x, y, epochs=30, seed=seed)
        return bits(model.params)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(fit, range(8))) == [fit(seed) for seed in range(8)]


IN_USE = "the model is being trained: another fit, or step, of it or of its trainer has not ended yet"


def test_second_fit_on_a_trainer_in_use_raises():
    x, y = regression()
    trainer, twin = (fastbp.Trainer(regressor(), seed=0) for _ in range(2))
    with Background(trainer, x, y):
        for function in (trainer.fit, trainer.step, trainer.model.fit, fastbp.Trainer(trainer.model).fit):
            history = trainer.model.history
            with pytest.raises(RuntimeError, match=IN_USE):
                function(x, y)
            assert trainer.model.history is history
    twin.fit(x, y, epochs=3)
    assert state_of(trainer) == state_of(twin)
    trainer.fit(x, y, epochs=1)


def test_second_fit_in_a_metric_raises():
    x, y = regression()
    model = regressor()

    def metric(y, prediction):
        model.fit(x, y)

    with pytest.raises(RuntimeError, match=IN_USE):
        model.fit(x, y, validation_data=(x, y), metrics={"again": metric})
    model.fit(x, y, epochs=1)


def test_predict_during_a_fit_works():
    x, y = regression()
    trainer = fastbp.Trainer(regressor(), seed=0)
    with Background(trainer, x, y):
        assert np.isfinite(trainer.model.predict(x)).all()
        assert np.isfinite(trainer.model.loss(x, y))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copy_during_a_fit_is_free_and_goes_on_by_itself(clone):
    x, y = regression()
    trainer = fastbp.Trainer(regressor(), batch_size=8, seed=0)
    with Background(trainer, x, y):
        model, other = clone(trainer.model), clone(trainer)
        model.fit(x, y, epochs=1)
        assert other.n_steps == 16
        other.fit(x, y, epochs=1)
    assert state_of(other) == state_of(trainer)


def test_copy_in_mid_step_of_another_thread_goes_on_at_a_steps_beginning():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((4096, 300), np.float32), rng.standard_normal((4096, 1), np.float32)
    trainer = fastbp.Trainer(fastbp.MLP([300, 512, 512, 1], seed=0), optimizer=fastbp.SGD(1e-4), batch_size=None)
    thread = threading.Thread(target=trainer.fit, args=(x, y), kwargs={"epochs": 6})
    thread.start()
    copies = []
    while thread.is_alive():
        copies.append(copy.deepcopy(trainer))
        thread.join(0.005)
    for other in copies:
        n_steps = other.n_steps
        other.fit(x[:32], y[:32], epochs=1)
        assert other.n_steps == n_steps + 1
        assert np.isfinite(other.model.params).all()


WATCHED = {"validation_data": regression(7), "stop": [fastbp.EarlyStopping(10**6), fastbp.Convergence(0.0, 10**6)]}


def check_that_copies_go_on_like_the_original(copies, trainer, x, y, **arguments):
    # What the end of a fit does, such as going back to the best epoch, is ahead of those that have all its steps.
    copies = [other for other in copies if other.n_steps < trainer.n_steps]
    assert copies
    for other in copies[:: max(1, len(copies) // 70)]:
        assert other.n_steps == 0 or other.model.history is other.history
        other.fit(x, y, epochs=None, max_steps=trainer.n_steps - other.n_steps, **arguments)
        assert state_of(other) == state_of(trainer)
        assert rows_of(other.history) == rows_of(trainer.history)
        assert other.history.best_epoch == trainer.history.best_epoch


OBSERVED = {
    "plain": {},
    "validated": WATCHED,
    "metric": WATCHED | {"metrics": {"error": lambda y, prediction: abs(y - prediction).max()}},
    "watches the metric": {
        "validation_data": regression(7),
        "metrics": {"error": lambda y, prediction: abs(y - prediction).max()},
        "stop": fastbp.EarlyStopping(10**6, monitor="error"),
    },
    "watches the loss": {"stop": fastbp.EarlyStopping(10**6, monitor="loss")},
    "every other epoch": WATCHED | {"validation_every": 2},
    "health": {"health": 7},
}


@pytest.mark.parametrize("options", [{}, {"ema": 0.9, "use_ema": True}], ids=["plain", "average"])
@pytest.mark.parametrize("name", OBSERVED)
def test_copies_taken_at_any_point_go_on_like_the_original(name, options):
    x, y = regression(60)
    trainer, copies = fastbp.Trainer(regressor(), batch_size=1, seed=0, **options), []
    trainer.fit(x, y, epochs=1, **OBSERVED[name])
    # A prime number: another fit's points are others.
    observer = Observer(lambda: copies.append(copy.deepcopy(trainer)), 11)
    call_with(observer, lambda: trainer.fit(x, y, epochs=3, **OBSERVED[name]))
    assert len(copies) > 20
    check_that_copies_go_on_like_the_original(copies, trainer, x, y, **OBSERVED[name])


@pytest.mark.parametrize("arguments", [{}, WATCHED], ids=["plain", "validated"])
@pytest.mark.parametrize("n_epochs", [400, 30])
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that sends signals")
def test_copies_taken_by_a_signals_handler_go_on_like_the_original(n_epochs, arguments):
    x, y = regression(600 if n_epochs == 400 else 6000)
    trainer, copies = fastbp.Trainer(regressor(), batch_size=1, seed=0), []
    before = signal.signal(signal.SIGALRM, lambda *_: copies.append(pickle.loads(pickle.dumps(trainer))))
    signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
    try:
        trainer.fit(x, y, epochs=n_epochs, **arguments)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    check_that_copies_go_on_like_the_original(copies, trainer, x, y, **arguments)


@pytest.mark.parametrize("arguments", [{}, WATCHED], ids=["plain", "validated"])
@pytest.mark.parametrize("clone", [copy.copy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_taken_by_another_thread_go_on_like_the_original(clone, arguments):
    x, y = regression(20_000)
    trainer, copies = fastbp.Trainer(regressor(), batch_size=4, seed=0), []
    thread = threading.Thread(target=trainer.fit, args=(x, y), kwargs={"epochs": 25, **arguments})
    thread.start()
    while thread.is_alive():
        copies.append(clone(trainer))
    thread.join()
    check_that_copies_go_on_like_the_original(copies, trainer, x, y, **arguments)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint32, np.int64, np.uint64])
def test_labels_changed_by_another_thread_raise_value_error(dtype):
    x, y = classes(2000)
    y = y.astype(dtype)
    wrong = dtype(np.iinfo(dtype).max)
    trainer = fastbp.Trainer(classifier(), seed=0)

    def scribble():
        while trainer.n_steps == 0:
            pass
        y[:] = wrong

    thread = threading.Thread(target=scribble, daemon=True)
    thread.start()
    with pytest.raises(ValueError, match=r"y changed during the fit: labels in step \d+ are out of range"):
        trainer.fit(x, y, epochs=FOREVER)
    thread.join()

    assert trainer.n_steps > 0
    assert trainer.history.stop_reason == "ValueError"
    assert np.isfinite(trainer.model.params).all()
    trainer.fit(*classes(2000), epochs=1)


@pytest.mark.parametrize("label", [4, 5, -1, 127, -128, 2**31 - 1, 2**40, -(2**63)])
def test_labels_changed_between_epochs_leave_the_parameters_of_whole_steps(label):
    x, y = classes(64)
    y = y.astype(np.int64)
    trainer, twin = (fastbp.Trainer(classifier(), batch_size=16, seed=0) for _ in range(2))

    def change(labels, prediction):
        y[7] = label
        return 0.0

    with pytest.raises(ValueError, match=r"y changed during the fit: labels in step \d are out of range"):
        trainer.fit(x, y, validation_data=(x, classes(64)[1]), metrics={"change": change})

    assert 4 <= trainer.n_steps < 8
    twin.fit(*classes(64), max_steps=trainer.n_steps)
    assert state_of(trainer) == state_of(twin)


def test_validation_labels_changed_raise_value_error():
    x, y = classes()
    y_val = y.copy()

    def change(labels, prediction):
        y_val[3] = 99
        return 0.0

    model, twin = classifier(), classifier()
    with pytest.raises(ValueError, match="y changed while it was read: 1 labels are out of range now"):
        model.fit(x, y, validation_data=(x, y_val), metrics={"change": change}, seed=0)
    twin.fit(x, y, epochs=2, seed=0)
    assert bits(model.params) == bits(twin.params)


def test_features_changed_to_nan_raise_divergence_with_finite_parameters():
    x, y = regression()

    def change(labels, prediction):
        x[5] = np.nan
        return 0.0

    model = regressor()
    with pytest.raises(fastbp.DivergenceError, match="the loss is not finite in step") as caught:
        model.fit(x, y, validation_data=regression(), metrics={"change": change})
    assert not caught.value.step_taken
    assert np.isfinite(model.params).all()


FORK = """
import os
import sys

import numpy as np

import fastbp

rng = np.random.default_rng(0)
x, y = rng.standard_normal((2000, 64)), rng.integers(10, size=2000)


def fit(seed):
    model = fastbp.MLP([64, 128, 10], output="softmax", seed=0)
    model.fit(x, y, epochs=3, threads=2, seed=seed)
    return model.params.tobytes()


model = fastbp.MLP([64, 128, 10], output="softmax", seed=0)
expected = fit(1), model.predict(x).tobytes()
for _ in range(3):
    child = os.fork()
    if child == 0:
        os._exit(0 if (fit(1), model.predict(x).tobytes()) == expected else 1)
    assert os.waitpid(child, 0)[1] == 0
assert (fit(1), model.predict(x).tobytes()) == expected
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_after_use_trains_and_predicts_the_same_bits():
    # In a process of its own: pytest may have threads, of which a fork would warn.
    subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK], check=True, timeout=120)
