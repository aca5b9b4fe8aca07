"""`podtap agent`: records, unless one of its subcommands is named."""

from __future__ import annotations

import importlib
import os
import platform
from pathlib import Path
from typing import Any, Final

import click

from capture.arguments import DURATION, SIZE
from capture.errors import Command, Group
from capture.libpcap import MOST_SNAPLEN

KIB: Final = 1024
MOST_RING_KIB: Final = (2**31 - 1) // KIB
NODE_COMMANDS: Final = {
    "list": "capture.node_commands:list_command",
    "send": "capture.node_commands:send_command",
    "freeze": "capture.node_commands:freeze_command",
    "thaw": "capture.node_commands:thaw_command",
}
"""Subcommand -> where it is; imported when it is called."""


class AgentGroup(Group):
    """What is none of NODE_COMMANDS is the beginning of a BPF filter."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(NODE_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in NODE_COMMANDS:
            return None
        module, _, name = NODE_COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in NODE_COMMANDS:
            return super().resolve_command(ctx, args)
        return "record", _filtered, ["--", *args]


@click.group(cls=AgentGroup, invoke_without_command=True, subcommand_metavar="[-- FILTER...]")
@click.pass_context
@click.option(
    "-i",
    "--interface",
    "interfaces",
    metavar="IFACE",
    multiple=True,
    default=("any",),
    show_default=True,
    help="Capture on this interface only; repeatable.",
)
@click.option(
    "-s",
    "--snapshot-length",
    "snaplen",
    metavar="SNAPLEN",
    type=click.IntRange(0, MOST_SNAPLEN),
    help="Keep so many bytes of each packet; 0: all.  [default: headers, and DNS whole]",
)
@click.option(
    "-B",
    "--buffer-size",
    "ring_kib",
    metavar="KIB",
    type=click.IntRange(256, MOST_RING_KIB),
    default=32 * KIB,
    show_default=True,
    help="Size of the kernel's ring.",
)
@click.option(
    "-G",
    "--rotate-seconds",
    metavar="SECONDS",
    type=click.IntRange(1),
    default=60,
    show_default=True,
    help="A segment ends after so long.",
)
@click.option(
    "-C",
    "--rotate-size",
    "rotate_mb",
    metavar="MB",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="A segment ends when it has so many millions of bytes.",
)
@click.option("--compress", is_flag=True, help="Compress segments with zstd, in the background.")
@click.option(
    "--root",
    metavar="DIR",
    type=click.Path(path_type=Path),
    envvar="PODTAP_ROOT",
    default="/var/lib/podtap",
    show_default=True,
    help="Folder of the recordings; $PODTAP_ROOT.",
)
@click.option("--cluster", metavar="NAME", default="cluster", show_default=True, help="The cluster's name.")
@click.option("--node", metavar="NAME", help="The node's name.  [default: $NODE_NAME, or the hostname]")
@click.option(
    "--quota", metavar="SIZE", type=SIZE, default="4G", show_default=True, help="All segments that are not frozen."
)
@click.option("--max-age", metavar="DURATION", type=DURATION, help="Of segments that are not frozen.  [default: any]")
@click.option(
    "--frozen-quota", metavar="SIZE", type=SIZE, default="4G", show_default=True, help="All segments that are frozen."
)
@click.option(
    "--scope-file",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Record only the pods in this file, which `podtap scope` keeps up to date.",
)
@click.option(
    "--metrics",
    metavar="ADDR:PORT",
    default="127.0.0.1:9798",
    show_default=True,
    help="Where to answer /metrics, /healthz and /readyz; '' for nowhere.",
)
@click.option("--include-own-traffic", is_flag=True, help="Record podtap's own connections, too.")
@click.option(
    "--freeze-when",
    metavar="COUNTER=RATE",
    multiple=True,
    help="Freeze the minutes around it where this counter of the node (tcp_retrans_segs ...) grows by more than RATE a "
    "second; repeatable.",
)
def agent(ctx: click.Context, /, **options: Any) -> None:
    """Record the packets of this machine as a ring of segments, until SIGTERM or Ctrl-C.

    FILTER is a BPF filter, as tcpdump takes it. Needs CAP_NET_RAW, and may write below --root only.
    """
    if ctx.invoked_subcommand is None:
        _record((), **options)


@click.command(cls=Command, add_help_option=False)
@click.pass_context
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def _filtered(ctx: click.Context, words: tuple[str, ...]) -> None:
    assert ctx.parent is not None
    _record(words, **ctx.parent.params)


def _record(
    words: tuple[str, ...],
    *,
    interfaces: tuple[str, ...],
    snaplen: int | None,
    ring_kib: int,
    rotate_seconds: int,
    rotate_mb: int,
    quota: int,
    max_age: int | None,
    frozen_quota: int,
    compress: bool,
    node: str | None,
    freeze_when: tuple[str, ...],
    **same: Any,
) -> None:
    from capture.agent import ALL, HEADERS, SNAPLEN, Settings, record
    from capture.counter_freezer import parse_trigger
    from capture.retention import Limits
    from capture.rotation import MEGABYTE, Rotation

    rotation = Rotation(rotate_mb * MEGABYTE, float(rotate_seconds))
    limits = Limits(
        quota_bytes=quota,
        frozen_quota_bytes=frozen_quota,
        max_age_ns=max_age,
        segment_bytes=rotation.segment_bytes,
        compress=compress,
    )
    record(
        Settings(
            node=node or os.environ.get("NODE_NAME") or platform.node(),
            interfaces=("any",) if "any" in interfaces else tuple(dict.fromkeys(interfaces)),
            payload=HEADERS if snaplen is None else SNAPLEN if snaplen else ALL,
            snaplen=snaplen or MOST_SNAPLEN,
            filter=" ".join(words),
            ring_bytes=ring_kib * KIB,
            rotation=rotation,
            limits=limits,
            triggers=tuple(parse_trigger(text) for text in freeze_when),
            **same,
        )
    )
