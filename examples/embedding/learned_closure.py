"""A network learns what a coarse model lacks, online, while the fine simulation runs: the two-scale Lorenz-96 system.

    pip install '.[examples]' && python examples/embedding/learned_closure.py [--short]

Slow variables X feel fast ones Y, of which the coarse model knows nothing (Lorenz 1996; constants as in Wilks 2005). In
one compiled loop the fine model steps on, and the network takes a step at each tenth time on what Y has just done to X.
Then the coarse model runs with the network in the place of Y, and without, from ten starts that were not trained on.

Prints both errors for each start, and the time of the loop beside one that calls PyTorch for each step of learning,
where that is installed. Writes learned_closure.png.
"""

import argparse
import time

import matplotlib as mpl
import numpy as np
from numba import njit

import fastbp
from fastbp import embed

mpl.use("Agg")  # writes files, needs no screen
import matplotlib.pyplot as plt

N_SLOW, N_FAST = 8, 32  # X, and Y for each of them
FORCING, COUPLING, SPEED, AMPLITUDE = 20.0, 1.0, 10.0, 10.0  # F, h, c, b
FINE_STEP, FINE_PER_COARSE = 0.001, 5  # time units
LEARN_EVERY = 10  # fine steps
SCALE = 10.0  # of X and of the subgrid term, about
LEAD, N_STARTS = 1.0, 10  # time units that the coarse model runs; starts


@njit(nogil=True)
def slow_tendency(x, subgrid, out):
    """Write dX/dt."""
    n = x.size
    for k in range(n):
        out[k] = x[k - 1] * (x[(k + 1) % n] - x[k - 2]) - x[k] + FORCING + subgrid[k]


@njit(nogil=True)
def subgrid_term(y, out):
    """Write what the fast variables do to each slow one."""
    for k in range(out.size):
        out[k] = -COUPLING * SPEED / AMPLITUDE * y[k * N_FAST : (k + 1) * N_FAST].sum()


