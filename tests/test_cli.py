"""The command: what goes to standard output and what to standard error, exit codes, and tables that fit."""

from __future__ import annotations

import csv
import gc
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

import podtap
from analysis import open_lake
from analysis.cli import importing
from analysis.errors import PodtapError, Problem
from analysis.progress import shown_progress
from analysis.reports.filters import Filters
from analysis.reports.report import Report, make_report
from analysis.reports.table import bytes_text, milliseconds_text, print_table, shorten
from analysis.reports.window import Window
from analysis.schemas import TABLES
from tests.lakes import SECOND, at, identity, whole, write

ROOT = Path(__file__).resolve().parents[1]
T = at("2026-03-01T14:03:00")
FRONTEND = "shop/web-frontend-production-canary-7d9f8b6c5d-qq2lm"
METRICS = "kube-system/metrics-server-6f6cdbf67d-abcde"


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """Two connections, one of them refused; a retransmission, a lookup, and a file that says what it lost."""
    flow: dict[str, Any] = {
        "first_seen": T,
        "last_seen": T + SECOND,
        "protocol": "TCP",
        "orig_ip": "10.1.0.5",
        "resp_ip": "192.0.2.7",
        "resp_bytes": 3 * 1024**2,
        "resp_tcp_segments": 1000,
        "resp_retransmits": 25,
        "missed_bytes": 1024**2,
        **identity("orig", "pod", FRONTEND),
    }
    flows = [
        {**flow, "flow_uid": "a", "community_id": "1:a", "conn_state": "SF", **identity("resp", "pod", METRICS)},
        {**flow, "flow_uid": "b", "community_id": "1:b", "conn_state": "REJ", **identity("resp", "external", "")},
    ]
    event = {"flow_uid": "a", "sender": "resp", "kind": "fast", "ts": T + 123_456_789, "tcp_segments": 25}
    segment = {"segment": "a.pcap", "first_ts": T, "last_ts": T + SECOND, "packets": 2000, "truncated": True}
    path = tmp_path / "lake"
    write(path, "flows", flows)
    write(path, "flow_minutes", [whole(row) for row in flows])
    write(path, "retransmits", [event])
    write(path, "segments", [{**segment, "drops_kernel": 7, "drops_interface": 0, "problems": "offset 40: cut"}])
    return path


def podtap_run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(podtap.main, [str(argument) for argument in arguments])


