"""podtap verify: whatever is done to a bundle is noticed, and nothing else is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import podtap
from capture.bundle import CHECKSUM, WORK
from capture.contract import BUNDLE, sha256
from capture.verify import verify
from tests.recordings import START, HandMade, journal, pod_record

SINCE, UNTIL = "2025-11-27T14:01:00Z", "2025-11-27T14:06:00Z"


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(podtap.main, [str(each) for each in arguments])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two nodes; on each a segment before the window is gone, and one amid it."""
    root, folder = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("bundles") / "whole"
    for name in ("node-a", "node-b"):
        node = HandMade(root, name)
        node.evict(node.segment(write=False), "age")
        for index in range(3):
            node.segment(compress=index == 1)
        node.evict(node.segment(write=False))
        node.segment()
    journal(root, [pod_record("listed", START, "web", "10.0.10.1", {"app": "web"})])
    result = call("collect", "--since", SINCE, "--until", UNTIL, "--from", root, "-o", folder)
    assert result.exit_code == 3, result.output  # a segment is evicted, and that is said
    return folder


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Iterator[Path]:
    yield shutil.copytree(bundle, tmp_path / "copy")


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def seal_again(folder: Path) -> None:
    """What somebody does who changes a bundle and makes a new head for it."""
    head = json.loads((folder / BUNDLE).read_bytes())
    head["files"] = [
        {
            "path": path.relative_to(folder).as_posix(),
            "size_bytes": path.stat().st_size,
            "sha256": sha256(path.read_bytes()),
        }
        for path in files(folder)
        if path.name not in (BUNDLE, CHECKSUM)
    ]
    content = json.dumps(head).encode()
    (folder / BUNDLE).write_bytes(content)
    (folder / CHECKSUM).write_text(f"{sha256(content)}  {BUNDLE}\n")


def test_an_untouched_bundle_passes_and_what_cannot_be_known_is_said(bundle: Path) -> None:
    result = call("verify", bundle)
    assert result.exit_code == 0, result.output
    assert "it is not signed" in result.output
    assert "was evicted" in result.output
    assert subprocess.run(["sha256sum", "--check", CHECKSUM], cwd=bundle, capture_output=True).returncode == 0


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_byte_of_any_file_that_changes_is_noticed(bundle: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(files(bundle)))
    before = path.read_bytes()
    place = data.draw(st.integers(0, len(before) - 1))
    changed = before[place] ^ data.draw(st.integers(1, 255))
    try:
        path.write_bytes(before[:place] + bytes([changed]) + before[place + 1 :])
        named = {problem.path for problem in verify(bundle).problems}
    finally:
        path.write_bytes(before)
    expected = BUNDLE if path.name == CHECKSUM else path.relative_to(bundle).as_posix()
    assert expected in named


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_file_that_is_cut_deleted_or_swapped_is_noticed(bundle: Path, data: st.DataObject) -> None:
    path, other = data.draw(st.lists(st.sampled_from(files(bundle)), min_size=2, max_size=2, unique=True))
    what = data.draw(st.sampled_from(["cut", "grow", "delete", "swap", "move"]))
    before, others = path.read_bytes(), other.read_bytes()
    if what == "swap" and before == others:
        return
    moved = path.with_name(path.name.replace("-0", "-1", 1) if "-0" in path.name else path.name + ".moved")
    try:
        if what == "cut":
            path.write_bytes(before[: data.draw(st.integers(0, len(before) - 1))])
        elif what == "grow":
            path.write_bytes(before + b"\n")
        elif what == "delete":
            path.unlink()
        elif what == "swap":
            path.write_bytes(others)
            other.write_bytes(before)
        else:
            path.rename(moved)
        verdict = verify(bundle)
    finally:
        moved.unlink(missing_ok=True)
        path.write_bytes(before)
        other.write_bytes(others)
    assert verdict.problems
    assert not verify(bundle).problems


@pytest.mark.parametrize("name", ["extra.txt", "lab/node-a/20251127/1764252060000000000-000099.pcap", "x/y/z.json"])
def test_a_file_that_was_added_is_noticed(copy: Path, name: str) -> None:
    (copy / name).parent.mkdir(parents=True, exist_ok=True)
    (copy / name).write_bytes(b"added")
    result = call("verify", copy)
    assert result.exit_code == 1
    assert f"{name}: is not in the head's list: it was added" in result.output


def test_a_name_that_is_no_text_can_be_told(copy: Path) -> None:
    (copy / "\udcff\x1b[2J").write_bytes(b"added")
    result = call("verify", copy)
    assert (result.exit_code, "\\udcff [2J: is not in the head's list" in result.output) == (1, True)


def test_a_link_in_place_of_a_file_is_noticed(copy: Path) -> None:
    path = next(copy.rglob("*.pcap"))
    elsewhere = copy.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert "is a link" in call("verify", copy).output
    path.unlink()
    os.mkfifo(path.with_suffix(".json.pipe"))
    path.with_suffix(".json").unlink()
    path.with_suffix(".json.pipe").rename(path.with_suffix(".json"))
    assert "is a link or a device" in call("verify", copy).output


def test_a_signature_beside_the_head_is_no_addition(copy: Path) -> None:
    (copy / f"{BUNDLE}.sig").write_text("-----BEGIN SSH SIGNATURE-----")
    result = call("verify", copy)
    assert result.exit_code == 0, result.output
    assert "ssh-keygen -Y verify" in result.output and f"{BUNDLE}.sig" in result.output


@pytest.mark.parametrize("what", ["drop a segment", "edit packets", "edit a manifest", "exchange a manifest"])
def test_the_chain_tells_where_the_head_was_made_anew(copy: Path, what: str) -> None:
    manifests = sorted((copy / "lab" / "node-a").glob("*/*.json"))
    path = manifests[1]
    if what == "drop a segment":
        path.unlink()
        next(path.parent.glob(f"{path.stem}.pcap*")).unlink()
    elif what == "edit packets":
        path = manifests[0]
        data = path.with_suffix(".pcap")
        data.write_bytes(data.read_bytes()[:-1] + b"!")
    elif what == "edit a manifest":
        path.write_bytes(path.read_bytes().replace(b'"kernel": 0', b'"kernel": 1'))
    else:
        path.write_bytes(manifests[0].read_bytes())
    assert verify(copy).problems
    seal_again(copy)
    result = call("verify", copy)
    assert result.exit_code == 1
    assert "node-a" in result.output and "node-b" not in result.output


def test_a_tombstone_that_was_taken_out_breaks_the_chain(copy: Path) -> None:
    path = copy / "lab" / "node-a" / "tombstones.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    seal_again(copy)
    assert "does not follow" in call("verify", copy).output


def test_a_bundle_without_head_is_said_to_be_unfinished(copy: Path) -> None:
    (copy / BUNDLE).unlink()
    (copy / WORK).mkdir()
    result = call("verify", copy)
    assert result.exit_code == 1
    assert "the collection did not come to its end" in result.output


def test_tshark_reads_what_came(bundle: Path) -> None:
    for path in bundle.rglob("*.pcap"):
        frames = subprocess.run(
            ["tshark", "-r", str(path), "-T", "fields", "-e", "ip.dst"], capture_output=True, check=True
        )
        assert frames.stdout.split() == [b"10.0.9.9"] * 10
