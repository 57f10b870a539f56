"""Worker threads inside one kernel: joining a team, and meeting at an atomic barrier after each phase.

Every worker runs the same entry point and takes its tasks by index. Nobody ever waits for a thread that might not come:
a helper counts itself in; worker 0, already inside the kernel, waits a moment, closes the door and publishes how many
came; who comes later returns at once, and who has waited too long for worker 0 counts itself out again. Each wait also
watches a flag that the host raises if anything fails before worker 0 starts.
"""

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastbp._jit import inline
from fastbp.kernels.calls import cycle_counter
from fastbp.kernels.emit import I32, emit_call
from fastbp.kernels.target import cpu_family

# Elements of the int64 array `sync`, each on cache lines of its own.
JOINED, N_WORKERS, NEXT_INDEX, ARRIVALS, LEFT, ABORT = range(0, 96, 16)
SYNC_SIZE = 96

_CLOSED = 1 << 32  # added to JOINED: whoever reads at least this came too late
_JOIN_SPINS = 25_000  # worker 0's patience in a short call: some tenths of a millisecond
_LONG_JOIN_SPINS = 1_000_000  # where the cycle counter is slow, or stands still
LEAVE_SPINS = 1_000_000  # a helper's patience: some tens of milliseconds
_YIELD_AFTER = 1_000  # spins before the core is offered to others


@intrinsic
def _atomic_add(typingctx, pointer, index, value):
    """Add to an element; returns the old value. Sequentially consistent."""

    def codegen(context, builder, sig, args):
        return builder.atomic_rmw("add", builder.gep(args[0], [args[1]]), args[2], "seq_cst")

    return types.int64(pointer, types.intp, types.int64), codegen


@intrinsic
def _atomic_load(typingctx, pointer, index):
    """Read an element; what its writer wrote before is seen after."""

    def codegen(context, builder, sig, args):
        return builder.load_atomic(builder.gep(args[0], [args[1]]), "acquire", 8)

    return types.int64(pointer, types.intp), codegen


@intrinsic
def publish(typingctx, pointer, index, value):
    """Write an element; who sees it sees all that was written before."""

    def codegen(context, builder, sig, args):
        builder.store_atomic(args[2], builder.gep(args[0], [args[1]]), "release", 8)
        return context.get_dummy_value()

    return types.void(pointer, types.intp, types.int64), codegen


@intrinsic
def _pause(typingctx):
    """Tell the core that this thread is spinning, where there is an instruction for it."""

    def codegen(context, builder, sig, args):
        if cpu_family() == "x86":
            emit_call(builder, "llvm.x86.sse2.pause", ir.VoidType())
        elif cpu_family() == "arm64":
            emit_call(builder, "llvm.aarch64.hint", ir.VoidType(), I32(1))
        return context.get_dummy_value()

    return types.void(), codegen


@inline
def _keep_core():
    return 0


# A symbol that is missing at run time would be a jump to nowhere, so it is looked up first. Windows has none by this
# name.
if llvmlite.binding.address_of_symbol("sched_yield"):
    _yield_core = types.ExternalFunction("sched_yield", types.int32())
else:
    _yield_core = _keep_core


@inline
def _relax(spins):
    _pause()
    if spins % _YIELD_AFTER == _YIELD_AFTER - 1:
        _yield_core()


@inline
def _open(sync, n_wanted, patience):
    """Worker 0: wait a moment for helpers and close the door. Returns the size of the team."""
    spins, start = 0, cycle_counter()
    while _atomic_load(sync, JOINED) < n_wanted - 1:
        if spins >= _JOIN_SPINS and (spins >= _LONG_JOIN_SPINS or cycle_counter() - start >= patience):
            break
        _relax(spins)
        spins += 1
    n_workers = _atomic_add(sync, JOINED, _CLOSED) + 1
    _atomic_add(sync, N_WORKERS, n_workers)
    return n_workers


@inline
def _join(sync, leave_spins):
    """A helper: returns its index in the team, or -1 if it has no part in this call."""
    if _atomic_add(sync, JOINED, 1) >= _CLOSED:
        return -1
    spins, is_counted = 0, False
    while _atomic_load(sync, N_WORKERS) == 0:
        _relax(spins)
        spins += 1
        if not is_counted and (spins > leave_spins or _atomic_load(sync, ABORT) != 0):
            if _atomic_add(sync, JOINED, -1) < _CLOSED:
                return -1
            is_counted = True  # the door closed in the same instant: the team's size comes at once
    return _atomic_add(sync, NEXT_INDEX, 1) + 1


@inline
def enter(sync, is_helper, n_wanted, patience, leave_spins=LEAVE_SPINS):
    """Become part of the team of a call. Returns (index, number of workers); index -1 means: go, without a trace.

    patience : cycles that worker 0 waits for helpers: a virtual core may take a millisecond to wake up.
    leave_spins : how often a helper looks for worker 0 before it goes by itself.
    """
    if n_wanted == 1:
        return 0, 1
    if is_helper == 0:
        return 0, _open(sync, n_wanted, patience)
    worker = _join(sync, leave_spins)
    return worker, _atomic_load(sync, N_WORKERS)


@inline
def meet(sync, n_workers, n_meetings):
    """Wait until all workers have come here for the `n_meetings`-th time; what they wrote before is seen after."""
    if n_workers > 1:
        _atomic_add(sync, ARRIVALS, 1)
        spins = 0
        while _atomic_load(sync, ARRIVALS) < n_workers * n_meetings:
            _relax(spins)
            spins += 1


@inline
def leave(sync, worker, n_workers):
    """End the call: worker 0, whose return frees the buffers, goes last."""
    if n_workers > 1:
        if worker > 0:
            _atomic_add(sync, LEFT, 1)
            return
        spins = 0
        while _atomic_load(sync, LEFT) < n_workers - 1:
            _relax(spins)
            spins += 1
