"""What a person sees while files come, and the table at the end."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final, TextIO

_EVERY_S: Final = 0.2
_WIDTH: Final = 30


def size_text(size: float) -> str:
    """1234567 -> 1.2 MB; units as --bandwidth and --quota count them."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1024 or unit == "GB":
            return f"{size:,.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


class Bar:
    """`with Bar(total) as bar: bar.add(bytes)`, from any thread; draws on a terminal only."""

    def __init__(self, total: int, there: int = 0, stream: TextIO | None = None) -> None:
        """`there`: of the total, what an earlier run brought."""
        self._stream = stream or sys.stderr
        self._is_shown = self._stream.isatty()
        self._total, self._there, self._done = total, there, there
        self._started = self._drawn = time.monotonic()
        self._lock = threading.Lock()

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_shown:
            self._draw()
            self._stream.write("\n")

    def add(self, size: int) -> None:
        with self._lock:
            self._done += size
            now = time.monotonic()
            if self._is_shown and now - self._drawn > _EVERY_S:
                self._drawn = now
                self._draw()

    def _draw(self) -> None:
        share = min(self._done / self._total, 1) if self._total else 1
        rate = (self._done - self._there) / max(time.monotonic() - self._started, 0.001)
        filled = "#" * int(share * _WIDTH)
        line = f"\r[{filled:<{_WIDTH}}] {share:4.0%}  {size_text(self._done)} of about {size_text(self._total)}"
        self._stream.write(f"{line}, {size_text(rate)}/s   ")
        self._stream.flush()


def printable(text: str) -> str:
    """What others wrote, without what could steer the terminal, or is no text at all."""
    shown = text.encode(errors="backslashreplace").decode()
    return "".join(each if each.isprintable() else " " for each in shown)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be; numbers to the right. What others wrote can't steer the terminal."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [
            cell.rjust(width) if cell[:1].isdigit() else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
