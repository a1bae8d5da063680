"""Progress bars, on the standard error so that a redirected result stays clean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

Progress = Callable[[int], None]
"""Takes the number of steps that were done since the last call."""


@contextmanager
def progress(title: str, total: int, enabled: bool) -> Iterator[Progress]:
    """Shows a bar of ``total`` steps while the block runs; the block calls what it gets after each step.

    Where the standard error is no terminal, the title alone is written.
    """
    console = Console(stderr=True)
    if not enabled or not console.is_terminal:
        if enabled:
            console.print(f"{title} …")
        yield lambda steps: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True) as bars:
        task = bars.add_task(title, total=total)
        yield lambda steps: bars.update(task, advance=steps)
