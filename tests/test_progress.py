import sys

import pytest

from fastbp import progress
from fastbp.progress import Progress


@pytest.fixture
def no_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests set by hand, in seconds."""

    class Clock:
        now = 100.0

    clock = Clock()
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock.now)
    return clock


def test_progress_disabled_shows_nothing(capfd):
    with Progress(2, 20, enabled=False) as bar:
        bar.message("compiling")
        bar.update(1, 10, 0.5)

    assert capfd.readouterr() == ("", "")


def test_progress_with_tqdm_shows_loss_accuracy_and_rate(capfd):
    pytest.importorskip("tqdm")
    with Progress(2, 20, enabled=True) as bar:
        bar.message("compiling")
        bar.update(1, 10, 0.5, accuracy=0.25, steps_per_second=12345.0)
        bar.update(2, 20, 0.25, accuracy=0.5, steps_per_second=12345.0, validation_loss=0.75)

    out, err = capfd.readouterr()
    assert out == ""
    assert "compiling\n" in err
    last = err.strip().splitlines()[-1]
    assert "epoch 2/2" in last
    assert "100%" in last
    assert "loss 0.25, accuracy 0.5000, validation loss 0.75, 12.3k steps/s" in last


def test_progress_with_tqdm_error_inside_closes_the_bar(capfd):
    tqdm = pytest.importorskip("tqdm").tqdm

    def fit():
        with Progress(2, 20, enabled=True) as bar:
            bar.update(1, 10, 0.5)
            raise RuntimeError("diverged")

    with pytest.raises(RuntimeError, match="diverged"):
        fit()

    err = capfd.readouterr().err
    assert "50%" in err.strip().splitlines()[-1]
    assert err.endswith("\n")
    assert not getattr(tqdm, "_instances", ())


def test_progress_with_tqdm_unknown_totals_has_no_percentage(capfd):
    pytest.importorskip("tqdm")
    with Progress(None, None, enabled=True) as bar:
        bar.update(3, 10, 0.5)

    err = capfd.readouterr().err
    assert "epoch 3" in err
    assert "%" not in err


@pytest.mark.usefixtures("no_tqdm")
def test_progress_without_tqdm_prints_a_line_per_epoch(clock, capfd):
    with Progress(10, 100, enabled=True) as bar:
        bar.message("compiling")
        clock.now += 2.0
        bar.update(1, 10, 0.5, accuracy=0.25)
        clock.now += 2.0
        bar.update(1, 15, 0.4)
        clock.now += 2.0
        bar.update(2, 20, 0.25, steps_per_second=2.5e6, validation_loss=0.75)

    assert capfd.readouterr().err.splitlines() == [
        "compiling",
        "epoch  1/10: loss 0.5, accuracy 0.2500, 5 steps/s",
        "epoch  2/10: loss 0.25, validation loss 0.75, 2.5M steps/s",
    ]


@pytest.mark.usefixtures("no_tqdm")
def test_progress_without_tqdm_fast_epochs_are_thinned_and_the_last_is_shown(clock, capfd):
    with Progress(1000, 1000, enabled=True) as bar:
        for epoch in range(1, 1001):
            clock.now += 1e-3
            bar.update(epoch, epoch, 1.0)

    lines = capfd.readouterr().err.splitlines()
    assert 10 <= len(lines) <= 12
    assert lines[-1].startswith("epoch 1000/1000: loss 1,")


@pytest.mark.usefixtures("no_tqdm", "clock")
def test_progress_without_tqdm_error_inside_shows_the_pending_line(capfd):
    def fit():
        with Progress(None, None, enabled=True) as bar:
            bar.update(1, 1, 1.0)
            bar.update(2, 2, 0.5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit()

    assert [line.split(":")[0] for line in capfd.readouterr().err.splitlines()] == ["epoch 1", "epoch 2"]
