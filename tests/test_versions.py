"""What a bug report shows, and that the versions which pyproject.toml admits are those that are tested."""

import io
import re
import sys
import tomllib
from pathlib import Path

import numba
import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import fastbp
from fastbp import _jit, workers
from fastbp.kernels import target

ROOT = Path(__file__).parents[1]


def shown(capsys):
    """Return what show_versions prints, as name: text."""
    fastbp.show_versions()
    return dict(re.split("  +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())


def test_show_versions_tells_versions_machine_and_cache(capsys, monkeypatch):
    monkeypatch.setenv("NUMBA_ENABLE_PROFILING", "0\n1")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    lines = shown(capsys)
    assert lines["fastbp"].startswith(fastbp.__version__)
    assert lines["Python"].startswith(sys.version.split()[0])
    assert (lines["NumPy"], lines["Numba"]) == (np.__version__, numba.__version__)
    assert re.fullmatch(r"\S+, LLVM \d+\.\d+\.\d+", lines["llvmlite"])
    assert lines["vectors"].startswith(f"{8 * target.VECTOR_BYTES} bits ({target.lanes(np.float32)} float32)")
    assert lines["cores"].startswith(f"{workers.available_cores()} allowed of")
    if not _jit.IS_PLAIN:
        assert lines["cache"] == str(_jit.cache_folder())
        assert re.fullmatch(r"(yes|no: .*); it holds \d+ kernels", lines["cache can be written"])
    assert lines["compiled"].startswith(f"{_jit.n_compiled()} kernels")
    assert (lines["NUMBA_ENABLE_PROFILING"], lines["OMP_NUM_THREADS"]) == ("0 1", "3")
    assert "hidden" not in str(lines)


def test_show_versions_cache_can_be_written_leaves_no_file(capsys, monkeypatch, tmp_path):
    (tmp_path / "a.nbc").touch()
    monkeypatch.setattr(_jit, "cache_folder", lambda: tmp_path)
    assert shown(capsys)["cache can be written"] == "yes; it holds 1 kernels"
    monkeypatch.setattr(_jit, "cache_folder", lambda: tmp_path / "not" / "yet")
    assert shown(capsys)["cache can be written"] == "yes; it holds 0 kernels"
    assert [path.name for path in tmp_path.iterdir()] == ["a.nbc"]


def test_show_versions_cache_cannot_be_written_says_why(capsys, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(_jit, "cache_folder", lambda: tmp_path / "file" / "folder")
    assert re.fullmatch(r"no: .+; it holds 0 kernels", shown(capsys)["cache can be written"])
    monkeypatch.setattr(_jit, "cache_folder", lambda: None)
    monkeypatch.setattr(_jit, "cache_problem", lambda: "no home")
    assert shown(capsys)["cache can be written"] == "no: no home"


def test_show_versions_broken_parts_show_their_errors(capsys, monkeypatch):
    intact = shown(capsys)

    def broken(*arguments):
        raise OSError("broken")

    monkeypatch.setattr(workers, "available_cores", broken)
    monkeypatch.setattr(_jit, "cache_folder", broken)
    monkeypatch.setattr(fastbp.versions.metadata, "version", broken)
    monkeypatch.setattr(Path, "read_text", broken)
    monkeypatch.delattr(target, "VECTOR_BYTES")
    lines = shown(capsys)
    assert lines.keys() == intact.keys()
    for name in ("llvmlite", "cores", "cache", "cache can be written"):
        assert lines[name] == "OSError: broken"
    assert lines["vectors"].startswith("AttributeError: ")
    assert lines["NumPy"] == np.__version__


class ClosedPipe(io.StringIO):
    def write(self, text):
        raise BrokenPipeError


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [None, ClosedPipe(), closed()], ids=["none", "closed pipe", "closed"])
def test_show_versions_nowhere_to_print_raises_nothing(monkeypatch, stream):
    monkeypatch.setattr(sys, "stdout", stream)
    fastbp.show_versions()


def test_show_versions_narrow_encoding_shows_numbers(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/fälle\udcff")
    fastbp.show_versions()
    assert rb"/f\xe4lle\udcff" in stream.buffer.getvalue()


def admitted():
    """Return every requirement of pyproject.toml, by the library's name."""
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = tables["project"]
    texts = [*tables["build-system"]["requires"], *project["dependencies"]]
    texts += [text for extra in project["optional-dependencies"].values() for text in extra]
    requirements = [Requirement(text) for text in texts]
    bounds = {requirement.name: requirement.specifier for requirement in requirements}
    assert all(bounds[requirement.name] == requirement.specifier for requirement in requirements), "two bounds of one"
    return bounds


def oldest_releases():
    """Return the release of every library in .ci/oldest.txt."""
    lines = (ROOT / ".ci" / "oldest.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_lower_bounds_are_the_oldest_releases_tested():
    lower = {
        name: Version(bound.version)
        for name, specifier in admitted().items()
        for bound in specifier
        if bound.operator == ">="
    }
    oldest = {name: Version(release) for name, release in oldest_releases().items()}
    assert lower.keys() == admitted().keys()
    assert {name: oldest.get(name) for name in lower} == lower


def test_numba_upper_bound_is_the_next_release_after_those_tested():
    assert admitted()["numba"].contains(numba.__version__)
    (upper,) = (bound.version for bound in admitted()["numba"] if bound.operator == "<")
    major, minor = Version(upper).release
    assert (
        f"Numba {oldest_releases()['numba'].rpartition('.')[0]} to {major}.{minor - 1}"
        in (ROOT / "README.md").read_text()
    )


def test_readme_names_the_oldest_python_and_numpy():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    readme = (ROOT / "README.md").read_text()
    assert f"Python {project['requires-python'].removeprefix('>=')} or later" in readme
    assert f"NumPy {oldest_releases()['numpy'].removesuffix('.0')} or later" in readme
