"""Reports and reads of small lakes whose rows are written here, so that every figure can be added up by eye."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest

from analysis import open_lake
from analysis.errors import PodtapError, UsageError
from analysis.lake_reader import Lake
from analysis.reports.filters import Filters
from analysis.reports.retransmits import KINDS
from analysis.reports.stale import stale_connections
from analysis.reports.window import Window, parse_time, time_text
from analysis.schemas import TABLES
from tests.lakes import MINUTE, SECOND, at, identity, minute, whole, write

T = at("2026-03-01T14:03:00")
CART = identity("orig", "pod", "shop/cart-1", workload="cart", workload_kind="Deployment", node="w1")
WEB = identity("resp", "service", "shop/web")
LEDGER = identity("resp", "pod", "payments/ledger-0", workload="ledger", workload_kind="StatefulSet", node="w2")
OUTSIDE = identity("resp", "external", "")


def flow(uid: str, first_seen: int = T, last_seen: int | None = None, **columns: Any) -> dict[str, Any]:
    last_seen = first_seen + SECOND if last_seen is None else last_seen
    row = {"flow_uid": uid, "community_id": f"1:{uid}", "first_seen": first_seen, "last_seen": last_seen}
    addresses = {"orig_ip": "10.1.0.5", "resp_ip": "192.0.2.7"}
    return {**row, **addresses, "protocol": "TCP", "conn_state": "SF", **CART, **WEB, **columns}


def lake_of(path: Path, *flows: dict[str, Any], **tables: list[dict[str, Any]]) -> Lake:
    """A lake of these flows, each within one minute, and of these rows of other tables."""
    write(path, "flows", list(flows))
    if "flow_minutes" not in tables:
        write(path, "flow_minutes", [whole(row) for row in flows])
    for name, rows in tables.items():
        write(path, name, rows)
    return open_lake(path)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [dict(zip(frame.columns, row, strict=True)) for row in frame.itertuples(index=False)]


class TestFlows:
    def test_figures_are_summed_by_pair(self, tmp_path: Path) -> None:
        one = {"orig_bytes": 100, "resp_bytes": 1000, "orig_tcp_segments": 10, "resp_tcp_segments": 30}
        two = {"orig_bytes": 7, "resp_bytes": 5, "orig_tcp_segments": 20, "resp_tcp_segments": 40}
        lake = lake_of(
            tmp_path,
            flow("a", **one, orig_retransmits=1, resp_retransmits=2, handshake_rtt_ns=30),
            flow("b", **two, resp_retransmits=2, handshake_rtt_ns=10),
            flow("c", handshake_rtt_ns=20, conn_state="REJ"),
            flow("d", protocol="UDP", conn_state="S0", **LEDGER, orig_bytes=1),
        )
        pod_to_service, pod_to_pod = records(lake.report("flows"))
        assert pd.isna(pod_to_service.pop("stale")), "nobody checked"
        assert pod_to_service == {
            "orig": "shop/cart-1",
            "resp": "shop/svc/web",
            "orig_kind": "pod",
            "orig_namespace": "shop",
            "orig_name": "cart-1",
            "resp_kind": "service",
            "resp_namespace": "shop",
            "resp_name": "web",
            "connections": 3,
            "failed": 1,
            "orig_bytes": 107,
            "resp_bytes": 1005,
            "tcp_segments": 100,
            "retransmitted_tcp_segments": 5,
            "retransmit_rate": 0.05,
            "handshake_rtt_p50_ns": 20,
            "handshake_rtt_p95_ns": 30,
            "handshake_rtt_p99_ns": 30,
        }
        assert (pod_to_pod["resp"], pod_to_pod["connections"], pod_to_pod["failed"]) == ("payments/ledger-0", 1, 0)
        assert pd.isna(pod_to_pod["retransmit_rate"])

    @pytest.mark.parametrize(
        ("state", "failed"),
        [("S0", 1), ("REJ", 1), ("RSTO", 1), ("RSTR", 1), ("SF", 0), ("S1", 0), ("OTH", 0), ("SH", 0)],
    )
    def test_unanswered_refused_and_reset_connections_failed(self, tmp_path: Path, state: str, failed: int) -> None:
        assert lake_of(tmp_path, flow("a", conn_state=state)).report("flows")["failed"].tolist() == [failed]

    def test_a_percentile_is_one_of_the_values(self, tmp_path: Path) -> None:
        lake = lake_of(tmp_path, *(flow(f"f{rtt}", handshake_rtt_ns=rtt) for rtt in range(1, 101)))
        report = lake.report("flows")
        assert report["handshake_rtt_p50_ns"].tolist() == [50]
        assert report["handshake_rtt_p95_ns"].tolist() == [95]
        assert report["handshake_rtt_p99_ns"].tolist() == [99]

    @pytest.mark.parametrize(
        ("by", "orig", "resp"),
        [
            ("pod", "shop/cart-1", "payments/ledger-0"),
            ("workload", "shop/cart", "payments/ledger"),
            ("namespace", "shop", "payments"),
            ("service", "shop/cart", "payments/ledger"),
            ("node", "node/w1", "node/w2"),
            ("name", "shop/cart-1", "ledger.example"),
        ],
    )
    def test_sides_are_told_at_the_level_asked_for(self, tmp_path: Path, by: str, orig: str, resp: str) -> None:
        lake = lake_of(tmp_path, flow("a", **LEDGER, resp_service=None, server_name="ledger.example"))
        assert lake.report("flows", by=by)[["orig", "resp"]].to_numpy().tolist() == [[orig, resp]]

    @pytest.mark.parametrize(
        ("resp", "by_pod", "by_namespace"),
        [
            (identity("resp", "external", ""), "192.0.2.7", "(external)"),
            (identity("resp", "unknown", ""), "192.0.2.7", "(unknown)"),
            (identity("resp", "ambiguous", ""), "192.0.2.7 (ambiguous)", "(ambiguous)"),
            (identity("resp", "node", "w9"), "node/w9", "(node)"),
        ],
    )
    def test_a_side_without_a_name_is_told_by_what_is_known(
        self, tmp_path: Path, resp: dict[str, Any], by_pod: str, by_namespace: str
    ) -> None:
        lake = lake_of(tmp_path, flow("a", resp_service=None, resp_namespace=None) | resp)
        assert lake.report("flows")["resp"].tolist() == [by_pod]
        assert lake.report("flows", by="namespace")["resp"].tolist() == [by_namespace]

    def test_a_pod_and_a_service_of_one_name_are_two(self, tmp_path: Path) -> None:
        pod = {"resp_service": None, **identity("resp", "pod", "shop/web")}
        assert len(lake_of(tmp_path, flow("a"), flow("b", **pod)).report("flows")) == 2

    def test_failures_come_first_then_bytes(self, tmp_path: Path) -> None:
        big, failing = flow("a", orig_bytes=10**9), flow("b", conn_state="S0", **LEDGER, resp_service=None)
        report = lake_of(tmp_path, big, failing).report("flows")
        assert report["resp"].tolist() == ["payments/ledger-0", "shop/svc/web"]

    def test_sorting_and_limiting(self, tmp_path: Path) -> None:
        lake = lake_of(tmp_path, flow("a", orig_bytes=5), flow("b", **LEDGER, resp_service=None, orig_bytes=9))
        assert lake.report("flows", sort_by="orig_bytes", limit=1)["orig_bytes"].tolist() == [9]
        assert lake.report("flows", sort_by="resp")["resp"].tolist() == ["payments/ledger-0", "shop/svc/web"]
        with pytest.raises(UsageError, match="no column 'bytes'; it has orig, resp"):
            lake.report("flows", sort_by="bytes")


class TestWindow:
    """One flow from the day before until 14:05, silent from 23:59 to 14:03."""

    YESTERDAY = at("2026-02-28T23:58:30")

    @pytest.fixture
    def lake(self, tmp_path: Path) -> Lake:
        long = flow("long", self.YESTERDAY, T + 2 * MINUTE + SECOND, orig_bytes=60, orig_retransmits=3)
        minutes = [
            minute(long, self.YESTERDAY, orig_bytes=10),
            minute(long, T + 10 * SECOND, T + 50 * SECOND, orig_bytes=20, orig_tcp_segments=4, orig_retransmits=1),
            minute(
                long, T + 2 * MINUTE, T + 2 * MINUTE + SECOND, orig_bytes=30, orig_tcp_segments=8, orig_retransmits=2
            ),
        ]
        return lake_of(tmp_path, long, flow_minutes=minutes)

    @pytest.mark.parametrize(
        ("since", "until", "orig_bytes"),
        [
            (None, None, [60]),
            ("2026-03-01T14:03:00Z", "2026-03-01T14:04:00Z", [20]),
            ("2026-03-01T14:03:00Z", None, [50]),
            (None, "2026-03-01T00:00:00Z", [10]),
            ("2026-03-01T14:03:30Z", "2026-03-01T14:03:40Z", [20]),  # within the minute: it counts whole
            ("2026-03-01T14:03:51Z", "2026-03-01T14:05:00Z", []),  # no packet of the minute is left
            ("2026-03-01T14:03:00Z", "2026-03-01T14:03:10Z", []),  # half-open: 14:03:10 is outside
            ("2026-03-01T14:03:50Z", "2026-03-01T14:04:00Z", [20]),
            ("2026-03-01T15:03:00+01:00", "1772373840", [20]),
            ("2026-03-01T08:00:00Z", "2026-03-01T09:00:00Z", []),  # alive, but silent
        ],
    )
    def test_what_was_active_counts(self, lake: Lake, since: str, until: str, orig_bytes: list[int]) -> None:
        assert lake.report("flows", since=since, until=until)["orig_bytes"].tolist() == orig_bytes
        assert len(lake.flows(since=since, until=until)) == len(orig_bytes)
        assert lake.flow_minutes(since=since, until=until)["orig_bytes"].sum() == sum(orig_bytes)

    def test_python_takes_datetimes(self, lake: Lake) -> None:
        since = datetime(2026, 3, 1, 14, 4, tzinfo=UTC)
        assert lake.report("flows", since=since)["orig_bytes"].tolist() == [30]
        assert lake.report("flows", since=pd.Timestamp("2026-03-01 14:04"))["orig_bytes"].tolist() == [30]

    def test_a_node_named_like_a_number_stays_text(self, tmp_path: Path) -> None:
        write(tmp_path, "flows", [flow("a")], node="007")
        assert open_lake(tmp_path).flows()["node"].tolist() == ["007"]
        assert len(open_lake(tmp_path).flows(node="007")) == 1


LEDGER_POD = LEDGER | {"resp_service": None, "resp_ip": "10.1.0.9", "community_id": "1:pod"}


def udp_at(interface: str, first_seen: int, resp_bytes: int = 0, **columns: Any) -> dict[str, Any]:
    row = {"community_id": "1:x", "interface": interface, "protocol": "UDP", "conn_state": "S0", "orig_port": 5000}
    row |= {"orig_packets": 1, "orig_bytes": 50, "resp_packets": resp_bytes // 90, "resp_bytes": resp_bytes}
    uid = f"{interface}-{columns.get('resp_ip')}"
    return flow(uid, first_seen, **row | columns)


class TestSeveralPoints:
    """The same connection at the client's pod interface, in the overlay, and at the server's pod interface."""

    def points(self, first_seen: int = T, uid: str = "x", **columns: Any) -> list[dict[str, Any]]:
        same = {"community_id": f"1:{uid}", "orig_bytes": 50, "resp_bytes": 90, **columns}
        at_client = {"interface": "cali1", "orig_tcp_segments": 20, "resp_tcp_segments": 97, "handshake_rtt_ns": 900}
        on_wire = {"interface": "eth0", "encapsulation": "vxlan", "orig_tcp_segments": 20, "resp_tcp_segments": 98}
        at_server = {"interface": "cali2", "orig_tcp_segments": 19, "resp_tcp_segments": 100, "handshake_rtt_ns": 700}
        return [
            flow(f"{uid}-client", first_seen, **same, **at_client, resp_retransmits=3, orig_retransmits=1),
            flow(f"{uid}-wire", first_seen + 100, **same, **on_wire, resp_retransmits=4, handshake_rtt_ns=800),
            flow(f"{uid}-server", first_seen + 200, **same, **at_server, resp_retransmits=5),
        ]

    def test_a_connection_counts_once_and_each_sender_where_it_was_seen_best(self, tmp_path: Path) -> None:
        (row,) = records(lake_of(tmp_path, *self.points()).report("flows"))
        assert (row["connections"], row["orig_bytes"], row["resp_bytes"]) == (1, 50, 90)
        assert row["handshake_rtt_p50_ns"] == 900  # nearest to orig
        assert row["tcp_segments"] == 20 + 100
        assert row["retransmitted_tcp_segments"] == 1 + 5

    @pytest.mark.parametrize(
        "bypassed",
        [
            {"history": "SADF", "resp_packets": 0, "resp_bytes": 0, "orig_tcp_segments": 20},
            {"history": "S", "resp_packets": 0, "resp_bytes": 0, "orig_tcp_segments": 1, "conn_state": "S0"},
            {"history": "^hadf", "orig_packets": 0, "orig_bytes": 0, "orig_tcp_segments": 0},
        ],
        ids=["answers", "all but the first packet", "questions"],
    )
    def test_a_point_that_packets_went_past_does_not_speak_for_the_connection(
        self, tmp_path: Path, bypassed: dict[str, Any]
    ) -> None:
        bridge = flow("x-bridge", T - 50, community_id="1:x", interface="cni0", handshake_rtt_ns=None, **bypassed)
        whole = self.points(orig_packets=30, resp_packets=90, history="ShADad")
        (row,) = records(lake_of(tmp_path, bridge, *whole).report("flows"))
        assert (row["connections"], row["failed"], row["orig_bytes"], row["resp_bytes"]) == (1, 0, 50, 90)
        assert row["handshake_rtt_p50_ns"] == 900

    def test_a_connection_whose_answers_were_lost_failed_although_the_server_saw_them(self, tmp_path: Path) -> None:
        same = {"community_id": "1:x", "orig_tcp_segments": 4}
        client = flow("x-client", T, conn_state="S0", history="S", resp_packets=0, resp_tcp_segments=0, **same)
        server = flow("x-server", T + 200, interface="cali2", conn_state="S1", history="Sh", **same)
        (row,) = records(lake_of(tmp_path, client, server).report("flows"))
        assert (row["connections"], row["failed"]) == (1, 1)

    @pytest.mark.parametrize("filters", [{}, {"pod": "ledger-0"}], ids=["all", "one side"])
    @pytest.mark.parametrize("evidence", ["before NAT", "at the point"])
    def test_answers_that_went_past_a_bridge_behind_nat_are_received(
        self, tmp_path: Path, filters: dict[str, Any], evidence: str
    ) -> None:
        if evidence == "before NAT":
            known = udp_at("veth", T, 90)
        else:
            known = udp_at("cni0", T + 5_000, 90, orig_packets=0, flow_uid="cni0-answers")
        flows = [known, udp_at("cni0", T + 100, **LEDGER_POD), udp_at("cni-ledger", T + 200, 90, **LEDGER_POD)]
        report = lake_of(tmp_path, *flows).report("flows", **filters).set_index("resp")
        assert report.loc["payments/ledger-0", "resp_bytes"] == 90
        assert report.loc["payments/ledger-0", "connections"] == 1

    def test_udp_answers_that_were_lost_are_not_received(self, tmp_path: Path) -> None:
        behind = [udp_at("cni0", T + 100, **LEDGER_POD), udp_at("cni-ledger", T + 200, 90, **LEDGER_POD)]
        report = lake_of(tmp_path, udp_at("veth", T), *behind).report("flows")
        assert report["resp_bytes"].tolist() == [0, 0]

    def test_a_port_that_speaks_to_another_pod_later_does_not_hide_the_nat(self, tmp_path: Path) -> None:
        other = LEDGER_POD | {"resp_ip": "10.1.0.10", "community_id": "1:other"}
        flows = [
            flow
            for start, pod in ((T, LEDGER_POD), (T + MINUTE, other))
            for flow in (
                udp_at("veth", start, 90, flow_uid=f"veth-{start}"),
                udp_at("cni0", start + 100, **pod),
                udp_at("cni-pod", start + 200, 90, **pod),
            )
        ]
        report = lake_of(tmp_path, *flows).report("flows").set_index("resp")
        assert report.loc["payments/ledger-0", "resp_bytes"] == 180

    def test_one_port_that_speaks_to_two_is_no_nat(self, tmp_path: Path) -> None:
        """Seen at the pod's interface: one answers, the other's answer is lost after the bridge."""
        web = [udp_at("veth", T, 90), udp_at("cni0", T + 3, 90)]
        ledger = [udp_at("veth", T + 5, **LEDGER_POD), udp_at("cni0", T + 8, 90, **LEDGER_POD)]
        report = lake_of(tmp_path, *web, *ledger).report("flows")
        assert report.set_index("resp")["resp_bytes"].to_dict() == {"shop/svc/web": 90, "payments/ledger-0": 0}

    def test_a_port_used_again_later_is_another_connection(self, tmp_path: Path) -> None:
        again = self.points(T + MINUTE)
        for row in again:
            row["flow_uid"] += "-again"
        report = lake_of(tmp_path, *self.points(), *again).report("flows")
        assert report["connections"].tolist() == [2]

    def test_flows_that_one_point_tells_apart_are_different_connections(self, tmp_path: Path) -> None:
        other_vlan = [row | {"flow_uid": row["flow_uid"] + "-vlan"} for row in self.points()]
        report = lake_of(tmp_path, *self.points(), *other_vlan).report("flows")
        assert report["connections"].tolist() == [2]

    def test_a_single_packet_seen_at_two_moments_is_one_connection(self, tmp_path: Path) -> None:
        one = [flow(f"f{n}", T + n * 50_000, T + n * 50_000, community_id="1:x", interface=f"if{n}") for n in range(3)]
        assert lake_of(tmp_path, *one).report("flows")["connections"].tolist() == [1]

    def test_retransmissions_are_those_of_the_point_nearest_to_the_sender(self, tmp_path: Path) -> None:
        events = [
            {"flow_uid": f"x-{point}", "sender": "resp", "kind": "fast", "ts": T + n, "tcp_segments": 1, "delay_ns": n}
            for point, count in (("client", 3), ("wire", 4), ("server", 5))
            for n in range(count)
        ]
        (row,) = records(lake_of(tmp_path, *self.points(), retransmits=events).report("retransmits"))
        assert (row["sender"], row["fast"], row["retransmitted_tcp_segments"]) == ("shop/svc/web", 5, 5)
        assert row["tcp_segments"] == 100

    def test_a_lookup_counts_once_where_the_client_saw_it(self, tmp_path: Path) -> None:
        seen = [
            lookup(T + delay, latency, flow_uid=f"d{delay}")
            for delay, latency in ((0, 5_000_000), (100_000, 4_800_000), (200_000, 4_600_000))
        ]
        unanswered = [lookup(T + delay, trans_id=7, flow_uid=f"d{delay}") for delay in (0, 100_000, 200_000)]
        points = [flow(f"p{n}", interface=f"if{n}") for n in range(2)]
        (row,) = records(lake_of(tmp_path, *points, dns=[*seen, *unanswered]).report("dns"))
        assert (row["queries"], row["latency_max_ns"], row["unanswered"]) == (2, 5_000_000, 1)

    POD: ClassVar[dict[str, Any]] = identity("server", "pod", "kube-system/coredns-0") | {
        "server_ip": "10.1.0.9",
        "server_service": None,
    }

    def dns(self, path: Path, *lookups: dict[str, Any], **filters: Any) -> tuple[int, int]:
        """Queries and unanswered ones of the report."""
        points = [flow(f"p{n}", interface=f"if{n}") for n in range(2)]
        report = lake_of(path, *points, dns=list(lookups)).report("dns", by="namespace", **filters)
        return report["queries"].sum(), report["unanswered"].sum()

    @pytest.mark.parametrize(("filters", "queries"), [({}, 2), ({"pod": "coredns-0"}, 1)], ids=["all", "one side"])
    def test_a_lookup_whose_answer_went_past_a_bridge_behind_nat_is_answered(
        self, tmp_path: Path, filters: dict[str, Any], queries: int
    ) -> None:
        assert self.dns(
            tmp_path,
            seen_at("veth", T, 5_000_000),
            seen_at("cni0", T + 100_000, **self.POD),
            seen_at("server", T + 200_000, 4_600_000, **self.POD),
            **filters,
        ) == (queries, 0)  # on either side of the NAT

    def test_an_answer_that_a_bridge_has_with_the_address_before_nat_is_an_answer(self, tmp_path: Path) -> None:
        """Nothing was captured at the pod's interface."""
        response = {"query_ts": None, "latency_ns": None, "status": "unmatched_response", "attempts": 0}
        assert self.dns(
            tmp_path,
            seen_at("cni0", T, **self.POD),
            seen_at("cni0", T + 5_000_000, 0, flow_uid="cni0-answer") | response,
            seen_at("eth0", T + 100_000, 4_800_000, **self.POD),
        ) == (1, 0)

    def test_a_lookup_whose_answer_was_lost_before_the_client_is_unanswered(self, tmp_path: Path) -> None:
        assert self.dns(tmp_path, seen_at("veth", T), seen_at("server", T + 200_000, 4_600_000)) == (1, 1)

    def test_an_answer_lost_before_the_client_is_no_answer_because_nat_comes_later(self, tmp_path: Path) -> None:
        assert self.dns(
            tmp_path,
            seen_at("veth", T),
            seen_at("bridge", T + 100_000, 4_800_000),
            seen_at("eth0", T + 200_000, 4_600_000, **self.POD),
            service="kube-dns",
        ) == (1, 1)
        assert self.dns(tmp_path) == (2, 1)

    def test_an_answer_lost_behind_nat_is_unanswered_on_both_sides(self, tmp_path: Path) -> None:
        assert self.dns(
            tmp_path,
            seen_at("veth", T),
            seen_at("flannel.1", T + 100_000, **self.POD),
            seen_at("eth0", T + 200_000, 4_600_000, **self.POD),
        ) == (2, 2)

    def test_two_servers_asked_with_one_id_are_no_nat(self, tmp_path: Path) -> None:
        """As musl asks all of resolv.conf's at once: one answers, the other's answer is lost."""
        other = {"server_ip": "10.96.0.11"}
        assert self.dns(
            tmp_path,
            seen_at("veth", T, 5_000_000),
            seen_at("cni0", T + 3_000, 4_990_000),
            seen_at("veth", T + 5_000, flow_uid="veth-other", **other),
            seen_at("cni0", T + 8_000, 4_600_000, flow_uid="cni0-other", **other),
        ) == (2, 1)


