"""Sparse inputs: everything that arrays do, with the same bits, and no dense copy of them as a whole."""

import tracemalloc

import numpy as np
import pytest

import fastbp
from fastbp import MLP, Adam, Trainer
from fastbp.sparse import SparseRows

sparse = pytest.importorskip("scipy.sparse")

SIZES = [40, 9, 2]


def data(n=90, dtype=np.float64, seed=0):
    """Sparse inputs of which one row is empty, the same as an array, and targets."""
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, 9, (n, 40)) * (rng.random((n, 40)) < 0.1)
    dense = (dense / 3 if np.dtype(dtype).kind == "f" else dense).astype(dtype)
    dense[3] = 0
    return sparse.csr_array(dense), dense, rng.normal(size=(n, 2))


def model(dtype="float32", **options):
    return MLP(SIZES, "tanh", seed=1, dtype=dtype, **options)


DTYPES = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]


@pytest.mark.parametrize("scaling", [{}, {"standardize": True, "standardize_y": True}], ids=["plain", "standardized"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("source", DTYPES)
def test_any_dtype_has_the_bits_of_the_array(source, dtype, scaling):
    x, dense, y = data(dtype=source)
    one, other = model(dtype, **scaling), model(dtype, **scaling)
    options = {"epochs": 3, "seed": 0, "optimizer": Adam(0.01), "batch_size": 16}
    first, second = one.fit(x, y, **options), other.fit(dense, y, **options)
    assert one.params.tobytes() == other.params.tobytes()
    assert first.loss.tobytes() == second.loss.tobytes()
    assert one.predict(x).tobytes() == other.predict(dense).tobytes()
    if scaling:
        assert one.x_std.tobytes() == other.x_std.tobytes()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"validation_split": 0.3},
        {"regularize": [fastbp.Dropout(0.2, input_rate=0.1), fastbp.InputNoise(0.1)]},
        {"sample_weight": np.arange(90.0)},
        {"health": 3},
        {"shuffle": 10},
    ],
    ids=["split", "noise", "weights", "health", "windows"],
)
def test_every_option_has_the_bits_of_the_array(options, threads):
    x, dense, y = data()
    one, other = model(), model()
    for each, features in ((one, x), (other, dense)):
        each.fit(features, y, epochs=3, seed=0, threads=threads, batch_size=80, **options)
    assert one.params.tobytes() == other.params.tobytes()
    if "health" in options:
        assert str(one.history.health.report()) == str(other.history.health.report())


def test_calls_of_the_model_and_single_steps_have_the_bits_of_the_array():
    x, dense, y = data()
    one, other = model(), model()
    weights = np.linspace(0.5, 2.0, len(y))
    assert one.loss(x, y) == other.loss(dense, y)
    assert one.loss(x, y, weights) == other.loss(dense, y, weights)
    for _ in range(2):
        for w in (None, weights):
            (first, gradient), (second, expected) = one.loss_and_grad(x, y, w), other.loss_and_grad(dense, y, w)
            assert first == second
            assert gradient.tobytes() == expected.tobytes()
    assert one.vjp(x, y).tobytes() == other.vjp(dense, y).tobytes()
    assert one.jvp(x, dense).tobytes() == other.jvp(dense, dense).tobytes()
    assert one.jacobian(x[:5]).tobytes() == other.jacobian(dense[:5]).tobytes()
    assert one.predict(x, threads=2).tobytes() == other.predict(dense).tobytes()
    first, second = Trainer(one, seed=0), Trainer(other, seed=0)
    for features, array in ((x, dense), (dense, dense), (x, dense)):
        assert first.step(features, y) == second.step(array, y)
    first.step_from(x, y)
    second.step_from(dense, y)
    assert one.params.tobytes() == other.params.tobytes()
    assert first.find_learning_rate(x, y).losses.tobytes() == second.find_learning_rate(dense, y).losses.tobytes()


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "lil", "dok", "bsr", "dia"])
@pytest.mark.parametrize("maker", ["array", "matrix"])
def test_any_format_is_read(kind, maker):
    x, dense, y = data(20)
    one, other = model(), model()
    one.fit(getattr(sparse, f"{kind}_{maker}")(x), y, epochs=1, seed=0)
    other.fit(dense, y, epochs=1, seed=0)
    assert one.params.tobytes() == other.params.tobytes()


def test_duplicates_are_added_and_unsorted_rows_read_and_the_users_matrix_stays():
    values, rows, columns = np.array([1.0, 2.0, 4.0, 8.0]), [0, 0, 0, 1], [5, 2, 5, 0]
    x = sparse.csr_matrix((values, columns, [0, 3, 4]), shape=(2, 40))
    dense = np.zeros((2, 40))
    np.add.at(dense, (rows, columns), values)
    before = x.data.tobytes(), x.indices.tobytes(), x.indptr.tobytes()
    assert model().predict(x).tobytes() == model().predict(dense).tobytes()
    assert before == (x.data.tobytes(), x.indices.tobytes(), x.indptr.tobytes())


@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_read_only_arrays_and_wide_indices(index):
    x, dense, y = data()
    x.indices, x.indptr = x.indices.astype(index), x.indptr.astype(index)
    for part in (x.data, x.indices, x.indptr):
        part.flags.writeable = False
    assert model().loss(x, y) == model().loss(dense, y)


