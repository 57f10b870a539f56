"""Exceptions injected into Python code where a signal's handler, or a trace function, could raise them."""

import linecache
import opcode
import sys
from pathlib import Path

import fastbp

PACKAGE = str(Path(fastbp.__file__).parent)

# Behind these CPython looks for signals, and at the entry of each function.
_LOOKS = {
    opcode.opmap[name] for name in opcode.opmap if name.startswith(("CALL", "JUMP_BACKWARD", "POP_JUMP_BACKWARD"))
}


class Injector:
    """A trace function that raises `error` at the n-th point, from 0, at which CPython looks for signals.

    Only in code of fastbp's own; `where` is then the place.
    """

    def __init__(self, error, n):
        self.error, self.left, self.where, self._previous, self._entered = error, n, None, {}, set()

    def __call__(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        self._pass(frame)
        return self._in_frame

    def _in_frame(self, frame, event, argument):
        if event == "opcode":
            previous, self._previous[frame] = self._previous.get(frame), frame.f_code.co_code[frame.f_lasti]
            if previous in _LOOKS:
                self._pass(frame)
        return self._in_frame

    def _pass(self, frame):
        self.left -= 1
        if self.left == -1:
            self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} ({frame.f_code.co_qualname})"
            raise self.error


class LineInjector(Injector):
    """The same, before the n-th line.

    But for the second look at a `with` statement, on the way out: there CPython looks for no signal.
    """

    def __call__(self, frame, event, argument):
        return self._in_frame if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _in_frame(self, frame, event, argument):
        if event == "line":
            code, line = frame.f_code, frame.f_lineno
            is_with = linecache.getline(code.co_filename, line).lstrip().startswith("with ")
            if not is_with or (frame, line) not in self._entered:
                self._pass(frame)
            if is_with:
                self._entered.add((frame, line))
        return self._in_frame


class Observer(Injector):
    """A trace function that calls `act` at every `stride`-th of those points, as a signal's handler would be."""

    def __init__(self, act, stride):
        super().__init__(None, sys.maxsize)
        self._act, self._stride, self._n = act, stride, 0

    def _pass(self, frame):
        self._n += 1
        if self._n % self._stride == 0:
            before = sys.gettrace()
            sys.settrace(None)
            try:
                self._act()
            finally:
                sys.settrace(before)


def call_with(injector, function):
    """Call `function` with the injector at work; return whether it came to its point, and what was raised."""
    before = sys.gettrace()
    sys.settrace(injector)
    try:
        function()
    except BaseException as error:
        caught = error
    else:
        caught = None
    finally:
        sys.settrace(before)
    return injector.where is not None, caught
