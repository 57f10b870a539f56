"""fastbp trains dense neural networks on a CPU at the machine's arithmetic limit."""

from fastbp import activations, callbacks, elementary, losses, schedules
from fastbp._version import __version__ as __version__
from fastbp.diagnosis import HealthReport
from fastbp.errors import CheckpointError, DivergenceError
from fastbp.gradient_check import GradientReport, check_gradient
from fastbp.health import Health
from fastbp.history import History
from fastbp.loading import load
from fastbp.model import MLP
from fastbp.optimizers import SGD, Adadelta, Adagrad, Adam, AdamW, Lion, NAdam, RAdam, RMSprop, ScheduleFreeAdamW
from fastbp.own import Activation, Loss, UpdateRule
from fastbp.precompile import precompile
from fastbp.recovery import ReduceRate
from fastbp.regularization import L1, L2, Dropout, InputNoise, LabelSmoothing, MaxNorm
from fastbp.stopping import Convergence, EarlyStopping, TargetLoss, TimeLimit
from fastbp.trainer import Trainer
from fastbp.versions import show_versions

__all__ = [
    "L1",
    "L2",
    "MLP",
    "SGD",
    "Activation",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "CheckpointError",
    "Convergence",
    "DivergenceError",
    "Dropout",
    "EarlyStopping",
    "GradientReport",
    "Health",
    "HealthReport",
    "History",
    "InputNoise",
    "LabelSmoothing",
    "Lion",
    "Loss",
    "MaxNorm",
    "NAdam",
    "RAdam",
    "RMSprop",
    "ReduceRate",
    "ScheduleFreeAdamW",
    "TargetLoss",
    "TimeLimit",
    "Trainer",
    "UpdateRule",
    "activations",
    "callbacks",
    "check_gradient",
    "elementary",
    "load",
    "losses",
    "precompile",
    "schedules",
    "show_versions",
]
