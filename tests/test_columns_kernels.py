"""Dictionary indexes, hexadecimal ids and community ids against numpy, Python and the community's own package."""

from __future__ import annotations

import ipaddress
import random

import communityid
import numpy as np
import pytest

from analysis import columns
from analysis.accounts_kernels import ACCOUNT
from analysis.columns_kernels import write_community_ids

pytestmark = pytest.mark.kernel

V4_MAPPED = 0xFFFF << 32


def halves(address: str) -> tuple[int, int]:
    ip = ipaddress.ip_address(address)
    number = int(ip) if ip.version == 6 else V4_MAPPED | int(ip)
    return number >> 64, number & (1 << 64) - 1


def community_id(protocol: int, orig: str, orig_port: int, resp: str, resp_port: int, *, one_way: bool = False) -> str:
    flow = np.zeros(1, ACCOUNT)
    flow["protocol"] = protocol
    flow["orig_hi"], flow["orig_lo"] = halves(orig)
    flow["resp_hi"], flow["resp_lo"] = halves(resp)
    flow["orig_port"], flow["resp_port"], flow["has_ports"] = orig_port, resp_port, protocol in (1, 6, 17, 58, 132)
    text = np.empty(30, np.uint8)
    write_community_ids(flow, np.array([one_way]), text)
    return text.tobytes().decode()


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
    reference = communityid.CommunityID()
    for _ in range(60):
        v6 = choose.random() < 0.5
        orig, resp = (str(ipaddress.ip_address(choose.randbytes(16 if v6 else 4))) for _ in range(2))
        ports = choose.randrange(65536), choose.randrange(65536)
        protocol = choose.choice([6, 17, 132])
        tuple_ = communityid.FlowTuple(protocol, orig, resp, *ports)
        assert community_id(protocol, orig, ports[0], resp, ports[1]) == reference.calc(tuple_)


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


def test_ids_are_sixteen_hexadecimal_digits() -> None:
    values = np.array([0, 1, 0xFEDCBA9876543210, (1 << 64) - 1], np.uint64)
    assert columns.uid_text(values).to_pylist() == [f"{value:016x}" for value in values.tolist()]
