"""Which packets the socket accepts, as things are now: user's filter, interfaces, scope, podtap's own traffic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from capture import bpf, libpcap
from capture.bpf import Assembly, FilterError
from capture.interfaces import InterfaceTable
from capture.libpcap import Handle, Instruction
from capture.metrics import FILTER_SWAPS, Metrics
from capture.sniffer import ANY, Sniffer, loopback_index

LOOPBACK: Final = "lo"


class Filtering:
    """Makes the socket's program; follow() exchanges it when what it depends on has changed."""

    def __init__(
        self,
        text: str,
        interfaces: Sequence[str],
        *,
        payload_in_kernel: bool,
        scope_file: Path | None,
        own: Sequence[int],
        table: InterfaceTable,
    ) -> None:
        self._text = text
        self._interfaces = interfaces
        self._payload_in_kernel = payload_in_kernel
        self._own = own
        self._table = table
        self._seen: list[int] | None = None
        self.scope_text = ""
        self.problem = ""

    def program(self, handle: Handle) -> Sequence[Instruction]:
        """For this socket. FilterError with libpcap's words where the user's filter is none."""
        assembly = Assembly()
        loopback = loopback_index() if self._interfaces[0] in (ANY, LOOPBACK) or len(self._interfaces) > 1 else None
        self._seen = self._indices()
        bpf.add_interfaces(assembly, loopback, self._seen)
        try:
            user = handle.compile(self._text)
        except libpcap.Error as error:
            raise FilterError(str(error)) from error
        bpf.add_filter(assembly, user, handle.link_type)
        bpf.add_end(assembly)
        return assembly.assemble()

    def follow(self, sniffer: Sniffer, metrics: Metrics) -> None:
        """Call it several times a second."""
        if self._seen != self._indices():
            sniffer.refilter()
            metrics.add(FILTER_SWAPS)

    def _indices(self) -> list[int] | None:
        """Of the interfaces that were asked for by name, of those that are there; None: no need to tell them apart."""
        if len(self._interfaces) < 2:
            return None
        return sorted(self._table.indices(self._interfaces).values())
