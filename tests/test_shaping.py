"""What shapes a step beside its optimizer, against the naive twin: penalties, noise, clipping, averages, factors."""

import copy
import math
import pickle

import numpy as np
import pytest
from scipy import stats

import fastbp
import reference
from fastbp import Trainer
from fastbp.kernels.tables import GROUP
from fastbp.shaping import Group

SIZES = {"one task": (5, 9, 3), "tiles": (5, 190, 80, 3)}  # the latter has more than `plan.SMALL_NETWORK` parameters
SEED, RATE = 7, 0.05


def data(n_samples, n_out=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n_samples, 5)), rng.normal(size=(n_samples, n_out))


class Twin:
    """Steps of gradient descent with everything that may shape them, as the documentation says."""

    def __init__(self, sizes, params, output="identity", loss="mse", optimizer=reference.sgd, **options):
        self.sizes, self.params, self.output, self.loss = sizes, params.copy(), output, loss
        self.optimizer, self.options = optimizer, {"learning_rate": RATE} | options
        self.state, self.n_steps, self.average = {}, 0, None
        self.l1 = self.l2 = self.smoothing = self.noise = self.input_rate = self.rate = 0.0
        self.biases, self.per_batch = False, False
        self.clip_norm = self.clip_value = self.max_norm = math.inf
        self.ema, self.rate_factors = None, None

    def masks(self, n):
        rates = [self.input_rate] + [self.rate] * (len(self.sizes) - 2)
        return [
            reference.dropout_mask(SEED, self.n_steps, layer, n, self.sizes[layer], rate)
            for layer, rate in enumerate(rates)
        ]

    def step(self, x, y):
        n = len(x)
        x = x + self.noise * reference.normal_noise(SEED, self.n_steps, n, x.shape[1])
        if self.smoothing:
            n_classes = self.sizes[-1] if self.output == "softmax" else 2
            y = reference.smoothed(reference.targets(y, self.loss, self.sizes[-1]), self.smoothing, n_classes)
        loss, grads = reference.loss_and_grad(
            self.sizes, "tanh", self.output, self.loss, self.params, x, y, self.masks(n)
        )
        part = n if self.per_batch else 1
        penalty, slope = reference.penalty(self.sizes, self.params, self.l1 / part, self.l2 / part, self.biases)
        grads = reference.clipped(grads + slope, self.clip_norm, self.clip_value)
        before, self.params = self.params, self.optimizer(self.params, grads, self.state, **self.options)
        if self.rate_factors is not None:
            factors = np.zeros_like(before)
            for (w, b), (of_w, of_b) in zip(reference.unpack(self.sizes, factors), self.rate_factors, strict=True):
                w[...], b[...] = of_w, of_b
            self.params = before + factors * (self.params - before)
        if self.max_norm < math.inf:
            self.params = reference.max_norm(self.sizes, self.params, self.max_norm)
        if self.ema is not None:
            first = self.params if self.average is None else self.average
            self.average = self.ema * first + (1 - self.ema) * self.params
        self.n_steps += 1
        return loss + penalty


CASES = {
    "L2": ({"regularize": fastbp.L2(0.3)}, {"l2": 0.3}),
    "L2 of biases, by batch": (
        {"regularize": fastbp.L2(9.0, biases=True, per_batch=True)},
        {"l2": 9.0, "biases": True, "per_batch": True},
    ),
    "L1": ({"regularize": [fastbp.L1(0.02)]}, {"l1": 0.02}),
    "MaxNorm": ({"regularize": fastbp.MaxNorm(0.6)}, {"max_norm": 0.6}),
    "Dropout": ({"regularize": fastbp.Dropout(0.4, input_rate=0.2)}, {"rate": 0.4, "input_rate": 0.2}),
    "InputNoise": ({"regularize": fastbp.InputNoise(0.3)}, {"noise": 0.3}),
    "clip_norm": ({"clip_norm": 0.2}, {"clip_norm": 0.2}),
    "clip_value": ({"clip_value": 0.01}, {"clip_value": 0.01}),
    "ema": ({"ema": 0.8}, {"ema": 0.8}),
    "all": (
        {
            "regularize": [
                fastbp.L2(0.1),
                fastbp.L1(0.01),
                fastbp.MaxNorm(0.9),
                fastbp.Dropout(0.3),
                fastbp.InputNoise(0.1),
            ],
            "clip_norm": 0.5,
            "clip_value": 0.1,
            "ema": 0.9,
        },
        {"l2": 0.1, "l1": 0.01, "max_norm": 0.9, "rate": 0.3, "noise": 0.1, "clip_norm": 0.5, "clip_value": 0.1}
        | {"ema": 0.9},
    ),
}  # fmt: skip


