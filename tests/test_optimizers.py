import dataclasses
import pickle
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastbp
from cases import OPTIMIZERS
from fastbp.optimizers import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop, check_optimizer
from fastbp.schedules import CosineDecay
from leaves import coefficients_of


@pytest.mark.parametrize(
    ("optimizer", "fields"),
    [
        (
            SGD(),
            {
                "learning_rate": 0.01,
                "momentum": 0.0,
                "nesterov": False,
                "weight_decay": 0.0,
                "decay_biases": False,
            },
        ),
        (Adagrad(), {"learning_rate": 0.01, "eps": 1e-10}),
        (RMSprop(), {"learning_rate": 0.01, "alpha": 0.99, "eps": 1e-8, "momentum": 0.0, "centered": False}),
        (
            Adam(),
            {
                "learning_rate": 1e-3,
                "beta1": 0.9,
                "beta2": 0.999,
                "eps": 1e-8,
                "amsgrad": False,
                "weight_decay": 0.0,
                "decay_biases": False,
            },
        ),
        (
            AdamW(),
            {
                "learning_rate": 1e-3,
                "beta1": 0.9,
                "beta2": 0.999,
                "eps": 1e-8,
                "weight_decay": 0.01,
                "decay_biases": False,
            },
        ),
    ],
    ids=repr,
)
def test_optimizer_has_the_documented_fields_and_defaults(optimizer, fields):
    assert isinstance(optimizer, Optimizer)
    assert list(dataclasses.asdict(optimizer).items()) == list(fields.items())


@pytest.mark.parametrize(
    ("optimizer", "moments"),
    [
        (SGD(), ()),
        (SGD(momentum=0.9), ("b",)),
        (Adagrad(), ("v",)),
        (RMSprop(), ("v",)),
        (RMSprop(momentum=0.9), ("v", "b")),
        (RMSprop(centered=True), ("v", "m")),
        (RMSprop(centered=True, momentum=0.9), ("v", "m", "b")),
        (Adam(), ("m", "v")),
        (AdamW(), ("m", "v")),
    ],
    ids=repr,
)
def test_moments_are_those_that_the_rule_needs(optimizer, moments):
    assert optimizer.moments == moments
    assert len(optimizer.moments) == len(moments)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (SGD(momentum=0.9, nesterov=True), [0.9, 1.0]),
        (Adagrad(eps=1e-6), [1e-6]),
        (RMSprop(alpha=0.75, centered=True), [0.75, 0.25, 1e-8, 0.0, 1.0]),
        (Adam(), [0.9, 1 - 0.9, 0.999, 1 - 0.999, 1e-8]),
        (AdamW(), [0.9, 1 - 0.9, 0.999, 1 - 0.999, 1e-8, 0.01]),
    ],
    ids=repr,
)
def test_constants_are_in_the_kernels_order(optimizer, expected):
    assert optimizer.constants.dtype == np.float64
    np.testing.assert_array_equal(optimizer.constants, expected)


def update(optimizer, params, grads, moments, coefficients):
    """Take one step by the docstring's formula, with nothing but the optimizer's numbers."""
    constants = optimizer.constants
    state = dict(zip(optimizer.moments, moments, strict=True))
    if isinstance(optimizer, SGD):
        momentum, nesterov = constants
        step = grads
        if "b" in state:
            state["b"][:] = momentum * state["b"] + grads
            step = grads + momentum * state["b"] if nesterov else state["b"]
        params -= coefficients[0] * step
    elif isinstance(optimizer, Adagrad):
        state["v"] += grads**2
        params -= coefficients[0] * grads / (np.sqrt(state["v"]) + constants[0])
    elif isinstance(optimizer, RMSprop):
        alpha, one_minus_alpha, eps, momentum, centered = constants
        state["v"][:] = alpha * state["v"] + one_minus_alpha * grads**2
        variance = state["v"]
        if centered:
            state["m"][:] = alpha * state["m"] + one_minus_alpha * grads
            variance = state["v"] - state["m"] ** 2
        step = grads / (np.sqrt(variance) + eps)
        if "b" in state:
            state["b"][:] = momentum * state["b"] + step
            step = state["b"]
        params -= coefficients[0] * step
    else:
        beta1, one_minus_beta1, beta2, one_minus_beta2, eps, *_ = constants
        if optimizer.rule == "adamw":
            params *= coefficients[2]
        state["m"][:] = beta1 * state["m"] + one_minus_beta1 * grads
        state["v"][:] = beta2 * state["v"] + one_minus_beta2 * grads**2
        params -= coefficients[0] * state["m"] / (np.sqrt(state["v"]) * coefficients[1] + eps)


