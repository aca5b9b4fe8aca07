"""The alert rules: judged by promtool, which also makes each of them fire, and not fire where it nearly should."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

MONITORING = Path(__file__).resolve().parents[1] / "capture" / "deploy" / "components" / "monitoring"
pytestmark = pytest.mark.skipif(not shutil.which("promtool"), reason="needs the package prometheus")

AT = "30m"
"""When is looked, with a sample each minute."""
G = 2**30

Series = dict[str, str]
"""Series -> its samples, as promtool reads them: 0+5x30 begins with 0 and grows 30 times by 5."""


def of_agent(metric: str, samples: str, labels: str = "", node: str = "a") -> Series:
    target = (
        f'job="podtap-agent",instance="{node}:9798",node="node-{node}",pod="podtap-agent-{node}",namespace="podtap"'
    )
    return {f"{metric}{{{target}{labels and ','}{labels}}}": samples}


def of_journal(metric: str, samples: str, labels: str = "", pod: str = "0") -> Series:
    target = f'job="podtap-journal",instance="{pod}:9799",pod="podtap-journal-{pod}",namespace="podtap"'
    return {f"{metric}{{{target}{labels and ','}{labels}}}": samples}


def drops(reason: str, samples: str) -> Series:
    accepted = of_agent("podtap_accepted_packets_total", "0+60000x30")
    return accepted | of_agent("podtap_dropped_packets_total", samples, f'reason="{reason}"')


def ring(oldest: str, used: int, frozen: bool = False, node: str = "a") -> Series:
    which = f'frozen="{str(frozen).lower()}"'
    return (
        of_agent("podtap_ring_oldest_timestamp_seconds", oldest, which, node)
        | of_agent("podtap_ring_bytes", f"{used}x30", which, node)
        | of_agent("podtap_ring_quota_bytes", f"{4 * G}x30", which, node)
    )


CASES: dict[str, tuple[Series, Series]] = {
    "PodtapAgentsAbsent": (of_agent("up", "0x30"), of_agent("up", "0x30") | of_agent("up", "1x30", node="b")),
    "PodtapAgentDown": (of_agent("up", "1x20 0x10"), of_agent("up", "1x27 0x3")),
    "PodtapAgentMissing": (
        {'kube_daemonset_status_number_unavailable{daemonset="podtap-agent"}': "0x10 1x20"},
        {'kube_daemonset_status_number_unavailable{daemonset="another"}': "1x30"}
        | {'kube_daemonset_status_number_unavailable{daemonset="podtap-agent"}': "0x30"},
    ),
    "PodtapAgentNotReady": (
        of_agent("podtap_ready", "1x20 0x10"),
        of_agent("podtap_ready", "1x29 0") | of_journal("podtap_ready", "0x30"),
    ),
    "PodtapAgentRestarts": (
        of_agent("process_start_time_seconds", "0x5 300x5 600x5 900x15"),
        of_agent("process_start_time_seconds", "0x5 300x5 600x20"),
    ),
    "PodtapPacketsDropped": (
        drops("kernel", "0x22 0+1000x8"),
        drops("policy", "0+1000x30") | drops("kernel", "0+50x30"),
    ),
    "PodtapPacketsNotWritten": (drops("disk", "0x25 1x5"), drops("disk", "0 5x30") | drops("kernel", "0+1000x30")),
    "PodtapSegmentsWaiting": (
        of_agent("podtap_waiting_segments", "1x30"),
        of_agent("podtap_waiting_segments", "1x28 0x2"),
    ),
    "PodtapDiskTooSmall": (
        ring("0x30", 1 * G) | ring("0x30", 0, frozen=True) | of_agent("podtap_disk_free_bytes", f"{6 * G}x30"),
        ring("0x30", 1 * G) | ring("0x30", 5 * G, frozen=True) | of_agent("podtap_disk_free_bytes", f"{3 * G}x30"),
    ),
    # Samples of a time that goes on as the clock does, ten minutes behind; once the ring is full, once it just began.
    "PodtapReachShort": (
        ring("-600+60x30", 4 * G),
        ring("-600+60x30", G) | ring("-1200+60x30", 4 * G, node="b") | ring("-600+60x30", 4 * G, frozen=True),
    ),
    "PodtapFrozenQuotaNearlyFull": (ring("0x30", int(3.3 * G), True), ring("0x30", 4 * G) | ring("0x30", 3 * G, True)),
    "PodtapFrozenSegmentsRefused": (
        of_agent("podtap_refused_segments", "3x30"),
        of_agent("podtap_refused_segments", "0x30"),
    ),
    "PodtapSegmentsLost": (
        of_agent("podtap_lost_segments_total", "0x10 1x20"),
        of_agent("podtap_lost_segments_total", "7x30"),
    ),
    "PodtapClockNotSynchronised": (
        of_agent("podtap_clock_synchronised", "1x10 0x20"),
        of_agent("podtap_clock_synchronised", "0x10 1x10 0x10"),
    ),
    "PodtapClockStepped": (
        of_agent("podtap_clock_steps_total", "0x20 1x10"),
        of_agent("podtap_clock_steps_total", "0x5 1x25"),
    ),
    "PodtapJournalsAbsent": (
        of_journal("up", "0x30") | of_journal("up", "0x30", pod="1"),
        of_journal("up", "0x30") | of_journal("up", "1x30", pod="1"),
    ),
    "PodtapJournalDown": (of_journal("up", "0x30"), of_journal("up", "1x20 0x10")),
    "PodtapJournalNotReady": (
        of_journal("podtap_ready", "0x30"),
        of_journal("podtap_ready", "0x29 1") | of_agent("podtap_ready", "0x30"),
    ),
    "PodtapJournalBlind": (
        of_journal("podtap_journal_blind", "1x30", 'kind="Pod"')
        | of_journal("podtap_journal_blind", "1x30", 'kind="Pod"', "1"),
        of_journal("podtap_journal_blind", "1x30", 'kind="Pod"')
        | of_journal("podtap_journal_blind", "0x30", 'kind="Pod"', "1"),
    ),
    "PodtapJournalGap": (
        of_journal("podtap_journal_gaps_total", "0x20 1x10", 'kind="Pod"'),
        of_journal("podtap_journal_gaps_total", "0x20 1x10", 'kind="Pod"')
        | of_journal("podtap_journal_gaps_total", "0x30", 'kind="Pod"', "1"),
    ),
}
"""Alert -> what makes it fire, what does not."""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """As a file that Prometheus reads."""
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load((MONITORING / "alerts.yaml").read_text())["spec"]))
    return path


def alerts() -> list[dict[str, Any]]:
    spec = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["spec"]
    return [rule for group in spec["groups"] for rule in group["rules"]]


def promtool(*arguments: object) -> str:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_finds_nothing_wrong(rules: Path) -> None:
    assert f"SUCCESS: {len(alerts())} rules found" in promtool("check", "rules", "--lint-fatal", rules)


def test_every_alert_fires_and_keeps_still(rules: Path, tmp_path: Path) -> None:
    assert set(CASES) == {rule["alert"] for rule in alerts()}
    tests = []
    for alert, both in CASES.items():
        for series, samples in zip(both, ([{"labels": "{}", "value": 1}], []), strict=True):
            asked = {"expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})', "eval_time": AT}
            tests.append(
                {
                    "name": f"{alert} {'fires' if samples else 'keeps still'}",
                    "interval": "1m",
                    "input_series": [{"series": name, "values": values} for name, values in series.items()],
                    "promql_expr_test": [asked | {"exp_samples": samples}],
                }
            )
    path = tmp_path / "tests.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [rules.name], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", path)


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_it_is_what_it_means_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "action"}
    for text in rule["annotations"].values():
        assert len(text) > 20 and text.endswith(".")
        for command in re.findall(r"`kubectl podtap (\w+)", text):
            from podtap import COMMANDS

            assert command in COMMANDS
