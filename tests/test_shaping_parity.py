"""What shapes a step beside PyTorch, over 100 steps in float64."""

from itertools import pairwise

import numpy as np
import pytest

import fastbp

N_STEPS = 100


def problem(n_out=3):
    rng = np.random.default_rng(0)
    return rng.normal(size=(40, 4)), rng.integers(0, n_out, 40)


def trained(output="softmax", **options):
    x, y = problem()
    model = fastbp.MLP([4, 9, 7, 3], "tanh", output, dtype="float64", seed=0)
    start = model.params.copy()
    trainer = fastbp.Trainer(model, optimizer=fastbp.Adam(0.01), seed=0, **options)
    for _ in range(N_STEPS):
        trainer.step(x, y if output == "softmax" else np.eye(3)[y])
    return trainer, start


def trained_by_torch(torch, start, penalty=None, clip=None, afterwards=None, loss=None):
    """The parameters after the same steps; each layer's in fastbp's layout, concatenated."""
    x, y = (torch.tensor(part) for part in problem())
    sizes, parameters, at = [4, 9, 7, 3], [], 0
    for n_in, n_out in pairwise(sizes):
        for shape in ((n_in, n_out), (n_out,)):
            n = int(np.prod(shape))
            parameters.append(torch.tensor(start[at : at + n].reshape(shape), requires_grad=True))
            at += n
    optimizer = torch.optim.Adam(parameters, lr=0.01, eps=1e-8)
    loss = loss or torch.nn.CrossEntropyLoss()
    for _ in range(N_STEPS):
        h = x
        for i in range(0, 6, 2):
            h = h @ parameters[i] + parameters[i + 1]
            h = torch.tanh(h) if i < 4 else h
        value = loss(h, y)
        if penalty is not None:
            value = value + penalty(parameters)
        optimizer.zero_grad()
        value.backward()
        if clip is not None:
            clip(parameters)
        optimizer.step()
        if afterwards is not None:
            with torch.no_grad():
                afterwards(parameters)
    return np.concatenate([p.detach().numpy().ravel() for p in parameters])


def cases(torch):
    clip = torch.nn.utils
    return {
        "L2": ({"regularize": fastbp.L2(0.01)}, {"penalty": lambda ps: sum(0.005 * (p**2).sum() for p in ps[::2])}),
        "L2 of biases": (
            {"regularize": fastbp.L2(0.01, biases=True)},
            {"penalty": lambda ps: sum(0.005 * (p**2).sum() for p in ps)},
        ),
        "L1": ({"regularize": fastbp.L1(0.002)}, {"penalty": lambda ps: sum(0.002 * p.abs().sum() for p in ps[::2])}),
        "clip_norm": ({"clip_norm": 0.05}, {"clip": lambda ps: clip_norm_exactly(torch, ps, 0.05)}),
        "clip_value": ({"clip_value": 0.003}, {"clip": lambda ps: clip.clip_grad_value_(ps, 0.003)}),
        "MaxNorm": (
            {"regularize": fastbp.MaxNorm(0.9)},
            {"afterwards": lambda ps: [p.copy_(torch.renorm(p, 2, 1, 0.9)) for p in ps[::2]]},
        ),
        "LabelSmoothing": (
            {"regularize": fastbp.LabelSmoothing(0.1)},
            {"loss": torch.nn.CrossEntropyLoss(label_smoothing=0.1)},
        ),
    }


def clip_norm_exactly(torch, parameters, most):
    """``clip_grad_norm_`` without the 1e-6 that it adds to the norm."""
    norm = torch.linalg.vector_norm(torch.cat([p.grad.ravel() for p in parameters]))
    for p in parameters:
        p.grad *= min(1.0, most / norm.item())


@pytest.mark.parametrize("name", ["L2", "L2 of biases", "L1", "clip_norm", "clip_value", "MaxNorm", "LabelSmoothing"])
def test_hundred_steps_equal_pytorchs(name):
    torch = pytest.importorskip("torch")
    options, of_torch = cases(torch)[name]
    trainer, start = trained(**options)
    expected = trained_by_torch(torch, start, **of_torch)
    # PyTorch's renorm adds 1e-7 to the norm that it divides by.
    tolerance = 1e-5 if name == "MaxNorm" else 1e-10
    np.testing.assert_allclose(trainer.model.params, expected, rtol=tolerance, atol=tolerance)
    plain, _ = trained()
    assert np.abs(trainer.model.params - plain.model.params).max() > 1e-3, "it changed something"


def test_average_is_pytorchs():
    torch = pytest.importorskip("torch")
    averaged = torch.optim.swa_utils.get_ema_avg_fn(0.9)
    trainer, start = trained(ema=0.9)
    means = []

    def follow(parameters):
        now = torch.cat([p.ravel() for p in parameters]).clone()
        means.append(averaged(means[-1], now, None) if means else now)  # as `AveragedModel`

    trained_by_torch(torch, start, afterwards=follow)
    np.testing.assert_allclose(trainer.ema_params, means[-1].numpy(), rtol=1e-10, atol=1e-12)
