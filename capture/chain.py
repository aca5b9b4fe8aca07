"""Pure: the chain of a node's manifests and tombstones, each holding the hash of the one before it.

Links are found by their hashes. Names are in the same order, but for what was salvaged late.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from capture.contract import Tombstone, parse_stem, stem


@dataclass(frozen=True, slots=True)
class Link:
    """A manifest, or a tombstone: then `previous_sha256` is of the first that it stands for."""

    stem: str
    sha256: str
    previous_sha256: str | None


def pieces(links: Iterable[Link]) -> list[list[Link]]:
    """The links in order, as whole pieces of chain, oldest first: a chain without a fault is one piece.

    A second link with the same previous one (an edited manifest beside the tombstone of the true one, say) begins a
    piece of its own.
    """
    ordered = sorted(set(links), key=_order)
    known = {link.sha256 for link in ordered}
    following: dict[str, list[Link]] = {}
    beginnings: list[Link] = []
    for each in ordered:
        if each.previous_sha256 in known:
            following.setdefault(each.previous_sha256 or "", []).append(each)
        else:
            beginnings.append(each)
    found: list[list[Link]] = []
    used: set[Link] = set()
    for first in [*beginnings, *ordered]:  # the second: what is left of forks, and circles that only an editor can make
        piece: list[Link] = []
        link: Link | None = first
        while link and link not in used:
            used.add(link)
            piece.append(link)
            link = next((each for each in following.get(link.sha256, []) if each not in used), None)
        if piece:
            found.append(piece)
    return sorted(found, key=lambda piece: _order(piece[0]))


def head(links: Iterable[Link], last: Link | None = None) -> Link | None:
    """The link that the next manifest has to name.

    `last`: the end as it was known before, if it was. Where it differs from the end that is there, of the same number,
    somebody edited that; the next manifest names the true one, and so the edit can be seen.
    """
    newest = max((piece[-1] for piece in pieces(links)), key=_order, default=None)
    if newest and last and _order(newest)[0] == _order(last)[0]:
        return last
    return newest


def missing(links: Iterable[Link], last: Link | None, now_ns: int, remembered: int = 1) -> list[Tombstone]:
    """A tombstone for each place where manifests are gone, of which only the hash in the next one is left.

    `last` as for head. Of what is lost the name is one between its neighbours', and `segments` counts the numbers that
    are missing between them. Where none is missing one of the neighbours was edited: that is not healed. Where nothing
    at all is left, `last` stands for as many as are `remembered`.
    """
    chain = pieces(links)
    known = {link.sha256 for piece in chain for link in piece}
    lost: list[Tombstone] = []
    before: Link | None = None
    for piece in chain:
        first = piece[0]
        start_ns, seq = parse_stem(first.stem) or (1, 1)
        count = seq - 1 - _order(before)[0] if before else 1
        if first.previous_sha256 and first.previous_sha256 not in known and count > 0:
            name = stem(max(start_ns - 1, 0), max(seq - 1, 0))
            previous = before.sha256 if before else None
            lost.append(Tombstone(name, first.previous_sha256, now_ns, "lost", previous, segments=count))
        before = piece[-1]
    if last and last.sha256 not in known:
        count = _order(last)[0] - _order(before)[0] if before else max(1, remembered)
        previous = before.sha256 if before else last.previous_sha256
        if count > 0:
            lost.append(Tombstone(last.stem, last.sha256, now_ns, "lost", previous, segments=count))
    return lost


def _order(link: Link) -> tuple[int, int, str]:
    """By number: seq counts up over restarts, whatever the clock does."""
    start_ns, seq = parse_stem(link.stem) or (0, 0)
    return seq, start_ns, link.sha256
