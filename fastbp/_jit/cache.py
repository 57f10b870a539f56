"""Files on disk that hold compiled code: where they are, what they are keyed by, how they are read and written.

Each signature of a function has one file, named by a hash of its key, which carries a checksum and the key itself.
Without an index no two files have to agree, whoever writes them at the same time or dies in between.
"""

import functools
import hashlib
import importlib.resources
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
from contextlib import suppress
from pathlib import Path
from types import FunctionType
from typing import Any

import llvmlite
import llvmlite.binding
import numba
import numpy as np
from numba.core import config
from numba.core.codegen import get_host_cpu_features

from fastbp._jit.options import IS_PLAIN

_PACKAGE = __name__.partition("._jit.")[0]
ADOPTED_IDENTITY = "_identity_of_adopted"  # attribute of a user's function: its `identity`, or None (`adopt`)
_DIGEST_LENGTH = 24
_FOLDER_NAME = re.compile(rf"fastbp-[0-9a-f]{{{_DIGEST_LENGTH}}}")
_CHECKSUM_SIZE = hashlib.sha256().digest_size
_ADVICE = "set NUMBA_CACHE_DIR to a folder that can be written and has room"
_DAY = 86400.0
_UNUSED_FOLDER_AGE = 90 * _DAY
_TEMPORARY_FILE_AGE = _DAY
# Settings of Numba that change the machine code; its own cache ignores them.
_SETTINGS = ("BOUNDSCHECK", "DEBUGINFO_DEFAULT", "OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "USING_SVML")


def cache_folder() -> Path | None:
    """Return the folder that holds the compiled code, or None if there is no place for it.

    Returns
    -------
    Path or None
        ``fastbp-<digest>``, in the folder that ``NUMBA_CACHE_DIR`` names or else in the user's cache folder. It may
        not exist yet, or not be writable. None if there is no home directory, if the folder's name is relative to a
        current folder that is gone, or if the kernels' sources cannot be read: then stale code could not be told from
        fresh code.
    """
    return _find_folder()[0]


def cache_problem() -> str:
    """Return why there is no `cache_folder`, and what would help; an empty text if there is one."""
    return _find_folder()[1]


@functools.cache
def _find_folder() -> tuple[Path | None, str]:
    """Return the folder, or None; and then what is wrong and what would help."""
    if IS_PLAIN:
        return None, "FASTBP_PLAIN_NJIT is set: unset it"
    if not _SOURCES:
        return None, "its sources cannot be read: install them as files, not within an archive or as bytecode alone"
    try:
        parent = Path(config.CACHE_DIR) if config.CACHE_DIR else _user_cache_folder() / "fastbp"
    except RuntimeError:
        return None, f"there is no home directory: {_ADVICE}"
    try:
        return parent.absolute() / f"fastbp-{digest()}", ""
    except OSError as error:
        return None, f"{parent} is relative to the current folder, which is gone ({error}): {_ADVICE}, by its full path"


@functools.cache
def environment() -> dict[str, str]:
    """Return what bits may depend on beside the program: the compiler's versions, and the CPU target."""
    name = llvmlite.binding.get_host_cpu_name() if config.CPU_NAME is None else config.CPU_NAME
    features = get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
    return {
        "Numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
        "CPU target": f"{name} with features {hashlib.sha256(features.encode()).hexdigest()[:8]}",
    }


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
    """Return the hash of the sources of the kernels and of this package, or "" if they cannot be read."""
    hasher = hashlib.sha256()
    try:
        package = _package_folder()
        for name in ("_jit", "kernels"):
            files = list(_sources_in(package / name, name))
            for path, source in files:
                hasher.update(f"{path} {len(source)}\n".encode() + source)
            if not files:
                return ""
    except Exception:  # an archive that is gone or has been replaced raises what it likes
        return ""
    return hasher.hexdigest()


def _package_folder() -> Any:
    """Return the folder of fastbp, as a Path or as what stands for it in a zip archive."""
    folder = Path(__file__).parents[1]
    return folder if folder.is_dir() else importlib.resources.files(_PACKAGE)


def _sources_in(folder: Any, name: str) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each source in a folder and below it, in the order of the names."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _sources_in(entry, f"{name}/{entry.name}")
        elif entry.name.endswith(".py"):
            yield f"{name}/{entry.name}", entry.read_bytes()


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


def is_usable() -> bool:
    """Return whether the sources are still those that this process has compiled."""
    return _hash_sources() == _SOURCES


def path_of(folder: Path, function: Callable[..., Any], key: tuple[Any, ...]) -> Path:
    """Return the file of a signature of a function, of which `key` says all that matters."""
    return folder / f"{_readable_name(function)}-{hashlib.sha256(repr(key).encode()).hexdigest()[:_DIGEST_LENGTH]}.nbc"


def remove(function: Callable[..., Any]) -> None:
    """Remove the files of all signatures of a function."""
    folder = cache_folder()
    if folder is not None:
        with suppress(OSError):
            for path in folder.glob(f"{_readable_name(function)}-*.nbc"):
                path.unlink()


def load(path: Path, key: tuple[Any, ...]) -> Any:
    """Return what has been kept in a file under this key; raise whatever comes if that is not possible."""
    _touch(path.parent)
    return _read(path, key)


def keep(function: Callable[..., Any], key: tuple[Any, ...], payload: Callable[[], bytes]) -> None:
    """Write a file that holds the pickle of (key, content); warn if that is not possible."""
    folder, problem = _find_folder()
    if folder is None:
        _warn(problem)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(path_of(folder, function, key), payload())
        _prune(folder)
    except OSError as error:
        _warn(f"{folder}: {error}: {_ADVICE}")
    except Exception as error:  # the code has been compiled: nothing that happens here may stop the caller
        _warn(f"{type(error).__name__}: {error}")


def _readable_name(function: Callable[..., Any]) -> str:
    module = function.__module__.rpartition(".")[2]
    return re.sub(r"\W", "_", f"{module}_{function.__qualname__}")[:80]


def identity(value: Any) -> str | None:
    """Return a text that means the same constant or code in every process with this digest, or None."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    function = getattr(value, "py_func", value)
    if not isinstance(function, FunctionType):
        return None
    if hasattr(function, ADOPTED_IDENTITY):
        text: str | None = getattr(function, ADOPTED_IDENTITY)
        return text
    if not function.__module__.startswith(f"{_PACKAGE}.kernels."):
        return None
    if "<locals>" in function.__qualname__:
        return None
    cells = [identity(cell.cell_contents) for cell in function.__closure__ or ()]
    if None in cells:
        return None
    return f"{function.__module__}.{function.__qualname__}:{function.__code__.co_firstlineno}{cells}"


def _read(path: Path, key: tuple[Any, ...]) -> Any:
    """Return what `_write` has stored under this key; raise whatever comes if that is not possible."""
    stored = path.read_bytes()
    checksum, payload = stored[:_CHECKSUM_SIZE], stored[_CHECKSUM_SIZE:]
    if hashlib.sha256(payload).digest() != checksum:
        raise ValueError(f"{path} is damaged")
    stored_key, content = pickle.loads(payload)
    if stored_key != key:
        raise ValueError(f"{path} holds the code of another signature")
    return content


def _write(path: Path, payload: bytes) -> None:
    """Replace the file at once, so that no reader sees half of it."""
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
            f"fastbp cannot keep its compiled code on disk, so every process compiles it anew: {reason}",
            RuntimeWarning,
            stacklevel=2,
        )
