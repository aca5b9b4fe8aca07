"""`podtap doctor` for a cluster: each node's agent is asked for its own report; here they become one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, field
from typing import Any, Final

from capture.cluster import Cluster, ExecError, PodtapPod
from capture.contract import Clock
from capture.errors import PodtapError
from capture.findings import (
    BAD,
    OK,
    WARN,
    Finding,
    by_level,
    duration_text,
    lines,
    printable,
    share_text,
    summary,
    worst,
)
from capture.parallel import in_parallel
from capture.progress import table
from capture.recording import clock_text
from capture.sources import AgentOrigin, ClusterSource

WORKERS: Final = 16
COMMAND: Final = ["podtap", "doctor", "-o", "json"]
_SHOWN_NODES: Final = 40
"""In the table; the worst."""
_SHOWN_TEXTS: Final = 3
"""Of one subject, where nodes differ."""
_UNKNOWN: Final = "?"


@dataclass
class NodeReport:
    """What a node's agent said of itself, or why it said nothing. None is not known."""

    node: str
    findings: list[Finding]
    report: dict[str, Any] | None = None
    """As `podtap doctor -o json` gives it; the others are taken out of it."""
    time_ns: int = 0
    oldest_ns: int | None = None
    """Of the packets that are there."""
    overwritten_ns: int | None = None
    clock: Clock = field(default_factory=Clock)
    accepted: float | None = None
    lost: float = 0
    """Accepted packets that were dropped, but those out of scope."""
    version: str = ""

    @property
    def level(self) -> str:
        return worst(self.findings)


def examine(source: ClusterSource) -> tuple[list[NodeReport], list[Finding]]:
    """Each node of the cluster, by name; and what is to be said of all together. PodtapError: it can't be asked."""
    answers = in_parallel(_ask, source.nodes(), WORKERS)
    reports = [
        _silent(origin.name, f"Its agent could not be asked: {answer}", "kubectl -n podtap describe pod tells more")
        if isinstance(answer, PodtapError)
        else answer
        for origin, answer in answers
    ]
    advice = "does the DaemonSet tolerate the node's taints? kubectl -n podtap describe daemonset tells"
    reports += [_silent(node, f"Nothing is recorded: {why}", advice) for node, why in source.missing.items()]
    reports.sort(key=lambda each: each.node)
    common = [*_journal(source.cluster), *_versions(reports), *(Finding(WARN, "nodes", note) for note in source.notes)]
    return reports, common


def _silent(node: str, text: str, advice: str) -> NodeReport:
    return NodeReport(node, [Finding(BAD, "recording", f"{text.rstrip('.')}.", advice)])


def _ask(origin: AgentOrigin) -> NodeReport:
    """Where something is bad, the command's exit code is 1, and its report is whole."""
    received = b""
    try:
        for piece in origin.cluster.stream(origin.pod, COMMAND):
            received += piece
    except ExecError as error:
        if error.exit_code != 1 or not received:
            raise
    return understand(origin.name, received)


