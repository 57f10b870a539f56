"""Names that a user passes in, and what other libraries call the same thing."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["OTHER_NAMES", "folded", "name_of", "nearest"]

OTHER_NAMES: dict[str, tuple[str, ...]] = {
    # activations
    "identity": ("linear", "none", "id", "purelin"),
    "sigmoid": ("logistic", "expit", "logsig", "sigm"),
    "tanh": ("hyperbolictangent", "tansig"),
    "relu": ("rectifier", "rectify", "rectifiedlinear", "poslin"),
    "leaky_relu": ("lrelu",),
    "elu": ("exponentiallinear",),
    "selu": ("scaledelu", "scaledexponentiallinear"),
    "gelu": ("gelunew", "geluexact", "gelutanh"),
    "silu": ("swish", "sigmoidlinear"),
    "softplus": ("softrelu", "smoothrelu"),
    "softmax": ("logsoftmax", "normalizedexponential"),
    # losses
    "mse": ("meansquarederror", "squarederror", "l2", "quadratic", "leastsquares"),
    "mae": ("meanabsoluteerror", "absoluteerror", "l1"),
    "huber": ("smoothl1", "smoothmae"),
    "binary_cross_entropy": ("bce", "bcewithlogits", "sigmoidcrossentropy", "logistic", "log", "binarylog"),
    "cross_entropy": (
        "ce",
        "categoricalcrossentropy",
        "sparsecategoricalcrossentropy",
        "softmaxcrossentropy",
        "negativeloglikelihood",
        "nll",
        "log",
    ),
    # initializers
    "auto": ("default",),
    "he_normal": ("kaimingnormal", "kaiming", "he", "msra", "msranormal"),
    "he_uniform": ("kaiminguniform", "msrauniform"),
    "glorot_normal": ("xaviernormal",),
    "glorot_uniform": ("xavieruniform", "xavier", "glorot"),
    "lecun_normal": ("lecun", "variancescaling"),
    "orthogonal": ("orthonormal",),
    # optimizers
    "SGD()": ("gd", "gradientdescent", "stochasticgradientdescent"),
    "SGD(momentum=0.9)": ("momentum", "sgdmomentum", "sgdwithmomentum", "heavyball"),
    "SGD(momentum=0.9, nesterov=True)": ("nesterov", "nag", "nesterovmomentum"),
}
"""For each name of fastbp's what else it is called, `folded`; one name may stand in several places."""


def folded(name: str) -> str:
    """Return `name` without what spellings differ in: case, hyphens, underscores, spaces and a final "loss"."""
    letters = "".join(character for character in name.lower() if character.isalnum())
    return letters.removesuffix("loss") or letters


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return which of the `known` names is meant by `name`: another library's, or a misspelt one; None if none is.

    Of two that share another name, the first.
    """
    by_spelling: dict[str, str] = {}
    for known_name in known:
        for spelling in (folded(known_name), *OTHER_NAMES.get(known_name, ())):
            by_spelling.setdefault(spelling, known_name)
    matches = difflib.get_close_matches(folded(name), by_spelling, n=1, cutoff=0.6)
    return by_spelling[matches[0]] if matches else None


def name_of(name: object, known: Iterable[str], what: str) -> str:
    """Return `name` if it is one of `known`.

    Parameters
    ----------
    name : object
        What the user passed.
    known : iterable of str
        The permitted names.
    what : str
        The argument's name, for the message.

    Raises
    ------
    TypeError
        If `name` is not a str.
    ValueError
        If `name` is unknown; the message proposes what it probably means.
    """
    names = tuple(known)
    listed = ", ".join(repr(known_name) for known_name in names)
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a str, one of {listed}, got {type(name).__name__}")
    if name in names:
        return name
    meant = nearest(name, names)
    proposal = f" (did you mean {meant!r}?)" if meant else ""
    raise ValueError(f"{what} must be one of {listed}, got {name!r}{proposal}")
