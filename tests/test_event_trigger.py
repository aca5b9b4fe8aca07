"""An Event of a reason that was asked for freezes the minutes around it, once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from capture.contract import KINDS, Freeze, JournalRecord, from_json
from capture.event_trigger import AFTER_NS, BEFORE_NS, QUIET_NS, EventTrigger
from tests.collecting import add_agent, kubeconfig
from tests.journal_rig import make_server

NOW = 1_772_373_780 * 10**9
"""2026-03-01T14:03:00Z"""


def event(reason: str, **more: Any) -> dict[str, Any]:
    about = {"kind": "Pod", "namespace": "shop", "name": "orders-1"}
    return {"kind": "Event", "involvedObject": about, "reason": reason, **more}


def record(item: dict[str, Any], kind: str = "added", now_ns: int = NOW) -> JournalRecord:
    return JournalRecord(kind, now_ns, "Event", "uid", "1", item)


def test_an_event_of_the_reason_freezes_around_its_own_time() -> None:
    freeze = EventTrigger(frozenset(["OOMKilling"])).observe(
        record(event("OOMKilling", lastTimestamp="2026-03-01T14:02:30Z", firstTimestamp="2026-03-01T13:00:00Z"))
    )
    assert freeze is not None
    happened_ns = NOW - 30 * 10**9
    assert (freeze.since_ns, freeze.until_ns) == (happened_ns - BEFORE_NS, happened_ns + AFTER_NS)
    assert freeze.reason == "OOMKilling of Pod shop/orders-1"


def test_an_event_without_a_time_happened_when_it_was_seen() -> None:
    freeze = EventTrigger(frozenset(["BackOff"])).observe(record(event("BackOff", eventTime=None, series=None)))
    assert freeze is not None
    assert freeze.since_ns == NOW - BEFORE_NS


def test_other_events_and_old_ones_and_other_kinds_freeze_nothing() -> None:
    trigger = EventTrigger(frozenset(["BackOff"]))
    assert trigger.observe(record(event("Pulled"))) is None
    assert trigger.observe(record(event("BackOff"), "listed")) is None
    assert trigger.observe(record(event("BackOff"), "deleted")) is None
    assert trigger.observe(JournalRecord("added", NOW, "Pod", "uid", "1", {"reason": "BackOff"})) is None
    assert trigger.observe(JournalRecord("list_complete", NOW, "Event")) is None


def test_one_incident_is_one_freeze() -> None:
    trigger = EventTrigger(frozenset(["BackOff"]))
    assert trigger.observe(record(event("BackOff")))
    assert trigger.observe(record(event("BackOff"), "modified", NOW + QUIET_NS - 1)) is None
    assert trigger.observe(record(event("BackOff"), "modified", NOW + QUIET_NS))


def test_the_journal_freezes_the_nodes_that_it_can_reach(tmp_path: Path) -> None:
    with make_server() as server:
        for name in ("node-a", "node-b"):
            (tmp_path / name / "cluster" / name).mkdir(parents=True)
            add_agent(server, name, tmp_path / name)
        for item in [
            *server.store.items(server.store.resources["v1", "Node"]),
            *server.store.items(server.store.resources["v1", "Pod"]),
        ]:
            metadata = item[1]["metadata"] | {"uid": f"uid-{item[0]}"}
            server.apply(item[1] | {"metadata": metadata})
        del server.containers["podtap", "podtap-agent-node-b"]
        command = [Path(sys.executable).with_name("podtap"), "journal", "--root", tmp_path / "journal", "--metrics", ""]
        command += ["--freeze-on", "OOMKilling", "--kubeconfig", kubeconfig(tmp_path, server)]
        with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stderr is not None
                server.wait_until(lambda: server.open_watches >= len(KINDS), 15)  # what is listed is no news
                metadata = {"name": "e", "namespace": "shop", "uid": "e"}
                server.apply(event("OOMKilling") | {"apiVersion": "v1", "metadata": metadata})
                lines = []
                for line in process.stderr:
                    lines.append(json.loads(line))
                    if lines[-1]["message"] == "an Event froze":
                        break
            finally:
                process.terminate()
                process.communicate(timeout=10)
    assert lines[-1]["nodes"] == 1
    assert [line["node"] for line in lines if line["message"] == "a node could not be frozen"] == ["node-b"]
    [file] = (tmp_path / "node-a").rglob("freezes/*.json")
    frozen = from_json(Freeze, file.read_bytes())
    assert frozen.reason == "OOMKilling of Pod shop/orders-1"
    assert abs(frozen.since_ns + BEFORE_NS - time.time_ns()) < 60 * 10**9
