"""The Ingress controller: requests go where the Ingress says, and its log is truth."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator

import pytest

from tests.lab import ingress
from tests.lab.lab import Lab
from tests.lab.tools import needs
from tests.lab.topology import INGRESS_CONTROLLER, Ingress, Pod, Service, Topology

pytestmark = [pytest.mark.usefixtures("root"), needs("nginx", "iptables-restore")]
TOPOLOGY = Topology(
    pods=(
        Pod("client", "node-a"),
        Pod("shop-1", "node-a", labels={"app": "shop"}),
        Pod("shop-2", "node-b", labels={"app": "shop"}),
        Pod("api-1", "node-a", labels={"app": "api"}),
    ),
    services=(Service("shop", {"app": "shop"}, 80, 8080), Service("api", {"app": "api"}, 80, 8080)),
    ingresses=(Ingress("shop", "shop.example.com", {"/": "shop", "/api": "api"}),),
    dns=False,
)


class Backend(http.server.BaseHTTPRequestHandler):
    """Says which pod it is, and to whom it was told to answer."""

    protocol_version = "HTTP/1.1"
    pod = ""

    def do_GET(self) -> None:
        if self.path.endswith("/slow"):
            time.sleep(0.2)
        body = json.dumps([self.pod, self.client_address[0], self.headers["X-Real-IP"]]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True


@pytest.fixture(scope="module")
def lab(root: None) -> Iterator[Lab]:
    with Lab(TOPOLOGY) as lab:
        servers = []
        for pod in ("shop-1", "shop-2", "api-1"):
            with lab.pod(pod).namespace.entered():
                server = Server(("", 8080), type("PodBackend", (Backend,), {"pod": pod}))
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            servers.append(server)
        yield lab
        for server in servers:
            server.shutdown()
            server.server_close()


def get(lab: Lab, path: str, host: str = "shop.example.com", client: str = "client") -> tuple[int, str]:
    """Status and body, through the controller's service."""
    service = lab.service(INGRESS_CONTROLLER)
    address = f"{service.ip}" if client == "client" else f"{lab.node('node-a').ip}:{service.node_port}"
    namespace = lab.pod("client").namespace if client == "client" else lab.outside.namespace
    shown = namespace.run("curl", "-s", "-w", "\n%{http_code}", "-H", f"Host: {host}", f"http://{address}{path}")
    body, _, code = shown.rpartition("\n")
    return int(code), body


def test_paths_choose_the_service(lab: Lab) -> None:
    assert {json.loads(get(lab, "/x")[1])[0] for _ in range(8)} == {"shop-1", "shop-2"}
    assert json.loads(get(lab, "/api")[1])[0] == "api-1"
    assert json.loads(get(lab, "/api/x")[1])[0] == "api-1"
    assert json.loads(get(lab, "/apix")[1])[0] in ("shop-1", "shop-2")


def test_unknown_hosts_are_not_found(lab: Lab) -> None:
    assert get(lab, "/", host="other.example.com")[0] == 404


def test_backends_see_the_controller_and_are_told_the_client(lab: Lab) -> None:
    _, seen, told = json.loads(get(lab, "/api")[1])
    assert (seen, told) == (lab.pod(INGRESS_CONTROLLER).ip, lab.pod("client").ip)
    assert get(lab, "/api", client="outside")[0] == 200


def test_the_log_is_truth(lab: Lab) -> None:
    before = len(ingress.requests(lab))
    started = time.time_ns()
    assert get(lab, "/api/slow")[0] == 200
    assert get(lab, "/shop")[0] == 200
    slow, quick = ingress.requests(lab)[before:]
    assert (slow.uri, slow.status, slow.client_ip, slow.host) == (
        "/api/slow",
        200,
        lab.pod("client").ip,
        "shop.example.com",
    )
    assert slow.backends == (f"{lab.pod('api-1').ip}:8080",)
    assert 0.2 <= slow.seconds < 0.5
    assert 0.2 <= slow.backend_seconds[0] <= slow.seconds + 0.001
    assert quick.seconds < 0.2
    assert started < slow.ended_ns < quick.ended_ns + 1 < time.time_ns() + 2


def test_a_service_without_endpoints_is_unavailable(root: None) -> None:
    with Lab(TOPOLOGY) as lab:
        lab.kill_pod("api-1")
        assert get(lab, "/api")[0] == 503
        (request,) = ingress.requests(lab)
        assert (request.status, request.backends) == (503, ())
