import pickle

import pytest

from fastbp.stopping import Convergence, EarlyStopping, StopRule, TargetLoss, TimeLimit, check_rules

RULES = [Convergence(), EarlyStopping(), TargetLoss(0.1), TimeLimit(3)]


def test_rules_have_the_documented_defaults():
    assert Convergence() == Convergence(tol=1e-4, patience=10)
    assert EarlyStopping() == EarlyStopping(patience=10, min_delta=0.0, restore_best=True)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_check_rules_one_rule_gives_a_tuple(rule):
    assert isinstance(rule, StopRule)
    assert check_rules(rule) == (rule,)


def test_check_rules_iterables_give_tuples():
    assert check_rules(()) == ()
    assert check_rules(RULES) == tuple(RULES)
    assert check_rules(rule for rule in RULES) == tuple(RULES)


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        (None, "stop must be a stop rule such as .*, got None"),
        (5, "stop must be a stop rule such as .*, got 5"),
        (EarlyStopping, "stop must be a stop rule"),
        ([TargetLoss(0.1), EarlyStopping], "got <class .*> as entry 1"),
        (["early"], "got 'early' as entry 0"),
        ("early", "got .early."),
    ],
)
def test_check_rules_no_rule_raises_type_error(stop, message):
    with pytest.raises(TypeError, match=message):
        check_rules(stop)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Convergence(tol=-1.0), "tol must be a finite number >= 0, got -1.0"),
        (lambda: Convergence(patience=0), "patience must be a positive integer, got 0"),
        (lambda: EarlyStopping(patience=-1), "patience must be a positive integer, got -1"),
        (lambda: EarlyStopping(min_delta=float("nan")), "min_delta must be a finite number >= 0, got nan"),
        (lambda: TargetLoss(float("inf")), "value must be a finite number, got inf"),
        (lambda: TimeLimit(0), "seconds must be a finite number > 0, got 0"),
    ],
)
def test_rule_bad_value_raises_value_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Convergence(patience=2.0), "patience must be a positive integer, got 2.0 of type float"),
        (lambda: EarlyStopping(restore_best=1), "restore_best must be a bool, got 1 of type int"),
        (lambda: TargetLoss("low"), "value must be a finite number, got 'low' of type str"),
    ],
)
def test_rule_bad_type_raises_type_error(make, message):
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_rule_pickled_is_equal(rule):
    assert pickle.loads(pickle.dumps(rule)) == rule
