"""Tests of the compiler options and of the cache of compiled code.

What the cache does is seen from fresh processes only. They import a small package that is made for each test: a copy of
``fastbp/_jit`` and one kernel module, so that sources can be edited and files damaged at will.
"""

import compileall
import copy
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numba import types

from fastbp import _jit
from fastbp._jit import cache
from fastbp._jit.compiler import call_address

HELPERS = """
from fastbp._jit import inline

@inline
def grow(x):
    return x + x
"""

DEMO = """
import ctypes

import numpy as np
from numba import types

from fastbp._jit import kernel, leaf
from fastbp.kernels.helpers import grow

def vector(T):
    return types.void(types.CPointer(T), types.intp)

@leaf(vector)
def grow_all(z, n):
    for i in range(n):
        z[i] = grow(z[i])

def repeated(name, function, n_times):
    def body(z, n):
        for _ in range(n_times):
            for i in range(n):
                z[i] = function(z[i])
    body.__name__ = body.__qualname__ = name
    return leaf(vector)(body)

grow_twice = repeated("grow_twice", grow, 2)

@kernel
def total(x):
    result = x[0]
    for i in range(1, x.size):
        result += grow(x[i])
    return result

def call(address, z):
    # By Numba's calling convention: places for the result and for an exception come first.
    place = ctypes.c_void_p()
    prototype = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 3, ctypes.c_ssize_t)
    prototype(address)(ctypes.byref(place), ctypes.byref(place), z.ctypes.data, z.size)

def values():
    results = []
    for dtype in (np.float32, np.float64):
        z = np.ones(2, dtype)
        for each in (grow_all, grow_twice):
            call(each.address(dtype), z)
            results.append(float(z[1]))
        results.append(float(total(np.ones(2, dtype))))
    return results
"""

# Two leaves and one kernel, for two dtypes each.
N_COMPILED = 6
DOUBLED = [2.0, 8.0, 3.0] * 2
TRIPLED = [3.0, 27.0, 4.0] * 2

PROBE = """
{first}
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from fastbp import _jit
    from fastbp.kernels import demo
    {before}
    values = demo.values()
    {after}
print(json.dumps(dict(values=values, n_compiled=_jit.n_compiled(), seconds=_jit.compile_seconds(),
                      folder=str(_jit.cache_folder()), warnings=[str(w.message) for w in caught])))
"""


class Package:
    """A copy of `_jit` with one kernel module, and the folder that NUMBA_CACHE_DIR names."""

    def __init__(self, root, cache):
        self.root, self.cache = root, cache
        kernels = root / "fastbp" / "kernels"
        kernels.mkdir(parents=True)
        shutil.copytree(
            Path(_jit.__file__).parent, root / "fastbp" / "_jit", ignore=shutil.ignore_patterns("__pycache__")
        )
        for folder in (root / "fastbp", kernels):
            (folder / "__init__.py").touch()
        (kernels / "demo.py").write_text(DEMO)
        self.helpers = kernels / "helpers.py"
        self.helpers.write_text(HELPERS)

    def start(self, before="", after="", first="", **environment):
        """Start a process that uses all leaves and kernels and reports in JSON."""
        code = PROBE.format(first=first, before=textwrap.indent(before, "    ").strip(), after=after)
        environment = {
            # Python's own cache of bytecode trusts a file's size and its time in seconds, so a quick edit escapes it.
            "PYTHONDONTWRITEBYTECODE": "1",
            "NUMBA_CACHE_DIR": str(self.cache),
            "PYTHONPATH": str(self.root),
            **environment,
        }
        return subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=self.root,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, before="", after="", first="", **environment):
        """Run such a process and return its report."""
        return report_of(self.start(before, after, first, **environment))

    def files(self, pattern="*.nbc"):
        return sorted(self.cache.glob(f"fastbp-*/{pattern}"))


def report_of(process):
    out, err = process.communicate()
    assert process.returncode == 0, err
    return json.loads(out)


needs_disk = pytest.mark.skipif(_jit.IS_PLAIN, reason="without Numba's private classes nothing is kept on disk")


