"""Arrays beside a page that nobody may touch: an access one element off ends the process at once, reads included."""

import ctypes
import mmap
import sys

import numpy as np
import pytest

needs_guard_pages = pytest.mark.skipif(sys.platform == "win32", reason="guard pages are made with POSIX mprotect")

_PROT_NONE = 0


def guarded(array, at_start=False):
    """Copy an array, in C order, to memory that ends at a guard page, or with `at_start` begins behind one."""
    array = np.asarray(array, order="C")
    page = mmap.PAGESIZE
    n_bytes = max(1, -(-array.nbytes // page)) * page
    memory = mmap.mmap(-1, n_bytes + 2 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for guard in (address, address + page + n_bytes):
        _protect(guard, page)
    start = page if at_start else page + n_bytes - array.nbytes
    copy = np.frombuffer(memory, array.dtype, array.size, start).reshape(array.shape)
    copy[...] = array
    return copy


def _protect(address, n_bytes):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(n_bytes), ctypes.c_int(_PROT_NONE)) != 0:
        raise OSError(ctypes.get_errno(), "mprotect failed")
