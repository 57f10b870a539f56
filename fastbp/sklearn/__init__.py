"""Estimators for scikit-learn: its multilayer perceptrons, trained by fastbp.

``from fastbp.sklearn import MLPClassifier`` in the place of ``from sklearn.neural_network import MLPClassifier``. What
is the same and what differs is in ``docs/sklearn.md``. Needs scikit-learn 1.7 or later, the extra ``sklearn``.
"""

try:
    import sklearn as _sklearn  # noqa: F401 - whether it is there
except ImportError as error:
    raise ImportError("fastbp.sklearn needs scikit-learn 1.7 or later: pip install 'fastbp[sklearn]'") from error

from fastbp.sklearn.mlp import MLPClassifier, MLPRegressor

__all__ = ["MLPClassifier", "MLPRegressor"]
