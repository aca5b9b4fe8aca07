"""Files of the journal: found, read record by record, and the times in which nothing was seen."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from analysis.compression import ContentStream
from analysis.endpoint_slices import EndpointSlices
from analysis.errors import Problem
from analysis.lives import Lives
from capture.contract import JOURNAL, PART, ContractError, JournalRecord, from_json, parse_stem

_SUFFIXES: Final = (".jsonl", ".jsonl.zst", ".jsonl.gz", ".jsonl.part", ".jsonl.zst.part")
_PIECE_BYTES: Final = 1 << 20
_MOST_LINE_BYTES: Final = 64 << 20
_SHOWN_PROBLEMS: Final = 3


def is_journal(path: Path) -> bool:
    """Whether a file is one of the journal, by its name."""
    return path.name.endswith(_SUFFIXES)


def journal_files(paths: Iterable[str]) -> list[str]:
    """The journal's files among files and folders."""
    found: list[Path] = []
    for path in map(Path, paths):
        found += [path] if is_journal(path) else path.rglob("*") if path.is_dir() else []
    return sorted({str(file) for file in found if is_journal(file) and file.is_file()})


def journals_of_recordings(inputs: Iterable[str]) -> list[str]:
    """The folders of all journals that lie beside recordings in the folders among `inputs`."""
    folders = [Path(each) for each in inputs if Path(each).is_dir()]
    return sorted(
        {str(each) for folder in folders for each in (folder, *folder.rglob(JOURNAL)) if each.name == JOURNAL}
    )


def read_journal(files: Sequence[str]) -> tuple[Lives, EndpointSlices, list[Problem]]:
    """All that the files say of the owners of addresses, and of endpoints.

    Files of one folder of days follow each other; those of others tell it once more. Never more of it in memory than a
    record of each writer, and what is known of each object.
    """
    lives, slices = Lives(), EndpointSlices()
    problems: list[Problem] = []
    writers = defaultdict(list)
    for file in files:
        writers[Path(file).parent.parent].append(file)
    streams = [
        _of_writer(number, sorted(each, key=lambda file: Path(file).name), problems)
        for number, each in enumerate(writers.values())
    ]
    for _, writer, _, file, record in heapq.merge(*streams):
        if isinstance(record, bool):
            lives.begin_file(writer, follows=record)
            slices.begin_file(writer, follows=record)
            continue
        try:
            lives.learn(writer, record)
            slices.learn(writer, record)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            what = f"{record.kind} {record.uid} is left out, it is not as Kubernetes writes it"
            _add(problems, file, f"{what}: {type(error).__name__}: {error}")
    return lives, slices, problems


Heard = tuple[int, int, int, str, JournalRecord | bool]
"""When (never before the one before it), by which writer, a number that tells all of them apart, where, and what: a
record, or the beginning of a file, and whether that follows the one before."""


def _of_writer(writer: int, files: list[str], problems: list[Problem]) -> Iterator[Heard]:
    when = number = 0
    last_seq = None
    for file in files:
        _, seq = parse_stem(file) or (0, None)
        is_first = True
        for record in _records(file, problems):
            when = max(when, record.observed_ns)
            if is_first:
                yield when, writer, number, file, last_seq is not None and seq == last_seq + 1
                is_first = False
            number += 2
            yield when, writer, number - 1, file, record
        last_seq = seq


def _records(file: str, problems: list[Problem]) -> Iterator[JournalRecord]:
    """The records of a file, up to where it was cut."""
    bad = 0
    try:
        with open(file, "rb") as source:
            stream = ContentStream(source)
            for line in _lines(stream):
                try:
                    yield from_json(JournalRecord, line)
                except ContractError as error:
                    bad += 1
                    if bad <= _SHOWN_PROBLEMS:
                        _add(problems, file, f"{error}; the record is left out")
            if stream.damage and PART not in Path(file).suffixes:
                _add(problems, file, f"{stream.damage}; the records before it were read")
    except OSError as error:
        _add(problems, file, f"can't be read: {error.strerror or error}")
    if bad > _SHOWN_PROBLEMS:
        _add(problems, file, f"and {bad - _SHOWN_PROBLEMS:,} more records like these")


def _add(problems: list[Problem], file: str, message: str) -> None:
    problems.append(Problem(file, None, message))


def _lines(stream: ContentStream) -> Iterator[bytes]:
    """Whole lines; what follows the last line break was cut by a crash."""
    room = memoryview(bytearray(_PIECE_BYTES))
    rest = b""
    while filled := stream.readinto(room):
        *lines, rest = (rest + bytes(room[:filled])).split(b"\n")
        yield from (line for line in lines if line)
        if len(rest) > _MOST_LINE_BYTES:
            rest = b""
