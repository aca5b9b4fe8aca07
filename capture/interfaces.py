"""The node's interfaces over time: which there are, and which pods' addresses are behind each of them."""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from capture import log
from capture.contract import Interface
from capture.interface_names import LOOPBACK, OVERLAY, TUNNEL, UPLINK, meaning
from capture.netlink import Address, Forwarding, Link, Message, Neighbour, Netlink, Route

K = TypeVar("K")
V = TypeVar("V")

MOST_CHANGES: Final = 4000
"""Interfaces of the past that are remembered; some 3 MB. A flapping node makes a few hundred a minute."""
MOST_NAMED: Final = 512
"""Addresses, and MACs, that one interface's record names. kube-ipvs0 has one for each service."""
REST_SECONDS: Final = 0.05
"""After a change was worked in. A storm of changes then costs a part of one core, and times are this late at most."""
RETRY_SECONDS: Final = 5.0
_PAIRS: Final = ("veth", "netkit")
_NO_PODS: Final = frozenset({UPLINK, OVERLAY, TUNNEL, LOOPBACK})
"""Behind these are nodes, and thousands of addresses in a large cluster."""
_NO_PODS_KINDS: Final = frozenset({"vxlan", "geneve", "loopback", "ipip", "wireguard", "bond"})
_BRIDGE_KINDS: Final = ("bridge", "openvswitch")
MOST_ENTRIES: Final = 16_384
"""Of each table: more are not remembered, which a pod that makes up MAC addresses can bring about."""


@dataclass
class State:
    """What rtnetlink said so far; pure. The order of messages is the kernel's."""

    links: dict[int, Link] = field(default_factory=dict)
    addresses: dict[int, set[str]] = field(default_factory=dict)
    routes: dict[tuple[str, int, int], int] = field(default_factory=dict)
    """The interface's index, by address, table and priority."""
    neighbours: dict[tuple[int, str], str] = field(default_factory=dict)
    """The MAC address, by interface's index and address."""
    forwarding: dict[tuple[int, str], int] = field(default_factory=dict)
    """The port's index, by bridge's index and MAC address."""

    def apply(self, message: Message) -> bool:
        """Works one message in; whether it told anything new."""
        match message:
            case Link():
                return self._apply_link(message)
            case Address(index, address, is_gone):
                known = self.addresses.setdefault(index, set())
                is_new = (address in known) is is_gone
                (known.discard if is_gone else known.add)(address)
                return is_new
            case Route():
                return self._apply_route(message)
            case Neighbour(index, address, mac, is_gone):
                if not self._may_hold_pods(index):
                    return False
                return _put(self.neighbours, (index, address), None if is_gone else mac)
            case Forwarding(index, bridge, mac, is_gone):
                if not self._may_hold_pods(index):
                    return False
                # A bridge forgets who is silent for minutes. Who was behind a port stays there until the port goes.
                return not is_gone and _put(self.forwarding, (bridge, mac), index)

    def _apply_link(self, link: Link) -> bool:
        before = self.links.get(link.index)
        if link.is_gone:
            self.links.pop(link.index, None)
            self.addresses.pop(link.index, None)
        else:
            self.links[link.index] = link
        if link.is_gone or (before and before.is_enabled and not link.is_enabled):
            # The kernel doesn't tell of the IPv4 routes that go with an interface.
            self.routes = {key: index for key, index in self.routes.items() if index != link.index}
        if link.is_gone:
            self.neighbours = {key: mac for key, mac in self.neighbours.items() if key[0] != link.index}
        if link.is_gone or (before and before.master != link.master):
            self.forwarding = {key: port for key, port in self.forwarding.items() if link.index not in (port, key[0])}
        return before != (None if link.is_gone else link)

    def _apply_route(self, route: Route) -> bool:
        if not self._may_hold_pods(route.index):
            return False
        key = (route.address, route.table, route.priority)
        known = self.routes.get(key)
        if route.is_gone:
            return known == route.index and _put(self.routes, key, None)
        if known is not None and route.is_appended:
            return False  # the first one is used
        return _put(self.routes, key, route.index)

    def _may_hold_pods(self, index: int) -> bool:
        link = self.links.get(index)
        return link is not None and link.kind not in _NO_PODS_KINDS

    def interfaces(self) -> dict[int, Interface]:
        """All interfaces as they are now, by index; since_ns and until_ns are not set."""
        reached, macs = self._reached()
        found = {}
        for index, link in self.links.items():
            master = self.links[link.master].name if link.master in self.links else ""
            role, cni = meaning(link.name, link.kind, master, link.link_netns is not None)
            has_pods = role not in _NO_PODS
            found[index] = Interface(
                index=index,
                name=link.name,
                kind=link.kind,
                role=role,
                cni=cni,
                mac=link.mac,
                mtu=link.mtu,
                up=link.is_running,
                master=link.master,
                peer=link.link if link.kind in _PAIRS else None,
                peer_netns=link.link_netns if link.kind in _PAIRS else None,
                vni=link.vni,
                addresses=sorted(self.addresses.get(index, ()))[:MOST_NAMED],
                reaches=sorted(reached.get(index, ()))[:MOST_NAMED] if has_pods else [],
                reaches_macs=sorted(macs.get(index, ()))[:MOST_NAMED] if has_pods else [],
            )
        return found

    def _reached(self) -> tuple[dict[int, set[str]], dict[int, set[str]]]:
        """Addresses and MAC addresses behind each interface.

        What is behind a bridge is behind one of its ports, or it is gone: neighbours are remembered for long.
        """
        addresses: dict[int, set[str]] = {}
        macs: dict[int, set[str]] = {}
        for (_, mac), port in self.forwarding.items():
            macs.setdefault(port, set()).add(mac)
        for (index, address), mac in self.neighbours.items():
            where = self.forwarding.get((index, mac), index)
            if where in self.links and self.links[where].kind not in _BRIDGE_KINDS:
                macs.setdefault(where, set()).add(mac)
                if not _is_local(address):
                    addresses.setdefault(where, set()).add(address)
        for (address, _, _), index in self.routes.items():
            addresses.setdefault(index, set()).add(address)
        return addresses, macs


