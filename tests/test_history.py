import builtins
import contextlib
import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastbp.history import History, check_metrics


def filled(n_epochs=3, **columns):
    history = History(seed=7)
    epoch = np.arange(1, n_epochs + 1)
    rates = np.full(n_epochs, 0.1)
    history._put(epoch=epoch, loss=1.0 / epoch, learning_rate=rates, seconds=epoch * 0.5, **columns)
    return history


def test_history_new_is_empty():
    history = History()

    assert len(history) == 0
    assert history.loss.shape == (0,)
    assert history.stop_reason is None
    assert history.compile_seconds == 0.0
    assert history.seed is None
    assert repr(history) == "History(0 epochs)"


def test_put_columns_read_by_attribute_and_name():
    history = filled()

    assert len(history) == 3
    np.testing.assert_array_equal(history.epoch, [1, 2, 3])
    assert history.epoch.dtype == np.intp
    np.testing.assert_array_equal(history["loss"], [1.0, 0.5, 1 / 3])
    assert history.loss.dtype == np.float64


def test_put_missing_columns_are_nan():
    history = filled()

    for name in ("accuracy", "validation_loss", "validation_accuracy"):
        assert np.isnan(history[name]).all()
        assert history[name].shape == (3,)


def test_put_metric_becomes_a_column_and_is_nan_before():
    history = filled()
    history._put(epoch=4, loss=0.2, r2=0.9)

    np.testing.assert_array_equal(history.r2, [np.nan, np.nan, np.nan, 0.9])
    assert history.metrics == ("r2",)
    assert "r2" in dir(history)


@given(st.lists(st.integers(1, 50), max_size=20))
def test_put_any_pieces_keep_every_row(pieces):
    history = History()
    for n_rows in pieces:
        first = len(history) + 1
        epoch = np.arange(first, first + n_rows)
        history._put(epoch=epoch, loss=epoch * 0.5)

    expected = np.arange(1, sum(pieces) + 1)
    np.testing.assert_array_equal(history.epoch, expected)
    np.testing.assert_array_equal(history.loss, expected * 0.5)


def test_put_many_single_rows_grows_rarely():
    history = History()
    buffers = set()
    for epoch in range(1, 2001):
        history._put(epoch=epoch, loss=0.0)
        buffers.add(history._columns["loss"].size)

    assert len(buffers) < 20


def test_put_interrupted_while_any_column_grows_loses_nothing_when_begun_anew(monkeypatch):
    n_columns = len(filled()._columns)
    for n_columns_grown in range(n_columns + 1):
        history = filled()
        while len(history) < history._columns["epoch"].size:  # until the next row needs more room
            history._put(epoch=len(history) + 1, loss=0.5, learning_rate=0.1)
        row, n_calls = len(history), 0

        def empty(*args, real=np.empty, last=n_columns_grown, **kwargs):
            nonlocal n_calls
            n_calls += 1
            if n_calls > last:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr("fastbp.history.np.empty", empty)
            with pytest.raises(KeyboardInterrupt) if n_columns_grown < n_columns else contextlib.nullcontext():
                history._put(epoch=row + 1, loss=0.25, learning_rate=0.01)
        history._put(epoch=row + 1, loss=0.25, learning_rate=0.01)

        assert {history[name].size for name in history._columns} == {row + 1}
        assert (history.epoch[-1], history.loss[-1], history.learning_rate[-1]) == (row + 1, 0.25, 0.01)


def test_put_over_the_last_row_replaces_it():
    history = filled(metric=np.arange(3.0))
    history._put(epoch=3, loss=9.0)

    np.testing.assert_array_equal(history.epoch, [1, 2, 3])
    np.testing.assert_array_equal(history.loss, [1.0, 0.5, 9.0])
    np.testing.assert_array_equal(history.metric, [0.0, 1.0, np.nan])


def test_columns_changed_by_the_user_leave_the_record_alone():
    history = filled()
    history.loss[:] = -1.0
    history["epoch"][:] = 0

    np.testing.assert_array_equal(history.epoch, [1, 2, 3])
    assert (history.loss > 0).all()
    with pytest.raises(AttributeError):
        history.loss = np.zeros(3)


