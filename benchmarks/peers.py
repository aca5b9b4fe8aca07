"""What podtap is measured against: where each peer comes from, the command that does its whole job, and its own count.

A peer counts only if it read every packet: `counted` finds that number in what it wrote or printed.
"""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import pyarrow.dataset as ds

ROOT: Final = Path(__file__).resolve().parents[1]
VENV: Final = Path(__file__).with_name(".venv-peers")
NOWHERE: Final = "127.0.0.1:9995"
"""Where softflowd sends its flows; run.py listens there and throws them away."""

TSHARK_FIELDS: Final = [
    *("frame.time_epoch", "frame.len", "ip.src", "ip.dst", "udp.srcport", "udp.dstport"),
    *("tcp.srcport", "tcp.dstport", "tcp.flags", "tcp.seq", "tcp.ack", "tcp.len", "tcp.analysis.retransmission"),
    *("dns.id", "dns.qry.name", "dns.flags.rcode", "dns.time"),
]

TENZIR: Final = """
from_file "{capture}" {{ read_pcap }}
packet = decapsulate(this)
this = {{
  timestamp: timestamp, length: original_packet_length,
  src_ip: packet.ip?.src?, dst_ip: packet.ip?.dst?, protocol: packet.ip?.type?,
  src_port: packet.tcp?.src_port? else packet.udp?.src_port?,
  dst_port: packet.tcp?.dst_port? else packet.udp?.dst_port?,
  community_id: packet.community_id?,
}}
to_file "{out}/packets.parquet" {{ write_parquet }}
"""
"""One flat record for every protocol: write_parquet takes no other."""

NFSTREAM: Final = """
import sys
from nfstream import NFStreamer

if __name__ == "__main__":
    NFStreamer(source=sys.argv[1], n_meters=int(sys.argv[3])).to_csv(sys.argv[2] + "/flows.csv")
"""


@dataclass(frozen=True)
class Peer:
    """One program: `command(capture, out, cores)` runs it, `counted(out)` says how many packets it read.

    `counted` raises OSError if the peer wrote nothing.
    """

    name: str
    makes: str
    package: str
    """apt:NAME or pypi:NAME."""
    command: Callable[[Path, Path, int], list[str]]
    counted: Callable[[Path], int]
    slow: bool = False
    """Takes minutes: run less often."""


PODTAP: Final = Peer(
    "podtap",
    "all tables as Parquet",
    "",
    lambda capture, out, cores: [
        *(sys.executable, "-m", "podtap", "analyze", str(capture)),
        *("--lake", f"{out}/lake", "--jobs", str(cores)),
    ],
    lambda out: int(ds.dataset(out / "lake" / "packets", partitioning="hive").count_rows()),
)

PEERS: Final = (
    Peer(
        "nfpcapd",
        "flows",
        "apt:nfdump",
        lambda capture, out, cores: ["nfpcapd", "-r", str(capture), "-w", str(out)],
        lambda out: printed(out, r"Total: Processed: (\d+)"),
    ),
    Peer(
        "softflowd",
        "flows, sent as NetFlow",
        "apt:softflowd",
        # With a control socket it waits for a client before it reads a file; 8192 flows are its default limit.
        lambda capture, out, cores: [
            *("softflowd", "-d", "-r", str(capture), "-n", NOWHERE, "-6", "-m", "10000000"),
            *("-c", "none", "-p", f"{out}/pid"),
        ],
        lambda out: printed(out, r"Packets processed: (\d+)"),
    ),
    Peer(
        "argus",
        "flows",
        "apt:argus-server",
        lambda capture, out, cores: ["argus", "-r", str(capture), "-w", f"{out}/flows.argus"],
        lambda out: said_by(["racount", "-r", f"{out}/flows.argus"], r"sum +\d+ +(\d+)"),
    ),
    Peer(
        "tcptrace",
        "TCP connections as text",
        "apt:tcptrace",
        lambda capture, out, cores: ["tcptrace", "-n", str(capture)],
        lambda out: printed(out, r"(\d+) packets seen"),
    ),
    Peer(
        "tshark",
        f"{len(TSHARK_FIELDS)} fields of TCP, UDP and DNS per packet as text",
        "apt:tshark",
        lambda capture, out, cores: [
            *("tshark", "-n", "-r", str(capture), "-T", "fields"),
            *(part for field in TSHARK_FIELDS for part in ("-e", field)),
        ],
        lambda out: (out / "stdout").read_bytes().count(b"\n"),
        slow=True,
    ),
    Peer(
        "nfstream",
        "flows with protocols as CSV",
        "pypi:nfstream",
        lambda capture, out, cores: [str(VENV / "bin/python"), "-c", NFSTREAM, str(capture), str(out), str(cores)],
        lambda out: packets_of_csv(out / "flows.csv"),
    ),
    Peer(
        "pcaptoparquet",
        "packets as Parquet",
        "pypi:pcaptoparquet",
        lambda capture, out, cores: [
            *(str(VENV / "bin/pcaptoparquet"), "-i", str(capture)),
            *("-o", f"{out}/packets.parquet"),
        ],
        lambda out: int(ds.dataset(out / "packets.parquet").count_rows()),
        slow=True,
    ),
    Peer(
        "tenzir",
        "packets (addresses, ports, community id) as Parquet",
        "pypi:tenzir",
        lambda capture, out, cores: [str(VENV / "bin/tenzir"), TENZIR.format(capture=capture, out=out)],
        lambda out: decoded(out / "packets.parquet", "src_ip"),
    ),
)


def printed(out: Path, pattern: str) -> int:
    """The number that the peer printed; 0 if it did not."""
    text = (out / "stdout").read_text(errors="replace") + (out / "stderr").read_text(errors="replace")
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def said_by(command: list[str], pattern: str) -> int:
    """The number that another command prints about what the peer wrote; 0 if it does not."""
    found = re.search(pattern, subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    return int(found[1]) if found else 0


def decoded(path: Path, column: str) -> int:
    """Rows of a Parquet file in which this column is not null."""
    values = ds.dataset(path).to_table(columns=[column]).column(column)
    return len(values) - values.null_count


def packets_of_csv(path: Path) -> int:
    with path.open(newline="") as rows:
        return sum(int(row["bidirectional_packets"]) for row in csv.DictReader(rows))


@cache
def version(peer: Peer) -> str:
    """The version installed; empty if it is not."""
    kind, _, package = peer.package.partition(":")
    if kind == "apt":
        query = ["dpkg-query", "-W", "-f", "${Version}", package]
    else:
        query = [str(VENV / "bin/python"), "-c", f"from importlib.metadata import version as v; print(v('{package}'))"]
    if not shutil.which(query[0]):
        return ""
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()


def install(peer: Peer) -> str:
    """Make the peer ready to run; what stands in its way otherwise.

    Those of PyPI go into a virtual environment of their own; those of apt are for whoever owns the machine to install.
    """
    kind, _, package = peer.package.partition(":")
    if kind == "apt":
        return "" if version(peer) else f"not installed: apt-get install {package}"
    if not VENV.exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    pip = [str(VENV / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", package]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"pip install {package} failed: {done.stderr.strip().splitlines()[-1]}"
