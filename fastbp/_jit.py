"""Compiler options and the cache of compiled code: the one place that sets them.

Three decorators make compiled code:

* `kernel`: an entry point, called from Python or from a user's own ``@njit`` function;
* `inline`: a helper, compiled into each of its callers;
* `leaf`: a function on raw pointers, compiled once per dtype and called through its address (`kernels.calls.call`).

Kernels and leaves are kept on disk, one file per signature, in the folder ``fastbp-<digest>``. Numba's own cache looks
at the bytecode of a single function: it sees neither an edited helper in another file nor changed options. Here the
digest covers every kernel source, the compiler settings, the versions and the CPU target, so a change of any of them
means another folder. The cache may fail at any time and in any way: a file that cannot be read is a miss and is written
anew, a folder that cannot be written costs one `RuntimeWarning`, and the code that runs is right all the same.

The files are pickles: whoever can write to the folder can run code in the processes that read it. So the default is
the user's own cache folder, never a shared temporary one.

A forked child inherits the machine code of its parent at the same addresses, and compiles or loads what is missing by
itself. In any other process an address means nothing: a `Leaf` pickles as a name, never as an address.
"""

import functools
import hashlib
import os
import pickle
import platform
import re
import shutil
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FunctionType
from typing import Any

import llvmlite
import llvmlite.binding
import numba
import numpy as np
from numba import types
from numba.core import config, event
from numba.core.caching import _Cache
from numba.core.codegen import JITCodeLibrary, get_host_cpu_features
from numba.core.compiler import Compiler, CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import Dispatcher, _FunctionCompiler
from numba.core.registry import cpu_target
from numba.core.serialize import dumps

