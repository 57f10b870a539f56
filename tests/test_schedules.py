import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastbp import schedules
from fastbp.checks import MAX_STEP
from fastbp.schedules import (
    CosineDecay,
    CosineRestarts,
    CosLog,
    ExponentialDecay,
    InverseSqrtDecay,
    OneCycle,
    PolynomialDecay,
    StepDecay,
    Warmup,
    check_learning_rate,
    sample,
)
from shown import shown

SCHEDULES = [
    StepDecay(0.1, 0.5, 7),
    ExponentialDecay(0.1, 0.97),
    CosineDecay(0.1, 50, final=0.01),
    PolynomialDecay(0.1, 50, power=2.0, final=0.01),
    InverseSqrtDecay(0.1, 20),
    OneCycle(0.1, 60),
    Warmup(13, 0.1),
    Warmup(13, CosineDecay(0.1, 50)),
    Warmup(13, lambda step: 0.1 / (1 + step)),
]
STEPS = st.integers(0, 10**9)
RATES = st.floats(1e-8, 10.0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=shown)
def test_call_array_of_steps_equals_single_steps_to_the_bit(schedule):
    steps = np.arange(100).reshape(4, 25)

    actual = schedule(steps)

    assert actual.dtype == np.float64
    assert actual.shape == steps.shape
    np.testing.assert_array_equal(actual, [[schedule(step) for step in row] for row in steps.tolist()])


@given(st.sampled_from(SCHEDULES), st.integers(0, 200), st.integers(1, 100), st.integers(1, 99))
def test_sample_cut_anywhere_gives_the_same_bits(schedule, first_step, n_steps, cut):
    cut = min(cut, n_steps)

    whole = sample(schedule, first_step, n_steps)
    parts = [sample(schedule, first_step, cut), sample(schedule, first_step + cut, n_steps - cut)]

    np.testing.assert_array_equal(np.concatenate(parts), whole)


@given(RATES, st.integers(1, 10**6), STEPS)
def test_decays_any_step_stay_within_initial_and_final(initial, steps, step):
    slack = 4 * np.finfo(np.float64).eps * initial
    for schedule in (
        StepDecay(initial, 0.5, steps),
        ExponentialDecay(initial, 0.999),
        CosineDecay(initial, steps),
        PolynomialDecay(initial, steps),
        InverseSqrtDecay(initial, steps),
        OneCycle(initial, steps),
        CosineRestarts(initial, steps),
        CosineRestarts(initial, steps, factor=3),
        CosLog(initial, steps),
        Warmup(steps, initial),
    ):
        assert 0.0 <= schedule(step) <= initial + slack


def test_step_decay_values_by_hand():
    schedule = StepDecay(0.4, 0.5, 3)

    assert [schedule(step) for step in (0, 2, 3, 5, 6)] == [0.4, 0.4, 0.2, 0.2, 0.1]


def test_decays_after_the_last_step_stay_at_final():
    for schedule in (CosineDecay(0.1, 10, final=0.02), PolynomialDecay(0.1, 10, power=3.0, final=0.02)):
        assert schedule(0) == pytest.approx(0.1, rel=1e-15)
        assert schedule(10) == schedule(11) == schedule(10**9) == 0.02


def test_one_cycle_after_the_last_step_stays_at_final():
    schedule = OneCycle(0.5, 100)

    assert schedule(0) == pytest.approx(0.5 / 25, rel=1e-14)
    assert schedule(29) == 0.5
    assert schedule(99) == schedule(100) == schedule(10**6) == 0.5 / 25 / 1e4


@given(st.integers(1, 8))
def test_one_cycle_few_steps_ends_at_final(steps):
    assert OneCycle(1.0, steps)(steps - 1) == 1.0 / 25 / 1e4


