"""The contract between those who write a recording (capture) and those who read it (analysis).

    <root>/<cluster>/<node>/<YYYYMMDD>/<start_ns>-<seq>.pcap        a segment; `.pcap.zst` once compressed,
                                                                    `.part` after the suffix as long as it is written
    <root>/<cluster>/<node>/<YYYYMMDD>/<start_ns>-<seq>.json        its manifest, written after the data is durable:
                                                                    its existence is the commit
    <root>/<cluster>/<node>/tombstones.jsonl                        a line for each segment that the ring evicted
    <root>/<cluster>/<node>/freezes/<id>.json                       a window that is pinned until it is thawed
    <root>/_journal/<writer>/<YYYYMMDD>/<start_ns>-<seq>.jsonl.zst  the journal; `.jsonl.part` as long as it is written
    <root>/bundle.json                                              the head of an evidence bundle

Manifests of a node are a chain: each holds the SHA-256 of the one before it, byte for byte as it stood in its file.
A tombstone keeps an evicted manifest's place in the chain. Times are nanoseconds since 1970, UTC; days are UTC days.
Readers ignore keys they do not know. This file imports the standard library only.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any, Final, TypeVar

T = TypeVar("T")

VERSION: Final = 1
NANOSECONDS: Final = 10**9
JOURNAL: Final = "_journal"
TOMBSTONES: Final = "tombstones.jsonl"
FREEZES: Final = "freezes"
BUNDLE: Final = "bundle.json"
PART: Final = ".part"
SEGMENT_SUFFIXES: Final = (".pcap", ".pcap.zst")
MANIFEST_SUFFIX: Final = ".json"
JOURNAL_SUFFIX: Final = ".jsonl.zst"
KINDS: Final = (
    "Pod",
    "Service",
    "EndpointSlice",
    "Node",
    "Namespace",
    "NetworkPolicy",
    "Ingress",
    "ReplicaSet",
    "Job",
    "Event",
)
"""What the journal remembers."""

_STEM: Final = re.compile(r"(?P<start_ns>\d{19})-(?P<seq>\d{6,})")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]")
_MOST_NAME_BYTES: Final = 200


class ContractError(ValueError):
    """What was read is not as this contract says; the message tells why."""


# --- Names -----------------------------------------------------------------------------------------------------------


def safe_name(name: str) -> str:
    """A cluster's or node's name as a folder: one path component, never hidden, never `_journal`, never outside.

    Names that Kubernetes allows stay as they are. Others are percent-encoded, so that two never become one.
    """
    safe = _UNSAFE.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode(errors="replace")), name)
    if safe[:1] in ("", ".", "_"):
        safe = f"%{ord(safe[0]):02X}{safe[1:]}" if safe else "%"
    if len(safe) > _MOST_NAME_BYTES:
        safe = f"{safe[: _MOST_NAME_BYTES - 17]}~{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:16]}"
    return safe


def node_folder(cluster: str, node: str) -> PurePosixPath:
    """Where a node's segments are, below the root."""
    return PurePosixPath(safe_name(cluster), safe_name(node))


def day_of(time_ns: int) -> str:
    """The UTC day of a time, YYYYMMDD."""
    return f"{datetime.fromtimestamp(time_ns // NANOSECONDS, UTC):%Y%m%d}"


def stem(start_ns: int, seq: int) -> str:
    """`<YYYYMMDD>/<start_ns>-<seq>`: sorted by name is sorted by time. `seq` counts up over restarts of the agent."""
    return f"{day_of(start_ns)}/{start_ns:019d}-{seq:06d}"


def parse_stem(name: str) -> tuple[int, int] | None:
    """(start_ns, seq) of a file name or path that begins as stem() makes it; None for any other."""
    match = _STEM.match(name.rpartition("/")[2])
    return (int(match["start_ns"]), int(match["seq"])) if match else None


# --- Manifests -------------------------------------------------------------------------------------------------------


