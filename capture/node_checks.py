"""Is this node being recorded, how far back, and what is missing? Pure: facts in, findings out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from capture.contract import NANOSECONDS, Manifest
from capture.findings import BAD, OK, WARN, Finding, duration_text, share_text
from capture.node_facts import NodeFacts
from capture.progress import size_text
from capture.recording import clock_text
from capture.ring_state import RingState
from capture.running_agents import NET_RAW

MINUTE_NS: Final = 60 * NANOSECONDS
SHORT_REACH_NS: Final = 15 * MINUTE_NS
"""Less than this is gone before anybody has been woken up."""
MUCH_LOST: Final = 0.01
"""Of the packets: reports can't be trusted any more."""
TOLERABLE_CLOCK_NS: Final = 100_000_000
EVICTION: Final = 0.10
"""A kubelet evicts pods from a node with less than this free, unless it is told otherwise (nodefs.available)."""
FULL: Final = 0.9
FULL_DISK_BYTES: Final = 256 << 20
_KERNEL_DROPS: Final = (
    "give the agent a larger ring (-B), record less of each packet (without -s), or fewer packets (a filter behind --)"
)


def check(facts: NodeFacts) -> list[Finding]:
    """All findings, in the order in which one would ask."""
    checks: tuple[Callable[[NodeFacts], Iterator[Finding]], ...] = (
        _agent,
        _readiness,
        _libpcap,
        _reach,
        _frozen,
        _disk,
        _drops,
        _node_drops,
        _conntrack,
        _clock,
        _content,
    )
    return [finding for each in checks for finding in each(facts)]


def _agent(facts: NodeFacts) -> Iterator[Finding]:
    agent = facts.agent
    if agent is None:
        where = "in the folder is what an earlier one recorded" if facts.has_folder else "nor was anything recorded"
        yield Finding(
            BAD,
            "recording",
            f"No agent runs here that records into {facts.folder}: of what happens now nothing will be known; {where}.",
            "on a node: kubectl -n podtap get pods -o wide shows its agent pod, or the lack of it; all nodes of a"
            " cluster: podtap doctor --context NAME; by hand: podtap agent",
        )
        return
    age = duration_text(facts.now_ns - agent.started_ns)
    rss = size_text(agent.resident_bytes)
    yield Finding(OK, "recording", f"Process {agent.pid}, for {age}, into {facts.folder}; {rss} resident.")
    if agent.capabilities is not None and not agent.capabilities >> NET_RAW & 1:
        yield Finding(
            BAD,
            "capabilities",
            "The agent has no CAP_NET_RAW: it can't open a socket that sees packets.",
            "add NET_RAW to the container's capabilities, and run it as UID 0",
        )


def _readiness(facts: NodeFacts) -> Iterator[Finding]:
    endpoint = facts.endpoint
    if facts.agent is None:
        return
    if endpoint is None:
        yield Finding(OK, "readiness", "The agent has no metrics endpoint (--metrics ''): fewer things can be checked.")
    elif endpoint.problem:
        yield Finding(
            BAD,
            "readiness",
            f"The agent's endpoint {endpoint.address} does not answer ({endpoint.problem}).",
            "look at the agent's log; if it listens elsewhere, name that with --metrics",
        )
    elif endpoint.not_ready:
        for reason in endpoint.not_ready:
            yield Finding(BAD, "readiness", f"The agent says: {reason}.", "the agent's log tells more")
    else:
        yield Finding(OK, "readiness", f"The agent is ready: http://{endpoint.address}/readyz.")


def _libpcap(facts: NodeFacts) -> Iterator[Finding]:
    if facts.libpcap_problem:
        yield Finding(
            BAD,
            "libpcap",
            f"libpcap can't be loaded: {facts.libpcap_problem}.",
            "install it: apt-get install libpcap0.8, or dnf install libpcap",
        )
    elif facts.libpcap:
        yield Finding(OK, "libpcap", f"{facts.libpcap}.")


