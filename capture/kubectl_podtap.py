"""`kubectl podtap ...`: kubectl runs the command kubectl-podtap for it. The same commands, and the same flags."""

from __future__ import annotations


def main() -> None:
    """The console script."""
    import podtap

    podtap.main(prog_name="kubectl podtap")
