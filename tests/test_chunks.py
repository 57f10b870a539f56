"""Fits on data that come in chunks."""

import signal
import threading
import weakref

import numpy as np
import pytest

import fastbp
from fastbp import MLP, Adam, DivergenceError, EarlyStopping, TargetLoss, Trainer, embed, schedules

SIZES = [3, 7, 2]


def data(n=100, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    return x, np.sin(x[:, :2])


def cut(x, y, *lengths):
    ends = np.cumsum(lengths)
    return [(x[end - n : end], y[end - n : end]) for n, end in zip(lengths, ends, strict=True)]


def trainer(**options):
    return Trainer(MLP(SIZES, "tanh", seed=1), **{"seed": 0, "batch_size": 8, "optimizer": Adam(0.01)} | options)


def bits(trainer):
    return trainer.model.params.tobytes(), trainer.history.loss.tobytes()


def twin_of(chunks, n_epochs, batch_size=8, drop_last=False, weights=None):
    """The fit as steps on unshuffled batches."""
    other, losses = trainer(), []
    for _ in range(n_epochs):
        total = size = 0.0
        for x, y, *w in chunks:
            for first in range(0, len(x), min(batch_size, len(x))):
                rows = slice(first, first + batch_size)
                if drop_last and len(x[rows]) < batch_size:
                    continue
                weight = w[0][rows].sum() if w else len(x[rows])
                total += other.step(x[rows], y[rows], *[part[rows] for part in w]) * weight if weight else 0.0
                if not weight:
                    other.step(x[rows], y[rows], *[part[rows] for part in w])
                size += weight
        losses.append(total / size)
    return other.model.params.tobytes(), losses


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("lengths", [(100,), (16, 84), (5, 50, 45), (33, 1, 66), (1,) * 9])
def test_a_fit_goes_through_the_batches_of_each_chunk(lengths, drop_last):
    chunks = cut(*data(), *lengths)
    if drop_last and max(lengths) < 8:
        with pytest.raises(ValueError, match="without any sample"):
            trainer(drop_last=True).fit(chunks)
        return
    one = trainer(shuffle=False, drop_last=drop_last)
    history = one.fit(chunks, epochs=3)
    params, losses = twin_of(chunks, 3, drop_last=drop_last)
    assert one.model.params.tobytes() == params
    assert history.loss == pytest.approx(losses, rel=1e-6)
    assert history.epoch.tolist() == [1, 2, 3]
    assert history.stop_reason == "epochs"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch_size", [8, 32, 1000, None])
def test_one_chunk_is_the_fit_of_its_arrays(batch_size, threads):
    x, y = data()
    one, other = [trainer(batch_size=batch_size, threads=threads) for _ in range(2)]
    one.fit([(x, y)], epochs=4)
    other.fit(x, y, epochs=4)
    assert bits(one) == bits(other)


def test_chunks_are_shuffled_each_by_itself_in_new_orders():
    x, y = data(64)
    chunks, seen = [(x[:32], y[:32]), (x[:32], y[:32])], []
    one, other = trainer(batch_size=None), trainer(batch_size=1)
    other.fit(chunks, epochs=2)
    assert other.n_steps == 128
    for seed in range(2):
        run = trainer(seed=seed, batch_size=4)
        run.fit(chunks, epochs=1)
        seen.append(run.model.params.tobytes())
    again = trainer(seed=0, batch_size=4)
    again.fit(chunks, epochs=1)
    assert seen[0] == again.model.params.tobytes() != seen[1]
    one.fit(chunks, epochs=1)
    assert one.n_steps == 2


def test_weights_come_with_the_chunks():
    x, y = data()
    weights = np.random.default_rng(3).uniform(0.0, 2.0, 100)
    weights[:20] = 0.0
    chunks = [(*pair, weight) for pair, weight in zip(cut(x, y, 30, 70), np.split(weights, [30]), strict=True)]
    one = trainer(shuffle=False)
    history = one.fit(chunks, epochs=2)
    params, losses = twin_of(chunks, 2)
    assert one.model.params.tobytes() == params
    assert history.loss == pytest.approx(losses, rel=1e-6)


def test_classes_have_weights_and_balanced_is_refused():
    x, _ = data()
    y = np.arange(100) % 2
    chunks = cut(x, y, 40, 60)
    models = [MLP([3, 4, 2], output="softmax", seed=0) for _ in range(2)]
    models[0].fit(chunks, epochs=1, shuffle=False, class_weight={0: 3.0}, seed=0)
    weights = np.where(y == 0, 3.0, 1.0)
    models[1].fit([(*pair, w) for pair, w in zip(chunks, np.split(weights, [40]), strict=True)], epochs=1,
                  shuffle=False, seed=0)  # fmt: skip
    assert models[0].params.tobytes() == models[1].params.tobytes()
    with pytest.raises(ValueError, match="balanced"):
        models[0].fit(chunks, class_weight="balanced")


class Stream:
    """Chunks that begin anew, and count."""

    def __init__(self, chunks):
        self.chunks, self.n_asked, self.threads = chunks, 0, set()

    def __iter__(self):
        for chunk in self.chunks:
            self.n_asked += 1
            self.threads.add(threading.current_thread())
            yield chunk


def test_a_generator_serves_one_epoch():
    chunks = cut(*data(), 50, 50)
    one, other = trainer(), trainer()
    history = one.fit(chunk for chunk in chunks)
    assert history.stop_reason == "exhausted"
    assert len(history) == 1
    other.fit(chunks, epochs=1)
    assert bits(one) == bits(other)
    assert one.fit((chunk for chunk in chunks), epochs=1).stop_reason == "epochs"


def test_the_next_chunk_is_loaded_while_the_present_one_trains():
    stream = Stream(cut(*data(400), 100, 100, 100, 100))
    trainer(batch_size=1).fit(stream, max_steps=1)  # in the first
    for thread in stream.threads:
        thread.join(10)
    assert stream.n_asked == 2
    assert threading.main_thread() not in stream.threads


def test_stop_rules_validation_callbacks_and_metrics_see_whole_epochs():
    chunks, (x, y) = cut(*data(), 40, 60), data(50, 1)
    records = []
    one = trainer()
    history = one.fit(
        chunks,
        epochs=50,
        validation_data=(x, y),
        metrics={"error": lambda y, prediction: abs(y - prediction).max()},
        stop=EarlyStopping(3),
        callbacks=lambda trainer, record: records.append(record["loss"]),
    )
    assert records == history.loss.tolist()
    assert np.isfinite(history.validation_loss).all()
    assert np.isfinite(history["error"]).all()
    assert one.n_steps == 13 * len(history)
    target = history.loss[2] + 1e-9
    other = trainer()
    other.fit(chunks, stop=TargetLoss(target))
    assert other.history.stop_reason == "TargetLoss"
    assert len(other.history) == 3
    assert other.history.loss.tobytes() == history.loss[:3].tobytes()


def test_a_stop_in_mid_epoch_ends_it():
    x, y = data()
    chunks = cut(x, y, 48, 52)
    one = trainer(shuffle=False)
    history = one.fit(chunks, max_steps=9)
    assert history.stop_reason == "max_steps"
    assert len(history) == 1
    one.fit(chunks, epochs=1)
    assert one.n_steps == 9 + 13
    assert len(one.history) == 2
    exactly = trainer(shuffle=False)
    exactly.fit(chunks, max_steps=6)  # at the end of a chunk
    exactly.fit(x[:48], y[:48], epochs=1)
    assert exactly.n_steps == 12
    assert len(exactly.history) == 2


def test_schedules_health_and_recovery_work():
    chunks = cut(*data(), 40, 60)
    one = trainer(optimizer=Adam(schedules.CosineDecay(0.01, 26)))
    history = one.fit(chunks, epochs=2, health=5, on_divergence="reduce")
    assert history.health.step.tolist() == [0, 5, 10, 15, 20, 25]
    hot = trainer(optimizer=fastbp.SGD(1e9))
    with pytest.raises(DivergenceError):
        hot.fit(chunks, epochs=20)
    hot = trainer(optimizer=fastbp.SGD(1e9))
    with pytest.warns(RuntimeWarning, match="diverged and ended"):
        hot.fit(chunks, epochs=20, on_divergence="restore")
    cooled = Trainer(MLP(SIZES, "relu", seed=1), batch_size=8, seed=0, optimizer=fastbp.SGD(1e4))
    history = cooled.fit(chunks, epochs=3, on_divergence=fastbp.ReduceRate(1e-3, 3))
    assert len(history) == 3
    assert history.divergences


def test_ema_and_standardize_take_chunks():
    x, y = data()
    chunks = cut(x * 100 + 7, y, 40, 60)
    model = MLP(SIZES, seed=0, standardize=True)
    model.fit(chunks, epochs=2, ema=0.9, use_ema=True, seed=0)
    assert np.allclose(model.x_mean, chunks[0][0].mean(axis=0))  # of the first: learn_scaling takes all


def test_chunks_may_be_as_data_are_frames_bytes_and_lists():
    pandas = pytest.importorskip("pandas")
    x, y = data(60)
    frames = [(pandas.DataFrame(part), target.tolist()) for part, target in cut(x, y, 30, 30)]
    one, other = trainer(), trainer()
    one.fit(frames, epochs=2)
    other.fit(cut(x, y, 30, 30), epochs=2)
    assert bits(one) == bits(other)
    whole = np.arange(90, dtype=np.uint8).reshape(30, 3)
    trainer().fit([[whole, y[:30]], (whole.astype(np.float16), y[:30])], epochs=1)


def test_chunks_without_samples_are_left_out():
    x, y = data()
    one, other = trainer(), trainer()
    one.fit([(x[:0], y[:0]), (x[:30], y[:30]), (x[:0], y[:0]), (x[30:], y[30:]), (x[:0], y[:0])], epochs=2)
    other.fit(cut(x, y, 30, 70), epochs=2)
    assert one.n_steps == other.n_steps == 26
    assert len(one.history) == 2


X, Y = data(20)
BAD = {
    "no y": (lambda: X, TypeError, r"y must be given, or x be an iterable of chunks"),
    "a number": (lambda: 3, TypeError, "y must be given"),
    "a dict": (lambda: {"x": X}, TypeError, "y must be given"),
    "a text": (lambda: "xy", TypeError, "y must be given"),
    "nothing": (list, ValueError, "without any sample"),
    "nothing but empty ones": (lambda: [(X[:0], Y[:0])], ValueError, "without any sample"),
    "arrays": (lambda: [X, Y], TypeError, r"x must yield chunks \(x, y\) or .* got ndarray as chunk 0; is y missing"),
    "four": (lambda: [(X, Y, Y, Y)], TypeError, "x must yield .* got 4 entries as chunk 0"),
    "another width": (lambda: [(X[:, :2], Y)], ValueError, r"x of chunk 0 must have shape \(n_samples, 3\), got"),
    "other samples": (lambda: [(X, Y[:3])], ValueError, "y of chunk 0 must have as many samples"),
    "not finite": (lambda: [(X * np.nan, Y)], ValueError, "x of chunk 0 must be finite"),
    "wrong weights": (lambda: [(X, Y, -np.ones(20))], ValueError, "sample_weight of chunk 0 must be finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_chunks_are_named_before_anything_happens(name):
    make, kind, message = BAD[name]
    one = trainer()
    before = one.model.params.tobytes()
    with pytest.raises(kind, match=message):
        one.fit(make(), epochs=2)
    assert one.model.params.tobytes() == before
    assert one.n_steps == 0
    one.fit(X, Y, epochs=1)


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        ((X[:, :2], Y), "x of chunk 1 must have shape"),
        ((X, Y, np.ones(20)), "chunk 1 must have weights as the first one, or none as that"),
        (ZeroDivisionError("broken"), "broken"),
    ],
)
def test_later_chunks_end_the_fit_after_whole_steps(chunk, message):
    def chunks():
        yield X, Y
        if isinstance(chunk, Exception):
            raise chunk
        yield chunk

    one, other = trainer(), trainer()
    with pytest.raises((ValueError, ZeroDivisionError), match=message):
        one.fit(chunks(), epochs=1)
    other.fit(X, Y, max_steps=3)
    assert one.model.params.tobytes() == other.model.params.tobytes()
    assert one.history.stop_reason in ("ValueError", "ZeroDivisionError")
    one.fit(X, Y, epochs=1)


@pytest.mark.parametrize(
    "option", [{"sample_weight": np.ones(20)}, {"validation_split": 0.2}, {"checkpoint": "run.npz"}]
)
def test_what_needs_arrays_is_refused(option):
    with pytest.raises(ValueError, match="need data as arrays"):
        trainer().fit([(X, Y)], **option)


def test_ctrl_c_while_a_chunk_is_waited_for_leaves_whole_steps():
    released = threading.Event()

    def chunks():
        yield X, Y
        threading.Timer(0.2, signal.raise_signal, (signal.SIGINT,)).start()
        released.wait(20)
        yield X, Y

    one, other = trainer(), trainer()
    with pytest.raises(KeyboardInterrupt):
        one.fit(chunks(), epochs=1)
    released.set()
    other.fit(X, Y, max_steps=3)
    assert one.model.params.tobytes() == other.model.params.tobytes()
    assert one.history.stop_reason == "KeyboardInterrupt"
    one.fit([(X, Y)], epochs=1)
    assert one.n_steps == 6


def test_learners_and_steps_go_on_after_chunks():
    one = trainer()
    one.fit(cut(X, Y, 12, 8), max_steps=2)
    learner = one.compiled(max_batch=20)
    assert embed.train(learner, X, Y, 3) == embed.OK
    one.step(X, Y)
    assert one.n_steps == 6
    assert np.isfinite(one.model.params).all()


def refilling(fills, copies):
    """A generator that fills the same arrays again for each chunk."""
    x, y = np.empty((64, 3)), np.empty((64, 2))
    for seed in range(fills):
        x[:], y[:] = data(64, seed)
        yield (x.copy(), y.copy()) if copies else (x, y)


def test_a_generator_may_fill_its_arrays_again():
    one, other = [trainer(batch_size=None, optimizer=fastbp.SGD(1e-9)) for _ in range(2)]
    one.fit(refilling(5, copies=False), epochs=1)
    other.fit(refilling(5, copies=True), epochs=1)
    assert bits(one) == bits(other)


@pytest.mark.parametrize("lengths", [(2000, 10), (10, 2000)])
def test_chunks_of_other_sizes_have_their_own_teams(lengths):
    x, y = data(sum(lengths))
    models = []
    for threads in (1, "auto"):
        model = MLP([3, 128, 128, 2], seed=0)
        model.fit(cut(x, y, *lengths), epochs=3, batch_size=None, threads=threads, seed=0)
        models.append(model.params.tobytes())
    assert models[0] == models[1]


def test_max_steps_at_the_end_of_an_epoch_ends_it():
    x, y = data()
    chunks, seen = cut(x, y, 48, 52), []
    options = {"epochs": None, "max_steps": 13, "validation_data": (x, y), "stop": EarlyStopping(5)}
    one, other = trainer(shuffle=False), trainer(shuffle=False)
    history = one.fit(chunks, **options, callbacks=lambda trainer, record: seen.append(record["epoch"]))
    assert history.stop_reason == "max_steps"
    assert np.isfinite(history.validation_loss).all()
    assert seen == [1]
    twin_of_one, _ = twin_of(chunks, 1)
    assert one.model.params.tobytes() == twin_of_one
    one.fit(chunks, epochs=1)
    assert len(one.history) == 2
    other.fit(chunks, epochs=2)
    assert one.model.params.tobytes() == other.model.params.tobytes()


def test_one_thread_goes_through_the_iterable():
    stream = Stream(cut(*data(), 25, 25, 50))
    trainer().fit(stream, epochs=4)
    assert len(stream.threads) == 1
    stream.threads.pop().join(10)  # it ends with the fit


def test_a_chunk_without_any_weight_is_passed_over():
    x, _ = data(60)
    model = MLP([3, 3], output="softmax", seed=0)
    history = model.fit([(x, np.arange(60) % 3), (x, np.zeros(60, int))], epochs=1, class_weight={0: 0.0})
    assert np.isfinite(history.loss).all()


def test_drop_last_leaves_small_chunks_out():
    x, y = data(67)
    one = trainer(batch_size=32, drop_last=True)
    one.fit(cut(x, y, 64, 3), epochs=2)
    assert one.n_steps == 4


def test_a_fit_of_chunks_begins_an_epoch_whatever_came_before():
    x, y = data()
    one = trainer(shuffle=False)
    one.fit(x, y, max_steps=5)
    one.fit([(x, y), (x, y)], epochs=1)
    assert one.n_steps == 5 + 26


def test_time_is_looked_at_while_a_chunk_is_waited_for():
    released = threading.Event()

    def chunks():
        yield X, Y
        released.wait(20)
        yield X, Y

    one = trainer()
    history = one.fit(chunks(), stop=fastbp.TimeLimit(0.2))
    released.set()
    assert history.stop_reason == "TimeLimit"
    assert one.n_steps == 3


def test_options_are_checked_before_a_chunk_is_taken():
    chunks = iter(cut(X, Y, 10, 10))
    with pytest.raises(ValueError, match="epochs must be a positive integer"):
        trainer().fit(chunks, epochs=-1)
    assert len(list(chunks)) == 2
    with pytest.raises(ValueError, match="on_divergence needs chunks that can be gone through again"):
        trainer().fit(iter([(X, Y)]), epochs=1, on_divergence="reduce")


def test_no_chunk_outlives_the_next_but_one():
    alive, counts = weakref.WeakSet(), []

    class Rows(np.ndarray):
        pass

    def chunks():
        for seed in range(6):
            x, y = data(50, seed)
            x = x.view(Rows)
            alive.add(Tagged(x))
            yield x, y

    class Tagged:
        def __init__(self, x):
            x.tag = self

    trainer().fit(chunks(), epochs=1, callbacks=lambda trainer, record: counts.append(len(alive)))
    assert counts[0] <= 3
