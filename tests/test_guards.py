"""The guard pages of the tests guard."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from guards import guarded, needs_guard_pages

pytestmark = needs_guard_pages

PROBE = """
import ctypes
import numpy as np
from guards import guarded
array = guarded(np.zeros({n}, np.float32), at_start={at_start})
ctypes.{access}(array.ctypes.data + {offset}, {arguments})
"""


@pytest.mark.parametrize("n", [1, 7, 1024, 5000])
@pytest.mark.parametrize("at_start", [False, True])
def test_guarded_copies_shape_dtype_and_values(n, at_start):
    for values in (np.arange(float(n)), np.arange(2 * n, dtype=np.int16).reshape(n, 2), np.ones((n, 3), bool).T):
        copy = guarded(values, at_start)
        assert copy.dtype == values.dtype
        assert copy.flags.c_contiguous
        assert copy.flags.writeable
        np.testing.assert_array_equal(copy, values)


@pytest.mark.parametrize(("access", "arguments"), [("string_at", "1"), ("memset", "0, 1")], ids=["read", "write"])
@pytest.mark.parametrize("n", [5, 1024])
@pytest.mark.parametrize("at_start", [False, True])
def test_guarded_access_of_one_byte_beside_ends_the_process(at_start, n, access, arguments):
    offset = -1 if at_start else 4 * n
    probe = PROBE.format(n=n, at_start=at_start, access=access, arguments=arguments, offset=offset)
    process = subprocess.run([sys.executable, "-c", probe], cwd=Path(__file__).parent, capture_output=True, check=False)
    assert -process.returncode in (signal.SIGSEGV, signal.SIGBUS)
