"""Every call of a leaf passes what the leaf takes: nothing checks that when it runs, and a wrong one is a wild jump."""

import ast
import importlib
import pkgutil
from pathlib import Path

import numba
import numpy as np
import pytest
from numba import types
from numba.core import ir

import fastbp.kernels
from fastbp import _jit
from fastbp.kernels import border, calls, derivatives, overloads, training
from fastbp.kernels.activations import ACTIVATIONS
from fastbp.kernels.handles import HANDLE
from fastbp.kernels.handles import LEARNER as LEARNER_TABLE
from fastbp.kernels.losses import LOSSES
from fastbp.kernels.tables import LEAVES
from fastbp.kernels.updates import RULES, Rule
from fastbp.plan import FIELDS_OF_LEAVES

MODULES = [
    importlib.import_module(module.name) for module in pkgutil.walk_packages(fastbp.kernels.__path__, "fastbp.kernels.")
]


def handle_of(kind):
    """The type of a handle."""
    stamp = numba.from_dtype(np.dtype([(overloads.field_name(kind, "float32"), np.int64)]))
    return types.Array(stamp, 1, "C", readonly=True)


NETWORK, LEARNER, ROWS = handle_of(overloads.NETWORK_KIND), handle_of(overloads.LEARNER_KIND), types.float32[:, ::1]
ROW = types.float32[::1]
# The arguments of each function of `embed`; with a space, the same of weighted samples.
EMBEDDED = {
    "predict": (NETWORK, ROWS, ROWS),
    "_predict_sample": (NETWORK, types.float32[::1], types.float32[::1]),
    "vjp": (NETWORK, ROWS, ROWS, ROWS),
    "jvp": (NETWORK, ROWS, ROWS, ROWS),
    "train_step": (LEARNER, ROWS, ROWS, types.none),
    "train_step ": (LEARNER, ROWS, ROWS, ROW),
    "backward_step": (LEARNER, ROWS, ROWS),
    "loss_and_grad": (LEARNER, ROWS, ROWS, ROW, types.none),
    "loss_and_grad ": (LEARNER, ROWS, ROWS, ROW, ROW),
    "train": (LEARNER, ROWS, ROWS, types.intp, types.none),
    "train ": (LEARNER, ROWS, ROWS, types.intp, ROW),
    "reset": (LEARNER,),
    "set_learning_rate": (LEARNER, types.float64),
}


def all_leaves():
    return {value for module in MODULES for value in vars(module).values() if isinstance(value, _jit.Leaf)}


def leaves_of_fields():
    """The leaves that may stand behind each address of a plan, a layer, the border or a handle."""
    of_handles = [name for name in (*HANDLE.names, *LEARNER_TABLE.names) if name.startswith("embedded_")]
    by_field = {name: set() for name in (*LEAVES.names, *of_handles, "activation", "derivative", "has_bad")}
    chosen = {"loss": {loss.leaf for loss in LOSSES.values()}}
    chosen["weighted_loss"] = {loss.weighted_leaf for loss in LOSSES.values()}
    chosen["activation"] = {activation.forward for activation in ACTIVATIONS.values()}
    chosen["derivative"] = {activation.backward for activation in ACTIVATIONS.values()}
    for name in Rule._fields:
        chosen[name] = {getattr(rule, name) for rule in RULES.values()} - {None}
    for leaf in all_leaves() - set().union(*chosen.values()):
        by_field[FIELDS_OF_LEAVES.get(leaf.__name__, leaf.__name__)].add(leaf)
    return by_field | chosen


def sites_in_source():
    """(file, line) of every call of a leaf."""
    sites = set()
    for module in MODULES:
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "call"
            if is_call and not isinstance(node.args[0], ast.Name):  # by which an entry is told its leaf
                sites.add((module.__file__, node.lineno))
    return sites


def typed_functions():
    """Numba's typed form of every leaf, entry point and helper of theirs."""
    for leaf in all_leaves():
        yield leaf.compiled_anew("float32").type_annotation
    for function, arguments in border._ARGUMENTS.items():
        plain = numba.njit(error_model="numpy")(function.py_func)
        plain.compile(arguments(np.dtype("float32")))
        yield next(iter(plain.overloads.values())).type_annotation
    for name, arguments in EMBEDDED.items():
        function = getattr(overloads, name.strip())
        plain = numba.njit(error_model="numpy")(function if name.startswith("_") else function(*arguments))
        plain.compile(arguments)
        yield next(iter(plain.overloads.values())).type_annotation
    for module in MODULES:
        for value in vars(module).values():
            if isinstance(value, numba.core.dispatcher.Dispatcher):
                annotations = [compiled.type_annotation for compiled in value.overloads.values()]
                # An entry point that comes from the disk has none; it is compiled above.
                yield from (annotation for annotation in annotations if hasattr(annotation, "blocks"))


def typed_sites(annotation):
    """(file, line), field and types of the arguments of each call of a leaf in a typed function."""
    assignments = [stmt for block in annotation.blocks.values() for stmt in block.body if isinstance(stmt, ir.Assign)]
    definitions = {assignment.target.name: assignment.value for assignment in assignments}
    for expression in definitions.values():
        if isinstance(expression, ir.Expr) and expression.op == "call":
            function = definitions.get(expression.func.name)
            if isinstance(function, ir.Global) and function.value is calls.call:
                field, arguments = expression.args
                place = annotation.filename, expression.loc.line
                address = definitions[field.name]
                if isinstance(address, ir.Expr):
                    yield place, address.attr, annotation.typemap[arguments.name].types


@pytest.fixture(scope="module")
def sites():
    return [site for annotation in typed_functions() for site in typed_sites(annotation)]


def test_every_call_of_a_leaf_passes_as_many_and_such_arguments_as_the_leaf_takes(sites):
    candidates = leaves_of_fields()
    for place, field, given in sites:
        assert candidates[field], f"{place}: no leaf stands behind {field}"
        for leaf in candidates[field]:
            taken = leaf.signature("float32").args
            assert len(given) == len(taken), f"{place}: {leaf} takes {len(taken)} arguments, not {len(given)}"
            for number, (kind, wanted) in enumerate(zip(given, taken, strict=True)):
                is_float = isinstance(kind, types.Float)
                assert is_float == isinstance(wanted, types.Float), f"{place}: argument {number} of {leaf} is {kind}"


def test_no_call_of_a_leaf_is_missed(sites):
    in_source = sites_in_source()
    assert len(in_source) > 30
    assert {place for place, _, _ in sites} == in_source


def test_every_field_has_its_leaf_and_every_leaf_its_field():
    assert {field for field, leaves in leaves_of_fields().items() if not leaves} == set()


def test_leaves_that_write_a_range_are_called_alike():
    leaves = training.predict_range, derivatives.vjp_range, derivatives.jvp_range
    assert len({(leaf.signature("float32"), leaf.__wrapped__.__code__.co_varnames[:5]) for leaf in leaves}) == 1


@pytest.mark.parametrize("entry", [border.train, border.evaluate, border.write_range])
def test_entries_hand_all_but_the_leaf_on(entry):
    leaf = {border.train: training.train_steps, border.evaluate: training.evaluate_range}.get(entry)
    leaf = training.predict_range if leaf is None else leaf
    names = entry.py_func.__code__.co_varnames[1 : entry.py_func.__code__.co_argcount]
    assert names == leaf.__wrapped__.__code__.co_varnames[: leaf.__wrapped__.__code__.co_argcount]
    assert len(names) == len(leaf.signature("float32").args)
