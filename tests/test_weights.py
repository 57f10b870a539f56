"""Weights of samples and classes, against repeated samples and the naive twin."""

import copy
import math
import pickle

import numba
import numpy as np
import pytest
from sklearn.metrics import accuracy_score
from sklearn.utils.class_weight import compute_sample_weight

import cases
import fastbp
import reference
from fastbp import Trainer, embed

SIZES = {"one task": (5, 9, 3), "tiles": (5, 190, 80, 3)}
OUTPUTS = {"mse": "identity", "mae": "tanh", "huber": "identity", "binary_cross_entropy": "sigmoid"} | {
    "cross_entropy": "softmax"
}


def problem(loss, n_samples, n_out=3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n_samples, 5))
    if loss == "cross_entropy":
        y = rng.integers(0, n_out, n_samples)
    elif loss == "binary_cross_entropy":
        y = rng.integers(0, 2, (n_samples, n_out)).astype(float)
    else:
        y = rng.normal(size=(n_samples, n_out))
    return x, y, rng.integers(0, 4, n_samples).astype(float)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("n", [1, 40, 1100])
@pytest.mark.parametrize(("loss", "output"), OUTPUTS.items())
def test_sample_of_weight_k_counts_as_k_samples(sizes, n, loss, output):
    x, y, w = problem(loss, n)
    w[0] = 2
    model = fastbp.MLP(sizes, "tanh", output, loss=loss, dtype="float64", seed=0)
    repeated = [np.repeat(array, w.astype(int), axis=0) for array in (x, y)]
    assert model.loss(x, y, w) == pytest.approx(model.loss(*repeated), rel=1e-12)
    value, grad = model.loss_and_grad(x, y, sample_weight=w / 7)
    expected, expected_grad = model.loss_and_grad(*repeated)
    assert value == pytest.approx(expected, rel=1e-12)
    assert cases.relative_error(grad, expected_grad) < 1e-12
    history = model.fit(x, y, sample_weight=w, epochs=1, batch_size=None, validation_data=(x, y, w))
    assert history.loss[0] == pytest.approx(expected, rel=1e-12)
    assert history.validation_loss[0] == pytest.approx(model.loss(*repeated), rel=1e-12)
    if output in ("sigmoid", "softmax"):
        prediction = model.predict(repeated[0])
        right = prediction.argmax(1) == repeated[1] if output == "softmax" else (prediction > 0.5) == repeated[1]
        assert history.validation_accuracy[0] == pytest.approx(right.mean(), rel=1e-12)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_gradient_of_weighted_samples_equals_central_differences(loss):
    x, y, w = problem(loss, 9)
    model = fastbp.MLP((5, 4, 3), "tanh", OUTPUTS[loss], loss=loss, dtype="float64", seed=0)
    params, grad = model.params.copy(), model.loss_and_grad(x, y, w + 0.5)[1]

    def loss_at(at):
        model.params[:] = at
        return model.loss(x, y, w + 0.5)

    np.testing.assert_allclose(grad, reference.central_differences(loss_at, params), rtol=1e-6, atol=1e-9)


