"""Compiled code: options, decorators, and the cache on disk.

`options` sets the options; `compiler` has the decorators, which stand on `tuned`, the shim over Numba's private
classes, or on `plain`, which does without; `cache` reads and writes files.

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

What is compiled in the main thread is not interrupted: see `uninterrupted`.
"""

from fastbp._jit.adopt import adopt, is_compiled, reads
from fastbp._jit.cache import cache_folder, cache_problem, digest, environment
from fastbp._jit.compiler import CALLS_BY_C, Leaf, inline, kernel, leaf
from fastbp._jit.ledger import compile_seconds, n_compiled
from fastbp._jit.options import IS_PLAIN

__all__ = [
    "CALLS_BY_C",
    "IS_PLAIN",
    "Leaf",
    "adopt",
    "cache_folder",
    "cache_problem",
    "compile_seconds",
    "digest",
    "environment",
    "inline",
    "is_compiled",
    "kernel",
    "leaf",
    "n_compiled",
    "reads",
]
