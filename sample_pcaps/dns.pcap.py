"""DNS of a pod, over UDP and TCP, with what goes wrong. Seen at the frontend's veth, so the server is the ClusterIP."""

from __future__ import annotations

from pathlib import Path

from _capture import MS, US, Capture, ethernet, utc
from _conversation import Datagrams, Story
from _dns import Resolver, Transaction
from _shop import CHECKOUT_SERVICE, FRONTEND, KUBE_DNS, NODE_1
from _tcp import Connection

STORY = Story(Capture(utc("2026-03-14T14:02:00")))
RESOLVER = Resolver(STORY, 4321)
VETH = ethernet(FRONTEND.mac, NODE_1.bridge_mac)
CHECKOUT_NAME = "checkout.shop.svc.cluster.local"


def socket(port: int) -> Datagrams:
    return RESOLVER.socket((FRONTEND.ip, port), (KUBE_DNS.ip, 53), (VETH,))


def pair(at: int, port: int, name: str) -> tuple[Transaction, Transaction]:
    """Glibc asks for A and AAAA on one socket, at once."""
    talk = socket(port)
    return RESOLVER.on(talk, name).ask(at), RESOLVER.on(talk, name, "AAAA").ask(at + 9 * US)


def dual_stack(at: int) -> None:
    a, aaaa = pair(at, 41001, CHECKOUT_NAME)
    a.answer(at + 380 * US, "NOERROR", ("A", CHECKOUT_SERVICE.ip))
    aaaa.answer(at + 410 * US, "NOERROR", ("AAAA", str(CHECKOUT_SERVICE.ip6)))


def search_walk(at: int) -> None:
    """ndots:5: a name with two dots is first tried in every search domain."""
    bare = "api.payments.example"
    for port, suffix in ((41011, ".shop.svc.cluster.local"), (41012, ".svc.cluster.local"), (41013, ".cluster.local")):
        for place, one in enumerate(pair(at, port, bare + suffix)):
            one.search_expansion = True
            one.answer(at + (420 + 31 * place) * US, "NXDOMAIN")
        at += 600 * US
    a, aaaa = pair(at, 41014, bare)
    a.answer(at + 21 * MS, "NOERROR", ("CNAME", "edge.payments.example"), ("A", "203.0.113.91"), ("A", "203.0.113.92"))
    aaaa.answer(at + 22 * MS, "NOERROR", ("CNAME", "edge.payments.example"))


def retry(at: int) -> None:
    """The first query is lost; the client asks again after 0.1 s with the same id on the same socket."""
    one = RESOLVER.on(socket(41021), CHECKOUT_NAME).ask(at)
    one.ask(at + 100 * MS).answer(at + 100 * MS + 350 * US, "NOERROR", ("A", CHECKOUT_SERVICE.ip))


def late_retry(at: int) -> None:
    """A resolver with a timeout of 6 s: one transaction that its application waited for, though tshark sees two."""
    one = RESOLVER.on(socket(41022), "cart.shop.svc.cluster.local").ask(at)
    one.ask(at + 6_003 * MS).answer(at + 6_003 * MS + 400 * US, "NOERROR", ("A", "10.96.20.40"))


def timeout(at: int) -> None:
    """Nobody answers: two attempts 5 s apart, as glibc, and then none."""
    RESOLVER.on(socket(41023), "metrics.partner.example").ask(at).ask(at + 4_990 * MS)


def late_answer(at: int) -> None:
    """The answer comes after the application asked three times."""
    one = RESOLVER.on(socket(41024), "orders.partner.example").ask(at).ask(at + 1_001 * MS).ask(at + 2_002 * MS)
    one.answer(at + 2_350 * MS, "SERVFAIL")


def odd_types(at: int) -> None:
    RESOLVER.on(socket(41031), "www.shop.example", "HTTPS").ask(at).answer(at + 18 * MS)
    srv = RESOLVER.on(socket(41032), "_http._tcp.checkout.shop.svc.cluster.local", "SRV").ask(at + 40 * MS)
    srv.answer(at + 41 * MS, "NOERROR", ("SRV", f"0 100 8080 {CHECKOUT_NAME}"))
    ptr = RESOLVER.on(socket(41033), "20.20.96.10.in-addr.arpa", "PTR").ask(at + 50 * MS)
    ptr.answer(at + 51 * MS, "NOERROR", ("PTR", CHECKOUT_NAME))
    mixed = RESOLVER.on(socket(41034), "ChEcKouT.shop.SVC.cluster.LOCAL").ask(at + 60 * MS)
    mixed.answer(at + 61 * MS, "NOERROR", ("A", CHECKOUT_SERVICE.ip))


def edns(at: int) -> None:
    one = RESOLVER.on(socket(41041), "images.cdn.example", edns=True).ask(at)
    one.answer(at + 17 * MS, "NOERROR", ("A", "203.0.113.101"))
    refused = RESOLVER.on(socket(41042), "images.cdn.example", "AAAA", edns=True).ask(at + 30 * MS)
    refused.answer(at + 44 * MS, "BADVERS")


def truncated(at: int) -> None:
    """Forty addresses do not fit into UDP: asked again over TCP, where the answer takes two packets."""
    name = "shards.shop.svc.cluster.local"
    addresses = tuple(("A", f"10.244.{1 + i % 2}.{100 + i}") for i in range(40))
    RESOLVER.on(socket(41051), name).ask(at).answer(at + 400 * US, "NOERROR", *addresses[:20], truncated=True)
    c = Connection(STORY, (FRONTEND.ip, 41052), (KUBE_DNS.ip, 53), (VETH,))
    at = c.handshake(at + 600 * US) + 30 * US
    a, aaaa = RESOLVER.on(c, name), RESOLVER.on(c, name, "AAAA")
    questions = b"".join(len(q).to_bytes(2, "big") + q for q in (a.question(), aaaa.question()))
    together = c.send("orig", at, questions)
    a.asked, aaaa.asked = [together.seen], [together.seen]
    c.ack("resp", at + c.rtt)
    first, second = a.response("NOERROR", addresses), aaaa.response("NOERROR", ())
    answers = b"".join(len(r).to_bytes(2, "big") + r for r in (first, second))
    cut = len(first) * 2 // 3
    c.send("resp", at + MS, answers[:cut])
    c.ack("orig", at + MS + 30 * US)
    rest = c.send("resp", at + MS + 90 * US, answers[cut:])
    a.answered, aaaa.answered = rest.seen, rest.seen
    c.ack("orig", at + MS + 120 * US)
    c.close(at + 2 * MS)


def stray_response(at: int) -> None:
    """A response to a question that was asked before the capture began."""
    RESOLVER.on(socket(41061), "catalogue.shop.svc.cluster.local").answer(at, "NOERROR", ("A", "10.96.20.50"))


stray_response(20 * MS)
dual_stack(100 * MS)
search_walk(200 * MS)
retry(500 * MS)
late_retry(1_000 * MS)
timeout(1_500 * MS)
late_answer(2_000 * MS)
odd_types(9_000 * MS)
edns(10_000 * MS)
truncated(11_000 * MS)
RESOLVER.finish()
TRUTH = STORY.truth()

if __name__ == "__main__":
    STORY.capture.write(Path(__file__).with_suffix(""))