@njit(nogil=True)
def fine_tendency(x, y, subgrid, dx, dy):
    """Write dX/dt and dY/dt."""
    subgrid_term(y, subgrid)
    slow_tendency(x, subgrid, dx)
    n = y.size
    for j in range(n):
        advection = y[(j + 1) % n] * (y[j - 1] - y[(j + 2) % n])
        dy[j] = SPEED * AMPLITUDE * advection - SPEED * y[j] + COUPLING * SPEED / AMPLITUDE * x[j // N_FAST]


@njit(nogil=True)
def fine_step(x, y, subgrid):
    """One step of the classical Runge-Kutta method."""
    dx, dy, sum_x, sum_y = np.empty_like(x), np.empty_like(y), np.zeros_like(x), np.zeros_like(y)
    at_x, at_y = x.copy(), y.copy()
    for weight, ahead in ((1.0, 0.5), (2.0, 0.5), (2.0, 1.0), (1.0, 0.0)):
        fine_tendency(at_x, at_y, subgrid, dx, dy)
        sum_x += weight * dx
        sum_y += weight * dy
        at_x, at_y = x + ahead * FINE_STEP * dx, y + ahead * FINE_STEP * dy
    x += FINE_STEP / 6 * sum_x
    y += FINE_STEP / 6 * sum_y


@njit(nogil=True)
def features_of(x, out):
    """Write what the network sees of each slow variable: itself between its neighbours."""
    n = x.size
    for k in range(n):
        out[k, 0], out[k, 1], out[k, 2] = x[k - 1] / SCALE, x[k] / SCALE, x[(k + 1) % n] / SCALE


@njit(nogil=True)
def run_and_learn(learner, x, y, n_steps, losses):
    """Run the fine model, and learn on the way; the losses go to `losses`. Returns a status."""
    subgrid, features, targets = np.empty(x.size), np.empty((x.size, 3)), np.empty((x.size, 1))
    for step in range(n_steps):
        fine_step(x, y, subgrid)
        if step % LEARN_EVERY == 0:
            subgrid_term(y, subgrid)
            features_of(x, features)
            targets[:, 0] = subgrid / SCALE
            status = embed.train_step(learner, features, targets)
            if status != embed.OK:
                return status
            losses[step // LEARN_EVERY] = embed.loss(learner)
    return embed.OK


@njit(nogil=True)
def run_fine(x, y, n_coarse, path):
    """Run the fine model; record X at each coarse step."""
    subgrid = np.empty(x.size)
    for step in range(n_coarse):
        for _ in range(FINE_PER_COARSE):
            fine_step(x, y, subgrid)
        path[step] = x


@njit(nogil=True)
def closed_tendency(net, is_closed, x, features, outputs, subgrid, dx):
    """Write dX/dt of the coarse model, with the network's subgrid term or without any."""
    subgrid[:] = 0.0
    if is_closed:
        features_of(x, features)
        if embed.predict(net, features, outputs) != embed.OK:
            return
        subgrid[:] = SCALE * outputs[:, 0]
    slow_tendency(x, subgrid, dx)


@njit(nogil=True)
def run_coarse(net, is_closed, x, n_steps, path):
    """Run the coarse model by the classical Runge-Kutta method; record X at each step."""
    features, outputs = np.empty((x.size, 3)), np.empty((x.size, 1), np.float32)
    subgrid, dx, total = np.empty(x.size), np.empty(x.size), np.empty(x.size)
    step_size = FINE_STEP * FINE_PER_COARSE
    for step in range(n_steps):
        total[:], at = 0.0, x.copy()
        for weight, ahead in ((1.0, 0.5), (2.0, 0.5), (2.0, 1.0), (1.0, 0.0)):
            closed_tendency(net, is_closed, at, features, outputs, subgrid, dx)
            total += weight * dx
            at = x + ahead * step_size * dx
        x += step_size / 6 * total
        path[step] = x


def spun_up(seed: int) -> tuple:
    """Return X and Y on the attractor."""
    rng = np.random.default_rng(seed)
    x, y, steps = rng.standard_normal(N_SLOW) * 3 + 2, rng.standard_normal(N_SLOW * N_FAST) * 0.1, 1000
    run_fine(x, y, steps, np.empty((steps, N_SLOW)))
    return x, y


def compare(net: np.ndarray) -> tuple:
    """Return X of the fine model, of the closed coarse model and of that without closure: (start, step, variable)."""
    n_steps = int(LEAD / (FINE_STEP * FINE_PER_COARSE))
    paths = [np.empty((N_STARTS, n_steps, N_SLOW)) for _ in range(3)]
    for start in range(N_STARTS):
        x, y = spun_up(100 + start)
        for is_closed, path in ((True, paths[1][start]), (False, paths[2][start])):
            run_coarse(net, is_closed, x.copy(), n_steps, path)
        run_fine(x, y, n_steps, paths[0][start])
    return tuple(paths)


def seconds_with_torch(n_steps: int) -> float | None:
    """Return the seconds of the same loop where each step of learning is a call of PyTorch, if there is one."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)
    linear, tanh = torch.nn.Linear, torch.nn.Tanh
    model = torch.nn.Sequential(linear(3, 16), tanh(), linear(16, 16), tanh(), linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters())
    (x, y), subgrid, features = spun_up(0), np.empty(N_SLOW), np.empty((N_SLOW, 3))
    run_fine(x, y, 1, np.empty((1, N_SLOW)))
    start = time.perf_counter()
    for step in range(n_steps):
        fine_step(x, y, subgrid)
        if step % LEARN_EVERY == 0:
            subgrid_term(y, subgrid)
            features_of(x, features)
            optimizer.zero_grad()
            error = model(torch.from_numpy(features).float()) - torch.from_numpy(subgrid[:, None] / SCALE).float()
            error.square().mean().backward()
            optimizer.step()
    return time.perf_counter() - start


def draw(losses: np.ndarray, paths: tuple, errors: np.ndarray, path: str) -> None:
    """Write the loss while it learnt, one slow variable, and the errors of all starts over time."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    width = max(1, len(losses) // 200)
    means = losses[: len(losses) // width * width].reshape(-1, width).mean(axis=1)
    left.semilogy(FINE_STEP * LEARN_EVERY * width * np.arange(1, len(means) + 1), means)
    left.set(xlabel="time while it learnt", ylabel="loss, of the subgrid term / 10")
    times = FINE_STEP * FINE_PER_COARSE * np.arange(1, paths[0].shape[1] + 1)
    names = "resolved", "coarse, closed by the network", "coarse, no closure"
    for name, values, style in zip(names, paths, ("k-", "C0--", "C3:"), strict=True):
        middle.plot(times, values[0, :, 0], style, label=name)
    middle.set(xlabel="time", ylabel="first slow variable")
    middle.legend()
    for of_kind, color, name in zip(errors, ("C0", "C3"), names[1:], strict=True):
        right.semilogy(times, of_kind.T, color=color, linewidth=0.5, alpha=0.6)
        right.semilogy(times, of_kind.mean(axis=0), color=color, linewidth=2, label=name)
    right.set(xlabel="time", ylabel="root mean square error of X")
    right.legend(loc="lower right")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a fifth of the learning, in seconds")
    n_steps = 40_000 if parser.parse_args().short else 200_000
    trainer = fastbp.Trainer(fastbp.MLP([3, 16, 16, 1], "tanh", seed=0), optimizer=fastbp.Adam(1e-3))
    learner, net, (x, y) = trainer.compiled(N_SLOW), trainer.model.compiled(), spun_up(0)
    losses = np.zeros(n_steps // LEARN_EVERY)
    run_and_learn(learner, x, y, 1, losses)  # compiles
    start = time.perf_counter()
    status = run_and_learn(learner, x, y, n_steps, losses)
    seconds = time.perf_counter() - start
    assert status == embed.OK, embed.message(status)
    print(f"learnt in {trainer.n_steps} steps, while the simulation ran: {seconds:.2f} s, {n_steps} fine steps")

    paths = compare(net)
    errors = np.array([np.sqrt(((path - paths[0]) ** 2).mean(axis=2)) for path in paths[1:]])
    closed, none = errors.mean(axis=2)
    for number, (with_network, without) in enumerate(zip(closed, none, strict=True)):
        print(f"start {number}: error of X {with_network:.3f} with the network, {without:.3f} without")
    print(f"below that of no closure for {(closed < none).sum()} of {N_STARTS} starts")
    with_torch = seconds_with_torch(n_steps // 20)
    if with_torch is not None:
        ratio = 20 * with_torch / seconds
        print(f"the same loop with a call of PyTorch for each step of learning: {ratio:.0f} times as long")
    draw(losses, paths, errors, "learned_closure.png")


if __name__ == "__main__":
    main()
