"""An evidence bundle's head: the list of all that is in it, by whose signature the whole is signed."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Final

from capture.chain import pieces
from capture.contract import BUNDLE, Bundle, BundleFile, BundleNode, Clock, Manifest, sha256, to_json
from capture.recording import COMPRESSED, Segment, link_of
from capture.segment_writer import write_atomically

CHECKSUM: Final = BUNDLE + ".sha256"
"""Of the head, as `sha256sum` writes and checks it: an accident to the head is noticed as well."""
SIGNATURES: Final = (".sig", ".asc", ".sigstore.json", ".bundle", ".pem", ".crt")
"""Files `bundle.json<suffix>` that may be added later: they are signatures, or what belongs to one."""
WORK: Final = ".collecting"
"""Folder of what an unfinished collection has half; it goes when the collection is whole."""
_READ_BYTES: Final = 1 << 20

SIGN_HINT: Final = f"""\
Whoever signs {BUNDLE} has signed all of the bundle. One of:
  ssh-keygen -Y sign -f ~/.ssh/id_ed25519 -n podtap {BUNDLE}
  gpg --armor --detach-sign {BUNDLE}
  cosign sign-blob --bundle {BUNDLE}.sigstore.json {BUNDLE}"""
CHECK_HINT: Final = f"""\
To check a signature, in the bundle's folder, one of:
  ssh-keygen -Y verify -f allowed_signers -I WHO -n podtap -s {BUNDLE}.sig < {BUNDLE}
  gpg --verify {BUNDLE}.asc {BUNDLE}
  cosign verify-blob --bundle {BUNDLE}.sigstore.json --certificate-identity WHO \\
    --certificate-oidc-issuer ISSUER {BUNDLE}"""


@dataclass(frozen=True)
class Request:
    """What a bundle was asked to hold. `asked` is what was typed: the same again goes on where it stopped."""

    since_ns: int
    until_ns: int
    asked: dict[str, str] = field(default_factory=dict)


def is_of_head(path: str) -> bool:
    """The head itself, its checksum and its signatures: they are not in its list."""
    return path in (BUNDLE, CHECKSUM) or (
        path.startswith(BUNDLE) and path.removeprefix(BUNDLE) in SIGNATURES and path != BUNDLE
    )


def entries(folder: Path) -> Iterator[tuple[str, bool]]:
    """All files below a folder, but for WORK: the relative path, and whether it is a plain file (not a link ...)."""
    for parent, folders, names in os.walk(folder):
        here = Path(parent)
        if here == folder and WORK in folders:
            folders.remove(WORK)
        links = [name for name in folders if (here / name).is_symlink()]
        for name in sorted(names + links):
            path = here / name
            yield path.relative_to(folder).as_posix(), stat.S_ISREG(path.lstat().st_mode)
        folders.sort()


def file_sha256(path: Path, told: Callable[[int], None] = lambda size: None) -> str:
    """`told` hears how many bytes were read, piece by piece. OSError as it comes."""
    digest = hashlib.sha256()
    buffer = bytearray(_READ_BYTES)
    with open(path, "rb", buffering=0) as file:
        while read := file.readinto(buffer):
            digest.update(memoryview(buffer)[:read])
            told(read)
    return digest.hexdigest()


class UnreadableError(Exception):
    """Compressed data that can't be decompressed."""


def uncompressed(data: Path, digest: str, told: Callable[[int], None] = lambda size: None) -> tuple[int, str]:
    """Size and SHA-256 of a segment's packets; `digest` is the file's. UnreadableError, OSError."""
    if not data.name.endswith(COMPRESSED):
        return data.stat().st_size, digest
    import zstandard

    found, size = hashlib.sha256(), 0
    try:
        with open(data, "rb") as file:
            reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
            while piece := reader.read(_READ_BYTES):
                found.update(piece)
                size += len(piece)
                told(len(piece))
    except zstandard.ZstdError as error:
        raise UnreadableError(str(error)) from error
    return size, found.hexdigest()


def node_summary(found: list[Segment], cluster: str, node: str, missing: list[str]) -> BundleNode:
    """What a bundle holds of a node, `found` being its segments; complete if nothing is missing."""
    manifests = [segment.manifest for segment in found]
    chain = [link for piece in pieces(map(link_of, found)) for link in piece]
    return BundleNode(
        cluster=cluster,
        node=node,
        complete=not missing,
        segments=len(found),
        packets=sum(each.packets for each in manifests),
        size_bytes=sum(each.size_bytes for each in manifests),
        missing=missing,
        clock=worst_clock(manifests),
        last_manifest_sha256=chain[-1].sha256 if chain else None,
    )


def worst_clock(manifests: list[Manifest]) -> Clock:
    """How far a node's clock could be trusted all the time."""
    known = [each.clock for each in manifests]
    states = [each.synchronised for each in known]
    synchronised = False if False in states else None if None in states or not states else True
    errors = [each.max_error_ns for each in known if each.max_error_ns is not None]
    offsets = [each.offset_ns for each in known if each.offset_ns is not None]
    return Clock(
        synchronised=synchronised,
        max_error_ns=max(errors, default=None),
        offset_ns=max(offsets, key=abs, default=None),
        stepped=any(each.stepped for each in known),
    )


def write_head(
    folder: Path,
    request: Request,
    nodes: list[BundleNode],
    journal_complete: bool,
    created_ns: int,
    versions: dict[str, str],
) -> Bundle:
    """List all that is in the folder, and write it down. Returns what was written."""
    paths = sorted(path for path, _ in entries(folder) if not is_of_head(path))
    files = [BundleFile(path, (folder / path).stat().st_size, file_sha256(folder / path)) for path in paths]
    head = Bundle(
        created_ns=created_ns,
        since_ns=request.since_ns,
        until_ns=request.until_ns,
        nodes=nodes,
        files=files,
        versions=versions | {"podtap": version("podtap"), "python": python_version()},
        selection=request.asked,
        journal_complete=journal_complete,
    )
    content = to_json(head)
    write_atomically(folder / BUNDLE, content)
    write_atomically(folder / CHECKSUM, f"{sha256(content)}  {BUNDLE}\n".encode())
    return head
