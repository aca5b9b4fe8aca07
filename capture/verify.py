"""Whether an evidence bundle is as it was written: each byte, each file, each link of each node's chain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from capture.bundle import (
    CHECKSUM,
    SIGNATURES,
    WORK,
    UnreadableError,
    entries,
    file_sha256,
    is_of_head,
    node_summary,
    uncompressed,
)
from capture.chain import Link, pieces
from capture.contract import (
    BUNDLE,
    TOMBSTONES,
    Bundle,
    BundleNode,
    ContractError,
    DerivedFrom,
    Manifest,
    from_json,
    node_folder,
    sha256,
)
from capture.recording import Segment, link_of, node_folders, segments
from capture.tombstones import read_tombstones

Tell = Callable[[int], None]


@dataclass(frozen=True)
class Problem:
    """Something that is not as it was written."""

    path: str
    what: str


@dataclass
class Verdict:
    """All that was found; the bundle is as it was written if there are no problems."""

    problems: list[Problem] = field(default_factory=list)
    head: Bundle | None = None
    signatures: list[str] = field(default_factory=list)
    """Files that look like one; they are not checked here."""
    begins: list[str] = field(default_factory=list)
    """A sentence for each node whose chain goes back further than the bundle."""
    unfinished: bool = False


def verify(folder: Path, told: Tell = lambda size: None) -> Verdict:
    """`told` hears of the bytes that were read. PodtapError or OSError only where the folder can't be read at all."""
    verdict = Verdict(unfinished=(folder / WORK).exists())
    found = dict(entries(folder))
    verdict.signatures = sorted(path for path in found if path.removeprefix(BUNDLE) in SIGNATURES)
    verdict.problems = [
        Problem(path, "is a link or a device, not a file") for path, is_plain in found.items() if not is_plain
    ]
    if verdict.problems:  # nothing is read through them, or waits at them
        return verdict
    verdict.head = _head(folder, verdict.problems)
    if verdict.head is None:
        return verdict
    verdict.problems += _files(folder, verdict.head, set(found), told)
    bad = {problem.path for problem in verdict.problems}
    hashes = {file.path: file.sha256 for file in verdict.head.files if file.path not in bad}
    listed = {node_folder(node.cluster, node.node).as_posix(): node for node in verdict.head.nodes}
    for node in node_folders(folder):
        name = node.relative_to(folder).as_posix()
        verdict.problems += _node(folder, node, listed.pop(name, None), hashes, verdict.begins, told)
    verdict.problems += [
        Problem(name, f"the head counts {node.segments:,} segments of this node, and none is here")
        for name, node in listed.items()
        if node.segments
    ]
    return verdict


def _head(folder: Path, problems: list[Problem]) -> Bundle | None:
    try:
        content = (folder / BUNDLE).read_bytes()
    except FileNotFoundError:
        unfinished = ": the collection did not come to its end; run it again" if (folder / WORK).exists() else ""
        unknown = (
            "" if unfinished or any(folder.iterdir()) else ": this folder is empty; podtap collect -o makes a bundle"
        )
        problems.append(Problem(BUNDLE, f"the head is missing{unfinished or unknown}"))
        return None
    expected = f"{sha256(content)}  {BUNDLE}\n".encode()
    try:
        if (folder / CHECKSUM).read_bytes() != expected:
            problems.append(Problem(BUNDLE, f"is not what {CHECKSUM} says: one of the two was changed"))
    except FileNotFoundError:
        problems.append(Problem(CHECKSUM, "is missing"))
    try:
        return from_json(Bundle, content)
    except ContractError as error:
        problems.append(Problem(BUNDLE, str(error)))
        return None


def _files(folder: Path, head: Bundle, found: set[str], told: Tell) -> Iterator[Problem]:
    """Each file against the head's list, and the other way round."""
    listed = {file.path: file for file in head.files}
    if len(listed) != len(head.files):
        yield Problem(BUNDLE, "lists a file twice")
    for path in found:
        if path not in listed and not is_of_head(path):
            yield Problem(path, "is not in the head's list: it was added")
    for path, file in listed.items():
        if path not in found:
            yield Problem(path, "is in the head's list, but not here: it was deleted")
            continue
        size = (folder / path).stat().st_size
        if size != file.size_bytes:
            yield Problem(path, f"has {size:,} bytes, and the head says {file.size_bytes:,}: it was changed")
        elif file_sha256(folder / path, told) != file.sha256:
            yield Problem(path, "is not what the head's SHA-256 says: it was changed")


