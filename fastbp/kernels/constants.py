"""What formulas of activations and losses read of their rows' constants, once before the loop."""

from fastbp._jit import inline


@inline
def no_constants(constants):
    """None of them."""
    return ()


@inline
def first_constant(constants):
    """The first one, a scalar."""
    return constants[0]
