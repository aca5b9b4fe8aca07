"""Every query of the dashboard and of the alerts, asked of a Prometheus that scrapes a real agent and journal."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from capture import metrics
from tests.journal_rig import make_pod, make_server
from tests.kubeconfigs import write_kubeconfig
from tests.lab.namespaces import Namespace, new_prefix
from tests.lab.tools import needs

pytestmark = [pytest.mark.usefixtures("root"), needs("prometheus")]

MONITORING = Path(__file__).resolve().parents[2] / "capture" / "deploy" / "components" / "monitoring"
PODTAP = (sys.executable, "-m", "podtap")
PROMETHEUS = "http://127.0.0.1:9090"
SCRAPED = {"podtap-agent": 9798, "podtap-journal": 9799}
"""Job -> port."""
SECONDS = 40.0
VARIABLES = {"$node": ".*", "$__rate_interval": "10s", "$__range": "1m"}
"""What Grafana fills in."""
OF_OTHERS = {"up": {"job"}, "kube_daemonset_status_number_unavailable": {"daemonset"}}
"""Metrics of Prometheus itself and of kube-state-metrics -> labels that are used."""
TARGET_LABELS = {"job", "node", "pod", "namespace", "instance"}
NOT_YET = {"podtap_write_errors_total", "podtap_filter_swaps_total", "podtap_journal_failures_total"} | {
    'podtap_ring_oldest_timestamp_seconds{job="podtap-agent",frozen="true"}',
    "podtap_ring_overwritten_in_seconds",
}
"""Metrics, or selectors, of what does not happen in this test."""

SELECTOR = re.compile(r"\b([a-z]\w*)\{([^}]*)\}")
LABEL = re.compile(r'(\w+)(?:=~|!~|!=|=)"')


def dashboard() -> dict[str, str]:
    """Panel and number of its query -> query."""
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    return {f"{p['title']} {t['refId']}": fill_in(t["expr"]) for p in panels for t in p.get("targets", [])}


def fill_in(query: str) -> str:
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    assert "$" not in query, query
    return query


def alert_rules() -> dict[str, Any]:
    spec: dict[str, Any] = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["spec"]
    return spec


ALERTS = {rule["alert"]: rule["expr"] for group in alert_rules()["groups"] for rule in group["rules"]}
QUERIES = dashboard() | ALERTS


class Prometheus:
    """Asked from inside its network namespace."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

    def get(self, path: str, **parameters: str) -> Any:
        with self._namespace.entered():
            url = f"{PROMETHEUS}{path}?{urllib.parse.urlencode(parameters)}"
            with urllib.request.urlopen(url, timeout=10) as answer:
                said = json.load(answer)
        assert said["status"] == "success" and not said.get("warnings"), said
        return said["data"]

    def ask(self, query: str) -> list[Any]:
        found: list[Any] = self.get("/api/v1/query", query=query)["result"]
        return found


