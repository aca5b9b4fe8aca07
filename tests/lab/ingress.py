"""The Ingress controller: a real nginx, configured out of Ingress objects as ingress-nginx does it.

Like that it goes to a service's endpoints, not to its cluster IP, and keeps connections to them open. A host name that
no Ingress has is answered with 404, a service without endpoints with 503.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from tests.lab.namespaces import Namespace
from tests.lab.service_ports import ServicePort, service_ports
from tests.lab.topology import INGRESS_CONTROLLER

if TYPE_CHECKING:
    from tests.lab.lab import Lab

STATUS_PORT: Final = 10246
_MOST_SECONDS: Final = 5.0
_LOG_FORMAT: Final = (
    '{"time":$msec,"client":"$remote_addr","client_port":$remote_port,"host":"$host","uri":"$request_uri",'
    '"status":$status,"request_bytes":$request_length,"response_bytes":$bytes_sent,"seconds":$request_time,'
    '"backend":"$upstream_addr","backend_seconds":"$upstream_response_time"}'
)

Object = Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """One line of the access log. Times have milliseconds."""

    ended_ns: int
    client_ip: str
    client_port: int
    host: str
    uri: str
    status: int
    request_bytes: int
    response_bytes: int
    """With the headers."""
    seconds: float
    """From the first byte of the request to the last of the answer."""
    backends: tuple[str, ...]
    """ip:port of the endpoints tried, in order."""
    backend_seconds: tuple[float, ...]


class Nginx:
    """One nginx in a namespace. A single worker: what it answered before, it has also logged before."""

    def __init__(self, namespace: Namespace, servers: str, *, ipv6: bool = False) -> None:
        self._namespace = namespace
        self._ipv6 = ipv6
        self._servers = servers
        self._version = 0
        self._worker = ""
        self._folder = Path(tempfile.mkdtemp(prefix="podtap-ingress-"))
        self._write()
        with (self._folder / "error.log").open("w") as log:
            argv = ("nginx", "-p", str(self._folder), "-e", "stderr", "-c", str(self._folder / "nginx.conf"))
            self._process = namespace.start(*argv, stderr=log)
        self._wait_for_version()

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self._folder)

    def update(self, servers: str) -> None:
        """The new configuration holds when this returns; requests under way end under the old one."""
        if servers == self._servers:
            return
        before = self._worker
        self._servers = servers
        self._version += 1
        self._write()
        self._process.send_signal(signal.SIGHUP)
        self._wait_for_version()
        wait_until_it_stops_listening(before)

    def requests(self) -> list[Request]:
        """All requests that were answered until now."""
        self._status()
        return [parse(line) for line in (self._folder / "access.log").read_text().splitlines()]

    def _write(self) -> None:
        text = configuration(self._folder, self._servers, self._version, ipv6=self._ipv6)
        (self._folder / "nginx.conf").write_text(text)

    def _wait_for_version(self) -> None:
        deadline = time.monotonic() + _MOST_SECONDS
        while True:
            try:
                version, self._worker = self._status().split()
                if version == str(self._version):
                    return
            except OSError:
                if self._process.poll() is not None:
                    log = (self._folder / "error.log").read_text()
                    raise RuntimeError(f"nginx ended by itself:\n{log}") from None
            if time.monotonic() > deadline:
                raise TimeoutError(f"nginx does not answer:\n{(self._folder / 'error.log').read_text()}")
            time.sleep(0.005)

    def _status(self) -> str:
        with self._namespace.entered():
            asking = socket.create_connection(("127.0.0.1", STATUS_PORT), timeout=1)
        with asking, asking.makefile("rb") as answer:
            asking.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return answer.read().rpartition(b"\r\n\r\n")[2].decode()


def wait_until_it_stops_listening(worker: str) -> None:
    """For a while an old worker accepts connections beside the new one; its title says when it no longer does."""
    deadline = time.monotonic() + _MOST_SECONDS
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it is gone
        while b"shutting down" not in Path("/proc", worker, "cmdline").read_bytes():
            if time.monotonic() > deadline:
                raise TimeoutError(f"nginx's worker {worker} goes on")
            time.sleep(0.005)


class LabIngress:
    """The controller of a lab."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.nginx: Nginx | None = None
        lab.on_exit(self.close)

    def close(self) -> None:
        if self.nginx:
            self.nginx.close()
            self.nginx = None

    def changed(self, event: str, item: dict[str, Any]) -> None:
        """To be told of every change in the cluster."""
        if item["kind"] in ("Ingress", "Service", "EndpointSlice", "Pod"):
            self.sync()

    def sync(self) -> None:
        """Makes the configuration what the cluster's objects ask for."""
        pod = self.lab.pods.get(INGRESS_CONTROLLER)
        if pod is None:
            self.close()
            return
        objects = {plural: each["items"] for plural, each in self.lab.objects().items()}
        ports = service_ports(objects["services"], objects["endpointslices"], 4)
        servers = servers_of(objects["ingresses"], ports)
        if self.nginx:
            self.nginx.update(servers)
        else:
            self.nginx = Nginx(pod.namespace, servers, ipv6=self.lab.topology.ipv6)


