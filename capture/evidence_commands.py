"""`podtap freeze`, `thaw`, `collect` and `verify`: what a person types while an incident goes on, and afterwards."""

from __future__ import annotations

import getpass
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from capture.arguments import (
    SIZE,
    TIME,
    all_namespaces_option,
    cluster_options,
    namespace_option,
    parse_time,
    selector_option,
)
from capture.errors import Command, PartialError, PodtapError, UsageError, unusable

if TYPE_CHECKING:  # what a command needs is imported when it is called
    from capture.bundle import Request
    from capture.collect import Plan
    from capture.contract import Bundle
    from capture.freeze import NodeResult
    from capture.pod_addresses import Found, PodSelection
    from capture.sources import AgentOrigin, ClusterSource, FolderSource, JournalOrigin
    from capture.verify import Verdict

F = TypeVar("F", bound=Callable[..., Any])
NAMESPACE: Final = "podtap"
INTERRUPTED: Final = 130
SEAL_WAIT_S: Final = 75.0
"""A segment is sealed after 60 s, unless the agent was told otherwise."""


def _podtap_options(command: F) -> F:
    """Which cluster, where in it podtap runs, and on which of its nodes."""
    namespace = click.option(
        "--podtap-namespace",
        metavar="N",
        envvar="PODTAP_NAMESPACE",
        default=NAMESPACE,
        show_default=True,
        help="Where podtap runs; $PODTAP_NAMESPACE.",
    )
    node = click.option("--node", "nodes", metavar="N", multiple=True, help="Only this node; repeatable.")
    return cluster_options(namespace(node(command)))


@click.command(cls=Command)
@click.option("--since", metavar="T", type=TIME, help="Start: RFC 3339, epoch seconds, or 15m (ago).")
@click.option("--until", metavar="T", type=TIME, default="+0s", help="End, also in the future: +15m.  [default: now]")
@click.option("--reason", default="", help="For whoever finds it later.")
@click.option("--list", "is_list", is_flag=True, help="Show what is frozen, and freeze nothing.")
@_podtap_options
def freeze(
    since: int | None,
    until: int,
    reason: str,
    is_list: bool,
    kubeconfig: Path | None,
    context: str | None,
    podtap_namespace: str,
    nodes: tuple[str, ...],
) -> None:
    """Keep a window's segments on all nodes, also those still to come, and the journal of it, until they are thawed."""
    from capture.connection import ApiError
    from capture.freeze import carry_freezes, freeze_journals, freeze_nodes, frozen_nodes, new_freeze

    if not is_list and since is None:
        raise UsageError("give --since, when that begins which is to be kept; or --list")
    try:
        source = _cluster_source(kubeconfig, context, podtap_namespace, nodes)
        origins = source.nodes()
    except PodtapError as error:
        if isinstance(error.__cause__, ApiError):
            raise PodtapError(f"{error}; without it, on each node: podtap agent freeze") from error
        raise
    if is_list or since is None:
        _show_frozen(frozen_nodes(origins))
        return
    if until <= since:
        raise UsageError("nothing to freeze: --until is not after --since")
    asked = new_freeze(since, until, reason, f"{getpass.getuser()}@{socket.gethostname()}")
    journals = source.journals()
    results = freeze_nodes(origins, asked)
    frozen = freeze_journals(journals, asked)
    _say_carried(carry_freezes(journals, [each for result in results for each in result.listing or []]))
    _show_freeze(asked.id, results, frozen, source.missing)


@click.command(cls=Command)
@click.argument("ids", metavar="ID...", nargs=-1)
@click.option("--all", "is_all", is_flag=True, help="All freezes.")
@_podtap_options
def thaw(
    ids: tuple[str, ...],
    is_all: bool,
    kubeconfig: Path | None,
    context: str | None,
    podtap_namespace: str,
    nodes: tuple[str, ...],
) -> None:
    """Let frozen segments go when it is their turn."""
    from capture.freeze import thaw_nodes

    if bool(ids) == is_all:
        raise UsageError("give the freezes' ids, or --all; podtap freeze --list shows them")
    source = _cluster_source(kubeconfig, context, podtap_namespace, nodes)
    origins: list[AgentOrigin | JournalOrigin] = [*source.nodes()]
    if not nodes:  # the journal is all nodes'
        origins += source.journals()
    results = thaw_nodes(origins, list(ids))
    for result in results:
        click.echo(f"{result.node}: {result.problem or result.words or 'nothing was frozen'}")
    _end([each.node for each in results if each.problem], len(results), {}, "thawed")