@pytest.fixture(scope="module")
def prometheus(root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("monitoring")
    (folder / "rules.yaml").write_text(yaml.safe_dump(alert_rules()))
    scrapes = [
        {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"], "labels": {"node": "a", "pod": job}}]}
        for job, port in SCRAPED.items()
    ]
    settings = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "scrape_configs": scrapes}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(settings | {"rule_files": ["rules.yaml"]}))
    with ExitStack() as stack:
        namespace = Namespace(new_prefix() + "metrics")
        stack.callback(namespace.close)
        with namespace.entered():
            server = make_server()
            server.start()
        stack.callback(server.stop)
        config = write_kubeconfig(folder, server)
        agent = [*PODTAP, "agent", "--root", str(folder / "agent"), "--node", "a", "-G", "1", "-C", "1"]
        journal = [*PODTAP, "journal", "--root", str(folder / "journal"), "--name", "one", "--kubeconfig", str(config)]
        prometheus = ["prometheus", f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/tsdb"]
        prometheus.append(f"--web.listen-address={PROMETHEUS.removeprefix('http://')}")
        for command in (agent, journal, prometheus):
            stack.callback(namespace.start(*command).wait)
        stack.callback(namespace.close)  # ends them
        asked = Prometheus(namespace)
        until_scraped(asked, namespace, server)
        yield asked


def until_scraped(asked: Prometheus, namespace: Namespace, server: Any) -> None:
    """Some traffic and some changes of pods, until segments were sealed and counted a while."""
    enough = "count_over_time(podtap_sealed_segments_total[1m]) > 4 and podtap_sealed_segments_total > 1"
    changes = 'podtap_journal_records_total{kind="Pod",type="modified"} > 3'
    end, number = time.monotonic() + SECONDS, 0
    while True:
        number += 1
        server.apply(make_pod("a", f"10.244.0.{number % 250}"))
        with namespace.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(os.urandom(100), ("127.0.0.1", 9))
        try:
            if asked.ask(enough) and asked.ask(changes):
                return
        except OSError:
            pass  # it has not begun
        assert time.monotonic() < end, "agent or journal was not scraped"
        time.sleep(0.5)


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_can_be_answered(prometheus: Prometheus, name: str) -> None:
    """No error; and where it is not a question for what is wrong, there is an answer."""
    found = prometheus.ask(QUERIES[name])
    known = {selected[1] for selected in SELECTOR.finditer(QUERIES[name])}
    assert found or name in ALERTS or known & NOT_YET, "the panel is empty"


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_means_metrics_and_labels_that_exist(prometheus: Prometheus, name: str) -> None:
    labels = {metric.name: {*metric.labels, *TARGET_LABELS} for metric in metrics.ALL} | OF_OTHERS
    documented = set(
        re.findall(r"^\| `(\w+)` \|", (MONITORING.parents[3] / "docs/metrics.md").read_text(), re.MULTILINE)
    )
    selectors = list(SELECTOR.finditer(QUERIES[name]))
    assert selectors
    assert {word for word in re.findall(r"\w+_\w+", QUERIES[name]) if word.startswith(("podtap_", "process_"))} == {
        selected[1] for selected in selectors if selected[1] not in OF_OTHERS
    }, "each metric has a selector"
    for selected in selectors:
        metric, matchers = selected.groups()
        assert metric in documented | set(OF_OTHERS)
        assert set(LABEL.findall(matchers)) <= labels[metric]
        assert "job=" in matchers or metric.startswith("kube_")
        if not {metric, selected[0]} & NOT_YET and not metric.startswith("kube_"):
            assert prometheus.ask(selected[0]), selected[0]
    grouped = {
        label for each in re.findall(r"\b(?:by|without) \(([\w, ]*)\)", QUERIES[name]) for label in each.split(", ")
    }
    assert grouped <= set().union(*(labels[selected[1]] for selected in selectors))


def test_alerts_are_evaluated_and_what_is_there_does_not_count_as_absent(prometheus: Prometheus) -> None:
    groups = prometheus.get("/api/v1/rules")["groups"]
    rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert set(rules) == set(ALERTS)
    assert {(rule["health"], rule.get("lastError")) for rule in rules.values()} == {("ok", None)}
    active = {name for name, rule in rules.items() if rule["alerts"]}
    # Whether the clock of this machine is synchronised, and how large its disk is, is not for us to say.
    assert active <= {"PodtapClockNotSynchronised", "PodtapDiskTooSmall"}


def test_jobs_are_named_as_the_monitors_name_them() -> None:
    monitors = list(yaml.safe_load_all((MONITORING / "pod-monitors.yaml").read_text()))
    for each in monitors:
        (endpoint,) = each["spec"]["podMetricsEndpoints"]
        named = {rule["targetLabel"]: rule.get("replacement") for rule in endpoint["relabelings"]}
        assert named == {"job": each["metadata"]["name"], "node": None}
    assert {each["metadata"]["name"] for each in monitors} == set(SCRAPED)
    assert set(re.findall(r"podtap-(?:agent|journal)", " ".join(QUERIES.values()))) == set(SCRAPED)
