"""Windows that are pinned: written by anybody on the node, read by the ring."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from capture.errors import UsageError
from capture.freezes import FreezeReader, add_freeze, read_freezes, thaw


def test_a_freeze_is_a_file_that_says_who_and_why(tmp_path: Path) -> None:
    freeze = add_freeze(tmp_path, 17, 29, "an incident", "alice")
    path = tmp_path / "freezes" / f"{freeze.id}.json"
    assert json.loads(path.read_text()) == {
        "id": freeze.id,
        "since_ns": 17,
        "until_ns": 29,
        "reason": "an incident",
        "by": "alice",
        "created_ns": freeze.created_ns,
        "contract": 1,
    }
    assert os.listdir(tmp_path / "freezes") == [path.name]
    assert read_freezes(tmp_path) == ([freeze], [])


def test_one_of_many_nodes_has_the_same_id(tmp_path: Path) -> None:
    freeze = add_freeze(tmp_path, 1, 2, freeze_id="../../incident 17")
    assert freeze.id == "../../incident 17"
    assert [path.parent for path in tmp_path.rglob("*.json")] == [tmp_path / "freezes"]
    assert thaw(tmp_path, freeze.id)
    assert not thaw(tmp_path, freeze.id)
    assert read_freezes(tmp_path) == ([], [])


def test_an_empty_window_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to freeze"):
        add_freeze(tmp_path, 5, 5)


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        add_freeze(tmp_path / "nobody", 1, 2)
    assert read_freezes(tmp_path / "nobody") == ([], [])
    assert not thaw(tmp_path / "nobody", "x")


def test_what_is_no_freeze_is_told_and_what_was_known_still_holds(tmp_path: Path) -> None:
    reader = FreezeReader()
    freeze = add_freeze(tmp_path, 1, 2)
    assert reader.read(tmp_path) == [freeze]
    path = tmp_path / "freezes" / f"{freeze.id}.json"
    for text in ("", "[]", '{"id": 1}', "x" * 100_000):
        path.write_text(text)
        assert reader.read(tmp_path) == [freeze]
        assert len(reader.problems) == 1
        assert read_freezes(tmp_path)[0] == []
    path.unlink()
    assert reader.read(tmp_path) == []
    assert reader.problems == []


def test_other_files_are_nobodys_business(tmp_path: Path) -> None:
    add_freeze(tmp_path, 1, 2)
    folder = tmp_path / "freezes"
    (folder / "x.json.17.tmp").write_text("{")
    (folder / ".hidden.json").write_text("{")
    (folder / "notes").write_text("{")
    freezes, problems = read_freezes(tmp_path)
    assert (len(freezes), problems) == (1, [])


def test_links_devices_and_folders_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "freezes"
    folder.mkdir()
    (folder / "a.json").symlink_to("/dev/zero")
    os.mkfifo(folder / "b.json")
    (folder / "c.json").mkdir()
    freezes, problems = read_freezes(tmp_path)
    assert freezes == []
    assert [problem.partition(" ")[0] for problem in problems] == [f"freezes/{name}.json" for name in "abc"]
