"""The cluster's name server: Unbound in the role of CoreDNS, and the name server beyond the cluster that it asks.

It serves cluster.local as CoreDNS' kubernetes plug-in does (TTL 30, NXDOMAIN and NODATA with an SOA), the PTR records
of services and pods, and forwards all else, asking again after 2 s as CoreDNS does, and caching for 30 s at most. It
differs in that recursion is always offered (ra), in that answers about SRV records carry no addresses along, and in
that it hands out a CNAME of an ExternalName service without following it.

Truth comes by dnstap from Unbound itself, not by its log, which knows seconds only.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import dns.message

from tests.lab import addresses
from tests.lab.cluster_zone import REVERSE_ZONES, ZONE, Record, records
from tests.lab.dnstap import CLIENT_QUERY, CLIENT_RESPONSE, FORWARDER_QUERY, FORWARDER_RESPONSE, Collector, Message
from tests.lab.namespaces import Namespace
from tests.lab.upstream_dns import UpstreamDns

if TYPE_CHECKING:
    from tests.lab.lab import Lab

LABELS: Final = {"k8s-app": "kube-dns"}
KUBERNETES: Final = Record(f"kubernetes.default.svc.{ZONE}", "A", addresses.service(1).ip)
"""Every cluster has this name, also a lab whose objects don't have the service."""
_FLUSH_MARK: Final = "lab-flush.invalid"
_MOST_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Query:
    """One query as a server saw it; where it forwards, the server itself is the client."""

    time_ns: int
    client_ip: str
    client_port: int
    name: str
    qtype: str
    transport: str
    trans_id: int
    rcode: str | None
    """None: never answered."""
    answered_ns: int | None


class ClusterDns:
    """One Unbound in a namespace."""

    def __init__(self, namespace: Namespace, zone: Iterable[Record], upstream: str, *, ipv6: bool = False) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="podtap-dns-"))
        self._namespace = namespace
        self._records = list(zone)
        self._tap = Collector(self._folder / "dnstap")
        (self._folder / "conf").write_text(configuration(self._folder, self._records, upstream, ipv6=ipv6))
        with (self._folder / "log").open("w") as log:
            self._process = namespace.start("unbound", "-d", "-c", str(self._folder / "conf"), stderr=log)
        self._wait_until_ready()

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._tap.close()
        shutil.rmtree(self._folder)

    def update(self, zone: Iterable[Record]) -> None:
        """Serve these records from now on. Names that lost a record are gone for a moment."""
        wanted = list(zone)
        lost = {record.name for record in set(self._records) - set(wanted)}
        new = [record for record in wanted if record.name in lost or record not in self._records]
        if lost:
            self._control("local_datas_remove", "\n".join(sorted(lost)))
        if new:
            self._control("local_datas", "\n".join(map(str, new)))
        self._records = wanted

    def queries(self) -> list[Query]:
        """All queries of clients until now, with the answers that they got until now."""
        return self._pairs(CLIENT_QUERY, CLIENT_RESPONSE)

    def forwarded(self) -> list[Query]:
        """All queries of this server to the one beyond the cluster."""
        return self._pairs(FORWARDER_QUERY, FORWARDER_RESPONSE)

    def _pairs(self, asked: int, answered: int) -> list[Query]:
        self._flush()
        messages = [m for m in self._tap.messages if not m.name.endswith(_FLUSH_MARK)]
        return pair_up(messages, asked, answered)

    def _flush(self) -> None:
        """Unbound sends dnstap about once a second: all before a query of our own is here when that one is."""
        mark = f"{uuid.uuid4().hex}.{_FLUSH_MARK}"
        self._ask(mark, "A")
        with self._tap.arrived:
            if not self._tap.arrived.wait_for(lambda: any(m.name == mark for m in self._tap.messages), _MOST_SECONDS):
                raise TimeoutError(f"no dnstap from {self._namespace.name} for {_MOST_SECONDS} s")

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _MOST_SECONDS
        while True:
            try:
                self._ask(f"ready.{_FLUSH_MARK}", "A")
                return
            except OSError as error:
                log = (self._folder / "log").read_text()
                if self._process.poll() is not None:
                    raise RuntimeError(f"unbound ended by itself:\n{log}") from error
                if time.monotonic() > deadline:
                    raise TimeoutError(f"unbound does not answer:\n{log}") from error
                time.sleep(0.005)

    def _ask(self, name: str, qtype: str) -> None:
        with self._namespace.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(1)
            asking.connect(("127.0.0.1", 53))
            asking.send(dns.message.make_query(name, qtype).to_wire())
            asking.recv(4096)

    def _control(self, command: str, given: str) -> None:
        argv = ["unbound-control", "-c", str(self._folder / "conf"), command]
        done = subprocess.run(argv, input=given + "\n", capture_output=True, text=True, timeout=10)
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv)}: {done.stdout}{done.stderr}")


