"""Activations, losses and update rules that users write themselves."""

import copy
import math
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

import fastbp
from fastbp import _jit, elementary, embed
from problems import bits

DTYPES = ("float32", "float64")


@njit
def tanh(z):
    return math.tanh(z)


@njit
def tanh_derivative(z, h):
    return 1.0 - h**2


@njit
def gelu(z):
    return 0.5 * z * (1.0 + elementary.erf(0.7071067811865476 * z))


@njit
def gelu_derivative(z, h):
    return 0.5 * (1.0 + elementary.erf(0.7071067811865476 * z)) + z * 0.3989422804014327 * np.exp(-0.5 * z * z)


@njit
def leaky_relu(z):
    return max(z, 0.01 * z)


@njit
def leaky_relu_derivative(z, h):
    return elementary.where(h > 0.0, 1.0, 0.01 + 0.0 * h)


@njit
def leaky_relu_by_branches(z):
    if z > 0.0:
        return z
    return 0.01 * z


@njit
def leaky_relu_derivative_by_branches(z, h):
    if h > 0.0:
        return 1.0
    return 0.01


@njit
def sine(z):
    return math.sin(z)


@njit
def sine_derivative(z, h):
    return math.cos(z)


@njit
def square(e):
    return e * e


@njit
def mse(output, y):
    return square(output - y)


@njit
def mse_derivative(output, y):
    return 2.0 * (output - y)


@njit
def log_cosh(output, y):
    e = abs(output - y)
    return e + elementary.log1p(elementary.exp(-2.0 * e)) - math.log(2.0)


@njit
def log_cosh_derivative(output, y):
    return elementary.tanh(output - y)


@njit
def sgd(p, g, moments, numbers):
    return p - numbers[0] * g, ()


@njit
def momentum(p, g, moments, numbers):
    rate, decay = numbers
    b = decay * moments[0] + g
    return p - rate * b, (b,)


@njit
def adam(p, g, moments, numbers):
    rate, beta1, beta2, eps = numbers
    m, v = moments
    m, v = beta1 * m + (1.0 - beta1) * g, beta2 * v + (1.0 - beta2) * g * g
    return p - rate * m / (np.sqrt(v) + eps), (m, v)


@njit
def adam_coefficients(rate, t, hyperparameters):
    beta1, beta2, eps = hyperparameters
    root = math.sqrt(1.0 - beta2**t)
    return rate * root / (1.0 - beta1**t), eps * root


@njit
def adam_of_coefficients(p, g, moments, numbers):
    rate, eps, beta1, beta2, _ = numbers
    return adam(p, g, moments, (rate, beta1, beta2, eps))


@njit
def momentum_by_branches(p, g, moments, numbers):
    rate, decay = numbers
    b = decay * moments[0] + g
    if b > 0.0:
        change = -rate * b
    else:
        change = rate * -b
    return p + change, (b,)


ACTIVATIONS = {
    "tanh": fastbp.Activation("own_tanh", tanh, tanh_derivative),
    "gelu": fastbp.Activation("own_gelu", gelu, gelu_derivative),
    "leaky_relu": fastbp.Activation("own_leaky_relu", leaky_relu, leaky_relu_derivative),
}
BY_BRANCHES = fastbp.Activation("branches", leaky_relu_by_branches, leaky_relu_derivative_by_branches)
SINE = fastbp.Activation("sine", sine, sine_derivative)
LOSSES = {
    "mse": fastbp.Loss("own_mse", mse, mse_derivative),
    "log_cosh": fastbp.Loss("own_log_cosh", log_cosh, log_cosh_derivative),
}
RULES = (
    (fastbp.SGD(0.05), fastbp.UpdateRule("own_sgd", 0, sgd, 0.05)),
    (fastbp.SGD(0.05, momentum=0.9), fastbp.UpdateRule("own_momentum", 1, momentum, 0.05, (0.9,))),
    (fastbp.SGD(0.05, momentum=0.9), fastbp.UpdateRule("branches", 1, momentum_by_branches, 0.05, (0.9,))),
    (
        fastbp.Adam(0.01),
        fastbp.UpdateRule("own_adam", 2, adam_of_coefficients, 0.01, (0.9, 0.999, 1e-8), adam_coefficients),
    ),
)


def data(n=37):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 3))
    return x, np.stack([np.sin(x[:, 0]), x[:, 1] * x[:, 2]], axis=1)


def model(activation="tanh", loss="mse", dtype="float64", sizes=(3, 7, 5, 2), output="identity"):
    return fastbp.MLP(sizes, activation, output, loss=loss, dtype=dtype, seed=0, init="glorot_uniform")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("sizes", [(3, 7, 5, 2), (3, 300, 200, 2)])
