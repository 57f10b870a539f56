"""Calls on arrays as they should be, which one compiled entry checks and runs, equal those that go the usual way."""

import gc
import threading
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastbp
from cases import DTYPES, OPTIMIZERS
from fastbp import evaluation, program, workers
from fastbp.kernels import border
from fastbp.network import Network
from problems import bits, state_of

SIZES = [(4, 32, 1), (3, 5, 4), (1, 1), (30, 300, 200, 2)]
OUTPUTS = ["identity", "softmax", "sigmoid"]


def usual_way(monkeypatch):
    """Let every call go the usual way."""
    monkeypatch.setattr(evaluation, "predict_at_once", lambda *_: None)
    monkeypatch.setattr(Network, "batch_at_once", lambda *_: None)


class Watched:
    """Counts the calls that an entry has answered; an entry that says SLOW has answered nothing."""

    def __init__(self, monkeypatch):
        self.n_at_once = 0
        for owner, name in ((evaluation, "predict_at_once"), (evaluation, "loss_and_grad_at_once")):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))
        run = fastbp.run.Run
        monkeypatch.setattr(run, "_step_at_once", self._counted(run._step_at_once))

    def _counted(self, function):
        def counted(*arguments):
            answer = function(*arguments)
            self.n_at_once += answer is not None
            return answer

        return counted


@pytest.fixture
def watched(monkeypatch):
    return Watched(monkeypatch)


def model_of(sizes, output="identity", dtype="float32", **options):
    output = "identity" if output == "softmax" and sizes[-1] == 1 else output
    return fastbp.MLP(sizes, "tanh", output, seed=0, dtype=dtype, **options)


def batch_for(model, n, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, model.sizes[0])).astype(model.dtype)
    if model.loss_name == "cross_entropy":
        return x, rng.integers(0, model.sizes[-1], n)
    if model.loss_name == "binary_cross_entropy":
        return x, rng.random((n, model.sizes[-1])).astype(model.dtype)
    return x, rng.normal(size=(n, model.sizes[-1])).astype(model.dtype)


