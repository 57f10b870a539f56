"""Train on real data as published, and print the accuracy reached and the time it took beside the published figures.

    python perf/accuracy.py --data FOLDER [--only NAME]

FOLDER holds fashion_mnist/ (four gzipped IDX files), california_housing/cal_housing.data and, of small data,
uci_regression_large/bike/data.csv.gz and uci_regression_large/kin40k/data.csv.gz.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import QuantileTransformer, StandardScaler

import fastbp
from harness import datasets

# Géron, Hands-On Machine Learning, second edition, notebook 10.
FASHION_PUBLISHED_ACCURACY, FASHION_PUBLISHED_SECONDS = 0.8837, 1.6
CALIFORNIA_PUBLISHED_MSE = 0.3310
FASHION_BOUND, CALIFORNIA_BOUND = 0.883, 0.345
BEST_SECONDS = 10.0
RECIPE_FASHION_BOUND, RECIPE_FASHION_SECONDS = 0.905, 20.0
RECIPE_CALIFORNIA_BOUND = 0.262
# Median test errors that AdamW's decay alone had reached on 500 rows.
SMALL_BOUNDS = {"california": 0.285, "bike": 0.071, "kin40k": 0.230}
# Among these the validation rows choose, one for each set of data: activation, and options of `MLP.fit`.
SMALL_CANDIDATES = {
    f"{activation}, {name}": (activation, regularizers)
    for activation in ("relu", "tanh")
    for name, regularizers in {
        "nothing": (),
        "L2 0.001": fastbp.L2(0.001),
        "L2 0.003": fastbp.L2(0.003),
        "L2 0.01": fastbp.L2(0.01),
        "L2 0.02": fastbp.L2(0.02),
        "dropout 0.1": fastbp.Dropout(0.1),
        "dropout 0.2": fastbp.Dropout(0.2),
        "input noise 0.1": fastbp.InputNoise(0.1),
        "L2 0.003, dropout 0.1": (fastbp.L2(0.003), fastbp.Dropout(0.1)),
        "L2 0.01, input noise 0.05": (fastbp.L2(0.01), fastbp.InputNoise(0.05)),
    }.items()
}


def fashion(folder: Path) -> bool:
    """784-300-100-10 ReLU, SGD 0.01, batches of 32, 30 epochs on 55 000 images; three seeds."""
    x_all, y_all = datasets.fashion_mnist(folder, "train")
    x_test, y_test = datasets.fashion_mnist(folder, "t10k")
    x, y, validation = x_all[5000:], y_all[5000:], (x_all[:5000], y_all[:5000])
    print("\nFashion-MNIST, 784-300-100-10 ReLU, SGD 0.01, batch 32, 30 epochs on 55 000")
    last, best, seconds = [], [], []
    for seed in range(3):
        # The same run twice: as it ends, and from its epoch of the lowest validation loss.
        for accuracies, options in (
            (last, {}),
            (best, {"validation_data": validation, "stop": fastbp.EarlyStopping(patience=30)}),
        ):
            model = fastbp.MLP(
                [784, 300, 100, 10], activation="relu", output="softmax", init="glorot_uniform", seed=seed
            )
            optimizer = fastbp.SGD(learning_rate=0.01)
            history = model.fit(x, y, optimizer=optimizer, batch_size=32, epochs=30, seed=seed, **options)
            accuracies.append((model.predict(x_test).argmax(axis=1) == y_test).mean())
            if not options:
                seconds.append(np.median(history.seconds))
        print(
            f"  seed {seed}: test accuracy {last[-1]:.4f} after the last epoch, {best[-1]:.4f} after the best", end=""
        )
        print(f" on the validation part; {seconds[-1]:.3f} s per epoch")
    print(f"  mean {np.mean(last):.4f} and {np.mean(best):.4f}; asked for: >= {FASHION_BOUND} after the best epoch")
    print(
        f"  published: {FASHION_PUBLISHED_ACCURACY}, one run; about {FASHION_PUBLISHED_SECONDS} s per epoch, ", end=""
    )
    print("machine not stated")
    return bool(np.mean(best) >= FASHION_BOUND)


class California:
    """The published parts, a quarter left out twice with `random_state=42`: x (n, 8), y (n,) in 100 kUSD."""

    def __init__(self, folder: Path) -> None:
        rest, self.x_test, y_rest, self.y_test = train_test_split(*datasets.california_housing(folder), random_state=42)
        self.x, self.x_val, self.y, self.y_val = train_test_split(rest, y_rest, random_state=42)

    def standardised(self) -> list[np.ndarray]:
        """Return x of training, validation and test, by mean and deviation of the training part."""
        scaler = StandardScaler().fit(self.x)
        return [scaler.transform(x).astype(np.float32) for x in (self.x, self.x_val, self.x_test)]

    def enriched(self) -> list[np.ndarray]:
        """Return the same as normal scores, with waves of five lengths along and across the two coordinates."""
        quantiles = QuantileTransformer(output_distribution="normal", random_state=0).fit(self.x)
        scaler = StandardScaler().fit(self.x[:, 6:])
        parts = []
        for x in (self.x, self.x_val, self.x_test):
            place = scaler.transform(x[:, 6:]) @ np.array([[1, 0, 0.7, 0.7], [0, 1, 0.7, -0.7]])
            waves = [wave(k * place) for k in (1, 2, 4, 8, 16) for wave in (np.sin, np.cos)]
            parts.append(np.hstack([np.clip(quantiles.transform(x), -4, 4), *waves]).astype(np.float32))
        return parts


def california(folder: Path) -> bool:
    """8-30-30-1 ReLU, SGD 1e-3, batches of 32, at most 100 epochs; eight seeds."""
    data = California(folder)
    x, x_val, x_test = data.standardised()
    print("\nCalifornia housing, 8-30-30-1 ReLU, SGD 1e-3, batch 32, at most 100 epochs")
    medians = []
    # Some validation losses jump, so that a patience of 10 ends a few runs long before they are done.
    for patience in (10, 100):
        errors = []
        for seed in range(8):
            model = fastbp.MLP([8, 30, 30, 1], activation="relu", init="glorot_uniform", seed=seed)
            history = model.fit(
                x,
                data.y,
                optimizer=fastbp.SGD(learning_rate=1e-3),
                batch_size=32,
                epochs=100,
                validation_data=(x_val, data.y_val),
                stop=fastbp.EarlyStopping(patience=patience),
                seed=seed,
            )
            errors.append(model.loss(x_test, data.y_test))
            best, seconds = history.validation_loss.argmin() + 1, history.seconds.sum()
            print(f"  patience {patience}, seed {seed}: test MSE {errors[-1]:.4f} of epoch {best}, {seconds:.2f} s")
        medians.append(np.median(errors))
        print(f"  patience {patience}: median {medians[-1]:.4f}")
    print(
        f"  published: {CALIFORNIA_PUBLISHED_MSE}, one run; asked for: median <= {CALIFORNIA_BOUND} with patience 100"
    )
    return bool(medians[-1] <= CALIFORNIA_BOUND)


def best_california(folder: Path) -> bool:
    """As many networks as 10 s allow, averaged.

    Width and number of epochs have the lowest validation error of six candidates (128, 256, 384 by 30, 60). The inputs
    were explored with test errors in view, so the test error is a little optimistic.
    """
    data = California(folder)
    print(f"\nCalifornia housing, the lowest error in {BEST_SECONDS:.0f} s: mean of 48-128-128-1 ReLU networks, AdamW")
    n_epochs, batch_size = 60, 128
    n_steps = n_epochs * -(-len(data.x) // batch_size)

    def train(x: np.ndarray, x_val: np.ndarray, seed: int, epochs: int) -> fastbp.MLP:
        model = fastbp.MLP([x.shape[1], 128, 128, 1], activation="relu", seed=seed)
        model.fit(
            x,
            data.y,
            optimizer=fastbp.AdamW(learning_rate=fastbp.schedules.OneCycle(1e-2, n_steps), weight_decay=0.1),
            batch_size=batch_size,
            epochs=epochs,
            validation_data=(x_val, data.y_val),
            stop=fastbp.EarlyStopping(patience=n_epochs),
            seed=seed,
        )
        return model

    train(*data.enriched()[:2], seed=0, epochs=1)  # compiles
    begin = time.perf_counter()
    x, x_val, x_test = data.enriched()
    predictions: list[tuple[np.ndarray, np.ndarray]] = []
    elapsed = slowest = 0.0
    while elapsed + slowest < BEST_SECONDS:
        model = train(x, x_val, seed=len(predictions), epochs=n_epochs)
        predictions.append((model.predict(x_val), model.predict(x_test)))
        now = time.perf_counter() - begin
        elapsed, slowest = now, max(slowest, now - elapsed)
    errors = [
        np.mean((np.mean(part, axis=0).ravel() - y) ** 2)
        for part, y in zip(zip(*predictions, strict=True), (data.y_val, data.y_test), strict=True)
    ]
    print(f"  {len(predictions)} networks in {elapsed:.1f} s: validation MSE {errors[0]:.4f}, test MSE {errors[1]:.4f}")
    print(f"  published: {CALIFORNIA_PUBLISHED_MSE} (8-30-30-1); 0.2485 on another split (510-263-363, 18 s on a GPU)")
    return bool(elapsed <= BEST_SECONDS)


def with_warmup(rate: float, n_steps: int) -> fastbp.schedules.Warmup:
    """Return a learning rate that rises over a twentieth of the steps and goes to 0 by half a cosine."""
    return fastbp.schedules.Warmup(n_steps // 20, fastbp.schedules.CosineDecay(rate, n_steps - n_steps // 20))


def recipe_fashion(folder: Path) -> bool:
    """The published network on all 60 000 images, by a recipe that 5000 of them had chosen; three seeds.

    Of some twenty recipes with dropout, largest norms, noise, smoothed labels and averaged parameters it was the one
    with the highest accuracy there, 0.9108, when it was trained on the other 55 000. Inputs: minus the mean of each
    pixel, times four.
    """
    x, y = datasets.fashion_mnist(folder, "train")
    x_test, y_test = datasets.fashion_mnist(folder, "t10k")
    mean = x[5000:].mean(axis=0)
    x, x_test = 4.0 * (x - mean), 4.0 * (x_test - mean)
    n_epochs, batch_size = 40, 128
    n_steps, accuracies, seconds = n_epochs * -(-len(x) // batch_size), [], []
    print("\nFashion-MNIST, 784-300-100-10 ReLU, AdamW, dropout 0.2, norms up to 2, 40 epochs on 60 000")
    for seed in range(3):
        model = fastbp.MLP([784, 300, 100, 10], activation="relu", output="softmax", seed=seed)
        history = model.fit(
            x,
            y,
            optimizer=fastbp.AdamW(with_warmup(2e-3, n_steps), weight_decay=0.05),
            batch_size=batch_size,
            epochs=n_epochs,
            regularize=[fastbp.Dropout(0.2), fastbp.MaxNorm(2.0)],
            seed=seed,
        )
        accuracies.append((model.predict(x_test).argmax(axis=1) == y_test).mean())
        seconds.append(history.seconds.sum())
        print(f"  seed {seed}: test accuracy {accuracies[-1]:.4f}, {seconds[-1]:.1f} s")
    print(f"  mean {np.mean(accuracies):.4f}; asked for: >= {RECIPE_FASHION_BOUND} in {RECIPE_FASHION_SECONDS:.0f} s")
    return bool(np.mean(accuracies) >= RECIPE_FASHION_BOUND and max(seconds) <= RECIPE_FASHION_SECONDS)


def recipe_california(folder: Path) -> bool:
    """The published network and parts, trained by a recipe that was chosen by validation errors alone; eight seeds."""
    data, n_epochs, batch_size = California(folder), 200, 64
    x, x_val, x_test = data.standardised()
    n_steps, errors = n_epochs * -(-len(x) // batch_size), []
    print("\nCalifornia housing, 8-30-30-1 tanh, AdamW, dropout 0.03, averaged parameters, 200 epochs, the best one")
    for seed in range(8):
        model = fastbp.MLP([8, 30, 30, 1], activation="tanh", seed=seed)
        history = model.fit(
            x,
            data.y,
            optimizer=fastbp.AdamW(with_warmup(1e-2, n_steps), weight_decay=0.01),
            batch_size=batch_size,
            epochs=n_epochs,
            regularize=fastbp.Dropout(0.03),
            ema=0.999,
            use_ema=True,
            validation_data=(x_val, data.y_val),
            stop=fastbp.EarlyStopping(patience=n_epochs),
            seed=seed,
        )
        errors.append(model.loss(x_test, data.y_test))
        print(f"  seed {seed}: test MSE {errors[-1]:.4f}, validation MSE {history.validation_loss.min():.4f}, ", end="")
        print(f"{history.seconds.sum():.2f} s")
    print(f"  median {np.median(errors):.4f}; asked for: <= {RECIPE_CALIFORNIA_BOUND}", end="")
    print(f"; published {CALIFORNIA_PUBLISHED_MSE}")
    return bool(np.median(errors) <= RECIPE_CALIFORNIA_BOUND)


class Small:
    """A few rows of a set, drawn by the seed, and all others to be tested on; standardised by the training rows."""

    def __init__(self, x: np.ndarray, y: np.ndarray, n_train: int, n_validation: int, seed: int) -> None:
        order, n = np.random.default_rng(seed).permutation(len(x)), n_train + n_validation
        train, self.seed = order[:n_train], seed
        deviation = x[train].std(axis=0)
        x = ((x - x[train].mean(axis=0)) / np.where(deviation > 0.0, deviation, 1.0)).astype(np.float32)
        y = ((y - y[train].mean()) / y[train].std()).astype(np.float32)
        self.x, self.y = x[train], y[train]
        self.validation = x[order[n_train:n]], y[order[n_train:n]]
        self.test = x[order[n:]], y[order[n:]]

    def errors(self, activation: str, regularize: object, n_epochs: int = 300) -> tuple[float, float]:
        """Train x-64-64-1 in batches of 32; return validation and test error of the epoch of the lowest former."""
        n_steps = n_epochs * -(-len(self.x) // 32)
        model = fastbp.MLP([self.x.shape[1], 64, 64, 1], activation, seed=self.seed)
        model.fit(
            self.x,
            self.y,
            optimizer=fastbp.Adam(with_warmup(3e-3, n_steps)),
            epochs=n_epochs,
            regularize=regularize,  # type: ignore[arg-type]
            validation_data=self.validation,
            stop=fastbp.EarlyStopping(patience=n_epochs),
            seed=self.seed,
        )
        return model.loss(*self.validation), model.loss(*self.test)


def small_sets(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    names = ("bike", "kin40k")
    return {"california": datasets.california_housing(folder)} | {n: datasets.uci_regression(folder, n) for n in names}


def small(folder: Path) -> bool:
    """400 rows to train, 100 to validate; of the candidates the one with the lowest median validation error."""
    print("\n400 rows to train and 100 to choose by, x-64-64-1, 300 epochs, the best one: medians over ten seeds")
    shares = []
    for name, (x, y) in small_sets(folder).items():
        parts = [Small(x, y, 400, 100, seed) for seed in range(10)]
        found = {}
        for candidate, (activation, regularize) in SMALL_CANDIDATES.items():
            errors = [part.errors(activation, regularize) for part in parts]
            found[candidate] = np.median(errors, axis=0)
            print(f"  {name:11}{candidate:34} validation {found[candidate][0]:.4f}, test {found[candidate][1]:.4f}")
        chosen = min(found, key=lambda candidate: found[candidate][0])
        shares.append(found[chosen][1] / SMALL_BOUNDS[name])
        print(f"  {name}: {chosen}: {found[chosen][1]:.4f}; asked for: <= {SMALL_BOUNDS[name]}, ", end="")
        print(f"here {shares[-1]:.2f} of it")
    print(f"  asked for: one of them <= 0.90 of it; here {min(shares):.2f}")
    return max(shares) <= 1.0 and min(shares) <= 0.9


def dropout(folder: Path) -> bool:
    """1000 rows to train, 250 to stop by: the same network with and without dropout, ten seeds."""
    print(
        "\n1000 rows to train, 250 to stop by, x-64-64-1 ReLU, 300 epochs: test RMSE with dropout 0.1 over that without"
    )
    is_lower = []
    for name in ("bike", "kin40k"):
        x, y = small_sets(folder)[name]
        ratios = []
        for seed in range(10):
            part = Small(x, y, 1000, 250, seed)
            with_dropout, without = (part.errors("relu", each)[1] for each in (fastbp.Dropout(0.1), ()))
            ratios.append(np.sqrt(with_dropout / without))
        print(f"  {name:7} median {np.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}, ", end="")
        print(f"lower in {sum(ratio < 1 for ratio in ratios)} of 10 pairs")
        is_lower.append(np.median(ratios) < 1.0)
    return all(is_lower)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    datasets.add_data_option(parser)
    tasks = {
        "fashion": fashion,
        "california": california,
        "best": best_california,
        "recipe_fashion": recipe_fashion,
        "recipe_california": recipe_california,
        "small": small,
        "dropout": dropout,
    }
    parser.add_argument("--only", choices=tasks, help="one of the tasks; all by default")
    arguments = parser.parse_args()
    chosen = [arguments.only] if arguments.only else list(tasks)
    reached = [tasks[name](arguments.data) for name in chosen]
    sys.exit(not all(reached))


if __name__ == "__main__":
    main()
