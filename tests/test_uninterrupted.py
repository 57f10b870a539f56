"""Compilations that signal handlers cannot leave half-way, whatever they raise and whenever."""

import dis
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from numba.core.compiler_lock import global_compiler_lock

from fastbp._jit import uninterrupted as module
from fastbp._jit.uninterrupted import uninterrupted

needs_timer = pytest.mark.skipif(sys.platform == "win32", reason="needs timers that send signals")

# After these CPython 3.11 looks for signals, as it does when a function begins.
LOOKS_FOR_SIGNALS = {name for name in dis.opname if name.startswith("CALL") or "JUMP_BACKWARD" in name}
HAS_OPCODES = sys.version_info < (3, 12)  # later ones lose events of opcodes: there every line is a point


class Injector:
    """A trace function that raises an error at one of the points where signals may be handled."""

    def __init__(self, filename, point, error):
        self.filename, self.point, self.error = filename, point, error
        self.n_points, self.last = 0, {}

    def __call__(self, frame, event, argument):
        if frame.f_code.co_filename != self.filename:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = HAS_OPCODES, not HAS_OPCODES
        self.look()
        return self.trace_frame

    def trace_frame(self, frame, event, argument):
        if event == "line":
            self.look()
        if event == "opcode":
            last, self.last[frame] = self.last.get(frame), dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if last in LOOKS_FOR_SIGNALS:
                self.look()
        return self.trace_frame

    def look(self):
        self.n_points += 1
        if self.n_points == self.point:
            raise self.error


class Handled(BaseException):
    """What no handler of exceptions expects."""


class Call:
    """A function that takes a moment, and knows how often it has begun and ended, and where."""

    def __init__(self, error=None):
        self.n_begun, self.n_done, self.error = 0, 0, error

    def __call__(self):
        self.n_begun += 1
        time.sleep(0.003)
        self.n_done += 1
        self.thread = threading.get_ident()
        if self.error is not None:
            raise self.error
        return "result"


def raised_by(function, argument, trace):
    sys.settrace(trace)
    try:
        function(argument)
    except BaseException as error:
        return error
    finally:
        sys.settrace(None)


def test_uninterrupted_returns_the_result_of_another_thread():
    call = Call()
    assert uninterrupted(call) == "result"
    assert (call.n_done, call.thread == threading.get_ident()) == (1, False)


def test_uninterrupted_raises_the_functions_own_error():
    call = Call(ValueError("its own"))
    with pytest.raises(ValueError, match="its own"):
        uninterrupted(call)
    assert call.n_done == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError, RuntimeError, Handled])
@pytest.mark.parametrize("own", [None, ValueError("its own")], ids=["returns", "raises"])
def test_uninterrupted_error_at_any_point_is_raised_after_the_call(error, own):
    point, n_before, n_after = 0, 0, 0
    while True:
        point += 1
        call, injector = Call(own), Injector(module.__file__, point, error("injected"))
        raised = raised_by(uninterrupted, call, injector)
        injected = raised is injector.error
        assert injected == (injector.n_points >= point), "an error was lost"
        assert injected or raised is own
        assert call.n_begun == call.n_done <= 1
        assert not global_compiler_lock.is_locked()
        if not injected:
            break
        n_before += call.n_done == 0
        n_after += call.n_done == 1
    assert n_before >= 2
    assert n_after >= 5


def test_uninterrupted_in_another_thread_or_a_compilation_runs_there():
    call = Call()
    with global_compiler_lock:
        uninterrupted(call)
    assert call.thread == threading.get_ident()
    thread = threading.Thread(target=uninterrupted, args=(call,))
    thread.start()
    ident = thread.ident
    thread.join()
    assert (call.n_done, call.thread) == (2, ident)


def test_uninterrupted_no_thread_to_be_had_runs_here(monkeypatch):
    def start_new_thread(function, arguments):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(module, "start_new_thread", start_new_thread)
    call = Call()
    assert uninterrupted(call) == "result"
    assert (call.n_done, call.thread) == (1, threading.get_ident())


def test_uninterrupted_thread_lost_in_a_fork_is_started_anew(monkeypatch):
    # As in a child that a signal handler has forked: another process, whose memory speaks of a thread.
    pids, start = iter([1, 1]), module.start_new_thread
    starts = iter([lambda *arguments: 0, start])
    monkeypatch.setattr(module.os, "getpid", lambda: next(pids, 2))
    monkeypatch.setattr(module, "start_new_thread", lambda *arguments: next(starts)(*arguments))
    call = Call()
    assert uninterrupted(call) == "result"
    assert call.n_begun == 1


