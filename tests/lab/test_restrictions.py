"""What is deployed works with the rights that it is given there, and with no other."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from capture.contract import Manifest, from_json
from tests.deployments import COMPONENTS, Object, overlay, rendered
from tests.journal_rig import make_pod, make_server
from tests.journals import files_of, read
from tests.lab.api_certificate import make_certificate
from tests.lab.api_server import ApiServer
from tests.lab.namespaces import Namespace, new_prefix
from tests.lab.sandbox import Sandbox, empty_dir, sandbox
from tests.lab.tools import needs

pytestmark = [pytest.mark.usefixtures("root"), needs("setpriv")]

NET_RAW = 1 << 13
NODE, POD, OTHER = "10.0.0.1", "10.0.0.2", "10.0.0.3"
NODE_V6 = "fd00::1"
SECONDS = 30.0


@pytest.fixture
def node(root: None) -> Iterator[Namespace]:
    made = Namespace(new_prefix() + "pod")
    made.ip("link add cali0123456789a type veth peer name peer", "link set cali0123456789a up", "link set peer up")
    made.ip(*(f"addr add {each}/24 dev cali0123456789a" for each in (NODE, POD, OTHER)))
    made.ip(f"addr add {NODE_V6}/64 dev cali0123456789a nodad")
    yield made
    made.close()


def deployed(tmp_path: Path, components: list[str]) -> list[Object]:
    folder = tmp_path / "overlay"
    folder.mkdir()
    return rendered(overlay(folder, components))


@contextmanager
def running(box: Sandbox) -> Iterator[subprocess.Popen[str]]:
    with box.start(stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def ended(process: subprocess.Popen[str]) -> str:
    """What it said until SIGTERM ended it."""
    process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 0, said
    assert time.monotonic() - begun < 5
    return said


def until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def is_probed(box: Sandbox, probe: str, pod_ip: str) -> bool:
    """As kubelet asks."""
    get = box.container[probe]["httpGet"]
    ports = {port["name"]: port["containerPort"] for port in box.container.get("ports", [])}
    host = get.get("host", pod_ip)
    host = f"[{host}]" if ":" in host else host
    with box.namespace.entered():
        try:
            url = f"http://{host}:{ports.get(get['port'], get['port'])}{get['path']}"
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.HTTPError, OSError):
            return False


def assert_it_may_nothing_else(
    process: subprocess.Popen[str], user: int, capabilities: int, writable: set[str]
) -> None:
    status = dict(re.findall(r"^(\w+):\s+(.+)$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE))
    assert status["Uid"].split() == [str(user)] * 4
    assert {status[each] for each in ("CapEff", "CapPrm")} == {f"{capabilities:016x}"}
    assert int(status["CapBnd"], 16) == capabilities and status["NoNewPrivs"] == "1"
    mounts = [line.split() for line in Path(f"/proc/{process.pid}/mountinfo").read_text().splitlines()]
    assert {each[4] for each in mounts if "rw" in each[5].split(",") and not each[4].startswith("/dev/")} == writable


def send(node: Namespace, source: str, times: int) -> None:
    with node.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind((source, 0))
        for _ in range(times):
            sender.sendto(b"x" * 100, (NODE, 9))


def manifests(root: Path) -> list[Manifest]:
    return [from_json(Manifest, path.read_bytes()) for path in sorted(root.glob("*/*/2*/*.json"))]


def test_an_agent_records_freezes_and_ends_with_raw_sockets_only(node: Namespace, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "root").mkdir()
    box = sandbox(
        deployed(tmp_path, []),
        "podtap-agent/agent",
        namespace=node,
        folder=tmp_path / "root",
        variables={"CLUSTER": "prod", "NODE_NAME": "node-a"},
        volumes={"recordings": tmp_path / "disk"},
    )
    with running(box) as agent:
        until(lambda: is_probed(box, "readinessProbe", NODE), agent)
        assert is_probed(box, "livenessProbe", NODE) and is_probed(box, "startupProbe", NODE)
        assert_it_may_nothing_else(agent, 0, NET_RAW, {"/var/lib/podtap"})
        frozen = box.run("agent", "freeze", "--since", "1m", "--until", "+1m", "--reason", "why")
        assert frozen.returncode == 0, frozen.stderr
        send(node, NODE, 20)
        doctored = json.loads(box.run("doctor", "-o", "json").stdout)
        (found,) = [each for each in doctored if (each["agent"] or {}).get("pid") == agent.pid]
        levels = {each["subject"]: each["level"] for each in found["findings"]}
        assert (levels["recording"], levels["readiness"], levels.get("capabilities")) == ("ok", "ok", None)
        said = ended(agent)
    (manifest,) = manifests(tmp_path / "disk")
    assert (manifest.cluster, manifest.node, manifest.packets >= 20) == ("prod", "node-a", True), said
    assert {each.name for each in manifest.interfaces} >= {"lo", "cali0123456789a", "peer"}
    assert manifest.clock.synchronised is not None
    sent = box.run("agent", "send")
    assert sent.returncode == 0 and len(sent.stdout) > 20 * 42, sent.stderr
    listed = box.run("agent", "list", "-o", "json")
    assert b'"why"' in listed.stdout, listed.stderr


@pytest.fixture
def server(node: Namespace, tmp_path: Path) -> Iterator[ApiServer]:
    """An API server in the node's network, as a pod finds it."""
    tls, authority = make_certificate(tmp_path, "127.0.0.1")
    made = make_server(tls=tls, tokens={"secret": "podtap"})
    with ExitStack() as stack:
        with node.entered():
            made.start()
        stack.callback(made.stop)
        token = tmp_path / "token"
        token.mkdir()
        for name, text in (("token", "secret"), ("ca.crt", authority.read_text()), ("namespace", "podtap")):
            (token / name).write_text(text)
            (token / name).chmod(0o444)
        yield made


