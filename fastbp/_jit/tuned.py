"""The shim over Numba's private classes: nothing else rests on them, and `plain` does the same without.

They give code that is optimised once instead of twice, helpers without code of their own, leaves without a wrapper for
Python or C, and files of code that a change of any kernel source makes another: a third of the time to compile.
"""

from collections.abc import Callable
from typing import Any

import numba
from numba.core.caching import _Cache
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, CompileResult
from numba.core.dispatcher import _FunctionCompiler
from numba.core.registry import cpu_target
from numba.core.serialize import dumps

from fastbp._jit import cache
from fastbp._jit.ledger import ledger
from fastbp._jit.options import OPTIONS

CALLS_BY_C = False  # a leaf's address is that of the function in Numba's own calling convention


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


# Passes over what no kernel has: closures and comprehensions, `with`, overloads and functions that Numba inlines by
# itself, `raise`, `literally`. They take a twentieth of the time to compile (perf/start.py).
_NOT_NEEDED = {
    "dump_parfor_diagnostics",
    "find_literally",
    "inline_closure_likes",
    "inline_inlinables",
    "inline_overloads",
    "LiteralPropagation",
    "literal_unroll",
    "make_function_op_code_to_jit_function",
    "nopython_supported_feature_validation",
    "Rewrite dynamic raises",
    "with_lifting",
}


class _Compiler(Compiler):
    library = _Library

    def define_pipelines(self) -> list[Any]:
        pipelines = super().define_pipelines()
        for pipeline in pipelines:
            pipeline.passes = [each for each in pipeline.passes if each[0].name() not in _NOT_NEEDED]
            pipeline.finalize()
        return pipelines

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


class _LeafCompiler(_FunctionCompiler):
    """Compiles the function itself, without a wrapper for Python or C."""

    def _customize_flags(self, flags: Any) -> Any:
        flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
        flags.enable_pyobject = False
        return flags


class DiskCache(_Cache):
    """The compiled code of one function on disk, in place of Numba's index and data files.

    Parameters
    ----------
    function : callable
        The plain Python function.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._enabled = True

    @property
    def cache_path(self) -> str | None:
        """The folder of the files, for the dispatcher's statistics."""
        folder = cache.cache_folder()
        return None if folder is None else str(folder)

    def enable(self) -> None:
        """Use the disk."""
        self._enabled = True

    def disable(self) -> None:
        """Leave the disk alone."""
        self._enabled = False

    def flush(self) -> None:
        """Remove the files of all signatures."""
        cache.remove(self._function)

    def load_overload(self, sig: Any, target_context: Any) -> CompileResult | None:
        """Return the code for `sig`, or None if it has to be compiled."""
        with ledger.timed():
            folder, identity = cache.cache_folder(), self._usable_identity()
            if folder is None or identity is None:
                return None
            target_context.refresh()
            key = (identity, sig, target_context.codegen().magic_tuple())
            try:
                reduced = cache.load(cache.path_of(folder, self._function, key), key)
                return CompileResult._rebuild(target_context, *reduced)
            except Exception:  # whatever is wrong with the file, compiling is right
                return None

    def save_overload(self, sig: Any, data: CompileResult) -> None:
        """Count a compilation, and keep its result for other processes."""
        with ledger.timed():
            ledger.n_compiled += 1
            identity = self._usable_identity()
            # Dynamic globals are addresses of this process.
            if identity is not None and not data.library.has_dynamic_globals:
                key = (identity, sig, data.codegen.magic_tuple())
                cache.keep(self._function, key, lambda: dumps((key, data._reduce())))

    def _usable_identity(self) -> str | None:
        """Return the function's identity if the disk may be used for it now."""
        return cache.identity(self._function) if self._enabled and cache.is_usable() else None


def dispatcher(function: Callable[..., Any]) -> Any:
    """Return the function as an entry point, compiled on its first call with each signature, and kept on disk."""
    compiled = numba.njit(nogil=True, pipeline_class=_Compiler, **OPTIONS)(function)
    compiled._cache = DiskCache(function)
    return compiled


def helper(function: Callable[..., Any]) -> Any:
    """Return the function as one that LLVM inlines into its callers."""
    # Nobody takes a helper's address: it needs no wrapper, and is optimised with its callers only.
    return numba.njit(
        forceinline=True, no_cfunc_wrapper=True, no_cpython_wrapper=True, pipeline_class=_HelperCompiler, **OPTIONS
    )(function)


def compiled_leaf(function: Callable[..., Any], signature: Any) -> tuple[int, Any]:
    """Return the address of the function's code, loaded or compiled, and what keeps it."""
    disk = DiskCache(function)
    compiled = disk.load_overload(signature, cpu_target.target_context)
    if compiled is None:
        compiled = _compile_leaf(function, signature)
        disk.save_overload(signature, compiled)
    return compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name), compiled


def code_of(function: Callable[..., Any], signature: Any) -> Any:
    """Return what knows the function's code (`library`) and types, compiled anew: what comes from disk does not."""
    return _compile_leaf(function, signature)


def _compile_leaf(function: Callable[..., Any], signature: Any) -> CompileResult:
    compiler = _LeafCompiler(function, cpu_target, dict(OPTIONS), {}, _Compiler)
    return compiler.compile(signature.args, signature.return_type)
