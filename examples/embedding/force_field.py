"""Molecular dynamics of water on a potential that a network has learnt: forces by `embed.vjp`, all in compiled code.

    pip install '.[examples]' && python examples/embedding/force_field.py [--data H2O.dat] [--steps 100000] [--short]

H2O.dat holds ab-initio energies of water at some interatomic distances, as PES-Learn publishes them
(https://github.com/CCQC/PES-Learn, BSD-3). Without it the energies are those of a model of three Morse bonds.

Prints the error of energies that were not trained on, and of forces against central differences; follows the molecule
for some picoseconds and prints how far its energy drifts. Writes force_field.png.
"""

import argparse
import time

import matplotlib as mpl
import numpy as np
from numba import njit

import fastbp
from fastbp import embed, schedules

mpl.use("Agg")  # writes files, needs no screen
import matplotlib.pyplot as plt

HARTREE_PER_AMU_SQUARE_ANGSTROM = 0.2625499640  # in 1/fs**2
MASSES = np.array([1.00782503, 1.00782503, 15.99491462])  # amu: H, H, O
# Atoms of each distance, Å: H-H, and both O-H.
PAIRS = np.array([[0, 1], [0, 2], [1, 2]])
TIME_STEP = 0.05  # fs


def read(path: str) -> tuple:
    """Return the distances (n, 3) in Å and energies (n,) in hartree of a file."""
    table = np.genfromtxt(path, delimiter=",", skip_header=1)
    return table[:, :3], table[:, 3]


def generate(n: int) -> tuple:
    """Return distances and energies of a model molecule, around its equilibrium."""
    rng = np.random.default_rng(0)
    angle, bonds = rng.uniform(1.2, 2.5, n), rng.uniform(0.8, 1.25, (n, 2))
    squares = bonds[:, 0] ** 2 + bonds[:, 1] ** 2 - 2 * bonds.prod(axis=1) * np.cos(angle)
    distances = np.column_stack([np.sqrt(squares), bonds])
    depth, stiffness, rest = np.array([0.05, 0.18, 0.18]), np.array([1.2, 2.2, 2.2]), np.array([1.515, 0.958, 0.958])
    return distances, (depth * (1 - np.exp(-stiffness * (distances - rest))) ** 2).sum(axis=1)


