"""A network that learns 300 patients by heart, and what helps: L2, dropout, noise on the inputs, early stopping.

    python examples/overfitting.py

The diabetes data that scikit-learn brings along (Efron, Hastie, Johnstone and Tibshirani, "Least angle regression",
2004): 442 patients, ten measurements each, and how far the disease has come a year later. Ten splits into 300 patients
to learn from and 142 to be tested on, standardised by the 300. Writes overfitting.png: on the left how the errors go on
in one of these runs, on the right the test errors of all.
"""

import matplotlib as mpl
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import RidgeCV

import fastbp

mpl.use("Agg")  # writes files, needs no screen
import matplotlib.pyplot as plt

N_TRAIN, N_SPLITS, N_EPOCHS = 300, 10, 200

# Name: options of `MLP.fit`. Rates are usual ones, not tuned to these data.
REMEDIES = {
    "none": {},
    "L2 0.03": {"regularize": fastbp.L2(0.03)},
    "dropout 0.5": {"regularize": fastbp.Dropout(0.5)},
    "input noise 0.5": {"regularize": fastbp.InputNoise(0.5)},
    "early stopping": {"validation_split": 0.2, "stop": fastbp.EarlyStopping(patience=20)},
    "dropout and\nearly stopping": {
        "regularize": fastbp.Dropout(0.5),
        "validation_split": 0.2,
        "stop": fastbp.EarlyStopping(patience=20),
    },
}


def split(seed):
    """Return x and y of a training and a test part, standardised by the training part."""
    x, y = load_diabetes(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    train, test = order[:N_TRAIN], order[N_TRAIN:]
    x, y = (x - x[train].mean(axis=0)) / x[train].std(axis=0), (y - y[train].mean()) / y[train].std()
    return x[train], y[train], x[test], y[test]


def fit(seed, options):
    """Return the test error, and the errors of both parts after each epoch."""
    x, y, x_test, y_test = split(seed)
    model = fastbp.MLP([10, 64, 64, 1], activation="relu", seed=seed)
    curves = []

    def watch(trainer, record):  # noqa: ARG001 - a callback gets both
        curves.append((trainer.model.loss(x, y), trainer.model.loss(x_test, y_test)))

    optimizer = fastbp.Adam(learning_rate=1e-3)
    model.fit(x, y, optimizer=optimizer, epochs=N_EPOCHS, batch_size=32, callbacks=watch, seed=seed, **options)
    return model.loss(x_test, y_test), np.array(curves)


def main() -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    errors = {}
    print(f"test error over {N_SPLITS} splits, in units of the variance of the targets\n")
    for name, options in REMEDIES.items():
        runs = [fit(seed, options) for seed in range(N_SPLITS)]
        errors[name] = [error for error, _ in runs]
        label = name.replace("\n", " ")
        print(f"{label:30} median {np.median(errors[name]):.3f}, {min(errors[name]):.3f} to {max(errors[name]):.3f}")
        if name in ("none", "dropout 0.5"):
            curves, colour = runs[0][1], "C3" if name == "none" else "C0"
            left.semilogy(curves[:, 0], "--", color=colour, label=f"training, {name}")
            left.semilogy(curves[:, 1], color=colour, label=f"test, {name}")
    ridge = []
    for seed in range(N_SPLITS):
        x, y, x_test, y_test = split(seed)
        ridge.append(np.mean((RidgeCV(np.logspace(-2, 3, 30)).fit(x, y).predict(x_test) - y_test) ** 2))
    print(f"{'ridge regression, for comparison':30} median {np.median(ridge):.3f}")
    left.set(xlabel="epoch", ylabel="mean squared error", title="one split")
    left.legend(frameon=False)
    right.boxplot(errors.values(), whis=(0, 100), medianprops={"color": "black"})
    right.set_xticks(range(1, len(errors) + 1), errors, fontsize=8)
    right.axhline(np.median(ridge), color="0.6", linestyle=":", label="ridge regression, median")
    right.set(ylabel="test error", title=f"{N_SPLITS} splits")
    right.legend(frameon=False)
    figure.savefig("overfitting.png", dpi=150)
    print("picture: overfitting.png")


if __name__ == "__main__":
    main()
