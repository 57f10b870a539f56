"""The three decorators that make compiled code."""

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.core.compiler_lock import global_compiler_lock

from fastbp._jit.ledger import ledger
from fastbp._jit.options import FLOAT_TYPES, IS_PLAIN
from fastbp._jit.uninterrupted import uninterrupted

if IS_PLAIN:
    from fastbp._jit import plain as numba_classes
else:
    from fastbp._jit import tuned as numba_classes

CALLS_BY_C = numba_classes.CALLS_BY_C  # whether a leaf's address is that of a C function


_RETURNED_NONE = -2  # the status of a function that returns None


def call_address(address: int, signature: Any, *arguments: Any) -> int:
    """Call the function of a Numba signature at an address, as `Leaf.call` does."""
    values = [each.ctypes.data if isinstance(each, np.ndarray) else each for each in arguments]
    kinds = [ctypes.c_double if kind == types.float64 else ctypes.c_ssize_t for kind in signature.args]
    if CALLS_BY_C:
        return int(ctypes.CFUNCTYPE(ctypes.c_ssize_t, *kinds)(address)(*values))
    result, exception = ctypes.c_ssize_t(), ctypes.c_void_p()
    function = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *kinds)(address)
    if function(ctypes.byref(result), ctypes.byref(exception), *values) not in (0, _RETURNED_NONE):
        raise RuntimeError("compiled code has raised an exception")
    return result.value


def kernel(function: Callable[..., Any]) -> Any:
    """Compile an entry point on its first call with each signature, without the GIL, and keep it on disk.

    Parameters
    ----------
    function : callable
        It is kept on disk if it belongs to ``fastbp.kernels``, has a module-level name, and closes over nothing but
        plain constants and such functions; otherwise each process compiles it.

    Returns
    -------
    numba.core.dispatcher.Dispatcher
        The compiled function.
    """
    dispatcher = numba_classes.dispatcher(function)
    dispatcher.is_timed = True  # by the ledger
    compile_signature = dispatcher.compile
    dispatcher.compile = lambda signature: uninterrupted(lambda: compile_signature(signature))
    return dispatcher


def inline(function: Callable[..., Any]) -> Any:
    """Compile a helper into each of its callers; it has no file of its own.

    Parameters
    ----------
    function : callable
        Constants in it must have the dtype of its arguments.

    Returns
    -------
    numba.core.dispatcher.Dispatcher
        The compiled function, which LLVM inlines into kernels, leaves and other helpers.
    """
    return numba_classes.helper(function)


class Leaf:
    """A function on raw pointers, compiled once per dtype and called through its address.

    Parameters
    ----------
    function : callable
        The plain Python function; it must not allocate or raise. It is kept on disk under the same conditions as a
        `kernel`.
    signature : callable
        From the Numba float type to the Numba signature of `function`.

    Notes
    -----
    A leaf pickles and copies by reference, as ``__module__`` and ``__qualname__``.

    The address is that of the function in Numba's own calling convention, which `fastbp.kernels.calls.call` knows: the
    wrapper that a ``cfunc`` adds cost 2 to 5 ns for each call, a tenth of a small network's step. (`plain` has it.)
    """

    __name__: str
    __qualname__: str
    __wrapped__: Callable[..., Any]

    def __init__(self, function: Callable[..., Any], signature: Callable[[Any], Any]) -> None:
        functools.update_wrapper(self, function)
        self._signature = signature
        self._compiled: dict[np.dtype[Any], tuple[int, Any]] = {}  # address, and what keeps the code

    def address(self, dtype: Any) -> int:
        """Return the address of the machine code for `dtype`, compiled or loaded on the first call.

        Parameters
        ----------
        dtype : dtype_like
            float32 or float64.

        Returns
        -------
        int
            Valid as long as the leaf lives, in this process only.

        Raises
        ------
        TypeError
            If `dtype` is neither float32 nor float64.
        """
        dtype = np.dtype(dtype)
        if dtype not in self._compiled:
            uninterrupted(lambda: self._make(dtype))
        return self._compiled[dtype][0]

    def call(self, dtype: Any, *arguments: Any) -> int:
        """Call the code for `dtype` from Python, which takes microseconds; returns its result, 0 if it has none.

        Parameters
        ----------
        dtype : dtype_like
            float32 or float64.
        *arguments : int, float or ndarray
            Of an array the address of its first element is passed. Nothing is checked.

        Raises
        ------
        RuntimeError
            If the code has raised an exception, which a leaf must not.
        """
        return call_address(self.address(dtype), self.signature(dtype), *arguments)

    def llvm(self, dtype: Any) -> str:
        """Return the optimised LLVM IR for `dtype`; it compiles anew, for code from the disk comes without."""
        return str(self.compiled_anew(dtype).library.get_llvm_str())

    def asm(self, dtype: Any) -> str:
        """Return the assembly for `dtype`; it compiles anew, for code from the disk comes without."""
        return str(self.compiled_anew(dtype).library.get_asm_str())

    def compiled_anew(self, dtype: Any) -> Any:
        """Return Numba's result of a compilation for `dtype`, with types and code."""
        return uninterrupted(lambda: numba_classes.code_of(self.__wrapped__, self.signature(dtype)))

    def signature(self, dtype: Any) -> Any:
        """Return the Numba signature for `dtype`. Errors as `address`."""
        dtype = np.dtype(dtype)
        if dtype not in FLOAT_TYPES:
            raise TypeError(f"dtype must be float32 or float64, got {dtype}")
        return self._signature(FLOAT_TYPES[dtype])

    def _make(self, dtype: "np.dtype[Any]") -> None:
        # Numba's own lock: a second one could be taken in the other order by a thread that is compiling.
        with global_compiler_lock:
            if dtype not in self._compiled:
                with ledger.timed():
                    self._compiled[dtype] = numba_classes.compiled_leaf(self.__wrapped__, self.signature(dtype))

    def __reduce__(self) -> str:
        return self.__qualname__

    def __repr__(self) -> str:
        return f"<leaf {self.__module__}.{self.__qualname__}>"


def leaf(signature: Callable[[Any], Any]) -> Callable[[Callable[..., Any]], Leaf]:
    """Make a `Leaf` of a function.

    Parameters
    ----------
    signature : callable
        From the Numba float type to the Numba signature of the function.

    Returns
    -------
    callable
        The decorator.

    Examples
    --------
    >>> from numba import types
    >>> @leaf(lambda T: types.void(types.CPointer(T), types.intp))
    ... def negate(z, n):
    ...     for i in range(n):
    ...         z[i] = -z[i]
    >>> negate
    <leaf fastbp._jit.compiler.negate>
    """
    return lambda function: Leaf(function, signature)