def test_coslog_is_realmlps():
    """Holzmüller et al. 2024: coslog4."""
    t = np.arange(1000) / 1000

    np.testing.assert_allclose(
        CosLog(0.3, 1000)(np.arange(1000)), 0.15 * (1 - np.cos(2 * np.pi * np.log2(1 + 15 * t))), rtol=1e-9, atol=1e-12
    )
    assert CosLog(0.3, 1000)(10**9) == 0.0


def test_cosine_restarts_of_any_step_take_no_time_and_no_memory():
    assert CosineRestarts(0.1, 3, factor=2)(3 * (2**40 - 1)) == 0.1
    assert CosineRestarts(0.1, 3)(3 * 10**15) == 0.1


def test_warmup_rises_linearly_from_zero_then_restarts_the_step():
    warmup = Warmup(4, StepDecay(0.8, 0.5, 2))

    assert [warmup(step) for step in range(9)] == [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 0.8, 0.4, 0.4, 0.2]


def test_warmup_then_inverse_sqrt_is_the_transformers():
    n_warmup, peak = 40, 0.3
    steps = np.arange(1, 1000)

    actual = Warmup(n_warmup, InverseSqrtDecay(peak, n_warmup))(steps)

    expected = peak * math.sqrt(n_warmup) * np.minimum(steps**-0.5, steps * n_warmup**-1.5)
    np.testing.assert_allclose(actual, expected, rtol=1e-14)


def test_warmup_then_callable_is_called_with_its_own_steps():
    seen = []

    def then(step):
        seen.append(step)
        return 0.1

    sample(Warmup(3, then), 3, 4)

    assert seen == [0, 1, 2, 3]
    assert all(type(step) is int for step in seen)


