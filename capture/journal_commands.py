"""`podtap journal`, `podtap snapshot` and `podtap scope`: what asks the API server all the time, or once."""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import threading
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import click

from capture.arguments import DURATION, SIZE, cluster_options, selector_option
from capture.errors import Command, Group, PartialError, UsageError

_ENDS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class JournalGroup(Group):
    """Its commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["adopt", "freeze", "send", "thaw"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        from capture import node_commands

        commands: dict[str, click.Command] = {
            "adopt": node_commands.journal_adopt_command,
            "freeze": node_commands.journal_freeze_command,
            "send": node_commands.journal_send_command,
            "thaw": node_commands.journal_thaw_command,
        }
        return commands.get(cmd_name)


@click.group(cls=JournalGroup, invoke_without_command=True, subcommand_metavar="[adopt|freeze|send|thaw]")
@click.pass_context
@click.option(
    "--root",
    metavar="DIR",
    type=click.Path(path_type=Path),
    envvar="PODTAP_ROOT",
    default="/var/lib/podtap",
    show_default=True,
    help="Folder of the recordings, the journal is below it; $PODTAP_ROOT.",
)
@click.option(
    "--name", metavar="WRITER", help="Of this journal, where several are kept.  [default: $POD_NAME, or the hostname]"
)
@click.option("--quota", metavar="SIZE", type=SIZE, default="2G", show_default=True, help="What its files may take.")
@click.option("--max-age", metavar="DURATION", type=DURATION, help="Of its files.  [default: any]")
@click.option(
    "--metrics",
    metavar="ADDR:PORT",
    default="127.0.0.1:9799",
    show_default=True,
    help="Where to answer /metrics, /healthz and /readyz; '' for nowhere.",
)
@click.option(
    "--freeze-on",
    metavar="REASON",
    multiple=True,
    help="Freeze the minutes around an Event with this reason, on all nodes: OOMKilling, BackOff ...; repeatable.",
)
@click.option(
    "--podtap-namespace",
    metavar="N",
    envvar="PODTAP_NAMESPACE",
    default="podtap",
    show_default=True,
    help="Where the agents run that --freeze-on freezes; $PODTAP_NAMESPACE.",
)
@cluster_options
def journal(ctx: click.Context, /, **options: Any) -> None:
    """Remember what the cluster looks like at all times, until SIGTERM or Ctrl-C.

    Needs to get, list and watch pods, services, endpointslices, nodes, namespaces, networkpolicies, ingresses,
    replicasets, jobs and events; may write below --root only.
    """
    if ctx.invoked_subcommand is None:
        _keep(**options)


def _keep(
    root: Path,
    name: str | None,
    quota: int,
    max_age: int | None,
    metrics: str,
    freeze_on: tuple[str, ...],
    podtap_namespace: str,
    kubeconfig: Path | None,
    context: str | None,
) -> None:
    from capture import log
    from capture.connection import Connection
    from capture.contract import KINDS
    from capture.endpoint import serve
    from capture.journal import Journal, JournalLimits, keep_journal
    from capture.journal_files import JournalFiles
    from capture.metrics import BUILD, Metrics
    from capture.watch import Resource

    stop = _stopped_by_signals()
    connection = Connection(kubeconfig, context, component="podtap-journal")
    files = JournalFiles(root, name or os.environ.get("POD_NAME") or platform.node())
    counts = Metrics()
    counts.set(BUILD, 1, metadata.version("podtap"))
    resources = [Resource.of(kind) for kind in KINDS]
    reflectors = [resource.reflector() for resource in resources]
    notice = None
    if freeze_on:
        from capture.event_trigger import EventFreezer

        notice = EventFreezer(connection, podtap_namespace, frozenset(freeze_on)).notice
    kept = Journal(files, reflectors, JournalLimits(quota_bytes=quota, max_age_ns=max_age), counts, notice)
    try:
        endpoint = serve(metrics, counts, kept.ready) if metrics else None
    except (ValueError, OSError) as error:
        raise UsageError(f"--metrics {metrics}: {error}") from error
    log.info("the journal begins", folder=str(files.folder), server=connection.host)
    keep_journal(kept, resources, reflectors, connection, stop)
    if endpoint:
        endpoint.close()
    files.close()
    log.info("the journal ends")


@click.command(cls=Command)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path, allow_dash=True),
    required=True,
    help="File, or a folder, in which the name says the time; - for standard output.",
)
@click.option("-n", "--namespace", metavar="N", default="", help="Only this namespace, and what belongs to none.")
@cluster_options
def snapshot(output: Path, namespace: str, kubeconfig: Path | None, context: str | None) -> None:
    """Write down what the cluster looks like now, for podtap analyze --metadata.

    Values of environments, arguments, annotations and the like are left out.
    """
    from capture.connection import Connection
    from capture.snapshot import take_snapshot, write_snapshot

    taken, problems = take_snapshot(Connection(kubeconfig, context, component="podtap-snapshot"), namespace)
    if str(output) == "-":
        json.dump(taken, sys.stdout, indent=1)
        click.echo()
    else:
        written = write_snapshot(taken, output)
        click.echo(f"{len(taken['items']):,} objects are in {written}", err=True)
    if problems:
        raise PartialError("; ".join(problems))


@click.command(cls=Command)
@click.option("-n", "--namespace", metavar="N", default="", help="Only pods of this namespace.  [default: all]")
@selector_option
@click.option("--node", metavar="NAME", required=True, envvar="NODE_NAME", help="The node.  [default: $NODE_NAME]")
@click.option(
    "--output",
    metavar="PATH",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="File that podtap agent --scope-file reads.",
)
@cluster_options
def scope(namespace: str, selector: str, node: str, output: Path, kubeconfig: Path | None, context: str | None) -> None:
    """Keep the addresses of this node's pods in a file, for an agent that records only theirs, until SIGTERM or Ctrl-C.

    Runs beside the agent, which has no token. Pods on the host's network have no addresses of their own: they are
    named, and not recorded.
    """
    from capture.connection import Connection
    from capture.pod_scope import keep_scope

    stop = _stopped_by_signals()
    keep_scope(Connection(kubeconfig, context, component="podtap-scope"), namespace, selector, node, output, stop)


def _stopped_by_signals() -> threading.Event:
    """Set by the first signal; a second one ends the process as usual."""
    stop = threading.Event()

    def ask(number: int, frame: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    for number in _ENDS:
        signal.signal(number, ask)
    return stop
