"""Learning inside compiled functions: the bits of `Trainer`, statuses, and who may change a network at a time."""

import copy
import ctypes
import gc
import os
import pickle
import threading
import weakref

import numba
import numpy as np
import pytest
from numba import njit, prange

import fastbp
from cases import DTYPES, OPTIMIZERS
from fastbp import embed
from fastbp.kernels import owners
from fastbp.kernels.embedding import _BUSY_ELEMENT
from guards import guarded, needs_guard_pages
from problems import bits, state_of
from test_program import Arenas

# Network, output, loss.
NETWORKS = [((4, 9, 3), "identity", None), ((3, 7, 4), "softmax", None), ((5, 6, 1), "sigmoid", None),
            ((7, 150, 120, 2), "tanh", "huber")]  # fmt: skip


@njit(nogil=True)
def train_step(learner, x, y):
    return embed.train_step(learner, x, y)


@njit(nogil=True)
def backward_step(learner, x, d_out):
    return embed.backward_step(learner, x, d_out)


@njit(nogil=True)
def loss_and_grad(learner, x, y, grad):
    return embed.loss_and_grad(learner, x, y, grad)


@njit(nogil=True)
def train(learner, x, y, n_steps):
    return embed.train(learner, x, y, n_steps)


@njit(nogil=True)
def count_to(params):
    for i in range(params.size):
        params[i] = i
    return params.size


@njit
def params_of(handle):
    return embed.params(handle)


def trainer_of(sizes=(4, 9, 3), output="identity", loss=None, dtype="float32", **options):
    model = fastbp.MLP(list(sizes), "tanh", output, loss=loss, dtype=dtype, seed=0)
    return fastbp.Trainer(model, **{"seed": 0} | options)


def batch_of(trainer, n, seed=0):
    """Features, and targets that suit the loss, float64 or classes."""
    rng, sizes, loss = np.random.default_rng(seed), trainer.model.sizes, trainer.model.loss_name
    x = rng.standard_normal((n, sizes[0]))
    if loss == "cross_entropy":
        return x, rng.integers(0, sizes[-1], n)
    y = rng.standard_normal((n, sizes[-1]))
    return x, (y > 0).astype(float) if loss == "binary_cross_entropy" else y


def set_word(address, value):
    """Do as if somebody had taken what stands at this address, or had given it back."""
    ctypes.c_int64.from_address(address).value = value


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_steps_have_the_bits_of_the_trainer_whoever_takes_them(optimizer, dtype):
    ours, theirs = (trainer_of(dtype=dtype, optimizer=optimizer, batch_size=8) for _ in range(2))
    learner, rng, data = ours.compiled(40), np.random.default_rng(1), batch_of(theirs, 50)
    for step in range(300):
        x, y = batch_of(theirs, int(rng.integers(1, 41)), step)
        if step % 4 == 0:
            assert train_step(learner, x, y) == embed.OK
            assert embed.loss(learner) == theirs.step(x, y)
        elif step % 4 == 1:
            assert backward_step(learner, x, y / 40) == embed.OK
            theirs.step_from(x, y / 40)
        elif step % 4 == 2:
            assert train(learner, *data, 2) == embed.OK
            theirs.fit(*data, epochs=None, max_steps=2)
        else:
            assert ours.step(x, y) == theirs.step(x, y)
    assert embed.n_steps(learner) == ours.n_steps == theirs.n_steps == 375
    assert state_of(ours) == state_of(theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("sizes", "output", "loss"), NETWORKS)