@pytest.fixture
def package(tmp_path):
    if _jit.IS_PLAIN:
        pytest.skip("without Numba's private classes nothing is kept on disk")
    return Package(tmp_path / "package", tmp_path / "cache")


def negate_signature(float_type):
    return types.void(types.CPointer(float_type), types.intp)


@_jit.inline
def opposite(x):
    return -x


@_jit.leaf(negate_signature)
def negate(z, n):
    """Negate z in place."""
    for i in range(n):
        z[i] = opposite(z[i])


def call(address, z):
    call_address(address, negate_signature(types.float32), z, z.size)


def test_kernel_division_by_zero_gives_infinity():
    @_jit.kernel
    def divide(x, y):
        return x / y

    assert divide(1.0, 0.0) == np.inf


def test_kernel_options_release_the_gil_without_fastmath():
    @_jit.kernel
    def first(x):
        return x[0]

    assert first.targetoptions["nogil"]
    assert not first.targetoptions.get("fastmath", False)


def test_inline_helper_leaves_no_call_in_leaf():
    code = negate.llvm(np.float64)
    assert "fneg" in code
    assert not re.search(r"(define|declare|call)\b.*opposite", code)


@pytest.mark.skipif(_jit.IS_PLAIN, reason="there it runs")
def test_inline_helper_called_from_python_raises():
    with pytest.raises(KeyError):
        opposite(1.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_leaf_address_each_dtype_runs_its_own_code(dtype):
    z = np.arange(5, dtype=dtype)
    call(negate.address(dtype), z)
    np.testing.assert_array_equal(z, -np.arange(5, dtype=dtype))


def test_leaf_address_second_call_returns_the_same_address():
    address = negate.address("float32")
    n_compiled, seconds = _jit.n_compiled(), _jit.compile_seconds()
    assert negate.address(np.dtype(np.float32)) == address
    assert (_jit.n_compiled(), _jit.compile_seconds()) == (n_compiled, seconds)
    assert negate.address("float64") != address


@pytest.mark.parametrize("dtype", [np.float16, np.int64, np.complex64, np.dtype(np.float64).newbyteorder()])
def test_leaf_address_other_dtype_raises(dtype):
    with pytest.raises(TypeError, match="dtype must be float32 or float64, got"):
        negate.address(dtype)


def test_leaf_address_from_many_threads_compiles_once():
    fresh = _jit.leaf(negate_signature)(negate.__wrapped__)
    n_compiled = _jit.n_compiled()
    barrier = threading.Barrier(4)

    def address(_):
        barrier.wait()
        return fresh.address(np.float32)

    with ThreadPoolExecutor(4) as pool:
        addresses = set(pool.map(address, range(4)))
    assert len(addresses) == 1
    assert _jit.n_compiled() == n_compiled + 1


def test_leaf_copies_by_reference():
    assert pickle.loads(pickle.dumps(negate)) is negate
    assert copy.deepcopy(negate) is negate
    assert copy.copy(negate) is negate


def test_leaf_keeps_the_name_and_docstring_of_its_function():
    assert (negate.__name__, negate.__doc__) == ("negate", "Negate z in place.")
    assert negate.__wrapped__.__name__ == "negate"
    assert repr(negate) == "<leaf test_jit.negate>"


def test_leaf_float32_code_holds_no_double():
    assert "double" not in negate.llvm(np.float32)
    assert "negate" in negate.asm(np.float32)


def test_compile_seconds_nested_kernels_counts_the_time_once():
    @_jit.kernel
    def inner(x):
        return x + 1.0

    @_jit.kernel
    def outer(x):
        return inner(x) + inner(2.0 * x)

    n_compiled, seconds, start = _jit.n_compiled(), _jit.compile_seconds(), time.perf_counter()
    assert outer(1.0) == 5.0
    elapsed = time.perf_counter() - start
    assert _jit.n_compiled() == n_compiled + 2
    assert 0.0 < _jit.compile_seconds() - seconds < elapsed


def test_n_compiled_failed_compilation_is_not_counted():
    @_jit.kernel
    def wrong(x):
        return x.no_such_attribute

    @_jit.kernel
    def right(x):
        return x

    n_compiled = _jit.n_compiled()
    with pytest.raises(numba.TypingError):
        wrong(1.0)
    assert _jit.n_compiled() == n_compiled
    seconds = _jit.compile_seconds()
    right(1.0)
    assert _jit.n_compiled() == n_compiled + 1
    assert _jit.compile_seconds() > seconds


def test_cache_second_process_compiles_nothing(package):
    first, second = package.run(), package.run()
    assert first["values"] == second["values"] == DOUBLED
    assert (first["n_compiled"], second["n_compiled"]) == (N_COMPILED, 0)
    assert second["seconds"] > 0.0
    assert first["warnings"] == second["warnings"] == []
    assert first["folder"] == second["folder"] == str(package.files()[0].parent)
    assert len(package.files()) == N_COMPILED


def test_cache_eight_first_runs_at_once_all_succeed(package):
    for process in [package.start() for _ in range(8)]:
        report = report_of(process)
        assert (report["values"], report["warnings"]) == (DOUBLED, [])
    assert package.run()["n_compiled"] == 0
    assert len(package.files()) == len(package.files("*")) == N_COMPILED


def test_cache_recompile_replaces_the_files(package):
    package.run()
    again = package.run(after="demo.total.recompile()")
    assert again["n_compiled"] == 2
    assert package.run()["n_compiled"] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_cache_forked_child_uses_and_adds_code(package):
    before = """
import os
import numpy as np
address = demo.grow_all.address("float32")
child = os.fork()
if child == 0:
    z = np.ones(2, np.float32)
    demo.call(address, z)
    assert demo.grow_all.address("float32") == address
    os._exit(0 if z[1] == 2 and demo.values()[0] == 2 else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    parent = package.run(before)
    # The child has left the other five on disk.
    assert (parent["values"], parent["n_compiled"]) == (DOUBLED, 1)


def test_cache_edit_in_another_file_runs_new_code(package):
    old = package.run()
    package.helpers.write_text(HELPERS.replace("x + x", "x + x + x"))
    new = package.run()
    assert (new["values"], new["n_compiled"]) == (TRIPLED, N_COMPILED)
    assert new["folder"] != old["folder"]


def test_cache_two_versions_side_by_side_both_hit(package, tmp_path):
    other = Package(tmp_path / "other", package.cache)
    other.helpers.write_text(HELPERS.replace("x + x", "x + x + x"))
    for n_compiled in (N_COMPILED, 0):
        for each, values in ((package, DOUBLED), (other, TRIPLED)):
            report = each.run()
            assert (report["values"], report["n_compiled"]) == (values, n_compiled)


def test_cache_edit_under_a_running_process_stores_nothing(package):
    tripled = HELPERS.replace("x + x", "x + x + x")
    edit = f"open({str(package.helpers)!r}, 'w').write({tripled!r})"
    assert package.run(before=edit)["values"] == DOUBLED
    assert package.files() == []
    assert package.run()["values"] == TRIPLED


def test_digest_other_target_or_setting_differs(package):
    usual = {"NUMBA_CPU_NAME": "core2", "NUMBA_CPU_FEATURES": "+sse2", "NUMBA_BOUNDSCHECK": "0"}
    changes = [
        {},
        {"NUMBA_CPU_NAME": "nehalem"},
        {"NUMBA_CPU_FEATURES": "+sse2,+sse3"},
        {"NUMBA_BOUNDSCHECK": "1"},
    ]
    folders = {package.run(before="demo.values = list", **usual | change)["folder"] for change in changes}
    assert len(folders) == len(changes)


def test_identity_closure_over_constants_and_kernels_names_them(monkeypatch):
    monkeypatch.setattr(opposite.py_func, "__module__", "fastbp.kernels.demo")

    def repeated(function, n_times):
        def body(x):
            for _ in range(n_times):
                x = function(x)
            return x

        body.__module__, body.__qualname__ = "fastbp.kernels.demo", "body"
        return body

    identities = {cache.identity(repeated(opposite, n_times)) for n_times in (1, 2)}
    assert len(identities) == 2
    assert all("fastbp.kernels.demo.opposite" in identity for identity in identities)
    assert cache.identity(repeated(negate, 1)) is None
    assert cache.identity(repeated(numba.njit(lambda x: x), 1)) is None


def test_identity_function_of_others_is_none():
    assert cache.identity(negate.__wrapped__) is None


def test_cache_damaged_files_are_misses_and_mended(package):
    package.run()
    empty, truncated, garbage, swapped, folder, intact = package.files()
    swapped.write_bytes(intact.read_bytes())
    empty.write_bytes(b"")
    truncated.write_bytes(truncated.read_bytes()[:-1])
    garbage.write_bytes(os.urandom(1000))
    folder.unlink()
    damaged = package.run()
    assert (damaged["values"], damaged["n_compiled"], damaged["warnings"]) == (DOUBLED, N_COMPILED - 1, [])
    assert package.run()["n_compiled"] == 0


def test_cache_file_that_cannot_be_replaced_warns(package):
    package.run()
    path = package.files()[0]
    path.unlink()
    path.mkdir()
    report = package.run()
    assert (report["values"], report["n_compiled"], len(report["warnings"])) == (DOUBLED, 1, 1)


@pytest.mark.parametrize(
    "death",
    [
        # Before the file is complete, and when it has not got its name yet.
        "Path.write_bytes = lambda path, data: (open(path, 'wb').write(data[:99]), os._exit(9))",
        "Path.replace = lambda *paths: os._exit(9)",
    ],
)
def test_cache_process_killed_in_mid_write_harms_nobody(package, death):
    killed = package.start(before=f"import os\nfrom pathlib import Path\n{death}")
    killed.communicate()
    assert killed.returncode == 9
    assert len(package.files("*.tmp")) == 1
    report = package.run()
    assert (report["values"], report["n_compiled"], report["warnings"]) == (DOUBLED, N_COMPILED, [])
    assert package.run()["n_compiled"] == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_cache_full_disk_warns_once_and_leaves_no_file(package):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))"
    report = package.run(before=limit)
    assert (report["values"], report["n_compiled"], len(report["warnings"])) == (DOUBLED, N_COMPILED, 1)
    assert "fastbp cannot keep its compiled code on disk" in report["warnings"][0]
    assert package.files("*") == []


def test_cache_folder_cannot_be_made_warns_once(package):
    package.cache.write_text("a file where the folder should be")
    for _ in range(2):
        report = package.run()
        assert (report["values"], report["n_compiled"], len(report["warnings"])) == (DOUBLED, N_COMPILED, 1)
        assert "set NUMBA_CACHE_DIR to a folder that can be written" in report["warnings"][0]


GONE = "import numba, os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')"
NO_HOME = """
from pathlib import Path
def no_home():
    raise RuntimeError("Could not determine home directory.")
Path.home = no_home
"""
DENIED = """
from pathlib import Path
def denied(*arguments, **options):
    raise PermissionError(13, "Permission denied")
Path.mkdir = denied
"""
ADVICE = "set NUMBA_CACHE_DIR to a folder that can be written and has room"


@pytest.mark.skipif(sys.platform == "win32", reason="a folder that is in use cannot be removed there")
@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (
            {"first": GONE, "NUMBA_CACHE_DIR": "here"},
            f"here is relative to the current folder, which is gone .*{ADVICE}, by its full path",
        ),
        ({"first": NO_HOME, "NUMBA_CACHE_DIR": ""}, f"there is no home directory: {ADVICE}"),
        ({"first": DENIED}, f"cache.*Permission denied: {ADVICE}"),
        ({"NUMBA_CACHE_DIR": "/dev/null/cache"}, f"/dev/null/cache.*: {ADVICE}"),
        ({"NUMBA_CACHE_DIR": "n" * 300}, f"File name too long: .*{ADVICE}"),
        ({"before": "_jit.tuned.dumps = None"}, "TypeError: [^:]*"),
    ],
    ids=["current folder gone", "no home", "denied", "a file", "long name", "not the disk"],
)
def test_cache_no_place_warns_once_and_says_what_helps(package, trouble, words):
    report = package.run(**{"XDG_CACHE_HOME": "", **trouble})
    assert (report["values"], report["n_compiled"], len(report["warnings"])) == (DOUBLED, N_COMPILED, 1)
    assert re.fullmatch(
        f"fastbp cannot keep its compiled code on disk, so every .* anew: .*{words}", report["warnings"][0]
    )


@pytest.mark.skipif(sys.platform == "win32", reason="a folder that is in use cannot be removed there")
def test_cache_current_folder_gone_does_not_matter_to_a_full_path(package):
    for n_compiled in (N_COMPILED, 0):
        report = package.run(first=GONE)
        assert (report["values"], report["n_compiled"], report["warnings"]) == (DOUBLED, n_compiled, [])


def test_cache_package_in_a_zip_archive_is_kept(package):
    archive = shutil.make_archive(str(package.root.parent / "archive"), "zip", package.root)
    shutil.rmtree(package.root / "fastbp")
    for n_compiled in (N_COMPILED, 0):
        report = package.run(PYTHONPATH=archive)
        assert (report["values"], report["n_compiled"], report["warnings"]) == (DOUBLED, n_compiled, [])


def test_cache_sources_cannot_be_read_warns_once(package):
    assert compileall.compile_dir(package.root, quiet=1, legacy=True)
    for path in package.root.rglob("*.py"):
        path.unlink()
    report = package.run()
    assert (report["values"], report["folder"], len(report["warnings"])) == (DOUBLED, "None", 1)
    assert report["warnings"][0].endswith(
        "its sources cannot be read: install them as files, not within an archive or as bytecode alone"
    )
    assert package.files() == []


@given(data=st.data(), payload=st.binary(min_size=1, max_size=200))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_read_any_damage_raises(tmp_path, data, payload):
    path, key = tmp_path / "file.nbc", ("function", 1)
    cache._write(path, pickle.dumps((key, (payload,))))
    assert cache._read(path, key) == (payload,)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans(), "truncate"):
        del content[position:]
    else:
        content[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        cache._read(path, key)


def test_read_other_key_raises(tmp_path):
    cache._write(tmp_path / "file.nbc", pickle.dumps((("float32",), ())))
    with pytest.raises(ValueError, match="another signature"):
        cache._read(tmp_path / "file.nbc", ("float64",))


@needs_disk
def test_cache_folder_numba_cache_dir_is_the_parent(monkeypatch, tmp_path):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert cache._find_folder.__wrapped__()[0] == tmp_path / f"fastbp-{_jit.digest()}"


@needs_disk
@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="XDG variables are for other systems")
def test_cache_folder_xdg_cache_home_is_used_if_absolute(monkeypatch, tmp_path):
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for xdg, parent in [(str(tmp_path), tmp_path), ("", tmp_path / "home/.cache"), ("here", tmp_path / "home/.cache")]:
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
        assert cache._find_folder.__wrapped__()[0] == parent / "fastbp" / f"fastbp-{_jit.digest()}"


def test_cache_folder_no_home_is_none(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert cache._find_folder.__wrapped__()[0] is None


def make_old(path, days):
    os.utime(path, (time.time() - days * 86400,) * 2)


def test_prune_removes_only_unused_folders_of_ours(tmp_path):
    names = {
        "current": "fastbp-" + "0" * 24,
        "unused": "fastbp-" + "1" * 24,
        "used": "fastbp-" + "2" * 24,
        "longer": "fastbp-" + "3" * 25,
        "other": "fastbp-results",
    }
    for name in names.values():
        (tmp_path / name).mkdir()
        (tmp_path / name / "demo.nbc").touch()
        make_old(tmp_path / name, 80 if name == names["used"] else 100)
    cache._prune.__wrapped__(tmp_path / names["current"])
    assert {path.name for path in tmp_path.iterdir()} == set(names.values()) - {names["unused"]}


def test_prune_removes_temporary_files_of_dead_writers(tmp_path):
    for name, days in [("a.nbc", 9), ("b.nbc.0.tmp", 9), ("c.nbc.0.tmp", 0)]:
        (tmp_path / name).touch()
        make_old(tmp_path / name, days)
    cache._prune.__wrapped__(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a.nbc", "c.nbc.0.tmp"}


def test_cache_hit_marks_the_folder_as_used(package):
    package.run()
    folder = package.files()[0].parent
    make_old(folder, 89)
    assert package.run()["n_compiled"] == 0
    assert time.time() - folder.stat().st_mtime < 86400
