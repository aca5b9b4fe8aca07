"""Commands on a node, inside the agent's container or on the host: what its root holds, and freezes. No token, no port.

`podtap collect` and `podtap freeze` call them through the API server; a person with a shell on the node may as well.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from capture.arguments import PAST, TIME
from capture.contract import ContractError, Freeze, from_json
from capture.errors import Command, PodtapError, UsageError
from capture.freezes import add_freeze, read_freezes, thaw
from capture.listing import NodeListing
from capture.node_freeze import ELSEWHERE, freeze_node
from capture.progress import size_text, table
from capture.recording import Window, clock_text, node_folders, writer_folders
from capture.sending import list_node, send_journal, send_recording

F = TypeVar("F", bound=Callable[..., Any])
DEFAULT_ROOT: Final = "/var/lib/podtap"

root_option = click.option(
    "--root",
    metavar="DIR",
    type=click.Path(path_type=Path),
    envvar="PODTAP_ROOT",
    default=DEFAULT_ROOT,
    show_default=True,
    help="Where the recording is; $PODTAP_ROOT.",
)
since_option = click.option("--since", metavar="T", type=PAST, default="0", help="From then on.  [default: all]")
until_option = click.option("--until", metavar="T", type=TIME, default="+0s", help="Before then.  [default: now]")


@click.command("list", cls=Command)
@root_option
@since_option
@until_option
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def list_command(root: Path, since: int, until: int, output: str) -> None:
    """What this node holds of a window: segments, freezes, and how far back it reaches."""
    for folder in _recorded(root):
        listing = list_node(root, folder, Window(since, until))
        if output == "json":
            click.echo(listing.line())
        else:
            _show(listing)


def _show(listing: NodeListing) -> None:
    found = listing.listed()
    reach = f"reaches back to {clock_text(listing.oldest_ns)}" if listing.oldest_ns else "has no segment yet"
    click.echo(f"{listing.path}: {reach}; {len(found):,} segments, {size_text(sum(e.send_bytes for e in found))}")
    rows = [
        (clock_text(each.start_ns), clock_text(each.end_ns), f"{each.packets:,}", size_text(each.size_bytes), each.path)
        for each in found
    ]
    if rows:
        click.echo(table(("from", "to", "packets", "size", "segment"), rows))
    for freeze in listing.freezes:
        when = f"{clock_text(freeze['since_ns'])} to {clock_text(freeze['until_ns'])}"
        click.echo(f"frozen: {when}  {freeze['id']}  {freeze['reason']}  {freeze['by']}".rstrip())


@click.command("send", cls=Command)
@root_option
@since_option
@until_option
@click.option("--addresses", metavar="A,...", help="Only packets from or to these.")
@click.option("--resume", metavar="SEGMENT", default="", help="Begin with this segment: what is before it is there.")
@click.option("--offset", metavar="N", type=int, default=0, help="Of the first segment, so many bytes are there.")
def send_command(root: Path, since: int, until: int, addresses: str | None, resume: str, offset: int) -> None:
    """A window of this node's recording to standard output, as a stream that podtap collect reads."""
    wanted = None if addresses is None else [each for each in addresses.split(",") if each]
    _write(send_recording(root, _recorded(root), Window(since, until), wanted, resume, offset))


@click.command("send", cls=Command)
@root_option
@since_option
@until_option
def journal_send_command(root: Path, since: int, until: int) -> None:
    """The journal of a window to standard output, as a stream that podtap collect reads."""
    _write(send_journal(root, Window(since, until)))


