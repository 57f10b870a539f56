"""Learn to read handwritten digits: 1797 images of 8 × 8 pixels, bundled with scikit-learn.

    pip install '.[examples]' && python examples/digits.py

Prints the accuracy on images that were not trained on, and writes the training curve to digits.png.
"""

import matplotlib as mpl
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import fastbp

mpl.use("Agg")  # writes files, needs no screen
import matplotlib.pyplot as plt

N_EPOCHS = 60
BATCH_SIZE = 32


def load() -> tuple:
    """Return x_train, x_test, y_train, y_test; pixels from 0 to 1, labels from 0 to 9."""
    images, labels = load_digits(return_X_y=True)
    return train_test_split(images / 16, labels, test_size=0.2, stratify=labels, random_state=0)


def draw(history: fastbp.History, test_accuracy: float, path: str) -> None:
    """Write loss and accuracy against the epoch."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    left.semilogy(history.epoch, history.loss, label="training")
    left.semilogy(history.epoch, history.validation_loss, label="validation")
    left.set(xlabel="epoch", ylabel="cross-entropy")
    right.plot(history.epoch, history.accuracy, label="training")
    right.plot(history.epoch, history.validation_accuracy, label="validation")
    right.axhline(test_accuracy, color="gray", linestyle=":", label=f"test, at the end: {test_accuracy:.4f}")
    right.set(xlabel="epoch", ylabel="accuracy", ylim=(0.9, 1.002))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    x_train, x_test, y_train, y_test = load()
    x_fit, x_val, y_fit, y_val = train_test_split(x_train, y_train, test_size=0.1, stratify=y_train, random_state=0)

    n_steps = N_EPOCHS * -(-len(x_fit) // BATCH_SIZE)
    model = fastbp.MLP([64, 128, 10], activation="relu", output="softmax", seed=0)
    print(f"{model.n_params} parameters, {len(x_fit)} training images")
    print("compiling the kernels for this processor, unless an earlier run has left them in the cache ...")
    history = model.fit(
        x_fit,
        y_fit,
        optimizer=fastbp.AdamW(learning_rate=fastbp.schedules.CosineDecay(5e-3, n_steps), weight_decay=0.1),
        batch_size=BATCH_SIZE,
        epochs=N_EPOCHS,
        validation_data=(x_val, y_val),
        progress=True,
        seed=0,
    )

    test_accuracy = (model.predict(x_test).argmax(axis=1) == y_test).mean()
    print(f"compiled in {history.compile_seconds:.1f} s")
    print(
        f"trained for {n_steps} steps in {history.seconds.sum():.2f} s: {n_steps / history.seconds.sum():,.0f} steps/s"
    )
    print(f"test accuracy {test_accuracy:.4f} on {len(x_test)} images")
    draw(history, test_accuracy, "digits.png")
    print("training curve: digits.png")


if __name__ == "__main__":
    main()
