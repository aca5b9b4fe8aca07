"""Asks tshark what it calls each packet of the samples, and writes wireshark.tsv: an independent witness for the tests.

tshark knows no interfaces in TCP analysis: it is asked about each observation point on its own.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
KINDS = ("fast_retransmission", "spurious_retransmission", "out_of_order", "keep_alive", "retransmission")
"""Most specific first: tshark sets `retransmission` on fast and spurious ones too."""
TUNNELS = ["-d", "udp.port==8472,vxlan", "-d", "udp.port==6784,vxlan"]


def tshark(path: Path, *arguments: str) -> list[str]:
    command = ["tshark", "-n", "-r", str(path), *TUNNELS, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def observation_points(path: Path) -> list[str]:
    """A display filter for each."""
    names = ("sll.ifindex", "frame.interface_id")
    lines = tshark(path, "-T", "fields", *(part for name in names for part in ("-e", name)))
    values = sorted(set(lines))
    return [" && ".join(f"{n} == {v}" for n, v in zip(names, line.split("\t"), strict=True) if v) for line in values]


def kinds(path: Path) -> dict[int, str]:
    """Frame number -> what Wireshark calls it; the other frames are left out."""
    found = {}
    for point in observation_points(path):
        numbers = [int(line) for line in tshark(path, "-Y", point, "-T", "fields", "-e", "frame.number")]
        with tempfile.NamedTemporaryFile(suffix=".pcapng") as alone:
            tshark(path, "-Y", point, "-w", alone.name)
            fields = [part for kind in KINDS for part in ("-e", f"tcp.analysis.{kind}")]
            for number, line in zip(numbers, tshark(Path(alone.name), "-T", "fields", *fields), strict=True):
                for kind, flag in zip(KINDS, line.split("\t"), strict=True):
                    if flag:
                        found[number] = kind
                        break
    return dict(sorted(found.items()))


if __name__ == "__main__":
    rows = ["sample\tframe_number\twireshark_kind"]
    for sample in sorted(FOLDER.glob("*.pcap*")):
        if sample.suffix != ".py":
            rows += [f"{sample.name}\t{number}\t{kind}" for number, kind in kinds(sample).items()]
    (FOLDER / "wireshark.tsv").write_text("\n".join(rows) + "\n")
