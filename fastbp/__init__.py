"""fastbp trains dense neural networks on a CPU at the machine's arithmetic limit."""

from fastbp import activations, callbacks, losses, schedules
from fastbp._version import __version__ as __version__
from fastbp.errors import DivergenceError
from fastbp.history import History
from fastbp.model import MLP
from fastbp.optimizers import SGD, Adadelta, Adagrad, Adam, AdamW, Lion, NAdam, RAdam, RMSprop, ScheduleFreeAdamW
from fastbp.precompile import precompile
from fastbp.regularization import L1, L2, Dropout, InputNoise, LabelSmoothing, MaxNorm
from fastbp.stopping import Convergence, EarlyStopping, TargetLoss, TimeLimit
from fastbp.trainer import Trainer
from fastbp.versions import show_versions

__all__ = [
    "L1",
    "L2",
    "MLP",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Convergence",
    "DivergenceError",
    "Dropout",
    "EarlyStopping",
    "History",
    "InputNoise",
    "LabelSmoothing",
    "Lion",
    "MaxNorm",
    "NAdam",
    "RAdam",
    "RMSprop",
    "ScheduleFreeAdamW",
    "TargetLoss",
    "TimeLimit",
    "Trainer",
    "activations",
    "callbacks",
    "losses",
    "precompile",
    "schedules",
    "show_versions",
]