class TestRetransmits:
    def test_kinds_are_those_of_the_schema(self) -> None:
        (column,) = [column for column in TABLES["retransmits"].columns if column.name == "kind"]
        assert sorted(KINDS) == sorted(column.doc.replace(" or ", ", ").split(", "))

    @pytest.fixture
    def lake(self, tmp_path: Path) -> Lake:
        flows = [
            flow("a", last_seen=T + 6 * SECOND, orig_tcp_segments=50, resp_tcp_segments=80),
            flow("b", orig_tcp_segments=30, resp_tcp_segments=20),
            flow("c", orig_tcp_segments=99, resp_tcp_segments=99, **LEDGER, resp_service=None),
        ]
        of_a = {"flow_uid": "a", "sender": "resp"}
        events = [
            {**of_a, "ts": T + 1, "kind": "rto", "tcp_segments": 3, "delay_ns": 300},
            {**of_a, "ts": T + 2, "kind": "rto", "tcp_segments": 1, "delay_ns": 100},
            {"flow_uid": "b", "sender": "resp", "ts": T + SECOND, "kind": "tlp", "tcp_segments": 1, "delay_ns": 200},
            {**of_a, "ts": T + 5 * SECOND, "kind": "keep_alive", "tcp_segments": 0, "delay_ns": 999},
            {**of_a, "ts": T + 6 * SECOND, "kind": None, "wireshark_kind": "retransmission", "tcp_segments": 0},
        ]
        return lake_of(tmp_path, *flows, retransmits=events)

    def test_by_sender_and_peer(self, lake: Lake) -> None:
        (row,) = records(lake.report("retransmits"))
        assert (row["sender"], row["peer"]) == ("shop/svc/web", "shop/cart-1")
        assert (row["tcp_segments"], row["retransmitted_tcp_segments"], row["rate"]) == (100, 5, 0.05)
        assert {kind: row[kind] for kind in KINDS if row[kind]} == {"rto": 2, "tlp": 1, "keep_alive": 1}
        assert (row["delay_p50_ns"], row["delay_p99_ns"]) == (200, 300)
        assert (row["first_ts"].value, row["last_ts"].value) == (T + 1, T + SECOND)
        assert str(row["first_ts"].tz) == "UTC"

    def test_within_a_window_they_count_by_their_own_time(self, lake: Lake) -> None:
        (row,) = records(lake.report("retransmits", until="2026-03-01T14:03:01Z"))
        assert (row["rto"], row["tlp"], row["retransmitted_tcp_segments"]) == (2, 0, 4)

    def test_rows_without_a_kind_are_for_wireshark_users_only(self, lake: Lake) -> None:
        assert lake.report("retransmits", since="2026-03-01T14:03:06Z").empty
        assert len(lake.retransmits(since="2026-03-01T14:03:06Z")) == 1


