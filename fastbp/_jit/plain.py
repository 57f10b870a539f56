"""What `tuned` does, by Numba's public decorators alone: the same bits, compiled more slowly, and in each process anew.

Numba's own cache on disk is not used: it does not see an edited helper in another file, nor changed options.
"""

from collections.abc import Callable
from typing import Any

import numba

from fastbp._jit.ledger import ledger
from fastbp._jit.options import OPTIONS

CALLS_BY_C = True  # a leaf's address is that of a C function


def dispatcher(function: Callable[..., Any]) -> Any:
    """Return the function as an entry point, compiled on its first call with each signature."""
    compiled = numba.njit(nogil=True, **OPTIONS)(function)
    compile_signature = compiled.compile

    def compile_and_count(signature: Any) -> Any:
        n_before = len(compiled.overloads)
        result = compile_signature(signature)
        ledger.n_compiled += len(compiled.overloads) - n_before
        return result

    compiled.compile = compile_and_count
    return compiled


def helper(function: Callable[..., Any]) -> Any:
    """Return the function as one that LLVM inlines into its callers."""
    return numba.njit(forceinline=True, **OPTIONS)(function)


def compiled_leaf(function: Callable[..., Any], signature: Any) -> tuple[int, Any]:
    """Return the address of the function's code and what keeps it."""
    compiled = numba.cfunc(signature, **OPTIONS)(function)
    ledger.n_compiled += 1
    return compiled.address, compiled


def code_of(function: Callable[..., Any], signature: Any) -> Any:
    """Return what knows the function's code (`library`) and types."""
    compiled = numba.njit(**OPTIONS)(function)
    compiled.compile(signature.args)
    return compiled.overloads[signature.args]