class TestReport:
    def test_json_is_rows_on_standard_output_and_completeness_on_standard_error(self, lake: Path) -> None:
        result = podtap_run("report", "retransmits", "--lake", lake, "-o", "json")
        (row,) = json.loads(result.stdout)
        assert (row["sender"], row["peer"], row["fast"], row["rto"]) == (METRICS, FRONTEND, 1, 0)
        assert row["first_ts"] == "2026-03-01T14:03:00.123456789Z"
        assert row["delay_p50_ns"] is None
        assert "1 file, 2,000 packets from 2026-03-01T14:03:00Z to 2026-03-01T14:03:01Z\n" in result.stderr
        assert "drops: kernel 7, interface 0\n" in result.stderr
        assert "times in UTC\n" in result.stderr

    @pytest.mark.parametrize("name", ["flows", "retransmits", "dns"])
    def test_json_csv_and_python_have_the_same_columns(self, lake: Path, name: str) -> None:
        write(lake, "dns", [{"ts": T, "query_ts": T, "status": "unanswered", "attempts": 1, "transport": "udp"}])
        rows = json.loads(podtap_run("report", name, "--lake", lake, "-o", "json").stdout)
        table = list(csv.DictReader(io.StringIO(podtap_run("report", name, "--lake", lake, "-o", "csv").stdout)))
        assert list(rows[0]) == list(table[0]) == list(open_lake(lake).report(name).columns)
        assert len(rows) == len(table) > 0

    def test_the_foot_of_a_table_says_how_complete_the_data_is(self, lake: Path) -> None:
        result = podtap_run("report", "flows", "--lake", lake)
        lines = result.stdout.splitlines()
        assert result.stderr == ""
        assert lines[lines.index("") :] == [
            "",
            "1 file, 2,000 packets from 2026-03-01T14:03:00Z to 2026-03-01T14:03:01Z",
            "drops: kernel 7, interface 0",
            "capture missed 33.3% of TCP bytes: retransmissions are a lower bound",
            "1 truncated file",
            "a.pcap: offset 40: cut",
            "no metadata, so addresses have no names: podtap enrich --metadata PATH adds them",
            "times in UTC",
        ]

    def test_a_capture_that_does_not_count_drops_is_not_said_to_have_none(self, tmp_path: Path) -> None:
        write(tmp_path, "segments", [{"segment": "a.pcap", "first_ts": T, "last_ts": T, "packets": 1}])
        assert "drops not reported by the capture" in podtap_run("report", "flows", "--lake", tmp_path).stdout

    @pytest.mark.parametrize(
        ("asked", "reason"),
        [
            (["--until", "2026-03-01T14:00:00Z"], "the data reaches 2026-03-01T14:03:00Z to 2026-03-01T14:03:01Z"),
            (["--pod", "metrics-server"], "did you mean metrics-server-6f6cdbf67d-abcde?"),
            (["-n", "zoo"], "there is no namespace 'zoo' in the lake; there are kube-system, shop"),
            (["-l", "app=web"], "no flows of label 'app=web'"),
            (["--service", "web"], "podtap enrich --metadata PATH adds them"),
        ],
    )
    def test_an_empty_report_says_why(self, lake: Path, asked: list[str], reason: str) -> None:
        result = podtap_run("report", "flows", "--lake", lake, *asked)
        assert result.exit_code == 0
        assert reason in result.stdout.splitlines()[0]
        assert podtap_run("report", "flows", "--lake", lake, *asked, "-o", "json").stdout == "[]\n"

    def test_a_lake_without_the_table_says_so(self, lake: Path) -> None:
        assert podtap_run("report", "dns", "--lake", lake).stdout.startswith("the lake has no dns\n")

    def test_a_limited_table_says_what_it_leaves_out(self, lake: Path) -> None:
        limited = podtap_run("report", "flows", "--lake", lake, "--limit", "1").stdout
        assert "1 of 2 rows, most failed first, then most bytes; --limit 0 shows all" in limited
        assert "of 2 rows" not in podtap_run("report", "flows", "--lake", lake, "--limit", "0").stdout

    def test_the_lake_may_come_from_the_environment(self, lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PODTAP_LAKE", str(lake))
        assert len(json.loads(podtap_run("report", "flows", "-o", "json").stdout)) == 2

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["--lake", "nowhere"], 1, "there is no lake at nowhere: run podtap analyze FILE... --lake nowhere"),
            (["--sort-by", "nope"], 2, "this report has no column 'nope'; it has orig, resp"),
            (["--since", "nope"], 2, "'nope' is not a time: write RFC 3339"),
            (["-l", "nope"], 2, "'nope' is not a label selector: write KEY=VALUE"),
            (["--by", "nope"], 2, "'nope' is not one of 'pod', 'workload'"),
        ],
    )
    def test_errors_say_what_to_do(self, lake: Path, arguments: list[str], code: int, message: str) -> None:
        result = podtap_run("report", "flows", "--lake", lake, *arguments)
        assert (result.exit_code, result.stdout) == (code, "")
        assert message in result.stderr


class TestTable:
    def text(self, lake: Path, name: str, width: int | None, wide: bool = False) -> str:
        out = io.StringIO()
        print_table(self.report(lake, name), Console(file=out, width=width or 1000, color_system=None), width, wide)
        return out.getvalue()

    def report(self, lake: Path, name: str) -> Report:
        return make_report(open_lake(lake), name, Window(), Filters())

    @pytest.mark.parametrize("name", ["flows", "retransmits"])
    @pytest.mark.parametrize("width", [80, 100, 120, 200])
    def test_it_fits_the_terminal(self, lake: Path, name: str, width: int) -> None:
        rows = self.text(lake, name, width).split("not shown")[0].splitlines()
        assert max(map(len, rows)) <= width

    def test_narrow_terminals_lose_columns_and_the_middle_of_names(self, lake: Path) -> None:
        head, refused, finished, hidden = self.text(lake, "flows", 80).splitlines()
        assert head.split() == ["ORIG", "RESP", "CONNS", "FAILED", "SENT", "RECEIVED", "RETRANS", "RATE"]
        assert re.fullmatch(r"shop/we\S*…\S*-qq2lm +192\.0\.2\.7 +1 +1 +0 B +3\.0 MiB +25 +2\.50%", refused)
        assert re.fullmatch(r"shop/we\S*…\S*-qq2lm +kube\S*…\S*abcde +1 +0 +0 B +3\.0 MiB +25 +2\.50%", finished)
        assert hidden == "not shown for want of width: SEGMENTS, RTT P50, RTT P99 (-o wide)"

    def test_nothing_is_shortened_in_a_pipe_or_when_wide(self, lake: Path) -> None:
        assert FRONTEND in self.text(lake, "flows", None)
        wide = self.text(lake, "flows", 80, wide=True)
        assert FRONTEND in wide
        assert "RTT P95" in wide

    def test_names_from_the_wire_cannot_steer_the_terminal(self, lake: Path) -> None:
        hostile = {"ts": T, "query": "\x1b[31mred\nline", "status": "answered", "attempts": 1, "transport": "udp"}
        write(lake, "dns", [hostile])
        out = podtap_run("report", "dns", "--lake", lake, "--by", "name").stdout
        assert "\\x1b[31mred\\x0aline" in out
        assert "\x1b" not in out

    @pytest.mark.parametrize(
        ("ns", "text"),
        [(42_000, "0.042 ms"), (1_234_567, "1.23 ms"), (12_345_678, "12.3 ms"), (5 * SECOND, "5,000 ms")],
    )
    def test_latencies_are_milliseconds(self, ns: int, text: str) -> None:
        assert milliseconds_text(ns) == text

    @pytest.mark.parametrize(
        ("number", "text"), [(0, "0 B"), (1023, "1,023 B"), (1536, "1.5 KiB"), (3 * 1024**3, "3.0 GiB")]
    )
    def test_bytes_are_binary_multiples(self, number: int, text: str) -> None:
        assert bytes_text(number) == text

    def test_shortening_keeps_both_ends(self) -> None:
        assert shorten("abcdefghij", 5) == "ab…ij"
        assert shorten("abcdefghij", 6) == "abc…ij"
        assert shorten("abcde", 5) == "abcde"


