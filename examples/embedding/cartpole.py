"""Balance a pole by deep Q-learning: environment, replay and learning in one compiled loop, no Python inside.

    pip install '.[examples]' && python examples/embedding/cartpole.py [--seeds 5] [--short]

The environment is Gymnasium's CartPole-v1 (Barto, Sutton and Anderson 1983): a point for each step, 500 at most. The
agent is a double DQN (van Hasselt, Guez and Silver 2016) with Huber's loss, whose derivative with respect to the
outputs `embed.backward_step` takes; it keeps the parameters that balanced best in trials on the way.

Prints each seed's mean return over 100 fresh starts, played greedily, and the time beside the same algorithm with
PyTorch's calls, where that is installed. Writes cartpole.png.
"""

import argparse
import math
import time

import matplotlib as mpl
import numpy as np
from numba import njit

import fastbp
from fastbp import embed

mpl.use("Agg")  # writes files, needs no screen
import matplotlib.pyplot as plt

GRAVITY, CART_MASS, POLE_MASS, HALF_LENGTH, FORCE, TIME_STEP = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
LARGEST_POSITION, LARGEST_ANGLE, LONGEST = 2.4, 12 * math.pi / 180, 500
SCALE = np.array([2.4, 2.0, 0.21, 2.0])  # of what the network sees
BATCH, CAPACITY, DISCOUNT = 64, 50_000, 0.99
WARM_UP, EXPLORES_FOR, LEAST_EXPLORATION, TARGET_EVERY = 1000, 10_000, 0.05, 500
TRIAL_EVERY, TRIAL_GAMES, TEST_GAMES = 2000, 20, 100


@njit(nogil=True)
def move(state, action):
    """One step of the environment, in place; returns whether the pole has fallen or the cart left the track."""
    position, speed, angle, turning = state
    force, total = FORCE if action == 1 else -FORCE, CART_MASS + POLE_MASS
    sine, cosine = math.sin(angle), math.cos(angle)
    push = (force + POLE_MASS * HALF_LENGTH * turning**2 * sine) / total
    angular = (GRAVITY * sine - cosine * push) / (HALF_LENGTH * (4.0 / 3.0 - POLE_MASS * cosine**2 / total))
    linear = push - POLE_MASS * HALF_LENGTH * angular * cosine / total
    state[0] = position + TIME_STEP * speed
    state[1] = speed + TIME_STEP * linear
    state[2] = angle + TIME_STEP * turning
    state[3] = turning + TIME_STEP * angular
    return abs(state[0]) > LARGEST_POSITION or abs(state[2]) > LARGEST_ANGLE


@njit(nogil=True)
def start_game(state):
    """Put the cart and the pole near rest."""
    for i in range(4):
        state[i] = np.random.uniform(-0.05, 0.05)


@njit(nogil=True)
def best_action(net, state, values):
    """Return the action of the larger value."""
    embed.predict(net, state / SCALE, values)
    return 1 if values[1] > values[0] else 0


@njit(nogil=True)
def mean_return(net, n_games):
    """Return the mean number of steps of some games, played greedily."""
    state, values, total = np.empty(4), np.empty(2, np.float32), 0
    for _ in range(n_games):
        start_game(state)
        for _ in range(LONGEST):
            total += 1
            if move(state, best_action(net, state, values)):
                break
    return total / n_games


@njit(nogil=True)
def test(net, seed, n_games):
    """Return the mean number of steps of some games that follow from a seed."""
    np.random.seed(seed)
    return mean_return(net, n_games)


@njit(nogil=True)
def derivative(values, now, then, wanted, d_values):
    """Write the derivative of Huber's loss of the action that was taken, over the batch.

    wanted : (n, 3) action, reward and whether the game ended. then : values of what followed, by the target network;
    now : by the one that learns, which chooses among them.
    """
    n = len(values)
    for i in range(n):
        action, later = int(wanted[i, 0]), 1 if now[i, 1] > now[i, 0] else 0
        target = wanted[i, 1] + DISCOUNT * (1.0 - wanted[i, 2]) * then[i, later]
        d_values[i] = 0.0
        d_values[i, action] = min(1.0, max(-1.0, values[i, action] - target)) / n