def test_own_activation_does_what_fastbps_of_the_same_formula_does(name, dtype, sizes):
    x, y = data()
    own, known = (model(each, dtype=dtype, sizes=sizes, output=each) for each in (ACTIVATIONS[name], name))
    tolerance = {"float32": 2e-5, "float64": 1e-12}[dtype]
    np.testing.assert_allclose(own.predict(x), known.predict(x), rtol=tolerance, atol=tolerance)
    (loss, grad), (known_loss, known_grad) = own.loss_and_grad(x, y), known.loss_and_grad(x, y)
    assert loss == pytest.approx(known_loss, rel=tolerance)
    np.testing.assert_allclose(grad, known_grad, rtol=100 * tolerance, atol=tolerance)
    t = np.ones_like(x)
    np.testing.assert_allclose(own.jvp(x, t), known.jvp(x, t), rtol=100 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_formula_with_branches_is_that_without(dtype):
    x, y = data()
    one, other = (model(each, dtype=dtype) for each in (BY_BRANCHES, ACTIVATIONS["leaky_relu"]))
    np.testing.assert_allclose(one.predict(x), other.predict(x), rtol=1e-6)
    np.testing.assert_allclose(one.loss_and_grad(x, y)[1], other.loss_and_grad(x, y)[1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_own_loss_is_fastbps_of_the_same_formula(name, weighted, dtype):
    x, y = data(300)
    weights = np.random.default_rng(1).uniform(0, 2, 300) if weighted else None
    (loss, grad), (known, known_grad) = (
        model(loss=each, dtype=dtype).loss_and_grad(x, y, weights) for each in (LOSSES[name], name)
    )
    tolerance = {"float32": 1e-5, "float64": 1e-12}[dtype]
    assert loss == pytest.approx(known, rel=tolerance)
    np.testing.assert_allclose(grad, known_grad, rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("known", "own"), RULES, ids=lambda rule: repr(rule)[:30])
def test_own_rule_is_fastbps_of_the_same_formula(known, own, dtype):
    x, y = data(50)
    params = []
    for optimizer in (known, own):
        net = model(dtype=dtype)
        net.fit(x, y, epochs=10, batch_size=5, optimizer=optimizer, seed=0)  # 100 steps
        params.append(net.params)
    rtol, atol = {"float32": (2e-3, 1e-4), "float64": (1e-10, 1e-12)}[dtype]
    np.testing.assert_allclose(*params, rtol=rtol, atol=atol)


@njit
def step(learner, x, y):
    return embed.train_step(learner, x, y)


def test_everything_of_ones_own_has_the_same_bits_for_any_threads_chunks_and_doors():
    x, y = (np.ascontiguousarray(part, np.float32) for part in data(200))
    batches = [slice(start, start + 50) for start in range(0, 200, 50)] * 2
    params = []
    for way in ("one thread", "two threads", "steps", "pickled", "embedded"):
        net = model(SINE, LOSSES["log_cosh"], "float32", (3, 200, 150, 2))
        trainer = fastbp.Trainer(
            net,
            optimizer=RULES[-1][1],
            regularize=[fastbp.Dropout(0.1)],
            batch_size=50,
            shuffle=False,
            threads=2 if way == "two threads" else 1,
            seed=0,
        )
        if way == "steps":
            for batch in batches:
                trainer.step(x[batch], y[batch])
        elif way == "pickled":
            trainer.fit(x, y, epochs=1)
            trainer = pickle.loads(pickle.dumps(trainer))
            trainer.fit(x, y, epochs=1)
        elif way == "embedded":
            learner = trainer.compiled(50)
            assert [step(learner, x[batch], y[batch]) for batch in batches] == [embed.OK] * 8
        else:
            trainer.fit(x, y, epochs=2)
        params.append(bits(trainer.model.params))
    assert all(np.array_equal(params[0], other) for other in params[1:])


def test_gradients_of_ones_own_are_exact():
    x, y = data(20)
    for activation in (*ACTIVATIONS.values(), BY_BRANCHES, SINE):
        for loss in LOSSES.values():
            report = fastbp.check_gradient(model(activation, loss, "float32"), x, y)
            assert report, str(report)


@njit
def wrong_derivative(z, h):
    return 1.0 - h


def test_report_of_a_wrong_gradient_says_so():
    x, y = data(20)
    wrong = fastbp.Activation("wrong", tanh, wrong_derivative, check=False)
    report = fastbp.check_gradient(model(wrong), x, y, n_per_layer=10)
    assert not report
    rows = {name: (n, n_wrong) for name, n, n_wrong, _ in report.rows}
    assert rows["weights[2]"] == (10, 0)  # behind the last activation all is right
    assert rows["weights[0]"] == (10, 10)
    assert str(report).endswith("The gradient is WRONG.")
    assert fastbp.check_gradient(model("relu", "mae"), x, y), "a kink is no mistake"
    with pytest.raises(TypeError, match="model must be an MLP, got int"):
        fastbp.check_gradient(3, x, y)


def test_values_equal_pickles_and_copies_are_by_reference():
    for thing in (*ACTIVATIONS.values(), *LOSSES.values(), *[own for _, own in RULES]):
        again = pickle.loads(pickle.dumps(thing))
        assert again == thing
        assert again.f is thing.f
        assert copy.deepcopy(thing) is thing
        assert copy.copy(thing) is thing
        assert len(pickle.dumps(thing)) < 700

    @njit
    def inside(z):
        return z

    @njit
    def inside_derivative(z, h):
        return 1.0

    local = fastbp.Activation("local", inside, inside_derivative)
    with pytest.raises(pickle.PicklingError, match="define it at the top of a module"):
        pickle.dumps(local)
    assert copy.deepcopy(model(local)).predict(data()[0]).shape == (37, 2)


NOT_PLAIN = pytest.mark.skipif(_jit.IS_PLAIN, reason="a C function does not tell what it has raised")


@njit
def raising(z):
    if z > 100.0:
        raise ValueError
    return z


@njit
def recursive(z):
    return recursive_too(z)


@njit
def recursive_too(z):
    return recursive(z)


@njit
def identity(z):
    return z


@njit
def one(z, h):
    return 1.0


@njit
def text(z):
    return "a"


@njit
def blowing_up(z):
    return np.log(z)


@njit
def inverse(z, h):
    return 1.0 / z


@njit
def negative_power(z):
    return z**-3


@njit
def negative_power_derivative(z, h):
    return -3.0 * z**-4


@njit
def over_the_end(p, g, moments, numbers):
    return p - numbers[3] * g, ()


@njit
def complex_number(z):
    return 1j * z


@njit
def no_moments(p, g, moments, numbers):
    return p - numbers[0] * g


@njit
def five(rate, t, hyperparameters):
    return rate, rate, rate, rate, rate


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fastbp.Activation("a", abs, one), TypeError, r"f of Activation 'a' must be a function \(z\) made by"),
        (
            lambda: fastbp.Activation("a", identity, identity),
            TypeError,
            r"df .* must be a function \(z, h\).*one of \(z",
        ),
        (lambda: fastbp.Activation("a", identity, tanh_derivative), ValueError, r"df is .* at z = .*f changes by 1"),
        (lambda: fastbp.Activation("a", raising, one), TypeError, "raising must not raise exceptions"),
        pytest.param(
            lambda: fastbp.Activation("a", negative_power, negative_power_derivative),
            TypeError,
            "0 to a negative power",
            marks=NOT_PLAIN,
        ),
        pytest.param(
            lambda: fastbp.UpdateRule("r", 0, over_the_end), TypeError, "an index out of range", marks=NOT_PLAIN
        ),
        (lambda: fastbp.Activation("a", complex_number, one), TypeError, "it must return a number, got complex128"),
        (lambda: fastbp.Activation("a", recursive, one), TypeError, "recursive must not call itself"),
        (lambda: fastbp.Activation("a", text, one), TypeError, "f or df of Activation 'a'"),
        (lambda: fastbp.Activation("a", blowing_up, inverse), ValueError, "at z = -5.1273 it is nan"),
        (lambda: fastbp.Activation("relu", identity, one), ValueError, "must be none of fastbp's own, got 'relu'"),
        (lambda: fastbp.Activation("my relu", identity, one), ValueError, "such as a variable may be called"),
        (lambda: fastbp.Activation("a", identity, one, "magic"), ValueError, "initializer must be one of"),
        (lambda: fastbp.Loss("mse", mse, mse_derivative), ValueError, "must be none of fastbp's own, got 'mse'"),
        (lambda: fastbp.Loss("l", mse, mse), ValueError, "Loss 'l' at y = -1.7311: df is"),
        (lambda: fastbp.UpdateRule("r", 1, sgd), TypeError, "must return a parameter and a tuple of 1 moments"),
        (lambda: fastbp.UpdateRule("r", 0, no_moments), TypeError, "must return a parameter and a tuple of 0 moments"),
        (lambda: fastbp.UpdateRule("r", -1, sgd), ValueError, "n_moments must be a non-negative integer"),
        (lambda: fastbp.UpdateRule("r", 0, sgd, coefficients=five), TypeError, "must return a tuple of 1 to 4 numbers"),
        (lambda: fastbp.UpdateRule("r", 0, sgd, hyperparameters=0.1), TypeError, "must be a tuple of at most 16"),
        (lambda: fastbp.UpdateRule("r", 0, sgd, hyperparameters=(math.nan,)), ValueError, r"hyperparameters\[0\] must"),
        (lambda: fastbp.UpdateRule("adam", 0, sgd), ValueError, "must be none of fastbp's own"),
        (lambda: fastbp.UpdateRule("r", 0, sgd, -0.1), ValueError, "learning_rate"),
        (lambda: model(output="softmax", loss=LOSSES["mse"]), ValueError, "must be 'cross_entropy', got 'own_mse'"),
    ],
)
def test_wrong_functions_are_refused_when_they_are_handed_over(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_surrogate_derivative_may_be_meant():
    with pytest.raises(ValueError, match="check=False if that is meant"):
        fastbp.Activation("straight_through", leaky_relu, one)
    x, y = data()
    surrogate = fastbp.Activation("straight_through", leaky_relu, one, check=False)
    expected = model("identity").loss_and_grad(x, y)[1]
    net = model(surrogate)
    assert np.abs(net.loss_and_grad(x, y)[1] - expected).max() > 0
    assert not fastbp.check_gradient(net, x, y)


@pytest.mark.skipif(_jit.IS_PLAIN, reason="nothing is kept on disk")
def test_code_of_ones_own_is_kept_on_disk_unless_something_in_it_has_changed(tmp_path):
    program = """
        import math
        from numba import njit
        import fastbp
        from fastbp import _jit, elementary, embed
        SLOPE = {slope}
        @njit
        def helper(z):
            return SLOPE * z
        @njit
        def f(z):
            return helper(z) + elementary.tanh(z)
        @njit
        def df(z, h):
            return SLOPE + 1.0 - elementary.tanh(z) ** 2
        @njit
        def rule(p, g, moments, numbers):
            return p - numbers[0] * g, ()
        model = fastbp.MLP([2, 3, 1], fastbp.Activation("own", f, df), seed=0)
        model.fit([[1, 2]], [1], epochs=1, optimizer=fastbp.UpdateRule("own", 0, rule))
        print(_jit.n_compiled())
    """

    def n_compiled(slope):
        path = tmp_path / "program.py"
        path.write_text(textwrap.dedent(program.format(slope=slope)))
        return int(subprocess.run([sys.executable, path], capture_output=True, text=True, check=True).stdout)

    one, other = np.random.default_rng().uniform(0.1, 0.9, 2).tolist()  # which no run before has had
    assert n_compiled(one) > 0
    assert n_compiled(one) == 0
    assert n_compiled(other) > 0
    assert n_compiled(other) == n_compiled(one) == 0


NUMBERS = st.floats(-50, 50, width=32)


@settings(max_examples=300)
@given(NUMBERS, st.sampled_from(["exp", "expm1", "log1p", "tanh", "erf", "sqrt", "log", "floor"]))
def test_elementary_functions_are_those_of_math(x, name):
    function, exact = getattr(elementary, name), getattr(math, name)
    if name in ("sqrt", "log", "log1p"):
        x = abs(x)
    if name == "log" and x == 0.0:
        assert function(x) == -math.inf
        return
    assert function(x) == pytest.approx(exact(x), rel=1e-14, abs=1e-300)


@given(NUMBERS, NUMBERS)
def test_elementary_choices_are_those_of_python(x, y):
    assert elementary.maximum(x, y) == max(x, y)
    assert elementary.minimum(x, y) == min(x, y)
    assert elementary.absolute(x) == abs(x)
    assert elementary.copysign(x, y) == math.copysign(x, y)
    assert elementary.where(x > y, x, y) == max(x, y)
    assert elementary.sigmoid(x) == pytest.approx(1 / (1 + math.exp(-x)), rel=1e-14)
    assert elementary.softplus(x) == pytest.approx(math.log1p(math.exp(x)), rel=1e-13)


@pytest.mark.parametrize("nesterov", [True, False, None])
def test_rules_of_scikit_learn_are_scikit_learns(nesterov):
    from sklearn.neural_network import _stochastic_optimizers as theirs

    from fastbp import sklearn_rules

    x, y = data(40)
    net = model()
    twin = model()
    params = [np.array(net.params)]
    if nesterov is None:
        rule, their = sklearn_rules.sklearn_adam(0.01), theirs.AdamOptimizer(params, 0.01)
    else:
        rule = sklearn_rules.sklearn_sgd(0.05, 0.8, nesterov)
        their = theirs.SGDOptimizer(params, 0.05, momentum=0.8, nesterov=nesterov)
    trainer = fastbp.Trainer(net, optimizer=rule, seed=0)
    for _ in range(100):
        twin.params = params[0]
        their.update_params(params, [twin.loss_and_grad(x, y)[1]])
        trainer.step(x, y)
    np.testing.assert_allclose(net.params, params[0], rtol=1e-10, atol=1e-12)