CLIENT = identity("client", "pod", "shop/cart-1", workload="cart", node="w1")
SERVER = identity("server", "service", "kube-system/kube-dns")


def lookup(ts: int, latency_ns: int | None = None, **columns: Any) -> dict[str, Any]:
    answered = latency_ns is not None
    row = {
        "ts": ts,
        "query_ts": ts,
        "response_ts": ts + latency_ns if latency_ns is not None else None,
        "latency_ns": latency_ns,
        "status": "answered" if answered else "unanswered",
        "rcode": "NOERROR" if answered else None,
        "attempts": 1,
        "transport": "udp",
        "query": "web.shop.svc.cluster.local",
        "client_ip": "10.1.0.5",
        "server_ip": "10.96.0.10",
    }
    return {**row, **CLIENT, **SERVER, **columns}


def seen_at(interface: str, ts: int, latency_ns: int | None = None, **columns: Any) -> dict[str, Any]:
    return lookup(ts, latency_ns, **{"interface": interface, "flow_uid": interface, **columns})


class TestDns:
    @pytest.fixture
    def lake(self, tmp_path: Path) -> Lake:
        response_only = {"query_ts": None, "latency_ns": None, "status": "unmatched_response", "attempts": 0}
        lookups = [
            lookup(T, 10),
            lookup(T + 1, 30, attempts=3),
            lookup(T + 2, 20, rcode="NXDOMAIN", search_expansion=True, query="web.shop.shop.svc.cluster.local"),
            lookup(T + 3, 40, rcode="SERVFAIL"),
            lookup(T + 4, attempts=2),
            lookup(T + 5, 50, rcode="NXDOMAIN") | response_only,
        ]
        return lake_of(tmp_path, flow("a"), dns=lookups)

    def test_by_client(self, lake: Lake) -> None:
        (row,) = records(lake.report("dns"))
        assert row == {
            "client": "shop/cart-1",
            "client_kind": "pod",
            "client_namespace": "shop",
            "client_name": "cart-1",
            "queries": 5,
            "latency_p50_ns": 20,
            "latency_p95_ns": 40,
            "latency_p99_ns": 40,
            "latency_max_ns": 40,
            "unanswered": 1,
            "retries": 3,
            "nxdomain": 1,
            "servfail": 1,
            "search_expansions": 1,
            "unmatched_responses": 1,
        }

    def test_by_name_and_by_server(self, lake: Lake) -> None:
        assert lake.report("dns", by="name")[["name", "queries"]].to_numpy().tolist() == [
            ["web.shop.svc.cluster.local", 4],
            ["web.shop.shop.svc.cluster.local", 1],
        ]
        assert lake.report("dns", by="service")["server"].tolist() == ["kube-system/svc/kube-dns"]

    def test_a_lookup_under_way_in_the_window_counts(self, tmp_path: Path) -> None:
        midnight = at("2026-03-02T00:00:00")
        lake = lake_of(tmp_path, flow("a"), dns=[lookup(midnight - SECOND, 2 * SECOND), lookup(midnight - SECOND, 10)])
        assert lake.report("dns", since="2026-03-02T00:00:00Z")["latency_max_ns"].tolist() == [2 * SECOND]
        assert lake.dns(until="2026-03-02T00:00:00Z")["latency_ns"].tolist() == [2 * SECOND, 10]


