"""What goes wrong, as the user is told it: what happened, where, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass


class PodtapError(Exception):
    """A failure that ends the command with exit code 1; its text is for the user."""


class UsageError(PodtapError):
    """The command was called wrongly: exit code 2."""


@dataclass(frozen=True)
class Problem:
    """Something that could not be read: exit code 3. What could be read was kept."""

    path: str
    offset: int | None
    """Byte offset in the uncompressed file; None where it concerns the whole file."""
    message: str

    def __str__(self) -> str:
        where = self.path if self.offset is None else f"{self.path}: offset {self.offset}"
        return f"{where}: {self.message}"