def understand(node: str, answer: bytes) -> NodeReport:
    """PodtapError: it is no report."""
    try:
        (report,) = json.loads(answer)
        findings = [Finding(**finding) for finding in report["findings"]]
        for each in findings:
            if each.level not in (OK, WARN, BAD) or not all(isinstance(word, str) for word in astuple(each)):
                raise ValueError(f"no finding: {each}")
        ring, clock, metrics = report["ring"] or {}, report["clock"], report["metrics"]
        dropped = metrics.get("podtap_dropped_packets_total", {})
        accepted = metrics.get("podtap_accepted_packets_total", {}).get("")
        return NodeReport(
            node,
            findings,
            report,
            time_ns=int(report["time_ns"]),
            oldest_ns=_whole_number(ring.get("oldest_ns")),
            overwritten_ns=_whole_number(ring.get("overwritten_ns")),
            clock=Clock(clock["synchronised"], _whole_number(clock["max_error_ns"])),
            accepted=None if accepted is None else float(accepted),
            lost=sum(float(count) for reason, count in dropped.items() if reason != "policy"),
            version=str(next(iter(metrics.get("podtap_build_info", {})), "")),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise PodtapError(f"its answer can't be understood ({error!r}): is it of another version?") from None


def _whole_number(value: Any) -> int | None:
    return None if value is None else int(value)


def _journal(cluster: Cluster) -> list[Finding]:
    pods: list[PodtapPod] = cluster.journals()
    running = [pod.name for pod in pods if not pod.problem]
    if running:
        broken = [Finding(WARN, "journal", f"{pod.problem}.") for pod in pods if pod.problem]
        return [*broken, Finding(OK, "journal", f"{len(running)} of {len(pods)} pods run: {', '.join(running)}.")]
    why = "; ".join(pod.problem for pod in pods) or "there is no pod of it"
    text = f"Nobody remembers whose addresses were whose ({why}): packets of pods that are gone stay without a name."
    return [Finding(BAD, "journal", text, "kubectl -n podtap get deployments,pods")]


def _versions(reports: Sequence[NodeReport]) -> list[Finding]:
    found: dict[str, list[str]] = {}
    for each in reports:
        if each.version:
            found.setdefault(each.version, []).append(each.node)
    if len(found) < 2:
        return []
    parts = ", ".join(f"{version} on {_some(nodes)}" for version, nodes in sorted(found.items()))
    return [Finding(WARN, "versions", f"Agents differ: {parts}.", "is a rollout going on, or did it stop?")]


def text(
    name: str, now_ns: int, reports: Sequence[NodeReport], common: Sequence[Finding], width: int, colours: bool
) -> list[str]:
    """For people: a line for each node, what is to be looked at, and a last line that says it all."""
    rows = [_row(each) for each in sorted(reports, key=_urgency)[:_SHOWN_NODES]]
    left_out = len(reports) - len(rows)
    header = ("", "node", "reaches back to", "for", "overwritten in", "drops", "clock")
    shown = [printable(line) for line in table(header, rows).splitlines()]
    shown += [f"and {left_out:,} more nodes, which are no worse"] if left_out else []
    findings = by_level([*common, *grouped(reports)])
    last = f"{_whole(reports)}{summary(findings)}"
    title = f"{printable(name)} at {clock_text(now_ns)}: {len(reports):,} nodes"
    return [title, "", *shown, "", *lines(findings, width, colours), "", last]


def _urgency(each: NodeReport) -> tuple[int, str]:
    return (BAD, WARN, OK).index(each.level), each.node


def _row(each: NodeReport) -> tuple[str, ...]:
    if each.report is None:
        return (each.level, each.node, *[_UNKNOWN] * 5)
    if each.oldest_ns is None:
        back, age = "nothing yet", ""
    else:
        back, age = clock_text(each.oldest_ns), duration_text(each.time_ns - each.oldest_ns)
    left = _UNKNOWN if each.overwritten_ns is None else duration_text(each.overwritten_ns - each.time_ns)
    lost = "none" if not each.lost else share_text(each.lost, each.accepted or 0)
    return (each.level, each.node, back, age, left, _UNKNOWN if each.accepted is None else lost, _clock(each.clock))


def _clock(clock: Clock) -> str:
    if clock.synchronised is None:
        return _UNKNOWN
    return f"± {duration_text(clock.max_error_ns or 0)}" if clock.synchronised else "not synchronised"


def _whole(reports: Sequence[NodeReport]) -> str:
    """From when on all nodes are there."""
    known = [(each.oldest_ns, each.node) for each in reports if each.oldest_ns is not None]
    if not known:
        return "nothing is recorded; "
    latest_ns, node = max(known)
    which = "all" if len(known) == len(reports) else f"{len(known):,} of {len(reports):,}"
    return f"{which} nodes reach back to {clock_text(latest_ns)} ({printable(node)} the least); "


def grouped(reports: Sequence[NodeReport]) -> list[Finding]:
    """What is not as it should be, once for all nodes where it is the same."""
    groups: dict[tuple[str, str], dict[str, list[tuple[str, Finding]]]] = {}
    for each in reports:
        for finding in each.findings:
            if finding.level != OK:
                same = groups.setdefault((finding.level, finding.subject), {})
                same.setdefault(finding.text, []).append((each.node, finding))
    found = []
    for (level, subject), texts in sorted(groups.items()):
        by_size = sorted(texts.values(), key=len, reverse=True)
        for nodes in by_size[:_SHOWN_TEXTS]:
            where = "all nodes" if len(nodes) == len(reports) > 1 else _some([node for node, _ in nodes])
            finding = nodes[0][1]
            found.append(Finding(level, subject, f"{where}: {finding.text}", finding.advice))
        if rest := [node for nodes in by_size[_SHOWN_TEXTS:] for node, _ in nodes]:
            found.append(Finding(level, subject, f"likewise on {_some(rest)}"))
    return found


def _some(nodes: Sequence[str]) -> str:
    return ", ".join(nodes[:5]) + (f" and {len(nodes) - 5:,} more" if len(nodes) > 5 else "")


def report(now_ns: int, reports: Sequence[NodeReport], common: Sequence[Finding]) -> dict[str, Any]:
    """For machines."""
    nodes = [
        {"node": each.node, "level": each.level, "findings": [asdict(finding) for finding in each.findings]}
        | {"report": each.report}
        for each in reports
    ]
    findings = [finding for each in reports for finding in each.findings]
    return {
        "time_ns": now_ns,
        "level": worst([*findings, *common]),
        "findings": [asdict(each) for each in common],
        "nodes": nodes,
    }
