"""Every bad input gets its error, with its words, before anything happens: those of `bad_input.txt`."""

import fnmatch
import warnings
from pathlib import Path

import numpy as np
import pytest

import fastbp
from fastbp import activations, callbacks, embed, losses, schedules

sparse = pytest.importorskip("scipy.sparse")

LINES = [line for line in (Path(__file__).parent / "bad_input.txt").read_text().splitlines() if line[:1] != "#"]
TABLE = dict(zip(LINES[::2], map(str.strip, LINES[1::2]), strict=True))


def spoilt(array, value):
    array = array.astype(float)
    array[4, 1] = value
    return array


def frozen(array):
    array.flags.writeable = False
    return array


@pytest.fixture
def names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # whatever file is named
    rng = np.random.default_rng(0)
    models = {
        "model": fastbp.MLP([3, 4, 2], seed=0),
        "scaled": fastbp.MLP([3, 4, 2], seed=0, standardize=True),
        "classifier": fastbp.MLP([3, 3], output="softmax", seed=0),
        "binary": fastbp.MLP([3, 1], output="sigmoid", seed=0),
        "hinge": fastbp.MLP([3, 1], loss="hinge", seed=0),
        "poisson": fastbp.MLP([3, 1], output="exp", seed=0),
    }
    data = {"x": rng.normal(size=(20, 3)), "y": rng.normal(size=(20, 2)), "labels": np.arange(20) % 3}
    modules = {"activations": activations, "callbacks": callbacks, "embed": embed, "losses": losses}
    own = {
        "spoilt": spoilt,
        "frozen": frozen,
        "csr": sparse.csr_array,
        "trainer": fastbp.Trainer(models["model"], seed=0),
    }
    public = {name: getattr(fastbp, name) for name in fastbp.__all__}
    return public | modules | models | data | own | {"np": np, "fastbp": fastbp, "schedules": schedules}


def state_of(names):
    """The bits of whatever must not change."""
    models = [value for value in names.values() if isinstance(value, fastbp.MLP)]
    arrays = [names[name] for name in ("x", "y", "labels")]
    return [array.tobytes() for array in (*arrays, *[model.params for model in models])], names["trainer"].n_steps


def test_the_table_is_long_enough():
    assert len(TABLE) >= 200
    assert len(LINES) == 2 * len(TABLE)


@pytest.mark.parametrize("expression", TABLE)
def test_bad_input_gets_its_error_before_anything_happens(expression, names):
    before, expected = state_of(names), TABLE[expression]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Exception) as caught:  # noqa: PT011 - the table has type and message
            eval(expression, dict(names))
    message = f"{type(caught.value).__name__}: {caught.value}"
    pattern = "*".join(
        part.replace("[", "[[]").replace("?", "[?]").replace("*", "[*]") for part in expected.split("...")
    )
    assert fnmatch.fnmatchcase(message, pattern), message
    assert state_of(names) == before
    assert not list(Path.cwd().iterdir())
