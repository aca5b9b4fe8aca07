"""Dictionary indexes, hexadecimal ids and community ids against numpy, Python and the community's own package."""

from __future__ import annotations

import ipaddress
import random

import communityid
import numpy as np
import pytest

from analysis import columns
from analysis.accounts_kernels import ACCOUNT
from analysis.columns_kernels import number_values, write_community_ids

pytestmark = pytest.mark.kernel

V4_MAPPED = 0xFFFF << 32


def halves(address: str) -> tuple[int, int]:
    ip = ipaddress.ip_address(address)
    number = int(ip) if ip.version == 6 else V4_MAPPED | int(ip)
    return number >> 64, number & (1 << 64) - 1


Tuple = tuple[int, str, int, str, int]
"""Protocol, orig, its port, resp, its port."""


def community_ids(flows: list[Tuple], *, one_way: bool = False) -> list[str]:
    accounts = np.zeros(len(flows), ACCOUNT)
    for account, (protocol, orig, orig_port, resp, resp_port) in zip(accounts, flows, strict=True):
        account["protocol"] = protocol
        account["orig_hi"], account["orig_lo"] = halves(orig)
        account["resp_hi"], account["resp_lo"] = halves(resp)
        account["orig_port"], account["resp_port"] = orig_port, resp_port
        account["has_ports"] = protocol in (1, 6, 17, 58, 132)
    text = np.empty(30 * len(flows), np.uint8)
    used, numbers = np.full(64, 255, np.uint8), np.full(106, -1)
    write_community_ids(accounts, np.full(len(flows), one_way), text, used, numbers)
    return [text[at : at + 30].tobytes().decode() for at in range(0, len(text), 30)]


def community_id(*flow: int | str, one_way: bool = False) -> str:
    (text,) = community_ids([flow], one_way=one_way)  # type: ignore[list-item]
    return text


@pytest.mark.parametrize(
    ("flow", "expected"),
    [
        ((6, "128.232.110.120", 34855, "66.35.250.204", 80), "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
        ((6, "66.35.250.204", 80, "128.232.110.120", 34855), "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
        ((17, "192.168.1.52", 54585, "8.8.8.8", 53), "1:d/FP5EW3wiY1vCndhwleRRKHowQ="),
    ],
)
def test_a_community_id_is_the_specifications(flow: tuple[int, str, int, str, int], expected: str) -> None:
    assert community_id(*flow) == expected


def test_community_ids_are_those_of_the_communitys_package() -> None:
    choose = random.Random(4)
    flows: list[Tuple] = []
    for _ in range(60):
        v6 = choose.random() < 0.5
        orig, resp = (str(ipaddress.ip_address(choose.randbytes(16 if v6 else 4))) for _ in range(2))
        flows.append((choose.choice([6, 17, 132]), orig, choose.randrange(65536), resp, choose.randrange(65536)))
    assert community_ids(flows) == [reference_id(flow) for flow in flows]


@pytest.mark.parametrize(
    "flow",
    [
        (6, "10.0.0.1", 2, "10.0.0.1", 1),
        (6, "10.0.0.1", 1, "10.0.0.1", 2),
        (17, "::1", 53, "::2", 40000),
        (17, "2001:db8::ffff:a00:1", 53, "2001:db8::ffff:a00:2", 40000),
        (17, "2001:db8::2", 53, "2001:db8::1", 40000),
        (47, "10.0.0.2", 7, "10.0.0.1", 8),
    ],
    ids=str,
)
def test_community_ids_of_odd_ends(flow: Tuple) -> None:
    """One host with itself, IPv6 that looks like IPv4, no ports (what stands in their place does not count)."""
    assert community_ids([flow]) == [reference_id(flow)]


def reference_id(flow: Tuple) -> str:
    protocol, orig, orig_port, resp, resp_port = flow
    ports = (orig_port, resp_port) if protocol != 47 else ()
    text: str = communityid.CommunityID().calc(communityid.FlowTuple(protocol, orig, resp, *ports))
    return text


@pytest.mark.parametrize(
    ("kind", "code_or_counterpart", "one_way"), [(8, 0, False), (0, 8, False), (3, 1, True), (11, 0, True)]
)
def test_icmp_types_take_the_place_of_ports(kind: int, code_or_counterpart: int, one_way: bool) -> None:
    reference = communityid.CommunityID()
    code = code_or_counterpart if one_way else 0
    expected = reference.calc(communityid.FlowTuple.make_icmp("192.168.0.89", "192.168.0.1", kind, code))
    assert community_id(1, "192.168.0.89", kind, "192.168.0.1", code_or_counterpart, one_way=one_way) == expected


def test_distinct_values_are_numbered_as_they_turn_up() -> None:
    choose = np.random.default_rng(1)
    high, low = choose.integers(0, 3, 500).astype(np.uint64), choose.integers(0, 40, 500).astype(np.uint64)
    index, firsts = columns.distinct(high, low)
    seen: dict[tuple[int, int], int] = {}
    expected = [seen.setdefault(pair, len(seen)) for pair in zip(high.tolist(), low.tolist(), strict=True)]
    assert index.tolist() == expected
    assert [(high[i], low[i]) for i in firsts] == list(seen)


def test_values_that_share_a_place_in_the_table_stay_apart() -> None:
    """A table that is nearly full, of pairs of which one half is the same: most look at others' places."""
    choose = np.random.default_rng(2)
    for seed in range(20):
        high, low = choose.integers(0, 8, 200).astype(np.uint64), choose.integers(0, 7, 200).astype(np.uint64)
        high = high * np.uint64(seed + 1)
        index, firsts = np.empty(200, np.int32), np.empty(200, np.int64)
        with np.errstate(over="ignore"):
            found = number_values(high, low, np.full(64, -1, np.int32), index, firsts)
        seen: dict[tuple[int, int], int] = {}
        assert index.tolist() == [
            seen.setdefault(pair, len(seen)) for pair in zip(high.tolist(), low.tolist(), strict=True)
        ]
        assert found == len(seen)


def test_ids_are_sixteen_hexadecimal_digits() -> None:
    values = np.array([0, 1, 0xFEDCBA9876543210, (1 << 64) - 1], np.uint64)
    assert columns.uid_text(values).to_pylist() == [f"{value:016x}" for value in values.tolist()]
