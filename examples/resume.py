"""A fit that is killed in mid-epoch, goes on in another process, and ends with the bits of one that nobody disturbed.

    python examples/resume.py

Starts itself as a program that trains with a checkpoint, kills that twice without warning (SIGKILL), and once politely
(SIGTERM), starts it again each time, and compares what comes out with a fit in one go.
"""

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import fastbp

EPOCHS = 300


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 4))
    return x, np.sin(3 * x[:, 0]) * x[:, 1] + 0.1 * rng.normal(size=4000)


def train(path):
    """Train, or complete the training that was begun, with all that could get lost on the way."""
    x, y = data()
    trainer = fastbp.Trainer(
        fastbp.MLP([4, 64, 64, 1], "tanh", seed=0),
        optimizer=fastbp.AdamW(fastbp.schedules.CosineDecay(2e-3, EPOCHS * 57)),
        batch_size=64,
        regularize=fastbp.Dropout(0.1),
        ema=0.999,
        use_ema=True,
        seed=0,
    )
    stop = fastbp.EarlyStopping(patience=100)
    return trainer.fit(
        x, y, epochs=EPOCHS, validation_split=0.1, stop=stop, checkpoint=path, checkpoint_every=0.1, resume=True
    )


def killed_by(number, path):
    """Start a program that trains, and send it a signal after its file has been written anew."""
    before = path.stat().st_mtime_ns if path.exists() else None
    process = subprocess.Popen([sys.executable, __file__, str(path)])
    while process.poll() is None and (not path.exists() or path.stat().st_mtime_ns == before):
        time.sleep(0.01)
    time.sleep(0.15)
    process.send_signal(number)
    return process.wait()


def main():
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder) / "whole.npz", Path(folder) / "broken.npz"
        train(whole)
        for name in ("SIGKILL", "SIGKILL", "SIGTERM"):
            status = killed_by(getattr(signal, name), broken)
            print(f"{name}: the process ended with {status}, after {fastbp.load(broken).n_steps} steps")
        train(broken)
        one, other = fastbp.load(whole), fastbp.load(broken)
        print(f"{one.n_steps} and {other.n_steps} steps; {one.history!r}")
        assert one.model.params.tobytes() == other.model.params.tobytes()
        assert one.history.validation_loss.tobytes() == other.history.validation_loss.tobytes()
        print("Every bit is the same.")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train(sys.argv[1])
    else:
        main()