@dataclass
class FakeSummary:
    captures: int = 1
    packets: int = 1234
    not_ip: int = 0
    segments: int = 2
    flows: int = 9
    retransmits: int = 3
    transactions: int = 5
    seconds: float = 0.5
    unchanged: bool = False
    learned: bool = False
    problems: list[Problem] = field(default_factory=list)


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts functions in the place of the pipeline's: here only the command is tested."""

    def replace(**functions: Callable[..., Any]) -> None:
        compilation = {"must_compile": lambda: False, "compile_kernels": lambda _: None}
        for module, contents in (("pipeline", functions), ("compilation", compilation)):
            fake = ModuleType(f"analysis.{module}")
            for name, function in contents.items():
                setattr(fake, name, function)
            monkeypatch.setitem(sys.modules, fake.__name__, fake)

    return replace


class TestAnalyze:
    def test_options_reach_the_pipeline_and_the_summary_says_what_is_next(self, pipeline: Callable[..., None]) -> None:
        calls = []

        def analyze(*arguments: Any) -> FakeSummary:
            calls.append(arguments[:-1])
            return FakeSummary()

        pipeline(analyze=analyze)
        options = ["--lake", "L", "--metadata", "m1", "--metadata", "m2", "--jobs", "2", "--vxlan-port", "4790"]
        result = podtap_run("analyze", "a.pcap", "-", *options)
        assert calls == [(("a.pcap", "-"), Path("L"), ("m1", "m2"), 2, (4790,))]
        assert (result.exit_code, result.stdout) == (0, "")
        assert result.stderr.splitlines() == [
            "1,234 packets of 2 files in 0.5 s: 9 flows, 3 retransmits, 5 DNS transactions",
            "tables are in L; next: podtap report flows --lake L",
        ]

    def test_unreadable_input_is_exit_code_3_and_told_with_its_offset(self, pipeline: Callable[..., None]) -> None:
        problems = [
            Problem("a.pcap", 40, "record header needs 16 bytes, 7 are left"),
            Problem("b.txt", None, "no capture"),
        ]
        pipeline(analyze=lambda *_: FakeSummary(problems=problems))
        result = podtap_run("analyze", "a.pcap")
        assert result.exit_code == 3
        assert "could not read all: a.pcap: offset 40: record header needs 16 bytes, 7 are left\n" in result.stderr
        assert "could not read all: b.txt: no capture\n" in result.stderr

    @pytest.mark.parametrize(("jobs", "seconds"), [("1", 32), ("2", 18)])
    def test_the_first_run_says_that_it_compiles_and_uses_the_cores_it_may(
        self, pipeline: Callable[..., None], monkeypatch: pytest.MonkeyPatch, jobs: str, seconds: int
    ) -> None:
        pipeline(analyze=lambda *_: FakeSummary(unchanged=True))
        processes: list[int] = []
        monkeypatch.setattr(sys.modules["analysis.compilation"], "must_compile", lambda: True)
        monkeypatch.setattr(sys.modules["analysis.compilation"], "compile_kernels", processes.append)
        expected = f"first run on this machine: compiling, which takes about {seconds} s once\n"
        assert podtap_run("analyze", "a.pcap", "--jobs", jobs).stderr.startswith(expected)
        assert processes == [int(jobs)]

    def test_known_input_is_said_to_be_nothing_new(self, pipeline: Callable[..., None]) -> None:
        pipeline(analyze=lambda *_: FakeSummary(unchanged=True))
        assert podtap_run("analyze", "a.pcap").stderr == "nothing new: all of this is in lake already\n"

    def test_a_new_journal_of_known_captures_is_not_called_nothing_new(self, pipeline: Callable[..., None]) -> None:
        pipeline(analyze=lambda *_: FakeSummary(unchanged=True, learned=True))
        expected = "no capture is new to lake, but what is known of the cluster and of recordings is\n"
        assert podtap_run("analyze", "a.pcap").stderr == expected

    def test_nothing_that_can_be_read_is_not_called_old(self, pipeline: Callable[..., None]) -> None:
        problems = [Problem("a.pcap", None, "empty file")]
        pipeline(analyze=lambda *_: FakeSummary(unchanged=True, captures=0, problems=problems))
        result = podtap_run("analyze", "a.pcap")
        assert (result.exit_code, result.stderr) == (3, "could not read all: a.pcap: empty file\n")

    @pytest.mark.parametrize(("error", "code"), [(PodtapError("no such file"), 1), (KeyboardInterrupt(), 130)])
    def test_failure_and_interruption_have_their_exit_codes(
        self, pipeline: Callable[..., None], error: BaseException, code: int
    ) -> None:
        def fail(*_: Any) -> None:
            raise error

        pipeline(analyze=fail)
        assert podtap_run("analyze", "a.pcap").exit_code == code

    def test_no_input_is_wrong_usage(self) -> None:
        assert podtap_run("analyze").exit_code == 2

    def test_enrich_takes_several_paths(self, pipeline: Callable[..., None]) -> None:
        calls = []

        def enrich(*arguments: Any) -> list[Problem]:
            calls.append(arguments)
            return []

        pipeline(enrich=enrich)
        assert podtap_run("enrich", "--lake", "L", "--metadata", "m1", "m2").exit_code == 0
        assert calls == [(Path("L"), ("m1", "m2"))]

    def test_progress_shows_bytes_rate_and_time_left_on_a_terminal_only(self) -> None:
        for terminal in (True, False):
            out = io.StringIO()
            console = Console(file=out, force_terminal=terminal, width=120, color_system=None)
            with shown_progress(console) as progress:
                progress(1024**2, 2 * 1024**2, 1000)
                console.print("done")
            assert bool(re.search(r"1\.0/2\.0 MiB +[\d,]+ packets/s", out.getvalue())) is terminal


