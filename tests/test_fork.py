"""A process that is forked while a thread of it trains: the child's trainer goes on from a whole step, or says no."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# Prints for each child what became of it: "whole" or "refused".
PROGRAM = """
import os, sys, threading, time
import numpy as np
import fastbp

sizes, n_samples, batch_size = {sizes}, {n_samples}, {batch_size}
rng = np.random.default_rng(0)
x, y = rng.standard_normal((n_samples, sizes[0]), np.float32), rng.standard_normal((n_samples, 1), np.float32)
trainer = fastbp.Trainer(
    fastbp.MLP(sizes, seed=0), optimizer=fastbp.SGD(1e-4), batch_size=batch_size, threads={threads}, seed=0
)
few = (x[:8], y[:8])
fastbp.MLP(sizes, seed=0).fit(*few, optimizer=fastbp.SGD(1e-4), batch_size=None, epochs=1)
threading.Thread(target=trainer.fit, args=(x, y), kwargs=dict(epochs=10**9), daemon=True).start()
while trainer.n_steps == 0:
    time.sleep(0.001)


def go_on():
    start, n_steps, n_rows = trainer.model.params.copy(), trainer.n_steps, len(trainer.history)
    try:
        losses = [trainer.step(*few)] if {steps} else trainer.fit(*few, epochs=3).loss[-3:]
    except RuntimeError as error:
        assert "forked while a step of this trainer was changing the parameters" in str(error), error
        for _ in range(2):  # and so does every other way to go on with it
            try:
                trainer.fit(*few, epochs=1)
            except RuntimeError:
                continue
            raise AssertionError("the second fit was not refused")
        assert np.isfinite(trainer.model.predict(few[0])).all()
        fastbp.MLP(sizes, init=trainer.model.params).fit(*few, epochs=1)
        return "refused"
    twin = fastbp.MLP(sizes, init=start)
    expected = []
    for _ in losses:
        expected.append(twin.loss_and_grad(*few)[0])
        twin.fit(*few, optimizer=fastbp.SGD(1e-4), batch_size=None, epochs=1, shuffle=False)
    assert trainer.n_steps == n_steps + len(losses), (trainer.n_steps, n_steps)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(trainer.model.params, twin.params, rtol=1e-5, atol=1e-7)
    assert (np.diff(trainer.history.epoch) > 0).all()
    assert np.isfinite(trainer.history.loss).all() and (trainer.history.loss > 0).all()
    return "whole"


for number in range(40):
    time.sleep(0.0113)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            print(go_on(), flush=True)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
os._exit(0)
"""


@pytest.mark.parametrize("steps", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"sizes": [3, 5, 1], "n_samples": 32, "batch_size": 8, "threads": 1},
        {"sizes": [8, 64, 64, 1], "n_samples": 50_000, "batch_size": None, "threads": 1},
        {"sizes": [300, 512, 512, 1], "n_samples": 2048, "batch_size": None, "threads": 1},
        {"sizes": [300, 512, 512, 1], "n_samples": 512, "batch_size": 64, "threads": 2},
    ],
    ids=["tiny", "long", "wide", "threads"],
)
def test_child_forked_in_mid_fit_goes_on_from_a_whole_step_or_refuses(options, steps):
    code = PROGRAM.format(steps=steps, **options)
    # In a process of its own: pytest may have threads, of which a fork would warn.
    run = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code], capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 0, run.stderr
    answers = run.stdout.split()
    assert len(answers) == 40
    assert set(answers) <= {"whole", "refused"}
    assert "whole" in answers
