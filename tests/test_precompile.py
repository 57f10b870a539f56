"""Compiling ahead, seen from fresh processes with a cache of their own."""

import json
import os
import subprocess
import sys

import pytest

from fastbp import _jit

FIRST_USE = """
import json
import numpy as np
import fastbp
from fastbp import _jit

x = np.ones((8, 2))
history = fastbp.MLP([2, 3, 1], "tanh").fit(
    x, x[:, 0], epochs=2, validation_data=(x, x[:, 0]), metrics={"one": lambda y, prediction: 1.0}, progress=True
)
fit = dict(compile_seconds=history.compile_seconds, all_seconds=_jit.compile_seconds(), n_compiled=_jit.n_compiled())
seconds = fastbp.precompile()
n_compiled = _jit.n_compiled()
again = fastbp.precompile()
print(json.dumps(dict(fit=fit, seconds=seconds, again=again, new=_jit.n_compiled() - n_compiled)))
"""

ALL_USES = """
import json
import warnings
import numpy as np
import fastbp
from fastbp import _jit
from fastbp.kernels.activations import ACTIVATIONS
from fastbp.kernels.losses import LOSSES
from fastbp.optimizers import OPTIMIZERS

optimizers = [fastbp.SGD(momentum=0.5), *(optimizer() for optimizer in OPTIMIZERS)]
x = np.random.default_rng(0).random((700, 3))
for dtype in ("float32", "float64"):
    for output in ACTIVATIONS:
        for loss in LOSSES:
            try:
                hidden = output if ACTIVATIONS[output].is_hidden else "relu"
                model = fastbp.MLP([3, 5, 2], hidden, output, loss=loss, dtype=dtype)
            except ValueError:
                continue
            signs = np.where(x[:, :2] < 0.5, -1.0, 1.0)
            y = {"cross_entropy": np.arange(700) % 2, "hinge": signs, "gaussian_nll": x[:, 0]}.get(loss, x[:, :2])
            model.fit(x, y, max_steps=1, validation_data=(x, y), threads=2)
            model.fit(x, y, max_steps=1, sample_weight=x[:, 0], validation_data=(x, y, x[:, 0]))
    for optimizer in optimizers:
        model.fit(x, y, optimizer=optimizer, max_steps=1)
    everything = dict(
        regularize=[fastbp.L2(0.1), fastbp.MaxNorm(1), fastbp.Dropout(0.5), fastbp.InputNoise(0.1)],
        clip_norm=1.0,
        ema=0.9,
        max_steps=1,
    )
    for sizes in ([3, 5, 2], [3, 700, 700, 2]):
        for options in (everything, {"regularize": fastbp.LabelSmoothing(0.1), "max_steps": 1}):
            fastbp.MLP(sizes, output="sigmoid", dtype=dtype).fit(x, x[:, :2], **options)
    wide = fastbp.MLP([3, 700, 700, 2], dtype=dtype)
    for n_samples in (1, 2, 9, 700):
        wide.loss_and_grad(x[:n_samples], x[:n_samples, :2])
        wide.predict(x[:n_samples])
        wide.fit(x, x[:, :2], batch_size=n_samples, max_steps=1)
        wide.jacobian(x[:n_samples])
    for model in (wide, fastbp.MLP([3, 5, 2], "gelu", "softmax", dtype=dtype)):
        model.compiled()
        trainer = fastbp.Trainer(model)
        trainer.step_from(x, x[:, :2])
        trainer.compiled(700)
print(json.dumps(_jit.n_compiled()))
"""


@pytest.mark.skipif(_jit.IS_PLAIN, reason="without Numba's private classes nothing is kept on disk")
@pytest.mark.timeout(600)
def test_precompile_leaves_nothing_to_compile(tmp_path):
    def run(program):
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
        finished = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        return json.loads(finished.stdout), finished.stderr

    report, shown = run(FIRST_USE)
    fit = report["fit"]
    assert fit["n_compiled"] > 0
    assert f"compiled {fit['n_compiled']} kernels in {fit['compile_seconds']:.1f} s" in shown
    # All that had to be compiled was compiled, and counted, before the first epoch.
    assert fit["compile_seconds"] == fit["all_seconds"] > 0.0
    assert report["seconds"] > report["again"] > 0.0
    assert report["new"] == 0

    n_compiled, _ = run(ALL_USES)
    assert n_compiled == 0