class History:
    """Interfaces and how long each was as it was. Pure: told the time."""

    def __init__(self, most: int = MOST_CHANGES) -> None:
        self._now: dict[int, tuple[int, Interface]] = {}
        """By index: since when, and what."""
        self._past: deque[Interface] = deque(maxlen=most)
        self.forgotten_ns = 0
        """What ended before then may be missing."""

    def update(self, interfaces: dict[int, Interface], now_ns: int) -> bool:
        """Whether anything is other than it was."""
        changed = False
        for index in self._now.keys() | interfaces.keys():
            since_ns, was = self._now.get(index, (0, None))
            is_now = interfaces.get(index)
            if was == is_now:
                continue
            changed = True
            if was:
                self._remember(replace(was, since_ns=since_ns, until_ns=now_ns))
                del self._now[index]
            if is_now:
                self._now[index] = (now_ns, is_now)
        return changed

    def now(self) -> list[Interface]:
        """By index; since_ns is set."""
        return [replace(each, since_ns=since_ns) for _, (since_ns, each) in sorted(self._now.items())]

    def during(self, since_ns: int, until_ns: int) -> list[Interface]:
        """All that were there in [since_ns, until_ns), by index and time. Ends beyond it are None."""
        there = (each for each in (*self._past, *self.now()) if _overlaps(each, since_ns, until_ns))
        clipped = (_clip(each, since_ns, until_ns) for each in there)
        return sorted(clipped, key=lambda each: (each.index, each.since_ns or 0))

    def _remember(self, interface: Interface) -> None:
        if len(self._past) == self._past.maxlen:
            self.forgotten_ns = self._past[0].until_ns or 0
        self._past.append(interface)


