"""Who may change a network's parameters, or use a handle's buffers: one word that all take and give back at once."""

from numba import types
from numba.extending import intrinsic

from fastbp._jit import inline
from fastbp.kernels.calls import int64_at
from fastbp.kernels.team import publish

NOBODY, LEARNER, PYTHON, COPY = range(4)


@intrinsic
def _exchange_if(typingctx, pointer, expected, new):
    """Write `new` where `expected` stands; returns what stood there. What its writer wrote before is seen after."""

    def codegen(context, builder, sig, args):
        result = builder.cmpxchg(*args, "acq_rel", "acquire")
        return builder.extract_value(result, 0)

    return types.int64(pointer, types.int64, types.int64), codegen


@inline
def take_word(address, expected, owner):
    """Make the word at an address the owner's if it is `expected`; returns whose it was."""
    return _exchange_if(int64_at(address), expected, owner)


@inline
def give_word_back(address):
    """Make the word at an address, which is the caller's, nobody's."""
    publish(int64_at(address), 0, NOBODY)