class TestFilters:
    @pytest.fixture
    def lake(self, tmp_path: Path) -> Lake:
        labels = {"identity": "pod", "namespace": "shop", "ip": "10.1.0.5", "source": "dump"}
        return lake_of(
            tmp_path,
            flow("web"),
            flow("ledger", **LEDGER, resp_service=None),
            flow("outside", **OUTSIDE, resp_service=None, resp_namespace=None),
            flow("other", **identity("orig", "pod", "test/cart-1", pod_uid="uid-other", node="w3")),
            identities=[
                {**labels, "name": "cart-1", "uid": "uid-cart-1", "labels": ["app=cart", "tier=front"]},
                {**labels, "name": "ledger-0", "uid": "uid-ledger-0", "labels": ["app=ledger"]},
            ],
        )

    @pytest.mark.parametrize(
        ("asked", "expected"),
        [
            ({}, {"web", "ledger", "outside", "other"}),
            ({"namespace": "payments"}, {"ledger"}),
            ({"pod": "ledger-0"}, {"ledger"}),
            ({"pod": "cart-1"}, {"web", "ledger", "outside", "other"}),
            ({"pod": "cart-1", "namespace": "test"}, {"other"}),
            ({"namespace": "test"}, {"other"}),
            ({"service": "web"}, {"web", "other"}),
            ({"pod": "cart-1", "service": "web", "namespace": "shop"}, {"web"}),
            ({"node": "w2"}, {"ledger"}),
            ({"node": "n1"}, {"web", "ledger", "outside", "other"}),  # the observation point's
            ({"selector": "app=ledger"}, {"ledger"}),
            ({"selector": "app=cart,tier=front"}, {"web", "ledger", "outside"}),
            ({"selector": ["app=cart", "app=ledger"]}, set()),
            ({"pod": "it's"}, set()),
        ],
    )
    def test_either_side_matches(self, lake: Lake, asked: Any, expected: set[str]) -> None:
        assert set(lake.flows(**asked)["flow_uid"]) == expected
        assert lake.report("flows", **asked)["connections"].sum() == len(expected)
        assert set(lake.flow_minutes(**asked)["flow_uid"]) == expected

    def test_a_selector_without_value_is_refused(self, lake: Lake) -> None:
        with pytest.raises(UsageError, match="KEY=VALUE"):
            lake.flows(selector="app")