@dataclass
class Ledger:
    """Where the packets went, over the time of one segment: accepted = written + all that was dropped.

    All but `interface` are packets that the socket's filter accepted.
    """

    accepted: int = 0
    written: int = 0
    kernel: int = 0
    """Dropped since the kernel's ring was full."""
    libpcap: int = 0
    """Dropped by libpcap (too short, or refused by a filter that was just exchanged)."""
    disk: int = 0
    """Read from the ring, but not kept: the disk was full, or the folder gone."""
    policy: int = 0
    """Read from the ring, but outside the scope (a pod that just left it), or beyond a limit that was asked for."""
    interface: int | None = None
    """Dropped by the interfaces before any socket saw them; None where the system does not say."""

    @property
    def is_balanced(self) -> bool:
        return self.accepted == self.written + self.kernel + self.libpcap + self.disk + self.policy


@dataclass
class Interface:
    """One network interface of the node, as it was from `since_ns` to `until_ns`."""

    index: int
    name: str
    kind: str = ""
    """As rtnetlink's IFLA_INFO_KIND: veth, bridge, vxlan ...; 'loopback', or '' for hardware."""
    role: str = ""
    """What a CNI's name and the kind tell: pod, bridge, overlay, tunnel, uplink, loopback, or '' for not known."""
    cni: str = ""
    """calico, cilium, flannel, weave, or ''."""
    mac: str = ""
    mtu: int = 0
    up: bool = True
    master: int | None = None
    """Index of the bridge or bond that it belongs to."""
    peer: int | None = None
    """Index of a veth's other end, in `peer_netns`."""
    peer_netns: int | None = None
    """The kernel's number of the network namespace of the other end; None: this one."""
    vni: int | None = None
    addresses: list[str] = field(default_factory=list)
    """With prefix lengths."""
    reaches: list[str] = field(default_factory=list)
    """Addresses of pods that routes, neighbours or a bridge table show behind it: without prefix lengths."""
    reaches_macs: list[str] = field(default_factory=list)
    """Of the bridge's table and the neighbours."""
    since_ns: int | None = None
    """None: before the segment began."""
    until_ns: int | None = None
    """None: beyond the segment's end."""


@dataclass
class Counters:
    """The node's counters at one time, as the kernel has them: since boot, not since the segment began."""

    time_ns: int
    values: dict[str, int] = field(default_factory=dict)
    """By name: softnet_dropped, softnet_time_squeeze, conntrack_count, conntrack_max, conntrack_drop,
    conntrack_insert_failed ..., tcp_retrans_segs, tcp_out_segs ..., nic_rx_dropped:<interface> ..."""


@dataclass
class Clock:
    """How far the node's clock can be trusted (adjtimex)."""

    synchronised: bool | None = None
    """None: not known."""
    max_error_ns: int | None = None
    offset_ns: int | None = None
    stepped: bool = False
    """The wall clock jumped against the monotonic one during the segment."""


@dataclass
class DerivedFrom:
    """What a part was cut out of."""

    manifest_sha256: str
    sha256: str
    """Of the whole segment's uncompressed data."""
    packets: int
    since_ns: int | None = None
    until_ns: int | None = None
    addresses: list[str] | None = None
    """Only packets of these; None: all."""


