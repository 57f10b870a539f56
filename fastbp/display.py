"""What users look at: tables as text, and as HTML for notebooks; Matplotlib, where it is installed."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["html_table", "pyplot_for", "text_table"]


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, the first of which has the columns' names, as lines of text; numbers are to the right.

    Examples
    --------
    >>> print(text_table([("layer", "units"), ("0", "16"), ("1", "128")]))
    layer  units
        0     16
        1    128
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def html_table(rows: Sequence[Sequence[str]], caption: str) -> str:
    """Return the same as HTML, with a caption.

    Examples
    --------
    >>> html_table([("a",), ("<",)], "b")
    '<table><caption>b</caption><tr><th>a</th></tr><tr><td>&lt;</td></tr></table>'
    """
    head, *body = rows
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in body]
    return f"<table><caption>{escape(caption)}</caption>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def pyplot_for(what: str) -> Any:
    """Return Matplotlib's pyplot for a function of this name.

    Raises
    ------
    ImportError
        If Matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(f"{what} needs Matplotlib: pip install 'fastbp[examples]'") from error
    return pyplot
