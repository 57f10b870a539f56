"""A scikit-learn pipeline and grid search on digits, with scikit-learn's MLP and with fastbp's in its place.

    python examples/sklearn_pipeline.py

Writes sklearn_pipeline.png: the accuracy of each setting, and the seconds of both searches.
"""

import time
import warnings

from sklearn import neural_network
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from fastbp.sklearn import MLPClassifier

GRID = {
    "mlp__alpha": [1e-4, 1e-2, 1.0],
    "mlp__hidden_layer_sizes": [(32,), (64, 64)],
}


def search_with(estimator, x, y):
    """Return a finished search, and the seconds that it took."""
    pipeline = Pipeline([("scale", StandardScaler()), ("mlp", estimator)])
    begin = time.perf_counter()
    search = GridSearchCV(pipeline, GRID, cv=3).fit(x, y)
    return search, time.perf_counter() - begin


def main():
    warnings.simplefilter("ignore", ConvergenceWarning)
    x, y = load_digits(return_X_y=True)
    options = {"max_iter": 20, "tol": 0.0, "random_state": 0}
    MLPClassifier((4,), max_iter=1).fit(x[:50], y[:50])  # compiles, the first time on a machine
    found = {
        "scikit-learn": search_with(neural_network.MLPClassifier(**options), x, y),
        "fastbp": search_with(MLPClassifier(**options), x, y),
    }
    for name, (search, seconds) in found.items():
        print(f"{name:14} best accuracy {search.best_score_:.3f} with {search.best_params_}, {seconds:.1f} s")
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        return
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for name, (search, _) in found.items():
        left.errorbar(
            range(len(search.cv_results_["params"])),
            search.cv_results_["mean_test_score"],
            search.cv_results_["std_test_score"],
            marker="o",
            linestyle="none",
            capsize=3,
            label=name,
        )
    labels = [f"{p['mlp__alpha']:g}\n{p['mlp__hidden_layer_sizes']}" for p in search.cv_results_["params"]]
    left.set_xticks(range(len(labels)), labels, fontsize=8)
    left.set_xlabel("alpha and hidden layers")
    left.set_ylabel("accuracy over 3 folds")
    left.legend(loc="center")
    right.bar(list(found), [seconds for _, seconds in found.values()], color=["C0", "C1"])
    right.set_ylabel("seconds of the search")
    figure.suptitle("GridSearchCV on digits: 18 fits of 20 epochs")
    figure.savefig("sklearn_pipeline.png", dpi=120)


if __name__ == "__main__":
    main()
