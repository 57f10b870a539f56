"""Which way the products of a model go, as `fastbp.plan` decides it."""

from fastbp.plan import Plan


def training_plan(model, n_samples, **options):
    return Plan(model._network.architecture, n_samples, trains=True, with_loss=True, **options)


def prediction_plan(model, n_samples):
    return Plan(model._network.architecture, n_samples, trains=False, with_loss=False)


def lists_anything(model, n_samples):
    return any(ways.lists_product or ways.lists_gradient for ways in training_plan(model, n_samples).ways)


def forward_way(ways, n):
    """The way of the forward product of n samples, in the order in which `kernels.products.dense` asks."""
    if n == 1:
        return "row"
    if n <= ways.forward_few_to:
        return "few"
    if n >= ways.forward_lists_from:
        return "lists"
    return "packed" if n >= ways.forward_packed_from else "panels"


def backward_way(ways, n, batch):
    """The way of the backward product of n of the samples of a batch."""
    if batch == 1:
        return "column"
    if n >= ways.backward_lists_from:
        return "lists"
    return "packed" if n >= ways.backward_packed_from else "panels"


def gradient_way(ways, batch):
    if batch >= ways.gradient_lists_from:
        return "lists"
    return "narrow" if batch >= ways.gradient_narrow_from else "dense"