@click.command(cls=Command)
@click.option("--since", metavar="T", required=True, help="Start: RFC 3339, epoch seconds, or 15m (ago).")
@click.option("--until", metavar="T", default="0s", help="End, likewise.  [default: now]")
@namespace_option
@all_namespaces_option
@selector_option
@click.option(
    "--from",
    "from_folder",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A recording's root, or another bundle, instead of a cluster.",
)
@click.option("-o", "--output", metavar="DIR", type=click.Path(path_type=Path), required=True, help="The bundle.")
@click.option("--bandwidth", metavar="SIZE", type=SIZE, help="A second, of all nodes together: 10M.")
@click.option("--reason", default="", help="Stands in the bundle's head.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@_podtap_options
def collect(
    since: str,
    until: str,
    namespace: str | None,
    all_namespaces: bool,
    selector: str,
    from_folder: Path | None,
    output: Path,
    bandwidth: int | None,
    reason: str,
    yes: bool,
    kubeconfig: Path | None,
    context: str | None,
    podtap_namespace: str,
    nodes: tuple[str, ...],
) -> None:
    """Bring a window of all nodes' recordings, and the journal, into an evidence bundle."""
    from capture.bundle import SIGN_HINT
    from capture.collect import Collection, prepare
    from capture.download import DiskFull
    from capture.pod_addresses import PodSelection

    if bandwidth == 0:
        raise UsageError("--bandwidth can't be 0")
    selection = PodSelection("" if all_namespaces else namespace or "", selector)
    source: ClusterSource | FolderSource
    if from_folder:
        source, place = _folder_source(from_folder, nodes), str(from_folder.resolve())
    else:
        source = _cluster_source(kubeconfig, context, podtap_namespace, nodes)
        place = source.cluster.connection.host
    asked = {"since": since, "until": until, "namespace": selection.namespace, "selector": selector}
    asked |= {"nodes": ",".join(nodes), "from": place, "reason": reason}
    is_new = not output.exists()
    request = prepare(output, _window(since, until, asked), _say)
    if request is None:
        return
    collection = Collection(
        source,
        output,
        request,
        _say,
        confirm=_confirm(source, output, yes, selection.is_all),
        find_addresses=_address_finder(source, selection, request),
        bandwidth=bandwidth,
        wait_s=0 if from_folder else SEAL_WAIT_S,
    )
    try:
        head = collection.run()
    except DiskFull as error:
        raise PodtapError(str(error)) from error
    except OSError as error:
        raise PodtapError(f"{unusable(error)}; when that is mended, the same command goes on") from error
    except KeyboardInterrupt:
        _say(f"interrupted: run the same command again, it goes on in {output}")
        raise click.exceptions.Exit(INTERRUPTED) from None
    finally:
        if is_new:
            with suppress(OSError):  # there is something in it, most often
                output.rmdir()
    for note in getattr(source, "notes", []):
        _say(note)
    _show_bundle(head)
    _say(f"podtap verify {output}  checks it; podtap analyze {output}  turns it into tables\n{SIGN_HINT}")
    _end([node.node for node in head.nodes if not node.complete], len(head.nodes), {}, "complete")
    if collection.journal_missing:
        raise PartialError(f"the journal is not complete: {'; '.join(collection.journal_missing)}")


@click.command(cls=Command)
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
def verify(folder: Path) -> None:
    """Find any edit, deletion or reordering inside an evidence bundle, and say what can't be known."""
    from capture.progress import Bar, printable
    from capture.verify import verify as check

    try:
        total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        with Bar(total) as bar:
            verdict = check(folder, bar.add)
    except OSError as error:
        raise PodtapError(unusable(error)) from error
    for problem in verdict.problems:
        click.echo(printable(f"{problem.path}: {problem.what}"))
    if verdict.problems:
        count = len(verdict.problems)
        raise PodtapError(f"{folder} is not as it was written: {count:,} problem{'s' if count > 1 else ''}")
    if verdict.head:
        _show_verdict(folder, verdict, verdict.head)


def _cluster_source(
    kubeconfig: Path | None, context: str | None, namespace: str, nodes: tuple[str, ...]
) -> ClusterSource:
    from capture.cluster import Cluster
    from capture.connection import Connection
    from capture.sources import ClusterSource

    return ClusterSource(Cluster(Connection(kubeconfig, context), namespace), nodes)


def _folder_source(folder: Path, nodes: tuple[str, ...]) -> FolderSource:
    from capture.sources import FolderSource

    return FolderSource(folder, nodes)


def _window(since: str, until: str, asked: dict[str, str]) -> Request:
    """A Request; UsageError where a time is none."""
    from capture.bundle import Request

    now_ns = time.time_ns()
    try:
        since_ns, until_ns = parse_time(since, now_ns), parse_time(until, now_ns, future=True)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if until_ns > now_ns:
        _say("the window ends in the future: what is to come is not collected; freeze it, and collect it later")
    if since_ns >= min(until_ns, now_ns):
        raise UsageError("nothing to collect: --since is not before --until, or not in the past")
    return Request(since_ns, min(until_ns, now_ns), asked)


def _confirm(source: ClusterSource | FolderSource, output: Path, yes: bool, is_all: bool) -> Callable[[Plan], None]:
    from capture.collect import check_space
    from capture.freeze import carry_freezes
    from capture.progress import size_text
    from capture.sources import ClusterSource

    def confirm(plan: Plan) -> None:
        about = "about" if is_all else "at most"
        _say(f"{plan.segment_count:,} segments of {plan.node_count:,} nodes, {about} {size_text(plan.send_bytes)}")
        for name, why in plan.problems.items():
            _say(f"{name} can't be asked: {why}")
        if is_all:
            check_space(output, plan.send_bytes)
        if not yes and sys.stdin.isatty() and sys.stderr.isatty() and not click.confirm("Go on?", True, err=True):
            raise PodtapError("nothing was collected")
        if isinstance(source, ClusterSource):
            _say_carried(carry_freezes(source.journals(), plan.all()))

    return confirm


def _address_finder(
    source: ClusterSource | FolderSource, selection: PodSelection, request: Request
) -> Callable[[Path], Found | None]:
    from capture.collect import NoSuchPodsError
    from capture.pod_addresses import from_cluster, from_journal
    from capture.recording import Window
    from capture.sources import FolderSource

    def find(folder: Path) -> Found | None:
        if selection.is_all:
            return None
        found = from_journal(folder, Window(request.since_ns, request.until_ns), selection)
        if found is None:
            if isinstance(source, FolderSource):
                raise NoSuchPodsError("no journal tells which addresses the pods had: leave out -n and -l")
            found = from_cluster(source.cluster, selection)
            _say("no journal: the addresses are those of the pods that are there now, not of those at that time")
        if found.on_host:
            _say(f"left out, since they use their node's network: {', '.join(sorted(found.on_host))}")
        if not found.addresses:
            raise NoSuchPodsError(
                "no pod of this namespace and selector had an address in the window; "
                "kubectl get pods -A --show-labels tells which there are now"
            )
        _say(f"{len(found.pods):,} pods with {len(found.addresses):,} addresses")
        return found

    return find


def _show_freeze(
    freeze_id: str, results: list[NodeResult], journals: list[NodeResult], missing: dict[str, str]
) -> None:
    from capture.progress import size_text, table
    from capture.recording import clock_text

    rows = []
    for result in results:
        for each in result.listing or []:
            found = each.listed()
            size = size_text(sum(segment.size_bytes for segment in found))
            reach = clock_text(each.oldest_ns) if each.oldest_ns else ""
            rows.append((result.node, "frozen", f"{len(found):,}", size, reach, ""))
        if result.problem:
            rows.append((result.node, "NOT FROZEN", "", "", "", result.problem))
    rows += [(node, "NOT FROZEN", "", "", "", why) for node, why in missing.items()]
    rows += [(each.node, "NOT FROZEN" if each.problem else "frozen", "", "", "", each.problem) for each in journals]
    click.echo(f"freeze {freeze_id}")
    click.echo(table(("node", "", "segments", "size", "reaches back to", "why"), rows))
    failed = [each.node for each in results if each.problem]
    if len(failed) == len(results):
        raise PodtapError("no node could be reached: nothing is frozen; on a node, podtap agent freeze does it")
    _say("agents pin what is there of the window within a minute, and what is to come: podtap freeze --list")
    if not journals:
        _say("no journal runs: names of pods are known only where other metadata is given")
    _end(failed, len(results), missing, "frozen")
    if unkept := [each.node for each in journals if each.problem]:
        raise PartialError(f"the journal is not frozen: {', '.join(unkept)}")


def _say_carried(results: list[NodeResult]) -> None:
    """Of freezes that were made on nodes, while the journal could not be asked."""
    from capture.progress import printable

    for result in results:
        for line in result.words.splitlines():
            _say(printable(f"made on a node, and now kept by the journal, too: {line}"))
        if result.problem:
            _say(f"{result.node} can't be told of the freezes that were made on nodes: {result.problem}")


def _show_frozen(results: list[NodeResult]) -> None:
    from capture.progress import size_text, table
    from capture.recording import clock_text

    freezes: dict[str, dict[str, Any]] = {}
    on: dict[str, list[str]] = {}
    for result in results:
        for each in result.listing or []:
            for one in each.freezes:
                freezes[one["id"]] = one
                on.setdefault(one["id"], []).append(result.node)
    rows = [
        (
            name,
            clock_text(one["since_ns"]),
            clock_text(one["until_ns"]),
            f"{len(on[name])} of {len(results)}",
            one["by"],
            one["reason"],
        )
        for name, one in sorted(freezes.items())
    ]
    click.echo(table(("freeze", "from", "to", "nodes", "by", "reason"), rows) if rows else "nothing is frozen")
    pinned = [
        (result.node, f"{each.pinned_segments:,}", size_text(each.pinned_bytes))
        for result in results
        for each in result.listing or []
    ]
    if rows and pinned:
        click.echo(table(("node", "pinned", "size"), pinned))
    for result in results:
        if result.problem:
            _say(f"{result.node}: {result.problem}")
    _end([each.node for each in results if each.problem], len(results), {}, "known of")


def _show_bundle(head: Bundle) -> None:
    from capture.progress import size_text, table

    rows = []
    for node in head.nodes:
        complete = "complete" if node.complete else "PARTIAL" if node.segments else "MISSING"
        first, *others = node.missing or [""]
        rows.append((node.node, complete, f"{node.segments:,}", f"{node.packets:,}", size_text(node.size_bytes), first))
        rows += [("", "", "", "", "", other) for other in others]
    click.echo(table(("node", "", "segments", "packets", "size", "missing"), rows))
    click.echo(f"journal: {'complete' if head.journal_complete else 'NOT COMPLETE'}")


def _show_verdict(folder: Path, verdict: Verdict, head: Bundle) -> None:
    from capture.bundle import CHECK_HINT

    files = len(head.files)
    click.echo(f"{folder}: all {files:,} files are as the head lists them, and each node's chain of manifests holds")
    click.echo("What can't be known from inside:")
    signed = ", ".join(verdict.signatures)
    if signed:
        click.echo(f"- whether the head is the one that was written: check the signature ({signed})\n{CHECK_HINT}")
    else:
        click.echo("- whether the head was replaced, together with all that it lists: it is not signed")
    for sentence in verdict.begins:
        click.echo(f"- {sentence}: what was recorded then is not here")
    for node in head.nodes:
        for sentence in node.missing:
            click.echo(f"- {node.node}: {sentence}")
    click.echo("- what never reached a file: the manifests' ledgers count the packets that were dropped")
    if verdict.unfinished:
        click.echo("- half files of a collection that was not finished lie beside it; run it again")


def _end(failed: list[str], count: int, missing: dict[str, str], what: str) -> None:
    """PartialError, so exit code 3, where some nodes are not as they should be."""
    names = [*failed, *missing]
    if names:
        shown = ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")
        raise PartialError(f"{len(names):,} of {count + len(missing):,} nodes are not {what}: {shown}")


def _say(text: str) -> None:
    click.echo(text, err=True)
