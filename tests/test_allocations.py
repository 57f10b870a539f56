"""After set-up a step allocates nothing, and nothing is compiled twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastbp
from fastbp import _jit
from fastbp.kernels import border
from problems import classes, classifier, regression, regressor

# One call of the kernel trains for all steps, so what Python's border allocates is the same for any number of them.
COUNT_ALLOCATIONS = """
import json
import numpy as np
from numba.core.runtime import rtsys

import fastbp
from fastbp.pacing import Pace
from problems import classes, regression

Pace.budget = lambda self, seconds_left=None: 1 << 60


def count(model, x, y, batch_size, n_steps):
    trainer = fastbp.Trainer(model, batch_size=batch_size, seed=0)
    trainer.fit(x, y, epochs=None, max_steps=1)
    before = rtsys.get_allocation_stats()
    trainer.fit(x, y, epochs=None, max_steps=n_steps)
    after = rtsys.get_allocation_stats()
    return after.alloc - before.alloc, after.mi_alloc - before.mi_alloc


counts = {}
for name, model, (x, y), batch_size in (
    ("regression", fastbp.MLP([3, 5, 1], "gelu", seed=0), regression(), 7),
    ("labels", fastbp.MLP([3, 5, 4], output="softmax", seed=0), classes(), 60),
    ("single samples", fastbp.MLP([3, 5, 1], seed=0, dtype="float64"), regression(), 1),
    ("several tasks", fastbp.MLP([40, 300, 131, 10], seed=0), regression(1500, 40, 10), 1500),
):
    counts[name] = [count(model, x, y, batch_size, n_steps) for n_steps in (2, 50)]
model = fastbp.MLP([3, 5, 4], output="softmax", seed=0)
for n_samples in (60, 6000):
    x, y = classes(n_samples)
    for function in (lambda: model.predict(x), lambda: model.loss(x, y), lambda: model.loss_and_grad(x, y)):
        function()
        before = rtsys.get_allocation_stats()
        function()
        after = rtsys.get_allocation_stats()
        counts.setdefault("evaluation", []).append([after.alloc - before.alloc, after.mi_alloc - before.mi_alloc])
counts["evaluation"] = [counts["evaluation"][:3], counts["evaluation"][3:]]
print(json.dumps(counts))
"""


@pytest.fixture(scope="module")
def counts():
    tests, package = Path(__file__).parent, Path(fastbp.__file__).parents[1]
    path = os.pathsep.join([str(tests), str(package), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"NUMBA_NRT_STATS": "1", "PYTHONPATH": path}
    process = subprocess.run(
        [sys.executable, "-c", COUNT_ALLOCATIONS], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(process.stdout)


@pytest.mark.parametrize("name", ["regression", "labels", "single samples", "several tasks", "evaluation"])
def test_allocations_are_independent_of_the_number_of_steps_and_samples(counts, name):
    few, many = counts[name]
    assert many == few


@pytest.mark.parametrize("name", ["regression", "labels", "single samples", "several tasks"])
def test_allocations_of_a_fit_are_none_in_compiled_code(counts, name):
    assert counts[name] == [[0, 0], [0, 0]]


def n_signatures():
    return [len(function.signatures) for function in (border.train, border.evaluate, border.write_range)]


def use(model, x, y, **options):
    model.fit(x, y, validation_data=(x, y), **{"epochs": 2, "batch_size": 8, "seed": 0} | options)
    model.loss_and_grad(x, y)
    model.predict(x)


@pytest.fixture
def warm():
    """Everything that the tests below use is compiled."""
    for dtype in ("float32", "float64"):
        use(regressor(dtype=dtype), *regression())
        use(classifier(dtype=dtype), *classes())
        use(fastbp.MLP([2, 300, 300, 1], dtype=dtype, seed=0), *regression(50, 2), batch_size=None)  # wide and narrow
    return _jit.n_compiled(), n_signatures()


def assert_nothing_compiled(warm):
    assert (_jit.n_compiled(), n_signatures()) == warm
    assert warm[1] == [1, 1, 1]


def test_entry_points_have_one_signature_after_a_second_fit(warm):
    use(regressor(), *regression())
    use(classifier(), *classes())
    assert_nothing_compiled(warm)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_other_architectures_and_arguments_compile_nothing(warm, dtype):
    for sizes in ([1, 1], [3, 7, 5, 4, 2, 1], [2, 300, 300, 400, 1]):
        x, y = regression(50, sizes[0])
        model = fastbp.MLP(sizes, "tanh", dtype=dtype, seed=0)
        use(model, x, y, batch_size=None)
        use(model, x, y, batch_size=1, max_steps=3, drop_last=True)
        use(model, x, y, stop=[fastbp.TargetLoss(0.0), fastbp.TimeLimit(60.0)], shuffle=False)
        use(model, x, y, optimizer=fastbp.Adam(fastbp.schedules.Warmup(3, 0.01)), seed=2**63 + 1)
    assert_nothing_compiled(warm)


@pytest.mark.parametrize(
    "source", ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32"]
)
def test_other_dtypes_of_data_compile_nothing(warm, source):
    x, y = (np.abs(np.round(array)).astype(source) for array in regression())
    use(regressor(), x, y)
    x, y = classes()
    use(classifier(), np.round(x).astype(source), y.astype(source))
    assert_nothing_compiled(warm)


def test_other_orders_and_flags_of_data_compile_nothing(warm):
    x, y = regression()
    read_only = x.copy()
    read_only.flags.writeable = False
    views = [np.asfortranarray(x), np.repeat(x, 2, axis=0)[::2], x[::-1, ::-1], read_only, x.tolist(), x.astype(">f8")]
    for view in (*views, np.broadcast_to(x[:1], x.shape)):
        use(regressor(), view, y)
        use(regressor(), view, y.ravel())
    assert_nothing_compiled(warm)