def test_steps_gradients_and_fits_of_any_loss_have_the_bits_of_the_trainer(sizes, output, loss, dtype):
    ours, theirs = (trainer_of(sizes, output, loss, dtype, batch_size=16) for _ in range(2))
    learner, grad = ours.compiled(1100), np.empty(ours.model.n_params, dtype)
    for n in (1, 16, 33, 1100):
        x, y = batch_of(theirs, n, n)
        assert loss_and_grad(learner, x, y, grad) == embed.OK
        value, expected = theirs.model.loss_and_grad(x, y)
        assert (embed.loss(learner), bits(grad)) == (value, bits(expected))
        assert train_step(learner, x, y) == embed.OK
        theirs.step(x, y)
    d_out = np.random.default_rng(5).standard_normal((33, sizes[-1])) / 33
    for x in (batch_of(theirs, 33)[0], batch_of(theirs, 33)[0].astype(np.float32)):
        assert backward_step(learner, x, d_out) == embed.OK
        theirs.step_from(x, d_out)
    x, y = batch_of(theirs, 100)
    for n_steps in (3, 7, 11, 1):
        assert train(learner, x, y, n_steps) == embed.OK
        theirs.fit(x, y, epochs=None, max_steps=n_steps)
    assert state_of(ours) == state_of(theirs)


@pytest.mark.parametrize("options", [{"shuffle": False}, {"batch_size": None}, {"batch_size": 30, "drop_last": True}])
def test_train_deals_samples_out_as_fits_do(options):
    ours, theirs = (trainer_of(**options) for _ in range(2))
    learner = ours.compiled(100)
    x, y = batch_of(theirs, 100)
    for n_steps in (2, 5, 300):
        assert train(learner, x, y, n_steps) == embed.OK
        theirs.fit(x, y, epochs=None, max_steps=n_steps)
    assert state_of(ours) == state_of(theirs)
    # And the other way round: the next fit goes on from what the learner has left.
    x, y = batch_of(theirs, 50, 1)
    ours.fit(x, y, epochs=1)
    theirs.fit(x, y, epochs=1)
    assert state_of(ours) == state_of(theirs)


def test_train_tells_the_mean_loss_of_what_its_steps_have_seen():
    trainer, twin = trainer_of(batch_size=10, shuffle=False), trainer_of(batch_size=10, shuffle=False)
    learner, (x, y) = trainer.compiled(10), batch_of(trainer, 25)
    losses = [twin.step(x[start : start + 10], y[start : start + 10]) for start in (0, 10, 20, 0)]
    assert train(learner, x, y, 4) == embed.OK
    assert embed.loss(learner) == pytest.approx(np.average(losses, weights=[10, 10, 5, 10]), rel=1e-6)


def test_single_samples_and_columns_are_batches():
    ours, theirs = (trainer_of((3, 5, 1)) for _ in range(2))
    learner, (x, y) = ours.compiled(8), batch_of(theirs, 8)
    for arguments in ((x[0], y[0]), (x, y[:, 0]), (x, y)):
        assert train_step(learner, *arguments) == embed.OK
    for rows in (slice(0, 1), slice(0, 8), slice(0, 8)):
        theirs.step(x[rows], y[rows])
    assert state_of(ours) == state_of(theirs)
    ours, theirs = (trainer_of((3, 5, 4), "softmax") for _ in range(2))
    learner, (x, labels) = ours.compiled(8), batch_of(theirs, 8)
    for dtype in ("int8", "uint16", "int64"):
        assert train_step(learner, x, labels.astype(dtype)) == embed.OK
        theirs.step(x, labels)
    assert train_step(learner, x[0], labels[:1]) == embed.OK
    theirs.step(x[:1], labels[:1])
    shares = np.eye(4)[labels]
    assert train_step(learner, x[::-1], shares) == embed.OK
    theirs.step(x[::-1], shares)
    assert state_of(ours) == state_of(theirs)


