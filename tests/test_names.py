import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastbp import optimizers
from fastbp.initializers import INITIALIZERS
from fastbp.kernels.activations import ACTIVATIONS
from fastbp.kernels.losses import LOSSES
from fastbp.names import OTHER_NAMES, folded, name_of, nearest


def test_name_of_known_returns_it():
    assert name_of("relu", ("tanh", "relu"), "activation") == "relu"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("rellu", "relu"), ("ReLU", "relu"), ("leaky-relu", "leaky_relu"), ("Leaky ReLU", "leaky_relu")],
)
def test_name_of_unknown_proposes_the_nearest(name, nearest):
    known = ("tanh", "relu", "leaky_relu")
    message = rf"activation must be one of 'tanh', 'relu', 'leaky_relu', got '{name}' \(did you mean '{nearest}'\?\)"
    with pytest.raises(ValueError, match=message):
        name_of(name, known, "activation")


def test_name_of_far_from_all_proposes_nothing():
    with pytest.raises(ValueError, match=r"loss must be one of 'mse', got 'zzz'$"):
        name_of("zzz", ["mse"], "loss")


def test_name_of_no_str_raises_type_error():
    with pytest.raises(TypeError, match="loss must be a str, one of 'mse', got int"):
        name_of(3, ["mse"], "loss")


@given(st.text())
def test_name_of_any_text_is_known_or_a_value_error(name):
    known = ("mse", "mae")
    if name in known:
        assert name_of(name, known, "loss") == name
    else:
        with pytest.raises(ValueError, match="loss must be one of"):
            name_of(name, known, "loss")


KINDS = {
    "activation": tuple(ACTIVATIONS),
    "loss": tuple(LOSSES),
    "init": ("auto", *INITIALIZERS),
    "optimizer": optimizers._NAMED,
}


def test_other_names_are_of_known_names_and_none_is_one():
    assert set(OTHER_NAMES) <= {name for known in KINDS.values() for name in known}
    for known in KINDS.values():
        ours = {folded(name) for name in known}
        for name in known:
            for other in OTHER_NAMES.get(name, ()):
                assert other == folded(other)
                assert other not in ours


@pytest.mark.parametrize(
    ("kind", "name", "meant"),
    [
        ("activation", "linear", "identity"),
        ("activation", "swish", "silu"),
        ("activation", "SiLU", "silu"),
        ("activation", "logistic", "sigmoid"),
        ("activation", "LeakyReLU", "leaky_relu"),
        ("activation", "relu6", "relu"),
        ("activation", "log_softmax", "softmax"),
        ("loss", "categorical_crossentropy", "cross_entropy"),
        ("loss", "sparse_categorical_crossentropy", "cross_entropy"),
        ("loss", "CategoricalCrossentropy", "cross_entropy"),
        ("loss", "CrossEntropyLoss", "cross_entropy"),
        ("loss", "nll", "cross_entropy"),
        ("loss", "NLLLoss", "cross_entropy"),
        ("loss", "binary_crossentropy", "binary_cross_entropy"),
        ("loss", "BCEWithLogitsLoss", "binary_cross_entropy"),
        ("loss", "mean_squared_error", "mse"),
        ("loss", "squared error", "mse"),
        ("loss", "MSELoss", "mse"),
        ("loss", "L2", "mse"),
        ("loss", "mean-absolute-error", "mae"),
        ("loss", "l1", "mae"),
        ("loss", "smooth_l1_loss", "huber"),
        ("init", "kaiming_normal", "he_normal"),
        ("init", "kaiming_normal_", "he_normal"),
        ("init", "kaiming_uniform", "he_uniform"),
        ("init", "xavier_normal", "glorot_normal"),
        ("init", "xavier_uniform_", "glorot_uniform"),
        ("init", "GlorotUniform", "glorot_uniform"),
        ("init", "he", "he_normal"),
        ("optimizer", "adam", "Adam()"),
        ("optimizer", "AdamW", "AdamW()"),
        ("optimizer", "sgd", "SGD()"),
        ("optimizer", "nesterov", "SGD(momentum=0.9, nesterov=True)"),
        ("optimizer", "RMSProp", "RMSprop()"),
        ("optimizer", "ada_grad", "Adagrad()"),
    ],
)
def test_nearest_knows_other_libraries_names(kind, name, meant):
    assert nearest(name, KINDS[kind]) == meant


def test_nearest_of_two_with_the_same_other_name_is_the_first():
    assert nearest("log_loss", ("mse", "binary_cross_entropy", "cross_entropy")) == "binary_cross_entropy"
    assert nearest("log_loss", ("mse", "cross_entropy", "binary_cross_entropy")) == "cross_entropy"


@pytest.mark.parametrize("kind", KINDS)
def test_nearest_other_names_are_exact(kind):
    for name in KINDS[kind]:
        for other in OTHER_NAMES.get(name, ()):
            assert other in OTHER_NAMES.get(nearest(other, KINDS[kind]), ())