def fit(distances: np.ndarray, energies: np.ndarray, epochs: int) -> tuple:
    """Train on both orders of the hydrogen atoms; return the network, shift and scale of x, and scale of energies."""
    both = np.concatenate([distances, distances[:, [0, 2, 1]]])
    shift, scale = both.mean(axis=0), both.std(axis=0)
    scale_energy = energies.std()
    x, y = (both - shift) / scale, np.tile((energies - energies.mean()) / scale_energy, 2)
    model = fastbp.MLP([3, 32, 32, 1], "silu", dtype="float64", seed=0)
    n_steps = epochs * -(-len(x) // 32)
    model.fit(x, y, optimizer=fastbp.Adam(schedules.CosineDecay(5e-3, n_steps)), batch_size=32, epochs=epochs, seed=0)
    return model, shift, scale, scale_energy


@njit(nogil=True)
def potential(net, shift, scale, scale_energy, positions, forces, x, d_out, out, d_x):
    """Write the forces on three atoms, in hartree/Å; return the energy in hartree.

    The mean over both orders of the hydrogen atoms: the energy does not know which is which. x, d_x : (2, 3) scratch.
    out, d_out : (2, 1) scratch.
    """
    for order in range(2):
        for j in range(3):
            pair = PAIRS[j if order == 0 or j == 0 else 3 - j]
            x[order, j] = (np.sqrt(((positions[pair[0]] - positions[pair[1]]) ** 2).sum()) - shift[j]) / scale[j]
    if embed.predict(net, x, out) != embed.OK or embed.vjp(net, x, d_out, d_x) != embed.OK:
        return np.nan
    forces[:] = 0.0
    for j in range(3):
        first, second = PAIRS[j]
        difference = positions[first] - positions[second]
        slope = d_x[0, j] / scale[j] + d_x[1, j if j == 0 else 3 - j] / scale[j if j == 0 else 3 - j]
        force = -0.5 * scale_energy * slope / np.sqrt((difference**2).sum()) * difference
        forces[first] += force
        forces[second] -= force
    return 0.5 * scale_energy * (out[0, 0] + out[1, 0])


@njit(nogil=True)
def simulate(net, shift, scale, scale_energy, positions, velocities, masses, n_steps, every, distances, energies):
    """Follow the molecule by velocity Verlet (Swope et al. 1982); record distances and energies every so many steps."""
    forces, x, d_x = np.empty((3, 3)), np.empty((2, 3)), np.empty((2, 3))
    out, d_out = np.empty((2, 1)), np.ones((2, 1))
    half = 0.5 * TIME_STEP * HARTREE_PER_AMU_SQUARE_ANGSTROM / masses.reshape(3, 1)
    energy = potential(net, shift, scale, scale_energy, positions, forces, x, d_out, out, d_x)
    for step in range(n_steps):
        velocities += half * forces
        positions += TIME_STEP * velocities
        energy = potential(net, shift, scale, scale_energy, positions, forces, x, d_out, out, d_x)
        velocities += half * forces
        if step % every == 0:
            kinetic = 0.5 * (masses.reshape(3, 1) * velocities**2).sum() / HARTREE_PER_AMU_SQUARE_ANGSTROM
            energies[step // every] = energy + kinetic
            distances[step // every] = x[0] * scale + shift
    return energy


def force_error(net, shift, scale, scale_energy, positions) -> float:
    """Return the largest error of the forces against central differences, over the largest force."""
    scratch = np.empty((2, 3)), np.ones((2, 1)), np.empty((2, 1)), np.empty((2, 3))
    arguments, forces = (net, shift, scale, scale_energy), np.empty((3, 3))
    potential(*arguments, positions, forces, *scratch)
    expected, step = np.empty((3, 3)), 1e-5
    for index in np.ndindex(3, 3):
        shifted = [positions.copy(), positions.copy()]
        shifted[0][index] += step
        shifted[1][index] -= step
        high, low = (potential(*arguments, moved, np.empty((3, 3)), *scratch) for moved in shifted)
        expected[index] = (low - high) / (2 * step)
    return float(np.abs(forces - expected).max() / np.abs(forces).max())


def draw(errors: np.ndarray, times: np.ndarray, distances: np.ndarray, drift: np.ndarray, path: str) -> None:
    """Write the errors of energies, the first tenth of a picosecond, and the drift of the energy."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    left.hist(100 * errors, bins=30)
    left.set(xlabel="error of an energy, % of their spread", ylabel="energies not trained on")
    shown = times < 100.0
    for column, name in ((1, "first O-H"), (2, "second O-H"), (0, "H-H")):
        middle.plot(times[shown], distances[shown, column], label=name, linewidth=0.8)
    middle.set(xlabel="time, fs", ylabel="distance, Å")
    middle.legend(loc="center right")
    right.plot(times / 1000, drift, linewidth=0.8)
    right.set(xlabel="time, ps", ylabel="change of energy / energy of motion")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="H2O.dat")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--short", action="store_true", help="a small part of all that, in seconds")
    arguments = parser.parse_args()
    epochs, n_steps = (200, 2000) if arguments.short else (2000, arguments.steps)
    distances, energies = read(arguments.data) if arguments.data else generate(1000)
    order = np.random.default_rng(0).permutation(len(distances))
    test, train = order[:100], order[100:]
    model, shift, scale, scale_energy = fit(distances[train], energies[train], epochs)
    predicted = model.predict((distances[test] - shift) / scale)[:, 0]
    errors = predicted - (energies[test] - energies[train].mean()) / scale_energy
    print(f"energies not trained on: RMSE {100 * np.sqrt((errors**2).mean()):.2f} % of their spread")

    net, lowest = model.compiled(), distances[energies.argmin()]
    half_base = lowest[0] / 2
    height = np.sqrt(((lowest[1] + lowest[2]) / 2) ** 2 - half_base**2)
    positions = np.array([[-half_base, 0.0, 0.0], [half_base, 0.0, 0.0], [0.0, height, 0.0]])
    positions[0] += [0.03, -0.05, 0.0]
    network = net, shift, scale, scale_energy
    print(f"forces: {force_error(*network, positions):.1e} from central differences")
    velocities = np.array([[0.0, 0.004, 0.002], [0.003, -0.004, 0.0], [0.0, 0.0, 0.0]])
    velocities -= MASSES @ velocities / MASSES.sum()
    every = max(1, n_steps // 20_000)
    records = np.empty((n_steps // every, 3)), np.empty(n_steps // every)
    simulate(*network, positions.copy(), velocities.copy(), MASSES, 1, 1, *records)  # compiles
    start = time.perf_counter()
    simulate(*network, positions, velocities, MASSES, n_steps, every, *records)
    seconds = time.perf_counter() - start
    motion = records[1][0] - (energies.min() - energies[train].mean())
    drift = (records[1] - records[1][0]) / motion
    print(f"{n_steps} steps in {seconds:.2f} s, {1e6 * seconds / n_steps:.2f} µs each; energy changed by at most "
          f"{np.abs(drift).max():.1e} of the energy of motion")  # fmt: skip
    times = TIME_STEP * every * np.arange(len(drift))
    draw(errors, times, records[0], drift, "force_field.png")


if __name__ == "__main__":
    main()
