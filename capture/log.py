"""Log lines to standard error: logfmt for people at a terminal, JSON lines for everybody else. Never raises.

log.info("segment sealed", stem="20260301/1772373780000000000-000001", packets=12)

14:03:01.250Z info  segment sealed  stem=20260301/1772373780000000000-000001 packets=12
{"time":"2026-03-01T14:03:01.250Z","level":"info","message":"segment sealed","stem":"...","packets":12}
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from typing import Final

DEBUG, INFO, WARNING, ERROR = "debug", "info", "warning", "error"
_LEVELS: Final = (DEBUG, INFO, WARNING, ERROR)
_COLOURS: Final = {DEBUG: "2", INFO: "32", WARNING: "33", ERROR: "31"}
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_PLAIN: Final = re.compile(r'[^\s"=\x00-\x1f\x7f-\x9f]+')

Value = str | int | float | bool | None

threshold = INFO
"""Lines below it are not written."""


def debug(message: str, **fields: Value) -> None:
    """What only somebody who looks for a fault of podtap's wants to know."""
    _write(DEBUG, message, fields)


def info(message: str, **fields: Value) -> None:
    """Something that is done seldom was done."""
    _write(INFO, message, fields)


def warning(message: str, **fields: Value) -> None:
    """Something is not as it should be, and podtap goes on."""
    _write(WARNING, message, fields)


def error(message: str, **fields: Value) -> None:
    """Something that was to be recorded is lost, or podtap ends."""
    _write(ERROR, message, fields)


def logfmt(time_ns: int, level: str, message: str, fields: dict[str, Value], colours: bool) -> str:
    """A line for a person; the time is UTC."""
    start, end = (f"\x1b[{_COLOURS[level]}m", "\x1b[0m") if colours else ("", "")
    words = [f"{key}={_word(value)}" for key, value in fields.items()]
    shown = _CONTROL.sub(lambda match: json.dumps(match[0])[1:-1], message)
    return "  ".join([f"{_rfc3339(time_ns)[11:]} {start}{level:7}{end} {shown}", *([" ".join(words)] if words else [])])


def json_line(time_ns: int, level: str, message: str, fields: dict[str, Value]) -> str:
    """A line for a machine: time (RFC 3339, UTC), level, message, then the fields."""
    head = {"time": _rfc3339(time_ns), "level": level, "message": message}
    return json.dumps(head | {key: value for key, value in fields.items() if key not in head}, separators=(",", ":"))


def _write(level: str, message: str, fields: dict[str, Value]) -> None:
    if _LEVELS.index(level) < _LEVELS.index(threshold):
        return
    try:
        descriptor = sys.stderr.fileno()
        now = time.time_ns()
        if os.isatty(descriptor):
            line = logfmt(now, level, message, fields, colours=not os.environ.get("NO_COLOR"))
        else:
            line = json_line(now, level, message, fields)
        # One write a line: threads do not mix theirs. A reader that is gone or slow must not stop the recording.
        os.write(descriptor, line.encode(errors="backslashreplace") + b"\n")
    except (OSError, ValueError, AttributeError):
        pass


def _word(value: Value) -> str:
    text = str(value).lower() if value is None or isinstance(value, bool) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def _rfc3339(time_ns: int) -> str:
    seconds, rest = divmod(time_ns, 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest // 10**6:03}Z"