class TestOpenLake:
    def test_dtypes_are_categoricals_and_utc_nanoseconds(self, tmp_path: Path) -> None:
        flows = lake_of(tmp_path, flow("a", T + 123_456_789)).flows()
        assert flows["first_seen"].dtype == "datetime64[ns, UTC]"
        assert flows["first_seen"][0].value == T + 123_456_789
        assert {flows[name].dtype.name for name in ("orig_ip", "orig_pod", "protocol", "node")} == {"category"}
        assert list(flows.columns) == [*TABLES["flows"].schema.names, "node"]

    def test_columns_can_be_chosen(self, tmp_path: Path) -> None:
        lake = lake_of(tmp_path, flow("a"))
        assert list(lake.flows(columns=["resp_ip", "node", "date"])) == ["resp_ip", "node", "date"]
        with pytest.raises(UsageError, match="flows has no column nope; it has flow_uid"):
            lake.flows(columns=["nope"])

    def test_a_table_without_files_is_empty(self, tmp_path: Path) -> None:
        lake = lake_of(tmp_path, flow("a"))
        assert list(lake.packets().columns) == [*TABLES["packets"].schema.names, "node"]
        assert len(lake.packets()) == len(lake.dns()) == len(lake.identities()) == len(lake.segments()) == 0

    def test_sql_sees_the_tables(self, tmp_path: Path) -> None:
        assert lake_of(tmp_path, flow("a")).sql("SELECT max(first_seen) AS t FROM flows")["t"][0].value == T

    def test_no_lake_says_what_to_run(self, tmp_path: Path) -> None:
        with pytest.raises(PodtapError, match=r"no lake at .*nothing: run podtap analyze FILE\.\.\. --lake"):
            open_lake(tmp_path / "nothing")

    def test_unfinished_and_hidden_files_are_not_data(self, tmp_path: Path) -> None:
        write(tmp_path, "flows", [flow("a")])
        write(tmp_path, "flows", [flow("b")], file="_part")
        write(tmp_path, "flows", [flow("c")], file=".part")
        assert open_lake(tmp_path).flows()["flow_uid"].tolist() == ["a"]


