"""Arrays of the user's that change their shape, dtype or strides while fastbp reads them: it must not notice."""

import sys
import threading
import time

import numpy as np
import pytest

import fastbp
from guards import guarded, needs_guard_pages
from problems import bits

pytestmark = [needs_guard_pages, pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")]

N_SAMPLES, N_FEATURES = 64, 4


def halve_rows(array):
    """Twice as many columns: a row is then as far from the next as two were."""
    array.shape = (array.shape[0] // 2, 2 * array.shape[1])


def widen_dtype(array):
    array.dtype = np.float64


def repeat_first_row(array):
    array.strides = (0, array.strides[1])


CHANGES = [halve_rows, widen_dtype, repeat_first_row]
ROLES = ["x", "y", "validation x", "validation y"]


def make_arrays():
    """Return the arrays of a fit, each beside a guard page of its own."""
    rng = np.random.default_rng(0)
    return {
        name: guarded(rng.standard_normal((N_SAMPLES, N_FEATURES if name.endswith("x") else 2)).astype(np.float32))
        for name in ROLES
    }


def fit(arrays, when="never", change=None, role="x"):
    """Train with a schedule, metric or thread that changes one of the arrays once; returns parameters and record."""
    model = fastbp.MLP([N_FEATURES, 5, 2], seed=0)
    left = [] if when == "never" else [role]

    def change_once(at):
        if at == when and left:
            change(arrays[left.pop()])

    def learning_rate(step):
        change_once("schedule" if step > 100 else "early")
        return 1e-3

    def metric(y, prediction):
        change_once("metric")
        return np.abs(y - prediction).mean()

    history = model.fit(
        arrays["x"],
        arrays["y"],
        optimizer=fastbp.SGD(learning_rate),
        batch_size=8,
        epochs=40,
        validation_data=(arrays["validation x"], arrays["validation y"]),
        metrics={"error": metric},
        seed=0,
    )
    assert left == []
    return bits(model.params), bits(history.loss), bits(history.validation_loss), bits(history.error)


@pytest.mark.parametrize("when", ["schedule", "metric"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("role", ROLES)
def test_fit_array_changed_by_a_callback_gives_the_same_bits(role, change, when):
    assert fit(make_arrays(), when, change, role) == fit(make_arrays())


@pytest.mark.parametrize("change", CHANGES)
def test_fit_going_on_in_mid_epoch_knows_the_data_by_its_own_view(change):
    def trainer_after(change):
        arrays, again = make_arrays(), make_arrays()

        def learning_rate(step):
            if step == 3 and change:
                change(arrays["x"])
            return 1e-3

        model = fastbp.MLP([N_FEATURES, 5, 2], seed=0)
        trainer = fastbp.Trainer(model, optimizer=fastbp.SGD(learning_rate), batch_size=8, seed=0)
        trainer.fit(arrays["x"], arrays["y"], max_steps=5)
        trainer.fit(again["x"], again["y"], max_steps=7)
        return bits(trainer.model.params), trainer.history.epoch.tolist()

    assert trainer_after(change) == trainer_after(None)


@pytest.mark.parametrize("change", CHANGES)
def test_metrics_cannot_change_what_kernels_read(change):
    def metric(y, prediction):
        assert type(y) is np.ndarray
        assert not y.flags.writeable
        change(y)
        if y.base is not None and y.base.ndim == 2:
            change(y.base)
        return 0.0

    for targets in (np.zeros((N_SAMPLES, 2), ">f4"), np.zeros((N_SAMPLES, 2), np.float32), [[0.0, 0.0]] * N_SAMPLES):
        arrays, results = make_arrays(), []
        for metrics in ({}, {"error": metric}):
            model = fastbp.MLP([N_FEATURES, 5, 2], seed=0)
            validation = arrays["validation x"], targets
            history = model.fit(arrays["x"], arrays["y"], epochs=3, validation_data=validation, metrics=metrics, seed=0)
            results.append((bits(model.params), bits(history.validation_loss)))
        assert results[0] == results[1]


@pytest.mark.parametrize("what", ["predict", "loss", "loss_and_grad"])
def test_array_changed_by_another_thread_is_read_as_checked_or_refused(what):
    x, y = guarded(np.ones((1 << 15, 16), np.float32)), np.zeros((1 << 15, 1), np.float32)
    model = fastbp.MLP([16, 8, 1], seed=0)
    functions = {
        "predict": lambda: model.predict(x),
        "loss": lambda: model.loss(x, y),
        "loss_and_grad": lambda: model.loss_and_grad(x, y)[1],
    }
    function, is_done = functions[what], threading.Event()
    expected = bits(np.asarray(function()))

    def keep_changing():
        while not is_done.wait(1e-4):
            halve_rows(x)
            time.sleep(1e-4)
            x.shape = (len(y), 16)

    thread, interval = threading.Thread(target=keep_changing), sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    thread.start()
    n_read = n_refused = 0
    try:
        while n_read < 300 or n_refused < 300:
            try:
                actual = function()
            except ValueError as error:
                assert str(error).startswith("x must have shape")  # noqa: PT017 - some calls succeed
                n_refused += 1
            else:
                assert bits(np.asarray(actual)) == expected
                n_read += 1
    finally:
        is_done.set()
        thread.join()
        sys.setswitchinterval(interval)


class Liar(np.ndarray):
    shape = property(lambda self: (4096, 1))


def test_predict_out_that_lies_about_its_shape_is_refused():
    out = guarded(np.zeros((16, 1), np.float32)).view(Liar)

    with pytest.raises(ValueError, match=r"out must have shape \(4096, 1\) and dtype float32, got \(16, 1\)"):
        fastbp.MLP([3, 1], seed=0).predict(np.zeros((4096, 3)), out=out)


@pytest.mark.parametrize("kind", [np.ndarray, np.matrix, Liar], ids=lambda kind: kind.__name__)
def test_predict_returns_the_users_out(kind):
    model, x = fastbp.MLP([3, 1], seed=0), np.ones((5, 3))
    memory = np.zeros((5, 1), np.float32)
    out = memory.view(kind)

    assert model.predict(x, out=out) is out
    np.testing.assert_array_equal(memory, model.predict(x))