def torch_optimizer(torch, optimizer, params):
    if isinstance(optimizer, SGD):
        options = {"momentum": optimizer.momentum, "nesterov": optimizer.nesterov}
        return torch.optim.SGD([params], lr=optimizer.learning_rate, **options)
    if isinstance(optimizer, Adagrad):
        return torch.optim.Adagrad([params], lr=optimizer.learning_rate, eps=optimizer.eps)
    if isinstance(optimizer, RMSprop):
        options = {name: getattr(optimizer, name) for name in ("alpha", "eps", "momentum", "centered")}
        return torch.optim.RMSprop([params], lr=optimizer.learning_rate, **options)
    options = {"betas": (optimizer.beta1, optimizer.beta2), "eps": optimizer.eps}
    if isinstance(optimizer, AdamW):
        return torch.optim.AdamW([params], lr=optimizer.learning_rate, weight_decay=optimizer.weight_decay, **options)
    return torch.optim.Adam([params], lr=optimizer.learning_rate, **options)


# Of the others `test_optimizer_parity.py`.
@pytest.mark.parametrize(
    "optimizer", [each for each in OPTIMIZERS if isinstance(each, (SGD, Adagrad, RMSprop, Adam, AdamW))], ids=repr
)
def test_optimizer_numbers_over_100_steps_equal_pytorchs(optimizer):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start, n_steps = rng.normal(size=20), 100
    expected = torch.tensor(start, requires_grad=True)
    rival = torch_optimizer(torch, optimizer, expected)
    actual, moments = start.copy(), np.zeros((len(optimizer.moments), start.size))

    for step in range(n_steps):
        grads = rng.normal(1.0, 1.0, size=start.size)
        expected.grad = torch.tensor(grads)
        rival.step()
        update(optimizer, actual, grads, moments, coefficients_of(optimizer, step))

    error = np.linalg.norm(actual - expected.detach().numpy()) / np.linalg.norm(actual)
    # float64 rounding over 100 steps; the centered variance cancels and loses some digits more.
    assert error < 1e-11


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(0.0), "learning_rate must be a finite number > 0, got 0.0"),
        (lambda: SGD(momentum=1.0), "momentum must be a finite number >= 0 and < 1, got 1.0"),
        (lambda: SGD(momentum=-0.1), "momentum must be a finite number >= 0 and < 1, got -0.1"),
        (lambda: SGD(nesterov=True), "nesterov=True needs momentum > 0"),
        (lambda: Adagrad(eps=0.0), "eps must be a finite number > 0, got 0.0"),
        (lambda: RMSprop(alpha=1.0), "alpha must be a finite number >= 0 and < 1, got 1.0"),
        (lambda: RMSprop(eps=-1e-8), "eps must be a finite number > 0"),
        (lambda: RMSprop(momentum=float("nan")), "momentum must be a finite number >= 0 and < 1, got nan"),
        (lambda: Adam(beta1=1.0), "beta1 must be a finite number >= 0 and < 1, got 1.0"),
        (lambda: Adam(beta2=-0.5), "beta2 must be a finite number >= 0 and < 1, got -0.5"),
        (lambda: Adam(float("inf")), "learning_rate must be a finite number > 0, got inf"),
        (lambda: AdamW(weight_decay=-0.1), "weight_decay must be a finite number >= 0, got -0.1"),
        (lambda: SGD(weight_decay=-0.1), "weight_decay must be a finite number >= 0, got -0.1"),
        (lambda: Adam(weight_decay=float("nan")), "weight_decay must be a finite number >= 0, got nan"),
        (lambda: fastbp.Adadelta(rho=1.0), "rho must be a finite number >= 0 and < 1, got 1.0"),
        (lambda: fastbp.NAdam(momentum_decay=-1), "momentum_decay must be a finite number >= 0, got -1"),
        (lambda: fastbp.Lion(beta2=1.0), "beta2 must be a finite number >= 0 and < 1, got 1.0"),
        (lambda: fastbp.ScheduleFreeAdamW(beta1=0.0), "beta1 of ScheduleFreeAdamW must be > 0, got 0.0"),
        (lambda: fastbp.ScheduleFreeAdamW(warmup_steps=-1), "warmup_steps must be a non-negative integer, got -1"),
    ],
)
def test_optimizer_bad_value_raises_value_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD("fast"), "learning_rate must be a number, a schedule or a callable of the step, got 'fast'"),
        (lambda: SGD(momentum=True), "momentum must be a finite number >= 0 and < 1, got True of type bool"),
        (lambda: SGD(momentum=0.9, nesterov=1), "nesterov must be a bool, got 1 of type int"),
        (lambda: RMSprop(centered=None), "centered must be a bool, got None"),
        (lambda: AdamW(decay_biases="no"), "decay_biases must be a bool, got 'no'"),
    ],
)
def test_optimizer_bad_type_raises_type_error(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_optimizer_schedule_is_kept():
    schedule = CosineDecay(0.1, 100)

    assert Adam(schedule).learning_rate is schedule


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_optimizer_pickled_is_equal_and_frozen(optimizer):
    assert pickle.loads(pickle.dumps(optimizer)) == optimizer
    with pytest.raises(dataclasses.FrozenInstanceError):
        optimizer.learning_rate = 1.0


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("adam", "fastbp.Adam()"),
        ("SGD", "fastbp.SGD()"),
        ("nesterov", "fastbp.SGD(momentum=0.9, nesterov=True)"),
        (Adam, "fastbp.Adam()"),
        (RMSprop, "fastbp.RMSprop()"),
    ],
)
def test_check_optimizer_names_and_classes_propose_the_optimizer(given, meant):
    with pytest.raises(TypeError, match=r"optimizer must be an optimizer such as fastbp.Adam\(\), got") as error:
        check_optimizer(given, "float32")
    assert f"(did you mean {meant}?)" in str(error.value)


