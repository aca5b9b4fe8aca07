"""Reading the journal of a root or a bundle: its records, and what it did not see of a window."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from capture.contract import JOURNAL_SUFFIX, ContractError, JournalRecord, from_json, parse_stem
from capture.recording import Window, clock_text, journal_files


def read_records(path: Path, word: str) -> Iterator[JournalRecord]:
    """The records of a file whose lines have a word in them; lines that are none (a torn last one) are left out."""
    import zstandard

    needle = f'"{word}"'.encode()
    with open(path, "rb") as raw:
        file: Any = raw
        if path.name.endswith(JOURNAL_SUFFIX):
            file = io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True))
        try:
            for line in file:
                if needle in line:
                    try:
                        yield from_json(JournalRecord, line)
                    except ContractError:
                        continue
        except zstandard.ZstdError:
            return


def journal_missing(root: Path, window: Window) -> list[str]:
    """What the journal did not see of a window, a sentence each; of several writers the one that saw most counts."""
    writers: dict[Path, list[Path]] = {}
    for path in journal_files(root, window):
        writers.setdefault(path.parents[1], []).append(path)
    if not writers:
        return ["there is no journal"]
    return min((_missing_of(files, window) for files in writers.values()), key=len)


def _missing_of(files: list[Path], window: Window) -> list[str]:
    """`files` of one writer, oldest first."""
    sentences = []
    start_ns = (parse_stem(files[0].name) or (0, 0))[0]
    if start_ns > window.since_ns:
        sentences.append(f"the journal begins at {clock_text(start_ns)}")
    for path in files:
        for record in read_records(path, "gap"):
            since_ns = record.observed_ns if record.since_ns is None else record.since_ns
            if record.type == "gap" and window.meets(since_ns, record.observed_ns):
                when = f"{clock_text(since_ns)} to {clock_text(record.observed_ns)}"
                sentences.append(f"the journal saw no {record.kind or 'objects'} from {when}: {record.reason}")
    return sentences