def _reach(facts: NodeFacts) -> Iterator[Finding]:
    ring = facts.ring
    for problem in facts.problems:
        yield Finding(WARN, "folder", f"{problem}.")
    if ring is None or ring.oldest_ns is None:
        if facts.has_folder:
            is_new = facts.agent is not None and facts.now_ns - facts.agent.started_ns < 2 * MINUTE_NS
            why = "the agent has just begun" if is_new else "nothing was captured, or nothing could be written"
            yield Finding(OK if is_new else WARN, "reach", f"No segment is complete yet: {why}.")
        return
    reach_ns = facts.now_ns - ring.oldest_ns
    fill = f"{size_text(ring.bytes)} of {size_text(ring.quota_bytes)}"
    text = f"Back to {clock_text(ring.oldest_ns)} ({duration_text(reach_ns)}), {fill}."
    left_ns = None if ring.overwritten_ns is None else ring.overwritten_ns - facts.now_ns
    if left_ns is not None and facts.agent:
        gone = f"in {duration_text(left_ns)}" if left_ns > 0 else "now"
        text += f" The oldest segment that is not frozen will be overwritten {gone}."
    is_full = ring.quota_bytes > 0 and ring.bytes > FULL * ring.quota_bytes
    unfrozen_ns = facts.now_ns - (ring.oldest_unfrozen_ns or ring.oldest_ns)
    is_short = is_full and unfrozen_ns < SHORT_REACH_NS
    advice = "to keep what is there: podtap freeze; to reach further back: a larger --quota, or a filter"
    yield Finding(WARN if is_short else OK, "reach", text, advice if is_short else "")
    if facts.agent and ring.newest_ns is not None and (silent_ns := facts.now_ns - ring.newest_ns) > 5 * MINUTE_NS:
        yield Finding(
            WARN,
            "reach",
            f"The newest packet of a sealed segment is {duration_text(silent_ns)} old: the link is quiet, the filter"
            " lets nothing through, or nothing can be written.",
            "see the findings on readiness and disk; is the filter the right one?",
        )
    for problem in ring.problems:
        yield Finding(WARN, "ring", f"{problem.rstrip('.')}.")
    if ring.waiting_segments:
        yield Finding(
            BAD,
            "ring",
            f"{ring.waiting_segments} segments could not be sealed, the disk was full or gone: they are tried again.",
            "make room on the disk",
        )


def _frozen(facts: NodeFacts) -> Iterator[Finding]:
    ring = facts.ring
    if not facts.freezes:
        return
    windows = ", ".join(
        f"{clock_text(each.since_ns)} to {clock_text(each.until_ns)}" + (f" ({each.reason})" if each.reason else "")
        for each in facts.freezes[:3]
    )
    more = f" and {len(facts.freezes) - 3} more" if len(facts.freezes) > 3 else ""
    held = f", {size_text(ring.frozen_bytes)} of {size_text(ring.frozen_quota_bytes)}" if ring else ""
    if ring and ring.refused_segments:
        yield Finding(
            BAD,
            "frozen",
            f"{ring.refused_segments} segments of a frozen window will be overwritten: the quota of frozen segments is"
            f" full ({size_text(ring.frozen_quota_bytes)}). Frozen: {windows}{more}.",
            "podtap collect what is needed, podtap thaw what is not; or give the agent a larger --frozen-quota",
        )
    else:
        yield Finding(OK, "frozen", f"Kept until thawed: {windows}{more}{held}.")


