"""Who an address was at a time. Expected names come from the stories written here, or from real clusters' answers."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard

from analysis import schemas
from analysis.errors import PodtapError
from analysis.identities import ANSWERS, Identities, add_identities, load_identities
from analysis.timelines import NOBODY, SEVERAL, Timelines
from tests import naive_identities
from tests.kubernetes_dumps import (
    Object,
    ask,
    ask_all,
    completed,
    identities_of,
    listed,
    node,
    ns,
    owned_by,
    pod,
    service,
    time,
    who,
    write_dump,
)
from tests.naive_identities import Lookup

KUBERNETES = Path(__file__).resolve().parents[1].parent / "shared" / "k8s"
needs_shared = pytest.mark.skipif(not KUBERNETES.exists(), reason="shared Kubernetes answers are absent")


# --- pods -----------------------------------------------------------------------------------------------------------


def test_a_pod_owns_its_address_from_its_start_and_after_the_dump(tmp_path: Path) -> None:
    identities = identities_of(tmp_path, pod("web", ["10.1.0.5"], "11:00:00"))
    assert who(identities, "10.1.0.5", "10:59:59+999999999") == "unknown"
    assert who(identities, "10.1.0.5", "11:00:00") == "pod web"
    assert who(identities, "10.1.0.5", "13:00:00") == "pod web"


def test_all_columns_of_a_pod_are_answered(tmp_path: Path) -> None:
    metadata = {"labels": {"env": "prod", "app": "web"}} | owned_by("StatefulSet", "web")
    identities = identities_of(tmp_path, pod("web-0", ["10.1.0.5"], "11:00:00", metadata=metadata))
    assert ask(identities, "10.1.0.5", "11:30:00") == {
        "identity": "pod",
        "namespace": "shop",
        "pod": "web-0",
        "pod_uid": "uid-web-0",
        "workload": "web",
        "workload_kind": "StatefulSet",
        "service": None,
        "node": "node-a",
    }
    assert identities.table["labels"].to_pylist() == [["app=web", "env=prod"]]


def test_both_addresses_of_a_dual_stack_pod_are_its_own_however_they_are_written(tmp_path: Path) -> None:
    identities = identities_of(tmp_path, pod("web", ["10.1.0.5", "FD00:10:1:0::0005"], "11:00:00"))
    assert who(identities, "10.1.0.5", "11:30:00") == "pod web"
    assert who(identities, "fd00:10:1::5", "11:30:00") == "pod web"


def test_without_a_start_time_the_creation_counts(tmp_path: Path) -> None:
    identities = identities_of(tmp_path, pod("web", ["10.1.0.5"], "11:00:00", status={"startTime": None}))
    assert who(identities, "10.1.0.5", "10:59:59") == "unknown"
    assert who(identities, "10.1.0.5", "11:00:00") == "pod web"


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_completed_pod_owns_its_address_until_it_finished(tmp_path: Path, phase: str) -> None:
    identities = identities_of(tmp_path, pod("job", ["10.1.0.5"], "11:00:00", status=completed("11:05:00", phase)))
    assert who(identities, "10.1.0.5", "11:05:00+999999999") == "pod job", "Kubernetes rounds down"
    assert who(identities, "10.1.0.5", "11:05:01") == "unknown"


def test_a_completed_pod_whose_end_nothing_tells_owns_nothing(tmp_path: Path) -> None:
    job = pod("job", ["10.1.0.5"], "11:00:00", status={"phase": "Succeeded"})
    identities = identities_of(tmp_path, job, pod("web", ["10.1.0.6"], "11:00:00"))
    assert who(identities, "10.1.0.5", "11:01:00") == "unknown"


def test_a_completed_pod_finished_when_it_became_unready_if_no_container_tells(tmp_path: Path) -> None:
    ready = {"type": "Ready", "status": "False", "lastTransitionTime": time("11:07:00")}
    status = {"phase": "Failed", "conditions": [ready]}
    identities = identities_of(tmp_path, pod("job", ["10.1.0.5"], "11:00:00", status=status))
    assert identities.table["end"].cast(pa.int64()).to_pylist() == [ns("11:07:01")]


def test_an_address_reused_within_seconds_has_one_owner_at_a_time(tmp_path: Path) -> None:
    """The second pod was scheduled before the first had finished: it can't have had the address by then."""
    job = pod("job", ["10.1.0.5"], "11:00:00", status=completed("11:05:03"))
    identities = identities_of(tmp_path, job, pod("web", ["10.1.0.5"], "11:05:01"))
    assert who(identities, "10.1.0.5", "11:05:02+999999999") == "pod job"
    assert who(identities, "10.1.0.5", "11:05:03") == "ambiguous", "it finished within this second"
    assert who(identities, "10.1.0.5", "11:05:04") == "pod web"


