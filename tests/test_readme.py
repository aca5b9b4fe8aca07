"""The README's tour: what it shows is what the commands print."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import podtap

ROOT = Path(__file__).resolve().parents[1]
INCIDENT = ROOT / "sample_pcaps" / "incident"


def shown(language: str) -> Iterator[str]:
    """The code blocks of the README in a language; plain ones have none."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.M | re.S)
    yield from (text for tag, text in blocks if tag == language)


REPORTS = dict(block.removeprefix("$ ").split("\n", 1) for block in shown("") if block.startswith("$ podtap report"))


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tour") / "lake"
    arguments = ["analyze", str(INCIDENT), "--metadata", str(INCIDENT / "metadata"), "--lake", str(path)]
    analyzed = CliRunner().invoke(podtap.main, arguments)
    assert analyzed.exit_code == 0, analyzed.output
    return path


@pytest.mark.parametrize("command", REPORTS)
def test_reports_print_what_the_tour_shows(command: str, lake: Path) -> None:
    printed = CliRunner().invoke(podtap.main, shlex.split(command)[1:], env={"PODTAP_LAKE": str(lake)})
    assert printed.stdout.splitlines() == REPORTS[command].splitlines()


def test_the_python_of_the_tour_runs(lake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = shown("python")
    exec(code.replace("build/demo-lake", str(lake)), {})
    printed = capsys.readouterr().out
    assert "rates.exchange.example.org" in printed
    assert [line.split()[1].partition("-")[0] for line in printed.splitlines()[-2:]] == ["cart", "report"]


def test_the_demo_prints_the_reports_of_the_tour() -> None:
    demo = (ROOT / "Makefile").read_text().partition("\ndemo: ")[2].partition("\n\n")[0]
    reports = re.findall(r"\$\(PODTAP\) (report .*) --lake", demo)
    assert [f"podtap {report}" for report in reports] == list(REPORTS)
