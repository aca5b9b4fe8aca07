"""The recorded incident: what podtap says of it is what the kernel, the name server and the load tool counted."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from analysis.pipeline import analyze

INCIDENT = Path(__file__).resolve().parents[1] / "sample_pcaps" / "incident"
TRUTH: dict[str, Any] = json.loads((INCIDENT / "truth.json").read_text())
DNS_SERVICE = "10.96.0.10"
SECOND = 1_000_000_000
REUSED, BEFORE, AFTER = (TRUTH["reused_ip"][key] for key in ("ip", "before", "after"))
IPS = {name: pod["ip"] for name, pod in TRUTH["pods"].items()} | {BEFORE: REUSED}
WORKLOADS = {name: pod["workload"].rpartition("/")[2] for name, pod in TRUTH["pods"].items()}
Rows = list[dict[str, Any]]


Tables = dict[str, Rows]
TABLES = ("segments", "flows", "retransmits", "dns", "connections", "losses", "clocks")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """The rows of all tables, with their node; times as nanoseconds."""
    lake = tmp_path_factory.mktemp("incident")
    assert analyze([str(INCIDENT)], lake, metadata=[str(INCIDENT / "metadata")], jobs=1).problems == []
    return {table: rows(lake / table) for table in TABLES}


def rows(folder: Path) -> Rows:
    data = ds.dataset(folder, partitioning="hive").to_table()
    for index, field in enumerate(data.schema):
        if str(field.type).startswith("timestamp"):
            data = data.set_column(index, field.name, data.column(index).cast("int64"))
    return data.to_pylist()


def veth(pod: str) -> tuple[str, str]:
    """Where a pod's packets are seen first: node, interface."""
    [point] = [
        (node, index) for node, names in TRUTH["interfaces"].items() for index, name in names.items() if name == pod
    ]
    return point


def at(found: Tables, table: str, pod: str) -> Rows:
    return [row for row in found[table] if (row["node"], row["interface"]) == veth(pod)]


def sender_ip(row: dict[str, Any]) -> str:
    ip: str = row[f"{row['sender']}_ip"]
    return ip


def test_the_sample_is_small_and_says_how_it_was_made() -> None:
    assert sum(path.stat().st_size for path in INCIDENT.rglob("*") if path.is_file()) < 2_000_000
    assert TRUTH["recorded_with"].keys() == {"kernel", "tcpdump", "snaplen"}


@pytest.mark.parametrize("event", ["start", "loss", "repaired", "slow_dns", "quick_dns", "kill", "end"])
def test_the_story_is_told_with_its_times(event: str) -> None:
    time = f"{datetime.fromtimestamp(TRUTH['times'][event] // SECOND, UTC):%H:%M:%S}"
    assert f"| {time} |" in (INCIDENT / "README.md").read_text()


def test_the_story_is_told_with_its_numbers() -> None:
    told = (INCIDENT / "README.md").read_text()
    assert f"{TRUTH['uplink']['lost']} of {TRUTH['uplink']['crossed']} are lost" in told
    assert f"its IP {(TRUTH['times']['reused'] - TRUTH['times']['killed']) // 10**6 + 1} ms later: {REUSED}" in told


def test_the_truth_agrees_with_itself() -> None:
    for counted in TRUTH["kernel"].values():
        assert counted["retransmitted_segments"] == counted["segments_of_events"]
    assert sum(counted["retransmitted_segments"] for counted in TRUTH["kernel"].values()) == TRUTH["uplink"]["lost"]


def test_each_capture_is_of_the_node_that_its_file_is_named_after(found: Tables) -> None:
    segments = found["segments"]
    assert {row["node"]: row["packets"] for row in segments} == TRUTH["captured_packets"]
    assert {row["node"]: row["segment"] for row in segments} == {n: f"{n}.pcap.gz" for n in TRUTH["captured_packets"]}
    assert [row["malformed_packets"] for row in segments] == [0, 0]


@pytest.mark.parametrize("pod", IPS)
def test_retransmitted_segments_are_the_kernels(pod: str, found: Tables) -> None:
    own = [row for row in at(found, "retransmits", pod) if row["kind"] and sender_ip(row) == IPS[pod]]
    counted = TRUTH["kernel"][pod]
    assert sum(row["tcp_segments"] for row in own) == counted["retransmitted_segments"]
    assert sum(row["tcp_segments"] > 0 for row in own) == counted["events"]


def test_who_retransmitted_has_its_name_everywhere(found: Tables) -> None:
    """Behind the service's address, too: only the near side of kube-proxy's DNAT shows the service instead."""
    again = [row for row in found["retransmits"] if row["kind"] and row["tcp_segments"]]
    names = {(row["resp_workload"], row["resp_service"]) for row in again}
    assert {row["sender"] for row in again} == {"resp"}
    assert names == {("checkout", None), (None, "checkout")}
    assert {row["orig_workload"] for row in again} == {"frontend"}


def test_retransmissions_fall_into_the_time_of_the_loss(found: Tables) -> None:
    again = [row["ts"] for row in found["retransmits"] if row["kind"] and row["tcp_segments"]]
    assert TRUTH["times"]["loss"] < min(again)
    assert max(again) < TRUTH["times"]["repaired"] + 2 * SECOND


@pytest.mark.parametrize("pod", [name for name in IPS if name != "coredns"])
def test_every_request_is_a_flow_with_its_bytes(pod: str, found: Tables) -> None:
    flows = [row for row in at(found, "flows", pod) if row["protocol"] == "TCP" and row["orig_ip"] == IPS[pod]]
    seen = Counter((row["orig_port"], row["resp_ip"], row["resp_port"], row["resp_bytes"]) for row in flows)
    done = [row for row in TRUTH["requests"] if row["pod"] == pod and "received" in row]
    assert seen == Counter((row["local"][1], *row["remote"], row["received"]) for row in done)