def test_completed_pods_follow_each_other(tmp_path: Path) -> None:
    jobs = [
        pod(f"job-{hour}", ["10.1.0.5"], f"{hour}:00:00", status=completed(f"{hour}:30:00"))
        for hour in ("12", "10", "11")
    ]
    identities = identities_of(tmp_path, *jobs, taken="13:00:00")
    clocks = ["10:29:59", "10:30:01", "11:00:00", "11:45:00", "12:10:00", "12:30:01"]
    owners = ["pod job-10", "unknown", "pod job-11", "unknown", "pod job-12", "unknown"]
    assert [who(identities, "10.1.0.5", clock) for clock in clocks] == owners


def test_two_living_owners_of_one_address_are_ambiguous_where_they_overlap(tmp_path: Path) -> None:
    identities = identities_of(tmp_path, pod("a", ["10.1.0.5"], "11:00:00"), pod("b", ["10.1.0.5"], "11:30:00"))
    assert who(identities, "10.1.0.5", "11:29:59") == "pod a"
    assert ask(identities, "10.1.0.5", "11:30:00") == {name: None for name in ANSWERS} | {"identity": "ambiguous"}


def test_a_pod_being_deleted_keeps_its_address_until_the_deadline(tmp_path: Path) -> None:
    dying = pod("web", ["10.1.0.5"], "11:00:00", metadata={"deletionTimestamp": time("12:00:20")})
    identities = identities_of(tmp_path, dying)
    assert who(identities, "10.1.0.5", "12:00:19") == "pod web"
    assert who(identities, "10.1.0.5", "12:00:20") == "unknown"


def test_a_pod_that_outlives_its_deadline_keeps_its_address_as_long_as_it_is_seen(tmp_path: Path) -> None:
    stuck = pod("web", ["10.1.0.5"], "11:00:00", metadata={"deletionTimestamp": time("11:30:00")})
    assert who(identities_of(tmp_path, stuck), "10.1.0.5", "11:59:59") == "pod web"


# --- hostNetwork and host ports --------------------------------------------------------------------------------------


def test_a_host_network_pod_owns_the_ports_it_declares_and_the_node_the_rest(tmp_path: Path) -> None:
    ports = [{"containerPort": 9100}, {"containerPort": 53, "protocol": "UDP"}]
    spec = {"hostNetwork": True, "containers": [{"ports": ports}]}
    identities = identities_of(
        tmp_path, node("node-a", ["192.168.0.1"]), pod("agent", ["192.168.0.1"], "11:00:00", spec=spec)
    )
    assert who(identities, "192.168.0.1", "11:30:00", 9100) == "pod agent"
    assert who(identities, "192.168.0.1", "11:30:00", 53, "UDP") == "pod agent"
    assert who(identities, "192.168.0.1", "11:30:00", 53, "TCP") == "node node-a"
    assert who(identities, "192.168.0.1", "11:30:00", 40000) == "node node-a"
    assert who(identities, "192.168.0.1", "11:30:00", None, "ICMP") == "node node-a"
    assert who(identities, "192.168.0.1", "10:30:00", 9100) == "node node-a"


def test_a_host_network_pod_without_ports_leaves_everything_to_the_node(tmp_path: Path) -> None:
    agent = pod("agent", ["192.168.0.1"], "11:00:00", spec={"hostNetwork": True, "containers": [{"name": "c"}]})
    identities = identities_of(tmp_path, node("node-a", ["192.168.0.1"]), agent)
    assert who(identities, "192.168.0.1", "11:30:00", 9100) == "node node-a"


