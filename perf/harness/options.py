"""What commands share of their arguments, and results as files."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.processes import available_cores
from harness.shapes import SHAPES, Shape

if TYPE_CHECKING:
    from types import ModuleType

RESULTS = Path(__file__).parents[1] / "results"
DTYPES = ("float32", "float64")


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser that shows the command's docstring."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_shapes(parser: argparse.ArgumentParser, default: str = "all") -> None:
    """Add `--shapes`."""
    parser.add_argument("--shapes", type=parse_shapes, default=default, help="comma-separated names, or all")


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """Add `--dtype`, one."""
    parser.add_argument("--dtype", choices=DTYPES, default="float32")


def add_dtypes(parser: argparse.ArgumentParser, default: str = "float32,float64") -> None:
    """Add `--dtypes`, several."""
    parser.add_argument("--dtypes", type=parse_dtypes, default=default, help="comma-separated")


def add_rounds(parser: argparse.ArgumentParser, default: int = 7) -> None:
    """Add `--rounds`."""
    parser.add_argument("--rounds", type=int, default=default, help="timed runs of each")


def parse_shapes(text: str) -> list[Shape]:
    """Return the shapes of a comma-separated list, all where it is 'all'."""
    if text == "all":
        return list(SHAPES.values())
    return [SHAPES[name] for name in text.split(",")]


def parse_counts(text: str) -> list[int]:
    """Return comma-separated numbers."""
    return [int(count) for count in text.split(",")]


def parse_dtypes(text: str) -> list[str]:
    """Return comma-separated dtypes."""
    dtypes = text.split(",")
    if not set(DTYPES).issuperset(dtypes):
        raise ValueError(text)
    return dtypes


def run_part(doc: str | None, parts: dict[str, ModuleType]) -> None:
    """Run the part that the first argument names, with its own arguments."""
    parser = parser_of(doc)
    choices = parser.add_subparsers(required=True, metavar="PART")
    for name, part in parts.items():
        summary = (part.__doc__ or "").partition("\n")[0]
        own = choices.add_parser(
            name, help=summary, description=part.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        part.add_arguments(own)
        own.set_defaults(part=part)
    arguments = parser.parse_args()
    print(processor())
    arguments.part.run(arguments)


def processor() -> str:
    """Return the processor's name and the cores at hand."""
    name = "unknown processor"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {len(available_cores())} cores"


def save(name: str, **result: Any) -> Path:
    """Write a result and where it comes from to results/NAME.json; return the path without its suffix."""
    RESULTS.mkdir(exist_ok=True)
    origin = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }
    path = RESULTS / name
    path.with_suffix(".json").write_text(json.dumps(origin | result, indent=1) + "\n")
    print(f"written: perf/results/{name}.json")
    return path


def load(name: str) -> dict[str, Any] | None:
    """Return what `save` has written, or None."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def exit_with(is_good: bool) -> None:
    """End with status 0 or 1."""
    sys.exit(0 if is_good else 1)