@needs_timer
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")  # from Python 3.12 on, of any fork
@pytest.mark.parametrize("action", ["fork", "compile"])
def test_uninterrupted_handler_that_forks_or_compiles_too_waits_for_no_one(action):
    inner, outer = Call(), Call()

    def handle(*arguments):
        if action == "compile":
            uninterrupted(inner)
        elif (child := os.fork()) == 0:
            os._exit(0)
        else:
            assert os.waitpid(child, 0)[1] == 0

    def slow():
        time.sleep(0.2)
        return outer()

    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        assert uninterrupted(slow) == "result"
    finally:
        signal.signal(signal.SIGALRM, before)
    assert (outer.n_done, inner.n_done) == (1, action == "compile")


def test_uninterrupted_small_stacks_wanted_gets_a_larger_one(monkeypatch):
    sizes, start = [], module.start_new_thread

    def start_new_thread(function, arguments):
        sizes.append(threading.stack_size())
        return start(function, arguments)

    monkeypatch.setattr(module, "start_new_thread", start_new_thread)
    before = threading.stack_size(1 << 16)
    try:
        uninterrupted(Call())
        assert (sizes, threading.stack_size()) == ([1 << 20], 1 << 16)
    finally:
        threading.stack_size(before)


PRELUDE = """
import json, os, signal, sys, tempfile, time, warnings
warnings.filterwarnings("ignore", ".*multi-threaded.*", DeprecationWarning)  # from Python 3.12 on, of any fork
import numba
import numpy as np
import fastbp
from fastbp.kernels import activations

class Handled(BaseException):
    n_raised = 0

def handle(*arguments):
    Handled.n_raised += 1
    raise Handled

signal.signal(signal.SIGALRM, handle)
"""

# The leaf is a small one: most of its time goes to what Numba loads with the first compilation.
ONCE = """
def outcome(delay):
    numba.config.CACHE_DIR = tempfile.mkdtemp(dir=sys.argv[1])
    leaf, n_caught = activations.ACTIVATIONS["relu"].forward, 0
    signal.setitimer(signal.ITIMER_REAL, delay)
    try:
        leaf.address(np.float32)
        time.sleep(60 * (Handled.n_raised == 0))
    except Handled:
        n_caught += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    for dtype in (np.float32, np.float64):
        assert leaf.address(dtype) == leaf.address(dtype)
    return [Handled.n_raised, n_caught]

def in_child(delay):
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            result = outcome(delay)
        except BaseException as error:
            result = f"{type(error).__name__}: {error}"
        os.write(writer, json.dumps(result).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        return json.loads(file.read())

print(json.dumps([in_child(0.001 + i * 0.06) for i in range(16)]))
"""

OFTEN = """
def fit():
    model = fastbp.MLP([3, 4, 1], "tanh", seed=0)
    x = np.linspace(0, 1, 60).reshape(20, 3)
    model.fit(x, x[:, 0], epochs=2, batch_size=8, seed=0)
    return model.params.tobytes().hex()

def handle_in_fit(number, frame):
    while frame is not None and frame.f_code is not fit.__code__:
        frame = frame.f_back
    if frame is not None:  # nothing else here is prepared for an exception
        raise Handled

signal.signal(signal.SIGALRM, handle_in_fit)
n_caught = 0
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
for _ in range(100):
    try:
        fit()
    except Handled:
        n_caught += 1
signal.setitimer(signal.ITIMER_REAL, 0)
print(json.dumps([n_caught, fit()]))
"""


def report_of(program, cache):
    finished = subprocess.run(
        [sys.executable, "-c", PRELUDE + program, str(cache)],
        env=os.environ | {"NUMBA_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    return json.loads(finished.stdout)


@needs_timer
def test_first_compilation_interrupted_anywhere_passes_it_on_and_the_next_one_succeeds(tmp_path):
    outcomes = report_of(ONCE, tmp_path)
    assert outcomes == [[1, 1]] * len(outcomes)


@needs_timer
def test_cold_fit_interrupted_often_gives_the_same_bits_at_last(tmp_path):
    n_caught, params = report_of(OFTEN, tmp_path / "interrupted")
    assert n_caught >= 5
    assert params == report_of(OFTEN.replace("range(100)", "range(0)"), tmp_path / "interrupted")[1]
