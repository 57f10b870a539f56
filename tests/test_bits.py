"""The same seed gives the same bits: any order of the tasks, any chunks, stops and processes, any batch to predict."""

import hashlib
import pickle
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastbp
from fastbp import plan, program
from fastbp.kernels import border, training
from fastbp.kernels.activations import ACTIVATIONS
from fastbp.kernels.calls import int64_at
from fastbp.kernels.tables import cursor_at, dealing_at, plan_at, run_at, source_at
from fastbp.pacing import Pace
from problems import bits, classes, regression, rows_of, state_of
from ways import lists_anything


class Case:
    """A network, data and how to train it; small, but with several tasks of each kind where its name says so."""

    def __init__(self, sizes, n_samples, batch_size, n_steps, activation="tanh", output="softmax", **options):
        self.sizes, self.activation, self.output, self.n_steps = sizes, activation, output, n_steps
        if output == "softmax":
            self.x, self.y = classes(n_samples, sizes[0], sizes[-1])
        else:
            self.x, self.y = regression(n_samples, sizes[0], sizes[-1])
        self.options = {"batch_size": batch_size, "seed": 3} | options

    def trainer(self, dtype="float32", **options):
        model = fastbp.MLP(self.sizes, self.activation, self.output, seed=1, dtype=dtype)
        return fastbp.Trainer(model, **self.options | options)

    def fit(self, trainer, n_steps=None, **options):
        trainer.fit(self.x, self.y, epochs=None, max_steps=self.n_steps if n_steps is None else n_steps, **options)
        return trainer

    def trained(self, dtype="float32", **options):
        return self.fit(self.trainer(dtype), **options)


CASES = {
    "tiny": Case((3, 5, 4), 60, 7, 40),
    "online": Case((3, 9, 1), 40, 1, 60, "gelu", "identity", optimizer=fastbp.SGD(0.005, momentum=0.9)),
    "several blocks": Case((7, 33, 20, 3), 700, 400, 12, "relu", optimizer=fastbp.RMSprop(centered=True, momentum=0.5)),
    "several super-blocks": Case((5, 9, 4), 2700, None, 6, "silu", optimizer=fastbp.Adagrad(0.05)),
    "several tiles": Case((40, 300, 150, 10), 500, 140, 9, "relu", optimizer=fastbp.AdamW(weight_decay=0.1)),
    "wide": Case((300, 600, 600, 10), 1400, 1300, 3, "relu"),
    # Two workers have blocks of 128 samples and of one, more of them have 64, 64 and one.
    "wide, one sample left": Case((8, 600, 400, 3), 129, 129, 3),
    # Sums over more than 1024 inputs, outputs and samples, dense and of what is not zero.
    "long": Case((1100, 40, 1030), 90, 41, 3),
    "long and wide": Case((40, 1300, 1100, 3), 1700, 1600, 2, "relu"),
}
SMALL = ["tiny", "online", "several blocks"]


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def assert_same_run(actual, expected):
    assert state_of(actual) == state_of(expected)
    assert rows_of(actual.history) == rows_of(expected.history)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fit_again_gives_the_same_bits(case, dtype):
    assert_same_run(case.trained(dtype), case.trained(dtype))


FREE = (
    *("WIDE_BLOCK", "PACK_ABOVE", "LIST_PRODUCT", "PACK_PRODUCT", "FEW_PART"),
    *("K_BLOCK", "M_BLOCK", "S_BLOCK", "C_BLOCK", "RECTANGLE"),
)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("name", FREE)
def test_thresholds_and_cache_blocks_that_cut_no_sum_change_no_bit(name, activation, monkeypatch):
    case = Case((300, 600, 600, 10), 700, 513, 2, activation)

    def run():
        trainer = case.trained()
        small = trainer.model.predict(case.x[:5].astype("float32"))
        return state_of(trainer), bits(small), bits(trainer.model.loss_and_grad(case.x[:40], case.y[:40])[1])

    expected, value = run(), getattr(plan, name)
    for other in (value // 2, 2 * value):
        for module in (plan, program):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, other)
        assert run() == expected