class TestTimes:
    NOW = at("2026-03-01T12:00:00")

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("15m", NOW - 15 * MINUTE),
            ("1h30m", NOW - 90 * MINUTE),
            ("2d", NOW - 48 * 60 * MINUTE),
            ("now", NOW),
            ("1772366400", NOW),
            ("1772366400.25", NOW + SECOND // 4),
            ("2026-03-01T12:00:00Z", NOW),
            ("2026-03-01 12:00", NOW),
            ("2026-03-01T12:00:00.123456789Z", NOW + 123_456_789),
            ("2026-03-01T13:30:00+01:30", NOW),
        ],
    )
    def test_all_ways_to_write_a_time(self, text: str, expected: int) -> None:
        assert parse_time(text, self.NOW) == expected

    @pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01T00:00:00Z", "-5m", "15m ago", "14:03"])
    def test_anything_else_is_refused(self, text: str) -> None:
        with pytest.raises(UsageError, match="is not a time"):
            parse_time(text, self.NOW)

    def test_a_window_that_ends_before_it_begins_is_refused(self) -> None:
        with pytest.raises(UsageError, match="ends before it begins"):
            Window.of("5m", "10m")

    def test_time_text_is_rfc_3339(self) -> None:
        assert time_text(self.NOW + 1) == "2026-03-01T12:00:00.000000001Z"
        assert time_text(self.NOW, 0) == "2026-03-01T12:00:00Z"