LAYOUTS = {
    "as it is": lambda x: x,
    "every second row": lambda x: np.repeat(x, 2, axis=0)[::2],
    "some columns": lambda x: np.concatenate([x, x], axis=1)[:, : x.shape[1]],
    "one row many times": lambda x: np.broadcast_to(x[:1], x.shape),
    "backwards": lambda x: x[::-1].copy()[::-1],
    "columns first": np.asfortranarray,
    "read-only": lambda x: (lambda copy: (copy.setflags(write=False), copy)[1])(x.copy()),
    "misaligned": lambda x: np.frombuffer(b"?" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape),
    "other bytes": lambda x: x.astype(x.dtype.newbyteorder()),
    "float64": lambda x: x.astype(np.float64),
    "subclass": lambda x: x.view(type("Sub", (np.ndarray,), {})),
    "list": lambda x: x.tolist(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES)
def test_predict_and_loss_and_grad_equal_the_usual_way_in_any_layout(sizes, dtype, layout, monkeypatch):
    for output in OUTPUTS:
        model = model_of(sizes, output, dtype)
        for n in (1, 2, 31, 32, 33, 200):
            x, y = batch_for(model, n)
            x = LAYOUTS[layout](x)
            loss, grad = model.loss_and_grad(x, y)
            prediction = model.predict(x)
            out = np.empty_like(prediction)
            assert model.predict(x, out=out) is out
            with monkeypatch.context() as patch:
                usual_way(patch)
                expected_loss, expected_grad = model.loss_and_grad(x, y)
                assert (loss, bits(grad)) == (expected_loss, bits(expected_grad))
                assert bits(prediction) == bits(out) == bits(model.predict(x))


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_usual_arrays_are_answered_at_once(dtype, output, watched):
    model = model_of((4, 32, 3), output, dtype)
    x, y = batch_for(model, 32)
    trainer = fastbp.Trainer(model, seed=0)
    trainer.step(x, y)  # makes the program
    model.predict(x), model.loss_and_grad(x, y), trainer.step(x, y), trainer.step(x[:31], y[:31])
    assert watched.n_at_once == 4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_steps_equal_the_usual_way(optimizer, dtype, monkeypatch):
    trainers = [fastbp.Trainer(model_of((4, 9, 3), "softmax", dtype), optimizer=optimizer, seed=0) for _ in range(2)]
    losses = [[], []]
    for step, n in enumerate([32, 32, 31, 1, 32, 64, 200, 31, 31]):
        x, y = batch_for(trainers[0].model, n, seed=step)
        losses[0].append(trainers[0].step(x, y))
        with monkeypatch.context() as patch:
            usual_way(patch)
            losses[1].append(trainers[1].step(x, y))
        if step == 4:
            for trainer in trainers:
                trainer.fit(x, y, epochs=2)
    assert losses[0] == losses[1]
    assert state_of(trainers[0]) == state_of(trainers[1])
    assert trainers[0].n_steps == trainers[1].n_steps


@pytest.mark.parametrize("output", ["identity", "softmax"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(4, 32, 1), (200, 300, 4), (300, 600, 35)])
def test_bits_depend_on_the_batch_alone_not_on_what_ran_before(sizes, dtype, output):
    # 31 samples in a program for 32, and 33 in one for 64, are those in one of their own.
    activation = "relu"
    for n, before in ((31, 32), (33, 64), (5, 200)):
        results = []
        for first in (None, before):
            model = fastbp.MLP(sizes, activation, output if sizes[-1] > 1 else "identity", seed=0, dtype=dtype)
            trainer = fastbp.Trainer(model, seed=0)
            start = model.params.copy()
            if first is not None:
                trainer.step(*batch_for(model, first))
                model.loss_and_grad(*batch_for(model, first))
                model.params = start
                trainer = fastbp.Trainer(model, seed=0)
            x, y = batch_for(model, n)
            loss, grad = model.loss_and_grad(x, y)
            results.append((loss, bits(grad), trainer.step(x, y), bits(model.params)))
        assert results[0] == results[1]


def test_schedule_is_asked_once_for_each_step():
    asked = []
    optimizer = fastbp.SGD(lambda step: asked.append(step) or 0.01)
    trainer = fastbp.Trainer(model_of((4, 9, 1)), optimizer=optimizer, seed=0)
    x, y = batch_for(trainer.model, 32)
    for _ in range(4):
        trainer.step(x, y)
    assert asked == [0, 1, 2, 3]


BAD = {
    "NaN in x": lambda x, y: x.__setitem__((3, 1), np.nan),
    "infinity in x": lambda x, y: x.__setitem__((-1, -1), -np.inf),
    "NaN in y": lambda x, y: y.__setitem__((2, 0), np.nan),
    "no fraction": lambda x, y: y.__setitem__((2, 0), 1.5),
    "below zero": lambda x, y: y.__setitem__((0, 0), -1e-3),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_values_get_the_usual_errors_and_change_nothing(bad, monkeypatch):
    model = model_of((4, 9, 2), "sigmoid")
    x, y = batch_for(model, 32)
    trainer = fastbp.Trainer(model, seed=0)
    trainer.step(x, y)
    before = state_of(trainer)
    x, y = x.copy(), y.copy()
    BAD[bad](x, y)
    for call in (trainer.step, model.loss_and_grad):
        with pytest.raises(ValueError, match="must") as caught:
            call(x, y)
        with monkeypatch.context() as patch:
            usual_way(patch)
            with pytest.raises(ValueError, match="must") as expected:
                call(x, y)
        assert str(caught.value) == str(expected.value)
    assert state_of(trainer) == before
    assert trainer.n_steps == 1


@pytest.mark.parametrize("label", [-1, 3, 2**62])
def test_labels_out_of_range_get_the_usual_error(label):
    model = model_of((4, 9, 3), "softmax")
    x, y = batch_for(model, 32)
    trainer = fastbp.Trainer(model, seed=0)
    trainer.step(x, y)
    y[7] = label
    for call in (trainer.step, model.loss_and_grad):
        with pytest.raises(ValueError, match=r"must hold class labels in \[0, 3\)"):
            call(x, y)
    assert trainer.n_steps == 1


def test_wrong_shapes_get_the_usual_errors():
    model = model_of((4, 9, 2))
    x, y = batch_for(model, 32)
    trainer = fastbp.Trainer(model, seed=0)
    trainer.step(x, y)
    for wrong in ((x[:, :3], y), (x, y[:, :1]), (x[:5], y), (x[:0], y[:0]), (x[0], y), (x, y[0])):
        with pytest.raises(ValueError, match="must have"):
            trainer.step(*wrong)
        with pytest.raises(ValueError, match="must have"):
            model.loss_and_grad(*wrong)
    assert model.predict(x[:0]).shape == (0, 2)
    with pytest.raises(ValueError, match="out must have shape"):
        model.predict(x, out=np.empty((31, 2), np.float32))


def test_output_that_overlaps_what_is_read_is_refused():
    memory = np.zeros(400, np.float32)
    model = model_of((2, 9, 2))
    for start in (0, 2, 62, 63):
        with pytest.raises(ValueError, match="must not overlap"):
            model.predict(memory[:64].reshape(32, 2), out=memory[start : start + 64].reshape(32, 2))
    model.predict(memory[:64].reshape(32, 2), out=memory[64:128].reshape(32, 2))
    n_rows = model.n_params // 2
    with pytest.raises(ValueError, match="must not overlap"):
        model.predict(np.ones((n_rows, 2), np.float32), out=model.params[: 2 * n_rows].reshape(n_rows, 2))
    read_only = np.empty((32, 2), np.float32)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="writable"):
        model.predict(memory[:64].reshape(32, 2), out=read_only)


def test_overflow_of_outputs_is_told_and_of_a_loss_ends_the_step():
    model = model_of((4, 1))
    x, y = batch_for(model, 32)
    trainer = fastbp.Trainer(model, optimizer=fastbp.SGD(1.0), seed=0)
    trainer.step(x, y)
    before = state_of(trainer)
    huge = np.full_like(x, 3e38)
    with pytest.warns(RuntimeWarning, match="prediction of row 0 is not finite"):
        model.predict(huge)
    with pytest.raises(fastbp.DivergenceError, match="inputs are as large as 3e\\+38") as caught:
        trainer.step(huge, y)
    assert not caught.value.step_taken
    assert state_of(trainer) == before
    assert trainer.n_steps == 1


def test_parameter_that_is_not_finite_after_a_step_is_told():
    trainer = fastbp.Trainer(model_of((4, 1)), optimizer=fastbp.SGD(lambda step: 1e38 if step else 0.0), seed=0)
    x, y = batch_for(trainer.model, 32)
    trainer.step(x, y)
    with pytest.raises(fastbp.DivergenceError) as caught:
        trainer.step(x * np.float32(1e3), y)
    assert caught.value.step_taken
    assert (
        str(caught.value)
        == "a parameter of layer 0 is not finite after step 1, whose loss was finite; the step was taken"
    )
    assert trainer.n_steps == 2


@given(st.integers(1, 300), st.integers(1, 8), st.integers(0, 3), st.booleans())
@settings(max_examples=40)
def test_any_rows_of_a_larger_array_are_read_right(n, step, offset, is_double):
    dtype = np.float64 if is_double else np.float32
    model = fastbp.MLP([4, 7, 2], "relu", seed=0, dtype=dtype)
    rng = np.random.default_rng(n)
    large = rng.normal(size=(n * step, 4 + offset)).astype(dtype)
    x = large[::step, offset:]
    assert bits(model.predict(x)) == bits(model.predict(x.copy()))


def test_one_signature_serves_every_layout(monkeypatch):
    model = model_of((4, 9, 2))
    x, y = batch_for(model, 32)
    trainer = fastbp.Trainer(model, seed=0)
    for layout in LAYOUTS.values():
        for _ in range(2):
            model.predict(layout(x)), trainer.step(layout(x), layout(y)), model.loss_and_grad(layout(x), layout(y))
    for function in (border.predict_rows, border.step_on_values, border.step_on_labels):
        assert len(function.signatures) <= 2  # one per dtype


@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")
def test_arrays_reshaped_by_another_thread_meanwhile_are_read_as_they_were():
    model, stop = model_of((4, 9, 1)), threading.Event()
    x = batch_for(model, 64)[0]
    expected = {64: bits(model.predict(x)), 128: None, 32: None}

    def reshape():
        while not stop.is_set():
            for shape in ((128, 2), (2, 32, 4), (64, 4), (256,)):
                x.shape = shape

    thread = threading.Thread(target=reshape)
    thread.start()
    try:
        for _ in range(20_000):
            try:
                prediction = model.predict(x)
            except ValueError:
                continue
            assert bits(prediction) == expected[len(prediction)]
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("threads", [1, 2, 3, 8, "auto"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_predict_with_threads_gives_the_same_bits(dtype, threads, monkeypatch):
    monkeypatch.setattr(workers, "available_cores", lambda: 8)
    model = fastbp.MLP([30, 200, 5], "relu", "softmax", seed=0, dtype=dtype)
    x = np.random.default_rng(0).normal(size=(9001, 30)).astype(dtype)
    expected = model.predict(x)
    out = np.full_like(expected, np.nan)
    before = threading.active_count()
    assert model.predict(x, out=out, threads=threads) is out
    assert bits(out) == bits(expected)
    assert bits(model.predict(x[:3], threads=threads)) == bits(expected[:3])
    assert threading.active_count() == before


@pytest.mark.parametrize("threads", [0, -1, True, 2.0, "many", None])
def test_predict_with_bad_threads_is_refused(threads):
    with pytest.raises((TypeError, ValueError), match="threads must be a positive integer or 'auto'"):
        model_of((4, 1)).predict(np.zeros((2, 4), np.float32), threads=threads)


def test_error_in_a_helper_comes_out_after_all_have_ended():
    ended = []

    def fail():
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        workers.run_in_threads([lambda: ended.append(0), fail, lambda: ended.append(2)])
    assert sorted(ended) == [0, 2]


@pytest.fixture
def alive(monkeypatch):
    """Programs that are made during a test and not freed yet."""
    made = weakref.WeakSet()

    class Kept(program.Program):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.add(self)

    monkeypatch.setattr(program, "Program", Kept)
    return made


def test_dropped_models_trainers_and_threads_free_their_programs(alive):
    model = model_of((4, 9, 1))
    x, y = batch_for(model, 64)
    trainer = fastbp.Trainer(model, seed=0)
    for n in (64, 32, 200):
        trainer.step(x[:n], y[:n])
        trainer.fit(x, y, epochs=2, validation_data=(x, y))
    model.loss_and_grad(x, y), model.predict(x), model.loss(x, y)
    gc.collect()
    kept = len(alive)
    assert 4 <= kept <= 5  # three of this thread's, and those that train

    def use(model):
        model.predict(x), model.loss(x, y), model.loss_and_grad(x, y)

    thread = threading.Thread(target=use, args=(model,))
    thread.start()
    thread.join()
    del thread
    gc.collect()
    assert len(alive) == kept
    del trainer
    gc.collect()
    fastbp.Trainer(model, optimizer=fastbp.SGD(), seed=0).step(x, y)
    gc.collect()
    assert len(alive) <= 5
    del model
    gc.collect()
    assert len(alive) == 0
