"""What the kernel tells of links, addresses, routes and neighbours, by rtnetlink: no capability is needed.

Written by hand since an agent has 64 MB: pyroute2 takes 23 of them when it is imported, this file less than one.
Numbers are those of linux/rtnetlink.h, if_link.h and neighbour.h; attributes that nobody asks for are stepped over.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

GROUPS: Final = (1, 3, 5, 7, 9, 11)
"""RTNLGRP_LINK, NEIGH (bridge tables too), IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE."""
RECEIVE_BUFFER: Final = 4 << 20
"""Asked for; net.core.rmem_max decides. A storm that does not fit ends in ENOBUFS, and all is asked for again."""
AF_BRIDGE: Final = 7
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_HEADER: Final = struct.Struct("=IHHII")
_REQUEST_DUMP: Final = 0x301
_DUMP_INTERRUPTED: Final = 0x10
_APPEND: Final = 0x800
_ERROR, _DONE = 2, 3
_LINK, _ADDRESS, _ROUTE, _NEIGHBOUR = 16, 20, 24, 28
"""RTM_NEW...; the number after it is RTM_DEL..., the one after that RTM_GET..."""
_SECONDS: Final = 5.0
"""To wait for an answer: the kernel gives it at once."""
_TRIES: Final = 10
"""A listing during which something changed is made again."""

IFF_UP, IFF_LOOPBACK, IFF_RUNNING = 0x1, 0x8, 0x40
_LOCAL_TABLE: Final = 255
_RTN_UNICAST: Final = 1
_RTM_F_CLONED: Final = 0x200
_NUD_NONE, _NUD_INCOMPLETE, _NUD_FAILED, _NUD_PERMANENT = 0x00, 0x01, 0x20, 0x80
_NTF_SELF: Final = 0x02


@dataclass(frozen=True, slots=True)
class Link:
    """An interface."""

    index: int
    name: str
    kind: str
    """IFLA_INFO_KIND; 'loopback', or '' for hardware."""
    mac: str
    mtu: int
    is_enabled: bool
    """IFF_UP: its routes live as long as it is."""
    is_running: bool
    """Enabled, and its carrier is there."""
    master: int | None
    link: int | None
    """The index of a veth's other end, or of what a tunnel runs over."""
    link_netns: int | None
    """The kernel's number of the namespace that `link` is in; None: this one."""
    vni: int | None
    has_xdp: bool
    is_gone: bool = False


@dataclass(frozen=True, slots=True)
class Address:
    """An interface's own address, as 10.0.0.1/24."""

    index: int
    address: str
    is_gone: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """A route to one address (a /32 or /128) out of an interface, without a gateway: what a CNI makes for a pod."""

    index: int
    address: str
    table: int
    priority: int
    is_appended: bool
    """It stands behind another one of the same table and priority."""
    is_gone: bool = False


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Who has an address on an interface: a resolved ARP or NDP entry."""

    index: int
    address: str
    mac: str
    is_gone: bool = False


@dataclass(frozen=True, slots=True)
class Forwarding:
    """A MAC address that a bridge learnt (or was told) behind one of its ports."""

    index: int
    """The port's."""
    bridge: int
    mac: str
    is_gone: bool = False


Message = Link | Address | Route | Neighbour | Forwarding


class Netlink:
    """One socket that hears of changes, and one that asks. It belongs to the namespace in which it is made.

    OSError: there is no rtnetlink here.
    """

    def __init__(self) -> None:
        self.events = _open()
        try:
            # A group for each kind of change; nothing is missed between this and the first listing.
            for group in GROUPS:
                self.events.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
            self.events.setblocking(False)
            self._asking = _open()
        except OSError:
            self.events.close()
            raise
        self._asking.settimeout(_SECONDS)
        self._sequence = 0

    def close(self) -> None:
        self.events.close()
        self._asking.close()

    def changes(self) -> Iterator[Message]:
        """All that came since. OSError ENOBUFS: some of it is lost, everything must be listed again."""
        while True:
            try:
                data = self.events.recv(1 << 16)
            except BlockingIOError:
                return
            yield from (message for *_, message in _messages(data) if message)

    def discard_changes(self) -> None:
        """What is still queued after ENOBUFS: without what was lost, it tells of things that are gone."""
        while True:
            try:
                self.events.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise

    def listing(self) -> Iterator[Message]:
        """Everything there is now, links first."""
        for kind, family in (
            (_LINK, socket.AF_UNSPEC),
            (_ADDRESS, socket.AF_UNSPEC),
            (_ROUTE, socket.AF_INET),
            (_ROUTE, socket.AF_INET6),
            (_NEIGHBOUR, socket.AF_UNSPEC),
            (_NEIGHBOUR, AF_BRIDGE),
        ):
            yield from self._dump(kind, family)

    def _dump(self, kind: int, family: int) -> list[Message]:
        """OSError where links can't be listed; of the rest a kernel may have none (no IPv6, no bridges)."""
        found: list[Message] = []
        for _ in range(_TRIES):
            self._sequence += 1
            body = struct.pack("=B15x", family)  # as large as any request's own header
            header = _HEADER.pack(_HEADER.size + len(body), kind + 2, _REQUEST_DUMP, self._sequence, 0)
            self._asking.send(header + body)
            found, is_whole, error = self._answer()
            if error and kind == _LINK:
                raise OSError(error, os.strerror(error))
            if is_whole:
                break
        return found

    def _answer(self) -> tuple[list[Message], bool, int]:
        """The messages of a listing, whether nothing changed while it was made, and the errno that ended it."""
        found: list[Message] = []
        is_whole = True
        while True:
            data = self._asking.recv(1 << 17)
            for at, (_, kind, flags, sequence, _), message in _messages(data):
                if sequence != self._sequence:
                    continue  # of a listing that was given up
                is_whole = is_whole and not flags & _DUMP_INTERRUPTED
                if kind in (_DONE, _ERROR):
                    return found, is_whole, -struct.unpack_from("=i", data, at + _HEADER.size)[0]
                if message:
                    found.append(message)