def test_history_unknown_column_raises():
    with pytest.raises(KeyError, match="history has no column 'lost', only epoch, loss"):
        filled()["lost"]
    with pytest.raises(AttributeError, match="'History' object has no attribute 'lost'"):
        _ = filled().lost


def test_repr_shows_the_last_epoch():
    history = filled(accuracy=[0.1, 0.2, 0.3], r2=[0.0, 0.0, 0.5])
    history.stop_reason = "epochs"

    assert repr(history) == "History(3 epochs, loss=0.3333, accuracy=0.3, r2=0.5, stop_reason='epochs')"


@pytest.mark.parametrize("clone", [copy.deepcopy, copy.copy, lambda history: pickle.loads(pickle.dumps(history))])
def test_history_cloned_is_the_same(clone):
    history = filled(r2=[0.0, 0.5, 1.0])
    history.stop_reason, history.compile_seconds = "epochs", 1.5

    actual = clone(history)

    assert (actual.stop_reason, actual.compile_seconds, actual.seed) == ("epochs", 1.5, 7)
    for name in ("epoch", "loss", "accuracy", "r2"):
        np.testing.assert_array_equal(actual[name], history[name])


def test_history_deep_copied_is_independent():
    history = filled()
    clone = copy.deepcopy(history)
    history._put(epoch=4, loss=0.0)

    assert len(clone) == 3


@pytest.fixture
def pyplot():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def test_spans_decade_of_huge_losses_is_silent_under_strict_numpy_errors():
    for losses, expected in (([1e308, 1.5e308], False), ([1e300, 1e308], True), ([5e-324, 1e-300], True)):
        with np.errstate(all="raise"):
            assert filled(2, validation_loss=losses)._spans_decade(("validation_loss",)) is expected


@pytest.mark.usefixtures("pyplot")
def test_plot_losses_over_a_decade_are_logarithmic():
    ax = filled(30, validation_loss=np.linspace(1.0, 0.5, 30)).plot()

    assert ax.get_yscale() == "log"
    assert [line.get_label() for line in ax.get_lines()] == ["training loss", "validation loss"]
    assert [axes.get_ylabel() for axes in ax.figure.axes] == ["loss", "learning rate"]


def test_plot_accuracy_goes_on_a_second_axis(pyplot):
    figure, ax = pyplot.subplots()

    assert filled(accuracy=[0.1, 0.5, 0.9]).plot(ax) is ax

    assert ax.get_yscale() == "linear"
    assert len(figure.axes) == 2
    assert [line.get_label() for line in figure.axes[1].get_lines()] == ["training accuracy"]


@pytest.mark.usefixtures("pyplot")
def test_plot_empty_history_draws_nothing():
    assert len(History().plot().get_lines()) == 0


def test_plot_without_matplotlib_names_the_extra(monkeypatch):
    real_import = builtins.__import__

    def no_matplotlib(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    with pytest.raises(ImportError, match=r"pip install 'fastbp\[examples\]'"):
        filled().plot()


def test_check_metrics_returns_a_copy():
    metrics = {"r2": max}

    actual = check_metrics(metrics)

    assert actual == metrics
    assert actual is not metrics
    assert check_metrics(None) == {}


@pytest.mark.parametrize("name", ["loss", "seed", "stop_reason", "plot", "metrics", "_x", "a b", "", "2nd"])
def test_check_metrics_taken_or_odd_name_raises_value_error(name):
    with pytest.raises(ValueError, match="metrics must be named by identifiers that History does not use itself"):
        check_metrics({name: max})


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ([max], "metrics must be a dict of name: f\\(y, prediction\\), got list"),
        ({1: max}, "metrics must have str names, got 1 of type int"),
        ({"r2": 0.5}, "metrics\\['r2'\\] must be a callable f\\(y, prediction\\), got float"),
    ],
)
def test_check_metrics_bad_type_raises_type_error(metrics, message):
    with pytest.raises(TypeError, match=message):
        check_metrics(metrics)
