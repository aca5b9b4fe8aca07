"""DNS questions and answers, and the transactions that their author knows them to be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from _capture import Point, Seen
from _conversation import Datagrams, Side, Story
from _tcp import Connection
from scapy.layers.dns import DNS, DNSQR, DNSRR, DNSRROPT, DNSRRSOA, DNSRRSRV, dns_compress, dnsqtypes

RCODES = ("NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED")
NUMBERS = {name: number for number, name in dnsqtypes.items()}

Answer = tuple[str, str]
"""A record of the answer section: its type and value, as the table shows them. A CNAME owns what follows it."""


@dataclass
class Transaction:
    """One question; `asked` and `answered` hold what each observation point saw.

    Over UDP `ask` and `answer` send; over TCP the story sends the bytes of `question` and `response` as it likes.
    """

    talk: Datagrams | Connection
    trans_id: int
    name: str
    qtype: str
    edns: bool = False
    asked: list[list[Seen]] = field(default_factory=list)
    answered: list[Seen] | None = None
    rcode: str | None = None
    answers: str | None = None
    truncated: bool | None = None
    search_expansion: bool = False

    def question(self) -> bytes:
        message = DNS(id=self.trans_id, rd=1, qd=[self._query()], ad=int(self.edns))
        if self.edns:
            message.ar = [DNSRROPT(rclass=1232)]
        return bytes(message)

    def _query(self) -> DNSQR:
        return DNSQR(qname=self.name, qtype=NUMBERS[self.qtype])

    def ask(self, at: int) -> Transaction:
        """Send the question, or send it again."""
        assert isinstance(self.talk, Datagrams)
        self.asked.append(self.talk.send("orig", at, self.question()))
        return self

    def response(self, rcode: str, answers: tuple[Answer, ...], truncated: bool = False) -> bytes:
        """The answer's message, its names compressed; it becomes the truth of this transaction."""
        self.rcode = rcode
        self.answers = ", ".join(f"{kind} {value}" for kind, value in answers) or None
        self.truncated = truncated
        owner, records = self.name, []
        for kind, value in answers:
            records.append(_record(owner, kind, value))
            owner = value if kind == "CNAME" else owner
        message = DNS(
            id=self.trans_id,
            qr=1,
            aa=int(not records),
            rd=1,
            ra=1,
            tc=int(truncated),
            qd=[self._query()],
            an=records,
            rcode=RCODES.index(rcode) if rcode in RCODES else 0,
        )
        if not records and rcode in ("NOERROR", "NXDOMAIN"):
            zone = "cluster.local" if self.name.endswith("cluster.local") else self.name.split(".", 1)[-1]
            message.ns = [
                DNSRRSOA(rrname=zone, ttl=30, mname=f"ns.dns.{zone}", rname=f"hostmaster.{zone}", serial=1773490361)
            ]
        if self.edns:
            message.ar = [DNSRROPT(rclass=1232, extrcode=0 if rcode in RCODES else 1)]
        return bytes(dns_compress(message))

    def answer(self, at: int, rcode: str = "NOERROR", *answers: Answer, truncated: bool = False) -> Transaction:
        assert isinstance(self.talk, Datagrams)
        self.answered = self.talk.send("resp", at, self.response(rcode, answers, truncated))
        return self

    def truth(self) -> list[dict[str, Any]]:
        """One row an observation point."""
        return [self._row(place, flow) for place, flow in enumerate(self.talk.flows)]

    def _row(self, place: int, flow: dict[str, Any]) -> dict[str, Any]:
        first = self.asked[0][place] if self.asked else None
        last = self.asked[-1][place] if self.asked else None
        response = self.answered[place] if self.answered else None
        return {
            "interface": flow["interface"],
            "query_frame": first,
            "response_frame": response,
            "query_ts": first.ts if first else None,
            "response_ts": response.ts if response else None,
            "latency_ns": response.ts - first.ts if response and first else None,
            "last_attempt_latency_ns": response.ts - last.ts if response and last else None,
            "status": "unmatched_response" if not first else "answered" if response else "unanswered",
            "attempts": len(self.asked),
            "transport": "tcp" if isinstance(self.talk, Connection) else "udp",
            "trans_id": self.trans_id,
            "query": self.name.lower(),
            "qtype": self.qtype,
            "rcode": self.rcode,
            "answers": self.answers,
            "truncated": self.truncated,
            "search_expansion": self.search_expansion,
            "client_ip": flow["orig_ip"],
            "client_port": flow["orig_port"],
            "server_ip": flow["resp_ip"],
            "server_port": flow["resp_port"],
        }


def _record(owner: str, kind: str, value: str) -> DNSRR | DNSRRSRV:
    if kind == "SRV":
        priority, weight, port, target = value.split()
        return DNSRRSRV(rrname=owner, ttl=5, priority=int(priority), weight=int(weight), port=int(port), target=target)
    return DNSRR(rrname=owner, type=kind, ttl=5, rdata=value)


class Resolver:
    """Makes the transactions of one story; ids come one after another, so that the file is reproducible."""

    def __init__(self, story: Story, first_id: int) -> None:
        self.story = story
        self.next_id = first_id
        self.transactions: list[Transaction] = []

    def on(self, talk: Datagrams | Connection, name: str, qtype: str = "A", **more: Any) -> Transaction:
        """A question about to be asked on `talk`."""
        self.next_id = (self.next_id * 31 + 7) & 0xFFFF
        one = Transaction(talk, self.next_id, name, qtype, **more)
        self.transactions.append(one)
        return one

    def socket(
        self, client: tuple[str, int], server: tuple[str, int], points: tuple[Point, ...], **ttl: int
    ) -> Datagrams:
        """A UDP socket of the client, asking one server."""
        talk = Datagrams(
            self.story.capture,
            Side(*client, ip_id=client[1] * 7 & 0xFFFF, ttl=ttl.get("client_ttl", 64)),
            Side(*server, ip_id=client[1] * 13 & 0xFFFF, ttl=ttl.get("server_ttl", 63)),
            points,
        )
        self.story.conversations.append(talk)
        return talk

    def finish(self) -> None:
        """Hand the truth to the story."""
        rows = [row for one in self.transactions for row in one.truth()]
        self.story.dns += sorted(rows, key=lambda row: row["query_ts"] or row["response_ts"])