class TestSchema:
    def test_json_has_every_column_of_every_table(self) -> None:
        tables = json.loads(podtap_run("schema", "-o", "json").stdout)
        columns = {table["table"]: [column["column"] for column in table["columns"]] for table in tables}
        assert columns == {name: table.schema.names for name, table in TABLES.items()}

    def test_one_table_as_text(self) -> None:
        lines = podtap_run("schema", "flow_minutes").stdout.splitlines()
        assert lines[0].startswith("flow_minutes: what one flow did in one UTC minute")
        assert {line.split(" ")[0] for line in lines} > set(TABLES["flow_minutes"].schema.names)

    def test_an_unknown_table_is_wrong_usage(self) -> None:
        result = podtap_run("schema", "nope")
        assert result.exit_code == 2
        assert "there is no table 'nope'; there are packets, flows" in result.stderr


class TestProcess:
    """What only a process of its own can show."""

    def test_a_reader_that_goes_away_is_no_error_message(self) -> None:
        run = subprocess.run(
            f"{sys.executable} podtap.py schema -o json | head -n 1",
            shell=True,
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        assert (run.stdout, run.stderr) == (b"[\n", b"")

    def test_a_report_says_nothing_on_standard_error(self, tmp_path: Path) -> None:
        for command in (["analyze", "sample_pcaps/dns.pcap"], ["report", "dns"]):
            arguments = [sys.executable, "podtap.py", *command, "--lake", str(tmp_path)]
            run = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
        assert run.stdout.startswith("CLIENT")
        assert run.stderr == ""

    def test_nothing_imported_is_searched_for_garbage(self) -> None:
        gc.unfreeze()
        with pytest.raises(ModuleNotFoundError), importing():
            assert not gc.isenabled()
            raise ModuleNotFoundError
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
        gc.unfreeze()

    def test_a_missing_extra_says_how_to_install_it(self) -> None:
        code = "import sys; sys.modules['duckdb'] = None; import podtap; podtap.main(['report', 'flows'])"
        run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert run.returncode == 1
        assert run.stderr == "Error: duckdb is not installed: run pip install 'podtap[analysis]'\n"
