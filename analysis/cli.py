"""Options to calls. Each command imports what it needs when it runs, so that --help is quick."""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from analysis.errors import PodtapError, Problem, UsageError

PARTIAL: Final = 3
"""Exit code: what could be read was, and something could not."""
SELDOM: Final = 100_000
"""Objects that Python makes between two searches for garbage."""
TABLE_ROWS: Final = 30
"""Rows of a table without --limit: a screen. json and csv give all."""

lake_option = click.option(
    "--lake",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="PODTAP_LAKE",
    default=Path("lake"),
    help="Folder of the tables.  [default: $PODTAP_LAKE or ./lake]",
)


@contextmanager
def importing() -> Iterator[None]:
    """No search for garbage among what imports make, now or later: it all stays. Saves a fifth of a short run.

    Nor does numpy start threads for its linear algebra: nothing here asks for any, and they wait in a loop.
    Later searches are seldom: arrays are no garbage that is searched for.
    Not for DuckDB, which complains on standard error of what is still there at the end.
    """
    gc.disable()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(SELDOM)
        gc.enable()


class Command(click.Command):
    """A command whose errors are told in a line: exit code 2 where it was called wrongly, else 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise click.UsageError(str(error)) from error
        except PodtapError as error:
            raise click.ClickException(str(error)) from error
        except ModuleNotFoundError as error:
            if (error.name or "analysis").partition(".")[0] == "analysis":
                raise
            advice = "run pip install 'podtap[analysis]'"
            raise click.ClickException(f"{error.name} is not installed: {advice}") from error


@click.command(cls=Command)
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@lake_option
@click.option("--metadata", metavar="PATH", multiple=True, help="kubectl dump, journal or folder of them; repeatable.")
@click.option("--jobs", metavar="N", type=click.IntRange(min=1), help="Processor cores to use.  [default: all]")
@click.option(
    "--vxlan-port",
    "vxlan_ports",
    metavar="P",
    type=click.IntRange(1, 65535),
    multiple=True,
    help="Another UDP port of VXLAN, next to 4789, 8472 and 6784; repeatable.",
)
def analyze(
    inputs: tuple[str, ...], lake: Path, metadata: tuple[str, ...], jobs: int | None, vxlan_ports: tuple[int, ...]
) -> None:
    """Turn captures into tables.

    INPUT is a capture file (pcap or pcapng, also compressed), a folder or glob of them, a recording or evidence bundle,
    or - for standard input. What was analysed before is not analysed again.
    """
    with importing():
        from analysis.compilation import compile_kernels, must_compile
        from analysis.pipeline import analyze as analyze_captures
        from analysis.queues import processors

    if must_compile():
        processes = jobs or processors()
        seconds = 4 + 28 // processes
        click.echo(f"first run on this machine: compiling, which takes about {seconds} s once", err=True)
        compile_kernels(processes)
    with _shown_progress() as progress, _room_in(lake):
        summary = analyze_captures(inputs, lake, metadata, jobs, vxlan_ports, progress)
    if summary.learned and summary.unchanged:
        click.echo(f"no capture is new to {lake}, but what is known of the cluster and of recordings is", err=True)
    elif summary.unchanged and summary.captures:
        click.echo(f"nothing new: all of this is in {lake} already", err=True)
    elif not summary.unchanged:
        click.echo(
            f"{summary.packets:,} packets of {summary.segments:,} files in {summary.seconds:.1f} s: "
            f"{summary.flows:,} flows, {summary.retransmits:,} retransmits, {summary.transactions:,} DNS transactions",
            err=True,
        )
        if 20 * summary.not_ip > summary.packets:
            click.echo(f"neither IP nor ARP, so in no flow: {summary.not_ip:,} of these packets", err=True)
        click.echo(f"tables are in {lake}; next: podtap report flows --lake {lake}", err=True)
    _exit_with(summary.problems)


@click.command(cls=Command)
@lake_option
@click.option(
    "--metadata",
    metavar="PATH",
    multiple=True,
    required=True,
    help="kubectl dump, journal or folder of them; repeatable.",
)
@click.argument("more", metavar="[PATH]...", nargs=-1)
def enrich(lake: Path, metadata: tuple[str, ...], more: tuple[str, ...]) -> None:
    """Add names from cluster metadata to a lake: pods, workloads, services and nodes of its addresses.

    Metadata is a journal, or what kubectl get -A -o json prints of pods, services, nodes, replicasets, jobs ...
    """
    from analysis.pipeline import enrich as enrich_lake

    with _room_in(lake):
        problems = enrich_lake(lake, (*metadata, *more))
    click.echo(f"names are in {lake}; next: podtap report flows --lake {lake}", err=True)
    _exit_with(problems)


@contextmanager
def _shown_progress() -> Iterator[Callable[[int, int | None, int], None] | None]:
    """What to call as the work goes on; None where nobody watches."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    from analysis.progress import shown_progress

    with shown_progress(Console(stderr=True)) as progress:
        yield progress


