"""Log lines: for a terminal, for a machine, and what odd text can't do to them."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from datetime import datetime

import pytest

from capture import log

WHEN = 1_772_373_781_250_999_999  # date -u -d @1772373781: 2026-03-01 14:03:01
PROGRAM = """
from capture import log
log.info("segment sealed", stem="a/b-000001", packets=12, frozen=False, by=None)
log.debug("not shown")
log.error('two\\nlines \\x1b[31m', path='a "b" c', time="mine")
"""


def test_a_line_for_people() -> None:
    line = log.logfmt(WHEN, "warning", "disk full", {"path": "/var/lib", "free": 0, "why": "no space"}, colours=False)
    assert line == '14:03:01.250Z warning disk full  path=/var/lib free=0 why="no space"'
    assert log.logfmt(WHEN, "error", "x", {}, colours=True) == "14:03:01.250Z \x1b[31merror  \x1b[0m x"


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "a=b", 'say "x"', "", "ä ö", "\x9b31m"])
def test_values_are_one_word_each(text: str) -> None:
    line = log.logfmt(WHEN, "info", text, {"value": text}, colours=False)
    assert not any(character < " " or "\x7f" <= character <= "\x9f" for character in line)
    written = line.rpartition("value=")[2] if "=" not in text else line.partition("  value=")[2]
    assert (json.loads(written) if written.startswith('"') else written) == text


def test_lines_for_a_machine() -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert run.stdout == ""
    first, second = (json.loads(line) for line in run.stderr.splitlines())
    assert abs(datetime.fromisoformat(first.pop("time")).timestamp() - datetime.now().timestamp()) < 5
    expected = {"level": "info", "message": "segment sealed", "stem": "a/b-000001", "packets": 12}
    assert first == expected | {"frozen": False, "by": None}
    assert second["message"] == "two\nlines \x1b[31m"
    assert second["path"] == 'a "b" c'
    assert second["time"] != "mine"


@pytest.mark.parametrize("no_color", ["", "1"])
def test_a_terminal_gets_text_and_colours_unless_asked_not_to(no_color: str) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "NO_COLOR": no_color}
    subprocess.run([sys.executable, "-c", PROGRAM], stderr=theirs, check=True, env=environment)
    os.close(theirs)
    text = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "segment sealed  stem=a/b-000001 packets=12 frozen=false by=none" in text
    assert ("\x1b[32m" in text) is not no_color
    assert len(text.splitlines()) == 2


def test_a_reader_that_is_gone_does_no_harm() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    program = PROGRAM + "import os; print('alive')"
    run = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=writer, text=True)
    os.close(writer)
    assert (run.returncode, run.stdout) == (0, "alive\n")