_started: WeakKeyDictionary[Lab, LabIngress] = WeakKeyDictionary()


def start(lab: Lab) -> None:
    """Starts the controller of a lab that has Ingresses; it follows every change."""
    if not lab.topology.ingresses:
        return
    controller = _started[lab] = LabIngress(lab)
    controller.sync()
    lab.on_change(controller.changed)


def requests(lab: Lab) -> list[Request]:
    """Truth: every request that the controller has answered, as it logged them."""
    nginx = _started[lab].nginx
    if nginx is None:
        raise RuntimeError("the Ingress controller is not running")
    return nginx.requests()


def servers_of(ingresses: Iterable[Object], ports: Sequence[ServicePort]) -> str:
    """nginx's upstream and server blocks."""
    upstreams: dict[str, str] = {}
    servers = []
    for ingress in ingresses:
        namespace = ingress["metadata"]["namespace"]
        for rule in ingress["spec"].get("rules") or ():
            locations = [_location(path, namespace, ports, upstreams) for path in rule["http"]["paths"]]
            servers.append(
                f"server {{\nlisten 80;\n#ipv6 listen [::]:80;\nserver_name {rule['host']};\n{''.join(locations)}}}\n"
            )
    return "".join(upstreams.values()) + "".join(servers)


def _location(path: Object, namespace: str, ports: Sequence[ServicePort], upstreams: dict[str, str]) -> str:
    """A location, and in `upstreams` what it goes to. A prefix ends at a slash: /a holds /a and /a/b, not /ab."""
    backend = path["backend"]["service"]
    wanted = backend["port"]
    port = next(
        (
            port
            for port in ports
            if (port.namespace, port.name) == (namespace, backend["name"])
            and (port.port == wanted.get("number") or (port.port_name and port.port_name == wanted.get("name")))
        ),
        None,
    )
    if port is None or not port.endpoints:
        action = "return 503;"
    else:
        name = f"{namespace}-{backend['name']}-{port.port}"
        endpoints = "".join(f"server {endpoint};\n" for endpoint in port.endpoints)
        upstreams[name] = f"upstream {name} {{\n{endpoints}keepalive 320;\n}}\n"
        action = f"proxy_pass http://{name};"
    prefix = path["path"].rstrip("/")
    if path["pathType"] == "Exact":
        return f"location = {path['path']} {{ {action} }}\n"
    exact = f"location = {prefix} {{ {action} }}\n" if prefix else ""
    return f"{exact}location {prefix}/ {{ {action} }}\n"


def configuration(folder: Path, servers: str, version: int, *, ipv6: bool) -> str:
    """The whole nginx.conf; the status server tells its version."""
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    listen = "listen 80 default_server;" + ("listen [::]:80 default_server;" if ipv6 else "")
    return f"""daemon off;
user root;
worker_processes 1;
pid {folder}/pid;
error_log stderr;
events {{ worker_connections 1024; }}
http {{
{temporary}log_format lab escape=json '{_LOG_FORMAT}';
access_log {folder}/access.log lab;
keepalive_timeout 75s;
proxy_http_version 1.1;
proxy_set_header Connection "";
proxy_set_header Host $host;
proxy_set_header X-Request-ID $request_id;
proxy_set_header X-Real-IP $remote_addr;
proxy_set_header X-Forwarded-For $remote_addr;
proxy_set_header X-Forwarded-Host $host;
proxy_set_header X-Forwarded-Proto $scheme;
proxy_connect_timeout 5s;
proxy_next_upstream error timeout;
server {{ listen 127.0.0.1:{STATUS_PORT}; access_log off; location / {{ return 200 "{version} $pid"; }} }}
server {{ {listen} location / {{ return 404; }} }}
{servers.replace("#ipv6 ", "") if ipv6 else servers}}}
"""


def parse(line: str) -> Request:
    """One line of the access log."""
    row = json.loads(line)
    seconds, milliseconds = divmod(round(row["time"] * 1000), 1000)
    listed = [item for item in row["backend"].split(", ") if item]
    return Request(
        ended_ns=seconds * 10**9 + milliseconds * 10**6,
        client_ip=row["client"],
        client_port=row["client_port"],
        host=row["host"],
        uri=row["uri"],
        status=row["status"],
        request_bytes=row["request_bytes"],
        response_bytes=row["response_bytes"],
        seconds=row["seconds"],
        backends=tuple(listed),
        backend_seconds=tuple(float(item) for item in row["backend_seconds"].split(", ") if item not in ("", "-")),
    )
