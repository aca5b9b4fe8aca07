"""`podtap doctor`: is it recording, how far back, what is missing, and what to do about it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from capture.arguments import cluster_options
from capture.blind_spots import blind_spots
from capture.contract import JOURNAL
from capture.errors import Command, UsageError
from capture.findings import BAD, Finding, lines, printable, summary, worst
from capture.node_checks import check
from capture.node_facts import NodeFacts, gather
from capture.recording import clock_text
from capture.ring_state import RING_STATE
from capture.running_agents import RunningAgent, running_agents

ROOT: Final = Path("/var/lib/podtap")
CLUSTER: Final = "cluster"


@click.command(cls=Command)
@click.option(
    "--root",
    metavar="DIR",
    type=click.Path(path_type=Path),
    envvar="PODTAP_ROOT",
    help=f"Folder of the recordings; $PODTAP_ROOT.  [default: the running agent's, else {ROOT}]",
)
@click.option("--cluster", metavar="NAME", help="The cluster's name.  [default: the running agent's]")
@click.option("--node", metavar="NAME", help="The node's name.  [default: the running agent's; of a cluster all]")
@click.option("--metrics", metavar="ADDR:PORT", help="The agent's endpoint.  [default: the running agent's]")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option(
    "--podtap-namespace",
    metavar="N",
    envvar="PODTAP_NAMESPACE",
    help="Where podtap runs in the cluster; $PODTAP_NAMESPACE.  [default: podtap]",
)
@cluster_options
@click.pass_context
def doctor(ctx: click.Context, /, **options: Any) -> None:
    """Say whether this node is being recorded, how far back, what is missing, and what to do about it.

    With --context or --kubeconfig, or as `kubectl podtap doctor`: all nodes of a cluster, through its API server.
    Looks only: nothing is changed. Exit code 1 if something is bad.
    """
    output, kubeconfig, context, namespace = (
        options.pop(name) for name in ("output", "kubeconfig", "context", "podtap_namespace")
    )
    is_plugin = (ctx.find_root().info_name or "").startswith("kubectl")
    if kubeconfig or context or is_plugin:
        if options["cluster"] or options["metrics"]:
            raise UsageError("--cluster and --metrics are for a node itself, not for a cluster that is asked")
        level = _cluster(kubeconfig, context, namespace or "podtap", options["node"], output)
    else:
        level = _node(output, **options)
    if level == BAD:
        ctx.exit(1)


def _cluster(kubeconfig: Path | None, context: str | None, namespace: str, node: str | None, output: str) -> str:
    from capture import cluster_doctor
    from capture.cluster import Cluster
    from capture.connection import Connection
    from capture.sources import ClusterSource

    connection = Connection(kubeconfig, context)
    source = ClusterSource(Cluster(connection, namespace), (node,) if node else ())
    reports, common = cluster_doctor.examine(source)
    now_ns = time.time_ns()
    said = cluster_doctor.report(now_ns, reports, common)
    if output == "json":
        click.echo(json.dumps(said, indent=1))
    else:
        click.echo("\n".join(cluster_doctor.text(context or connection.host, now_ns, reports, common, *_terminal())))
    return str(said["level"])


def _node(output: str, **where: Any) -> str:
    found = examine(**where)
    if output == "json":
        click.echo(json.dumps([report(facts, findings) for facts, findings in found], indent=1))
    else:
        for facts, findings in found:
            click.echo("\n".join(text(facts, findings, *_terminal())))
    return worst([finding for _, findings in found for finding in findings])


def examine(
    root: Path | None = None, cluster: str | None = None, node: str | None = None, metrics: str | None = None
) -> list[tuple[NodeFacts, list[Finding]]]:
    """Each agent that runs here and fits; if none does, the recording that is here, or should be."""
    agents = [
        each
        for each in running_agents()
        if root in (None, each.root) and cluster in (None, each.cluster) and node in (None, each.node)
    ]
    found = []
    for agent in (*agents,) or (None,):
        where = (agent.root, agent.cluster, agent.node) if agent else _without_agent(root, cluster, node)
        facts = gather(*where, _endpoint(agent, metrics), agent)
        found.append((facts, [*check(facts), *blind_spots(facts.interfaces, facts.devices)]))
    return found


def _endpoint(agent: RunningAgent | None, metrics: str | None) -> str:
    return metrics if metrics is not None else agent.metrics if agent else ""


def _without_agent(root: Path | None, cluster: str | None, node: str | None) -> tuple[Path, str, str]:
    """Where an agent would record; or where one did, if that is only one place."""
    root = root or ROOT
    known = [
        (path.parent.name, path.name)
        for path in (each.parent for each in root.glob(f"*/*/{RING_STATE}"))
        if path.parent.name != JOURNAL and cluster in (None, path.parent.name) and node in (None, path.name)
    ]
    if len(known) == 1:
        return (root, *known[0])
    return root, cluster or CLUSTER, node or os.environ.get("NODE_NAME") or platform.node()


def report(facts: NodeFacts, findings: list[Finding]) -> dict[str, Any]:
    """For machines: all findings, and the figures behind them. Times are nanoseconds."""
    return {
        "time_ns": facts.now_ns,
        "cluster": facts.cluster,
        "node": facts.node,
        "folder": str(facts.folder),
        "level": worst(findings),
        "findings": [asdict(finding) for finding in findings],
        "agent": _agent(facts.agent),
        "ring": asdict(facts.ring) if facts.ring else None,
        "freezes": [asdict(freeze) for freeze in facts.freezes],
        "clock": asdict(facts.clock),
        "counters": facts.counters.values,
        "metrics": facts.endpoint.values if facts.endpoint else {},
    }


def _agent(agent: RunningAgent | None) -> dict[str, Any] | None:
    return asdict(agent) | {"root": str(agent.root)} if agent else None


def text(facts: NodeFacts, findings: list[Finding], width: int, colours: bool) -> list[str]:
    """For people: the findings, and a last line that says it all."""
    title = f"{printable(facts.cluster)}/{printable(facts.node)} at {clock_text(facts.now_ns)}"
    return [title, "", *lines(findings, width, colours), "", f"{printable(facts.node)}: {summary(findings)}"]


def _terminal() -> tuple[int, bool]:
    """How wide it is, and whether it has colours."""
    is_terminal = sys.stdout.isatty()
    width = min(shutil.get_terminal_size((100, 24)).columns, 120) if is_terminal else 100
    return width, is_terminal and not os.environ.get("NO_COLOR")
