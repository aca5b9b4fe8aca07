"""The API server stand-in with real clients: what recordings do not show, faults, tokens, and the lab behind it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException

from tests.lab.api_certificate import make_certificate
from tests.lab.api_faults import DISTURBANCES, REFUSALS
from tests.lab.api_resources import RESOURCES, Object
from tests.lab.api_selectors import Selection, parse_labels, select
from tests.lab.api_server import ApiServer
from tests.lab.api_status import ApiError
from tests.lab.lab import Lab
from tests.lab.namespaces import Namespace, new_prefix
from tests.lab.topology import Node, Pod, Topology

PODS = next(resource for resource in RESOURCES if resource.plural == "pods")


def pod(name: str, node: str = "node-a", namespace: str = "shop", **labels: str) -> Object:
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    spec = {"nodeName": node, "containers": [{"name": "c"}]}
    return {"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": spec}


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as running:
        yield running


@pytest.fixture
def http() -> Iterator[urllib3.PoolManager]:
    with urllib3.PoolManager(retries=False, timeout=5) as pool:
        yield pool


@pytest.fixture
def core(server: ApiServer) -> Iterator[client.CoreV1Api]:
    configuration = client.Configuration()
    configuration.host = server.url
    with client.ApiClient(configuration) as api:
        yield client.CoreV1Api(api)


def events(answer: Any, count: int) -> list[tuple[str, str]]:
    """So many lines of an open watch: type and name."""
    lines = []
    while len(lines) < count:
        line = json.loads(answer.readline())
        lines.append((line["type"], line["object"]["metadata"].get("name", "")))
    return lines


def open_watch(http: urllib3.PoolManager, server: ApiServer, query: str = "") -> Any:
    before = server.open_watches
    answer = http.request("GET", f"{server.url}/api/v1/pods?watch=1{query}", preload_content=False)
    server.wait_until(lambda: server.is_settled(before + 1))
    return answer


def names(http: urllib3.PoolManager, server: ApiServer, query: str, path: str = "/api/v1/pods") -> list[str]:
    answer = http.request("GET", f"{server.url}{path}?{query}")
    assert answer.status == 200, answer.data
    return [item["metadata"]["name"] for item in answer.json()["items"]]


# The Python client


def test_python_client_lists_in_pages_of_one_version(server: ApiServer, core: client.CoreV1Api) -> None:
    for number in range(5):
        server.apply(pod(f"p{number}"))
    found, token = [], None
    while token != "":
        page = core.list_namespaced_pod("shop", limit=2, _continue=token)
        found += [item.metadata.name for item in page.items]
        token = page.metadata._continue or ""
        server.apply(pod(f"later-{len(found)}"))
        assert page.metadata.resource_version == "5"
    assert found == ["p0", "p1", "p2", "p3", "p4"]
    assert [request.query.get("limit") for request in server.requests] == ["2"] * 3


def test_python_client_watches_and_is_told_of_bookmarks_and_of_what_is_too_old(
    server: ApiServer, core: client.CoreV1Api
) -> None:
    server.apply(pod("p1", app="web"))
    seen = []
    stream = watch.Watch().stream(
        core.list_pod_for_all_namespaces, timeout_seconds=3, allow_watch_bookmarks=True, label_selector="app=web"
    )
    for event in stream:
        item = event["object"]
        seen.append((event["type"], item["kind"] if event["type"] == "BOOKMARK" else item.metadata.name))
        if len(seen) == 2:
            server.apply(pod("p2", app="web"))
            server.apply(pod("p2", app="db"))
            server.delete(pod("p1"))
    assert seen[-2:] == [("BOOKMARK", "Pod")] * 2, "soon after what came first, and before the end"
    assert seen[:-2] == [
        ("ADDED", "p1"),
        ("BOOKMARK", "Pod"),
        ("ADDED", "p2"),
        ("DELETED", "p2"),
        ("DELETED", "p1"),
    ]
    server.restart()
    with pytest.raises(ApiException) as error:
        list(watch.Watch().stream(core.list_pod_for_all_namespaces, timeout_seconds=1, resource_version="1"))
    assert (error.value.status, error.value.reason) == (410, "Expired: too old resource version: 1 (4)")


def test_python_client_reads_one_object_or_learns_that_there_is_none(server: ApiServer, core: client.CoreV1Api) -> None:
    server.apply(pod("p1"))
    assert core.read_namespaced_pod("p1", "shop").spec.node_name == "node-a"
    with pytest.raises(ApiException) as error:
        core.read_namespaced_pod("p2", "shop")
    assert json.loads(error.value.body)["message"] == 'pods "p2" not found'


def test_python_client_knows_all_groups(server: ApiServer, core: client.CoreV1Api) -> None:
    metadata = {"name": "web", "namespace": "shop"}
    server.apply({"kind": "NetworkPolicy", "apiVersion": "networking.k8s.io/v1", "metadata": metadata})
    spec = {"selector": {"matchLabels": {"app": "web"}}}
    server.apply({"kind": "ReplicaSet", "apiVersion": "apps/v1", "metadata": metadata, "spec": spec})
    api = core.api_client
    assert len(client.NetworkingV1Api(api).list_network_policy_for_all_namespaces().items) == 1
    assert len(client.AppsV1Api(api).list_namespaced_replica_set("shop").items) == 1
    assert {group.name for group in client.ApisApi(api).get_api_versions().groups} == {
        resource.group for resource in RESOURCES if resource.group
    }
    assert client.VersionApi(api).get_code().minor == "36"


# Selectors


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ("app=web", True),
        ("app==db", False),
        ("app!=db", True),
        ("missing!=db", True),
        ("app in (db, web)", True),
        ("app notin (db,web),tier=1", False),
        ("missing notin (x)", True),
        ("app", True),
        ("!app", False),
        ("!missing", True),
        ("tier>0,tier<2", True),
        ("tier>1", False),
        ("app=", False),
        ("", True),
        (" app = web , tier = 1 ", True),
    ],
)
def test_label_selectors(selector: str, matches: bool) -> None:
    labels = {"app": "web", "tier": "1"}
    assert Selection(PODS, labels=parse_labels(selector)).matches(pod("p", **labels)) is matches


@pytest.mark.parametrize("selector", ["=web", "app=a b", "app in web", "a,,b", "tier>one", "app=web)"])
def test_label_selectors_that_are_none(selector: str) -> None:
    with pytest.raises(ApiError) as error:
        parse_labels(selector)
    assert error.value.code == 400


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ("spec.nodeName=node-a", True),
        ("spec.nodeName!=node-a", False),
        ("status.podIP=", True),
        ("spec.hostNetwork=false", True),
        ("metadata.name=p,metadata.namespace==shop", True),
        ("metadata.name=p,metadata.namespace==other", False),
    ],
)
def test_field_selectors(selector: str, matches: bool) -> None:
    assert select(PODS, "", "", selector).matches(pod("p")) is matches


def test_unknown_field_is_refused_in_lists_and_watches(server: ApiServer, http: urllib3.PoolManager) -> None:
    for query in ("", "&watch=1"):
        answer = http.request("GET", f"{server.url}/api/v1/pods?fieldSelector=spec.x%3D1{query}")
        assert (answer.status, answer.json()["message"]) == (400, "field label not supported: spec.x")


# Lists and watches


def test_pages_with_selectors_do_not_say_how_much_remains(server: ApiServer, http: urllib3.PoolManager) -> None:
    for number in range(4):
        server.apply(pod(f"p{number}", app="web" if number % 2 else "db"))
    metadata = http.request("GET", f"{server.url}/api/v1/pods?limit=1&labelSelector=app%3Dweb").json()["metadata"]
    assert metadata.keys() == {"resourceVersion", "continue"}
    assert names(http, server, f"limit=1&labelSelector=app%3Dweb&continue={metadata['continue']}") == ["p3"]


def test_version_0_has_no_pages(server: ApiServer, http: urllib3.PoolManager) -> None:
    for number in range(3):
        server.apply(pod(f"p{number}"))
    assert len(names(http, server, "limit=1&resourceVersion=0")) == 3
    assert len(names(http, server, "limit=1")) == 1


def test_an_expired_page_comes_with_a_token_for_the_rest_as_it_is_now(
    server: ApiServer, http: urllib3.PoolManager
) -> None:
    for number in range(3):
        server.apply(pod(f"p{number}"))
    path = "/api/v1/namespaces/shop/pods"
    token = http.request("GET", f"{server.url}{path}?limit=1").json()["metadata"]["continue"]
    server.apply(pod("p3"))
    assert names(http, server, f"continue={token}", path) == ["p1", "p2"]
    server.compact()
    assert names(http, server, f"continue={token}", path) == ["p1", "p2"]
    server.restart()
    gone = http.request("GET", f"{server.url}{path}?continue={token}")
    assert gone.status == 410
    assert names(http, server, f"continue={gone.json()['metadata']['continue']}", path) == ["p1", "p2", "p3"]


def test_a_list_waits_for_a_version_that_comes_soon(server: ApiServer, http: urllib3.PoolManager) -> None:
    server.apply(pod("p1"))
    timer = threading.Timer(0.3, lambda: server.apply(pod("p2")))
    timer.start()
    assert names(http, server, "resourceVersion=2") == ["p1", "p2"]
    timer.join()


@pytest.mark.parametrize(
    "query",
    [
        "resourceVersionMatch=Exact",
        "resourceVersionMatch=Exact&resourceVersion=0",
        "resourceVersionMatch=Nearly&resourceVersion=1",
        "sendInitialEvents=true",
        "watch=1&sendInitialEvents=true",
        "watch=1&resourceVersionMatch=NotOlderThan&resourceVersion=1",
    ],
)
def test_options_that_do_not_fit(server: ApiServer, http: urllib3.PoolManager, query: str) -> None:
    answer = http.request("GET", f"{server.url}/api/v1/pods?{query}")
    assert (answer.status, answer.json()["reason"]) == (422, "Invalid")


def test_a_full_watch_cache_forgets_the_oldest_changes_of_its_resource(http: urllib3.PoolManager) -> None:
    with ApiServer(window=3) as server:
        for number in range(5):
            server.apply(pod(f"p{number}"))
        too_old = http.request("GET", f"{server.url}/api/v1/pods?watch=1&resourceVersion=1").data
        assert json.loads(too_old)["object"]["message"] == "too old resource version: 1 (2)"
        answer = open_watch(http, server, "&resourceVersion=2")
        assert events(answer, 3) == [("ADDED", "p2"), ("ADDED", "p3"), ("ADDED", "p4")]
        answer.close()
        assert names(http, server, "resourceVersion=1&resourceVersionMatch=Exact") == ["p0"]


def test_initial_events_may_be_refused(server: ApiServer, http: urllib3.PoolManager) -> None:
    server.apply(pod("p1"))
    answer = open_watch(http, server, "&sendInitialEvents=false&resourceVersionMatch=NotOlderThan")
    server.apply(pod("p2"))
    assert events(answer, 1) == [("ADDED", "p2")]
    answer.close()


def test_paths_that_are_none_and_methods_that_are_not_served(server: ApiServer, http: urllib3.PoolManager) -> None:
    for path in ("/api/v1/podz", "/api/v1/pods/p1", "/api/v1/namespaces/shop/nodes", "/apis/apps/v2/deployments"):
        answer = http.request("GET", server.url + path)
        assert (answer.status, answer.data) == (404, b"404 page not found\n"), path
    answer = http.request("POST", f"{server.url}/api/v1/namespaces/shop/pods", body=b"{}")
    assert (answer.status, answer.json()["reason"]) == (405, "MethodNotAllowed")


def test_log_and_open_watches_say_what_clients_do(server: ApiServer, http: urllib3.PoolManager) -> None:
    began = time.time()
    names(http, server, "limit=3")
    answer = open_watch(http, server)
    [listed, watched] = server.requests
    assert (listed.method, listed.path, listed.query, listed.status) == ("GET", "/api/v1/pods", {"limit": "3"}, 200)
    assert [listed.is_watch, watched.is_watch] == [False, True]
    assert began <= listed.time <= watched.time <= time.time()
    assert server.open_watches == 1
    answer.close()
    server.wait_until(lambda: server.open_watches == 0)


# Faults


@pytest.mark.parametrize("kind", REFUSALS)
def test_lists_are_refused_as_often_as_asked(server: ApiServer, http: urllib3.PoolManager, kind: str) -> None:
    fault = server.inject(kind, "pods", times=2, retry_after=7)
    assert http.request("GET", f"{server.url}/api/v1/services").status == 200
    for _ in range(2):
        answer = http.request("GET", f"{server.url}/api/v1/pods")
        assert (answer.status, answer.json()["code"]) == (int(kind), int(kind))
        assert answer.headers.get("Retry-After") == ("7" if kind == "429" else None)
    assert http.request("GET", f"{server.url}/api/v1/pods").status == 200
    assert (fault.count, server.fault_counts) == (2, {kind: 2})


@pytest.mark.parametrize("kind", [kind for kind in REFUSALS if kind != "410"])
def test_watches_are_refused_before_they_begin_and_open_ones_go_on(
    server: ApiServer, http: urllib3.PoolManager, kind: str
) -> None:
    answer = open_watch(http, server)
    with server.faulty(kind, verb="watch"):
        assert http.request("GET", f"{server.url}/api/v1/pods?watch=1").status == int(kind)
        assert http.request("GET", f"{server.url}/api/v1/pods").status == 200
        server.apply(pod("p1"))
        assert events(answer, 1) == [("ADDED", "p1")]
    answer.close()


def test_410_on_a_watch_is_an_event_and_its_end(server: ApiServer, http: urllib3.PoolManager) -> None:
    answer = open_watch(http, server)
    with server.faulty("410", "pods", times=1) as fault:
        line = json.loads(answer.read())
    assert (line["type"], line["object"]["code"], fault.count) == ("ERROR", 410, 1)


def test_eof_ends_an_open_watch_cleanly_and_leaves_lists_alone(server: ApiServer, http: urllib3.PoolManager) -> None:
    answer = open_watch(http, server)
    with server.faulty("eof", times=1) as fault:
        assert http.request("GET", f"{server.url}/api/v1/pods").status == 200
        assert (answer.status, answer.read(), fault.count) == (200, b"", 1)


def test_reset_in_the_middle_of_a_line(server: ApiServer, http: urllib3.PoolManager) -> None:
    server.apply(pod("p1"))
    answer = open_watch(http, server)
    assert events(answer, 1) == [("ADDED", "p1")]
    with server.faulty("reset", "pods") as fault:
        with pytest.raises(urllib3.exceptions.ProtocolError) as error:
            while True:
                assert not answer.readline().endswith(b"\n")
        assert "ConnectionResetError" in repr(error.value)
        with pytest.raises(urllib3.exceptions.ProtocolError):
            http.request("GET", f"{server.url}/api/v1/pods")
    assert fault.count == 2


def test_silence_keeps_the_connection_until_it_is_over(server: ApiServer, http: urllib3.PoolManager) -> None:
    answer = open_watch(http, server)
    with server.faulty("silence", "pods") as fault:
        server.wait_until(lambda: fault.count == 1)
        server.apply(pod("p1"))
        with pytest.raises(urllib3.exceptions.ReadTimeoutError):
            http.request("GET", f"{server.url}/api/v1/pods", timeout=0.3)
        assert server.requests[-1].status is None
        server.heal(fault)
        with pytest.raises(urllib3.exceptions.ProtocolError):
            answer.read()
    assert names(http, server, "") == ["p1"]


def test_slow_delays_each_chunk(server: ApiServer, http: urllib3.PoolManager) -> None:
    server.apply(pod("p1") | {"status": {"message": "x" * 5000}})
    answer = open_watch(http, server, "&resourceVersion=1")
    with server.faulty("slow", "pods", delay=0.2) as fault:
        began = time.monotonic()
        assert names(http, server, "") == ["p1"]
        assert time.monotonic() - began >= 0.4
        server.apply(pod("p2"))
        server.apply(pod("p3"))
        began = time.monotonic()
        assert events(answer, 2) == [("ADDED", "p2"), ("ADDED", "p3")]
        assert time.monotonic() - began >= 0.3
        assert fault.count == 3
    answer.close()


def test_bad_json_in_a_list_and_in_one_event(server: ApiServer, http: urllib3.PoolManager) -> None:
    answer = open_watch(http, server)
    with server.faulty("bad-json", "pods", times=2) as fault:
        with pytest.raises(json.JSONDecodeError):
            http.request("GET", f"{server.url}/api/v1/pods").json()
        server.apply(pod("p1"))
        with pytest.raises(json.JSONDecodeError):
            json.loads(answer.readline())
        server.apply(pod("p2"))
        assert events(answer, 1) == [("ADDED", "p2")]
        assert fault.count == 2
    answer.close()


@pytest.mark.parametrize("kind", REFUSALS + DISTURBANCES)
def test_faults_that_are_healed_are_gone(server: ApiServer, http: urllib3.PoolManager, kind: str) -> None:
    server.inject(kind)
    server.heal()
    assert names(http, server, "") == []
    assert server.fault_counts == {}


def test_unknown_fault_is_an_error(server: ApiServer) -> None:
    with pytest.raises(ValueError, match="no such fault"):
        server.inject("418")


# Tokens, TLS, labs


def test_client_inside_a_cluster_trusts_the_certificate_and_reads_its_token_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, certificate = make_certificate(tmp_path, "127.0.0.1")
    token = tmp_path / "token"
    token.write_text("first")
    with ApiServer(tls=context, tokens={"first": "podtap"}) as server:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", server.host)
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
        configuration = client.Configuration()
        loader = config.incluster_config.InClusterConfigLoader(str(token), str(certificate))
        loader.load_and_set(configuration)
        with client.ApiClient(configuration) as api:
            core = client.CoreV1Api(api)
            assert core.list_node().items == []
            server.tokens = {"second": "podtap"}
            with pytest.raises(ApiException) as error:
                core.list_node()
            assert error.value.status == 401
            token.write_text("second")
            loader._read_token_file()
            loader._set_config(configuration)
            assert core.list_node().items == []
            stream = watch.Watch().stream(core.list_node, timeout_seconds=1)
            assert list(stream) == []


def test_errors_of_the_stand_in_itself_do_not_pass_silently(http: urllib3.PoolManager) -> None:
    with pytest.raises(KeyError, match="does not serve"), ApiServer() as server:
        server.apply({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "s"}})
    with pytest.raises(RuntimeError, match="own fault"), ApiServer() as server:

        def fail(*_: object) -> None:
            raise RuntimeError("own fault")

        server.answer = fail  # type: ignore[method-assign]
        with pytest.raises(urllib3.exceptions.ProtocolError):
            http.request("GET", server.url)


@pytest.mark.usefixtures("root")
def test_it_is_reachable_only_inside_its_namespace(http: urllib3.PoolManager) -> None:
    namespace = Namespace(new_prefix() + "api")
    try:
        with ApiServer(namespace=namespace) as server:
            with pytest.raises(urllib3.exceptions.NewConnectionError):
                http.request("GET", f"{server.url}/livez")
            with namespace.entered():
                assert http.request("GET", f"{server.url}/livez").data == b"ok"
    finally:
        namespace.close()


@pytest.mark.usefixtures("root")
def test_it_follows_a_lab(http: urllib3.PoolManager) -> None:
    topology = Topology(nodes=(Node("node-a"),), pods=(Pod("web-1", "node-a", labels={"app": "web"}),))
    with Lab(topology) as lab, ApiServer() as server:
        server.follow(lab)
        answer = open_watch(http, server, "&labelSelector=app%3Dweb")
        first = json.loads(answer.readline())
        assert first["object"]["status"]["podIP"] == lab.pod("web-1").ip
        lab.kill_pod("web-1")
        kinds = []
        while "DELETED" not in kinds:
            kinds.append(json.loads(answer.readline())["type"])
        answer.close()
        assert kinds[0] == "MODIFIED"
        assert names(http, server, "", "/api/v1/nodes") == ["node-a"]
