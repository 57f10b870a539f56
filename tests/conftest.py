"""What all tests stand on."""

import importlib
import os
import signal

import pytest
from hypothesis import settings

# A shell's background job, and what it starts, inherits that SIGINT is ignored: then no test of Ctrl-C could end.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test checks a time, Hypothesis' own limit of 0.2 s for an example included.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# Where all libraries ought to be there, none that is missing may go unnoticed.
if os.environ.get("FASTBP_TESTS_SKIP_NO_LIBRARY"):
    pytest.importorskip = importlib.import_module
