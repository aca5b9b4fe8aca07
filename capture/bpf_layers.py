"""Pure: the part of a socket's program that walks a packet's layers, into tunnels, too: how much of it is headers, and
whether it is of a pod in the scope.

Classic BPF has two registers, 16 words of memory, and jumps forward only: so there is a copy of the walk for each level
of encapsulation. Every load is preceded by a look at the length, since a load beyond the packet's end drops it. X is
where the layer at hand begins. What is kept:

    Ethernet, VLAN, IPv4 and IPv6 with options and extensions, TCP with options, UDP, SCTP's first chunk header, GRE,
    VXLAN, Geneve: their headers, and those of what is in the tunnel. ARP, neighbour discovery and MLD: whole.
    ICMP errors: what they quote, up to its ports. Other ICMP: 8 bytes.
    DNS (UDP and TCP at DNS_PORTS), in a tunnel or not: whole.
    Fragments but the first: their IP header. What is not known: 16 bytes of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from capture.bpf import (
    AD_PROTOCOL,
    ADD,
    ADD_X,
    AND,
    JEQ,
    JGE,
    JGE_X,
    JSET,
    LD_BYTE_X,
    LD_HALF,
    LD_HALF_X,
    LD_IMM,
    LD_LENGTH,
    LD_MEM,
    LD_WORD_X,
    LDX_IMM,
    LDX_MEM,
    LSH,
    RET_A,
    RSH,
    ST,
    STX,
    SUB_X,
    TAX,
    TXA,
    WHOLE,
    Assembly,
)
from capture.libpcap import LINUX_SLL2

LEVELS: Final = 2
"""A packet, and one in its tunnel."""
DNS_PORTS: Final = (53, 1053, 5353, 8053, 9053)
"""Those at which analysis looks for DNS over TCP, too."""
VXLAN_PORTS: Final = (4789, 8472, 6784)
GENEVE_PORT: Final = 6081
OPAQUE_PORTS: Final = (51820, 51821, 51871, 4500)
"""WireGuard, and ESP in UDP: the first 16 bytes tell that it is, all else is encrypted."""
UNKNOWN_BYTES: Final = 16

_IPV4, _ARP, _VLAN, _QINQ, _IPV6, _TEB = 0x0800, 0x0806, 0x8100, 0x88A8, 0x86DD, 0x6558
_ICMP, _IPIP, _TCP, _UDP, _IPV6_IN_IP, _GRE, _ICMPV6, _SCTP = 1, 4, 6, 17, 41, 47, 58, 132
_ICMP_ERRORS: Final = (3, 4, 5, 11, 12)
_FIRST_WHOLE, _LAST_WHOLE, _MLD_V2 = 130, 137, 143
"""ICMPv6: MLD and neighbour discovery."""
_FRAGMENT: Final = 44
_EXTENSIONS: Final = (0, 43, 60, 135)
"""Hop-by-hop, routing, destination, mobility: their length is at the same place."""
_MOST_EXTENSIONS: Final = 2
_MOST_VLANS: Final = 2

# Words of memory.
_NETWORK, _TRANSPORT, _PROTOCOL, _SIZE, _IN_SCOPE, _IS_ARP = 0, 1, 2, 3, 4, 5
_ADDRESSES: Final = (6, 7)
FREE_WORDS: Final = (8, 9)
"""For a scope's test."""

ScopeTest = Callable[[Assembly, int, Callable[[int], None], str], None]
"""(assembly, IP version, load, label): goes to the label if an address is in the scope, else on with the next step; may
change X. load(n) adds what puts the address' nth word into A; it needs X as it was."""


