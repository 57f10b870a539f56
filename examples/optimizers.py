"""Watch optimizers race down the same slope: the handwritten digits bundled with scikit-learn.

    python examples/optimizers.py

Every run starts from the same parameters and sees the samples in the same order; gradient descent takes all of them per
step. Writes the loss curves to optimizers.png.
"""

import matplotlib as mpl
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import fastbp

mpl.use("Agg")  # writes files, needs no screen
import matplotlib.pyplot as plt

SIZES = [64, 64, 32, 10]
N_EPOCHS = 40
BATCH_SIZE = 32

# name: (optimizer, batch_size); None is all samples.
RACERS = {
    "gradient descent, all samples": (fastbp.SGD(learning_rate=0.3), None),
    "SGD": (fastbp.SGD(learning_rate=0.03), BATCH_SIZE),
    "SGD, momentum": (fastbp.SGD(learning_rate=0.03, momentum=0.9), BATCH_SIZE),
    "SGD, Nesterov momentum": (fastbp.SGD(learning_rate=0.03, momentum=0.9, nesterov=True), BATCH_SIZE),
    "Adagrad": (fastbp.Adagrad(learning_rate=0.01), BATCH_SIZE),
    "RMSprop": (fastbp.RMSprop(learning_rate=1e-3), BATCH_SIZE),
    "Adam": (fastbp.Adam(learning_rate=2e-3), BATCH_SIZE),
    "Adam, warm-up and cosine decay": (
        fastbp.Adam(learning_rate=fastbp.schedules.Warmup(200, fastbp.schedules.CosineDecay(5e-3, 1600))),
        BATCH_SIZE,
    ),
}


def main() -> None:
    images, labels = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(images / 16, labels, test_size=0.2, stratify=labels, random_state=0)
    figure, axes = plt.subplots(figsize=(11, 5), layout="constrained")
    print(f"{'':32} {'training loss':>14} {'test accuracy':>14} {'steps':>7} {'steps/s':>9}")
    for name, (optimizer, batch_size) in RACERS.items():
        model = fastbp.MLP(SIZES, activation="tanh", output="softmax", seed=0)
        trainer = fastbp.Trainer(model, optimizer=optimizer, batch_size=batch_size, seed=0)
        history = trainer.fit(x, y, epochs=N_EPOCHS)
        accuracy = np.mean(model.predict(x_test).argmax(axis=1) == y_test)
        speed = trainer.n_steps / history.seconds.sum()
        print(f"{name:32} {history.loss[-1]:14.6f} {accuracy:14.4f} {trainer.n_steps:7} {speed:9,.0f}")
        axes.semilogy(history.epoch, history.loss, label=f"{name}\n(test accuracy {accuracy:.3f})")
    axes.set(xlabel="epoch", ylabel="training loss (cross-entropy)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=9, frameon=False)
    figure.savefig("optimizers.png", dpi=150)
    print("picture: optimizers.png")


if __name__ == "__main__":
    main()
