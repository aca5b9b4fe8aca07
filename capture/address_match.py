"""Pure: whether a frame is to or from one of some addresses, also inside what tunnels wrap around it.

Looked into: VLAN, MPLS, VXLAN, Geneve, GRE, IPIP and IPv6 in IPv4. ARP counts by what it asks and tells. Not found: the
later fragments of a fragmented tunnel packet, and what the snaplen cut off before its addresses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address
from typing import Final

from capture.errors import UsageError

ETHERNET: Final = 1
RAW: Final = (12, 101)
SLL: Final = 113
SLL2: Final = 276
_VXLAN_PORTS: Final = (4789, 8472, 6784)
"""IANA's, Linux's (Flannel, Cilium) and Weave's."""
_GENEVE_PORT: Final = 6081
_IPV4, _IPV6, _ARP, _MPLS, _ETHERNET_BRIDGING = 0x0800, 0x86DD, 0x0806, 0x8847, 0x6558
_VLANS: Final = (0x8100, 0x88A8, 0x9100)
_IPIP, _UDP, _SIX_IN_FOUR, _GRE = 4, 17, 41, 47
_EXTENSIONS: Final = (0, 43, 60)
"""Hop-by-hop options, routing, destination options: 8 bytes and as many times 8 as they say."""
_FRAGMENT: Final = 44
_DEEPEST: Final = 4
"""Tunnels in tunnels."""


class AddressMatch:
    """`addresses`: IPv4 or IPv6 as text, one at least. UsageError: one is none, or the link type is not known."""

    def __init__(self, addresses: Iterable[str], link_type: int) -> None:
        self._packed = frozenset(map(_packed, addresses))
        if link_type not in (ETHERNET, SLL, SLL2, *RAW):
            raise UsageError(f"packets of link type {link_type} can't be selected by their addresses")
        self._link_type = link_type
        families = [sorted(each for each in self._packed if len(each) == size) for size in (4, 16)]
        # Nearly all frames that have none of the bytes anywhere are passed over without a look at their layers.
        self._somewhere = re.compile(b"|".join(_any_of(family) for family in families if family), re.DOTALL).search

    def matches(self, block: bytes, start: int, end: int) -> bool:
        """Of the frame block[start:end]."""
        if not self._somewhere(block, start, end):
            return False
        try:
            return self._frame(block[start:end])
        except IndexError:  # it ends before it should
            return False

    def _frame(self, frame: bytes) -> bool:
        if self._link_type == ETHERNET:
            return self._ethernet(frame, 0, 0)
        if self._link_type == SLL:
            return self._by_type(_u16(frame, 14), frame, 16, 0)
        if self._link_type == SLL2:
            return self._by_type(_u16(frame, 0), frame, 20, 0)
        return self._ip(frame, 0, 0)

    def _ethernet(self, frame: bytes, at: int, depth: int) -> bool:
        return self._by_type(_u16(frame, at + 12), frame, at + 14, depth)

    def _by_type(self, ethertype: int, frame: bytes, at: int, depth: int) -> bool:
        while ethertype in _VLANS:
            ethertype = _u16(frame, at + 2)
            at += 4
        if ethertype in (_IPV4, _IPV6):
            return self._ip(frame, at, depth)
        if ethertype == _ARP:
            hardware, protocol = frame[at + 4], frame[at + 5]
            sender, target = at + 8 + hardware, at + 8 + 2 * hardware + protocol
            return self._has(frame, sender, protocol) or self._has(frame, target, protocol)
        if ethertype == _MPLS:
            while not frame[at + 2] & 1:  # the bottom of the stack
                at += 4
            return self._ip(frame, at + 4, depth)
        return ethertype == _ETHERNET_BRIDGING and self._ethernet(frame, at, depth)

    def _ip(self, frame: bytes, at: int, depth: int) -> bool:
        version = frame[at] >> 4
        if version == 4:
            if self._has(frame, at + 12, 4) or self._has(frame, at + 16, 4):
                return True
            is_later_fragment = bool(_u16(frame, at + 6) & 0x1FFF)
            return not is_later_fragment and self._inside(frame[at + 9], frame, at + (frame[at] & 15) * 4, depth + 1)
        if version != 6:
            return False
        if self._has(frame, at + 8, 16) or self._has(frame, at + 24, 16):
            return True
        protocol, at = frame[at + 6], at + 40
        while protocol in _EXTENSIONS:
            protocol, at = frame[at], at + 8 + 8 * frame[at + 1]
        if protocol == _FRAGMENT:
            if _u16(frame, at + 2) & 0xFFF8:
                return False
            protocol, at = frame[at], at + 8
        return self._inside(protocol, frame, at, depth + 1)

    def _inside(self, protocol: int, frame: bytes, at: int, depth: int) -> bool:
        """What a tunnel wraps."""
        if depth > _DEEPEST:
            return False
        if protocol in (_IPIP, _SIX_IN_FOUR):
            return self._ip(frame, at, depth)
        if protocol == _UDP:
            port = _u16(frame, at + 2)
            if port in _VXLAN_PORTS:
                return self._ethernet(frame, at + 16, depth)
            if port == _GENEVE_PORT:
                options = (frame[at + 8] & 0x3F) * 4
                return self._by_type(_u16(frame, at + 10), frame, at + 16 + options, depth)
        if protocol == _GRE:
            flags = _u16(frame, at)
            optional = sum(4 for bit in (0x8000, 0x2000, 0x1000) if flags & bit)  # checksum, key, sequence number
            is_known = not flags & 0x4007  # neither source routes, nor a later version
            return is_known and self._by_type(_u16(frame, at + 2), frame, at + 4 + optional, depth)
        return False

    def _has(self, frame: bytes, at: int, size: int) -> bool:
        return frame[at : at + size] in self._packed


def _packed(address: str) -> bytes:
    try:
        parsed = ip_address(address)
    except ValueError:
        raise UsageError(f"'{address}' is not an IP address") from None
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped:
        return parsed.ipv4_mapped.packed
    return parsed.packed


def _u16(frame: bytes, at: int) -> int:
    return frame[at] << 8 | frame[at + 1]


def _any_of(words: list[bytes]) -> bytes:
    """A regular expression for any of some words of one length, that looks at each byte once."""
    if len(words[0]) == 1:
        return b"[" + b"".join(b"\\x%02x" % word[0] for word in sorted(set(words))) + b"]"
    rests: dict[int, list[bytes]] = {}
    for word in words:
        rests.setdefault(word[0], []).append(word[1:])
    branches = [b"\\x%02x" % first + _any_of(rest) for first, rest in rests.items()]
    return branches[0] if len(branches) == 1 else b"(?:" + b"|".join(branches) + b")"