class TestStale:
    """Connections of cart-1 that web's proxy sent to web-1, some after it had been removed."""

    @staticmethod
    def lake(path: Path, *stale: dict[str, Any]) -> Lake:
        rows = [
            {"connection_uid": f"c{at}", "first_seen": T, "last_seen": T + SECOND, **CART, **WEB} | row
            for at, row in enumerate(stale)
        ]
        backend = {"orig_ip": "10.1.0.5", "resp_ip": "10.96.0.7", "backend_ip": "10.1.0.9", "backend_port": 8080}
        named = {"endpoint": "removed", "endpoint_of": "shop/web", "endpoint_pod": "web-1"}
        uids = [row["connection_uid"] for row in rows]
        parts = [{"connection_uid": uid, "flow_uid": uid, "is_primary": True, "counts_orig": True} for uid in uids]
        flows = [flow(row["connection_uid"], row["first_seen"], row["last_seen"]) for row in rows]
        return lake_of(path, *flows, connections=[backend | named | row for row in rows], connection_flows=parts)

    def notes(self, lake: Lake, **asked: str) -> list[str]:
        window = Window.of(asked.pop("since", None), None)
        return stale_connections(lake, window, Filters.of(**asked))

    def test_an_endpoint_takes_a_sentence(self, tmp_path: Path) -> None:
        removed = [{"endpoint_removed_ns": round(seconds * SECOND)} for seconds in (1.8, 0.25, 12)]
        lake = self.lake(tmp_path, *removed, {"endpoint": "ready"}, {"backend_ip": "fd00::9", "endpoint_pod": None})
        assert self.notes(lake) == [
            "3 connections were sent to an endpoint of shop/web that had been removed 0.2 to 12.0 s before"
            " (10.1.0.9:8080, pod web-1)",
            "1 connection was sent to an endpoint of shop/web that had been removed ([fd00::9]:8080)",
        ]
        assert records(lake.report("flows"))[0]["stale"] == 4
        assert self.notes(lake, pod="cart-1") == self.notes(lake)
        assert self.notes(lake, pod="other-1") == self.notes(lake, since="2026-03-01T15:00:00Z") == []

    def test_most_come_first_and_the_rest_is_counted(self, tmp_path: Path) -> None:
        ips = [f"10.1.0.{number}" for number in (1, 2, 2, 3, 4, 5)]
        notes = self.notes(self.lake(tmp_path, *({"backend_ip": ip, "endpoint_removed_ns": SECOND} for ip in ips)))
        assert [note[:13] for note in notes] == ["2 connections", *["1 connection "] * 2, "and 2 more to"]

    def test_who_comes_to_the_pod_itself_long_after_was_not_sent(self, tmp_path: Path) -> None:
        direct = {**identity("resp", "pod", "shop/web-1"), "resp_service": None, "resp_ip": "10.1.0.9"}
        known = [direct | {"endpoint_removed_ns": seconds * SECOND} for seconds in (5, 61)]
        lake = self.lake(tmp_path, *known, direct)
        (note,) = self.notes(lake)
        assert note.startswith("1 connection was sent to an endpoint of shop/web that had been removed 5.0 s before")
        assert records(lake.report("flows"))[0]["stale"] == 1

    def test_where_nothing_is_known_nothing_is_counted(self, tmp_path: Path) -> None:
        lake = self.lake(tmp_path, {"endpoint": "unknown"}, {"endpoint": None})
        assert self.notes(lake) == []
        assert pd.isna(records(lake.report("flows"))[0]["stale"])
