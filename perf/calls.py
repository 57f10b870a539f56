"""Time what a call from Python costs beside what its kernel costs, and beside the same call of other libraries.

    python perf/calls.py [--rounds 20] [--rivals numpy,torch,sklearn]

float32; 4-32-32-1 with tanh, mean squared error and Adam, if not said otherwise. Arrays are as they should be: of the
dtype, with contiguous rows. A time is the least of the rounds, each a loop of less than a millisecond. The kernel is
the compiled part of the same call, with the tables as the call has left them. Floors and goals are those of a machine
on which `np.add` of four elements takes 0.26 µs (a 2-core Xeon); elsewhere they are scaled by what it takes, which is
printed first. Writes JSON to perf/results/.
"""

from __future__ import annotations

import math
import time
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import fastbp
from harness import options

if TYPE_CHECKING:
    from collections.abc import Callable

ADD_SECONDS = 0.26e-6  # of `np.add` where the limits come from
SECONDS = 9e-4  # of a loop
RIVALS = ("numpy", "torch", "sklearn")
BATCH, N = 32, 200


class Call(NamedTuple):
    """A call, its compiled part where that can be called by itself, and what is asked of it in seconds.

    goal : whether on top of the kernel.
    """

    name: str
    run: Callable[[], Any]
    kernel: Callable[[], Any] | None
    floor: float
    goal: float
    on_kernel: bool = False