def torch_values(make_scheduler, learning_rate, n_steps):
    """Return the learning rates of PyTorch's scheduler in its own order: optimizer step, then scheduler step."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=learning_rate)
    scheduler = make_scheduler(torch.optim.lr_scheduler, optimizer)
    values = []
    for _ in range(n_steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


@pytest.mark.parametrize(
    ("schedule", "make_scheduler"),
    [
        (StepDecay(0.1, 0.7, 9), lambda lr, optimizer: lr.StepLR(optimizer, step_size=9, gamma=0.7)),
        (ExponentialDecay(0.1, 0.95), lambda lr, optimizer: lr.ExponentialLR(optimizer, gamma=0.95)),
        (CosineDecay(0.1, 60, 0.01), lambda lr, optimizer: lr.CosineAnnealingLR(optimizer, T_max=60, eta_min=0.01)),
        (PolynomialDecay(0.1, 50, 2.0), lambda lr, optimizer: lr.PolynomialLR(optimizer, total_iters=50, power=2.0)),
        (CosineRestarts(0.1, 20), lambda lr, optimizer: lr.CosineAnnealingWarmRestarts(optimizer, T_0=20)),
        (
            CosineRestarts(0.1, 7, factor=2, final=0.01),
            lambda lr, optimizer: lr.CosineAnnealingWarmRestarts(optimizer, T_0=7, T_mult=2, eta_min=0.01),
        ),
        (
            OneCycle(0.1, 60),
            lambda lr, optimizer: lr.OneCycleLR(optimizer, max_lr=0.1, total_steps=60, cycle_momentum=False),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_schedule_equals_pytorchs(schedule, make_scheduler):
    expected = torch_values(make_scheduler, 0.1, 60)

    actual = schedule(np.arange(60))

    # PyTorch multiplies its way along (relative rounding grows with the step) where we use the closed form.
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 10])
def test_one_cycle_few_steps_equals_pytorchs(steps):
    expected = torch_values(
        lambda lr, optimizer: lr.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps, cycle_momentum=False), 0.1, steps
    )

    np.testing.assert_allclose(OneCycle(0.1, steps)(np.arange(steps)), expected, rtol=1e-12)


def test_sample_number_fills():
    np.testing.assert_array_equal(sample(0.25, 10, 3), [0.25, 0.25, 0.25])


def test_sample_callable_is_called_once_per_step_with_python_ints():
    seen = []

    def rate(step):
        seen.append(step)
        return np.float32(0.5)

    actual = sample(rate, 5, 3)

    assert seen == [5, 6, 7]
    assert all(type(step) is int for step in seen)
    assert actual.dtype == np.float64


def test_sample_zero_dimensional_arrays_are_numbers():
    np.testing.assert_array_equal(sample(lambda step: np.array(step, dtype=np.float32), 0, 3), [0.0, 1.0, 2.0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1e-3])
def test_sample_bad_value_raises_value_error_naming_step(bad):
    with pytest.raises(ValueError, match=rf"finite and >= 0 at every step, got {bad} at step 12"):
        sample(lambda step: bad if step == 12 else 0.1, 10, 5)


@pytest.mark.parametrize("bad", [None, "0.1", 1j, [0.1], np.array([0.1]), True])
def test_sample_no_float_raises_type_error_naming_step(bad):
    with pytest.raises(TypeError, match=r"learning_rate must return a float, got .* at step 3"):
        sample(lambda step: bad, 3, 1)


def test_sample_subclass_is_asked_for_one_step_after_the_other_whatever_it_says_of_itself():
    class Impostor(CosineDecay):
        def __call__(self, step):
            return 0.5 if isinstance(step, int) else np.zeros(0)

    Impostor.__module__ = CosineDecay.__module__

    np.testing.assert_array_equal(sample(Impostor(0.1, 10), 0, 3), [0.5, 0.5, 0.5])


def test_sample_errors_of_the_callable_pass_through():
    with pytest.raises(ZeroDivisionError):
        sample(lambda step: 1 / step, 0, 1)


def test_call_bad_step_raises():
    schedule = StepDecay(0.1, 0.5, 3)
    with pytest.raises(TypeError, match=r"step must be a non-negative integer, got 1.0"):
        schedule(1.0)
    with pytest.raises(TypeError, match="array of integers, got dtype float64"):
        schedule(np.array([1.0]))
    with pytest.raises(ValueError, match="step must be >= 0, got -1"):
        schedule(np.array([3, -1]))
    with pytest.raises(ValueError, match="step must be a non-negative integer, got -1"):
        schedule(-1)


ANY_RATE = st.floats(0.0, 1e300, exclude_min=True)
ANY_FRACTION = st.floats(0.0, 1.0, exclude_min=True)
ANY_LENGTH = st.integers(1, MAX_STEP)
ANY_SCHEDULE = st.one_of(
    st.builds(StepDecay, ANY_RATE, ANY_FRACTION, ANY_LENGTH),
    st.builds(ExponentialDecay, ANY_RATE, ANY_FRACTION),
    st.builds(CosineDecay, ANY_RATE, ANY_LENGTH, ANY_RATE),
    st.builds(PolynomialDecay, ANY_RATE, ANY_LENGTH, ANY_RATE, ANY_RATE),
    st.builds(InverseSqrtDecay, ANY_RATE, ANY_LENGTH),
    st.builds(OneCycle, ANY_RATE, ANY_LENGTH),
)


@given(
    st.one_of(ANY_SCHEDULE, st.builds(Warmup, ANY_LENGTH, st.one_of(ANY_RATE, ANY_SCHEDULE))),
    st.one_of(st.integers(0, 10), st.integers(0, MAX_STEP - 100)),
    st.sampled_from(["raise", "warn", "call"]),
)
def test_any_legal_schedule_gives_rates_silently_under_any_errstate(schedule, first_step, state):
    def unexpected(kind, flag):
        raise AssertionError(f"NumPy reported {kind}")

    with np.errstate(all=state, call=unexpected):
        rates = sample(schedule, first_step, 5)
        assert schedule(first_step) == rates[0]
        schedule(MAX_STEP)


def test_exponential_decay_underflow_is_zero():
    assert ExponentialDecay(0.1, 0.5)(10**6) == 0.0


@pytest.mark.parametrize("steps", [2**63, 2**80, 10**400, 10**5000], ids=["2**63", "2**80", "10**400", "10**5000"])
@pytest.mark.parametrize(
    "make",
    [
        lambda steps: StepDecay(0.1, 0.5, steps),
        lambda steps: CosineDecay(0.1, steps),
        lambda steps: PolynomialDecay(0.1, steps),
        lambda steps: InverseSqrtDecay(0.1, steps),
        lambda steps: OneCycle(0.1, steps),
        lambda steps: Warmup(steps, 0.1),
    ],
)
def test_schedule_over_more_steps_than_there_can_be_raises_value_error(make, steps):
    make(MAX_STEP)(MAX_STEP)
    with pytest.raises(ValueError, match=f"(steps|every) must be a positive integer <= {MAX_STEP}, got"):
        make(steps)


@pytest.mark.parametrize("step", [2**63, 10**400, np.array([0, 2**63], np.uint64)])
def test_call_step_that_there_cannot_be_raises_value_error(step):
    with pytest.raises(ValueError, match=f"step must be .*<= {MAX_STEP}, got"):
        StepDecay(0.1, 0.5, 3)(step)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StepDecay(0.0, 0.5, 3), "initial must be a finite number > 0, got 0.0"),
        (lambda: StepDecay(0.1, 1.5, 3), "factor must be a finite number > 0 and <= 1, got 1.5"),
        (lambda: StepDecay(0.1, 0.5, 0), "every must be a positive integer, got 0"),
        (lambda: ExponentialDecay(0.1, 0.0), "rate must be a finite number > 0 and <= 1"),
        (lambda: CosineDecay(math.nan, 3), "initial must be a finite number > 0, got nan"),
        (lambda: CosineDecay(0.1, -3), "steps must be a positive integer, got -3"),
        (lambda: CosineDecay(0.1, 3, -1.0), "final must be a finite number >= 0, got -1.0"),
        (lambda: PolynomialDecay(0.1, 3, 0.0), "power must be a finite number > 0"),
        (lambda: InverseSqrtDecay(0.1, 0), "steps must be a positive integer"),
        (lambda: OneCycle(math.inf, 3), "peak must be a finite number > 0, got inf"),
        (lambda: Warmup(0, 0.1), "steps must be a positive integer"),
        (lambda: Warmup(3, 0.0), "then must be a finite number > 0, got 0.0"),
        (lambda: check_learning_rate(-0.1), "learning_rate must be a finite number > 0, got -0.1"),
        (lambda: check_learning_rate(math.nan), "learning_rate must be a finite number > 0, got nan"),
    ],
)
def test_schedule_bad_value_raises_value_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StepDecay("0.1", 0.5, 3), "initial must be a finite number > 0, got '0.1' of type str"),
        (lambda: StepDecay(0.1, 0.5, 3.0), "every must be a positive integer, got 3.0 of type float"),
        (lambda: Warmup(3, None), "then must be a number, a schedule or a callable of the step, got None"),
        (lambda: check_learning_rate("fast"), "learning_rate must be a number, a schedule or a callable"),
        (lambda: check_learning_rate(True), "learning_rate must be a finite number > 0, got True of type bool"),
        (lambda: check_learning_rate(CosineDecay), "learning_rate must be a number, a schedule or a callable"),
    ],
)
def test_schedule_bad_type_raises_type_error(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_check_learning_rate_numbers_become_floats_and_callables_stay():
    assert check_learning_rate(np.float32(0.5)) == 0.5
    assert type(check_learning_rate(1)) is float
    assert check_learning_rate(math.exp) is math.exp


@pytest.mark.parametrize("schedule", SCHEDULES[:-1], ids=repr)
def test_schedule_pickled_is_equal(schedule):
    assert pickle.loads(pickle.dumps(schedule)) == schedule


def test_all_schedules_are_exported():
    assert {type(schedule).__name__ for schedule in SCHEDULES} <= set(schedules.__all__)
