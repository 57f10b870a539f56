"""Aligned memory: where it starts, that it is zero, and what happens where there is none of the kind or none at all."""

import mmap

import numpy as np
import pytest

from fastbp import buffers

HUGE = 1 << 21


@pytest.mark.parametrize("n", [1, 63, 64, 1000, HUGE - 1, HUGE, HUGE + 1, 3 * HUGE + 5])
def test_aligned_bytes_are_zero_writable_and_start_on_a_line(n):
    memory = buffers.aligned_bytes(n)
    assert memory.shape == (n,)
    assert memory.ctypes.data % buffers.ALIGNMENT == 0
    assert memory.flags.writeable
    assert memory.flags.c_contiguous
    assert not memory.any()
    memory[:] = 7
    assert (memory == 7).all()


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="no huge pages on this system")
def test_aligned_bytes_large_start_on_a_huge_page():
    assert buffers.aligned_bytes(2 * HUGE).ctypes.data % HUGE == 0


def test_aligned_bytes_without_huge_pages_are_plain_memory(monkeypatch):
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    memory = buffers.aligned_bytes(2 * HUGE)
    assert memory.size == 2 * HUGE
    assert memory.ctypes.data % buffers.ALIGNMENT == 0


def test_aligned_bytes_refused_by_the_system_raise_memory_error():
    with pytest.raises(MemoryError):
        buffers.aligned_bytes(1 << 60)


def test_aligned_rows_each_start_on_a_line():
    rows = buffers.aligned_rows(3, 5, np.float32)
    assert rows.shape == (3, 5)
    assert all(row.ctypes.data % buffers.ALIGNMENT == 0 for row in rows)
