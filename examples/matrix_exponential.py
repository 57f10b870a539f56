"""Learn the exponential of 2 × 2 matrices, by full batches of 10 000 samples.

    python examples/matrix_exponential.py

The problem and network (4-32-16-4, tanh, Adam) of a published comparison: SimpleChains.jl takes 41 µs per step on 18
cores, PyTorch 1525 µs. Writes matrix_exponential.png.
"""

import matplotlib as mpl
import numpy as np

import fastbp

mpl.use("Agg")  # writes files, needs no screen
import matplotlib.pyplot as plt

N_SAMPLES = 10_000
N_STEPS = 10_000
PUBLISHED = {"SimpleChains.jl, 18 cores": 41, "PyTorch": 1525}  # µs per step


def expm(matrices: np.ndarray) -> np.ndarray:
    """Return the exponentials of real 2 × 2 matrices, (n, 2, 2).

    With s = trace / 2 and a traceless part b, b @ b = q² I, so that exp(a) = exp(s) (cosh(q) I + sinh(q) / q b); q may
    be imaginary (Higham, Functions of Matrices, 2008, section 10.2).
    """
    identity = np.eye(2)
    s = np.trace(matrices, axis1=1, axis2=2)[:, None, None] / 2
    b = matrices - s * identity
    q = np.sqrt(-np.linalg.det(b).astype(complex))[:, None, None]
    return (np.exp(s) * (np.cosh(q) * identity + np.sinh(q) / q * b)).real


def sample(rng: np.random.Generator, n_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return matrices of normal entries and their exponentials, both (n_samples, 4)."""
    matrices = rng.standard_normal((n_samples, 2, 2))
    return matrices.reshape(-1, 4).astype(np.float32), expm(matrices).reshape(-1, 4).astype(np.float32)


def draw(history: fastbp.History, y: np.ndarray, prediction: np.ndarray, path: str) -> None:
    """Write the loss curve, and predicted against true entries."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    left.loglog(history.epoch, history.loss)
    left.set(xlabel="step", ylabel="mean squared error")
    left.grid(alpha=0.3)
    right.plot(y.ravel(), prediction.ravel(), ".", markersize=2, alpha=0.4)
    low, high = np.quantile(y, [0.001, 0.999])
    right.plot([low, high], [low, high], color="black", linewidth=0.8)
    right.set(xlabel="entry of exp(A)", ylabel="predicted", xlim=(low, high), ylim=(low, high))
    figure.savefig(path, dpi=150)


def main() -> None:
    rng = np.random.default_rng(0)
    x, y = sample(rng, N_SAMPLES)
    x_test, y_test = sample(rng, N_SAMPLES)

    model = fastbp.MLP([4, 32, 16, 4], activation="tanh", seed=0)
    optimizer = fastbp.Adam(learning_rate=fastbp.schedules.CosineDecay(1e-2, N_STEPS))
    trainer = fastbp.Trainer(model, optimizer=optimizer, batch_size=None, seed=0)
    history = trainer.fit(x, y, epochs=N_STEPS, progress=True)

    prediction = model.predict(x_test)
    error = np.linalg.norm(prediction - y_test, axis=1) / np.linalg.norm(y_test, axis=1)
    print(f"compiled in {history.compile_seconds:.1f} s")
    print(f"mean squared error {history.loss[-1]:.2e} in training, {model.loss(x_test, y_test):.2e} on new matrices")
    print(
        f"relative error of a new matrix: median {np.median(error):.2%}, 90th percentile {np.quantile(error, 0.9):.2%}"
    )
    print(f"time per step of {N_SAMPLES} samples: {1e6 * history.seconds.sum() / trainer.n_steps:.0f} µs on one core")
    for name, microseconds in PUBLISHED.items():
        print(f"  published, {name}: {microseconds} µs")
    draw(history, y_test, prediction, "matrix_exponential.png")
    print("picture: matrix_exponential.png")


if __name__ == "__main__":
    main()
