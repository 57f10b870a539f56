"""The programs that are compared, each on the same problem from the same start.

A rival is a module with a class `Rival(shape, dtype, threads, shuffle)`, imported only in the process that runs it:

* `run(n_steps)` takes that many optimizer steps, going through the batches in order (fastbp shuffles where told to);
* `params()` returns the flat parameters, per layer `w.ravel()` with w (n_in, n_out), then b;
* `describe()` names version and BLAS.

What cannot run here raises ImportError or `Unavailable`, and is left out.
"""

from __future__ import annotations


class Unavailable(Exception):
    """This rival cannot run this problem on this machine."""