@pytest.mark.parametrize("output", ["identity", "sigmoid", "softmax", "gelu"])
def test_step_from_descends_the_gradient_of_the_callers_loss(output):
    model = fastbp.MLP([3, 7, 4], "tanh", output, dtype="float64", seed=0)
    trainer, before = fastbp.Trainer(model, optimizer=fastbp.SGD(1.0)), model.params.copy()
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((20, 3)), rng.standard_normal((20, 4))

    def loss_at(params):  # nothing that fastbp has: the sum of weights * outputs**3
        model.params = params
        return (weights * model.predict(x) ** 3).sum()

    trainer.step_from(x, 3 * weights * model.predict(x) ** 2)
    grad = before - model.params
    for i in range(0, model.n_params, 7):
        shift = 1e-6 * (np.arange(model.n_params) == i)
        assert grad[i] == pytest.approx((loss_at(before + shift) - loss_at(before - shift)) / 2e-6, rel=1e-6, abs=1e-7)


def test_step_from_with_the_derivative_of_the_loss_is_a_step():
    ours, theirs = (trainer_of(dtype="float64") for _ in range(2))
    for seed in range(20):
        x, y = batch_of(theirs, 30, seed)
        ours.step_from(x, 2 * (ours.model.predict(x) - y) / y.size)
        theirs.step(x, y)
    np.testing.assert_allclose(ours.model.params, theirs.model.params, rtol=1e-9, atol=1e-12)
    assert ours.n_steps == 20


@pytest.mark.parametrize(
    ("d_out", "message"),
    [(np.ones((2, 3)), "d_out must have as many samples"), (np.ones((3, 2)), r"d_out must have shape \(n_samples, 3\)"),
     (np.full((3, 3), np.nan), "d_out must be finite")],
)  # fmt: skip
def test_step_from_checks_its_arguments(d_out, message):
    trainer = trainer_of()
    before = state_of(trainer)
    with pytest.raises(ValueError, match=message):
        trainer.step_from(np.ones((3, 4)), d_out)
    assert state_of(trainer) == before


def test_wrong_batches_are_statuses_and_nothing_changes():
    trainer, classifier = trainer_of(batch_size=16), trainer_of((4, 5, 3), "softmax")
    learner, of_classes = trainer.compiled(8), classifier.compiled(8)
    x, y = batch_of(trainer, 9)
    labels, grad = np.arange(8) % 3, np.full(trainer.model.n_params, 7, np.float32)
    before = state_of(trainer), state_of(classifier)
    cases = [
        (train_step(learner, x[:8, :3], y[:8]), embed.X_SHAPE),
        (train_step(learner, x[:7], y[:8]), embed.Y_SHAPE),
        (train_step(learner, x[:8], y[:8, :2]), embed.Y_SHAPE),
        (train_step(learner, x[:8], labels), embed.Y_SHAPE),
        (train_step(learner, x[:8], y[:8, 0]), embed.Y_SHAPE),
        (train_step(learner, x, y), embed.BATCH),
        (train_step(learner, x[:0], y[:0]), embed.BATCH),
        (train(learner, x, y, 3), embed.BATCH),
        (backward_step(learner, x, y), embed.BATCH),
        (backward_step(learner, x[:8], y[:8, :1]), embed.Y_SHAPE),
        (loss_and_grad(learner, x, y, grad), embed.BATCH),
        (loss_and_grad(learner, x[:8], y[:8], grad[1:]), embed.OUT_SHAPE),
        (loss_and_grad(learner, x[:8], y[:8], trainer.model.params), embed.OVERLAP),
        (loss_and_grad(learner, grad[:32].reshape(8, 4), y[:8], grad), embed.OVERLAP),
        (train_step(of_classes, x[:8], labels + 1), embed.LABELS),
        (train(of_classes, x[:8], labels - 1, 3), embed.LABELS),
        (train_step(learner, np.full((8, 4), np.nan), y[:8]), embed.DIVERGED),
        (loss_and_grad(learner, np.full((8, 4), np.inf), y[:8], grad), embed.DIVERGED),
    ]
    for status, expected in cases:
        assert status == expected
    assert (state_of(trainer), state_of(classifier)) == before
    assert (grad == 7).all()
    assert train_step(learner, x[:8], y[:8]) == train_step(of_classes, x[:8], labels) == embed.OK