# The Python error model adds branches for division by zero, which stop vectorisation. Numba's rewrites are of array
# expressions, exceptions and prints: nothing that is in a kernel, and a twentieth of the time to compile.
_OPTIONS = {"error_model": "numpy", "no_rewrites": True}
# Settings of Numba that change the machine code; its own cache ignores them.
_SETTINGS = ("BOUNDSCHECK", "DEBUGINFO_DEFAULT", "OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "USING_SVML")
_FLOAT_TYPES = {np.dtype(np.float32): types.float32, np.dtype(np.float64): types.float64}

if config.DISABLE_JIT:
    raise ImportError("fastbp is compiled code: unset NUMBA_DISABLE_JIT to import it")

_PACKAGE = __name__.rpartition(".")[0]
_DIGEST_LENGTH = 24
_FOLDER_NAME = re.compile(rf"fastbp-[0-9a-f]{{{_DIGEST_LENGTH}}}")
_CHECKSUM_SIZE = hashlib.sha256().digest_size
_DAY = 86400.0
_UNUSED_FOLDER_AGE = 90 * _DAY
_TEMPORARY_FILE_AGE = _DAY


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
    dispatcher._cache = _DiskCache(function)
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
            # Numba's own lock: a second one could be taken in the other order by a thread that is compiling.
            with global_compiler_lock:
                if dtype not in self._compiled:
                    with _ledger.timed():
                        compiled = self._load_or_compile(dtype)
                        address = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
                        self._compiled[dtype] = address, compiled  # whose library owns the code
        return self._compiled[dtype][0]

    def llvm(self, dtype: Any) -> str:
        """Return the optimised LLVM IR for `dtype`; it compiles anew, for code from the disk comes without."""
        return str(self._compile(self._signature_for(np.dtype(dtype))).library.get_llvm_str())

    def asm(self, dtype: Any) -> str:
        """Return the assembly for `dtype`; it compiles anew, for code from the disk comes without."""
        return str(self._compile(self._signature_for(np.dtype(dtype))).library.get_asm_str())

    def _load_or_compile(self, dtype: "np.dtype[Any]") -> CompileResult:
        signature, cache = self._signature_for(dtype), _DiskCache(self.__wrapped__)
        compiled = cache.load_overload(signature, cpu_target.target_context)
        if compiled is None:
            compiled = self._compile(signature)
            cache.save_overload(signature, compiled)
        return compiled

    def _signature_for(self, dtype: "np.dtype[Any]") -> Any:
        if dtype not in _FLOAT_TYPES:
            raise TypeError(f"dtype must be float32 or float64, got {dtype}")
        return self._signature(_FLOAT_TYPES[dtype])

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
    <leaf fastbp._jit.negate>
    """
    return lambda function: Leaf(function, signature)


def compile_seconds() -> float:
    """Return the wall time in seconds that this process has spent compiling or loading kernels and leaves."""
    return _ledger.seconds


def n_compiled() -> int:
    """Return how many kernels and leaves this process has compiled: one per signature, those loaded not counted."""
    return _ledger.n_compiled


@functools.cache
def cache_folder() -> Path | None:
    """Return the folder that holds the compiled code, or None if there is no place for it.

    Returns
    -------
    Path or None
        ``fastbp-<digest>``, in the folder that ``NUMBA_CACHE_DIR`` names or else in the user's cache folder. It may
        not exist yet, or not be writable. None if there is no home directory, or if the kernels' sources cannot be
        read: then stale code could not be told from fresh code.
    """
    if not _SOURCES:
        return None
    try:
        parent = Path(config.CACHE_DIR) if config.CACHE_DIR else _user_cache_folder() / "fastbp"
    except RuntimeError:  # there is no home directory
        return None
    return parent.absolute() / f"fastbp-{digest()}"


@functools.cache
def digest() -> str:
    """Return the hash of all kernel sources, the compiler settings, the versions and the CPU target."""
    parts = [
        _SOURCES or uuid.uuid4().hex,  # unknown sources must match nothing
        *(f"{name}={getattr(config, name, None)}" for name in _SETTINGS),
        *(numba.__version__, llvmlite.__version__, np.__version__),
        *(sys.implementation.cache_tag, platform.python_version()),
        llvmlite.binding.get_host_cpu_name() if config.CPU_NAME is None else config.CPU_NAME,
        get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES,
    ]
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:_DIGEST_LENGTH]


def _hash_sources() -> str:
    """Return the hash of this file and of all kernel sources, or "" if they cannot be read."""
    package = Path(__file__).parent
    hasher = hashlib.sha256()
    try:
        kernel_paths = sorted((package / "kernels").rglob("*.py"))
        for path in [Path(__file__), *kernel_paths]:
            source = path.read_bytes()
            hasher.update(f"{path.relative_to(package).as_posix()} {len(source)}\n".encode() + source)
    except OSError:
        return ""
    return hasher.hexdigest() if kernel_paths else ""


# Hashed before the kernels are imported, and again whenever the disk is used: so if a file is edited while a process
# runs, code from the old text cannot land in the folder of the new one, nor the reverse.
_SOURCES = _hash_sources()


def _user_cache_folder() -> Path:
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA", "")
        return Path(local) if local else Path.home() / "AppData" / "Local"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    # The XDG base directory specification has relative paths ignored.
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return xdg if xdg.is_absolute() else Path.home() / ".cache"


class _Ledger(event.Listener):
    """Adds up compilations and their time. All methods run under Numba's compiler lock."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.n_compiled = 0
        self._depth = 0
        self._start = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time of the body, once where bodies nest."""
        self._enter()
        try:
            yield
        finally:
            self._exit()

    def on_start(self, compilation: event.Event) -> None:
        """Start the clock if one of our kernels is about to be compiled."""
        if _is_kernel(compilation.data["dispatcher"]):
            self._enter()

    def on_end(self, compilation: event.Event) -> None:
        """Stop the clock, whether the compilation succeeded or not."""
        if _is_kernel(compilation.data["dispatcher"]):
            self._exit()

    def _enter(self) -> None:
        if self._depth == 0:
            self._start = time.perf_counter()
        self._depth += 1

    def _exit(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.seconds += time.perf_counter() - self._start


def _is_kernel(dispatcher: Any) -> bool:
    return isinstance(getattr(dispatcher, "_cache", None), _DiskCache)


_ledger = _Ledger()
event.register("numba:compile", _ledger)

# A child that is forked while another thread compiles would wait for ever for that thread, which it has not got.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )


class _DiskCache(_Cache):
    """The compiled code of one function on disk, in place of Numba's index and data files.

    Each signature has one file, named by a hash of its key, which carries a checksum and the key itself. Without an
    index no two files have to agree, whoever writes them at the same time or dies in between.

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
        folder = cache_folder()
        return None if folder is None else str(folder)

    def enable(self) -> None:
        """Use the disk."""
        self._enabled = True

    def disable(self) -> None:
        """Leave the disk alone."""
        self._enabled = False

    def flush(self) -> None:
        """Remove the files of all signatures."""
        folder = cache_folder()
        if folder is not None:
            for path in folder.glob(f"{self._readable_name()}-*.nbc"):
                with suppress(OSError):
                    path.unlink()

    def load_overload(self, sig: Any, target_context: Any) -> CompileResult | None:
        """Return the code for `sig`, or None if it has to be compiled."""
        with _ledger.timed():
            folder = cache_folder()
            identity = self._usable_identity()
            if folder is None or identity is None:
                return None
            target_context.refresh()
            key = (identity, sig, target_context.codegen().magic_tuple())
            try:
                _touch(folder)
                return CompileResult._rebuild(target_context, *_read(self._path(folder, key), key))
            except Exception:  # whatever is wrong with the file, compiling is right
                return None

    def save_overload(self, sig: Any, data: CompileResult) -> None:
        """Count a compilation, and keep its result for other processes."""
        with _ledger.timed():
            _ledger.n_compiled += 1
            identity = self._usable_identity()
            # Dynamic globals are addresses of this process.
            if identity is None or data.library.has_dynamic_globals:
                return
            folder = cache_folder()
            if folder is None:
                _warn("its sources or the home directory cannot be found")
                return
            key = (identity, sig, data.codegen.magic_tuple())
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _write(self._path(folder, key), key, data._reduce())
                _prune(folder)
            except Exception as error:  # the code has been compiled: nothing that happens here may stop the caller
                _warn(f"{type(error).__name__}: {error}")

    def _usable_identity(self) -> str | None:
        """Return the function's identity if the disk may be used for it now."""
        return _identity(self._function) if self._enabled and _hash_sources() == _SOURCES else None

    def _path(self, folder: Path, key: tuple[Any, ...]) -> Path:
        return folder / f"{self._readable_name()}-{hashlib.sha256(repr(key).encode()).hexdigest()[:_DIGEST_LENGTH]}.nbc"

    def _readable_name(self) -> str:
        module = self._function.__module__.rpartition(".")[2]
        return re.sub(r"\W", "_", f"{module}_{self._function.__qualname__}")[:80]


def _identity(value: Any) -> str | None:
    """Return a text that means the same constant or code in every process with this digest, or None."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    function = value.py_func if isinstance(value, Dispatcher) else value
    if not isinstance(function, FunctionType) or not function.__module__.startswith(f"{_PACKAGE}.kernels."):
        return None
    if "<locals>" in function.__qualname__:
        return None
    cells = [_identity(cell.cell_contents) for cell in function.__closure__ or ()]
    if None in cells:
        return None
    return f"{function.__module__}.{function.__qualname__}:{function.__code__.co_firstlineno}{cells}"


def _read(path: Path, key: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what `_write` has stored; raise whatever comes if that is not possible."""
    content = path.read_bytes()
    checksum, payload = content[:_CHECKSUM_SIZE], content[_CHECKSUM_SIZE:]
    if hashlib.sha256(payload).digest() != checksum:
        raise ValueError(f"{path} is damaged")
    stored_key, reduced = pickle.loads(payload)
    if stored_key != key:
        raise ValueError(f"{path} holds the code of another signature")
    return reduced


def _write(path: Path, key: tuple[Any, ...], reduced: tuple[Any, ...]) -> None:
    """Replace the file at once, so that no reader sees half of it."""
    payload = dumps((key, reduced))
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:16]}.tmp")
    try:
        temporary.write_bytes(hashlib.sha256(payload).digest() + payload)
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        # Windows cannot replace a file that another process is reading: that process found the same code there.
        if os.name == "nt" and isinstance(error, PermissionError) and path.exists():
            return
        raise


@functools.cache
def _touch(folder: Path) -> None:
    """Mark the folder as used, once per process."""
    with suppress(OSError):
        os.utime(folder)


@functools.cache
def _prune(folder: Path) -> None:
    """Remove the folders of unused versions and what killed processes have left in ours, once per process."""
    with suppress(OSError):
        for other in folder.parent.iterdir():
            if other != folder and _FOLDER_NAME.fullmatch(other.name) and _age(other) > _UNUSED_FOLDER_AGE:
                shutil.rmtree(other, ignore_errors=True)
        for temporary in folder.glob("*.tmp"):
            if _age(temporary) > _TEMPORARY_FILE_AGE:
                temporary.unlink()


def _age(path: Path) -> float:
    """Return the seconds since the last use, 0 if `path` has just been removed."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


_has_warned = False


def _warn(reason: str) -> None:
    """Warn once per process that the disk cannot be used."""
    global _has_warned
    if not _has_warned:
        _has_warned = True
        warnings.warn(
            f"fastbp cannot keep its compiled code on disk, so every process compiles it anew ({reason}); "
            "set NUMBA_CACHE_DIR to a folder that can be written",
            RuntimeWarning,
            stacklevel=2,
        )