def test_a_host_port_is_the_pods_on_its_node(tmp_path: Path) -> None:
    ports = [{"containerPort": 80, "hostPort": 8080}, {"containerPort": 81, "hostPort": 8081, "hostIP": "192.168.9.9"}]
    ingress = pod(
        "ingress", ["10.1.0.5"], "11:00:00", spec={"containers": [{"ports": ports}]}, status={"hostIP": "192.168.0.1"}
    )
    identities = identities_of(tmp_path, ingress, node("node-a", ["192.168.0.1", "192.168.9.9"]))
    assert who(identities, "192.168.0.1", "11:30:00", 8080) == "pod ingress"
    assert who(identities, "192.168.0.1", "11:30:00", 80) == "node node-a"
    assert who(identities, "192.168.0.1", "11:30:00", 8081) == "node node-a"
    assert who(identities, "192.168.9.9", "11:30:00", 8081) == "pod ingress"


# --- services --------------------------------------------------------------------------------------------------------


def test_a_service_owns_its_cluster_ips_on_every_port_from_its_creation(tmp_path: Path) -> None:
    identities = identities_of(tmp_path, service("api", ["10.96.0.7", "fd00:96::7"]))
    answer = ask(identities, "10.96.0.7", "10:00:00", 1)
    assert (answer["identity"], answer["namespace"], answer["service"], answer["pod"]) == (
        "service",
        "shop",
        "api",
        None,
    )
    assert who(identities, "fd00:96::7", "10:00:00") == "service api"
    assert who(identities, "10.96.0.7", "09:59:59") == "unknown"


def test_a_headless_or_external_name_service_owns_nothing(tmp_path: Path) -> None:
    headless, named = service("db", ["None"]), service("legacy", [], spec={"type": "ExternalName", "clusterIPs": None})
    identities = identities_of(tmp_path, headless, named, pod("db-0", ["10.1.0.5"], "11:00:00"))
    assert identities.table["name"].to_pylist() == ["db-0"]


