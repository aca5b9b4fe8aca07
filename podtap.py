"""The command `podtap`: what it can do, and where. A subcommand's module is imported when it is called."""

from __future__ import annotations

import importlib
from typing import Any, Final

import click

COMMANDS: Final = {
    "freeze": ("capture.evidence_commands:freeze", "Keep a window on all nodes."),
    "thaw": ("capture.evidence_commands:thaw", "Let frozen windows go."),
    "collect": ("capture.evidence_commands:collect", "Bring a window out of a cluster."),
    "verify": ("capture.evidence_commands:verify", "Check an evidence bundle."),
    "analyze": ("analysis.cli:analyze", "Turn captures into tables."),
    "enrich": ("analysis.cli:enrich", "Add names from cluster metadata to a lake."),
    "report": ("analysis.cli:report", "Ask a lake for flows, retransmits or dns."),
    "agent": ("capture.cli:agent", "Record this machine's packets; list, freeze and send what it recorded."),
    "journal": ("capture.journal_commands:journal", "Remember what the cluster looks like at all times."),
    "snapshot": ("capture.journal_commands:snapshot", "Write down what the cluster looks like now."),
    "scope": ("capture.journal_commands:scope", "Keep the addresses of this node's pods for podtap agent."),
    "doctor": ("capture.doctor:doctor", "Say whether this node is recorded, how far back, and what is missing."),
    "schema": ("analysis.cli:schema", "Show the tables and what their columns mean."),
}
INTERRUPTED: Final = 130


class Contents(click.Group):
    """COMMANDS as subcommands; each is imported when it is called, and none to list them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None


@click.command(cls=Contents, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="podtap")
def main() -> None:
    """A flight recorder for Kubernetes networking: captures in, Parquet tables and reports out.

    Exit codes: 0 done, 1 failed, 2 called wrongly, 3 some input could not be read, 130 interrupted.
    """


if __name__ == "__main__":
    main()