def twin_of(model, twin_options, **options):
    twin = Twin(model.sizes, model.params, **options)
    vars(twin).update(twin_options)
    return twin


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(("options", "twin_options"), CASES.values(), ids=CASES)
def test_steps_of_batches_large_and_small_are_the_twins(sizes, options, twin_options):
    model = fastbp.MLP(sizes, "tanh", dtype="float64", seed=0)
    twin = twin_of(model, twin_options)
    trainer = Trainer(model, optimizer=fastbp.SGD(RATE), seed=SEED, **options)
    for n, n_steps in ((7, 97), (1, 1), (300, 1), (1100, 1)):
        x, y = data(n)
        for _ in range(n_steps):
            assert trainer.step(x, y) == pytest.approx(twin.step(x, y), rel=1e-9)
    np.testing.assert_allclose(model.params, twin.params, rtol=1e-10, atol=1e-10)
    if twin.average is not None:
        np.testing.assert_allclose(trainer.ema_params, twin.average, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(
    ("optimizer", "twin", "options"),
    [
        (fastbp.SGD(RATE), reference.sgd, {}),
        (fastbp.SGD(RATE, momentum=0.9), reference.sgd, {"momentum": 0.9}),
        (fastbp.AdamW(RATE, weight_decay=0.5, decay_biases=True), reference.adamw, {"weight_decay": 0.5}),
    ],
    ids=["SGD", "momentum", "AdamW"],
)
def test_rate_factors_multiply_each_layers_learning_rates_and_zero_freezes(sizes, optimizer, twin, options):
    factors = [(1.0, 0.1), (0.0, 1.5), (0.3, 0.0)][: len(sizes) - 1]
    model = fastbp.MLP(sizes, "tanh", dtype="float64", seed=0)
    expected = twin_of(model, {"rate_factors": factors}, optimizer=twin, **options)
    trainer = Trainer(model, optimizer=optimizer, seed=SEED, rate_factors=factors)
    x, y = data(20)
    frozen = model.weights[1].copy()
    for _ in range(30):
        trainer.step(x, y)
        expected.step(x, y)
    np.testing.assert_allclose(model.params, expected.params, rtol=1e-10, atol=1e-12)
    assert model.weights[1].tobytes() == frozen.tobytes()


@pytest.mark.parametrize(("output", "loss"), [("softmax", "cross_entropy"), ("sigmoid", "binary_cross_entropy")])
def test_label_smoothing_is_in_the_training_loss_alone(output, loss):
    x, _ = data(20)
    y = np.arange(20) % 3 if output == "softmax" else (x[:, :3] > 0).astype(float)
    model = fastbp.MLP((5, 8, 3), "tanh", output, dtype="float64", seed=0)
    twin = twin_of(model, {"smoothing": 0.2}, output=output, loss=loss)
    trainer = Trainer(model, optimizer=fastbp.SGD(RATE), seed=SEED, regularize=fastbp.LabelSmoothing(0.2))
    for _ in range(100):
        assert trainer.step(x, y) == pytest.approx(twin.step(x, y), rel=1e-10)
    np.testing.assert_allclose(model.params, twin.params, rtol=1e-10)
    unsmoothed = reference.loss(model.sizes, "tanh", output, loss, model.params, x, y)
    assert model.loss(x, y) == pytest.approx(unsmoothed, rel=1e-12)


def test_penalties_of_some_layers_leave_the_others_alone_and_add_up():
    x, y = data(20)
    model = fastbp.MLP((5, 6, 4, 3), "tanh", dtype="float64", seed=0)
    plain = model.loss_and_grad(x, y)[1]
    params = model.params.copy()
    regularize = [fastbp.L2(0.1, layers=[-1]), fastbp.L2(0.2, layers=[0, -1]), fastbp.L1(0.3, layers=[1])]
    Trainer(model, optimizer=fastbp.SGD(1.0), regularize=regularize).step(x, y)
    expected = params - plain
    for (w, _), (before, _), rates in zip(
        reference.unpack(model.sizes, expected),
        reference.unpack(model.sizes, params),
        [(0.2, 0), (0, 0.3), (0.3, 0)],
        strict=True,
    ):
        w -= rates[0] * before + rates[1] * np.sign(before)
    np.testing.assert_allclose(model.params, expected, rtol=1e-12, atol=1e-13)


def test_l1_has_no_slope_at_zero():
    model = fastbp.MLP((3, 2), init=np.zeros(8), dtype="float64")
    Trainer(model, optimizer=fastbp.SGD(1.0), regularize=fastbp.L1(0.5)).step(np.zeros((4, 3)), np.zeros((4, 2)))
    assert not model.params.any()


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_gradient_with_penalties_is_the_derivative_of_the_training_loss(sizes):
    """Against central differences, in some directions."""
    x, y = data(12)
    options = {"regularize": [fastbp.L2(0.3, biases=True), fastbp.L1(0.1), fastbp.Dropout(0.3)], "seed": SEED}
    model = fastbp.MLP(sizes, "tanh", dtype="float64", seed=0)
    params = model.params.copy()

    def loss_at(at):
        model.params[:] = at
        return Trainer(model, optimizer=fastbp.SGD(1e-300), **options).step(x, y)

    model.params[:] = params
    Trainer(model, optimizer=fastbp.SGD(1.0), **options).step(x, y)
    gradient = params - model.params
    rng = np.random.default_rng(1)
    for _ in range(5):
        direction = rng.normal(size=params.size)
        h = 1e-6
        slope = (loss_at(params + h * direction) - loss_at(params - h * direction)) / (2 * h)
        assert gradient @ direction == pytest.approx(slope, rel=1e-6)


def test_dropout_leaves_the_wanted_share_independently_in_steps_samples_and_units():
    masks = np.array([reference.dropout_mask(1, step, 2, 200, 150, 0.3) > 0 for step in range(40)])
    n = masks.size
    assert abs(masks.mean() - 0.7) < 4 * math.sqrt(0.21 / n)
    centred = (masks - 0.7) / math.sqrt(0.21)
    for axis in range(3):  # correlation of neighbours: normal, of variance 1 / n
        first, second = (
            centred.take(range(centred.shape[axis] - 1), axis),
            centred.take(range(1, centred.shape[axis]), axis),
        )
        assert abs((first * second).mean()) < 4 / math.sqrt(first.size)
    for axes, count in (((0, 1), 40 * 200), ((0, 2), 40 * 150), ((1, 2), 200 * 150)):
        means = masks.mean(axis=axes)
        assert ((means - 0.7) ** 2).mean() == pytest.approx(0.21 / count, rel=0.6)


def test_noise_is_standard_normal():
    noise = np.array([reference.normal_noise(3, step, 100, 50) for step in range(20)])
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    for axis in range(3):
        first = noise.take(range(noise.shape[axis] - 1), axis)
        second = noise.take(range(1, noise.shape[axis]), axis)
        assert abs((first * second).mean()) < 4 / math.sqrt(first.size)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_everything_at_once_has_the_same_bits_for_any_threads_cuts_doors_and_pickles(sizes, dtype):
    options = CASES["all"][0] | {"seed": SEED, "batch_size": 64, "shuffle": False, "use_ema": True}
    options["rate_factors"] = [(1.0, 0.1)] * (len(sizes) - 1)
    x, y = (array.astype(dtype) for array in data(448))

    def trainer(threads=1):
        return Trainer(fastbp.MLP(sizes, "tanh", dtype=dtype, seed=0), threads=threads, **options)

    whole = trainer()
    whole.fit(x, y, epochs=2)
    threaded = trainer(threads=2)
    threaded.fit(x, y, epochs=2)
    assert threaded.model.params.tobytes() == whole.model.params.tobytes()
    cut = trainer()
    for n_steps in (1, 3, 7, 3):
        cut.fit(x, y, max_steps=n_steps, epochs=None)
        cut = pickle.loads(pickle.dumps(cut)) if n_steps == 3 else copy.deepcopy(cut)
    assert cut.model.params.tobytes() == whole.model.params.tobytes()
    assert cut.history.loss.tobytes() == whole.history.loss.tobytes()
    stepped = trainer()
    for _ in range(2):
        for start in range(0, 448, 64):
            stepped.step(x[start : start + 64], y[start : start + 64])
    assert stepped.ema_params.tobytes() == whole.ema_params.tobytes() == whole.model.params.tobytes()


def test_ema_is_what_validation_sees_and_the_run_goes_on_from_its_own_parameters():
    x, y = data(64)
    options = {"optimizer": fastbp.Adam(0.05), "batch_size": 16, "seed": SEED}

    def trainer(**more):
        return Trainer(fastbp.MLP((5, 8, 3), "tanh", dtype="float64", seed=0), **options, **more)

    raw = trainer()
    raw.fit(x, y, epochs=6)
    averaged = trainer(ema=0.9, use_ema=True)
    for _ in range(3):
        averaged.fit(x, y, epochs=2, validation_data=(x, y), metrics={"twice": lambda y, p: 2 * np.mean((p - y) ** 2)})
        assert averaged.model.params.tobytes() == averaged.ema_params.tobytes()
        assert averaged.history.validation_loss[-1] == averaged.model.loss(x, y)
        assert averaged.history["twice"][-1] == pytest.approx(2 * averaged.model.loss(x, y))
    assert averaged.history.loss.tobytes() == raw.history.loss.tobytes()
    unused = trainer(ema=0.9)
    unused.fit(x, y, epochs=6, validation_data=(x, y))
    assert unused.model.params.tobytes() == raw.model.params.tobytes()
    assert unused.ema_params.tobytes() == averaged.ema_params.tobytes()
    # A step goes on from the run's own parameters too.
    averaged.step(x, y)
    raw.step(x, y)
    assert averaged.model.params.tobytes() == raw.model.params.tobytes()


def test_ema_interrupted_in_a_metric_loses_nothing():
    x, y = data(64)

    def trainer():
        return Trainer(fastbp.MLP((5, 8, 3), seed=0), seed=SEED, ema=0.9, use_ema=True)

    def fails(y, prediction):
        raise ZeroDivisionError

    whole, broken = trainer(), trainer()
    whole.fit(x, y, epochs=4)
    with pytest.raises(ZeroDivisionError):
        broken.fit(x, y, epochs=4, validation_data=(x, y), metrics={"fails": fails})
    assert broken.n_steps == 2  # of the first epoch
    broken.fit(x, y, epochs=3)
    assert broken.model.params.tobytes() == whole.model.params.tobytes()
    assert broken.history.loss.tobytes() == whole.history.loss.tobytes()


def test_early_stopping_goes_back_to_the_best_average():
    x, y = data(64)
    trainer = Trainer(fastbp.MLP((5, 16, 3), seed=0), optimizer=fastbp.Adam(0.05), seed=1, ema=0.5, use_ema=True)
    history = trainer.fit(x, y, epochs=60, validation_data=data(64, seed=9), stop=fastbp.EarlyStopping(5))
    assert history.stop_reason == "EarlyStopping"
    assert trainer.model.loss(*data(64, seed=9)) == pytest.approx(np.nanmin(history.validation_loss), rel=1e-6)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_norm_that_is_not_finite_is_a_divergence_before_the_step(sizes):
    x, _ = data(8)
    model = fastbp.MLP(sizes, "identity", dtype="float32", seed=0)
    params = model.params.copy()
    trainer = Trainer(model, clip_norm=1.0, batch_size=8)
    huge = np.full((8, 3), 1e17)  # a finite loss, and a gradient whose square is not
    x = x * 1e3
    with pytest.raises(fastbp.DivergenceError, match="norm of the gradient is not finite in step 0"):
        trainer.fit(x, huge, epochs=1)
    assert model.params.tobytes() == params.tobytes()
    with pytest.raises(fastbp.DivergenceError, match="norm of the gradient"):
        trainer.step(x.astype("float32"), huge.astype("float32"))
    assert model.params.tobytes() == params.tobytes()
    assert trainer.n_steps == 0
    trainer.step(*data(8))
    assert trainer.n_steps == 1


def test_groups_are_written_in_the_tables_order():
    assert Group._fields == GROUP.names


WRONG = [
    ({"regularize": "L2"}, TypeError, "regularize must be a regularizer such as"),
    ({"regularize": 3}, TypeError, "regularize must be a regularizer such as"),
    ({"regularize": [fastbp.L2(0.1), fastbp.Adam()]}, TypeError, "as entry 1"),
    ({"regularize": fastbp.L2(0.1, layers=[2])}, ValueError, r"layers of L2 must be in \[-2, 1\]"),
    ({"regularize": fastbp.Dropout(0.1, layers=[1])}, ValueError, r"layers of Dropout must be in \[-1, 0\]"),
    ({"regularize": fastbp.LabelSmoothing(0.1)}, ValueError, "LabelSmoothing needs classes"),
    ({"clip_norm": 0}, ValueError, "clip_norm must be a finite number > 0, got 0"),
    ({"clip_norm": math.nan}, ValueError, "clip_norm"),
    ({"clip_value": -1.0}, ValueError, "clip_value must be a finite number > 0"),
    ({"ema": 1.0}, ValueError, "ema must be a finite number >= 0 and < 1"),
    ({"ema": "0.9"}, TypeError, "ema must be"),
    ({"use_ema": True}, ValueError, "use_ema=True needs an average"),
    ({"use_ema": 1, "ema": 0.9}, TypeError, "use_ema must be a bool"),
    ({"rate_factors": 0.1}, TypeError, "rate_factors must be a sequence of 2 pairs"),
    ({"rate_factors": [(1, 1)]}, ValueError, "rate_factors must be a sequence of 2 pairs"),
    ({"rate_factors": [(1, 1), (1, 1, 1)]}, ValueError, "rate_factors must be a sequence of 2 pairs"),
    ({"rate_factors": [(1, 1), (1, -1)]}, ValueError, r"rate_factors\[1\]\[1\] must be a finite number >= 0"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
def test_wrong_options_are_refused_before_anything_happens(options, error, message):
    model = fastbp.MLP((5, 4, 3), seed=0)
    params = model.params.copy()
    with pytest.raises(error, match=message):
        Trainer(model, **options)
    with pytest.raises(error, match=message):
        model.fit(*data(8), **options)
    assert model.params.tobytes() == params.tobytes()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fastbp.L2(-1), ValueError, "rate must be a finite number >= 0"),
        (lambda: fastbp.L1(math.inf), ValueError, "rate must be a finite number >= 0"),
        (lambda: fastbp.L2(1, biases=1), TypeError, "biases must be a bool"),
        (lambda: fastbp.L2(1, layers=[]), ValueError, "layers must name at least one layer"),
        (lambda: fastbp.L2(1, layers=0), TypeError, "layers must be None or a sequence"),
        (lambda: fastbp.L2(1, layers=[0.5]), TypeError, r"layers\[0\] must be an integer"),
        (lambda: fastbp.MaxNorm(0), ValueError, "value must be a finite number > 0"),
        (lambda: fastbp.Dropout(1), ValueError, "rate must be a finite number >= 0 and < 1"),
        (lambda: fastbp.Dropout(0, input_rate=1.5), ValueError, "input_rate must be"),
        (lambda: fastbp.InputNoise(-0.1), ValueError, "std must be a finite number >= 0"),
        (lambda: fastbp.LabelSmoothing(1.0), ValueError, "rate must be a finite number >= 0 and < 1"),
    ],
)
def test_regularizers_with_wrong_numbers_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_dropout_of_hidden_units_needs_some():
    with pytest.raises(ValueError, match="this model has none"):
        Trainer(fastbp.MLP((3, 1)), regularize=fastbp.Dropout(0.5))
    Trainer(fastbp.MLP((3, 1)), regularize=fastbp.Dropout(0.0, input_rate=0.5))
