"""A user's own ``@njit`` functions as helpers of ours, and what identifies their code.

A helper is compiled into its callers with our options, whatever those of the user's decorator are, and so are the
``@njit`` functions that it calls by their names. Its code is known by a hash of the bytecode, the constants, and all
that its names stand for. So what is made of it can be kept on disk, unless a name stands for something of which no
process to come could tell whether it is the same.
"""

import dis
import hashlib
from collections.abc import Callable
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
from numba.extending import is_jitted

from fastbp._jit.cache import ADOPTED_IDENTITY
from fastbp._jit.compiler import inline

# Modules whose functions are the same wherever all versions are, which the folder of the files goes by.
_KNOWN_MODULES = ("math", "numpy", "numba", "builtins", "operator", "fastbp", "fastbp.elementary")


def is_compiled(function: object) -> bool:
    """Return whether this is a function that ``@njit`` has made."""
    return bool(is_jitted(function))


def adopt(function: Any) -> Any:
    """Return a compiled function of a user's as a helper such as `inline` makes.

    Raises
    ------
    TypeError
        If it raises exceptions, which no kernel does, or calls itself.
    """
    return _adopt(function, ())


def reads(function: Any, name: str) -> bool:
    """Return whether a function ever reads its parameter of that name."""
    for instruction in dis.get_instructions(function.py_func):
        names = instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,)
        if name in names and instruction.opname.startswith("LOAD"):
            return True
    return False


def _adopt(function: Any, callers: tuple[Any, ...]) -> Any:
    original = function.py_func
    if function in callers:
        raise TypeError(f"{original.__qualname__} must not call itself")
    if any(instruction.opname == "RAISE_VARARGS" for instruction in dis.get_instructions(original)):
        raise TypeError(f"{original.__qualname__} must not raise exceptions: it runs where nobody can catch them")
    outside = {name: original.__globals__[name] for name in _globals_of(original) if name in original.__globals__}
    cells = [cell.cell_contents for cell in original.__closure__ or ()]
    callers = (*callers, function)
    ours = {name: _adopted_or_same(value, callers) for name, value in outside.items()}
    inside = [_adopted_or_same(value, callers) for value in cells]
    copy = FunctionType(
        original.__code__,
        {**original.__globals__, **ours},
        original.__name__,
        original.__defaults__,
        tuple([CellType(value) for value in inside]),
    )
    # Numba imports a function's module by its name; in another thread it would wait for ever for one that is just being
    # imported, where the user hands the function over.
    copy.__module__, copy.__qualname__, copy.__doc__ = __name__, original.__qualname__, original.__doc__
    parts = [_code_text(original.__code__), *map(_text_of, inside), *map(_text_of, original.__defaults__ or ())]
    parts += [None if (text := _text_of(value)) is None else f"{name}={text}" for name, value in ours.items()]
    setattr(copy, ADOPTED_IDENTITY, None if None in parts else _digest(parts))
    return inline(copy)


def _adopted_or_same(value: Any, callers: tuple[Any, ...]) -> Any:
    return _adopt(value, callers) if is_compiled(value) else value


def _globals_of(function: Callable[..., Any]) -> list[str]:
    """Return the names that a function reads from outside of it, in order."""
    found = [each.argval for each in dis.get_instructions(function) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    return list(dict.fromkeys(found))


def _code_text(code: CodeType) -> str | None:
    constants = [
        _code_text(value) if isinstance(value, CodeType) else _text_of(value)
        for value in code.co_consts
        if not isinstance(value, str)  # docstrings, and names that the bytecode has by number
    ]
    if None in constants:
        return None
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_argcount, code.co_flags)
    return f"{code.co_code.hex()} {names} {constants}"


def _text_of(value: Any) -> str | None:
    """Return a text that means the same value in every process of the same versions, or None."""
    if isinstance(value, (bool, int, float, complex, str, np.generic)) or value is None:
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, tuple):
        parts = [_text_of(part) for part in value]
        return None if None in parts else f"({', '.join(map(str, parts))})"
    if is_compiled(value):
        return getattr(value.py_func, ADOPTED_IDENTITY, None)
    if isinstance(value, ModuleType):
        return f"module {value.__name__}" if value.__name__ in _KNOWN_MODULES else None
    if isinstance(value, np.ufunc):
        return f"ufunc {value.__name__}"
    if isinstance(value, (FunctionType, BuiltinFunctionType, type)) or callable(value):
        module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
        known = isinstance(module, str) and (
            module in _KNOWN_MODULES or module.startswith(("numpy.", "fastbp.kernels."))
        )
        return f"{module}.{name}" if known and name else None
    return None


def _digest(parts: list[str | None]) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()