class InterfaceTable:
    """Follows the interfaces of the network namespace in which start() is called, in one thread.

    table = InterfaceTable()
    table.start()
    table.during(since_ns, until_ns)      # what a manifest holds
    """

    def __init__(self, most_changes: int = MOST_CHANGES, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._history = History(most_changes)
        self._now_ns = now_ns
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._netlink: Netlink
        self._stop_reader, self._stop_writer = -1, -1
        self._state = State()
        self._is_behind = False
        self.generation = 0
        """Grows with every change: a cheap way to ask whether now() is still the same."""
        self.resyncs = 0
        """How often changes came faster than they were read, so that everything was listed again."""

    def start(self) -> None:
        """Returns when the interfaces of now are known. Where the kernel doesn't tell of them, none ever are."""
        try:
            self._netlink = Netlink()
        except OSError as error:
            # As in some sandboxes. Packets can be recorded all the same.
            log.warning("the kernel does not tell of interfaces: they stay without names", error=str(error))
            return
        self._catch_up()
        self._stop_reader, self._stop_writer = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._follow, name="interfaces", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """What is known stays known."""
        if self._thread:
            os.close(self._stop_writer)
            self._thread.join()
            os.close(self._stop_reader)
            self._netlink.close()
            self._thread = None

    def during(self, since_ns: int, until_ns: int) -> list[Interface]:
        """All interfaces as they were in [since_ns, until_ns), one for each change: see contract.Interface."""
        with self._lock:
            if since_ns < self._history.forgotten_ns:
                log.warning("interface changes were forgotten: too many at once", most=MOST_CHANGES)
            return self._history.during(since_ns, until_ns)

    def now(self) -> list[Interface]:
        """By index."""
        with self._lock:
            return self._history.now()

    def indices(self, names: Iterable[str]) -> dict[str, int]:
        """The index of each of these that is there now."""
        wanted = set(names)
        return {each.name: each.index for each in self.now() if each.name in wanted}

    def _follow(self) -> None:
        stopped, changed = select.poll(), select.poll()
        stopped.register(self._stop_reader, select.POLLIN)
        changed.register(self._stop_reader, select.POLLIN)
        changed.register(self._netlink.events, select.POLLIN)
        rest = 0.0
        while not stopped.poll(rest * 1000):
            if self._is_behind:
                rest = self._catch_up()
                continue
            changed.poll()
            try:
                # All that is queued, and then the difference.
                is_new = any([self._state.apply(message) for message in self._netlink.changes()])
                if is_new:
                    self._update()
                rest = REST_SECONDS if is_new else 0.0
            except Exception as error:
                self._is_behind = True
                if not (isinstance(error, OSError) and error.errno == errno.ENOBUFS):
                    log.warning("the interfaces can't be followed: they are listed again", error=repr(error))
                rest = REST_SECONDS

    def _catch_up(self) -> float:
        """Lists everything again; how long to rest then. Whatever the kernel says, the recording goes on."""
        try:
            self._netlink.discard_changes()
            self._list_all()
        except Exception as error:
            log.warning("the interfaces can't be listed: tried again soon", error=repr(error))
            self._is_behind = True
            return RETRY_SECONDS
        self.resyncs += int(self._is_behind)
        self._is_behind = False
        return REST_SECONDS

    def _list_all(self) -> None:
        state = State()
        for message in self._netlink.listing():
            state.apply(message)
        self._state = state
        self._update()

    def _update(self) -> None:
        interfaces = self._state.interfaces()
        with self._lock:
            if self._history.update(interfaces, self._now_ns()):
                self.generation += 1


def _put(table: dict[K, V], key: K, value: V | None) -> bool:
    """Sets it, or takes it away where it is None; whether that changes anything."""
    if table.get(key) == value or (key not in table and len(table) >= MOST_ENTRIES):
        return False
    if value is None:
        del table[key]
    else:
        table[key] = value
    return True


def _is_local(address: str) -> bool:
    """Link-local or multicast: of no use to find a pod by."""
    return address.startswith(("fe80:", "ff", "169.254.", "224.", "239."))


def _overlaps(interface: Interface, since_ns: int, until_ns: int) -> bool:
    began, ended = interface.since_ns, interface.until_ns
    return (began is None or began < until_ns) and (ended is None or ended > since_ns)


def _clip(interface: Interface, since_ns: int, until_ns: int) -> Interface:
    began, ended = interface.since_ns, interface.until_ns
    return replace(
        interface,
        since_ns=began if began is not None and began > since_ns else None,
        until_ns=ended if ended is not None and ended < until_ns else None,
    )
