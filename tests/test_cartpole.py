"""The environment of the example is Gymnasium's."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "embedding" / "cartpole.py"


def test_environment_moves_and_ends_as_gymnasiums_does():
    gymnasium = pytest.importorskip("gymnasium")
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("cartpole", EXAMPLE)
    cartpole = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cartpole)
    environment, rng = gymnasium.make("CartPole-v1"), np.random.default_rng(0)
    assert environment.spec.max_episode_steps == cartpole.LONGEST
    for game in range(50):
        environment.reset(seed=game)
        state = np.array(environment.unwrapped.state, float)
        assert (abs(state) <= 0.05).all()
        has_fallen = False
        while not has_fallen:
            action = int(rng.integers(2))
            _, reward, has_fallen, _, _ = environment.step(action)
            assert cartpole.move(state, action) == has_fallen
            assert reward == 1.0
            np.testing.assert_allclose(state, environment.unwrapped.state, rtol=1e-12, atol=1e-15)
