"""Write what the README says of other libraries from the results of `vs_peers.py`.

    python perf/report.py [--check]

The table between the marks in README.md is made of results/vs_peers_float32_1_thread.json. With `--check` nothing is
written, and the exit status is 1 if the README says something else.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from harness import options
from harness.shapes import SHAPES
from vs_peers import ratios_of, timed_by_fastbp

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- written by perf/report.py -->\n", "<!-- end -->\n"
RESULT = "vs_peers_float32_1_thread"
# Column of the README: the columns of `vs_peers.py` that it is the best of.
COLUMNS = {
    "JAX": ("JAX",),
    "NumPy": ("NumPy", "NumPy, flat"),
    "PyTorch": ("PyTorch, best",),
    "scikit-learn": ("scikit-learn",),
    "plain C": ("static C",),
}


def with_digits(ratio: float) -> str:
    """Return a ratio with two places, or fewer where it is large."""
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}"


def in_words(record: dict[str, Any]) -> str:
    """Return widths, activation, loss and batch."""
    shape = SHAPES[record["shape"]]
    kind = "softmax" if shape.output == "softmax" else shape.loss
    return f"{'-'.join(map(str, shape.sizes))} {shape.activation} {kind}, batch {shape.batch_size}"


def table_of(result: dict[str, Any]) -> str:
    """Return the table in Markdown, and below it where and when it was measured."""
    lines = [f"| network | fastbp, µs | of FMA peak | {' | '.join(COLUMNS)} |", "|" + "---|" * (3 + len(COLUMNS))]
    for record in result["shapes"]:
        ours, ratios = timed_by_fastbp(record, 1), ratios_of(record, 1)
        cells = []
        for parts in COLUMNS.values():
            found = [ratios[part] for part in parts if part in ratios]
            cells.append(with_digits(min(found)) if found else "–")
        microseconds = ours["median_microseconds"]
        time = f"{microseconds:.2f}" if microseconds < 1000 else f"{microseconds:,.0f}".replace(",", " ")
        lines.append(f"| {in_words(record)} | {time} | {ours['share_of_peak']:.1%} | {' | '.join(cells)} |")
    timed = [rival for record in result["shapes"] for rival in record["rivals"] if rival["threads"] == 1]
    rivals = {rival["rival"]: rival["description"] for rival in timed}
    versions = "; ".join(text for name, text in rivals.items() if text and name not in ("numpy_flat", "torch"))
    origin = f"{result['when'][:10]}, one core of {result['processor']}, medians of {result['rounds']} rounds"
    lines += ["", f"{origin}. {versions}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = options.parser_of(__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the README is up to date")
    arguments = parser.parse_args()
    result = options.load(RESULT)
    if result is None:
        raise SystemExit(f"there is no perf/results/{RESULT}.json: run perf/vs_peers.py")
    before = README.read_text()
    marked = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if len(marked.findall(before)) != 1:
        raise SystemExit(f"README.md must have one part between {BEGIN.strip()} and {END.strip()}")
    after = marked.sub(lambda _: BEGIN + table_of(result) + END, before)
    if arguments.check:
        print("README.md is up to date" if after == before else "README.md says something else than perf/results")
        options.exit_with(after == before)
    README.write_text(after)


if __name__ == "__main__":
    main()
