"""Small training problems, and what tests compare."""

import numpy as np

import fastbp


def regression(n_samples=60, n_features=3, n_out=1, seed=0):
    """Return x and y of a smooth function, float64."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n_samples, n_features))
    return x, np.sin(x @ rng.standard_normal((n_features, n_out)))


def classes(n_samples=60, n_features=3, n_classes=4, seed=0):
    """Return x and labels that a linear model separates mostly."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n_samples, n_features))
    return x, (x @ rng.standard_normal((n_features, n_classes))).argmax(axis=1)


def regressor(seed=0, **options):
    return fastbp.MLP([3, 5, 1], "tanh", seed=seed, **options)


def classifier(seed=0, **options):
    return fastbp.MLP([3, 5, 4], output="softmax", seed=seed, **options)


def bits(array):
    return np.ascontiguousarray(array).tobytes()


def state_of(trainer):
    """Return all that a later fit depends on, as bytes."""
    position = trainer._run.state.position.whole(trainer.n_steps)
    where = np.array([position.cursor[name] for name in ("step", "epoch", "position", "super_blocks_done", "task")])
    sums = np.array(position.totals.item()[:4])
    return bits(trainer.model.params), bits(trainer._run.buffers.moments), bits(where), bits(sums)


def rows_of(history):
    """Return the record without its times, as bytes."""
    return {name: bits(history[name]) for name in history._columns if name != "seconds"}