def _freeze_options(command: F) -> F:
    """What a freeze is made of."""
    options = (
        root_option,
        click.option("--since", metavar="T", type=TIME, required=True, help="Start of what is to be kept."),
        click.option("--until", metavar="T", type=TIME, required=True, help="Its end; may be in the future: +15m."),
        click.option("--reason", default="", help="For whoever finds it later."),
        click.option("--by", default="", help="Who asks."),
        click.option(
            "--id", "freeze_id", metavar="ID", help="Of the freeze, where many nodes share one.  [default: a new one]"
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _thaw_options(command: F) -> F:
    """Which freezes."""
    ids = click.argument("ids", metavar="ID...", nargs=-1)
    return root_option(ids(click.option("--all", "is_all", is_flag=True, help="All freezes that are here.")(command)))


@click.command("freeze", cls=Command)
@_freeze_options
def freeze_command(root: Path, **freeze: Any) -> None:
    """Keep this node's segments of a window until they are thawed, and the journal of it where that is below the same
    root; works with the API server down.
    """
    if freeze["freeze_id"]:  # whoever froze many nodes freezes the journal, too
        _freeze(root, _recorded(root), **freeze)
    else:
        _freeze_here(root, **freeze)


@click.command("freeze", cls=Command)
@_freeze_options
def journal_freeze_command(root: Path, **freeze: Any) -> None:
    """Keep the journal's files that tell of a window until they are thawed."""
    _freeze(root, _written(root), **freeze)


@click.command("adopt", cls=Command)
@root_option
@click.argument("freezes", metavar="FREEZE...", nargs=-1)
def journal_adopt_command(root: Path, freezes: tuple[str, ...]) -> None:
    """Keep what tells of freezes that were made on nodes, each as JSON; those that are known stay as they are."""
    try:
        wanted = [from_json(Freeze, each.encode()) for each in freezes]
    except ContractError as error:
        raise UsageError(f"this is no freeze: {error}") from error
    for folder in _written(root):
        there = {each.id for each in read_freezes(folder)[0]}
        for one in wanted:
            if one.id not in there:
                _freeze(root, [folder], one.since_ns, one.until_ns, one.reason, one.by, one.id)


@click.command("thaw", cls=Command)
@_thaw_options
def thaw_command(root: Path, ids: tuple[str, ...], is_all: bool) -> None:
    """Let frozen segments go when it is their turn."""
    _thaw(_recorded(root), ids, is_all, writer_folders(root))


@click.command("thaw", cls=Command)
@_thaw_options
def journal_thaw_command(root: Path, ids: tuple[str, ...], is_all: bool) -> None:
    """Let frozen files of the journal go when it is their turn."""
    _thaw(_written(root), ids, is_all)


def _freeze(
    root: Path, folders: list[Path], since: int, until: int, reason: str, by: str, freeze_id: str | None
) -> None:
    for folder in folders:
        freeze = add_freeze(folder, since, until, reason, by, freeze_id)
        freeze_id = freeze.id
        _say_kept(root, folder, freeze)


def _freeze_here(root: Path, since: int, until: int, reason: str, by: str, freeze_id: None) -> None:
    done = freeze_node(root, folders := _recorded(root), Window(since, until), reason, by)
    for folder in [*folders, *done.writers]:
        _say_kept(root, folder, done.freeze)
    if done.journal_problem:
        click.echo(f"the journal of that time is not frozen: {done.journal_problem}; {ELSEWHERE}", err=True)


def _say_kept(root: Path, folder: Path, freeze: Freeze) -> None:
    when = f"{clock_text(freeze.since_ns)} to {clock_text(freeze.until_ns)}"
    click.echo(f"{folder.relative_to(root)}: {freeze.id} keeps {when}")


def _thaw(folders: list[Path], ids: tuple[str, ...], is_all: bool, writers: Sequence[Path] = ()) -> None:
    """`writers`: of the journal, which may belong to somebody else."""
    if bool(ids) == is_all:
        raise UsageError("give the freezes' ids, or --all")
    thawed, known = [], set()
    for folder in folders:
        freezes, _ = read_freezes(folder)
        known |= {each.id for each in freezes}
        for freeze_id in [each.id for each in freezes] if is_all else ids:
            if thaw(folder, freeze_id):
                thawed.append(freeze_id)
    for folder in writers:
        for freeze_id in thawed:
            try:
                thaw(folder, freeze_id)
            except OSError as error:
                click.echo(f"{folder} still keeps {freeze_id}: {error.strerror}; podtap journal thaw does it", err=True)
    for freeze_id in dict.fromkeys(thawed):
        click.echo(f"thawed: {freeze_id}")
    if unknown := [each for each in ids if each not in thawed]:
        there = f"; there are: {', '.join(sorted(known))}" if known else "; nothing is frozen here"
        raise PodtapError(f"no such freeze: {', '.join(unknown)}{there}")


def _recorded(root: Path) -> list[Path]:
    """The folders of nodes below a root. PodtapError: no agent has written there yet."""
    folders = node_folders(root)
    if not folders:
        where = f"below {root}" if root.is_dir() else f"at {root}, which is no folder"
        raise PodtapError(f"nothing is recorded {where}: does the agent run, and is this its --root?")
    return folders


def _written(root: Path) -> list[Path]:
    """The folders of the journal's writers below a root. PodtapError: none has written there yet."""
    folders = writer_folders(root)
    if not folders:
        where = f"below {root}" if root.is_dir() else f"at {root}, which is no folder"
        raise PodtapError(f"no journal is {where}: does podtap journal run, and is this its --root?")
    return folders


def _write(stream: Iterable[bytes]) -> None:
    output: Any = sys.stdout.buffer
    for piece in stream:
        output.write(piece)
    output.flush()
