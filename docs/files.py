"""Writes files.md, beside this file, from the first line of every module: `make docs`."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INTRODUCTION = """# What each file makes

Made from the first line of each file by `make docs`. How they work together: [architecture.md](architecture.md).
"""
FOLDERS = (".", "capture", "analysis", "analysis/reports", "docs", "benchmarks", "sample_pcaps")


def row(path: Path) -> str:
    first_line = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
    return f"| [{path.name}](../{path.relative_to(ROOT)}) | {first_line} |"


def section(folder: str) -> str:
    heading = "The command" if folder == "." else f"{folder}/"
    paths = sorted(path for path in (ROOT / folder).glob("*.py") if path.stat().st_size)
    return "\n".join([f"\n## {heading}\n", "| file | |\n|---|---|", *map(row, paths)])


def markdown() -> str:
    """The whole of files.md."""
    return "\n".join([INTRODUCTION.rstrip(), *map(section, FOLDERS)]) + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(markdown())
