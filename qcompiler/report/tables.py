"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

_PIPE_WIDTH = 10_000
"""Columns where the output is no terminal: a file has no edge, so nothing needs to be folded."""


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Group:
    """A table with a heading.

    Args:
        title: heading of the table.
        columns: headings; one that starts with ``>`` is of a column aligned to the right.
        rows: cells, as many a row as there are columns.
    """
    result = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        result.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    for row in rows:
        assert len(row) == len(columns), f"{title}: {len(row)} cells in {len(columns)} columns: {row}"
        # Text, because a cell is no markup: the brackets of a shape belong to it.
        result.add_row(*(Text(cell) for cell in row))
    return _titled(title, result)


def facts(title: str, values: Mapping[str, str]) -> Group:
    """Names and values below each other."""
    result = Table(box=None, pad_edge=False, show_header=False)
    for name, value in values.items():
        result.add_row(Text(name), Text(value))
    return _titled(title, result)


def _titled(title: str, content: Table) -> Group:
    # A line of its own, because rich folds a table's title at the table's width.
    return Group(Text(title, style="italic"), content)


def show(*parts: RenderableType) -> None:
    """Prints tables and lines on the standard output, an empty line between them."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=_PIPE_WIDTH)
    for index, part in enumerate(parts):
        if index:
            console.print()
        console.print(part)