def data_of(n: int, n_in: int, n_classes: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return features, and values or classes."""
    rng = np.random.default_rng(n)
    x = rng.standard_normal((n, n_in), dtype=np.float32)
    return (x, rng.integers(0, n_classes, n)) if n_classes else (x, x[:, :1].copy())


def calls() -> list[Call]:
    """Return fastbp's calls, each on a network of its own."""
    small = fastbp.MLP([4, 32, 32, 1], "tanh", seed=0)
    trainer = fastbp.Trainer(small, seed=0)
    x, y = data_of(BATCH, 4)
    other_x, other_y = x[:-1], y[:-1]
    one, out = x[:1].copy(), np.empty((1, 1), np.float32)
    in_turns = fastbp.Trainer(fastbp.MLP([4, 32, 32, 1], "tanh", seed=0), seed=0)
    x_all, y_all = data_of(N, 4)
    gradient = fastbp.MLP([4, 32, 32, 1], "tanh", seed=0)
    x_classes, y_classes = data_of(N, 10, 3)
    classifier, fitted = (fastbp.MLP([10, 50, 3], "tanh", "softmax", seed=0) for _ in range(2))
    again = fastbp.Trainer(classifier, batch_size=BATCH, seed=0)

    def steps_in_turn() -> None:
        in_turns.step(other_x, other_y)
        in_turns.step(x, y)

    def differentiate() -> None:
        gradient.loss_and_grad(x_all, y_all)

    def fit_again() -> None:
        again.fit(x_classes, y_classes, epochs=1)

    for warm in (
        lambda: small.predict(one),
        lambda: trainer.step(x, y),
        steps_in_turn,
        differentiate,
        fit_again,
        lambda: fitted.fit(x_classes, y_classes, epochs=1, seed=0),
    ):
        for _ in range(3):
            warm()

    def fit() -> None:
        fitted.fit(x_classes, y_classes, epochs=1, seed=0)

    of_predict, of_step = predict_kernel(small, one, out), step_kernel(trainer, x, y)
    of_fit, of_gradient = steps_kernel(again, x_classes, y_classes), gradient_kernel(gradient, x_all, y_all)
    return [
        Call("predict, one sample", lambda: small.predict(one), of_predict, 2.0e-6, 1.0e-6),
        Call("predict, one sample, out=", lambda: small.predict(one, out), of_predict, 1.5e-6, 0.9e-6),
        Call("step, batch 32", lambda: trainer.step(x, y), of_step, 8e-6, 1.2e-6, on_kernel=True),
        Call("step, batches of 31 and 32 in turn, each", steps_in_turn, None, 10e-6, 5e-6),
        Call("Trainer.fit, 1 epoch of 200, again", fit_again, of_fit, 120e-6, 50e-6, on_kernel=True),
        Call("loss_and_grad, 200 samples", differentiate, of_gradient, 30e-6, 10e-6, on_kernel=True),
        Call("MLP.fit, 1 epoch of 200", fit, None, 250e-6, 100e-6),
    ]


def predict_kernel(model: fastbp.MLP, x: np.ndarray, out: np.ndarray) -> Callable[[], Any]:
    """Return the entry with its arguments: checks of values and overlap included, which are compiled too."""
    programs = model._network.programs
    entry, address = programs.predict_rows, programs.predicting().border_address
    return lambda: entry(address, x, out)


def step_kernel(trainer: fastbp.Trainer, x: np.ndarray, y: np.ndarray) -> Callable[[], Any]:
    """Return the entry with its arguments."""
    stepper = trainer._run._stepper
    program = stepper._programs.of_user(stepper, len(x))
    return lambda: stepper._take_step(program.border_address, 1e-3, x, y)


def gradient_kernel(model: fastbp.MLP, x: np.ndarray, y: np.ndarray) -> Callable[[], Any]:
    """Return the entry with its arguments."""
    programs = model._network.programs
    program = programs.take_differentiating(len(x))
    programs.give_back(program)
    return lambda: programs.step_on_batch(program.border_address, 0.0, x, y)


def steps_kernel(trainer: fastbp.Trainer, x: np.ndarray, y: np.ndarray) -> Callable[[], Any]:
    """Return as many single steps as an epoch has, on batches of its own, less what calling them costs."""
    model = fastbp.MLP([10, 50, 3], "tanh", "softmax", seed=0)
    own = fastbp.Trainer(model, seed=0)
    batches = [(x[start : start + BATCH], y[start : start + BATCH]) for start in range(0, len(x), BATCH)]
    for _ in range(3):
        for batch in (batches[0], batches[-1]):
            own.step(*batch)
    kernels = []
    for batch in batches:
        own.step(*batch)
        kernels.append(step_kernel(own, *batch))

    def run() -> None:
        for kernel in kernels:
            kernel()

    return run


def rival_calls(rivals: list[str]) -> dict[str, dict[str, Callable[[], Any]]]:
    """Return call: rival: the same by that library."""
    x, y = data_of(BATCH, 4)
    found: dict[str, dict[str, Callable[[], Any]]] = {}

    def add(rival: str, predict: Callable[[], Any], step: Callable[[], Any], fit: Callable[[], Any] | None) -> None:
        found.setdefault("predict, one sample", {})[rival] = predict
        found.setdefault("step, batch 32", {})[rival] = step
        if fit is not None:
            found.setdefault("Trainer.fit, 1 epoch of 200, again", {})[rival] = fit

    for rival in rivals:
        try:
            {"numpy": numpy_calls, "torch": torch_calls, "sklearn": sklearn_calls}[rival](x, y, add)
        except ImportError as error:
            print(f"{rival} is left out: {error}")
    return found


def numpy_calls(x: np.ndarray, y: np.ndarray, add: Callable[..., None]) -> None:
    """Add the calls of idiomatic in-place NumPy."""
    from harness.shapes import SHAPES, layers_of
    from rivals.numpy_rival import Rival

    rival = Rival(SHAPES["tiny"], "float32", 1, shuffle=False)
    layers = layers_of(SHAPES["tiny"], rival.params())

    def predict() -> np.ndarray:
        h = x[:1]
        for w, b in layers[:-1]:
            h = np.tanh(h @ w + b)
        return h @ layers[-1][0] + layers[-1][1]

    add("NumPy", predict, lambda: rival.run(1), None)


def torch_calls(x: np.ndarray, y: np.ndarray, add: Callable[..., None]) -> None:
    """Add the calls of eager PyTorch, on one thread."""
    import torch

    torch.set_num_threads(1)

    def network(n_in: int, widths: tuple[int, ...], n_out: int) -> tuple[Any, Any]:
        layers: list[Any] = []
        for n in widths:
            layers += [torch.nn.Linear(n_in, n), torch.nn.Tanh()]
            n_in = n
        model = torch.nn.Sequential(*layers, torch.nn.Linear(n_in, n_out))
        return model, torch.optim.Adam(model.parameters())

    model, optimizer = network(4, (32, 32), 1)
    xs, ys = torch.from_numpy(x), torch.from_numpy(y)
    classifier, of_classes = network(10, (50,), 3)
    x_classes, y_classes = map(torch.from_numpy, data_of(N, 10, 3))

    def step(net: Any, optimizer: Any, loss: Callable[..., Any], *batch: Any) -> None:
        optimizer.zero_grad()
        loss(net(batch[0]), batch[1]).backward()
        optimizer.step()

    def predict() -> Any:
        with torch.no_grad():
            return model(xs[:1])

    def epoch() -> None:
        order = torch.randperm(N)
        for start in range(0, N, BATCH):
            rows = order[start : start + BATCH]
            step(classifier, of_classes, torch.nn.functional.cross_entropy, x_classes[rows], y_classes[rows])

    add("PyTorch", predict, lambda: step(model, optimizer, torch.nn.functional.mse_loss, xs, ys), epoch)


def sklearn_calls(x: np.ndarray, y: np.ndarray, add: Callable[..., None]) -> None:
    """Add the calls of scikit-learn."""
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    model = MLPRegressor(hidden_layer_sizes=(32, 32), activation="tanh", random_state=0).partial_fit(x, y.ravel())
    x_classes, y_classes = data_of(N, 10, 3)
    classifier = MLPClassifier(hidden_layer_sizes=(50,), activation="tanh", batch_size=BATCH, random_state=0)
    classifier.partial_fit(x_classes, y_classes, classes=np.arange(3))
    add(
        "scikit-learn",
        lambda: model.predict(x[:1]),
        lambda: model.partial_fit(x, y.ravel()),
        lambda: classifier.partial_fit(x_classes, y_classes),
    )


def least_time(run: Callable[[], Any], rounds: int) -> float:
    """Return the least time of a call, in loops of `SECONDS` one after the other."""
    run()
    n, best = 1, math.inf
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(n):
            run()
        best = min(best, (time.perf_counter() - begin) / n)
        n = max(1, int(SECONDS / best))
    return best


def main() -> None:
    parser = options.parser_of(__doc__)
    options.add_rounds(parser, 200)
    parser.add_argument("--rivals", type=lambda text: text.split(","), default=list(RIVALS), help="comma-separated")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # scikit-learn's of convergence
    a, b, c = np.ones(4, np.float32), np.ones(4, np.float32), np.empty(4, np.float32)
    ours, theirs = calls(), rival_calls(arguments.rivals)
    runs: dict[Any, Callable[[], Any]] = {"add": lambda: np.add(a, b, c), "nothing": lambda: None}
    for call in ours:
        runs[call.name, "fastbp"] = call.run
        if call.kernel is not None:
            runs[call.name, "kernel"] = call.kernel
        runs |= {(call.name, rival): run for rival, run in theirs.get(call.name, {}).items()}
    times = {key: least_time(run, arguments.rounds) for key, run in runs.items()}
    scale = (times["add"] - times["nothing"]) / ADD_SECONDS
    print(f"{options.processor()}; np.add of four elements {1e6 * scale * ADD_SECONDS:.2f} µs, floors × {scale:.2f}")
    print(f"{'in µs':42}{'call':>9}{'kernel':>9}{'floor':>9}{'goal':>9}   others")
    records = []
    for call in ours:
        n = 2 if "in turn" in call.name else 1
        taken, kernel = times[call.name, "fastbp"] / n, times.get((call.name, "kernel"))
        floor, goal = scale * call.floor, scale * call.goal + (kernel or 0.0 if call.on_kernel else 0.0)
        others = {rival: 1e6 * times[call.name, rival] for rival in theirs.get(call.name, {})}
        print(
            f"{call.name:42}{1e6 * taken:9.2f}{f'{1e6 * kernel:9.2f}' if kernel else '':>9}{1e6 * floor:9.2f}"
            f"{1e6 * goal:9.2f}   {', '.join(f'{rival} {time:.1f}' for rival, time in others.items())}"
            f"{'' if taken <= floor else '   above the floor'}"
        )
        records.append(
            {"call": call.name, "microseconds": 1e6 * taken, "kernel": kernel and 1e6 * kernel, "floor": 1e6 * floor,
             "goal": 1e6 * goal, "others": others}
        )  # fmt: skip
    options.save("calls_float32", scale=scale, calls=records)


if __name__ == "__main__":
    main()
