"""Whatever way an object came back, what kernels write to is its own: writable, aligned, of its dtype."""

import copy
import io
import pickle

import cloudpickle
import joblib
import numpy as np
import pytest

import fastbp
from problems import bits, regression, regressor, rows_of, state_of

X, Y = regression()


def by_joblib(value, tmp_path):
    joblib.dump(value, tmp_path / "value")
    return joblib.load(tmp_path / "value", mmap_mode="r")


def by_joblib_in_memory(value, tmp_path):
    joblib.dump(value, file := io.BytesIO())
    file.seek(0)
    return joblib.load(file)


def by_buffers_of_bytes(value, tmp_path):
    """As Ray and Dask send pickles: with the arrays beside, as bytes that nobody may write."""
    buffers = []
    pickled = pickle.dumps(value, 5, buffer_callback=buffers.append)
    return pickle.loads(pickled, buffers=[bytes(buffer.raw()) for buffer in buffers])


def by_misaligned_buffers(value, tmp_path):
    buffers = []
    pickled = pickle.dumps(value, 5, buffer_callback=buffers.append)
    return pickle.loads(pickled, buffers=[memoryview(bytearray(b"?" + buffer.raw()))[1:] for buffer in buffers])


def by_buffers_that_are_used_again(value, tmp_path):
    buffers = []
    pickled = pickle.dumps(value, 5, buffer_callback=buffers.append)
    memory = [bytearray(buffer.raw()) for buffer in buffers]
    loaded = pickle.loads(pickled, buffers=memory)
    for piece in memory:
        piece[:] = bytes(len(piece))
    return loaded


def by_a_file_that_is_overwritten(value, tmp_path):
    loaded = by_joblib(value, tmp_path)
    (tmp_path / "value").write_bytes(b"")
    return loaded


def by_pickle(protocol):
    return lambda value, tmp_path: pickle.loads(pickle.dumps(value, protocol))


WAYS = {
    "joblib, memory-mapped": by_joblib,
    "joblib": by_joblib_in_memory,
    "bytes": by_buffers_of_bytes,
    "misaligned": by_misaligned_buffers,
    "buffers used again": by_buffers_that_are_used_again,
    "file overwritten": by_a_file_that_is_overwritten,
    "cloudpickle": lambda value, tmp_path: cloudpickle.loads(cloudpickle.dumps(value)),
    "copy": lambda value, tmp_path: copy.copy(value),
    "deepcopy": lambda value, tmp_path: copy.deepcopy(value),
    **{f"pickle {protocol}": by_pickle(protocol) for protocol in range(2, 6)},
}


def arrays_of(value, seen):
    """Yield all arrays that hang on an object of fastbp's, with their paths."""
    if isinstance(value, np.ndarray):
        yield "", value
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, (tuple, list)):
        children = enumerate(value)
    elif type(value).__module__.startswith("fastbp.") and hasattr(value, "__dict__"):
        children = vars(value).items()
    else:
        return
    for name, child in children:
        for path, array in arrays_of(child, seen):
            yield f".{name}{path}", array


def is_own(array):
    """Whether the array's memory ends at an object of NumPy's or an anonymous map, and can be written."""
    owner = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    is_whole = owner.base is None or type(owner.base).__name__ in ("mmap", "memoryview")
    flags = array.flags
    return type(array) is np.ndarray and is_whole and flags.writeable and flags.aligned and array.dtype.isnative


KERNELS_WRITE = ("cursor", "totals", "table", "_params", "params", "grads", "moments")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_trainer_that_came_back_owns_what_kernels_write_and_goes_on(way, dtype, tmp_path):
    def new_trainer():
        trainer = fastbp.Trainer(regressor(dtype=dtype), batch_size=8, seed=0)
        trainer.step(X[:5], Y[:5])
        trainer.fit(X, Y, epochs=None, max_steps=11, validation_data=(X, Y), stop=stop)
        return trainer

    stop = [fastbp.EarlyStopping(50), fastbp.Convergence(1e-3, 50)]
    trainer = WAYS[way](new_trainer(), tmp_path)
    written = 0
    for path, array in arrays_of(trainer, set()):
        assert is_own(array), path  # what a rule goes back to, too
        written += path.rpartition(".")[2] in KERNELS_WRITE or "._columns." in path
    assert written >= 15
    assert trainer._run.buffers.params is trainer.model._network.params

    twin = new_trainer()
    for each in (trainer, twin):
        each.fit(X, Y, epochs=3, validation_data=(X, Y), stop=stop)
        each.step(X, Y)
    assert state_of(trainer) == state_of(twin)
    assert rows_of(trainer.history) == rows_of(twin.history)
    assert trainer.model.history is trainer.history


@pytest.mark.parametrize("way", WAYS)
def test_model_that_came_back_owns_its_parameters_and_trains(way, tmp_path):
    original, twin = regressor(), regressor()
    original.fit(X, Y, epochs=2, seed=0)
    twin.fit(X, Y, epochs=2, seed=0)
    model = WAYS[way](original, tmp_path)
    assert is_own(model._network.params)
    assert all(is_own(column) for column in model.history._columns.values())
    model.fit(X, Y, epochs=2, seed=1)
    assert bits(original.params) == bits(twin.params)
    assert len(original.history) == 2
    original.fit(X, Y, epochs=2, seed=1)
    assert bits(model.params) == bits(original.params)


@pytest.mark.parametrize("way", WAYS)
def test_history_that_came_back_shares_nothing(way, tmp_path):
    history = regressor().fit(X, Y, epochs=3, seed=0)
    before = rows_of(history)
    other = WAYS[way](history, tmp_path)
    assert rows_of(other) == before
    other._put(epoch=np.arange(2, 5), loss=np.zeros(3))
    assert rows_of(history) == before


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy])
def test_copied_trainer_and_original_go_on_by_themselves(clone):
    trainer, twin = (fastbp.Trainer(regressor(), batch_size=8, seed=0) for _ in range(2))
    for each in (trainer, twin):
        each.fit(X, Y, epochs=None, max_steps=5)
    other = clone(trainer)
    other.fit(X[:40] + 1, Y[:40], epochs=4)  # elsewhere, and much further
    other.step(X, Y)
    for each in (trainer, twin):
        each.fit(X, Y, epochs=2)
    assert state_of(trainer) == state_of(twin)
    assert rows_of(trainer.history) == rows_of(twin.history)
    assert other.model is not trainer.model