def test_train_that_diverges_keeps_the_steps_before():
    trainer, twin = (trainer_of(batch_size=5, shuffle=False) for _ in range(2))
    learner, (x, y) = trainer.compiled(5), batch_of(trainer, 20)
    twin.fit(x, y, epochs=None, max_steps=2)
    x[12, 1] = np.nan
    assert train(learner, x, y, 10) == embed.DIVERGED
    assert embed.n_steps(learner) == trainer.n_steps == 2
    assert bits(trainer.model.params) == bits(twin.model.params)


def test_parameter_that_overflows_is_a_status_and_the_step_is_taken():
    trainer = trainer_of((1, 1), optimizer=fastbp.SGD(1e30))
    learner = trainer.compiled(1)
    assert train_step(learner, np.full((1, 1), 1e9), np.full((1, 1), 1e9)) == embed.OVERFLOWED
    assert trainer.n_steps == 1


def test_schedules_are_sampled_beforehand():
    ours, theirs = (trainer_of(optimizer=fastbp.Adam(lambda step: 0.01 / (1 + step)), batch_size=10) for _ in range(2))
    with pytest.raises(ValueError, match="n_steps must be given, as the learning rate is a schedule"):
        ours.compiled(10)
    x, y = batch_of(theirs, 10)
    ours.step(x, y)
    theirs.step(x, y)
    learner = ours.compiled(10, n_steps=6)
    for _ in range(3):
        assert train_step(learner, x, y) == embed.OK
        theirs.step(x, y)
    assert train(learner, x, y, 100) == embed.RATES_ENDED
    theirs.fit(x, y, epochs=None, max_steps=3)
    assert state_of(ours) == state_of(theirs)
    assert train_step(learner, x, y) == embed.RATES_ENDED
    assert embed.set_learning_rate(learner, 0.5) == embed.OK
    assert train_step(learner, x, y) == embed.OK


def test_learning_rate_moments_and_counts_can_be_set():
    ours, theirs = trainer_of(optimizer=fastbp.Adam(0.1)), trainer_of(optimizer=fastbp.Adam(0.02))
    learner, (x, y) = ours.compiled(20), batch_of(ours, 20)
    for bad in (np.nan, np.inf, -1.0):
        assert embed.set_learning_rate(learner, bad) == embed.RATE
    assert embed.set_learning_rate(learner, 0.02) == embed.OK
    start = ours.model.params.copy()
    for _ in range(2):
        assert train_step(learner, x, y) == train(learner, x, y, 3) == embed.OK
        assert embed.n_steps(learner) == 4
        ours.model.params = start
        assert embed.reset(learner) == embed.OK
        assert embed.n_steps(learner) == ours.n_steps == 0
    assert train_step(learner, x, y) == embed.OK
    theirs.step(x, y)
    assert bits(ours.model.params) == bits(theirs.model.params)
    assert bits(ours._run.buffers.moments) == bits(theirs._run.buffers.moments)


def test_params_are_a_writable_view_that_keeps_its_memory():
    trainer = trainer_of()
    for handle in (trainer.compiled(4), trainer.model.compiled()):
        view = params_of(handle)
        assert (view.dtype, view.shape) == (np.float32, (trainer.model.n_params,))
        assert count_to(view) == view.size
        assert bits(trainer.model.params) == bits(np.arange(view.size, dtype=np.float32))
        assert params_of(handle.copy()).size == 0
    kept = weakref.ref(trainer.model)
    del trainer, handle
    gc.collect()
    assert kept() is not None
    assert bits(view) == bits(kept().params)
    del view
    gc.collect()
    assert kept() is None


