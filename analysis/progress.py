"""How far an analysis is: bytes, packets a second and time left, on standard error, if that is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

OnProgress: TypeAlias = Callable[[int, int | None, int], None]
"""Called with bytes done, bytes in all (None: not known, as with standard input) and packets done."""


class PacketRate(ProgressColumn):
    """Packets a second since the start."""

    def render(self, task: Task) -> Text:
        packets, seconds = task.fields["packets"], task.elapsed or 0.0
        return Text(f"{packets / seconds:,.0f} packets/s" if packets and seconds else "")


@contextmanager
def shown_progress(console: Console) -> Iterator[OnProgress]:
    """What to call as the work goes on; shows nothing where the console is no terminal."""
    columns = [
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(binary_units=True),
        PacketRate(),
        TimeRemainingColumn(compact=True),
    ]
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("analysing", total=None, packets=0)

        def report(bytes_done: int, bytes_total: int | None, packets_done: int) -> None:
            progress.update(task, completed=bytes_done, total=bytes_total, packets=packets_done)

        yield report
