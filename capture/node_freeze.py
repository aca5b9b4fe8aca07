"""A freeze that is made on a node, API server or not: of its segments, and of the journal where that is below the same
root. Elsewhere, the journal is told by the next `podtap freeze` or `podtap collect`, which find the freeze on the node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from capture.contract import Freeze
from capture.freezes import add_freeze
from capture.recording import Window, writer_folders


@dataclass(frozen=True)
class NodeFreeze:
    """What was frozen."""

    freeze: Freeze
    writers: tuple[Path, ...]
    """Folders of the journal that keep the window, too."""
    journal_problem: str
    """Why what tells of pods is not kept; '' where it is."""


def freeze_node(root: Path, folders: Sequence[Path], window: Window, reason: str, by: str) -> NodeFreeze:
    """Pins a window in the folders of nodes below a root, and in those of the journal. UsageError: it is empty.

    OSError where a node's folder can't be written; the journal's only stand in `journal_problem`.
    """
    freeze: Freeze | None = None
    for folder in folders:
        freeze = add_freeze(folder, window.since_ns, window.until_ns, reason, by, freeze.id if freeze else None)
    assert freeze, "no folder"
    kept, problems = [], []
    for folder in writer_folders(root):
        try:
            add_freeze(folder, window.since_ns, window.until_ns, reason, by, freeze.id)
            kept.append(folder)
        except OSError as error:
            problems.append(f"{folder} can't be written: {error.strerror}")
    if not kept and not problems:
        problems.append(f"no journal is below {root}")
    return NodeFreeze(freeze, tuple(kept), "; ".join(problems))


ELSEWHERE = "the next podtap freeze or podtap collect from outside has the journal keep it, too"
"""What becomes of a journal that could not be frozen."""
