"""Data as people have them: in windows of long reads, frames, with values missing, unchecked."""

import numpy as np
import pytest

import fastbp
from fastbp import MLP, SGD, Trainer


def data(n=103, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    return x, np.sin(x[:, :2])


def trainer(**options):
    return Trainer(MLP((4, 8, 2), "tanh", dtype="float64", seed=0), seed=3, **options)


def test_shuffle_by_windows_trains_on_each_sample_once_and_resumes_in_mid_epoch():
    x, y = data()
    seen = trainer(batch_size=8, shuffle=20, optimizer=SGD(1e-30))
    history = seen.fit(x, y, epochs=2)
    assert history.loss == pytest.approx(seen.model.loss(x, y), rel=1e-12)
    whole, cut, threads = (trainer(batch_size=8, shuffle=20, **more) for more in ({}, {}, {"threads": 2}))
    whole.fit(x, y, epochs=3)
    threads.fit(x, y, epochs=3)
    for n in (1, 3, 11, 24):
        cut.fit(x, y, epochs=None, max_steps=n)
    assert cut.model.params.tobytes() == whole.model.params.tobytes() == threads.model.params.tobytes()
    other = trainer(batch_size=8)
    other.fit(x, y, epochs=3)
    assert other.model.params.tobytes() != whole.model.params.tobytes()


def test_window_of_all_samples_is_the_usual_order():
    x, y = data()
    usual, wide = trainer(batch_size=8), trainer(batch_size=8, shuffle=1000)
    usual.fit(x, y, epochs=2)
    wide.fit(x, y, epochs=2)
    assert usual.model.params.tobytes() == wide.model.params.tobytes()


@pytest.mark.parametrize("shuffle", [1, 0, -5, 2.0, "yes", None])
def test_wrong_shuffle_is_refused(shuffle):
    with pytest.raises((TypeError, ValueError), match="shuffle"):
        trainer(shuffle=shuffle)


def test_embedded_learner_takes_the_same_windows():
    from numba import njit

    from fastbp import embed

    x, y = data()
    plain, embedded = trainer(batch_size=8, shuffle=20), trainer(batch_size=8, shuffle=20)
    plain.fit(x, y, epochs=None, max_steps=20)

    @njit
    def run(learner, x, y):
        return embed.train(learner, x, y, 20)

    assert run(embedded.compiled(8), x, y) == 0
    assert plain.model.params.tobytes() == embedded.model.params.tobytes()


def test_missing_values_are_named_with_their_column_and_number():
    x, y = data()
    x[[3, 7, 50], 2] = np.nan
    message = r"x must be finite, got nan in row 3, column 2, where 3 of 103 values are missing; fill them, or leave"
    with pytest.raises(ValueError, match=message):
        trainer().fit(x, y)
    x[9, 0] = np.nan
    with pytest.raises(ValueError, match="and values are missing in 1 other columns"):
        trainer().fit(x, y)
    x, y = data()
    y[5] = np.nan
    with pytest.raises(ValueError, match=r"y must be finite, got nan in row 5, column 0, where 1 of 103 values"):
        trainer().fit(x, y)
    with pytest.raises(ValueError, match=r"y must be finite, got nan in row 5: 1 of 103 values are missing; fill them"):
        MLP((4, 1)).fit(x, y[:, 0])


def test_frames_of_pandas_are_read_as_they_are_and_named():
    pandas = pytest.importorskip("pandas")
    x, y = data()
    frame = pandas.DataFrame(x, columns=["age", "height", "weight", "dose"])
    one, other = trainer(), trainer()
    one.fit(x, y, epochs=2)
    other.fit(frame, pandas.DataFrame(y), epochs=2)
    assert one.model.params.tobytes() == other.model.params.tobytes()
    assert other.model.predict(frame).tobytes() == one.model.predict(x).tobytes()
    whole = frame.assign(age=pandas.array(np.arange(103), dtype="Int64"), dose=np.arange(103) % 2 == 0)
    trainer().fit(whole, y, epochs=1)
    whole["age"] = pandas.array([None, 5, None, *range(100)], dtype="Int64")
    with pytest.raises(ValueError, match="got nan in row 0, column 'age', where 2 of 103 values are missing"):
        trainer().fit(whole, y)
    with pytest.raises(TypeError, match="make numbers of 'height', 'weight', or leave them out"):
        trainer().fit(frame.assign(height="tall", weight="light"), y)
    series = pandas.Series([1.0, None, 3.0] + [0.0] * 100, dtype="Float64")
    with pytest.raises(ValueError, match="y must be finite, got nan in row 1: 1 of 103 values are missing"):
        MLP((4, 1)).fit(x, series)


def test_frames_of_polars_are_read_as_they_are_and_named():
    polars = pytest.importorskip("polars")
    x, y = data()
    frame = polars.DataFrame(x, schema=["age", "height", "weight", "dose"])
    one, other = trainer(), trainer()
    one.fit(x, y, epochs=2)
    other.fit(frame, y, epochs=2)
    assert one.model.params.tobytes() == other.model.params.tobytes()
    with pytest.raises(ValueError, match="got nan in row 1, column 'age', where 1 of 103 values are missing"):
        trainer().fit(frame.with_columns(age=polars.Series([1.0, None] + [0.0] * 101)), y)


def test_columns_of_dates_and_texts_are_named_and_infinite_values_too():
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    import datetime

    x, y = data()
    days = [datetime.datetime(2026, 1, 1)] * 103
    columns = {"a": x[:, 0], "day": days, "c": x[:, 2], "text": ["t"] * 103}
    for frame in (pandas.DataFrame(columns), polars.DataFrame(columns)):
        with pytest.raises(TypeError, match="make numbers of 'day', 'text', or leave them out"):
            trainer().fit(frame, y)
    x[7, 3] = np.inf
    with pytest.raises(ValueError, match=r"got inf in row 7, column 3$"):
        trainer().fit(x, y)
    with pytest.raises(ValueError, match=r"got inf in row 7, column 'd'$"):
        trainer().fit(polars.DataFrame(x, schema=["a", "b", "c", "d"]), y)
    with pytest.raises(fastbp.DivergenceError, match="the inputs hold NaN or infinities themselves"):
        MLP((4, 2), seed=0).fit(x, y, check_finite=False)


class OnlyDLPack:
    """A tensor of a library that NumPy knows nothing of."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


def test_tensors_that_dlpack_hands_on_lists_and_arrays_of_others_are_read():
    x, y = data()
    one = trainer()
    one.fit(x, y, epochs=2)
    for convert in (OnlyDLPack, lambda a: a.tolist(), memoryview, _WithArray):
        other = trainer()
        other.fit(convert(x), convert(y), epochs=2)
        assert one.model.params.tobytes() == other.model.params.tobytes()


class _WithArray:
    def __init__(self, array):
        self._array = array

    def __array__(self, dtype=None, copy=None):
        return self._array


def test_unchecked_values_that_are_not_finite_show_as_a_divergence():
    x, y = data()
    x[60, 1] = np.inf
    with pytest.raises(ValueError, match="x must be finite"):
        trainer().fit(x, y)
    with pytest.raises(fastbp.DivergenceError):
        trainer().fit(x, y, check_finite=False)
    checked, unchecked = trainer(), trainer()
    x, y = data()
    checked.fit(x, y, epochs=2)
    unchecked.fit(x, y, epochs=2, check_finite=False, validation_data=(x, y))
    assert checked.model.params.tobytes() == unchecked.model.params.tobytes()
    with pytest.raises(TypeError, match="check_finite must be a bool"):
        trainer().fit(x, y, check_finite=1)
    labels = np.zeros(103, int)
    labels[4] = 7  # what a kernel would write by is looked at all the same
    with pytest.raises(ValueError, match=r"class labels in \[0, 3\), got 7"):
        MLP((4, 3), output="softmax").fit(x, labels, check_finite=False)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64", "float16", "float32", "float64", "bool"])
@pytest.mark.parametrize("order", ["C", "F", "strided", "memory-mapped", "read-only"])
def test_data_of_any_dtype_and_order_are_read_without_a_copy(dtype, order, tmp_path):
    rng = np.random.default_rng(0)
    plain = rng.integers(0, 2 if dtype == "bool" else 100, (50, 4)).astype(dtype)
    y = rng.normal(size=(50, 2))
    expected = trainer()
    expected.fit(plain.astype(np.float64), y, epochs=2)
    given = {
        "C": lambda: plain,
        "F": lambda: np.asfortranarray(plain),
        "strided": lambda: np.repeat(np.repeat(plain, 2, axis=0), 3, axis=1)[::2, ::3],
        "memory-mapped": lambda: _mapped(plain, tmp_path / "x.npy"),
        "read-only": lambda: _read_only(plain),
    }[order]()
    one = trainer()
    one.fit(given, y, epochs=2)
    assert one.model.params.tobytes() == expected.model.params.tobytes()
    checked = one.model._network.checked_data(given, y)
    assert np.shares_memory(checked.x, given)


def _mapped(array, path):
    np.save(path, array)
    return np.load(path, mmap_mode="r")


def _read_only(array):
    array.flags.writeable = False
    return array
