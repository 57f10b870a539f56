"""What the documents and examples show runs, as a reader would run it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DOCUMENTS = [
    path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if BLOCK.search(path.read_text())
]
EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))
NEED_DATA = {"fashion_mnist"}  # that nobody has without fetching them


def run(arguments, folder):
    """Run Python as a user would, with warnings of numbers as errors; returns what it printed."""
    environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error::RuntimeWarning", *arguments]
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_blocks_of_a_document_run_one_after_the_other(document, tmp_path):
    pytest.importorskip("scipy")
    pytest.importorskip("matplotlib")
    pytest.importorskip("pandas")
    blocks = BLOCK.findall(document.read_text())
    assert blocks
    (tmp_path / "program.py").write_text("\n".join(blocks))
    run(["program.py"], tmp_path)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_and_leaves_nothing_but_its_pictures(example, tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    options = ["--help"] if example.stem in NEED_DATA else ["--short"] if example.parent.name == "embedding" else []
    assert run([str(example), *options], tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".png"}


def test_links_of_documents_lead_somewhere():
    documents = [
        ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "perf/README.md")
    ]
    for document in (*documents, *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#\s]+)\)", document.read_text()):
            assert "://" in target or (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.parametrize(
    "document", [*(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"], ids=lambda path: path.stem
)
def test_files_that_a_document_names_are_there(document):
    for name in re.findall(
        r"`(?:python )?((?:fastbp|tests|perf|docs|tools|examples)/[\w/]+\.(?:py|md))", document.read_text()
    ):
        assert (ROOT / name).exists(), name


def test_files_and_functions_that_the_design_names_are_there():
    text = (ROOT / "docs" / "design.md").read_text() + (ROOT / "docs" / "step.md").read_text()
    sources = "\n".join(path.read_text() for path in (ROOT / "fastbp").rglob("*.py"))
    for name in re.findall(r"`([a-z_/]+\.py)`", text):
        assert list((ROOT / "fastbp").rglob(name)) or (ROOT / name).exists(), name
    functions = re.findall(r"`[a-z_/]*\.py`, `(?:\w+\.)?(\w+)`", text)
    functions = set(functions + re.findall(r"\b\w+\.(\w+)$", text, re.MULTILINE)) - {"py"}
    assert len(functions) > 20
    modules = {path.stem for path in (ROOT / "fastbp").rglob("*.py")}
    for name in functions - modules:
        assert re.search(rf"\b(def|class) {name}\b|\b{name} = ", sources), name