def test_learner_keeps_the_trainer_and_is_freed_with_its_last_view():
    trainer = trainer_of()
    learner, (x, y), kept = trainer.compiled(4), batch_of(trainer, 4), weakref.ref(trainer)
    del trainer
    gc.collect()
    assert train_step(learner, x, y) == embed.OK
    assert kept().n_steps == 1
    del learner
    gc.collect()
    assert kept() is None


def test_learner_that_was_copied_is_a_status():
    trainer = trainer_of()
    learner, (x, y) = trainer.compiled(4), batch_of(trainer, 4)
    before = state_of(trainer)
    for bad in (learner.copy(), pickle.loads(pickle.dumps(learner)), learner[1:], learner[:0]):
        grad = np.empty(trainer.model.n_params, np.float32)
        statuses = {train_step(bad, x, y), backward_step(bad, x, y), loss_and_grad(bad, x, y, grad)}
        statuses |= {train(bad, x, y, 2), embed.reset(bad), embed.set_learning_rate(bad, 0.1)}
        assert statuses == {embed.MOVED}
        assert np.isnan(embed.loss(bad))
        assert embed.n_steps(bad) == -1
    assert state_of(trainer) == before


def test_wrong_types_are_typing_errors_that_name_the_argument():
    trainer = trainer_of()
    learner, (x, y), net = trainer.compiled(4), batch_of(trainer, 4), trainer.model.compiled()
    grad = np.empty(trainer.model.n_params, np.float32)
    for function, arguments, message in [
        (train_step, (net, x, y), "embed.train_step: the first argument must be made by Trainer.compiled"),
        (train_step, (learner, x.astype(int), y), "embed.train_step: x must be of float32 or float64"),
        (train_step, (learner, x, y.astype(complex)), "embed.train_step: y must be of float32 or float64"),
        (train_step, (learner, x[0], y), "embed.train_step: y must be an array of 1 or 2 dimensions, no more than x"),
        (train_step, (learner, x, y.astype(int)), "embed.train_step: y must have one dimension if it holds classes"),
        (backward_step, (learner, x, y[:, 0].astype(int)), "embed.backward_step: d_out must be of float32 or float64"),
        (
            loss_and_grad,
            (learner, x, y, grad.astype(float)),
            "embed.loss_and_grad: grad must be a writable, C-contiguous",
        ),
        (loss_and_grad, (learner, x, y, grad[::2]), "embed.loss_and_grad: grad must be a writable, C-contiguous"),
        (train, (learner, x[0], y[0], 2), "embed.train: x must have 2 dimensions"),
        (train, (learner, x, y, 2.0), "embed.train: n_steps must be an integer"),
    ]:
        with pytest.raises(numba.TypingError, match=message):
            function(*arguments)


def test_trainer_compiled_checks_its_arguments():
    trainer = trainer_of()
    for arguments, message in [
        ({"max_batch": 0}, "max_batch must be a positive integer"),
        ({"max_batch": 4, "n": 0}, "n must be a positive integer"),
        ({"max_batch": 4, "n_steps": -1}, "n_steps must be a positive integer"),
    ]:
        with pytest.raises(ValueError, match=message):
            trainer.compiled(**arguments)
    assert trainer.compiled(4).ndim == 1
    assert [len(trainer.compiled(4, n)) for n in (1, 3)] == [1, 3]