def test_a_node_port_is_the_services_on_every_node(tmp_path: Path) -> None:
    np = service("api", ["10.96.0.7"], spec={"ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]})
    identities = identities_of(
        tmp_path, np, node("node-a", ["192.168.0.1"]), node("node-b", ["192.168.0.2", "fd00::2"])
    )
    for ip in ("192.168.0.1", "192.168.0.2", "fd00::2"):
        assert who(identities, ip, "11:00:00", 30080) == "service api"
        assert who(identities, ip, "11:00:00", 30080, "UDP").startswith("node")


def test_external_and_load_balancer_addresses_are_the_services_on_its_ports(tmp_path: Path) -> None:
    """k3s gives a node's address to load balancers, so the other ports must stay the node's."""
    lb = service(
        "web",
        ["10.96.0.7"],
        spec={"ports": [{"port": 443}], "externalIPs": ["198.51.100.9"]},
        status={"loadBalancer": {"ingress": [{"ip": "192.168.0.1"}, {"hostname": "lb.example.com"}]}},
    )
    identities = identities_of(tmp_path, lb, node("node-a", ["192.168.0.1"]))
    assert who(identities, "198.51.100.9", "11:00:00", 443) == "service web"
    assert who(identities, "192.168.0.1", "11:00:00", 443) == "service web"
    assert who(identities, "192.168.0.1", "11:00:00", 22) == "node node-a"


# --- nodes -----------------------------------------------------------------------------------------------------------


def test_bridge_and_tunnel_addresses_are_the_nodes(tmp_path: Path) -> None:
    flannel = {
        "annotations": {
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/public-ip": "192.168.7.7",
        }
    }
    with_flannel = node("node-a", ["192.168.0.1"], metadata=flannel, spec={"podCIDRs": ["10.1.0.0/24", "fd00:1::/64"]})
    calico = {
        "annotations": {
            "projectcalico.org/IPv4Address": "192.168.0.2/24",
            "projectcalico.org/IPv4IPIPTunnelAddr": "10.1.9.64",
        }
    }
    with_calico = node("node-b", ["192.168.0.2"], metadata=calico, spec={"podCIDRs": ["10.1.1.0/24"]})
    identities = identities_of(tmp_path, with_flannel, with_calico)
    for ip in ("10.1.0.1", "10.1.0.0", "fd00:1::1", "192.168.7.7"):
        assert who(identities, ip, "11:00:00") == "node node-a", ip
    assert who(identities, "10.1.9.64", "11:00:00") == "node node-b"
    assert who(identities, "10.1.1.1", "11:00:00") == "unknown", "Calico may give it to a pod"


def test_the_first_address_of_a_range_is_no_bridge_where_pods_come_from_elsewhere(tmp_path: Path) -> None:
    a = node("node-a", ["192.168.0.1"], spec={"podCIDRs": ["10.1.0.0/24"]})
    assert who(identities_of(tmp_path, a, pod("web", ["10.7.0.5"], "11:00:00")), "10.1.0.1", "11:00:00") == "unknown"


def test_host_network_pods_do_not_speak_against_the_bridge(tmp_path: Path) -> None:
    a = node("node-a", ["192.168.0.1"], spec={"podCIDRs": ["10.1.0.0/24"]})
    agent = pod("agent", ["192.168.0.1"], "11:00:00", spec={"hostNetwork": True})
    assert who(identities_of(tmp_path, a, agent), "10.1.0.1", "11:00:00") == "node node-a"


def test_a_pod_with_the_bridges_address_is_the_pod(tmp_path: Path) -> None:
    a = node("node-a", ["192.168.0.1"], spec={"podCIDRs": ["10.1.0.0/24"]})
    identities = identities_of(tmp_path, a, pod("web", ["10.1.0.1"], "11:00:00"))
    assert who(identities, "10.1.0.1", "11:30:00") == "pod web"


# --- addresses that nobody owns --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ip", "identity"),
    [
        ("8.8.8.8", "external"),
        ("2606:4700::1111", "external"),
        ("172.16.3.4", "external"),  # private, nowhere near the cluster
        ("10.1.200.200", "unknown"),  # near a pod: perhaps one that no dump shows
        ("10.5.7.8", "unknown"),  # in a node's pod range
        ("10.111.3.4", "unknown"),  # in the widest service range that may begin at 10.96.0.0
        ("10.112.3.4", "external"),
        ("192.168.200.1", "unknown"),  # near a node
        ("34.1.2.200", "external"),  # near a node's public address: strangers
        ("fd00:10:1:ffff::9", "unknown"),
        ("fd00:10:2::9", "external"),
        ("169.254.20.10", "node"),  # NodeLocal DNS
        ("169.254.169.254", "external"),  # the cloud's metadata service
        ("224.0.0.251", "external"),
        ("ff02::fb", "external"),
        ("255.255.255.255", "external"),
        ("0.0.0.0", "external"),
        ("127.0.0.1", "unknown"),
        ("fe80::1", "unknown"),
        ("not an address", "unknown"),
        (None, "unknown"),
    ],
)
def test_an_address_that_nobody_owns_is_external_only_if_the_cluster_can_not_have_it(
    tmp_path: Path, ip: str | None, identity: str
) -> None:
    identities = identities_of(
        tmp_path,
        pod("web", ["10.1.0.5", "fd00:10:1::5"], "11:00:00"),
        node("node-a", ["192.168.0.1", "34.1.2.3"], spec={"podCIDRs": ["10.5.0.0/20"]}),
        service("kubernetes", ["10.96.0.1"], metadata={"namespace": "default"}),
    )
    assert who(identities, ip, "11:30:00") == identity
    assert who(Identities.empty(), ip, "11:30:00") == "unknown"


def test_a_service_range_of_the_api_server_is_the_clusters(tmp_path: Path) -> None:
    service_range = {
        "kind": "ServiceCIDR",
        "metadata": {"name": "second", "uid": "u"},
        "spec": {"cidrs": ["10.200.0.0/14"]},
    }
    identities = identities_of(tmp_path, service_range)
    assert who(identities, "10.203.0.9", "11:00:00") == "unknown"
    assert who(identities, "10.204.0.9", "11:00:00") == "external"


# --- workloads -------------------------------------------------------------------------------------------------------


def replica_set(name: str, owner: Object) -> Object:
    return {"kind": "ReplicaSet", "metadata": {"name": name, "namespace": "shop", "uid": f"uid-{name}"} | owner}


def job(name: str, owner: Object) -> Object:
    return {"kind": "Job", "metadata": {"name": name, "namespace": "shop", "uid": f"uid-{name}"} | owner}


@pytest.mark.parametrize(
    ("owner", "others", "workload"),
    [
        (
            owned_by("ReplicaSet", "web-5d4f"),
            [replica_set("web-5d4f", owned_by("Deployment", "web"))],
            ("web", "Deployment"),
        ),
        (owned_by("ReplicaSet", "web-5d4f"), [replica_set("web-5d4f", {})], ("web-5d4f", "ReplicaSet")),
        (owned_by("ReplicaSet", "web-5d4f") | {"labels": {"pod-template-hash": "5d4f"}}, [], ("web", "Deployment")),
        (owned_by("ReplicaSet", "web-5d4f"), [], ("web-5d4f", "ReplicaSet")),
        (owned_by("Job", "tidy-28"), [job("tidy-28", owned_by("CronJob", "tidy"))], ("tidy", "CronJob")),
        (owned_by("Job", "once"), [job("once", {})], ("once", "Job")),
        (owned_by("DaemonSet", "agent"), [], ("agent", "DaemonSet")),
        (owned_by("Node", "node-a") | {"name": "etcd-node-a"}, [], ("etcd", "Node")),
        ({}, [], (None, None)),
    ],
)
def test_the_workload_is_the_top_of_the_owner_chain(
    tmp_path: Path, owner: Object, others: list[Object], workload: tuple[str | None, str | None]
) -> None:
    identities = identities_of(tmp_path, pod("web-5d4f-x", ["10.1.0.5"], "11:00:00", metadata=owner), *others)
    answer = ask(identities, "10.1.0.5", "11:30:00")
    assert (answer["workload"], answer["workload_kind"]) == workload


def test_an_owner_chain_that_bites_its_tail_ends(tmp_path: Path) -> None:
    circle = [replica_set("a", owned_by("ReplicaSet", "b")), replica_set("b", owned_by("ReplicaSet", "a"))]
    identities = identities_of(
        tmp_path, pod("p", ["10.1.0.5"], "11:00:00", metadata=owned_by("ReplicaSet", "a")), *circle
    )
    assert ask(identities, "10.1.0.5", "11:30:00")["workload_kind"] == "ReplicaSet"


# --- lookup ----------------------------------------------------------------------------------------------------------


def random_rows(chance: random.Random) -> list[Object]:
    rows = []
    for number in range(chance.randrange(1, 60)):
        identity = chance.choice(["pod", "service", "node"])
        start, length = chance.randrange(50), chance.randrange(1, 30)
        port = chance.choice([None, None, 80, 53])
        rows.append(
            {
                "cluster": None,
                "unseen_before": False,
                "ip": chance.choice(["10.1.0.1", "10.1.0.2", "fd00::1", "34.1.2.3", "10.9.0.0/20"]),
                "port": port,
                "protocol": None if port is None else chance.choice(["TCP", "UDP"]),
                "start": chance.choice([None, start]),
                "held": None,
                "kept": None,
                "end": chance.choice([None, start + length]),
                "identity": identity,
                "namespace": None if identity == "node" else "shop",
                "name": f"{identity}-{number % 7}",
                "uid": f"uid-{number % 7}",
                "workload": None,
                "workload_kind": None,
                "node": "node-a",
                "labels": [],
                "source": f"d.json @ {time('12:00:00')}",
            }
        )
    return rows


@pytest.mark.parametrize("seed", range(30))
def test_lookups_equal_the_naive_twins(seed: int) -> None:
    chance = random.Random(seed)
    rows = random_rows(chance)
    ips = [
        "10.1.0.1",
        "10.1.0.2",
        "10.1.77.1",
        "10.9.15.255",
        "fd00::1",
        "fd00:0:0:5::1",
        "34.1.2.3",
        "34.1.9.9",
        "8.8.8.8",
    ]
    lookups = [
        Lookup(chance.choice([*ips, None]), chance.choice([None, 80, 53, 9]), chance.choice(["TCP", "UDP", "ICMP"]), ts)
        for ts in (chance.randrange(90) for _ in range(300))
    ]
    identities = Identities(pa.Table.from_pylist(rows, schemas.IDENTITIES.schema))
    found = [tuple(answer[name] for name in ANSWERS) for answer in ask_all(identities, lookups)]
    assert found == [naive_identities.identify(rows, lookup) for lookup in lookups]


def test_columns_in_chunks_with_dictionaries_of_their_own_are_answered_row_by_row(tmp_path: Path) -> None:
    identities = identities_of(tmp_path, pod("a", ["10.1.0.5"], "11:00:00"), pod("b", ["10.1.0.6"], "11:00:00"))
    answers = identities.identify(
        pa.chunked_array([pa.array([ip], schemas.NAME) for ip in ("10.1.0.6", "10.1.0.5", None)]),
        pa.chunked_array([pa.array([80], pa.uint16()), pa.array([None, 80], pa.uint16())]),
        pa.chunked_array([pa.array(["TCP", None, "TCP"], schemas.NAME)]),
        pa.chunked_array([pa.array([ns("11:30:00")] * 3, schemas.TIME)]),
    )
    assert answers["pod"].to_pylist() == ["b", "a", None]


def test_a_timeline_is_half_open_and_knows_overlap_and_gaps() -> None:
    timelines = Timelines([(7, 10, 20, 1), (7, 15, 30, 2), (7, 40, 50, 1), (9, 0, 5, 3)])
    times = [9, 10, 14, 15, 19, 20, 29, 30, 39, 40, 50]
    owners = [NOBODY, 1, 1, SEVERAL, SEVERAL, 2, 2, NOBODY, NOBODY, 1, NOBODY]
    keys = pa.array([7] * len(times)).to_numpy()
    assert timelines.at(keys, pa.array(times).to_numpy()).tolist() == owners
    assert timelines.at(pa.array([8, 9, 9, 10]).to_numpy(), pa.array([10, -1, 4, 4]).to_numpy()).tolist() == [
        -1,
        -1,
        3,
        -1,
    ]


# --- columns of tables -----------------------------------------------------------------------------------------------


def row_of(table_name: str, values: Object) -> pa.Table:
    """One row; what is not given is null, and the identity columns are missing as before the first look-up."""
    schema = schemas.TABLES[table_name].schema
    fields = [field.with_nullable(True) for field in schema if not field.name.endswith(tuple(f"_{a}" for a in ANSWERS))]
    return pa.Table.from_pylist([values], pa.schema(fields))


@pytest.mark.parametrize(
    ("table_name", "values", "named"),
    [
        (
            "flows",
            {
                "first_seen": ns("11:10:00"),
                "orig_ip": "10.1.0.5",
                "resp_ip": "192.168.0.1",
                "resp_port": 53,
                "protocol": "UDP",
            },
            ("orig", "resp"),
        ),
        (
            "retransmits",
            {
                "ts": ns("12:10:00"),
                "flow_first_seen": ns("11:10:00"),
                "orig_ip": "10.1.0.5",
                "resp_ip": "192.168.0.1",
                "resp_port": 54,
            },
            ("orig", "resp"),
        ),
        (
            "dns",
            {
                "ts": ns("12:10:00"),
                "flow_first_seen": ns("11:10:00"),
                "client_ip": "10.1.0.5",
                "server_ip": "192.168.0.1",
                "server_port": 53,
                "transport": "udp",
            },
            ("client", "server"),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_both_sides_of_a_table_are_named_as_of_the_flows_first_packet(
    tmp_path: Path, table_name: str, values: Object, named: tuple[str, str]
) -> None:
    ports = [{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 54, "protocol": "TCP"}]
    dns = pod("dns", ["192.168.0.1"], "11:00:00", spec={"hostNetwork": True, "containers": [{"ports": ports}]})
    old = pod("old", ["10.1.0.5"], "11:00:00", status=completed("12:00:00"))
    identities = identities_of(
        tmp_path, dns, old, pod("new", ["10.1.0.5"], "12:00:00"), node("node-a", ["192.168.0.1"])
    )
    once = add_identities(identities, table_name, row_of(table_name, values))
    assert once.schema == schemas.TABLES[table_name].schema
    (row,) = once.to_pylist()
    assert [row[f"{side}_pod"] for side in named] == ["old", "dns"]
    unnamed = add_identities(Identities.empty(), table_name, once)
    assert unnamed[f"{named[0]}_identity"].to_pylist() == ["unknown"]
    assert unnamed[f"{named[0]}_pod"].to_pylist() == [None]
    assert add_identities(identities, table_name, unnamed).equals(once)


def test_tables_without_identity_columns_come_back_as_they_are() -> None:
    packets = schemas.PACKETS.schema.empty_table()
    assert add_identities(Identities.empty(), "packets", packets) is packets


@pytest.mark.parametrize("table_name", ["flows", "retransmits", "dns"])
def test_an_empty_table_gets_its_columns(tmp_path: Path, table_name: str) -> None:
    identities = identities_of(tmp_path, pod("web", ["10.1.0.5"], "11:00:00"))
    empty = schemas.TABLES[table_name].schema.empty_table()
    assert add_identities(identities, table_name, empty).schema == empty.schema


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "encode"),
    [
        ("d.json", lambda text: text.encode()),
        ("d.json.gz", lambda text: gzip.compress(text.encode())),
        ("d.json.zst", lambda text: zstandard.compress(text.encode())),
        ("powershell.json", lambda text: text.encode("utf-16")),
        ("twice.json", lambda text: (text + "\n" + text).encode()),
    ],
)
def test_a_dump_is_read_however_it_was_stored(tmp_path: Path, name: str, encode: Any) -> None:
    (tmp_path / name).write_bytes(encode(json.dumps(listed(pod("web", ["10.1.0.5"], "11:00:00")))))
    identities, problems = load_identities([str(tmp_path)])
    assert (who(identities, "10.1.0.5", "11:30:00"), problems) == ("pod web", [])


def test_one_file_per_kind_makes_one_cluster(tmp_path: Path) -> None:
    """List items don't carry their kind, and owners lie in other files."""
    web = pod("web-5d4f-x", ["10.1.0.5"], "11:00:00", metadata=owned_by("ReplicaSet", "web-5d4f"))
    owner = replica_set("web-5d4f", owned_by("Deployment", "web"))
    for item in (web, owner, node("node-a", ["192.168.0.1"])):
        kind = item.pop("kind")
        (tmp_path / f"{kind}.json").write_text(json.dumps({"kind": f"{kind}List", "apiVersion": "v1", "items": [item]}))
    identities, _ = load_identities([str(tmp_path)])
    assert ask(identities, "10.1.0.5", "11:30:00")["workload"] == "web"
    assert who(identities, "192.168.0.1", "11:30:00") == "node node-a"


def test_what_is_not_json_is_a_problem_with_its_offset_and_the_rest_is_read(tmp_path: Path) -> None:
    good = write_dump(tmp_path, "12:00:00", pod("web", ["10.1.0.5"], "11:00:00"))
    bad = tmp_path / "bad.json"
    bad.write_text('{"kind": "é", oops')
    identities, (problem,) = load_identities([good, str(bad)])
    assert (problem.path, problem.offset) == (str(bad), 15)  # bytes: é has two
    assert "kubectl get" in problem.message
    assert who(identities, "10.1.0.5", "11:30:00") == "pod web"


@pytest.mark.parametrize(
    "content", [b"", b"[1, 2]", b"3", b'{"kind": "Table"}', b'{"kind": 7}', b"[" * 100_000, b"\xff\xfe\xfa"]
)
def test_a_file_without_objects_fails_and_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "dump.json").write_bytes(content)
    with pytest.raises(PodtapError, match=r"dump\.json: no pods, services or nodes.*kubectl get"):
        load_identities([str(tmp_path / "dump.json")])


def test_a_path_that_does_not_exist_fails_and_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PodtapError, match=r"nowhere: no such file or folder.*kubectl get"):
        load_identities([str(tmp_path / "nowhere")])


