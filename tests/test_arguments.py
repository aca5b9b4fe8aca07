"""What people write on capture's command lines; times mean what they mean to the reports."""

from __future__ import annotations

import json

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from analysis.errors import UsageError
from analysis.reports import window
from capture.arguments import DURATION, SIZE, TIME, cluster_options, parse_duration, parse_size, parse_time

NOW = 1_772_373_780_123_456_789


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1500", 1500),
        ("64M", 67_108_864),
        ("64MB", 67_108_864),
        ("64MiB", 67_108_864),
        ("64Mi", 67_108_864),
        ("4g", 4_294_967_296),
        ("1k", 1024),
        ("2T", 2_199_023_255_552),
    ],
)
def test_sizes_are_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5G", "64 M", "64P", "٣"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("24h", 86_400), ("2d", 172_800), ("1h30m", 5400)]
)
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds * 10**9


@pytest.mark.parametrize("text", ["", "24", "m", "-5m", "1w", "5 m", "1.5h"])
def test_a_duration_has_a_unit(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


ASCII = st.characters(codec="ascii")
TIMES = st.one_of(
    *(st.from_regex(form, fullmatch=True, alphabet=ASCII) for form in (window.RELATIVE, window.EPOCH, window.RFC3339)),
    st.datetimes().map(lambda time: f"{time.isoformat()}Z"),
    st.just("now"),
    st.text(ASCII, max_size=30),
)


@given(TIMES)
def test_a_time_means_what_it_means_to_the_reports(text: str) -> None:
    try:
        expected = window.parse_time(text, NOW)
    except UsageError:
        with pytest.raises(ValueError, match="is not a time"):
            parse_time(text, NOW)
        return
    assert parse_time(text, NOW) == expected


def test_the_future_is_written_with_a_plus_where_it_is_allowed() -> None:
    assert parse_time("+15m", NOW, future=True) == NOW + 900 * 10**9
    assert parse_time("15m", NOW, future=True) == NOW - 900 * 10**9
    with pytest.raises(ValueError, match="is not a time"):
        parse_time("+15m", NOW)


def test_a_command_gets_values_and_a_wrong_one_is_a_usage_error() -> None:
    @click.command()
    @click.option("--quota", type=SIZE, default="4G")
    @click.option("--age", type=DURATION, default="24h")
    @click.option("--since", type=TIME)
    @cluster_options
    def command(**options: object) -> None:
        click.echo(json.dumps(options))

    good = CliRunner().invoke(command, ["--quota", "1M", "--since", "1772373780", "--context", "lab"])
    assert json.loads(good.output) == {
        "quota": 1 << 20,
        "age": 86_400 * 10**9,
        "since": 1_772_373_780 * 10**9,
        "context": "lab",
        "kubeconfig": None,
    }
    wrong = CliRunner().invoke(command, ["--age", "24"])
    assert wrong.exit_code == 2
    assert "'24' is not a duration" in wrong.output
