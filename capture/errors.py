"""What goes wrong, as the user is told it: what happened, where, and what to do next. And the exit code it gives."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import click

PARTIAL: Final = 3
"""Exit code: what could be done was, and something could not (a node that could not be reached, say)."""


class PodtapError(Exception):
    """A failure that ends the command with exit code 1; its text is for the user."""


class UsageError(PodtapError):
    """The command was called wrongly: exit code 2."""


class PartialError(PodtapError):
    """What could be done was, the text tells what was not: exit code 3."""


class _Partial(click.ClickException):
    exit_code = PARTIAL


@contextmanager
def told_in_a_line() -> Iterator[None]:
    """Inside a click command: errors become a line on standard error, and their exit code."""
    try:
        yield
    except UsageError as error:
        raise click.UsageError(str(error)) from error
    except PartialError as error:
        raise _Partial(str(error)) from error
    except PodtapError as error:
        raise click.ClickException(str(error)) from error
    except ModuleNotFoundError as error:
        if (error.name or "capture").partition(".")[0] == "capture":
            raise
        raise click.ClickException(f"{error.name} is not installed: run pip install 'podtap[capture]'") from error
    except OSError as error:
        if error.filename is None:
            raise
        raise click.ClickException(unusable(error)) from error


def unusable(error: OSError) -> str:
    """What the system refused, and where."""
    hint = "; run it as root, or as whoever owns that" if error.errno in (errno.EACCES, errno.EPERM) else ""
    return f"{error.filename} can't be used: {error.strerror}{hint}" if error.filename else str(error)


class Command(click.Command):
    """A command whose errors are told in a line: exit code 2 where it was called wrongly, 3 where it was partly done,
    else 1."""

    def invoke(self, ctx: click.Context) -> Any:
        with told_in_a_line():
            return super().invoke(ctx)


class Group(click.Group):
    """The same for a command with subcommands."""

    def invoke(self, ctx: click.Context) -> Any:
        with told_in_a_line():
            return super().invoke(ctx)
