"""Which packets the socket accepts, as things are now: user's filter, interfaces, scope, podtap's own traffic.

Own traffic, left out unless asked for, is TCP whose end on this node is known to be podtap's: the metrics' endpoint,
and what the scope's file lists as the sidecar's own connections. What `podtap collect` carries home is not: that is the
kubelet's connection, which it shares with others.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from capture import bpf, libpcap, log
from capture.address_match import AddressMatch
from capture.bpf import SLL2_BYTES, Assembly, FilterError
from capture.bpf_layers import Layers
from capture.bpf_scope import scope_test
from capture.endpoint import split_address
from capture.interfaces import InterfaceTable
from capture.libpcap import LINUX_SLL2, MOST_SNAPLEN, Handle, Instruction
from capture.metrics import FILTER_SWAPS, Metrics
from capture.scope_file import Scope, ScopeFile
from capture.sniffer import ANY, Keep, Sniffer, loopback_index

LOOPBACK: Final = "lo"
HEADERS_BYTES: Final = 128
MOST_OWN_ADDRESSES: Final = 64
"""Of the node, that stand in the filter for an endpoint at all of them."""


@dataclass(frozen=True)
class Wanted:
    """What was asked for."""

    filter: str = ""
    interfaces: tuple[str, ...] = (ANY,)
    headers_only: bool = True
    snaplen: int = MOST_SNAPLEN
    scope_file: Path | None = None
    own_endpoint: str = ""
    """Address and port of the metrics; '': none, or its packets are wanted, too."""
    include_own: bool = False


@dataclass(frozen=True)
class _Situation:
    """All that the program depends on and that changes."""

    indices: tuple[int, ...] | None
    """Of the interfaces that were asked for, those that are there; None: there is no need to tell them apart."""
    own: tuple[str, ...]
    """Own ends of connections: filter expressions."""
    scope: Scope | None
    """None: all pods."""


class Filtering:
    """Makes the socket's program; follow() exchanges it when what it depends on has changed."""

    def __init__(self, wanted: Wanted, table: InterfaceTable) -> None:
        self._wanted = wanted
        self._table = table
        self._scope_file = ScopeFile(wanted.scope_file) if wanted.scope_file else None
        self._tried: _Situation | None = None
        self._problem = ""

    @property
    def problem(self) -> str:
        """Why not all is recorded that should be; '': it is."""
        return self._problem or (self._scope_file.problem if self._scope_file else "")

    @property
    def scope_text(self) -> str:
        """For manifests."""
        return self._scope_file.scope.text if self._scope_file else ""

    def program(self, handle: Handle) -> Sequence[Instruction]:
        """For this socket. FilterError with libpcap's words where the user's filter is none."""
        self._tried = self._situation()
        return program(handle, self._wanted, self._tried.indices, self._tried.own, self._tried.scope)

    def follow(self, sniffer: Sniffer, metrics: Metrics) -> None:
        """Call it several times a second. What can't be exchanged is said, and the former filter stays."""
        if not sniffer.is_open or self._tried == self._situation():
            return  # a socket that is opened later gets the program of then
        try:
            scope = self._scope_file.scope if self._scope_file else None
            keep = in_scope(scope.addresses, sniffer.link_type) if scope else None
            sniffer.refilter(keep, self._between)
            self._problem = ""
        except (OSError, FilterError) as error:
            self._problem = f"the filter can't follow: {error}"
            log.error("the filter can't follow a change, the former one stays", error=str(error))
            return
        metrics.add(FILTER_SWAPS)
        log.info("the filter was exchanged", generation=scope.generation if scope else None)

    def _between(self, handle: Handle) -> Sequence[Instruction]:
        """For the moment between two: all pods, and of each packet what its headers usually take."""
        return program(handle, replace(self._wanted, headers_only=False, snaplen=HEADERS_BYTES), self._indices())

    def _indices(self) -> tuple[int, ...] | None:
        if len(self._wanted.interfaces) < 2:
            return None
        return tuple(sorted(self._table.indices(self._wanted.interfaces).values()))

    def _situation(self) -> _Situation:
        scope = self._scope_file.read() if self._scope_file else None
        return _Situation(self._indices(), self._own(scope), scope)

    def _own(self, scope: Scope | None) -> tuple[str, ...]:
        if self._wanted.include_own:
            return ()
        ends = list(scope.own_connections if scope else ())
        if self._wanted.own_endpoint:
            host, port = split_address(self._wanted.own_endpoint)
            hosts = _addresses(self._table) if ipaddress.ip_address(host).is_unspecified else [host]
            ends += [(host, port) for host in hosts]
        return tuple(
            f"({way} host {host} and {way} port {port})" for host, port in sorted(set(ends)) for way in ("src", "dst")
        )


def in_scope(addresses: Sequence[str], link_type: int) -> Keep:
    """For packets that an earlier filter let in."""
    if not addresses:
        return lambda frame: False
    match = AddressMatch(addresses, link_type)
    return lambda frame: match.matches(frame, 0, len(frame))


def program(
    handle: Handle,
    wanted: Wanted,
    indices: tuple[int, ...] | None = None,
    own: Sequence[str] = (),
    scope: Scope | None = None,
) -> list[Instruction]:
    """A socket's program. FilterError with libpcap's words where the filter is none, or where all is too long."""
    assembly = Assembly()
    has_loopback = handle.link_type == LINUX_SLL2 or wanted.interfaces == (LOOPBACK,)
    bpf.add_interfaces(assembly, loopback_index() if has_loopback else None, indices)
    try:
        user = handle.compile(wanted.filter)
        if own:
            mine = f"not (tcp and ({' or '.join(own)}))"
            user = handle.compile(f"({wanted.filter}) and {mine}" if wanted.filter.strip() else mine)
    except libpcap.Error as error:
        raise FilterError(str(error)) from error
    bpf.add_filter(assembly, user, handle.link_type)
    keep = None if wanted.headers_only else wanted.snaplen
    if keep is not None and keep < MOST_SNAPLEN and handle.link_type == LINUX_SLL2:
        keep = max(1, keep - SLL2_BYTES)
    if scope is None and keep is not None:
        bpf.add_end(assembly, keep)
    else:
        Layers(assembly, handle.link_type, scope_test(scope.addresses) if scope else None, keep).add()
        bpf.add_rejected(assembly)
    return assembly.assemble()


def _addresses(table: InterfaceTable) -> list[str]:
    found = {address.partition("/")[0] for each in table.now() for address in each.addresses if each.kind != "dummy"}
    return sorted(found)[:MOST_OWN_ADDRESSES]