class Layers:
    """Adds the walk to a program; every path ends at a length, or at `rejected`."""

    def __init__(self, assembly: Assembly, link_type: int, scope: ScopeTest | None, keep: int | None) -> None:
        """`keep`: so many bytes of each packet; None: its headers."""
        self._assembly = assembly
        self._is_ethernet = link_type != LINUX_SLL2
        self._scope = scope
        self._keep = keep
        self._labels = 0

    def add(self) -> None:
        """Ends the program, but for `rejected`."""
        add, label = self._assembly.add, self._assembly.label
        if self._scope:
            add(LD_IMM, 0)
            add(ST, _IN_SCOPE)
        if self._is_ethernet:
            add(LDX_IMM, 0)
            self._assembly.go("ethernet 0")
        else:
            add(LDX_IMM, 0)
            add(STX, _NETWORK)
            add(LD_HALF, AD_PROTOCOL)
            self._assembly.go("network 0")
        for level in range(LEVELS):
            self._ethernet(level)
            self._network(level)
            self._arp(level)
            self._ipv4(level)
            self._ipv6(level)
            self._transport(level)
            self._tcp(level)
            self._udp(level)
            self._icmp(level)
            self._gre(level)
            label(f"unknown {level}")
            self._done(UNKNOWN_BYTES)
            label(f"whole {level}")
            add(LD_IMM, WHOLE)
            self._assembly.go("done")
        label("done")
        self._finish()

    # --- Steps that recur --------------------------------------------------------------------------------------------

    def _new_label(self) -> str:
        self._labels += 1
        return f"step {self._labels}"

    def _need(self, level: int, size: int) -> None:
        """So many bytes are there from X on; else what is there is kept whole: it is less than a header."""
        here = self._new_label()
        self._assembly.add(LD_LENGTH)
        self._assembly.jump(JGE_X, 0, no=f"whole {level}")
        self._assembly.add(SUB_X)
        self._assembly.jump(JGE, size, yes=here, no=f"whole {level}")
        self._assembly.label(here)

    def _done(self, size: int) -> None:
        """Keep so many bytes from X on."""
        self._assembly.add(TXA)
        self._assembly.add(ADD, size)
        self._assembly.go("done")

    def _advance(self, size: int) -> None:
        self._assembly.add(TXA)
        self._assembly.add(ADD, size)
        self._assembly.add(TAX)

    def _finish(self) -> None:
        """A holds the length."""
        if self._keep is not None:
            self._assembly.add(LD_IMM, self._keep)
        if self._scope:
            self._assembly.add(ST, _SIZE)
            self._assembly.add(LD_MEM, _IN_SCOPE)
            self._assembly.jump(JEQ, 0, yes="rejected")
            self._assembly.add(LD_MEM, _SIZE)
        self._assembly.add(RET_A)

    def _look_in_scope(self, level: int, version: int, loads: tuple[Callable[[int], None], ...]) -> None:
        """Remembers whether one of two addresses is in the scope. X is what it was."""
        assert self._scope
        found, ready = self._new_label(), self._new_label()
        if level:
            self._assembly.add(LD_MEM, _IN_SCOPE)
            self._assembly.jump(JEQ, 1, yes=ready)
        for load in loads:
            self._scope(self._assembly, version, load, found)
            self._assembly.add(LDX_MEM, _NETWORK)
        self._assembly.go(ready)
        self._assembly.label(found)
        self._assembly.add(LD_IMM, 1)
        self._assembly.add(ST, _IN_SCOPE)
        self._assembly.add(LDX_MEM, _NETWORK)
        self._assembly.label(ready)

    # --- Layers ------------------------------------------------------------------------------------------------------

    def _ethernet(self, level: int) -> None:
        add = self._assembly.add
        self._assembly.label(f"ethernet {level}")
        self._need(level, 14)
        add(LD_HALF_X, 12)
        add(ST, _PROTOCOL)
        self._advance(14)
        add(STX, _NETWORK)
        add(LD_MEM, _PROTOCOL)

    def _network(self, level: int) -> None:
        """A: the Ethertype; X, and the word _NETWORK: where its header is."""
        jump = self._assembly.jump
        self._assembly.label(f"network {level}")
        for tag in range(_MOST_VLANS + 1):
            self._assembly.label(f"tag {level} {tag}")
            jump(JEQ, _IPV4, yes=f"ipv4 {level}")
            jump(JEQ, _IPV6, yes=f"ipv6 {level}")
            jump(JEQ, _ARP, yes=f"arp {level}")
            if tag == _MOST_VLANS:
                break
            inside = self._new_label()
            jump(JEQ, _VLAN, yes=inside)
            jump(JEQ, _QINQ, no=f"unknown {level}")
            self._assembly.label(inside)
            self._need(level, 4)
            self._assembly.add(LD_HALF_X, 2)
            self._assembly.add(ST, _PROTOCOL)
            self._advance(4)
            self._assembly.add(STX, _NETWORK)
            self._assembly.add(LD_MEM, _PROTOCOL)
        self._assembly.go(f"unknown {level}")

    def _arp(self, level: int) -> None:
        self._assembly.label(f"arp {level}")
        self._need(level, 28)
        if self._scope is None:
            self._assembly.go(f"whole {level}")
            return
        self._remember_ipv4((14, 24), is_arp=1)
        self._assembly.go(f"ipv4 scope {level}")

    def _remember_ipv4(self, offsets: tuple[int, ...], is_arp: int) -> None:
        """ARP's addresses and IPv4's are looked for by the same steps."""
        self._assembly.add(LD_IMM, is_arp)
        self._assembly.add(ST, _IS_ARP)
        for word, offset in zip(_ADDRESSES, offsets, strict=True):
            self._assembly.add(LD_WORD_X, offset)
            self._assembly.add(ST, word)

    def _load_ipv4(self, word: int, _: int) -> None:
        self._assembly.add(LD_MEM, word)

    def _load_ipv6(self, offset: int, word: int) -> None:
        self._assembly.add(LD_WORD_X, offset + 4 * word)

    def _ipv4(self, level: int) -> None:
        add, jump = self._assembly.add, self._assembly.jump
        self._assembly.label(f"ipv4 {level}")
        self._need(level, 20)
        if self._scope:
            self._remember_ipv4((12, 16), is_arp=0)
            self._assembly.label(f"ipv4 scope {level}")
            self._look_in_scope(level, 4, tuple(partial(self._load_ipv4, word) for word in _ADDRESSES))
            add(LD_MEM, _IS_ARP)
            jump(JEQ, 1, yes=f"whole {level}")
        add(LD_BYTE_X, 0)
        add(AND, 0x0F)
        add(LSH, 2)
        jump(JGE, 20, no=f"unknown {level}")
        add(ADD_X)
        add(ST, _TRANSPORT)
        add(LD_BYTE_X, 9)
        add(ST, _PROTOCOL)
        add(LD_HALF_X, 6)
        add(LDX_MEM, _TRANSPORT)
        first = self._new_label()
        jump(JSET, 0x1FFF, no=first)
        self._done(0)
        self._assembly.label(first)
        add(LD_MEM, _PROTOCOL)
        self._assembly.go(f"transport {level}")

    def _ipv6(self, level: int) -> None:
        add, jump = self._assembly.add, self._assembly.jump
        self._assembly.label(f"ipv6 {level}")
        self._need(level, 40)
        if self._scope:
            self._look_in_scope(level, 6, tuple(partial(self._load_ipv6, offset) for offset in (8, 24)))
        add(LD_BYTE_X, 6)
        add(ST, _PROTOCOL)
        self._advance(40)
        for _ in range(_MOST_EXTENSIONS):
            extension, fragment, following = self._new_label(), self._new_label(), self._new_label()
            add(LD_MEM, _PROTOCOL)
            for protocol in _EXTENSIONS:
                jump(JEQ, protocol, yes=extension)
            jump(JEQ, _FRAGMENT, yes=fragment, no=f"transport {level}")
            self._assembly.label(extension)
            self._need(level, 8)
            add(LD_BYTE_X, 0)
            add(ST, _PROTOCOL)
            add(LD_BYTE_X, 1)
            add(ADD, 1)
            add(LSH, 3)
            add(ADD_X)
            add(TAX)
            self._assembly.go(following)
            self._assembly.label(fragment)
            self._need(level, 8)
            add(LD_BYTE_X, 0)
            add(ST, _PROTOCOL)
            add(LD_HALF_X, 2)
            first = self._new_label()
            jump(JSET, 0xFFF8, no=first)
            self._done(8)
            self._assembly.label(first)
            self._advance(8)
            self._assembly.label(following)
        add(LD_MEM, _PROTOCOL)

    def _transport(self, level: int) -> None:
        """A: the protocol; X: where its header is."""
        jump = self._assembly.jump
        self._assembly.label(f"transport {level}")
        jump(JEQ, _TCP, yes=f"tcp {level}")
        jump(JEQ, _UDP, yes=f"udp {level}")
        jump(JEQ, _ICMP, yes=f"icmp {level}")
        jump(JEQ, _ICMPV6, yes=f"icmpv6 {level}")
        jump(JEQ, _SCTP, yes=f"sctp {level}")
        if level + 1 == LEVELS:
            self._assembly.go(f"unknown {level}")
        else:
            jump(JEQ, _GRE, yes=f"gre {level}")
            for protocol, ethertype in ((_IPIP, _IPV4), (_IPV6_IN_IP, _IPV6)):
                other = self._new_label()
                jump(JEQ, protocol, no=other)
                self._assembly.add(STX, _NETWORK)
                self._assembly.add(LD_IMM, ethertype)
                self._assembly.go(f"network {level + 1}")
                self._assembly.label(other)
            self._assembly.go(f"unknown {level}")
        self._assembly.label(f"sctp {level}")
        self._done(28)

    def _tcp(self, level: int) -> None:
        add = self._assembly.add
        self._assembly.label(f"tcp {level}")
        self._need(level, 20)
        for offset in (0, 2):
            add(LD_HALF_X, offset)
            for port in DNS_PORTS:
                self._assembly.jump(JEQ, port, yes=f"whole {level}")
        add(LD_BYTE_X, 12)
        add(AND, 0xF0)
        add(RSH, 2)
        add(ADD_X)
        self._assembly.go("done")

    def _udp(self, level: int) -> None:
        add, jump = self._assembly.add, self._assembly.jump
        opaque, vxlan, geneve, headers = (f"{name} {level}" for name in ("opaque", "vxlan", "geneve", "udp headers"))
        self._assembly.label(f"udp {level}")
        self._need(level, 8)
        for offset in (0, 2):
            add(LD_HALF_X, offset)
            for port in DNS_PORTS:
                jump(JEQ, port, yes=f"whole {level}")
            for port in OPAQUE_PORTS:
                jump(JEQ, port, yes=opaque)
        if level + 1 < LEVELS:
            for port in VXLAN_PORTS:
                jump(JEQ, port, yes=vxlan)
            jump(JEQ, GENEVE_PORT, yes=geneve)
        self._assembly.go(headers)
        self._assembly.label(opaque)
        self._done(8 + UNKNOWN_BYTES)
        if level + 1 < LEVELS:
            self._assembly.label(vxlan)
            self._need(level, 16)
            add(LD_BYTE_X, 8)
            jump(JSET, 0x08, no=headers)
            self._advance(16)
            self._assembly.go(f"ethernet {level + 1}")
            self._assembly.label(geneve)
            self._geneve(level, headers)
        self._assembly.label(headers)
        self._done(8)

    def _geneve(self, level: int, headers: str) -> None:
        add = self._assembly.add
        self._need(level, 16)
        add(LD_BYTE_X, 8)
        self._assembly.jump(JSET, 0xC0, yes=headers)
        add(AND, 0x3F)
        add(LSH, 2)
        add(ADD, 16)
        add(ADD_X)
        add(ST, _SIZE)
        add(LD_HALF_X, 10)
        add(LDX_MEM, _SIZE)
        self._tunnelled(level)

    def _tunnelled(self, level: int) -> None:
        """A: the Ethertype of what is in a tunnel; X: where it begins."""
        self._assembly.add(STX, _NETWORK)
        self._assembly.jump(JEQ, _TEB, yes=f"ethernet {level + 1}", no=f"network {level + 1}")

    def _icmp(self, level: int) -> None:
        add, jump = self._assembly.add, self._assembly.jump
        error, echo = self._new_label(), self._new_label()
        self._assembly.label(f"icmp {level}")
        self._need(level, 9)
        add(LD_BYTE_X, 0)
        for kind in _ICMP_ERRORS:
            jump(JEQ, kind, yes=error)
        self._assembly.go(echo)
        self._assembly.label(error)
        add(LD_BYTE_X, 8)
        add(AND, 0x0F)
        add(LSH, 2)
        add(ADD, 16)
        add(ADD_X)
        self._assembly.go("done")
        self._assembly.label(f"icmpv6 {level}")
        self._need(level, 8)
        add(LD_BYTE_X, 0)
        error = self._new_label()
        jump(JGE, 128, no=error)
        jump(JEQ, _MLD_V2, yes=f"whole {level}")
        jump(JGE, _FIRST_WHOLE, no=echo)
        jump(JGE, _LAST_WHOLE + 1, no=f"whole {level}")
        self._assembly.label(echo)
        self._done(8)
        self._assembly.label(error)
        self._done(8 + 40 + 8)

    def _gre(self, level: int) -> None:
        """The basic header, and four bytes for each of checksum, key and sequence number."""
        if level + 1 == LEVELS:
            return
        add = self._assembly.add
        self._assembly.label(f"gre {level}")
        self._need(level, 4)
        add(STX, _TRANSPORT)
        add(LD_HALF_X, 0)
        self._assembly.jump(JSET, 0x4007, yes=f"unknown {level}")
        add(LDX_IMM, 4)
        for flag, shift in ((0x8000, 13), (0x2000, 11), (0x1000, 10)):
            add(STX, _SIZE)
            add(LDX_MEM, _TRANSPORT)
            add(LD_HALF_X, 0)
            add(AND, flag)
            add(RSH, shift)
            add(LDX_MEM, _SIZE)
            add(ADD_X)
            add(TAX)
        add(LDX_MEM, _TRANSPORT)
        add(ADD_X)
        add(ST, _SIZE)
        add(LD_HALF_X, 2)
        add(LDX_MEM, _SIZE)
        self._tunnelled(level)