@pytest.mark.parametrize(
    "broken",
    [
        {"kind": "Pod"},
        {"kind": "Pod", "metadata": None},
        {"kind": "Pod", "metadata": [], "spec": 3},
        pod("b", ["10.1.0.999"], "11:00:00"),
        pod("b", ["10.1.0.7"], "11:00:00", status={"startTime": "yesterday"}),
        pod(
            "b",
            ["10.1.0.7"],
            "11:00:00",
            spec={"hostNetwork": True, "containers": [{"ports": [{"containerPort": 99999}]}]},
        ),
        pod("b", ["10.1.0.7"], "11:00:00", metadata={"name": ["x"]}),
        pod("b", ["10.1.0.7"], "11:00:00", spec={"nodeName": {"x": 1}}),
        service("b", ["10.96.0.7"], spec={"ports": [{"port": "http", "nodePort": True}], "externalIPs": ["1.2.3.4"]}),
        node("b", ["192.168.0.1"], spec={"podCIDRs": ["10.0.0.1/8"]}),
    ],
)
def test_an_object_of_the_wrong_shape_costs_itself_only(tmp_path: Path, broken: Object) -> None:
    path = write_dump(tmp_path, "12:00:00", pod("web", ["10.1.0.5"], "11:00:00"), broken)
    identities, problems = load_identities([path])
    assert [problem.path for problem in problems] == [path]
    assert identities.table["name"].to_pylist() == ["web"]