@njit(nogil=True)
def learn(net, target, learner, replay, seed, n_steps, returns):
    """Play and learn for so many steps at most; leave the best parameters behind. Returns a status and the steps.

    returns : mean number of steps in each trial, every `TRIAL_EVERY` steps.
    """
    np.random.seed(seed)
    params, target_params = embed.params(net), embed.params(target)
    best, best_return = params.copy(), 0.0
    state, before, values = np.empty(4), np.empty(8, np.float32), np.empty(2, np.float32)
    x, wanted, d_values = np.empty((BATCH, 8), np.float32), np.empty((BATCH, 3)), np.empty((BATCH, 2))
    at, now, then = np.empty((BATCH, 2), np.float32), np.empty((BATCH, 2), np.float32), np.empty((BATCH, 2), np.float32)
    age, result = 0, np.zeros(3)
    start_game(state)
    target_params[:] = params
    for step in range(n_steps):
        exploration = max(LEAST_EXPLORATION, 1.0 - step / EXPLORES_FOR)
        action = np.random.randint(0, 2) if np.random.random() < exploration else best_action(net, state, values)
        before[:4] = state / SCALE
        has_fallen = move(state, action)
        before[4:] = state / SCALE
        result[0], result[1], result[2] = action, 1.0, has_fallen
        embed.replay_push(replay, before, result)
        age += 1
        if has_fallen or age == LONGEST:
            age = 0
            start_game(state)
        if step >= WARM_UP:
            embed.replay_sample(replay, x, wanted)
            embed.predict(net, x[:, :4], at)
            embed.predict(net, x[:, 4:], now)
            embed.predict(target, x[:, 4:], then)
            derivative(at, now, then, wanted, d_values)
            status = embed.backward_step(learner, x[:, :4], d_values)
            if status != embed.OK:
                return status, step
        if step % TARGET_EVERY == 0:
            target_params[:] = params
        if (step + 1) % TRIAL_EVERY == 0:
            trial = mean_return(net, TRIAL_GAMES)
            returns[step // TRIAL_EVERY] = trial
            if trial > best_return:
                best_return, best[:] = trial, params
            if trial == LONGEST:
                n_steps = step + 1
                break
    params[:] = best
    return embed.OK, n_steps


def play(seed: int, n_steps: int) -> tuple:
    """Return the mean return on fresh starts, the steps taken, their seconds, and the returns on the way."""
    model, target = (fastbp.MLP([4, 64, 64, 2], "relu", seed=seed) for _ in range(2))
    learner = fastbp.Trainer(model, optimizer=fastbp.Adam(1e-3)).compiled(BATCH)
    handles, returns = (model.compiled(), target.compiled(), learner), np.full(n_steps // TRIAL_EVERY, np.nan)
    replay = embed.replay_buffer(CAPACITY, 8, 3, seed)
    start = time.perf_counter()
    status, n_taken = learn(*handles, replay, seed, n_steps, returns)
    seconds = time.perf_counter() - start
    assert status == embed.OK, embed.message(status)
    return test(handles[0], 1000 + seed, TEST_GAMES), n_taken, seconds, returns


def seconds_with_torch(n_steps: int) -> float | None:
    """Return the seconds of as many steps with PyTorch's calls for what networks do, if there is one."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)

    def network() -> torch.nn.Module:
        linear, relu = torch.nn.Linear, torch.nn.ReLU
        return torch.nn.Sequential(linear(4, 64), relu(), linear(64, 64), relu(), linear(64, 2))

    model, target = network(), network()
    optimizer, replay = torch.optim.Adam(model.parameters()), embed.replay_buffer(CAPACITY, 8, 3, 0)
    state, x, wanted = np.zeros(4), np.empty((BATCH, 8), np.float32), np.empty((BATCH, 3), np.float32)
    embed.replay_push(replay, np.zeros(8), np.zeros(3))
    embed.replay_sample(replay, x, wanted)
    start = time.perf_counter()
    for _ in range(n_steps):
        before = state / SCALE
        with torch.inference_mode():
            action = int(model(torch.from_numpy(before).float()).argmax())
        has_fallen = move(state, action)
        embed.replay_push(replay, np.concatenate([before, state / SCALE]), np.array([action, 1.0, has_fallen]))
        if has_fallen:
            state[:] = 0.01
        embed.replay_sample(replay, x, wanted)
        at, later, result = torch.from_numpy(x[:, :4]), torch.from_numpy(x[:, 4:]), torch.from_numpy(wanted)
        with torch.no_grad():
            chosen = model(later).argmax(1, keepdim=True)
            goal = result[:, 1:2] + DISCOUNT * (1 - result[:, 2:]) * target(later).gather(1, chosen)
        optimizer.zero_grad()
        torch.nn.functional.huber_loss(model(at).gather(1, result[:, :1].long()), goal).backward()
        optimizer.step()
    return time.perf_counter() - start


def draw(runs: list, path: str) -> None:
    """Write the returns of the trials on the way."""
    figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for seed, (_, _, _, returns) in enumerate(runs):
        axes.plot(TRIAL_EVERY * np.arange(1, len(returns) + 1), returns, marker=".", label=f"seed {seed}")
    axes.set(xlabel="steps", ylabel=f"mean return of {TRIAL_GAMES} games, played greedily", ylim=(0, 520))
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--short", action="store_true", help="one seed, a small part of the steps")
    arguments = parser.parse_args()
    n_seeds, n_steps = (1, 8000) if arguments.short else (arguments.seeds, 200_000)
    play(0, 10)  # compiles
    begin, runs = time.perf_counter(), []
    for seed in range(n_seeds):
        score, n_taken, seconds, _ = run = play(seed, n_steps)
        runs.append(run)
        print(f"seed {seed}: mean return {score:.1f} of {TEST_GAMES} games after {n_taken} steps, {seconds:.2f} s")
    print(f"all seeds: {time.perf_counter() - begin:.1f} s, the least mean return {min(run[0] for run in runs):.1f}")
    per_step = sum(run[2] for run in runs) / sum(run[1] for run in runs)
    with_torch = seconds_with_torch(500)
    if with_torch is not None:
        ratio = with_torch / 500 / per_step
        print(f"{1e6 * per_step:.1f} µs a step, trials included; with PyTorch's calls {ratio:.0f} times as long")
    draw(runs, "cartpole.png")


if __name__ == "__main__":
    main()