@dataclass
class Manifest:
    """What stands beside a segment. `stem` is its name below the node's folder, without suffix."""

    cluster: str
    node: str
    stem: str
    opened_ns: int
    sealed_ns: int
    link_type: int
    snaplen: int
    packets: int
    size_bytes: int
    """Of the uncompressed file, its header included."""
    sha256: str
    """Of the uncompressed file."""
    first_packet_ns: int | None = None
    last_packet_ns: int | None = None
    """The earliest and latest time of a packet; None without packets."""
    previous_sha256: str | None = None
    """Of the manifest before it, as bytes in its file; None: the chain begins here."""
    ledger: Ledger = field(default_factory=Ledger)
    capture: list[str] = field(default_factory=list)
    """Names of the captured interfaces, or 'any'."""
    filter: str = ""
    """The BPF filter that was asked for."""
    payload: str = "all"
    """headers (headers, and DNS whole), snaplen, or all."""
    scope: str = ""
    """The pods that the recording was limited to, as it was asked for; '': the whole node."""
    boot_id: str = ""
    run_id: str = ""
    """One for each start of the agent."""
    agent_version: str = ""
    kernel: str = ""
    interfaces: list[Interface] = field(default_factory=list)
    counters: list[Counters] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)
    salvaged: bool = False
    """Sealed by a later start, after a crash: its ledger is not known, its tail may be missing."""
    gap_before_ns: int | None = None
    """How long nothing was recorded before it, as far as the agent knows (it was down, or the disk was)."""
    derived_from: DerivedFrom | None = None
    contract: int = VERSION


@dataclass
class Tombstone:
    """What is left of a segment, or of `segments` that followed each other."""

    stem: str
    """Of the last of them."""
    manifest_sha256: str
    """Of the last one's manifest: the next one's `previous_sha256`."""
    evicted_ns: int
    reason: str
    """quota, age, frozen_quota, asked (somebody removed it), lost (it was gone, or could not be read)."""
    previous_sha256: str | None = None
    """Of the first one's manifest."""
    first_packet_ns: int | None = None
    last_packet_ns: int | None = None
    packets: int = 0
    size_bytes: int = 0
    sha256: str = ""
    """Of the data; '' where several are one."""
    segments: int = 1
    contract: int = VERSION


@dataclass
class Freeze:
    """A window whose segments are kept, also those still to come, until it is thawed."""

    id: str
    since_ns: int
    until_ns: int
    reason: str = ""
    created_ns: int = 0
    by: str = ""
    """Who asked: a person, or a trigger's name."""
    contract: int = VERSION


# --- The journal -----------------------------------------------------------------------------------------------------


@dataclass
class JournalRecord:
    """One line of the journal: something that was seen of the cluster, or a time in which nothing could be.

    `type` is one of

    - listed: the object was in a full listing (every file starts with one of each kind, which list_complete ends)
    - added, modified, deleted: a change that a watch told; `object` is the state after it (of deleted: the last one).
      One that may have come late has `unseen_since_ns`: a deletion that only a later listing showed, or what a watch
      told that had broken off, or just begun. It happened between then and `observed_ns`.
    - list_complete: all objects of the kind have been listed, as of `resource_version`
    - bookmark: every change of the kind until then has been told, as of `resource_version`; about once a minute
    - gap: from `since_ns` to `observed_ns` nothing was seen of the kind; `reason` tells why. A listing follows.
    - stopped: the writer ended in good order, the file with it.
    """

    type: str
    observed_ns: int
    kind: str = ""
    """One of KINDS; '' of stopped."""
    uid: str = ""
    resource_version: str = ""
    object: dict[str, Any] | None = None
    """The API object, pruned to what analysis needs."""
    since_ns: int | None = None
    unseen_since_ns: int | None = None
    reason: str = ""


# --- Evidence bundles ------------------------------------------------------------------------------------------------


@dataclass
class BundleFile:
    """One file of a bundle; `path` is relative to the bundle, with slashes."""

    path: str
    size_bytes: int
    sha256: str
    """Of the file as it lies there."""


@dataclass
class BundleNode:
    """What became of one node's part."""

    cluster: str
    node: str
    complete: bool
    segments: int = 0
    packets: int = 0
    size_bytes: int = 0
    missing: list[str] = field(default_factory=list)
    """Why it is not complete, a sentence each: could not be reached, evicted before it was asked for, no agent ..."""
    clock: Clock = field(default_factory=Clock)
    last_manifest_sha256: str | None = None
    """Of the newest manifest in it, of what was in the node's chain."""