# --- real clusters ---------------------------------------------------------------------------------------------------


@needs_shared
def test_a_real_completed_pod_never_makes_the_living_one_ambiguous() -> None:
    identities, problems = load_identities(
        [str(KUBERNETES / "lists_special/pods_shared_ip_succeeded_and_running.json")]
    )
    assert (who(identities, "10.244.1.70", "2026-11-24T03:03:34Z"), problems) == ("pod batch-2", [])


@needs_shared
def test_a_real_rollout_is_told_apart_by_dumps_before_and_after_it() -> None:
    """Owners from the lists themselves: 10.244.0.2 was db-0's before the churn and a web pod's after it."""
    folders = [KUBERNETES / "controllers" / name for name in ("lists", "lists_after_churn")]
    identities, problems = load_identities([str(folder) for folder in folders])
    assert problems == []
    assert who(identities, "10.244.0.2", "2026-11-24T03:06:14Z") == "pod db-0"
    after = ask(identities, "10.244.0.2", "2026-11-24T03:06:52Z")
    assert (after["pod"], after["workload"], after["workload_kind"]) == ("web-77fcbc9d6-f5g7l", "web", "Deployment")
    for folder, clock in zip(folders, ("03:06:14", "03:06:52"), strict=True):
        for item in json.loads((folder / "pods.json").read_text())["items"]:
            if not item["spec"].get("hostNetwork") and item["status"]["phase"] == "Running":
                for ip in item["status"]["podIPs"]:
                    assert who(identities, ip["ip"], f"2026-11-24T{clock}Z") == f"pod {item['metadata']['name']}"


@needs_shared
@pytest.mark.parametrize("proxy", ["iptables", "nftables"])
def test_real_service_requests_are_named(proxy: str) -> None:
    """Endpoints as curl and conntrack reported them beside the captures."""
    identities, problems = load_identities([str(KUBERNETES / "kubeproxy" / proxy / "cluster_objects_at_capture.json")])
    assert problems == []
    during = "2026-11-24T03:21:27Z"
    assert who(identities, "10.244.0.5", during, 49358) == "pod db-0"
    assert who(identities, "10.96.48.196", during, 80) == "service web"
    assert who(identities, "203.0.113.11", during, 30757) == "service web-lb"
    assert who(identities, "203.0.113.11", during, 9100) == "pod agent-96qlp"
    assert who(identities, "203.0.113.11", during, 22) == "node node-a"
