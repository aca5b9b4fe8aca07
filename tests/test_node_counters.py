"""Node counters against nstat, ip and conntrack, and on kernels that have less."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from capture import node_counters
from capture.node_counters import read_counters

# ruff: noqa: E501 (files as Linux prints them)
DEV = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 1000 10 0 0 0 0 0 0 1000 10 0 0 0 0 0 0
  eth0: 5000 50 1 2 3 0 0 0 600 6 4 5 6 0 0 0
eth0.7: 5000 50 0 40 0 0 0 0 600 6 0 0 0 0 0 0
"""
# Of Linux 5.4.
CONNTRACK = """entries  searched found new invalid ignore delete delete_list insert insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete search_restart
0000002a  00000000 00000000 00000000 00000005 00000000 00000000 00000000 00000000 0000000b 00000001 00000000 00000000  00000000 00000000 00000000 00000003
0000002a  00000000 00000000 00000000 00000001 00000000 00000000 00000000 00000000 00000001 000000ff 00000000 00000000  00000000 00000000 00000000 00000000
"""
SOFTNET_3_10 = "0000a1b2 00000002 00000003 00000000 00000000 00000000 00000000 00000000 00000000 00000000\n" * 2


@pytest.mark.skipif(not shutil.which("nstat"), reason="needs the package iproute2")
def test_the_same_as_nstat() -> None:
    def nstat() -> dict[str, int]:
        return json.loads(subprocess.check_output(["nstat", "--json", "-a", "-s", "-z"]))["kernel"]  # type: ignore[no-any-return]

    before, found, after = nstat(), read_counters().values, nstat()
    for theirs, ours in node_counters._SNMP.items():
        if theirs != "TcpCurrEstab":  # goes up and down: nstat leaves it out
            assert before[theirs] <= found[ours] <= after[theirs], theirs
    assert sum(before.values()) > 0


@pytest.mark.skipif(not shutil.which("ip"), reason="needs the package iproute2")
def test_the_same_as_ip() -> None:
    links = json.loads(subprocess.check_output(["ip", "-j", "-s", "-s", "link"]))
    found = read_counters().values
    # Of `ip`, missed packets and overruns are apart: the kernel's table counts all of them as dropped.
    dropped = sum(link["stats64"]["rx"]["dropped"] + link["stats64"]["rx"].get("missed_errors", 0) for link in links)
    assert found["nic_rx_dropped"] >= dropped
    assert found["nic_tx_errors"] == sum(link["stats64"]["tx"]["errors"] for link in links)


def proc(tmp_path: Path, **files: str) -> Path:
    for name, text in files.items():
        path = tmp_path / name.replace("__", "/").replace("thread_self", "thread-self")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_an_older_kernels_files(tmp_path: Path) -> None:
    found = read_counters(
        proc(
            tmp_path,
            thread_self__net__dev=DEV,
            thread_self__net__softnet_stat=SOFTNET_3_10,
            thread_self__net__stat__nf_conntrack=CONNTRACK,
            sys__net__netfilter__nf_conntrack_count="42\n",
            sys__net__netfilter__nf_conntrack_max="65536\n",
        )
    ).values
    assert found == {
        "softnet_dropped": 4,
        "softnet_time_squeeze": 6,
        "conntrack_count": 42,
        "conntrack_max": 65536,
        "conntrack_invalid": 6,
        "conntrack_insert_failed": 12,
        "conntrack_drop": 256,
        "conntrack_early_drop": 0,
        "conntrack_search_restart": 3,
        "nic_rx_errors": 1,
        "nic_rx_errors:eth0": 1,
        "nic_rx_dropped": 42,
        "nic_rx_dropped:eth0": 2,
        "nic_rx_dropped:eth0.7": 40,
        "nic_rx_fifo": 3,
        "nic_rx_fifo:eth0": 3,
        "nic_tx_errors": 4,
        "nic_tx_errors:eth0": 4,
        "nic_tx_dropped": 5,
        "nic_tx_dropped:eth0": 5,
        "nic_tx_fifo": 6,
        "nic_tx_fifo:eth0": 6,
    }


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    assert read_counters(tmp_path).values == {}
    (tmp_path / "thread-self/net").mkdir(parents=True)
    for damaged in ("", "x", "Tcp: A B\n", "Tcp: RetransSegs\nTcp: many\n", "\x00\xff"):
        for file in ("snmp", "netstat", "snmp6", "dev", "stat"):
            (tmp_path / "thread-self/net" / file).write_text(damaged, encoding="latin-1")
        assert read_counters(tmp_path).values == {}


def test_one_read_is_cheap() -> None:
    """It is made for each segment: some two milliseconds at most, on a machine that is busy."""
    began = time.thread_time()
    for _ in range(20):
        read_counters()
    assert (time.thread_time() - began) / 20 < 0.005
