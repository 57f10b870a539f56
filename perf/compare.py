"""Compare the time per step with that of another commit: has a change slowed anything down?

    python perf/compare.py --against COMMIT [--against COMMIT] [--shapes all] [--threads 1,2] [--dtypes float32,float64]

The fastbp of this clone and that of the other commits run in processes of their own on every shape × threads × dtype:
short fits in turns, in random order. The ratio of a round is the shortest time of this clone over the shortest of the
commit. After some rounds new processes go on: one may have its code and memory in a luckier place than the other, and
that is worth a percent. A line has the median of all rounds and its 95 % interval, from the order of the ratios. It
passes if the median is at most 1.02 and the interval narrower than 0.03; what does not is measured on, up to
`--most-processes`. The exit status is 0 if all pass. The first commit decides that; beside it stand the ratios of any
others. On a quiet machine the default takes some ten minutes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from harness import options
from harness.processes import Setting
from harness.versions import FEWEST_ROUNDS, Case, in_cell, measure

if TYPE_CHECKING:
    import argparse

CLONE = Path(__file__).parents[1]
LARGEST_RATIO, WIDEST_INTERVAL = 1.02, 0.03
NEW = "this clone"


def put_into(folder: Path, commit: str | None) -> str:
    """Put the package into this new folder, as it is in the commit, or in the clone if that is None; return the folder.

    The folders' names are of one length: the heap begins with such texts, and where arrays lie in a page tells in time.
    """
    if commit is None:
        shutil.copytree(CLONE / "fastbp", folder / "fastbp", ignore=shutil.ignore_patterns("__pycache__"))
        return str(folder)
    archive = folder.with_suffix(".zip")
    git = ["git", "-C", str(CLONE), "archive", "--format=zip", f"--output={archive}", commit, "fastbp"]
    if subprocess.run(git, check=False).returncode:
        sys.exit(f"{commit}: git has no such commit here")
    shutil.unpack_archive(archive, folder)
    return str(folder)


def passes(case: Case, against: str) -> bool:
    """Return whether this clone is not slower, and that is known well enough."""
    middle, low, high = case.ratio(NEW, against)
    return middle <= LARGEST_RATIO and high - low < WIDEST_INTERVAL


def line_of(case: Case, against: list[str]) -> str:
    """Return a case's line of the table."""
    cells = [f"{case.shape.name:10} {case.threads:7} {case.dtype} {1e6 * median(case.seconds[NEW]):12.2f}"]
    cells += [in_cell(case.ratio(NEW, commit)) for commit in against]
    return f"{' '.join(cells)} {case.n_rounds:7}   {'passed' if passes(case, against[0]) else 'not passed'}"


def parse_arguments() -> argparse.Namespace:
    parser = options.parser_of(__doc__)
    parser.add_argument(
        "--against", required=True, action="append", metavar="COMMIT", help="may be repeated; the first one decides"
    )
    options.add_shapes(parser)
    parser.add_argument(
        "--threads", type=options.parse_counts, default="1,2", help="comma-separated numbers of threads"
    )
    options.add_dtypes(parser)
    parser.add_argument("--rounds", type=int, default=4, help="rounds in the same processes")
    parser.add_argument("--processes", type=int, default=3, help="how often to begin with new ones")
    parser.add_argument("--most-processes", type=int, default=12, help="how often at most, for what does not pass")
    parser.add_argument("--fits", type=int, default=3, help="fits of each version in a round")
    parser.add_argument("--seconds", type=float, default=0.03, help="what a fit takes, about")
    arguments = parser.parse_args()
    if arguments.rounds * arguments.processes < FEWEST_ROUNDS:
        parser.error(f"there must be at least {FEWEST_ROUNDS} rounds in all")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    against = arguments.against
    cases = [
        Case(shape, threads, dtype)
        for shape in arguments.shapes
        for threads in arguments.threads
        for dtype in arguments.dtypes
    ]
    with tempfile.TemporaryDirectory() as folder:
        commits = {NEW: None} | {commit: commit for commit in against}
        sources = {version: put_into(Path(folder) / str(i), commits[version]) for i, version in enumerate(commits)}
        titles = [f"{f'against {commit[:12]}':28}" for commit in against]
        print(f"{options.processor()}; Adam; time per step of this clone over that of the other commit")
        print(f"{'shape':10} threads {'dtype':7} {'µs/step':>12}     {' '.join(titles)}  rounds", flush=True)
        pending, n_processes = cases, arguments.processes
        while pending:
            for case in pending:
                settings = {version: Setting("fastbp", case.threads, source) for version, source in sources.items()}
                while case.n_rounds < n_processes * arguments.rounds:
                    measure(case, settings, arguments.rounds, arguments.fits, arguments.seconds)
                print(line_of(case, against), flush=True)
            n_processes = min(n_processes + arguments.processes, arguments.most_processes)
            wanted = n_processes * arguments.rounds
            pending = [case for case in pending if not passes(case, against[0]) and case.n_rounds < wanted]
    others = [case for case in cases if not passes(case, against[0])]
    print(f"passed: {len(cases) - len(others)} of {len(cases)}" + "".join(f"; not {case}" for case in others))
    options.exit_with(not others)


if __name__ == "__main__":
    main()