def test_chunks_and_resumption(tmp_path):
    x, dense, y = data()
    one, other, whole, resumed = [Trainer(model(), seed=0, batch_size=16) for _ in range(4)]
    one.fit([(x[:40], y[:40]), (dense[40:], y[40:])], epochs=2)
    other.fit([(dense[:40], y[:40]), (dense[40:], y[40:])], epochs=2)
    assert one.model.params.tobytes() == other.model.params.tobytes()
    whole.fit(x, y, epochs=3)
    path = tmp_path / "run.npz"
    Trainer(model(), seed=0, batch_size=16).fit(x, y, epochs=3, max_steps=4, checkpoint=path)
    resumed.fit(x, y, epochs=3, checkpoint=path, resume=True)
    assert resumed.model.params.tobytes() == whole.model.params.tobytes()
    x.data[0] += 1
    with pytest.raises(ValueError, match="but x changed"):
        Trainer(model(), seed=0, batch_size=16).fit(x, y, epochs=9, checkpoint=path, resume=True)


def test_no_dense_copy_is_made():
    columns = np.random.default_rng(0).integers(0, 2000, 40_000)
    x = sparse.csr_array((np.ones(40_000, np.float32), (np.arange(40_000) // 2, columns)), shape=(20_000, 2000))
    y = np.zeros((20_000, 1))
    net = MLP([2000, 4, 1], seed=0)
    net.fit(x[:100], y[:100], epochs=1)
    tracemalloc.start()
    net.fit(x, y, epochs=1, batch_size=256)
    net.predict(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # of 160 MB


def broken(**parts):
    x = data()[0]
    for name, change in parts.items():
        change(getattr(x, name))
    return x


def put(place, value):
    def change(array):
        array[place] = value

    return change


BAD = {
    "width": (lambda: data()[0][:, :5], r"x must have shape \(n_samples, 40\), got \(90, 5\)"),
    "nan": (lambda: broken(data=put(7, np.nan)), "x must be finite, got nan in row "),
    "beyond": (lambda: broken(data=put(7, 1e300)), "x must be within the range of float32, got 1e.300 in row "),
    "index": (lambda: broken(indices=put(4, 40)), "x must be a whole sparse matrix, but its indptr or indices"),
    "negative": (lambda: broken(indices=put(4, -1)), "x must be a whole sparse matrix, but its indptr or indices"),
    "indptr": (lambda: broken(indptr=put(-1, 10**6)), "x must be a whole sparse matrix, but its indptr"),
    "falling": (lambda: broken(indptr=put(5, 10**4)), "x must be a whole sparse matrix, but its indptr or indices"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_matrices_are_named(name):
    make, message = BAD[name]
    y = np.zeros((90, 2))
    x = make()
    if hasattr(x, "has_canonical_format"):
        x.has_canonical_format = True  # SciPy's own look would go wrong
    net = model()
    before = net.params.tobytes()
    with pytest.raises(ValueError, match=message):
        net.fit(x, y, epochs=1)
    assert net.params.tobytes() == before


def test_where_the_value_is_that_is_not_finite():
    x = sparse.csr_array((np.array([1.0, np.inf]), ([4, 8], [3, 2])), shape=(20, 40))
    with pytest.raises(ValueError, match="got inf in row 8, column 2"):
        model().predict(x)
    model().fit(sparse.csr_array((20, 40)), np.zeros((20, 2)), epochs=1)


@pytest.mark.parametrize(
    ("act", "kind", "message"),
    [
        (lambda x, y: model().fit(x.astype(complex), y), TypeError, "x must have a bool, integer or floating dtype"),
        (lambda x, y: model().fit(x[:0], y[:0]), ValueError, "x must have at least one sample"),
        (lambda x, y: model().fit(x, sparse.csr_array(y)), TypeError, r"y must have .*\.toarray\(\)"),
        (lambda x, y: model().fit(x), TypeError, "y must be given"),
        (lambda x, y: model().predict(x, out=x.data[:4].reshape(2, 2)), ValueError, "out must have shape"),
    ],
)
def test_other_bad_input_is_named(act, kind, message):
    x, _, y = data()
    with pytest.raises(kind, match=message):
        act(x, y)


def test_indices_that_change_under_a_fit_lead_nowhere():
    x, _, y = data()
    trainer = Trainer(model(), batch_size=8, seed=0)

    def spoil(trainer, record):
        x.indices[:] = np.iinfo(x.indices.dtype).max
        x.indptr[:] = -5
        x.indptr[1::2] = np.iinfo(x.indptr.dtype).max

    trainer.fit(x, y, epochs=2, callbacks=spoil)
    assert np.isfinite(trainer.model.params).all()


def test_rows_are_as_scipys():
    x, dense, _ = data()
    rows = SparseRows(x.data, x.indices, x.indptr, 40)
    for key in (slice(0, 1), slice(None, None, 7), np.array([5, 5, 3, 0]), np.arange(90) % 3 == 0, slice(0, 0)):
        assert (rows[key].toarray() == dense[key]).all()
        assert rows[key].shape == dense[key].shape
    assert (rows.max(), rows.min(), rows.size, len(rows)) == (dense.max(), dense.min(), dense.size, 90)