class LabDns:
    """The name servers of a lab: one in every pod labelled so, and one outside."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.upstream = UpstreamDns(lab.outside.namespace)
        lab.on_exit(self.upstream.close)
        self._servers: dict[str, ClusterDns] = {}
        self._gone: list[ClusterDns] = []
        lab.on_exit(self.close)

    def close(self) -> None:
        for server in self._servers.values():
            server.close()
        self._servers.clear()

    def changed(self, event: str, item: dict[str, Any]) -> None:
        """To be told of every change in the cluster."""
        if item["kind"] in ("Service", "EndpointSlice", "Pod"):
            self.sync()

    def sync(self) -> None:
        """Servers in the pods that are there, and the records of what is there."""
        objects = {plural: each["items"] for plural, each in self.lab.objects().items()}
        zone = records(objects["services"], objects["endpointslices"], objects["pods"])
        if not any(record.name == KUBERNETES.name for record in zone):
            zone.append(KUBERNETES)
        pods = {name: pod for name, pod in self.lab.pods.items() if LABELS.items() <= pod.spec.labels.items()}
        for name in self._servers.keys() - pods.keys():
            self._servers.pop(name).close()
        for name, pod in pods.items():
            if name in self._servers:
                self._servers[name].update(zone)
            else:
                own = ClusterDns(pod.namespace, zone, self.lab.outside.ip, ipv6=self.lab.topology.ipv6)
                self._servers[name] = own

    def queries(self) -> list[Query]:
        return _in_time(query for server in self._servers.values() for query in server.queries())

    def forwarded(self) -> list[Query]:
        return _in_time(query for server in self._servers.values() for query in server.forwarded())


_started: WeakKeyDictionary[Lab, LabDns] = WeakKeyDictionary()


def start(lab: Lab) -> None:
    """Starts the name servers of a lab whose topology wants them; they follow every change."""
    if not lab.topology.dns:
        return
    servers = _started[lab] = LabDns(lab)
    servers.sync()
    lab.on_change(servers.changed)


def queries(lab: Lab) -> list[Query]:
    """Truth: every query that reached the cluster's name servers, in time. Takes a second or so."""
    return _started[lab].queries()


def forwarded(lab: Lab) -> list[Query]:
    """Truth: every query that the cluster's name servers sent to the one outside, in time."""
    return _started[lab].forwarded()


def upstream(lab: Lab) -> UpstreamDns:
    """The name server outside: its delay, loss, names and log."""
    return _started[lab].upstream


def configuration(folder: Path, zone: Iterable[Record], upstream: str, *, ipv6: bool) -> str:
    """Unbound's configuration file."""
    data = "\n".join(f"  local-data: '{record}'" for record in zone)
    reverse = "\n".join(f'  local-zone: "{name}" transparent' for name in REVERSE_ZONES)
    return f"""server:
  interface: 0.0.0.0
  {"interface: ::0" if ipv6 else ""}
  do-ip6: {"yes" if ipv6 else "no"}
  access-control: 0.0.0.0/0 allow
  access-control: ::/0 allow
  username: ""
  chroot: ""
  directory: "{folder}"
  pidfile: ""
  use-syslog: no
  do-daemonize: no
  num-threads: 1
  module-config: "iterator"
  unblock-lan-zones: yes
  insecure-lan-zones: yes
  qname-minimisation: no
  cache-max-ttl: 30
  cache-max-negative-ttl: 30
  infra-cache-min-rtt: 2000
  infra-keep-probing: yes
  local-zone: "{ZONE}" static
{reverse}
{data}
remote-control:
  control-enable: yes
  control-interface: {folder}/control
  control-use-cert: no
dnstap:
  dnstap-enable: yes
  dnstap-bidirectional: no
  dnstap-socket-path: "{folder}/dnstap"
  dnstap-log-client-query-messages: yes
  dnstap-log-client-response-messages: yes
  dnstap-log-forwarder-query-messages: yes
  dnstap-log-forwarder-response-messages: yes
forward-zone:
  name: "."
  forward-addr: {upstream}
"""


def pair_up(messages: Iterable[Message], asked: int, answered: int) -> list[Query]:
    """Each answer belongs to the first query that waits for one with its addresses, id and question."""
    answers: defaultdict[tuple[object, ...], list[Message]] = defaultdict(list)
    messages = sorted(messages, key=lambda message: message.time_ns)
    for message in messages:
        if message.kind == answered:
            answers[_key(message)].append(message)
    found = []
    for message in messages:
        if message.kind != asked:
            continue
        waiting = answers[_key(message)]
        answer = waiting.pop(0) if waiting else None
        found.append(
            Query(
                time_ns=message.time_ns,
                client_ip=message.client_ip,
                client_port=message.client_port,
                name=message.name,
                qtype=message.qtype,
                transport=message.transport,
                trans_id=message.trans_id,
                rcode=answer.rcode if answer else None,
                answered_ns=answer.time_ns if answer else None,
            )
        )
    return found


def _key(message: Message) -> tuple[object, ...]:
    """What an answer has in common with its query. Unbound gives its own answers the port of its latest query."""
    asker = (message.client_ip, message.client_port) if message.kind in (CLIENT_QUERY, CLIENT_RESPONSE) else ()
    return *asker, message.transport, message.trans_id, message.name.lower(), message.qtype


def _in_time(found: Iterable[Query]) -> list[Query]:
    return sorted(found, key=lambda query: query.time_ns)