def _node(
    root: Path, folder: Path, listed: BundleNode | None, hashes: dict[str, str], begins: list[str], told: Tell
) -> Iterator[Problem]:
    name = folder.relative_to(root).as_posix()
    if listed is None:
        yield Problem(name, "is a node that the head does not know")
        return
    try:
        found = list(segments(folder))
        for segment in found:
            yield from _segment(root, segment, listed, hashes, told)
    except ContractError as error:
        yield Problem(name, str(error))
        return
    buried, damage = read_tombstones(folder)
    yield from (Problem(f"{name}/{TOMBSTONES}", each) for each in damage)
    links = {link_of(segment) for segment in found}
    yield from _chain(
        name, links, {Link(each.stem, each.manifest_sha256, each.previous_sha256) for each in buried}, begins
    )
    ours = node_summary(found, listed.cluster, listed.node, listed.missing)
    for what in ("segments", "packets", "size_bytes", "last_manifest_sha256"):
        if getattr(ours, what) != getattr(listed, what):
            yield Problem(name, f"has {what} {getattr(ours, what)}, and the head says {getattr(listed, what)}")


def _chain(name: str, links: set[Link], buried: set[Link], begins: list[str]) -> Iterator[Problem]:
    """A node's segments are one piece of chain, tombstones standing for what was evicted between them."""
    chain = [piece for piece in pieces(links | buried) if links.intersection(piece)]
    for before, piece in pairwise(chain):
        named, there = _short(piece[0].previous_sha256), _short(before[-1].sha256)
        yield Problem(
            f"{name}/{piece[0].stem}",
            f"does not follow {before[-1].stem} in the chain: it names {named} as the manifest before it, and that one "
            f"is {there}. One between them is missing, or one of them was exchanged",
        )
    if chain and chain[0][0].previous_sha256:
        begins.append(f"{name}: the chain goes on before {chain[0][0].stem}")


def _segment(root: Path, segment: Segment, node: BundleNode, hashes: dict[str, str], told: Tell) -> Iterator[Problem]:
    manifest = segment.manifest
    path = f"{segment.folder.relative_to(root).as_posix()}/{manifest.stem}.json"
    if (manifest.cluster, manifest.node) != (node.cluster, node.node):
        yield Problem(path, f"is of node {manifest.node} of cluster {manifest.cluster}: it belongs elsewhere")
    data = segment.folder / f"{manifest.stem}{''.join(segment.data.suffixes)}"
    if data != segment.data:
        yield Problem(
            segment.data.relative_to(root).as_posix(), f"has the manifest of {manifest.stem}: they were moved"
        )
    elif not data.exists():
        yield Problem(data.relative_to(root).as_posix(), "is missing, but its manifest is here")
    elif (name := data.relative_to(root).as_posix()) in hashes:
        yield from _data(name, data, manifest, hashes[name], told)
    if (manifest.derived_from is None) != (segment.chain_bytes is None):
        yield Problem(
            path, "a part that was cut out, and the manifest that it was cut from, go together: one is missing"
        )
    elif manifest.derived_from and segment.chain_bytes is not None:
        yield from _derivation(path, manifest, manifest.derived_from, segment.chain_bytes)


def _data(name: str, data: Path, manifest: Manifest, digest: str, told: Tell) -> Iterator[Problem]:
    """The packets against their manifest: a head that was made anew does not hide that they were changed.

    `digest`: of the file as it lies there, which is known already.
    """
    try:
        size, digest = uncompressed(data, digest, told)
    except UnreadableError as error:
        yield Problem(name, f"can't be read: {error}")
        return
    if (size, digest) != (manifest.size_bytes, manifest.sha256):
        yield Problem(name, f"is not what its manifest says: {size:,} bytes with SHA-256 {_short(digest)}")


def _derivation(path: str, manifest: Manifest, derived: DerivedFrom, chain: bytes) -> Iterator[Problem]:
    whole = from_json(Manifest, chain)
    if sha256(chain) != derived.manifest_sha256:
        yield Problem(path, "was cut out of another segment than the manifest beside it tells of")
    ours: tuple[Any, ...] = (manifest.stem, manifest.cluster, manifest.node, manifest.link_type)
    if ours != (whole.stem, whole.cluster, whole.node, whole.link_type):
        yield Problem(path, "and the manifest that it was cut from speak of different segments")
    if (derived.sha256, derived.packets) != (whole.sha256, whole.packets) or manifest.packets > whole.packets:
        yield Problem(path, "and the manifest that it was cut from do not agree about the packets")


def _short(digest: str | None) -> str:
    return f"{digest[:12]}..." if digest else "none"
