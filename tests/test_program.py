"""Nothing outside the buffers is touched, whatever the sizes; and nothing that is read was left there by chance."""

import numpy as np
import pytest

import fastbp
from cases import ACTIVATIONS, OPTIMIZERS
from fastbp import program
from guards import guarded, needs_guard_pages
from problems import bits, state_of
from reference import OF_ERRORS
from ways import lists_anything, training_plan

DTYPES = ["float32", "float64"]
SHAPES = [
    ((1, 1), 1, 1),
    ((3, 5, 4), 7, 3),
    ((7, 33, 1), 33, 9),
    ((2, 8, 3, 7), 40, 17),
    ((33, 7, 9), 130, 129),
    ((5, 3), 300, 300),
    ((9, 2, 5), 1100, 1061),
    ((40, 300, 131, 10), 150, 70),
    ((300, 601, 599, 3), 290, 261),
    ((1025, 33, 1100), 50, 33),
    ((3, 1300, 1601, 3), 80, 70),
]
PATTERNS = [0x00, 0xA5, 0xFF]  # the last is NaN as a float, -1 as an integer


class Arenas:
    """Fills every program's memory with a pattern when it is allocated, and keeps it to look at later."""

    def __init__(self, monkeypatch, pattern):
        self.pattern, self._arenas = pattern, []
        allocate = program._Arena.allocate

        def allocate_filled(arena):
            base = allocate(arena)
            arena.memory[:] = pattern
            self._arenas.append(arena)
            return base

        monkeypatch.setattr(program._Arena, "allocate", allocate_filled)

    def assert_gaps_are_untouched(self):
        assert self._arenas
        for arena in self._arenas:
            gaps = arena.memory[arena.gaps()]
            assert gaps.size > 0
            assert (gaps == self.pattern).all()


def data(sizes, n_samples, loss="mse"):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n_samples, sizes[0])).astype(np.float32)
    if loss == "cross_entropy":
        return x, rng.integers(0, sizes[-1], n_samples)
    if loss == "binary_cross_entropy":
        return x, rng.integers(0, 2, (n_samples, sizes[-1]))
    return x, rng.normal(size=(n_samples, sizes[-1])).astype(np.float32)


def use_everything(model, x, y, batch_size, **options):
    """Train, evaluate, differentiate and predict; return all results as bytes."""
    trainer = fastbp.Trainer(model, batch_size=batch_size, seed=1, **options)
    trainer.fit(x, y, epochs=2)
    loss, grad = model.loss_and_grad(x, y)
    step_loss = trainer.step(x, y)
    numbers = np.array([model.loss(x, y), loss, step_loss])
    assert np.isfinite(numbers).all()
    return state_of(trainer), bits(numbers), bits(grad), bits(model.predict(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("sizes", "n_samples", "batch_size"), SHAPES)
def test_program_gaps_are_untouched_and_contents_do_not_matter(sizes, n_samples, batch_size, dtype, monkeypatch):
    x, y = data(sizes, n_samples)
    results = []
    for pattern in PATTERNS:
        with monkeypatch.context() as patch:
            arenas = Arenas(patch, pattern)
            model = fastbp.MLP(sizes, "gelu", seed=0, dtype=dtype)
            results.append(use_everything(model, x, y, batch_size, optimizer=fastbp.AdamW(weight_decay=0.1)))
            arenas.assert_gaps_are_untouched()
    assert results[0] == results[1] == results[2]


# Both with lists of what is not zero: in every product, and in the gradient alone, of several super-blocks.
SKIPPING = [
    ((300, 600, 601, 35), 290, 261),
    ((193, 353, 97, 33), 1100, 1061),
    ((40, 1300, 1601, 35), 80, 70),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [0.0, 30.0])
@pytest.mark.parametrize(("sizes", "n_samples", "batch_size"), SKIPPING)
def test_program_gaps_are_untouched_where_zeros_are_skipped(sizes, n_samples, batch_size, bias, dtype, monkeypatch):
    x, y = data(sizes, n_samples)
    results = []
    for pattern in PATTERNS:
        with monkeypatch.context() as patch:
            arenas = Arenas(patch, pattern)
            model = fastbp.MLP(sizes, "relu", "relu", seed=0, dtype=dtype)
            for biases in model.biases:
                biases[:] = bias
            assert lists_anything(model, batch_size)
            results.append(use_everything(model, x, y, batch_size))
            arenas.assert_gaps_are_untouched()
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [*ACTIVATIONS, "softmax"])
def test_program_gaps_are_untouched_by_any_activation_and_loss(activation, dtype, monkeypatch):
    losses = ["cross_entropy"] if activation == "softmax" else list(OF_ERRORS)
    if activation == "sigmoid":
        losses.append("binary_cross_entropy")
    for loss in losses:
        for n_samples, batch_size in ((1, 1), (33, 7), (45, 45)):
            x, y = data((3, 7, 5), n_samples, loss)
            results = []
            for pattern in (0x00, 0xFF):
                with monkeypatch.context() as patch:
                    arenas = Arenas(patch, pattern)
                    hidden = activation if activation in ACTIVATIONS else "tanh"
                    model = fastbp.MLP((3, 7, 5), hidden, activation, loss=loss, seed=0, dtype=dtype)
                    results.append(use_everything(model, x, y, batch_size))
                    arenas.assert_gaps_are_untouched()
            assert results[0] == results[1]


