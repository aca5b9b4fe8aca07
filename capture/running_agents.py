"""The agents that run on this machine, as /proc shows them."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

PROC: Final = Path("/proc")
NET_RAW: Final = 13
"""CAP_NET_RAW, as a bit of CapEff."""


@dataclass(frozen=True)
class RunningAgent:
    """One process."""

    pid: int
    started_ns: int
    root: Path
    cluster: str
    node: str
    metrics: str
    """Address and port; '' for none."""
    capabilities: int | None
    """The effective ones, as bits; None: not known."""
    resident_bytes: int


def running_agents(proc: Path = PROC) -> list[RunningAgent]:
    """By pid; what may not be looked at is left out."""
    found = []
    for entry in sorted((each for each in os.listdir(proc) if each.isdecimal()), key=int):
        try:
            if agent := _agent(proc, int(entry)):
                found.append(agent)
        except (OSError, ValueError, IndexError, click.ClickException):
            continue  # it has ended, or is somebody else's
    return found


def _agent(proc: Path, pid: int) -> RunningAgent | None:
    if not _is_same_network(proc, pid):
        return None  # of a container that has its own; it can't be the node's
    words = [word.decode(errors="replace") for word in (proc / f"{pid}/cmdline").read_bytes().split(b"\0")[:-1]]
    arguments = agent_arguments(words)
    if arguments is None:
        return None
    environment = _environment(proc, pid)
    options = _options(arguments, environment)
    status = dict(line.split(":", 1) for line in (proc / f"{pid}/status").read_text().splitlines() if ":" in line)
    return RunningAgent(
        pid=pid,
        started_ns=_started_ns(proc, pid),
        root=Path(options["root"]),
        cluster=options["cluster"],
        node=options["node"] or environment.get("NODE_NAME") or platform.node(),
        metrics=options["metrics"],
        capabilities=int(status["CapEff"], 16) if "CapEff" in status else None,
        resident_bytes=int(status.get("VmRSS", "0").split()[0]) * 1024,
    )


def agent_arguments(words: list[str]) -> list[str] | None:
    """What follows `podtap agent` in a command line that records; None of any other."""
    interpreter = bool(words) and os.path.basename(words[0]).startswith("python")
    for at, word in enumerate(words[:-1] if interpreter else words[:1]):
        if os.path.basename(word) in ("podtap", "podtap.py") and words[at + 1 : at + 2] == ["agent"]:
            from capture.cli import NODE_COMMANDS

            rest = words[at + 2 :]
            is_other = any(option in rest for option in ("-h", "--help")) or (rest and rest[0] in NODE_COMMANDS)
            return None if is_other else rest
    return None


def _options(arguments: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """As the command itself reads them; from its own environment, not from ours."""
    from capture.cli import agent

    with agent.make_context("agent", arguments, resilient_parsing=True) as context:
        options = dict(context.params)
        for parameter in agent.params:
            if (
                isinstance(parameter.envvar, str)
                and context.get_parameter_source(parameter.name or "") is not ParameterSource.COMMANDLINE
            ):
                default = parameter.get_default(context)
                options[parameter.name or ""] = environment.get(parameter.envvar, default)
    return options


def _is_same_network(proc: Path, pid: int) -> bool:
    try:
        return os.stat(proc / f"{pid}/ns/net").st_ino == os.stat(proc / "thread-self/ns/net").st_ino
    except PermissionError:
        return True  # not to be told


def _environment(proc: Path, pid: int) -> dict[str, str]:
    try:
        lines = (proc / f"{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _started_ns(proc: Path, pid: int) -> int:
    ticks = int((proc / f"{pid}/stat").read_text().rpartition(")")[2].split()[19])
    booted = next(line for line in (proc / "stat").read_text().splitlines() if line.startswith("btime "))
    return int(booted.split()[1]) * 10**9 + ticks * 10**9 // os.sysconf("SC_CLK_TCK")