@pytest.mark.parametrize("given", [None, 0.1, "zzz", dict, [Adam()]])
def test_check_optimizer_what_means_none_raises_type_error(given):
    with pytest.raises(TypeError, match=r"optimizer must be an optimizer such as fastbp.Adam\(\), got [^?]*$"):
        check_optimizer(given, "float32")


@pytest.mark.parametrize("state", ["raise", "warn", "call"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_check_optimizer_eps_is_a_normal_number_of_the_dtype(dtype, state):
    info = np.finfo(dtype)
    with np.errstate(all=state, call=unexpected):
        for eps in (float(info.tiny), float(info.max)):
            for make in (Adagrad, RMSprop, Adam, AdamW):
                assert check_optimizer(make(eps=eps), dtype).eps == eps
        for eps in (float(info.tiny) / 2, 1e300 if dtype == "float32" else 5e-324):
            with pytest.raises(
                ValueError, match=rf"eps must be in \[.*\] for a model of {dtype}, got {re.escape(repr(eps))}"
            ):
                check_optimizer(Adam(eps=eps), dtype)


def unexpected(kind, flag):
    raise AssertionError(f"NumPy reported {kind}")


ANY_RATE = st.floats(0.0, allow_infinity=False, exclude_min=True)
ANY_FRACTION = st.floats(0.0, 1.0, exclude_max=True)


@given(
    st.one_of(
        st.builds(SGD, ANY_RATE, momentum=ANY_FRACTION),
        st.builds(Adagrad, ANY_RATE, eps=ANY_RATE),
        st.builds(RMSprop, ANY_RATE, ANY_FRACTION, ANY_RATE, ANY_FRACTION, st.booleans()),
        st.builds(Adam, ANY_RATE, ANY_FRACTION, ANY_FRACTION, ANY_RATE),
        st.builds(AdamW, ANY_RATE, ANY_FRACTION, ANY_FRACTION, ANY_RATE, ANY_RATE),
    ),
    st.integers(0, 10**15),
    st.sampled_from(["raise", "warn", "call"]),
)
def test_numbers_of_any_legal_optimizer_come_silently_under_any_errstate(optimizer, first_step, state):
    with np.errstate(all=state, call=unexpected):
        coefficients, constants = coefficients_of(optimizer, first_step), optimizer.constants

    assert not np.isnan(coefficients).any()
    assert np.isfinite(constants).all()
    if not isinstance(optimizer, (Adam, AdamW)):
        assert coefficients[0] == optimizer.learning_rate