def test_weighted_steps_are_pytorchs():
    """100 steps of Adam on sum(w * loss) / sum(w)."""
    torch = pytest.importorskip("torch")
    x, y, w = problem("cross_entropy", 64)
    model = fastbp.MLP((5, 8, 3), "tanh", "softmax", dtype="float64", seed=0)
    layers = [torch.nn.Linear(5, 8, dtype=torch.float64), torch.nn.Linear(8, 3, dtype=torch.float64)]
    for layer, weights in zip(layers, model.weights, strict=True):
        layer.weight.data[:] = torch.from_numpy(weights.T.copy())
        layer.bias.data[:] = 0
    network = torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1])
    optimizer, trainer = torch.optim.Adam(network.parameters(), 0.01), Trainer(model, optimizer=fastbp.Adam(0.01))
    for step in range(100):
        rows = np.arange(step % 5, 64, 5)
        optimizer.zero_grad()
        losses = torch.nn.functional.cross_entropy(
            network(torch.from_numpy(x[rows])), torch.from_numpy(y[rows]), reduction="none"
        )
        weights = torch.from_numpy(w[rows])
        ((losses * weights).sum() / weights.sum()).backward()
        optimizer.step()
        trainer.step(x[rows], y[rows], w[rows])
    for layer, weights, biases in zip(layers, model.weights, model.biases, strict=True):
        np.testing.assert_allclose(weights.T, layer.weight.detach().numpy(), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(biases, layer.bias.detach().numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_weighted_fit_has_the_same_bits_for_any_threads_cuts_doors_and_pickles(sizes):
    x, y, w = problem("mse", 448)
    w[64:128] = 0  # a batch that weighs nothing

    def trainer(threads=1):
        model = fastbp.MLP(sizes, "tanh", dtype="float32", seed=0)
        return Trainer(model, batch_size=64, shuffle=False, seed=3, threads=threads, regularize=fastbp.Dropout(0.2))

    whole, threaded, cut, stepped = trainer(), trainer(2), trainer(), trainer()
    whole.fit(x, y, epochs=2, sample_weight=w)
    threaded.fit(x, y, epochs=2, sample_weight=w)
    for n_steps in (1, 3, 7, 3):
        cut.fit(x, y, max_steps=n_steps, epochs=None, sample_weight=w)
        cut = pickle.loads(pickle.dumps(cut)) if n_steps == 3 else copy.deepcopy(cut)
    for _ in range(2):
        for start in range(0, 448, 64):
            rows = slice(start, start + 64)
            stepped.step(x[rows], y[rows], w[rows])
    learner = (embedded := trainer()).compiled(64)
    assert embed.train(learner, x, y, 14, w) == embed.OK
    for other in (threaded, cut, stepped, embedded):
        assert other.model.params.tobytes() == whole.model.params.tobytes()
        assert other.n_steps == 14
    assert cut.history.loss.tobytes() == threaded.history.loss.tobytes() == whole.history.loss.tobytes()


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_batch_that_weighs_nothing_counts_and_changes_nothing_else(sizes):
    x, y, _ = problem("mse", 32)
    model = fastbp.MLP(sizes, "tanh", seed=0)
    trainer = Trainer(
        model, optimizer=fastbp.AdamW(weight_decay=0.1), ema=0.9, clip_norm=1.0, regularize=fastbp.MaxNorm(0.1)
    )
    params = model.params.copy()
    assert math.isnan(trainer.step(x, y, np.zeros(32)))
    assert trainer.n_steps == 1
    assert model.params.tobytes() == params.tobytes()
    learner = trainer.compiled(32)
    assert embed.train_step(learner, x, y, np.zeros(32)) == embed.OK
    assert embed.n_steps(learner) == 2
    assert model.params.tobytes() == params.tobytes()
    # An epoch without such a batch has the same mean as with it.
    w = np.ones(32)
    w[16:] = 0
    history = Trainer(fastbp.MLP(sizes, "tanh", seed=0), batch_size=16, shuffle=False).fit(
        x, y, epochs=1, sample_weight=w
    )
    alone = Trainer(fastbp.MLP(sizes, "tanh", seed=0), batch_size=16).fit(x[:16], y[:16], epochs=1)
    assert history.loss[0] == pytest.approx(alone.loss[0], rel=1e-5)


def test_embedded_functions_take_weights_of_any_strides_and_say_what_is_wrong():
    x, y, w = problem("mse", 20)
    w += 0.25

    @numba.njit
    def step(learner, x, y, w):
        return embed.train_step(learner, x, y, weight=w)

    @numba.njit
    def gradient(learner, x, y, grad, w):
        return embed.loss_and_grad(learner, x, y, grad, w)

    trainers = [Trainer(fastbp.MLP((5, 9, 3), "tanh", dtype="float64", seed=0), seed=0) for _ in range(2)]
    learner = trainers[0].compiled(20)
    loss, expected = trainers[1].model.loss_and_grad(x, y, w)
    grad = np.empty_like(expected)
    assert gradient(learner, x, y, grad, np.repeat(w, 2)[::2]) == embed.OK
    assert grad.tobytes() == expected.tobytes()
    assert embed.loss(learner) == loss
    for weights in (w, np.repeat(w, 3)[::3], w[::-1].copy()[::-1], w.astype("float32")):
        assert step(learner, x, y, weights) == embed.OK
        trainers[1].step(x, y, weights)
        assert trainers[0].model.params.tobytes() == trainers[1].model.params.tobytes()
    before = trainers[0].model.params.copy()
    for wrong in (w[:19], np.where(np.arange(20) == 7, -1.0, w), np.where(np.arange(20) == 7, np.nan, w)):
        assert step(learner, x, y, wrong) == gradient(learner, x, y, grad, wrong) == embed.WEIGHTS
        assert embed.train(learner, x, y, 3, wrong) == embed.WEIGHTS
    assert gradient(learner, x, y, grad, np.zeros(20)) == embed.WEIGHTS
    grad[:] = 1
    assert gradient(learner, x, y, grad, grad[:20]) == embed.OVERLAP
    assert trainers[0].model.params.tobytes() == before.tobytes()
    with pytest.raises(numba.TypingError, match="weight must be an array of 1 dimension of float32 or float64"):
        step(learner, x, y, np.ones((20, 1)))


@pytest.mark.parametrize("class_weight", [{0: 2.0, 2: 0.5}, "balanced", {1: 0}])
def test_class_weights_are_scikit_learns(class_weight):
    x, y, w = problem("cross_entropy", 50)
    w += 0.5
    known = class_weight if isinstance(class_weight, str) else dict.fromkeys(range(3), 1) | class_weight
    weights = compute_sample_weight(known, y)
    models = [fastbp.MLP((5, 6, 3), "tanh", "softmax", dtype="float64", seed=0) for _ in range(2)]
    models[0].fit(x, y, epochs=3, class_weight=class_weight, sample_weight=w, seed=0)
    models[1].fit(x, y, epochs=3, sample_weight=w * weights, seed=0)
    np.testing.assert_allclose(models[0].params, models[1].params, rtol=1e-12)


def test_class_weights_of_one_sigmoid_output():
    x, y, _ = problem("binary_cross_entropy", 50, n_out=1)
    models = [fastbp.MLP((5, 6, 1), "tanh", "sigmoid", dtype="float64", seed=0) for _ in range(2)]
    models[0].fit(x, y, epochs=3, class_weight="balanced", seed=0)
    models[1].fit(x, y, epochs=3, sample_weight=compute_sample_weight("balanced", y[:, 0]), seed=0)
    np.testing.assert_allclose(models[0].params, models[1].params, rtol=1e-12)


def test_metrics_get_the_weights_of_the_validation_data():
    x, y, w = problem("cross_entropy", 60)

    def accuracy(y, prediction, sample_weight):
        return accuracy_score(y, prediction.argmax(1), sample_weight=sample_weight)

    model = fastbp.MLP((5, 6, 3), output="softmax", seed=0)
    history = model.fit(x, y, epochs=3, validation_data=(x, y, w), metrics={"weighted": accuracy})
    np.testing.assert_allclose(history["weighted"], history.validation_accuracy, rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"sample_weight": np.ones(7)},
            ValueError,
            r"sample_weight must have shape \(8,\), one for each sample, got \(7,\)",
        ),
        ({"sample_weight": np.ones((8, 1))}, ValueError, "sample_weight must have shape"),
        ({"sample_weight": "abc"}, Exception, "sample_weight"),
        (
            {"sample_weight": np.zeros(8)},
            ValueError,
            "sample_weight must leave samples a finite total weight above zero",
        ),
        (
            {"sample_weight": np.full(8, -1.0)},
            ValueError,
            "sample_weight must be finite and not negative, got -1.0 at index 0",
        ),
        ({"sample_weight": np.full(8, np.nan)}, ValueError, "sample_weight must be finite and not negative, got nan"),
        ({"sample_weight": np.full(8, np.inf)}, ValueError, "sample_weight must be finite and not negative, got inf"),
        ({"sample_weight": np.full(8, 1e308)}, ValueError, "sample_weight must leave samples a finite total weight"),
        ({"validation_data": (0, 0, np.zeros(8))}, ValueError, r"validation_data\[2\] must leave"),
        ({"validation_data": (0, 0, np.ones(9))}, ValueError, r"validation_data\[2\] must have shape \(8,\)"),
        ({"class_weight": "even"}, TypeError, "class_weight must be a dict of class: weight or 'balanced', got 'even'"),
        ({"class_weight": {3: 1.0}}, ValueError, "class_weight names class 3, but there are 3, from 0"),
        ({"class_weight": {0: -1.0}}, ValueError, r"class_weight\[0\] must be a finite number >= 0"),
        ({"class_weight": {"a": 1.0}}, TypeError, "class_weight's classes must be an integer"),
        ({"class_weight": {0: 0, 1: 0, 2: 0}}, ValueError, "class_weight must leave samples a finite total weight"),
    ],
)
def test_wrong_weights_are_refused_before_the_first_step(options, error, message):
    x, y, _ = problem("cross_entropy", 8)
    if "validation_data" in options:
        options = {"validation_data": (x, y, options["validation_data"][2])}
    trainer = Trainer(fastbp.MLP((5, 3), output="softmax", seed=0))
    with pytest.raises(error, match=message):
        trainer.fit(x, y, **options)
    with pytest.raises(error, match=message):
        trainer.model.fit(x, y, **options)
    assert trainer.n_steps == 0
    if "sample_weight" in options:
        for function in (trainer.model.loss, trainer.model.loss_and_grad):
            with pytest.raises(error, match=message):
                function(x, y, **options)


def test_class_weights_of_values_are_refused():
    x, y, _ = problem("mse", 8)
    with pytest.raises(ValueError, match="class_weight needs y as integer classes"):
        fastbp.MLP((5, 3)).fit(x, y, class_weight="balanced")