def test_learner_at_work_keeps_python_out_and_the_other_way_round():
    trainer = trainer_of()
    learner, (x, y) = trainer.compiled(20), batch_of(trainer, 20)
    word = trainer._run.network.word.address
    before = state_of(trainer)
    set_word(word, owners.LEARNER)
    for call in (
        lambda: trainer.step(x, y),
        lambda: trainer.step(x.astype(np.float32), y.astype(np.float32)),
        lambda: trainer.step_from(x, y),
        lambda: trainer.fit(x, y, epochs=1),
        lambda: trainer.model.fit(x, y, epochs=1),
        lambda: copy.copy(trainer),
        lambda: pickle.dumps(trainer.model),
    ):
        with pytest.raises(RuntimeError, match="a learner in compiled code is at work in another thread"):
            call()
    assert train_step(learner, x, y) == train(learner, x, y, 2) == embed.BUSY
    trainer.model.predict(x)
    assert loss_and_grad(learner, x, y, np.empty(trainer.model.n_params, np.float32)) == embed.OK
    set_word(word, owners.NOBODY)
    assert state_of(trainer) == before
    statuses = []

    def metric(y, prediction):
        statuses.append(train_step(learner, x, y.astype(float)))
        statuses.append(embed.reset(learner))
        return 0.0

    trainer.fit(x, y, epochs=2, validation_data=(x, y), metrics={"busy": metric})
    assert set(statuses) == {embed.BUSY}
    assert train_step(learner, x, y) == embed.OK  # free again
    copied = copy.copy(trainer)
    assert state_of(copied) == state_of(trainer)
    assert train_step(learner, x, y) == embed.OK
    # What an interrupted call of Python's has left taken, the next one takes over.
    set_word(word, owners.PYTHON)
    assert train_step(learner, x, y) == embed.BUSY
    trainer.step(x, y)
    assert train_step(learner, x, y) == embed.OK


def test_gradients_of_several_learners_in_parallel_have_the_same_bits():
    trainer = trainer_of((4, 30, 3))
    n = numba.get_num_threads()
    learners, (x, y) = trainer.compiled(32, n), batch_of(trainer, 32)
    expected = trainer.model.loss_and_grad(x, y)[1]
    grads = np.zeros((200, expected.size), np.float32)

    @njit(parallel=True)
    def all_gradients(learners, x, y, grads):
        for i in prange(grads.shape[0]):
            embed.loss_and_grad(learners[numba.get_thread_id()], x, y, grads[i])

    all_gradients(learners, x, y, grads)
    assert (grads == expected).all()


def test_threads_that_share_a_learner_take_whole_steps_or_none():
    trainer, twin = (trainer_of(optimizer=fastbp.SGD(1e-3)) for _ in range(2))
    learner, (x, y), taken = trainer.compiled(20), batch_of(trainer, 20), []

    def work():
        taken.append(sum(train_step(learner, x, y) == embed.OK for _ in range(2000)))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert trainer.n_steps == sum(taken)
    for _ in range(sum(taken)):
        twin.step(x, y)
    assert bits(trainer.model.params) == bits(twin.model.params)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_child_finds_learner_and_network_free():
    trainer = trainer_of()
    learner, (x, y) = trainer.compiled(20), batch_of(trainer, 20)
    assert train_step(learner, x, y) == embed.OK
    word = trainer._run.network.word.address
    for address, value in ((word, owners.LEARNER), (learner.ctypes.data + 8 * _BUSY_ELEMENT, 1)):
        set_word(address, value)
        child = os.fork()
        if child == 0:
            os._exit(train_step(learner, x, y))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == embed.OK
        assert train_step(learner, x, y) == embed.BUSY
        set_word(address, 0)
    trainer._run.state.outside.cursor["updating"] = 1  # as in a child that was forked while a step changed parameters
    grad = np.empty(trainer.model.n_params, np.float32)
    assert train_step(learner, x, y) == train(learner, x, y, 1) == embed.reset(learner) == embed.TORN
    assert loss_and_grad(learner, x, y, grad) == embed.OK


