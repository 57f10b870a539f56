"""Tell ten kinds of clothes apart: Fashion-MNIST, 60 000 images of 28 × 28 pixels.

    python examples/fashion_mnist.py --data FOLDER

FOLDER (or the variable FASTBP_DATA) holds the four gzipped IDX files of github.com/zalandoresearch/fashion-mnist, or a
folder fashion_mnist with them. Writes fashion_mnist.png.
"""

import argparse
import gzip
import os
from pathlib import Path

import matplotlib as mpl
import numpy as np

import fastbp

mpl.use("Agg")  # writes files, needs no screen
import matplotlib.pyplot as plt

CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
N_VALIDATION = 5000
N_EPOCHS = 20
BATCH_SIZE = 128


def read_idx(path: Path) -> np.ndarray:
    """Return the array of unsigned bytes of a gzipped IDX file."""
    content = gzip.decompress(path.read_bytes())
    n_axes = content[3]
    shape = np.frombuffer(content, ">u4", n_axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * n_axes).reshape(shape)


def load(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 784), float32 from 0 to 1, and labels (n,) of "train" or "t10k"."""
    images = read_idx(folder / f"{part}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz")
    return images.reshape(len(images), -1) / np.float32(255), labels


def draw(history: fastbp.History, x: np.ndarray, y: np.ndarray, probabilities: np.ndarray, path: str) -> None:
    """Write the accuracy against the epoch beside the test images that the network was surest of, and wrong."""
    figure = plt.figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.4))
    axes = left.subplots()
    axes.plot(history.epoch, history.accuracy, label="training")
    axes.plot(history.epoch, history.validation_accuracy, label="validation")
    axes.set(xlabel="epoch", ylabel="accuracy", xticks=range(0, len(history) + 1, 5))
    axes.grid(alpha=0.3)
    axes.legend()
    predicted = probabilities.argmax(axis=1)
    sureness = np.where(predicted == y, 0, probabilities.max(axis=1))
    right.suptitle("surest mistakes: what it said (and what it is)", fontsize=10)
    for picture, i in zip(right.subplots(2, 5).ravel(), sureness.argsort()[:-11:-1], strict=True):
        picture.imshow(x[i].reshape(28, 28), cmap="gray_r")
        picture.set_title(f"{CLASSES[predicted[i]]}\n({CLASSES[y[i]]})", fontsize=8)
        picture.axis("off")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("FASTBP_DATA"), help="folder of the data")
    folder = parser.parse_args().data
    if folder is None:
        parser.error("--data FOLDER is needed")
    if (folder / "fashion_mnist").is_dir():
        folder = folder / "fashion_mnist"
    x, y = load(folder, "train")
    x_test, y_test = load(folder, "t10k")

    n_steps = N_EPOCHS * -(-(len(x) - N_VALIDATION) // BATCH_SIZE)
    model = fastbp.MLP([784, 128, 10], activation="relu", output="softmax", seed=0)
    history = model.fit(
        x[N_VALIDATION:],
        y[N_VALIDATION:],
        optimizer=fastbp.Adam(learning_rate=fastbp.schedules.CosineDecay(2e-3, n_steps)),
        batch_size=BATCH_SIZE,
        epochs=N_EPOCHS,
        validation_data=(x[:N_VALIDATION], y[:N_VALIDATION]),
        stop=[fastbp.EarlyStopping(patience=8)],
        progress=True,
        seed=0,
    )

    probabilities = model.predict(x_test)
    accuracy = (probabilities.argmax(axis=1) == y_test).mean()
    print(f"compiled in {history.compile_seconds:.1f} s; {history.stop_reason}")
    print(f"{history.seconds.mean():.2f} s per epoch on one core, validation included")
    print(f"test accuracy {accuracy:.4f}")
    draw(history, x_test, y_test, probabilities, "fashion_mnist.png")
    print("picture: fashion_mnist.png")


if __name__ == "__main__":
    main()