def of_server(server: ApiServer) -> dict[str, str]:
    return {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(server.port)}


def test_a_scope_goes_from_a_sidecar_without_rights_to_the_agent(
    node: Namespace, server: ApiServer, tmp_path: Path
) -> None:
    """Root without CAP_DAC_OVERRIDE reads what its mode allows: also of a sidecar whose umask allows nothing.

    With all components: the agent listens at the node's address, which is an IPv6 one here.
    """
    server.apply({**make_pod("web", POD), "metadata": make_pod("web")["metadata"] | {"namespace": "default"}})
    server.apply(make_pod("other", OTHER))
    objects = deployed(tmp_path, COMPONENTS)
    variables = {"CLUSTER": "prod", "NODE_NAME": "node-a", "HOST_IP": NODE_V6, "NAMESPACE": "default", "SELECTOR": ""}
    for name in ("disk", "root", "root-of-scope"):
        (tmp_path / name).mkdir()
    box = sandbox(
        objects,
        "podtap-agent/agent",
        namespace=node,
        folder=tmp_path / "root",
        variables=variables,
        volumes={"recordings": tmp_path / "disk", "scope": empty_dir(tmp_path / "scope", {})},
    )
    sidecar = sandbox(
        objects,
        "podtap-agent/scope",
        namespace=node,
        folder=tmp_path / "root-of-scope",
        variables=variables | of_server(server),
        volumes={"scope": tmp_path / "scope", "token": tmp_path / "token"},
        umask=0o077,
    )
    with running(box) as agent, running(sidecar) as scope:
        until(lambda: (tmp_path / "scope/scope.json").exists(), scope)
        assert_it_may_nothing_else(scope, 65532, 0, {"/run/podtap"})
        until(lambda: is_probed(box, "readinessProbe", NODE_V6), agent)
        assert_it_may_nothing_else(agent, 0, NET_RAW, {"/var/lib/podtap"})
        metrics = "podtap_filter_swaps_total 1"
        until(lambda: metrics in scraped(node, f"[{NODE_V6}]:9798"), agent)
        for source, times in ((POD, 7), (OTHER, 5)):
            send(node, source, times)
        ended(scope)
        said = ended(agent)
    assert "Permission denied" not in said
    (manifest,) = manifests(tmp_path / "disk")
    assert manifest.scope == "pods default/web"
    (segment,) = (tmp_path / "disk").glob("prod/node-a/2*/*.pcap")
    shown = subprocess.run(["tcpdump", "-nr", segment, "udp"], capture_output=True, text=True, check=True).stdout
    assert (shown.count(f"IP {POD}."), shown.count(f"IP {OTHER}.")) == (7, 0), shown


def scraped(node: Namespace, address: str) -> str:
    with node.entered(), urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def test_a_journal_is_written_and_sent_by_nobody(node: Namespace, server: ApiServer, tmp_path: Path) -> None:
    server.apply(make_pod("web", POD))
    objects = deployed(tmp_path, [])
    (tmp_path / "root").mkdir()
    box = sandbox(
        objects,
        "podtap-journal/journal",
        namespace=node,
        folder=tmp_path / "root",
        variables={"POD_NAME": "podtap-journal-0"} | of_server(server),
    )
    box.volumes |= {"journal": empty_dir(tmp_path / "disk", box.spec)}
    # Its token Kubernetes mounts by itself.
    box.volumes["token"] = tmp_path / "token"
    mount = {"name": "token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": True}
    box.container["volumeMounts"].append(mount)
    with running(box) as journal:
        until(lambda: is_probed(box, "readinessProbe", NODE), journal)
        assert is_probed(box, "livenessProbe", NODE) and is_probed(box, "startupProbe", NODE)
        assert_it_may_nothing_else(journal, 65532, 0, {"/var/lib/podtap"})
        sent = box.run("journal", "send")
        assert sent.returncode == 0 and sent.stdout, sent.stderr
        ended(journal)
    (file,) = files_of(tmp_path / "disk")
    assert {record["kind"] for record in read(file) if record["type"] == "listed"} == {"Pod"}
    assert file.stat().st_uid == 65532
