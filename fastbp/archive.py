"""Files: named arrays and one record of plain values as an ``.npz``, written whole or not at all, read with suspicion.

``numpy.load(path, allow_pickle=False)`` opens such a file anywhere. Its entry ``record`` is the UTF-8 text of a JSON
object, as bytes, and ``sha256`` the digest of that text; the record has under ``"arrays"`` the dtype, shape and SHA-256
of every other entry. Nothing is compressed, so that what a reader allocates is no more than the file holds.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import shutil
import struct
import zipfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from fastbp.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["Archive", "named", "read", "write"]

Array: TypeAlias = npt.NDArray[Any]

_DTYPES = {np.dtype(name).str: np.dtype(name) for name in ("float32", "float64", "int64", "uint8")}
_RECORD, _DIGEST = "record", "sha256"
_MOST_ENTRIES = 10_000
_MOST_HEADER = 4096  # bytes of an array's header
_MOST_DEPTH = 40  # of a JSON value in another

# Whatever reading a file that is broken may raise, in the libraries that read it.
_BROKEN = (
    zipfile.BadZipFile, zipfile.LargeZipFile, struct.error, EOFError, KeyError, IndexError, ValueError, TypeError,
    SyntaxError, OverflowError, RecursionError, NotImplementedError, MemoryError, UnicodeError, AttributeError,
)  # fmt: skip


class Archive(NamedTuple):
    """What is in a file: a record of plain values, and arrays by their names."""

    record: dict[str, Any]
    arrays: dict[str, Array]


def write(path: Path, record: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write a file: as a whole, or not at all, and then what was there stays as it was.

    It is written beside its place, brought to the disk, and renamed; then the folder is brought to the disk too. A link
    is followed, and the rights of a file that was there stay.

    Raises
    ------
    CheckpointError
        If there is something else than a file.
    OSError
        Of the file system: no such folder, no right to write, a full disk.
    """
    described = {name: _description(array) for name, array in arrays.items()}
    text = json.dumps({**record, "arrays": described}, allow_nan=False, indent=1).encode()
    digest = np.frombuffer(hashlib.sha256(text).digest(), np.uint8)
    entries = {**arrays, _RECORD: np.frombuffer(text, np.uint8), _DIGEST: digest}
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is no file that could be replaced")
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with beside.open("wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for name, array in entries.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                        npy.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Bring a renaming to the disk, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _description(array: Array) -> dict[str, Any]:
    digest = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
    return {"dtype": array.dtype.str, "shape": list(array.shape), "sha256": digest}


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Let whatever is wrong with what a file says be a CheckpointError that names the file."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (*_BROKEN, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a place before the file's beginning
            raise
        raise CheckpointError(f"{path} is no file of fastbp's, or damaged: {type(error).__name__}: {error}") from error


def read(path: Path) -> Archive:
    """Read a file that `write` has written. Nothing larger than the file is allocated, whatever is in it.

    Raises
    ------
    CheckpointError
        If it is no such file, or not the one that was written.
    OSError
        Of the file system.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        with named(path), zipfile.ZipFile(file) as archive:
            return _read(archive, size)


def _read(archive: zipfile.ZipFile, size: int) -> Archive:
    entries = _entries(archive, size)
    for name in (_RECORD, _DIGEST):
        if name not in entries:
            raise CheckpointError(f"no file of fastbp's: it has no entry {name!r}")
    text = _array(archive, entries.pop(_RECORD)).tobytes()
    if hashlib.sha256(text).digest() != _array(archive, entries.pop(_DIGEST)).tobytes():
        raise CheckpointError("damaged: the record is not the one that was written")
    record = json.loads(text.decode())
    if not isinstance(record, dict) or _depth(record) > _MOST_DEPTH:
        raise CheckpointError("no file of fastbp's: its record is no JSON object of the kind")
    described = record.pop("arrays", None)
    if not isinstance(described, dict) or set(described) != set(entries):
        raise CheckpointError("damaged: other arrays than were written")
    arrays = {}
    for name, entry in entries.items():
        arrays[name] = _array(archive, entry)
        if _description(arrays[name]) != described[name]:
            raise CheckpointError(f"damaged: {name} is not what was written")
    return Archive(record, arrays)


def _entries(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Return the entries by their names, none of which is larger than the file lets it be."""
    entries = archive.infolist()
    if len(entries) > _MOST_ENTRIES or sum(entry.file_size for entry in entries) > size:
        raise CheckpointError("no file of fastbp's: it promises more than it can hold")
    named = {}
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
            raise CheckpointError(f"no file of fastbp's: its entry {entry.filename!r} is compressed or encrypted")
        if not entry.filename.endswith(".npy") or entry.filename.removesuffix(".npy") in named:
            raise CheckpointError(f"no file of fastbp's: unexpected entry {entry.filename!r}")
        named[entry.filename.removesuffix(".npy")] = entry
    return named


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Array:
    """Return an entry's array, after its header has been checked against the entry's size."""
    with archive.open(entry) as stream:
        data = stream.read()  # of a size that the file has
    file = io.BytesIO(data)
    version = npy.read_magic(file)
    if version != (1, 0):
        raise CheckpointError(f"no file of fastbp's: the header of {entry.filename!r} has version {version}")
    shape, fortran, dtype = npy.read_array_header_1_0(file, max_header_size=_MOST_HEADER)
    if dtype.str not in _DTYPES or fortran or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise CheckpointError(f"no file of fastbp's: the header of {entry.filename!r} does not fit what follows")
    return np.frombuffer(data, _DTYPES[dtype.str], offset=file.tell()).reshape(shape)


def _depth(value: object) -> int:
    """Return how deep values lie in each other."""
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0
