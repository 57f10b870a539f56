"""Logs of epochs as files, and what notebooks and prints show of models, trainers and histories."""

import copy
import csv
import gc
import json
import math
import pickle

import numpy as np
import pytest

from fastbp import MLP, Trainer, callbacks


def data(n=64, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    return x, np.sin(x[:, :2])


def trainer():
    return Trainer(MLP((4, 8, 2), "tanh", dtype="float64", seed=0), seed=0)


def rows_of_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def rows_of_json(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


LOGS = {"csv": (callbacks.CSVLog, rows_of_csv), "json": (callbacks.JSONLog, rows_of_json)}


@pytest.mark.parametrize(("log", "rows_of"), LOGS.values(), ids=LOGS)
def test_log_has_a_line_for_each_epoch_to_the_last_digit(log, rows_of, tmp_path):
    (x, y), path = data(), tmp_path / "run"
    metrics = {"worst": lambda y, p: float(np.abs(y - p).max())}
    history = trainer().fit(
        x, y, epochs=4, validation_data=(x, y), validation_every=2, metrics=metrics, callbacks=log(path)
    )
    rows = rows_of(path)
    names = "epoch", "loss", "accuracy", "validation_loss", "validation_accuracy", "learning_rate", "seconds", "worst"
    assert tuple(rows[0]) == names
    assert len(rows) == 4
    for index, row in enumerate(rows):
        for name, value in row.items():
            expected = history[name][index]
            if value in ("", None):
                assert math.isnan(expected)
            else:
                assert float(value) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(("log", "rows_of"), LOGS.values(), ids=LOGS)
def test_log_goes_on_replaces_later_lines_and_a_torn_one(log, rows_of, tmp_path):
    (x, y), path = data(), tmp_path / "run"
    first = trainer()
    first.fit(x, y, epochs=2, callbacks=log(path))
    first.fit(x, y, epochs=2, callbacks=log(path))
    assert [int(row["epoch"]) for row in rows_of(path)] == [1, 2, 3, 4]
    text = path.read_text()
    path.write_text(text[:-5])  # as a crash leaves it
    again = trainer()
    again.fit(x, y, epochs=2)
    again.fit(x, y, epochs=3, callbacks=log(path))
    rows = rows_of(path)
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal([float(row["loss"]) for row in rows], again.history.loss)


def test_csv_of_another_fit_is_refused_and_stays(tmp_path):
    (x, y), path = data(), tmp_path / "run.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="other columns than this fit: a,b"):
        trainer().fit(x, y, epochs=1, callbacks=callbacks.CSVLog(path))
    assert path.read_text() == "a,b\n1,2\n"


def test_tensorboard_log_has_every_scalar(tmp_path):
    tensorboard = pytest.importorskip("tensorboardX")
    x, y = data()
    log = callbacks.TensorBoardLog(tmp_path / "board")
    history = trainer().fit(x, y, epochs=3, callbacks=log)
    del log  # closes the file
    gc.collect()
    (file,) = (tmp_path / "board").iterdir()
    found = {}
    from tensorboardX.proto import event_pb2

    memory = file.read_bytes()
    while memory:  # records: length, its checksum, event, its checksum
        length = int.from_bytes(memory[:8], "little")
        event = event_pb2.Event.FromString(memory[12 : 12 + length])
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
        memory = memory[16 + length :]
    assert tensorboard.__version__
    assert set(found) == {"loss", "learning_rate", "seconds"}
    assert found["loss"] == {n: pytest.approx(loss, rel=1e-6) for n, loss in zip((1, 2, 3), history.loss, strict=True)}


def test_summary_says_what_the_network_is():
    model = MLP([784, 300, 10], "relu", "softmax", seed=0)
    lines = model.summary().splitlines()
    assert lines[1].split() == ["0", "784", "300", "relu", "235500"]
    assert lines[2].split() == ["1", "300", "10", "softmax", "3010"]
    assert lines[3].split() == ["all", str(model.n_params)]
    assert lines[4] == "float32, 1.0 MB; loss cross_entropy"
    assert MLP([2, 1]).summary().endswith("float32, 0.0 kB; loss mse")


def test_notebooks_show_tables():
    x, y = data()
    one = trainer()
    one.fit(x, y, epochs=20)
    for value in (one.model, one, one.history):
        html = value._repr_html_()
        assert html.startswith("<table><caption>")
        assert html.count("<tr>") == html.count("</tr>")
    html = one.history._repr_html_()
    assert html.count("<tr>") == 1 + 5 + 1 + 5
    assert "<td>…</td>" in html
    assert "accuracy" not in html
    assert "<th>loss</th>" in html
    assert Trainer(MLP([2, 1])).history._repr_html_().count("<tr>") == 1


def test_picture_of_a_history_has_rate_and_health():
    from matplotlib import pyplot

    (x, y), one = data(), trainer()
    ax = one.fit(x, y, epochs=5).plot()
    assert [axes.get_ylabel() for axes in ax.figure.axes] == ["loss", "learning rate"]
    one.fit(x, y, epochs=5, health=1)
    ax = one.history.plot()
    assert [axes.get_ylabel() for axes in ax.figure.axes] == ["loss", "learning rate", "gradient norm", "update ratio"]
    pyplot.close("all")


def test_logs_can_be_copied_and_foreign_files_are_refused(tmp_path):
    pytest.importorskip("tensorboardX")
    x, y = data()
    log = callbacks.TensorBoardLog(tmp_path / "board")
    trainer().fit(x, y, epochs=1, callbacks=log)
    assert pickle.loads(pickle.dumps(log)) == copy.deepcopy(log) == log
    (tmp_path / "notes").write_text("no log\n")
    with pytest.raises(ValueError, match="notes is no log of epochs"):
        trainer().fit(x, y, epochs=1, callbacks=callbacks.JSONLog(tmp_path / "notes"))
    assert (tmp_path / "notes").read_text() == "no log\n"


@pytest.mark.parametrize(("log", "rows_of"), LOGS.values(), ids=LOGS)
def test_log_that_serves_another_run_begins_anew(log, rows_of, tmp_path):
    (x, y), one = data(), log(tmp_path / "run")
    trainer().fit(x, y, epochs=4, callbacks=one)
    trainer().fit(x, y, epochs=2, callbacks=one)
    assert [int(row["epoch"]) for row in rows_of(tmp_path / "run")] == [1, 2]
