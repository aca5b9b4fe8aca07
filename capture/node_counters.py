"""What the node's kernel counted: packets dropped and resent, tables that are full. Values since boot."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from capture.contract import Counters

PROC: Final = Path("/proc")
_NETWORK: Final = "thread-self/net"
"""Of the calling thread's network namespace; /proc/net is of the process's."""

_SOFTNET: Final = {1: "softnet_dropped", 2: "softnet_time_squeeze", 10: "softnet_flow_limit"}
"""By column of softnet_stat."""
_CONNTRACK: Final = ("drop", "insert_failed", "early_drop", "invalid", "error", "search_restart", "clash_resolve")
"""Columns of stat/nf_conntrack, one line a CPU."""
_SNMP: Final = {
    "IpInDiscards": "ip_in_discards",
    "IpOutDiscards": "ip_out_discards",
    "IpOutNoRoutes": "ip_out_no_routes",
    "IpInHdrErrors": "ip_in_header_errors",
    "IpInAddrErrors": "ip_in_address_errors",
    "IpForwDatagrams": "ip_forwarded",
    "IpReasmFails": "ip_reassembly_fails",
    "IpFragFails": "ip_fragmentation_fails",
    "TcpInSegs": "tcp_in_segs",
    "TcpOutSegs": "tcp_out_segs",
    "TcpRetransSegs": "tcp_retrans_segs",
    "TcpInErrs": "tcp_in_errs",
    "TcpInCsumErrors": "tcp_in_checksum_errors",
    "TcpOutRsts": "tcp_out_rsts",
    "TcpAttemptFails": "tcp_attempt_fails",
    "TcpEstabResets": "tcp_estab_resets",
    "TcpCurrEstab": "tcp_curr_estab",
    "TcpActiveOpens": "tcp_active_opens",
    "TcpPassiveOpens": "tcp_passive_opens",
    "TcpExtListenOverflows": "tcp_listen_overflows",
    "TcpExtListenDrops": "tcp_listen_drops",
    "TcpExtTCPTimeouts": "tcp_timeouts",
    "TcpExtTCPSynRetrans": "tcp_syn_retrans",
    "TcpExtTCPFastRetrans": "tcp_fast_retrans",
    "TcpExtTCPSlowStartRetrans": "tcp_slow_start_retrans",
    "TcpExtTCPLostRetransmit": "tcp_lost_retransmit",
    "TcpExtTCPLossProbes": "tcp_loss_probes",
    "TcpExtTCPSpuriousRTOs": "tcp_spurious_rtos",
    "TcpExtTCPDSACKRecv": "tcp_dsack_received",
    "TcpExtTCPBacklogDrop": "tcp_backlog_drop",
    "TcpExtTCPRcvQDrop": "tcp_receive_queue_drop",
    "TcpExtTCPReqQFullDrop": "tcp_request_queue_full_drop",
    "TcpExtTCPZeroWindowDrop": "tcp_zero_window_drop",
    "TcpExtTCPOFODrop": "tcp_out_of_order_drop",
    "TcpExtTCPRetransFail": "tcp_retrans_fail",
    "TcpExtTCPMemoryPressures": "tcp_memory_pressures",
    "TcpExtTCPAbortOnMemory": "tcp_abort_on_memory",
    "TcpExtTCPAbortOnTimeout": "tcp_abort_on_timeout",
    "TcpExtPruneCalled": "tcp_prune_called",
    "UdpInDatagrams": "udp_in_datagrams",
    "UdpOutDatagrams": "udp_out_datagrams",
    "UdpInErrors": "udp_in_errors",
    "UdpNoPorts": "udp_no_ports",
    "UdpRcvbufErrors": "udp_receive_buffer_errors",
    "UdpSndbufErrors": "udp_send_buffer_errors",
    "Ip6InDiscards": "ip6_in_discards",
    "Ip6OutDiscards": "ip6_out_discards",
    "Ip6OutNoRoutes": "ip6_out_no_routes",
    "Ip6ReasmFails": "ip6_reassembly_fails",
    "Ip6FragFails": "ip6_fragmentation_fails",
    "Udp6InErrors": "udp6_in_errors",
    "Udp6RcvbufErrors": "udp6_receive_buffer_errors",
    "Udp6SndbufErrors": "udp6_send_buffer_errors",
}
"""Of snmp, netstat and snmp6, by the name that nstat gives them. TCP and UDP are those of the node's own sockets: pods
have their own."""
_DEVICE: Final = {
    2: "nic_rx_errors",
    3: "nic_rx_dropped",
    4: "nic_rx_fifo",
    10: "nic_tx_errors",
    11: "nic_tx_dropped",
    12: "nic_tx_fifo",
}
"""By column of dev, behind the name."""


def read_counters(proc: Path = PROC) -> Counters:
    """All counters there are, of the calling thread's network namespace; a file that is missing leaves its ones out.

    nic_* is the sum over all interfaces; nic_*:<interface> stands there for each at which it is not 0.
    """
    values: dict[str, int] = {}
    for reader in (_softnet, _conntrack, _snmp, _snmp6, _devices):
        try:
            values.update(reader(proc))  # up to where it fails
        except (OSError, ValueError, IndexError):
            continue  # not this kernel's, or not allowed here
    return Counters(time.time_ns(), values)


def _softnet(proc: Path) -> Iterator[tuple[str, int]]:
    """One line a CPU, hexadecimal."""
    rows = [line.split() for line in (proc / _NETWORK / "softnet_stat").read_text().splitlines()]
    for column, name in _SOFTNET.items():
        if rows and all(len(row) > column for row in rows):
            yield name, sum(int(row[column], 16) for row in rows)


def _conntrack(proc: Path) -> Iterator[tuple[str, int]]:
    for name in ("count", "max"):
        yield f"conntrack_{name}", int((proc / f"sys/net/netfilter/nf_conntrack_{name}").read_text())
    head, *rows = (line.split() for line in (proc / _NETWORK / "stat/nf_conntrack").read_text().splitlines())
    for name in _CONNTRACK:
        if name in head:
            column = head.index(name)
            yield f"conntrack_{name}", sum(int(row[column], 16) for row in rows)


def _snmp(proc: Path) -> Iterator[tuple[str, int]]:
    """Two lines a protocol: names, and values."""
    for file in ("snmp", "netstat"):
        lines = [line.split() for line in (proc / _NETWORK / file).read_text().splitlines()]
        for names, values in zip(lines[::2], lines[1::2], strict=False):
            protocol = names[0].rstrip(":")
            for name, value in zip(names[1:], values[1:], strict=False):
                if known := _SNMP.get(protocol + name):
                    yield known, int(value)


def _snmp6(proc: Path) -> Iterator[tuple[str, int]]:
    for line in (proc / _NETWORK / "snmp6").read_text().splitlines():
        name, value = line.split()
        if known := _SNMP.get(name):
            yield known, int(value)


def _devices(proc: Path) -> Iterator[tuple[str, int]]:
    rows = (proc / _NETWORK / "dev").read_text().splitlines()[2:]
    totals = dict.fromkeys(_DEVICE.values(), 0) if rows else {}
    for line in rows:
        interface, _, figures = line.rpartition(":")
        row = figures.split()
        for column, name in _DEVICE.items():
            value = int(row[column])
            totals[name] += value
            if value:
                yield f"{name}:{interface.strip()}", value
    yield from totals.items()