def place(trainer, elsewhere):
    """Move a trainer's moments, and its model's parameters, to where `elsewhere` copies them."""
    network, own = trainer.model._network, trainer._run.buffers
    network.params = own.params = elsewhere(network.params)
    network.programs = program.Programs(network.architecture, network.params, network.scaling)
    own.moments = elsewhere(own.moments)


def guard_state(trainer, at_start):
    """Put a trainer's buffers, and its model's parameters, beside guard pages."""
    place(trainer, lambda array: guarded(array, at_start))


@needs_guard_pages
@pytest.mark.parametrize("at_start", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: type(optimizer).__name__)
def test_fit_touches_no_byte_beside_parameters_and_moments(optimizer, dtype, at_start):
    for sizes, n_samples, batch_size in SHAPES[:-1]:
        x, y = data(sizes, n_samples)
        expected = fastbp.Trainer(
            fastbp.MLP(sizes, "tanh", seed=0, dtype=dtype), optimizer=optimizer, batch_size=batch_size, seed=1
        )
        actual = fastbp.Trainer(
            fastbp.MLP(sizes, "tanh", seed=0, dtype=dtype), optimizer=optimizer, batch_size=batch_size, seed=1
        )
        guard_state(actual, at_start)
        for trainer in (expected, actual):
            trainer.fit(x, y, epochs=1)
            trainer.step(x, y)
        assert state_of(actual) == state_of(expected)


def guarded_view(array, view, at_start):
    """The same values with the memory order that `view` names, beside a guard page."""
    match view:
        case "F":
            return guarded(array.T, at_start).T
        case "rows reversed":
            return guarded(array[::-1], at_start)[::-1]
        case "columns reversed":
            return guarded(array[:, ::-1], at_start)[:, ::-1]
        case "every second row":
            return guarded(np.repeat(array, 2, axis=0)[:-1], at_start)[::2]
        case _:
            return guarded(array, at_start)


@needs_guard_pages
@pytest.mark.parametrize("at_start", [False, True])
@pytest.mark.parametrize("view", ["C", "F", "rows reversed", "columns reversed", "every second row"])
@pytest.mark.parametrize("source", ["float32", "float64", "float16", "int8", "bool"])
def test_fit_and_predict_read_no_byte_beside_the_data(source, view, at_start):
    for sizes, n_samples, batch_size in SHAPES[:6]:
        x, y = (np.round(array).astype(source) for array in data(sizes, n_samples))
        x_guarded, y_guarded = guarded_view(x, view, at_start), guarded_view(y, view, at_start)
        out = guarded(np.full((n_samples, sizes[-1]), np.nan, np.float32), at_start)
        expected = fastbp.MLP(sizes, seed=0)
        actual = fastbp.MLP(sizes, seed=0)
        results = use_everything(expected, x, y, batch_size)
        assert use_everything(actual, x_guarded, y_guarded, batch_size) == results
        assert actual.predict(x_guarded, out=out) is out
        assert bits(out) == results[-1]
        assert bits(x_guarded) == bits(x)
        assert bits(y_guarded) == bits(y)


@needs_guard_pages
@pytest.mark.parametrize("at_start", [False, True])
@pytest.mark.parametrize("source", ["uint8", "int16", "int64", "uint64"])
def test_fit_reads_no_byte_beside_labels(source, at_start):
    for n_samples, batch_size in ((1, 1), (7, 3), (45, 33), (300, 300)):
        x, y = data((3, 5, 4), n_samples, "cross_entropy")
        y = y.astype(source)
        for labels in (y, y[:, np.newaxis]):
            expected = use_everything(fastbp.MLP([3, 5, 4], output="softmax", seed=0), x, labels, batch_size)
            model = fastbp.MLP([3, 5, 4], output="softmax", seed=0)
            assert use_everything(model, x, guarded(labels, at_start), batch_size) == expected


def test_fit_keeps_what_lies_around_the_arrays():
    # The same without guard pages: every array is a view of a larger one that is full of canaries.
    sizes, n_samples, canary = (7, 9, 3), 37, 123.0
    x, y = data(sizes, n_samples)
    surroundings = []

    def embedded(array):
        around = np.full(array.size + 64, canary, array.dtype)
        inside = around[32 : 32 + array.size].reshape(array.shape)
        inside[...] = array
        surroundings.append(around)
        return inside

    trainer = fastbp.Trainer(fastbp.MLP(sizes, seed=0), batch_size=10, seed=0)
    place(trainer, embedded)
    x, y, out = embedded(x), embedded(y), embedded(np.empty((n_samples, 3), np.float32))
    x.flags.writeable = y.flags.writeable = False
    trainer.fit(x, y, epochs=3)
    trainer.model.predict(x, out=out)
    for around in surroundings:
        assert (around[:32] == canary).all()
        assert (around[-32:] == canary).all()


def test_program_is_bounded_by_the_super_block_not_by_the_batch():
    model = fastbp.MLP([10, 20, 5], seed=0)
    sizes = [
        program.Program(training_plan(model, n_samples), model.params, model._network.scaling)._arena.memory.nbytes
        for n_samples in (1, 1024, 5000, 10**9)
    ]
    # Several super-blocks need room for sums that are not in the gradient yet.
    assert sizes[0] < sizes[1] < sizes[2] == sizes[3]