def test_every_query_that_reached_the_name_server_is_there(found: Tables) -> None:
    sent: Counter[str] = Counter()
    for pod in IPS:
        for row in at(found, "dns", pod):
            if (row["client_ip"], row["server_ip"]) == (IPS[pod], DNS_SERVICE):
                sent[row["query"]] += row["attempts"]
    assert sent == Counter(TRUTH["dns_queries_by_name"])


def test_dns_latencies_are_those_of_the_name_server(found: Tables) -> None:
    """From the first query to the answer, of which the server knows all but the way; a name is asked for by one pod."""
    asked = defaultdict(list)
    for query in TRUTH["dns_queries"]:
        asked[query["client_port"], query["trans_id"], query["name"], query["qtype"]].append(query)
    pod = next(name for name, workload in WORKLOADS.items() if workload == "checkout")
    own = [row for row in at(found, "dns", pod) if row["query"] in {query["name"] for query in TRUTH["dns_queries"]}]
    slow = 0
    for row in sorted(own, key=lambda row: row["ts"]):
        waiting = asked[row["client_port"], row["trans_id"], row["query"], row["qtype"]]
        queries = [waiting.pop(0) for _ in range(row["attempts"])]
        assert row["rcode"] == queries[0]["rcode"]
        at_server = queries[0]["answered_ns"] - queries[0]["time_ns"]
        assert abs(row["latency_ns"] - at_server) < SECOND // 50  # the server reads its clock once for several queries
        slow += at_server > SECOND
    assert not any(asked.values())
    assert slow >= 6


def test_slow_lookups_are_those_that_the_load_tool_waited_for(found: Tables) -> None:
    waited = {(row["pod"], row["name"], row["begun"]): row["lookup_ns"] for row in TRUTH["requests"]}
    waited = {key: lookup for key, lookup in waited.items() if lookup > SECOND}
    assert waited
    for (pod, name, begun), lookup in waited.items():
        during = [r for r in at(found, "dns", pod) if r["query"] == name and begun < r["ts"] < begun + lookup]
        assert {r["client_workload"] for r in during} == {WORKLOADS[pod]}
        assert 0 < lookup - max(r["latency_ns"] for r in during) < SECOND // 20


def named(found: Tables, in_the_second_of_the_kill: bool) -> list[tuple[str | None, str]]:
    """For each flow of the reused IP the pod that podtap says, None for ambiguous, and the one that it was."""
    answers = []
    for row in found["flows"]:
        for side in ("orig", "resp"):
            near = row["first_seen"] // SECOND == TRUTH["times"]["killed"] // SECOND
            if row[f"{side}_ip"] == REUSED and near == in_the_second_of_the_kill:
                assert row[f"{side}_identity"] in ("pod", "ambiguous")
                owner = BEFORE if row["first_seen"] < TRUTH["times"]["killed"] else AFTER
                answers.append((row[f"{side}_pod"], owner))
    return answers


def test_an_ip_is_named_after_who_had_it_then(found: Tables) -> None:
    answers = named(found, in_the_second_of_the_kill=False)
    assert {owner for _, owner in answers} == {BEFORE, AFTER}
    assert [answer for answer in answers if answer[0] != answer[1]] == []


def test_in_the_second_of_the_handover_no_name_is_wrong(found: Tables) -> None:
    answers = named(found, in_the_second_of_the_kill=True)
    assert {owner for _, owner in answers} == {BEFORE, AFTER}
    assert [answer for answer in answers if answer[0] not in (None, answer[1])] == []


def test_both_owners_of_the_ip_talked_to_the_same_peer(found: Tables) -> None:
    flows = [row for pod in (BEFORE, AFTER) for row in at(found, "flows", pod) if row["protocol"] == "TCP"]
    assert {row["resp_service"] for row in flows} == {"orders"}
    assert {row["orig_workload"] for row in flows if row["orig_identity"] != "ambiguous"} == {"cart", "report"}


def test_every_request_is_one_connection_with_the_pod_that_answered(found: Tables) -> None:
    """Of a service's clients the load tool knows the service's address only; whose it is, the cluster's objects say."""
    connections = {
        (row["orig_ip"], row["orig_port"], row["resp_ip"], row["resp_port"]): row
        for row in found["connections"]
        if row["protocol"] == "TCP"
    }
    assert connections.keys() == {(*request["local"], *request["remote"]) for request in TRUTH["requests"]}
    assert len(connections) == len(TRUTH["requests"])
    for row in connections.values():
        if row["resp_service"]:
            assert row["backend_workload"] == row["resp_service"]
            assert row["backend_ip"] in {IPS[name] for name in WORKLOADS if WORKLOADS[name] == row["resp_service"]}


def test_what_the_cable_lost_was_lost_between_the_nodes(found: Tables) -> None:
    lost = Counter()
    for row in found["losses"]:
        assert row["resent"]
        ends = tuple((row[f"{end}_node"], row[f"{end}_interface"]) for end in ("after", "before"))
        lost[row["verdict"], ends] += row["tcp_segments"]
    assert lost == {("lost", (("node-b", "if2"), ("node-a", "if2"))): TRUTH["uplink"]["lost"]}
    assert [TRUTH["interfaces"][node]["if2"] for node in ("node-a", "node-b")] == ["eth0", "eth0"]


def test_the_nodes_of_one_machine_have_one_clock(found: Tables) -> None:
    assert found["clocks"]
    assert all(abs(row["offset_ns"]) <= row["bound_ns"] < 50_000 for row in found["clocks"])
