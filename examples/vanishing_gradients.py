"""A deep sigmoid network whose gradients vanish, a deep ReLU one that explodes, and what mends them, step by step.

    python examples/vanishing_gradients.py

A wave along a line, learnt by networks of eight hidden layers. Each fit records its health (`health=`) and says in
words what is wrong with it. Writes vanishing_gradients.png: above, how large the gradients of the layers are at the
start; below, how the losses go on.
"""

import matplotlib as mpl
import numpy as np

import fastbp

mpl.use("Agg")  # writes files, needs no screen
import matplotlib.pyplot as plt

SIZES = [1] + [32] * 8 + [1]

# Name: activation, how weights start, and options of `MLP.fit`; each step mends the one before.
VANISHING = {
    "sigmoid": ("sigmoid", "glorot_uniform", {}),
    "tanh": ("tanh", "glorot_uniform", {}),
    "LeakyReLU, He": ("leaky_relu", "he_normal", {}),
    "ELU, He, clip_norm=1": ("elu", "he_normal", {"clip_norm": 1.0}),
}
EXPLODING = {
    "ReLU, weights too large": ("relu", 2.0, {}),
    "too large, clip_norm=1": ("relu", 2.0, {"clip_norm": 1.0}),
    "He": ("relu", 1.0, {}),
}


def data():
    """Return points of a line and a wave there."""
    x = np.linspace(-1.0, 1.0, 1000)[:, np.newaxis]
    return x / x.std(), np.sin(6.0 * x)


def network(activation, init):
    """Return a deep network; a number says how many times too large He's weights are."""
    if isinstance(init, str):
        return fastbp.MLP(SIZES, activation, init=init, seed=0)
    model = fastbp.MLP(SIZES, activation, init="he_normal", seed=0)
    model.params *= init
    return model


def fit(activation, init, options):
    """Train; return the history, of a divergence too."""
    model, (x, y) = network(activation, init), data()
    optimizer = fastbp.SGD(learning_rate=0.01, momentum=0.9)
    try:
        model.fit(x, y, optimizer=optimizer, epochs=60, health=20, seed=0, **options)
    except fastbp.DivergenceError as error:
        print(f"DivergenceError: {error}")
    return model.history


def draw(axes, name, history):
    """Draw the layers' gradients in the first step above, and the losses below."""
    above, below = axes
    health = history.health
    if len(health):
        gradients = health.gradient_norm[0] / np.sqrt([layer.n_params for layer in health.layers])
        above.plot(gradients, marker="o", label=name)
    if len(history) > 1:
        below.plot(history.epoch, history.loss, label=name)
    else:
        below.plot([], [], label=f"{name} (diverges)")


def main():
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained", sharey="row")
    for column, (title, steps) in enumerate({"Vanishing": VANISHING, "Exploding": EXPLODING}.items()):
        for name, (activation, init, options) in steps.items():
            print(f"--- {name}")
            history = fit(activation, init, options)
            print(history.health.report())
            if len(history):
                print(f"Loss after {len(history)} epochs: {history.loss[-1]:.3g}")
            draw(axes[:, column], name, history)
        axes[0, column].set(title=title, xlabel="layer", ylabel="gradient of a weight at the start", yscale="log")
        axes[1, column].set(xlabel="epoch", ylabel="loss", yscale="log", ylim=(1e-5, 10))
        axes[1, column].legend(fontsize="small")
    figure.savefig("vanishing_gradients.png", dpi=150)


if __name__ == "__main__":
    main()