@contextmanager
def _room_in(lake: Path) -> Iterator[None]:
    """A full disk is told in a line: what was not committed is gone from it, and what was stays."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        what = f"{lake}: the lake can't be written: {os.strerror(error.errno)}"
        raise PodtapError(f"{what}; make room, or choose another --lake, and run the same command again") from error


def _exit_with(problems: list[Problem]) -> None:
    """Say what could not be read; then the exit code tells scripts."""
    for problem in problems:
        click.echo(f"could not read all: {problem}", err=True)
    if problems:
        raise click.exceptions.Exit(PARTIAL)


@click.group()
def report() -> None:
    """Ask a lake: who talked to whom, who had to send again, how lookups went."""


def report_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that all reports have."""
    options = [
        lake_option,
        click.option("--node", metavar="N", help="Only what was on this node, or seen there."),
        click.option(
            "--since", metavar="T", help="Only what was active from then on: RFC 3339, epoch seconds, or 15m (ago)."
        ),
        click.option("--until", metavar="T", help="Only what was active before then."),
        click.option("--sort-by", metavar="COLUMN", help="Largest first, names from A to Z; columns as in -o json."),
        click.option(
            "--limit",
            metavar="N",
            type=click.IntRange(min=0),
            help=f"Rows to show; 0 is all.  [default: {TABLE_ROWS}; json and csv: all]",
        ),
        click.option(
            "-o", "--output", type=click.Choice(["table", "wide", "json", "csv"]), default="table", show_default=True
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def whose_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of reports about traffic."""
    options = [
        click.option("-n", "--namespace", metavar="N", help="Only this namespace.  [default: all]"),
        click.option(
            "-l", "--selector", metavar="KEY=VALUE", multiple=True, help="Only pods with this label; repeatable."
        ),
        click.option("--pod", metavar="P", help="Only this pod."),
        click.option("--service", metavar="S", help="Only this service."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def by_option(text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """--by; what its levels mean differs by report."""
    levels = click.Choice(["pod", "workload", "namespace", "service", "node", "name"])
    return click.option("--by", type=levels, default="pod", show_default=True, help=text)


@report.command(cls=Command)
@by_option("One row for each pair of these; name is what the client called the server (TLS, HTTP).")
@whose_options
@report_options
def flows(**options: Any) -> None:
    """Who talked to whom, how much and how well. Most failed first, then most bytes.

    A connection counts once, however many interfaces saw it. Within --since and --until, bytes and TCP segments count
    by the minute: of a minute that is partly inside, the whole.
    """
    _report("flows", **options)


@report.command(cls=Command)
@by_option("One row for each sender and peer of these.")
@whose_options
@report_options
def retransmits(**options: Any) -> None:
    """Who had to send again, to whom, how and how late. Most retransmitted first.

    Counts are TCP segments as the sender's kernel counts them, taken where the capture was nearest to it; a column for
    each kind counts packets.
    """
    _report("retransmits", **options)


@report.command(cls=Command)
@by_option("service: by the server asked; name: by the name asked for; else by the client.")
@whose_options
@report_options
def dns(**options: Any) -> None:
    """How long lookups took and how they ended. Most unanswered and failed first.

    Latency is what the client waited: first query to response.
    """
    _report("dns", **options)


@report.command(cls=Command)
@whose_options
@report_options
def paths(**options: Any) -> None:
    """Over which hops the packets went, how long each took, and where they were lost. Most lost first.

    A hop is from one observation point to the next: it takes captures of several interfaces, or of several nodes. The
    options choose connections; (beyond) is what is behind the last point that was captured.
    """
    _report("paths", by="pod", **options)


@report.command(cls=Command)
@report_options
def coverage(**options: Any) -> None:
    """Which times of which nodes were recorded whole, and what is missing of the others. By node and time."""
    _report("coverage", by="pod", **options)


def _report(
    name: str,
    lake: Path,
    since: str | None,
    until: str | None,
    by: str,
    sort_by: str | None,
    limit: int | None,
    output: str,
    **who: Any,
) -> None:
    """Answer on standard output; how complete the data is at the foot of a table, else on standard error."""
    from rich.console import Console
    from rich.text import Text

    from analysis.lake_reader import open_lake
    from analysis.reports.filters import Filters
    from analysis.reports.foot import foot
    from analysis.reports.records import write_csv, write_json
    from analysis.reports.report import make_report
    from analysis.reports.table import print_table
    from analysis.reports.window import Window

    is_table = output in ("table", "wide")
    if limit is None and is_table:
        limit = TABLE_ROWS
    window, filters, opened = Window.of(since, until), Filters.of(**who), open_lake(lake)
    answer = make_report(opened, name, window, filters, by, sort_by, limit or None)
    console = Console(highlight=False)
    if is_table and answer.total:
        print_table(answer, console, console.width if console.is_terminal else None, wide=output == "wide")
        console.print()
    elif output == "json":
        write_json(answer, sys.stdout)
    elif output == "csv":
        write_csv(answer, sys.stdout)
    below = console if is_table else Console(stderr=True, highlight=False)
    for note in foot(opened, answer, name, window, filters):
        below.print(Text(note), style="dim", soft_wrap=not below.is_terminal)


@click.command(cls=Command)
@click.argument("table", metavar="[TABLE]", required=False)
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def schema(table: str | None, output: str) -> None:
    """Show the tables and what their columns mean, or one TABLE."""
    from rich.console import Console

    from analysis.schema_text import print_schema, schema_json
    from analysis.schemas import TABLES

    if table is not None and table not in TABLES:
        raise UsageError(f"there is no table '{table}'; there are {', '.join(TABLES)}")
    tables = [TABLES[table]] if table else list(TABLES.values())
    if output == "json":
        click.echo(schema_json(tables))
    else:
        print_schema(tables, Console(highlight=False))