@dataclass
class Bundle:
    """The head of an evidence bundle: whoever signs this file has signed all of it."""

    created_ns: int
    since_ns: int
    until_ns: int
    nodes: list[BundleNode]
    files: list[BundleFile]
    """All of them but the head, by path."""
    versions: dict[str, str] = field(default_factory=dict)
    """podtap, kubernetes, python ..."""
    selection: dict[str, str] = field(default_factory=dict)
    """What was asked for: namespace, selector, nodes, reason."""
    journal_complete: bool = True
    contract: int = VERSION


def sha256(data: bytes) -> str:
    """As all hashes of this contract are written: lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


# --- JSON ------------------------------------------------------------------------------------------------------------

_PARTS: Final[dict[tuple[str, str], Any]] = {
    ("Manifest", "ledger"): Ledger,
    ("Manifest", "interfaces"): [Interface],
    ("Manifest", "counters"): [Counters],
    ("Manifest", "clock"): Clock,
    ("Manifest", "derived_from"): DerivedFrom,
    ("Bundle", "nodes"): [BundleNode],
    ("Bundle", "files"): [BundleFile],
    ("BundleNode", "clock"): Clock,
}


def to_json(value: Manifest | Tombstone | Freeze | JournalRecord | Bundle) -> bytes:
    """As it stands in its file, newline included; the same value gives the same bytes.

    Tombstones and journal records are one line, and leave out what is not set.
    """
    if isinstance(value, (Tombstone, JournalRecord)):
        values = {key: each for key, each in vars(value).items() if each not in ("", None)}
        text = json.dumps(values, separators=(",", ":"), sort_keys=True)
    else:
        text = json.dumps(asdict(value), indent=1, sort_keys=True)
    return text.encode() + b"\n"


def from_json(kind: type[T], data: bytes) -> T:
    """What to_json wrote; `kind` is the class. ContractError tells what is not as this contract says."""
    what = kind.__name__
    value: T = _read(kind, _object(data, what), what)
    return value


def _object(data: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as error:  # also of bytes that are no UTF-8
        raise ContractError(f"this {what} is no JSON: {error}") from None
    except RecursionError:
        raise ContractError(f"this {what} is nested too deeply") from None
    if not isinstance(value, dict):
        raise ContractError(f"this {what} is no JSON object")
    if isinstance(version := value.get("contract", VERSION), int) and version > VERSION:
        raise ContractError(
            f"this {what} is of contract version {version}, and this podtap knows {VERSION}: upgrade it"
        )
    return value


def _read(cls: Any, value: Any, what: str) -> Any:
    """`value` as a `cls`: nested parts too, unknown keys left out, types checked."""
    if not isinstance(value, dict):
        raise ContractError(f"{what}: not an object")
    known: dict[str, Any] = {}
    for name, kind in cls.__annotations__.items():
        if name not in value:
            continue
        part = _PARTS.get((cls.__name__, name))
        where = f"{what}: {name}"
        if part is None or value[name] is None:
            _check(value[name], kind, where)
            known[name] = value[name]
        elif isinstance(part, list):
            _check(value[name], "list[Any]", where)
            known[name] = [_read(part[0], each, where) for each in value[name]]
        else:
            known[name] = _read(part, value[name], where)
    try:
        return cls(**known)
    except TypeError as error:
        raise ContractError(f"{what}: {str(error).partition(') ')[2]}") from None


_TYPES: Final[dict[str, Any]] = {
    "int": int,
    "str": str,
    "bool": bool,
    "list": list,
    "dict": dict,
    "None": type(None),
}


def _check(value: Any, kind: str, where: str) -> None:
    """`kind`: an annotation of this file, such as `int | None` or `list[str]`."""
    allowed = tuple(_TYPES.get(each.partition("[")[0].strip(), type(None)) for each in kind.split(" | "))
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        raise ContractError(f"{where}: expected {kind}, found {type(value).__name__}")
    if kind.startswith("list[str]") and not all(isinstance(each, str) for each in value or []):
        raise ContractError(f"{where}: expected {kind}")