def _open() -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    opened.bind((0, 0))
    return opened


def _messages(data: bytes) -> Iterator[tuple[int, tuple[int, int, int, int, int], Message | None]]:
    """Each message's offset, its header (length, type, flags, sequence, port), and what it says if that is of use."""
    at = 0
    while at + _HEADER.size <= len(data):
        header = _HEADER.unpack_from(data, at)
        length, kind, flags, _, _ = header
        if length < _HEADER.size:
            return
        read = _READERS.get(kind - kind % 4) if kind % 4 < 2 else None
        body = memoryview(data)[at + _HEADER.size : at + length]
        yield at, header, read(body, flags, kind % 4 == 1) if read else None
        at += (length + 3) & ~3


def attributes(data: memoryview) -> dict[int, bytes]:
    """Type-length-value, by type; flags in the type are taken away."""
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            break
        found[kind & 0x3FFF] = bytes(data[at + 4 : at + length])
        at += (length + 3) & ~3
    return found


def _link(body: memoryview, flags: int, is_gone: bool) -> Message | None:
    family, hardware, index, state = struct.unpack_from("=BxHiI", body)
    if family == AF_BRIDGE:
        return None  # about a bridge's port, of which a message about the link tells as well
    found = attributes(body[16:])
    info = attributes(memoryview(found.get(18, b"")))  # IFLA_LINKINFO
    kind = _text(info.get(1, b"")) or ("loopback" if state & IFF_LOOPBACK else "")
    details = attributes(memoryview(info.get(2, b"")))
    vni = _number(details.get(1)) if kind in ("vxlan", "geneve") else None
    return Link(
        index=index,
        name=_text(found.get(3, b"")),
        kind=kind,
        mac=_mac(found.get(1, b"")) if hardware in (1, 772) else "",  # Ethernet, loopback
        mtu=_number(found.get(4)) or 0,
        is_enabled=bool(state & IFF_UP),
        is_running=bool(state & IFF_UP and state & IFF_RUNNING),
        master=_number(found.get(10)),
        link=_number(found.get(5)) or None,
        link_netns=_number(found.get(37)),
        vni=vni or None,  # 0: each packet has its own
        has_xdp=bool(attributes(memoryview(found.get(43, b""))).get(2, b"\0")[0]),
        is_gone=is_gone,
    )


def _address(body: memoryview, flags: int, is_gone: bool) -> Message | None:
    family, length, index = struct.unpack_from("=BBxxI", body)
    found = attributes(body[8:])
    own = found.get(2) or found.get(1)  # IFA_LOCAL, else IFA_ADDRESS
    return Address(index, f"{_ip(family, own)}/{length}", is_gone) if own else None


def _route(body: memoryview, flags: int, is_gone: bool) -> Message | None:
    family, length, table, kind, route_flags = struct.unpack_from("=BBxxBxxBI", body)
    if length != (32 if family == socket.AF_INET else 128) or kind != _RTN_UNICAST or route_flags & _RTM_F_CLONED:
        return None
    found = attributes(body[12:])
    index, to = _number(found.get(4)), found.get(1)
    if index is None or to is None or 5 in found or 18 in found or table == _LOCAL_TABLE:
        return None  # it goes by a gateway
    number = _number(found.get(15)) or table
    is_appended = bool(flags & _APPEND)
    return Route(index, _ip(family, to), number, _number(found.get(6)) or 0, is_appended, is_gone)


def _neighbour(body: memoryview, flags: int, is_gone: bool) -> Message | None:
    family, index, state, entry_flags = struct.unpack_from("=BxxxiHB", body)
    found = attributes(body[12:])
    mac = found.get(2, b"")
    if family == AF_BRIDGE:
        bridge = _number(found.get(9))
        is_own = state & _NUD_PERMANENT  # the port's or the bridge's own address
        if len(mac) != 6 or bridge is None or is_own or entry_flags & _NTF_SELF:
            return None
        return Forwarding(index, bridge, _mac(mac), is_gone)
    address = found.get(1)
    if family not in (socket.AF_INET, socket.AF_INET6) or not address:
        return None
    if len(mac) == 6 and mac[0] & 1:
        return None  # a group's address, which nobody has
    is_unknown = state in (_NUD_NONE, _NUD_INCOMPLETE, _NUD_FAILED) or len(mac) != 6
    return Neighbour(index, _ip(family, address), _mac(mac), is_gone or is_unknown)


_READERS: Final[dict[int, Callable[[memoryview, int, bool], Message | None]]] = {
    _LINK: _link,
    _ADDRESS: _address,
    _ROUTE: _route,
    _NEIGHBOUR: _neighbour,
}


def _number(data: bytes | None) -> int | None:
    return int(struct.unpack_from("=I", data)[0]) if data and len(data) >= 4 else None


def _text(data: bytes) -> str:
    return os.fsdecode(data.partition(b"\0")[0])


def _mac(data: bytes) -> str:
    return data.hex(":")


def _ip(family: int, data: bytes) -> str:
    return socket.inet_ntop(family, data)
