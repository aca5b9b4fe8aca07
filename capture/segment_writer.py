"""The life of a segment: .part -> flush -> fsync -> rename -> fsync of the folder -> manifest.

The manifest's existence is the commit: it is written last, under another name, and renamed when it is durable.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final

from capture.contract import MANIFEST_SUFFIX, PART, Clock, Counters, Interface, Ledger, Manifest, to_json

PCAP: Final = ".pcap"
TEMPORARY: Final = ".tmp"
SEGMENT_MODE: Final = 0o640
_READ_BYTES: Final = 256 * 1024


@dataclass
class Part:
    """A segment that is being written. Whoever opened it writes the pcap through `fd`."""

    path: Path
    """Ends in .pcap.part."""
    fd: int
    """Opened O_EXCL for reading and writing; belongs to the ring, which closes it."""
    seq: int
    stem: str
    """`<YYYYMMDD>/<start_ns>-<seq>`, as contract.stem makes it."""
    opened_ns: int
    """What the clock said; the stem's time is later where the clock jumped back."""
    is_elsewhere: bool = False
    """It could not be sealed, since somebody moved it."""
    granted_bytes: int = 0
    """So large may it become before room has to be made again."""
    manifest: Manifest | None = None
    """Once it is sealed."""


@dataclass
class SegmentFacts:
    """All that a manifest tells and the writer of the packets knows; the ring knows the rest."""

    link_type: int
    snaplen: int
    packets: int
    size_bytes: int
    """Offset behind the last whole record, the file's header included: what is beyond it is cut off."""
    first_packet_ns: int | None = None
    last_packet_ns: int | None = None
    """The earliest and latest time of a packet; None without packets."""
    ledger: Ledger = field(default_factory=Ledger)
    capture: list[str] = field(default_factory=list)
    filter: str = ""
    payload: str = "all"
    scope: str = ""
    run_id: str = ""
    interfaces: list[Interface] = field(default_factory=list)
    counters: list[Counters] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)
    gap_before_ns: int | None = None
    salvaged: bool = False
    sha256: str = ""
    """Of the file's `size_bytes`; '': nobody hashed them yet."""


@dataclass(frozen=True)
class NodeFacts:
    """What the ring knows for each manifest."""

    cluster: str
    node: str
    boot_id: str
    agent_version: str
    kernel: str


def open_part(folder: Path, stem: str, seq: int, opened_ns: int) -> Part:
    """A new file for a segment, below the node's folder. OSError where it can't be made, or is there already."""
    path = folder / f"{stem}{PCAP}{PART}"
    path.parent.mkdir(exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, SEGMENT_MODE)
    return Part(path, fd, seq, stem, opened_ns)


def commit_data(part: Part, size_bytes: int) -> None:
    """Cut off what is behind the last whole record, make the rest durable, give it its name.

    May be called again after an OSError. FileNotFoundError: somebody removed it; the data can't be kept any more.
    """
    if (there := os.fstat(part.fd).st_size) < size_bytes:
        raise OSError(errno.EIO, f"holds {there} bytes of {size_bytes} that were written", str(part.path))
    if there > size_bytes:
        os.ftruncate(part.fd, size_bytes)
    os.fsync(part.fd)
    if part.path.suffix == PART:
        os.rename(part.path, part.path.with_suffix(""))
        part.path = part.path.with_suffix("")
    sync_folder(part.path.parent)


def is_removed(part: Part) -> bool:
    """Whether it has no name any more; else it was moved, or its folder, or what is mounted there: it may come back."""
    return os.fstat(part.fd).st_nlink == 0


def hash_data(part: Part) -> str:
    """SHA-256 of what is in the file."""
    digest = hashlib.sha256()
    offset = 0
    # preadv would spare a copy. But Python's is preadv2, which older container runtimes' seccomp profiles refuse.
    while data := os.pread(part.fd, _READ_BYTES, offset):  # fits the cache; hashlib lets other threads run meanwhile
        digest.update(data)
        offset += len(data)
    return digest.hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> bytes:
    """The commit. Returns the bytes that now stand in the file."""
    data = to_json(manifest)
    write_atomically(folder / f"{manifest.stem}{MANIFEST_SUFFIX}", data)
    return data


def write_atomically(path: Path, data: bytes) -> None:
    """A file that is there whole, or not at all, whatever happens; what was there before is replaced."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_all(fd: int, data: bytes) -> None:
    """os.write until nothing is left."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def manifest_of(part: Part, facts: SegmentFacts, previous_sha256: str | None, node: NodeFacts) -> Manifest:
    """Facts of the writer and of the ring as one manifest."""
    values = {name: getattr(facts, name) for name in SegmentFacts.__dataclass_fields__}
    return Manifest(
        **vars(node),
        **values,
        stem=part.stem,
        opened_ns=part.opened_ns,
        sealed_ns=time.time_ns(),
        previous_sha256=previous_sha256,
    )


def node_facts(cluster: str, node: str) -> NodeFacts:
    """What is the same in all manifests of a run."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot_id = ""
    return NodeFacts(cluster, node, boot_id, version("podtap"), os.uname().release)
