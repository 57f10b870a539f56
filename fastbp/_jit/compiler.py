"""Compiler options, and the three decorators that make compiled code."""

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core import config
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import _FunctionCompiler
from numba.core.registry import cpu_target

from fastbp._jit.cache import DiskCache
from fastbp._jit.ledger import ledger
from fastbp._jit.uninterrupted import uninterrupted

# The Python error model adds branches for division by zero, which stop vectorisation. Numba's rewrites are of array
# expressions, exceptions and prints: nothing that is in a kernel, and a twentieth of the time to compile.
_OPTIONS = {"error_model": "numpy", "no_rewrites": True}
_FLOAT_TYPES = {np.dtype(np.float32): types.float32, np.dtype(np.float64): types.float64}

if config.DISABLE_JIT:
    raise ImportError("fastbp is compiled code: unset NUMBA_DISABLE_JIT to import it")


class _Library(JITCodeLibrary):
    """Machine code, optimised once: Numba's own runs a first round for its reference counts, of which ours has none."""

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        passes, builder = self._codegen._module_pass_manager()
        passes.run(self._final_module, builder)


class _HelperLibrary(_Library):
    """A helper's code, which its callers link in and optimise: alone, it is neither optimised nor made machine code."""

    def finalize(self) -> None:
        self._raise_if_finalized()
        for library in dict.fromkeys(self._linking_libraries):
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalize_dynamic_globals()
        self._finalized = True


class _Compiler(Compiler):
    library = _Library

    def compile_extra(self, function: Callable[..., Any]) -> CompileResult:
        self.state.library = self.library(self.state.targetctx.codegen(), function.__qualname__)
        self.state.library.enable_object_caching()
        return super().compile_extra(function)


class _HelperCompiler(_Compiler):
    library = _HelperLibrary

    def compile_extra(self, function: Callable[..., Any]) -> CompileResult:
        self.state.flags.no_compile = True
        compiled = super().compile_extra(function)
        self.state.library.finalize()
        # Numba knows compiled code by its entry for Python; this one raises KeyError whatever it is called with.
        entry_point = {}.__getitem__
        self.state.targetctx.insert_user_function(entry_point, compiled.fndesc, [compiled.library])
        return compiled._replace(entry_point=entry_point)


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
    dispatcher = numba.njit(nogil=True, pipeline_class=_Compiler, **_OPTIONS)(function)
    dispatcher._cache = DiskCache(function)
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
    # Nobody takes a helper's address: it needs no wrapper, and is optimised with its callers only.
    return numba.njit(
        forceinline=True, no_cfunc_wrapper=True, no_cpython_wrapper=True, pipeline_class=_HelperCompiler, **_OPTIONS
    )(function)


class _LeafCompiler(_FunctionCompiler):
    """Compiles the function itself, without a wrapper for Python or C."""

    def _customize_flags(self, flags: Any) -> Any:
        flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
        flags.enable_pyobject = False
        return flags


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
    wrapper that a ``cfunc`` adds cost 2 to 5 ns for each call, a tenth of a small network's step.
    """

    __name__: str
    __qualname__: str
    __wrapped__: Callable[..., Any]

    def __init__(self, function: Callable[..., Any], signature: Callable[[Any], Any]) -> None:
        functools.update_wrapper(self, function)
        self._signature = signature
        self._compiled: dict[np.dtype[Any], tuple[int, CompileResult]] = {}

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

    def llvm(self, dtype: Any) -> str:
        """Return the optimised LLVM IR for `dtype`; it compiles anew, for code from the disk comes without."""
        return str(self._compile_anew(dtype).library.get_llvm_str())

    def asm(self, dtype: Any) -> str:
        """Return the assembly for `dtype`; it compiles anew, for code from the disk comes without."""
        return str(self._compile_anew(dtype).library.get_asm_str())

    def _make(self, dtype: "np.dtype[Any]") -> None:
        # Numba's own lock: a second one could be taken in the other order by a thread that is compiling.
        with global_compiler_lock:
            if dtype not in self._compiled:
                with ledger.timed():
                    compiled = self._load_or_compile(dtype)
                    address = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
                    self._compiled[dtype] = address, compiled  # whose library owns the code

    def _load_or_compile(self, dtype: "np.dtype[Any]") -> CompileResult:
        signature, cache = self._signature_for(dtype), DiskCache(self.__wrapped__)
        compiled = cache.load_overload(signature, cpu_target.target_context)
        if compiled is None:
            compiled = self._compile(signature)
            cache.save_overload(signature, compiled)
        return compiled

    def _signature_for(self, dtype: "np.dtype[Any]") -> Any:
        if dtype not in _FLOAT_TYPES:
            raise TypeError(f"dtype must be float32 or float64, got {dtype}")
        return self._signature(_FLOAT_TYPES[dtype])

    def _compile_anew(self, dtype: Any) -> CompileResult:
        return uninterrupted(lambda: self._compile(self._signature_for(np.dtype(dtype))))

    def _compile(self, signature: Any) -> CompileResult:
        compiler = _LeafCompiler(self.__wrapped__, cpu_target, dict(_OPTIONS), {}, _Compiler)
        return compiler.compile(signature.args, signature.return_type)

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
