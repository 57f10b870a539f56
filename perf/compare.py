"""Compare the time per step with that of another commit: has a change slowed anything down?

    python perf/compare.py --against COMMIT [--beside COMMIT] [--shapes all] [--threads 1,2] [--dtypes float32,float64]

The fastbp of this clone and that of the other commit run in processes of their own on every shape × threads × dtype:
short fits in turns, in random order. The ratio of a round is the shortest time of this clone over the shortest of the
commit. After some rounds new processes go on: one may have its code and memory in a luckier place than the other, and
that is worth a percent. A line has the median of all rounds and its 95 % interval, from the order of the ratios. It
passes if the median is at most 1.02 and the interval narrower than 0.03; what does not is measured on, up to
`--most-processes`. The exit status is 0 if all pass. `--beside` prints a third commit's ratio too. On a quiet machine
the default takes some ten minutes.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from math import comb
from pathlib import Path
from statistics import median

import timing
from shapes import Shape

CLONE = Path(__file__).parents[1]
LARGEST_RATIO, WIDEST_INTERVAL = 1.02, 0.03
CONFIDENCE = 0.95
FEWEST_ROUNDS = 6  # fewer have no interval of that confidence
NEW, AGAINST, BESIDE = "this clone", "against", "beside"


@dataclass
class Case:
    """A shape with a number of threads and a dtype, and its times per step: for each version, one a round."""

    shape: Shape
    threads: int
    dtype: str
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.shape.name} × {self.threads} × {self.dtype}"

    def ratios(self, other: str) -> list[float]:
        """Return this clone's time over the other's, round by round."""
        return [new / old for new, old in zip(self.seconds[NEW], self.seconds[other], strict=True)]

    @property
    def n_rounds(self) -> int:
        return len(self.seconds.get(NEW, ()))

    @property
    def passes(self) -> bool:
        ratios = self.ratios(AGAINST)
        low, high = interval(ratios)
        return median(ratios) <= LARGEST_RATIO and high - low < WIDEST_INTERVAL


def interval(values: list[float]) -> tuple[float, float]:
    """Return the bounds of the median's confidence interval, by the sign test: no shape of a distribution is assumed.

    Of n values as many are left out at either end as heads come up, at most, in n tosses with a probability of half of
    what the confidence leaves.
    """
    values, n = sorted(values), len(values)
    n_left_out, tail = 0, 1
    while tail + comb(n, n_left_out + 1) <= (1 - CONFIDENCE) / 2 * 2**n:
        n_left_out += 1
        tail += comb(n, n_left_out)
    return values[n_left_out], values[-1 - n_left_out]


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


def warm_up(processes: list[timing.RivalProcess], seconds: float) -> int:
    """Compile or load, let all take the same steps, and return how many of them last `seconds`."""
    n_steps, elapsed = 1, 0.0
    for process in processes:
        process.ask("time", n_steps=n_steps)
    while elapsed < seconds / 2:
        elapsed = min([process.ask("time", n_steps=n_steps) for process in processes])
        n_steps = max(1, min(10 * n_steps, round(n_steps * seconds / elapsed)))
    return n_steps


def measure(case: Case, sources: dict[str, str], rounds: int, fits: int, seconds: float) -> None:
    """Add some rounds to the case: in each, every version runs so many fits, and the shortest counts."""
    processes = {
        version: timing.RivalProcess(timing.Setting("fastbp", case.threads, source), case.shape, case.dtype)
        for version, source in sources.items()
    }
    try:
        n_steps = warm_up(list(processes.values()), seconds)
        # What others do on the core meanwhile is not counted; threads that wait for each other wait by the wall clock.
        clock = "process_time" if case.threads == 1 else "perf_counter"
        for _ in range(rounds):
            times: dict[str, list[float]] = {version: [] for version in sources}
            for version in random.sample(list(sources) * fits, len(sources) * fits):
                times[version].append(processes[version].ask("time", n_steps=n_steps, clock=clock) / n_steps)
            for version, of_fits in times.items():
                case.seconds.setdefault(version, []).append(min(of_fits))
    finally:
        for process in processes.values():
            process.close()


def line_of(case: Case) -> str:
    """Return a case's line of the table."""
    cells = [f"{case.shape.name:10} {case.threads:7} {case.dtype} {1e6 * median(case.seconds[NEW]):12.2f}"]
    for other in (AGAINST, BESIDE):
        if other in case.seconds:
            ratios = case.ratios(other)
            low, high = interval(ratios)
            cells.append(f"{median(ratios):9.3f} ({low:.3f} to {high:.3f})")
    return f"{' '.join(cells)} {case.n_rounds:7}   {'passed' if case.passes else 'not passed'}"


def parse_counts(text: str) -> list[int]:
    return [int(count) for count in text.split(",")]


def parse_dtypes(text: str) -> list[str]:
    dtypes = text.split(",")
    if not {"float32", "float64"}.issuperset(dtypes):
        raise ValueError(text)
    return dtypes


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", required=True, metavar="COMMIT", help="what to compare this clone with")
    parser.add_argument("--beside", metavar="COMMIT", help="another commit, whose ratio is printed too")
    parser.add_argument("--shapes", type=timing.parse_shapes, default="all", help="comma-separated names, or all")
    parser.add_argument("--threads", type=parse_counts, default="1,2", help="comma-separated numbers of threads")
    parser.add_argument("--dtypes", type=parse_dtypes, default="float32,float64", help="comma-separated")
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
    cases = [
        Case(shape, threads, dtype)
        for shape in arguments.shapes
        for threads in arguments.threads
        for dtype in arguments.dtypes
    ]
    commits = {NEW: None, AGAINST: arguments.against} | ({BESIDE: arguments.beside} if arguments.beside else {})
    with tempfile.TemporaryDirectory() as folder:
        sources = {version: put_into(Path(folder) / str(i), commits[version]) for i, version in enumerate(commits)}
        titles = [f"{f'against {commit[:12]}':28}" for commit in commits.values() if commit]
        print(f"{timing.processor()}; Adam; time per step of this clone over that of the other commit")
        print(f"{'shape':10} threads {'dtype':7} {'µs/step':>12}     {' '.join(titles)}  rounds", flush=True)
        pending, n_processes = cases, arguments.processes
        while pending:
            for case in pending:
                while case.n_rounds < n_processes * arguments.rounds:
                    measure(case, sources, arguments.rounds, arguments.fits, arguments.seconds)
                print(line_of(case), flush=True)
            n_processes = min(n_processes + arguments.processes, arguments.most_processes)
            wanted = n_processes * arguments.rounds
            pending = [case for case in pending if not case.passes and case.n_rounds < wanted]
    others = [case for case in cases if not case.passes]
    print(f"passed: {len(cases) - len(others)} of {len(cases)}" + "".join(f"; not {case}" for case in others))
    sys.exit(1 if others else 0)


if __name__ == "__main__":
    main()