def _disk(facts: NodeFacts) -> Iterator[Finding]:
    disk = facts.disk
    if disk is None:
        return
    if disk.is_read_only:
        yield Finding(
            BAD, "disk", f"The file system of {facts.folder} is read-only: nothing is recorded.", "mount it for writing"
        )
        return
    to_come = _growth(facts.ring)
    free = f"{size_text(disk.free_bytes)} of {size_text(disk.size_bytes)} are free"
    advice = "make room, or lower the agent's --quota and --frozen-quota"
    if disk.free_inodes is not None and disk.free_inodes < 1000:
        yield Finding(BAD, "disk", f"Only {disk.free_inodes} inodes are free: no new file can be made.", "remove files")
    elif disk.free_bytes < min(FULL_DISK_BYTES, disk.size_bytes // 20):
        yield Finding(BAD, "disk", f"The disk is full: {free}.", advice)
    elif disk.free_bytes < to_come:
        text = f"{free}, and the quotas allow {size_text(to_come)} more: the disk may be full before they are."
        yield Finding(WARN, "disk", text, advice)
    elif disk.free_bytes - to_come < EVICTION * disk.size_bytes:
        text = f"{free}; once the quotas are used up less than 10 % are left, and a kubelet evicts pods then."
        yield Finding(WARN, "disk", text, advice)
    else:
        more = f"; the quotas allow {size_text(to_come)} more" if facts.ring else ""
        yield Finding(OK, "disk", f"{free}{more}.")


def _growth(ring: RingState | None) -> int:
    """What the recording may still take: of segments, and of frozen ones."""
    if ring is None:
        return 0
    return max(0, ring.quota_bytes - ring.bytes) + max(0, ring.frozen_quota_bytes - ring.frozen_bytes)


def _drops(facts: NodeFacts) -> Iterator[Finding]:
    accepted, dropped, since = _totals(facts)
    if accepted is None:
        return
    lost = {reason: count for reason, count in dropped.items() if reason != "policy" and count}
    if not lost:
        yield Finding(OK, "drops", f"None of {accepted:,} packets since {since}.")
    advices = {
        "kernel": ("the kernel's ring was full", _KERNEL_DROPS),
        "libpcap": ("libpcap refused them", "a packet was shorter than its headers, or a filter was just exchanged"),
        "disk": ("the disk was full, or the folder gone", "make room, or lower --quota"),
    }
    for reason, count in lost.items():
        what, advice = advices.get(reason, (reason, ""))
        is_over = bool(facts.manifests) and not any(getattr(each.ledger, reason) for each in facts.manifests)
        is_bad = not is_over and (reason == "disk" or count > MUCH_LOST * accepted)
        text = f"{count:,} of {accepted:,} packets ({share_text(count, accepted)}) since {since}: {what}."
        yield Finding(BAD if is_bad else WARN, "drops", text + _latest(facts.manifests, reason), advice)
    if salvaged := sum(each.salvaged for each in facts.manifests):
        yield Finding(
            WARN,
            "restarts",
            f"{salvaged} of the newest {len(facts.manifests)} segments were left by an agent that crashed or was"
            " killed: what it dropped is not known.",
            "was it out of memory? kubectl -n podtap describe pod tells its last state",
        )


def _totals(facts: NodeFacts) -> tuple[int | None, dict[str, int], str]:
    """Accepted packets, dropped ones by reason, and since when: of the running agent, else of the newest segments."""
    endpoint = facts.endpoint
    if endpoint and (accepted := endpoint.value("podtap_accepted_packets_total")) is not None:
        dropped = endpoint.values.get("podtap_dropped_packets_total", {})
        return int(accepted), {reason: int(count) for reason, count in dropped.items()}, "the agent began"
    known = [each for each in facts.manifests if not each.salvaged]
    if not known:
        return None, {}, ""
    reasons = ("kernel", "libpcap", "disk", "policy")
    sums = {reason: sum(getattr(each.ledger, reason) for each in known) for reason in reasons}
    return sum(each.ledger.accepted for each in known), sums, clock_text(known[0].opened_ns)


def _latest(manifests: list[Manifest], reason: str) -> str:
    """Whether it goes on."""
    with_drops = [each for each in manifests if getattr(each.ledger, reason)]
    if not manifests:
        return ""
    if not with_drops:
        return f" None of them since {clock_text(manifests[0].opened_ns)}."
    last = with_drops[-1]
    return f" Lately in the segment that ended at {clock_text(last.sealed_ns)}: {getattr(last.ledger, reason):,}."


def _node_drops(facts: NodeFacts) -> Iterator[Finding]:
    """Lost before any socket saw them: no recorder can have these."""
    then = next((counters.values for each in facts.manifests for counters in each.counters), {})
    since = f"since {clock_text(facts.manifests[0].opened_ns)}" if then else "since the node booted"
    for name, what, advice in (
        ("softnet_dropped", "the backlog of a processor was full", "raise net.core.netdev_max_backlog"),
        ("nic_rx_fifo", "a network card's ring was full", "ethtool -g shows the ring, ethtool -G makes it larger"),
    ):
        if name in facts.counters.values and (count := facts.counters.values[name] - then.get(name, 0)) > 0:
            text = f"{count:,} packets {since} that no recorder can see: {what}."
            yield Finding(WARN, "node drops", text, advice)


def _conntrack(facts: NodeFacts) -> Iterator[Finding]:
    values = facts.counters.values
    count, most = values.get("conntrack_count"), values.get("conntrack_max")
    if count is None or not most:
        return
    fill = f"{count:,} of {most:,} connections ({share_text(count, most)})"
    if count > FULL * most:
        text = f"The table is nearly full: {fill}. New connections are dropped when it is."
        yield Finding(
            WARN, "conntrack", text, "raise net.netfilter.nf_conntrack_max; podtap report flows tells whose they are"
        )
    then = next((counters.values for each in facts.manifests for counters in each.counters), {})
    for name, what in (("conntrack_drop", "since the table was full"), ("conntrack_insert_failed", "in a race of two")):
        if then and (lost := values.get(name, 0) - then.get(name, 0)) > 0:
            since = clock_text(facts.manifests[0].opened_ns)
            yield Finding(WARN, "conntrack", f"{lost:,} packets were dropped {what} since {since}: pods saw timeouts.")


def _clock(facts: NodeFacts) -> Iterator[Finding]:
    clock = facts.clock
    advice = "is chrony, ntpd or systemd-timesyncd running? chronyc tracking tells"
    if clock.synchronised is None:
        yield Finding(WARN, "clock", "The kernel does not say how good the node's clock is.")
    elif not clock.synchronised:
        text = (
            "The kernel says that nothing synchronises this clock: times of this node may be off against other nodes'."
        )
        yield Finding(WARN, "clock", text, advice)
    elif (clock.max_error_ns or 0) > TOLERABLE_CLOCK_NS:
        error = duration_text(clock.max_error_ns or 0)
        yield Finding(WARN, "clock", f"It is synchronised, but may be off by as much as {error}.", advice)
    else:
        yield Finding(OK, "clock", f"Synchronised; off by {duration_text(clock.max_error_ns or 0)} at most.")
    if stepped := [each for each in facts.manifests if each.clock.stepped]:
        when = clock_text(stepped[-1].sealed_ns)
        text = (
            f"The clock was set, lately in the segment that ended at {when}: times before it don't compare with after."
        )
        yield Finding(WARN, "clock", text, advice)


def _content(facts: NodeFacts) -> Iterator[Finding]:
    """What of the traffic is meant to be recorded."""
    if not facts.manifests:
        return
    newest = facts.manifests[-1]
    kept = {"headers": "headers, and DNS whole", "snaplen": f"{newest.snaplen} bytes of each packet"}
    parts = [f"Of each packet: {kept.get(newest.payload, 'all')}."]
    if newest.capture and newest.capture != ["any"]:
        parts.append(f"Only what passes {', '.join(newest.capture)}.")
    if newest.filter:
        parts.append(f"Only what fits the filter '{newest.filter}'.")
    if newest.scope:
        parts.append(f"Only the pods of {newest.scope}.")
    is_part = len(parts) > 1
    yield Finding(OK, "content", " ".join(parts) + ("" if is_part else " All packets of the node."))
