"""scikit-learn's MLPs beside fastbp's estimators: fits, `partial_fit`, one prediction, a grid search.

    python perf/estimators.py [--data FOLDER] [--rounds 5]

Everything runs in this process, pinned to one core, in turns; the same dtype, parameters and epochs (`tol=0`: all are
run). Prints the medians of the ratios of times, theirs over fastbp's, and the scores of both. The exit status is 1 if a
ratio is below its floor: 3 of fits, 2.5 of Fashion-MNIST (10 000 rows), 1 / 0.35 of `partial_fit` of 200 rows, 1 of one
prediction, 3 of the search.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from sklearn import datasets, neural_network
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import StandardScaler, scale

import fastbp.sklearn
from harness import options
from harness.datasets import add_data_option, california_housing, fashion_mnist

FIT, LARGE, PARTIAL, PREDICT, SEARCH = 3.0, 2.5, 1 / 0.35, 1.0, 3.0  # floors


class Case(NamedTuple):
    name: str
    kind: str  # of estimator
    X: Any
    y: Any
    options: dict[str, Any]
    floor: float


def cases(folder: Any) -> list[Case]:
    """Return the sets, inputs scaled, each in both dtypes."""
    digits, labels = datasets.load_digits(return_X_y=True)
    cancer, ill = datasets.load_breast_cancer(return_X_y=True)
    diabetes, progress = datasets.load_diabetes(return_X_y=True)
    moons, half = datasets.make_moons(1000, noise=0.2, random_state=0)
    sets = [
        ("digits", "MLPClassifier", digits / 16, labels, {}, FIT),
        ("breast cancer", "MLPClassifier", scale(cancer), ill, {}, FIT),
        ("moons", "MLPClassifier", moons, half, {"hidden_layer_sizes": (32, 32)}, FIT),
        ("diabetes", "MLPRegressor", scale(diabetes), scale(progress), {}, FIT),
        ("digits, lbfgs", "MLPClassifier", digits / 16, labels, {"solver": "lbfgs", "max_iter": 50}, FIT),
        (
            "diabetes, lbfgs",
            "MLPRegressor",
            scale(diabetes),
            scale(progress),
            {"solver": "lbfgs", "max_iter": 100},
            FIT,
        ),
    ]
    x, y = california_housing(folder)
    sets.append(("California", "MLPRegressor", scale(x), scale(y), {"max_iter": 5}, FIT))
    images, classes = fashion_mnist(folder, "train")
    few = {"max_iter": 3, "hidden_layer_sizes": (128,)}
    sets.append(("Fashion-MNIST 10k", "MLPClassifier", images[:10_000], classes[:10_000], few, LARGE))
    found = []
    for name, kind, x, y, own, floor in sets:
        for dtype in ("float32", "float64"):
            numbers = np.asarray(y, dtype) if kind == "MLPRegressor" else y
            found.append(Case(f"{name}, {dtype}", kind, np.asarray(x, dtype), numbers, own, floor))
    return found


def pair(kind: str, **given: Any) -> list[Any]:
    """Return fastbp's estimator and scikit-learn's."""
    shared = {"max_iter": 30, "tol": 0.0, "n_iter_no_change": 10_000, "random_state": 0} | given
    return [getattr(module, kind)(**shared) for module in (fastbp.sklearn, neural_network)]


def ratio(calls: list[Callable[[], Any]], rounds: int) -> float:
    """Return the median of the times of the second call over those of the first, in turns."""
    ratios = []
    for call in calls:
        call()
    for _ in range(rounds):
        times = []
        for call in calls:
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        ratios.append(times[1] / times[0])
    return median(ratios)


def show(name: str, value: float, floor: float, more: str = "") -> bool:
    print(f"{name:28} {value:6.2f} times as fast {'' if value >= floor else f'BELOW {floor:.2f} '}{more}", flush=True)
    return value >= floor


def fits(folder: Any, rounds: int) -> bool:
    is_good = True
    for case in cases(folder):
        estimators = pair(case.kind, **case.options)
        value = ratio([partial(each.fit, case.X, case.y) for each in estimators], rounds)
        scores = [each.score(case.X, case.y) for each in estimators]
        is_good &= show(case.name, value, case.floor, f"(scores {scores[0]:.3f} and {scores[1]:.3f})")
    return is_good


def calls(rounds: int) -> bool:
    x, y = datasets.load_digits(return_X_y=True)
    x = x / 16
    estimators = pair("MLPClassifier", max_iter=5)
    for each in estimators:
        each.fit(x, y)
    one = [lambda each=each: [each.predict(x[:1]) for _ in range(50)] for each in estimators]
    some = [lambda each=each: [each.partial_fit(x[:200], y[:200]) for _ in range(20)] for each in estimators]
    is_good = show("predict of one", ratio(one, 5 * rounds), PREDICT)
    return show("partial_fit of 200", ratio(some, 5 * rounds), PARTIAL) and is_good


def search(rounds: int) -> bool:
    x, y = datasets.load_digits(return_X_y=True)
    x = StandardScaler().fit_transform(x)
    grid = {"alpha": [1e-4, 1e-2], "hidden_layer_sizes": [(32,), (64, 64)]}
    searches = [GridSearchCV(each, grid, cv=3) for each in pair("MLPClassifier", max_iter=20)]
    return show(
        "grid search of 12 fits", ratio([lambda each=each: clone(each).fit(x, y) for each in searches], rounds), SEARCH
    )


def main() -> None:
    parser = options.parser_of(__doc__)
    add_data_option(parser)
    options.add_rounds(parser, 5)
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    warnings.simplefilter("ignore")
    print(f"{options.processor()}; one core, medians of {arguments.rounds} rounds")
    done = [fits(arguments.data, arguments.rounds), calls(arguments.rounds), search(arguments.rounds)]
    options.exit_with(all(done))


if __name__ == "__main__":
    main()