@pytest.mark.parametrize("sizes", [(300, 600, 700, 300, 10), (300, 1301, 1103, 300, 10)])
@pytest.mark.parametrize("bias", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_skipping_zeros_changes_no_bit(dtype, bias, sizes, monkeypatch):
    # Units that are off for half of the samples, for few, and for none.
    n = 400
    x, y = classes(n, sizes[0], sizes[-1])
    model = fastbp.MLP(sizes, "relu", "softmax", seed=1, dtype=dtype)
    for biases in model.biases[:-1]:
        biases[:] = bias
    outputs, (loss, grad) = model.predict(x), model.loss_and_grad(x, y)
    assert lists_anything(model, n)
    monkeypatch.setitem(ACTIVATIONS, "relu", ACTIVATIONS["relu"]._replace(makes_zeros=False))
    assert not lists_anything(model, n)
    twin = fastbp.MLP(sizes, "relu", "softmax", init=model.params, dtype=dtype)
    assert bits(twin.predict(x)) == bits(outputs)
    expected_loss, expected_grad = twin.loss_and_grad(x, y)
    assert loss == expected_loss
    # Biases are sums over lanes where zeros are skipped, and weights have one zero only: neither's sign matters.
    layout = model._network.architecture.layout
    for actual, expected in zip(layout.weights(grad), layout.weights(expected_grad), strict=True):
        np.testing.assert_array_equal(actual, expected)
    for actual, expected in zip(layout.biases(grad), layout.biases(expected_grad), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", SMALL)
def test_fit_with_progress_gives_the_same_bits(name, capsys):
    case = CASES[name]
    assert_same_run(case.trained(progress=True), case.trained())
    assert capsys.readouterr()


@numba.njit(error_model="numpy")
def _train_in_random_order(leaf, plans, source, dealing, run, sync, is_helper, n_wanted):
    """As `training.train_steps`, but with the tasks in random order, each with scratch buffers full of NaN and -1."""
    plan, source, dealing, run = plan_at(plans), source_at(source), dealing_at(dealing), run_at(run)
    cursor, sizes = cursor_at(run.cursor), plan.sizes
    cursor.spent = 0
    while cursor.spent < dealing.budget and cursor.n_records < run.n_records:
        batch = min(dealing.batch_size, dealing.epoch_size - cursor.position)
        done = cursor.super_blocks_done * sizes.super_block
        n = min(sizes.super_block, batch - done)
        is_last, samples = done + n == batch, cursor.phase == training.SAMPLES_PHASE
        n_tasks = (n + sizes.block - 1) // sizes.block if samples else plan.n_tasks
        if samples and done == 0:
            training._begin_step(plan, source, dealing, run, batch, True)
        for task in np.random.permutation(n_tasks):  # noqa: NPY002 - Numba's
            _spoil(plan.scratch)
            if samples:
                training._samples_tasks(plan, source, dealing, run, task, task + 1, 1, batch, n, True)
            else:
                training._parameters_tasks(plan, run, task, task + 1, 1, batch, n, is_last, True)
        cursor.spent += 1
        status = training._end_phase(plan, dealing, run, n_tasks, batch, n, is_last, 0, True)
        if status != training.PAUSED:
            return status
    return training.PAUSED


@numba.njit
def _spoil(scratch):
    """Set all bits of a worker's scratch buffers: -1 as an integer, NaN as a float of any width."""
    memory = int64_at(scratch.d)
    for i in range((scratch.x_sums - scratch.d) // 8):
        memory[i] = -1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fit_tasks_in_random_order_give_the_same_bits(case, dtype, monkeypatch):
    expected = case.trained(dtype)
    monkeypatch.setattr(border, "train", _train_in_random_order)
    assert_same_run(case.trained(dtype), expected)
    assert _train_in_random_order.signatures  # it was called


@pytest.mark.parametrize("budget", ["one task", "random", "everything"])
def test_fit_any_chunks_give_the_same_bits(case, budget, monkeypatch):
    expected = case.trained()
    rng = np.random.default_rng(0)
    budgets = {"one task": lambda: 1, "random": lambda: int(10 ** rng.uniform(3, 8)), "everything": lambda: 10**15}
    monkeypatch.setattr(Pace, "budget", lambda self, seconds_left=None: budgets[budget]())
    assert_same_run(case.trained(), expected)


def test_loss_and_grad_any_chunks_give_the_same_bits(case, monkeypatch):
    model = case.trainer().model
    expected_loss, expected_grad = model.loss(case.x, case.y), model.loss_and_grad(case.x, case.y)
    expected_prediction = model.predict(case.x)
    monkeypatch.setattr(Pace, "budget", lambda self, seconds_left=None: 1)
    assert model.loss(case.x, case.y) == expected_loss
    loss, grad = model.loss_and_grad(case.x, case.y)
    assert (loss, bits(grad)) == (expected_grad[0], bits(expected_grad[1]))
    assert bits(model.predict(case.x)) == bits(expected_prediction)


def in_pieces(case, cuts, is_pickled):
    """A trainer that has been stopped after each number of steps in `cuts`, and pickled there."""
    trainer = case.trainer()
    for stop in [*cuts, case.n_steps]:
        if stop > trainer.n_steps:
            case.fit(trainer, stop - trainer.n_steps)
        if is_pickled:
            trainer = pickle.loads(pickle.dumps(trainer))
    return trainer


@pytest.mark.parametrize("is_pickled", [False, True])
def test_fit_stopped_after_every_step_gives_the_same_bits(case, is_pickled):
    assert_same_run(in_pieces(case, range(1, case.n_steps), is_pickled), case.trained())


@pytest.mark.parametrize("name", SMALL)
@given(cuts=st.lists(st.integers(1, 39), max_size=5), is_pickled=st.booleans())
@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
def test_fit_stopped_anywhere_gives_the_same_bits(name, cuts, is_pickled):
    case = CASES[name]
    assert_same_run(in_pieces(case, sorted(min(cut, case.n_steps - 1) for cut in cuts), is_pickled), case.trained())


def test_fit_epochs_or_steps_give_the_same_bits():
    case = CASES["tiny"]  # 9 steps an epoch
    by_epochs = case.trainer()
    by_epochs.fit(case.x, case.y, epochs=4)
    assert_same_run(case.fit(case.trainer(), 36), by_epochs)


def digest(name, dtype):
    """A hash of all that a run leaves behind."""
    case = CASES[name]
    trainer = case.trained(dtype)
    record = repr((rows_of(trainer.history), trainer.model.loss(case.x, case.y))).encode()
    return hashlib.sha256(b"".join(state_of(trainer)) + bits(trainer.model.predict(case.x)) + record).hexdigest()


def test_fit_in_another_process_gives_the_same_bits():
    names = ["tiny", "several blocks", "several tiles"]
    code = f"import test_bits; print(*(test_bits.digest(name, 'float32') for name in {names}))"
    environment = {"cwd": Path(__file__).parent, "capture_output": True, "text": True, "check": True}
    package = str(Path(fastbp.__file__).parents[1])
    process = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {package!r}); {code}"], **environment
    )
    assert process.stdout.split() == [digest(name, "float32") for name in names]


PREDICTED_ROWS = [0, 1, 7, 8, 9, 15, 16, 31, 32, 33, 63, 127, 128, 129, 255, 256, 257, 299]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("output", ["identity", "softmax", "sigmoid"])
@pytest.mark.parametrize(
    ("sizes", "activation"),
    [
        ((3, 5, 4), "tanh"),
        ((33, 17, 1, 2), "gelu"),
        ((7, 40, 33), "elu"),
        ((2, 9), "relu"),
        ((300, 600, 600, 10), "silu"),
        ((300, 600, 600, 10), "relu"),
        ((900, 301, 5), "softplus"),
        ((1024, 5), "tanh"),
        ((1025, 40), "tanh"),
        ((7, 1537, 2000, 3), "gelu"),
        ((7, 1537, 2000, 3), "relu"),
    ],
)
def test_predict_of_one_sample_or_of_many_gives_the_same_bits(sizes, activation, output, dtype):
    model = fastbp.MLP(sizes, activation, output, seed=2, dtype=dtype)
    x = np.random.default_rng(0).normal(size=(300, sizes[0]))
    expected = model.predict(x)
    for row in PREDICTED_ROWS:
        assert bits(model.predict(x[row : row + 1])) == bits(expected[row])
    for n in PREDICTED_ROWS[1:]:
        assert bits(model.predict(x[:n])) == bits(expected[:n])
        assert bits(model.predict(x[n:])) == bits(expected[n:])


@pytest.mark.parametrize("name", SMALL)
def test_fit_other_seeds_differ(name):
    case = CASES[name]
    runs = {bits(case.fit(case.trainer(seed=seed)).model.params) for seed in range(20)}
    assert len(runs) == 20
    models = {bits(fastbp.MLP(case.sizes, seed=seed).params) for seed in range(20)}
    assert len(models) == 20


def test_fit_each_epoch_has_its_own_order():
    # With a rate of 1 and one weight per sample, a step sets its sample's weight to a number that tells the step.
    n = 12
    model = fastbp.MLP([n, 1], init=np.zeros(n + 1), dtype="float64")
    orders = []
    trainer = fastbp.Trainer(model, optimizer=fastbp.SGD(0.5), batch_size=1, seed=0)
    for _ in range(5):
        order = []
        for _ in range(n):
            before = model.params[:n].copy()
            trainer.fit(np.eye(n), np.arange(1.0, n + 1), epochs=None, max_steps=1)
            (changed,) = np.flatnonzero(model.params[:n] != before)
            order.append(int(changed))
        assert sorted(order) == list(range(n))
        orders.append(tuple(order))
    assert len(set(orders)) == 5