@needs_guard_pages
@pytest.mark.parametrize("at_start", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_beside_guard_pages_are_not_left(dtype, at_start):
    for sizes, output, loss in NETWORKS:
        trainer = trainer_of(sizes, output, loss, dtype, batch_size=5)
        learner = trainer.compiled(40)
        for n in (1, 7, 40):
            x, y = batch_of(trainer, n)
            x, y = guarded(x.astype(dtype), at_start), guarded(y if y.dtype.kind == "i" else y.astype(dtype), at_start)
            grad = guarded(np.zeros(trainer.model.n_params, dtype), at_start)
            assert train_step(learner, x, y) == loss_and_grad(learner, x, y, grad) == embed.OK
            assert train(learner, x, y, 3) == embed.OK


def test_early_stopping_that_has_restored_goes_on_from_what_the_learner_has_made():
    trainer, twin = (trainer_of(batch_size=10, optimizer=fastbp.Adam(0.05)) for _ in range(2))
    learner, (x, y) = trainer.compiled(40), batch_of(trainer, 40)
    other = batch_of(trainer, 40, 1)
    stop = fastbp.EarlyStopping(patience=2, restore_best=True)
    for one in (trainer, twin):
        one.fit(x, y, epochs=20, validation_data=other, stop=stop)
    assert train_step(learner, x, y) == embed.OK
    twin.step(x, y)
    assert bits(trainer.model.params) == bits(twin.model.params)
    for one in (trainer, twin):
        one.fit(x, y, epochs=2)
    assert bits(trainer.model.params) == bits(twin.model.params)


def test_random_calls_do_what_python_does():
    rng = np.random.default_rng(0)
    pairs = [[trainer_of(*network, dtype=dtype) for _ in range(2)] for network in NETWORKS[:3] for dtype in DTYPES]
    learners = [ours.compiled(20) for ours, _ in pairs]
    for call in range(30_000):
        which, n, kind = int(rng.integers(len(pairs))), int(rng.integers(0, 25)), call % 3
        (ours, theirs), learner = pairs[which], learners[which]
        x, y = batch_of(theirs, n, call)
        x = x.astype(rng.choice(DTYPES))
        is_wide = rng.random() < 0.05
        given = np.column_stack([x, x[:, :1]]) if is_wide else x
        expected = embed.X_SHAPE if is_wide else embed.OK if 1 <= n <= 20 else embed.BATCH
        if kind == 0:
            assert train_step(learner, given, y) == expected
            assert expected != embed.OK or embed.loss(learner) == theirs.step(x, y)
        elif kind == 1:
            d_out = rng.standard_normal((n, theirs.model.sizes[-1])) / 20
            assert backward_step(learner, given, d_out) == expected
            if expected == embed.OK:
                theirs.step_from(x, d_out)
        else:
            grad = np.full(theirs.model.n_params, 7, theirs.model.dtype)
            assert loss_and_grad(learner, given, y, grad) == expected
            assert (
                bits(grad) == bits(theirs.model.loss_and_grad(x, y)[1]) if expected == embed.OK else (grad == 7).all()
            )
    for ours, theirs in pairs:
        assert state_of(ours) == state_of(theirs)


def test_nothing_between_the_buffers_of_learners_is_touched(monkeypatch):
    arenas = Arenas(monkeypatch, 0xA5)
    for sizes, output, loss in NETWORKS:
        trainer = trainer_of(sizes, output, loss, batch_size=7)
        learner, net = trainer.compiled(70), trainer.model.compiled()
        (x, y), grad = batch_of(trainer, 70), np.empty(trainer.model.n_params, np.float32)
        d_out, out, d_x = (
            np.ones((70, sizes[-1])),
            np.empty((70, sizes[-1]), np.float32),
            np.empty((70, sizes[0]), np.float32),
        )
        for n in (1, 33, 70):
            assert train_step(learner, x[:n], y[:n]) == backward_step(learner, x[:n], d_out[:n]) == embed.OK
            assert loss_and_grad(learner, x[:n], y[:n], grad) == train(learner, x[:n], y[:n], 3) == embed.OK
            assert embed.predict(net, x[:n], out[:n]) == embed.vjp(net, x[:n], d_out[:n], d_x[:n]) == embed.OK
            assert embed.jvp(net, x[:n], x[:n], out[:n]) == embed.OK
    arenas.assert_gaps_are_untouched()
