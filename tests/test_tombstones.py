"""What was evicted is remembered in little space, and the chain goes on through it."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from capture.chain import Link, head, missing, pieces
from capture.contract import Tombstone, stem, to_json
from capture.tombstones import Tombstones, merge, parse, read_tombstones


def link(at: int, previous: int | None = None) -> Link:
    """Number `at` of a chain that begins with 1."""
    before = at - 1 if previous is None else previous
    return Link(stem(10 * at, at), f"h{at}", f"h{before}" if before else None)


def tombstone(at: int, reason: str = "quota") -> Tombstone:
    one = link(at)
    return Tombstone(one.stem, one.sha256, 1000 + at, reason, one.previous_sha256, 10 * at, 10 * at + 9, 2, 3, "d")


def links_of(tombstones: list[Tombstone]) -> list[Link]:
    return [Link(each.stem, each.manifest_sha256, each.previous_sha256) for each in tombstones]


def test_those_that_follow_each_other_become_one() -> None:
    (one,) = merge([tombstone(at) for at in range(1, 6)], kept=0)
    assert (one.stem, one.manifest_sha256, one.previous_sha256) == (stem(50, 5), "h5", None)
    assert (one.segments, one.packets, one.size_bytes, one.sha256) == (5, 10, 15, "")
    assert (one.first_packet_ns, one.last_packet_ns, one.evicted_ns, one.reason) == (10, 59, 1005, "quota")


def test_the_latest_stay_as_they_are() -> None:
    merged = merge([tombstone(at) for at in range(1, 11)], kept=3)
    assert [each.segments for each in merged] == [7, 1, 1, 1]


def test_what_was_lost_is_not_hidden_among_what_was_evicted() -> None:
    some = [tombstone(at, "lost" if at == 4 else "quota") for at in range(1, 11)]
    assert [(each.reason, each.segments) for each in merge(some, kept=3)[:-3]] == [
        ("quota", 3),
        ("lost", 1),
        ("quota", 3),
    ]
    assert [(each.reason, each.segments) for each in merge(some, kept=2)[:-2]] == [("lost,quota", 8)]


@given(st.permutations(range(1, 20)), st.integers(0, 25), st.sets(st.integers(1, 19)))
def test_however_they_went_the_chain_goes_on(order: list[int], kept: int, still_there: set[int]) -> None:
    """Evicted in any order; `still_there` have not been."""
    tombstones = [tombstone(at) for at in order if at not in still_there]
    merged = merge(tombstones, kept)
    links = [*links_of(merged), *map(link, still_there)]
    (chain,) = pieces(links)
    assert (chain[0].previous_sha256, chain[-1].sha256) == (None, "h19")
    assert len(chain) == len(links)
    assert sum(each.segments for each in merged) == 19 - len(still_there)
    assert len(merged) <= 2 * kept + len(still_there) + 1


def test_the_file_stays_small(tmp_path: Path) -> None:
    file = Tombstones(tmp_path, kept=10)
    file.load()
    for at in range(1, 201):
        file.append([tombstone(at)])
        file.merge_old()
    assert len(file.path.read_bytes().splitlines()) <= 20
    tombstones, problems = read_tombstones(tmp_path)
    assert problems == []
    assert sum(each.segments for each in tombstones) == 200
    assert len(pieces(links_of(tombstones))) == 1


def test_lines_that_are_none_are_told() -> None:
    data = to_json(tombstone(1)) + b"{}\n\xff\n" + to_json(tombstone(2))
    tombstones, problems = parse(data)
    assert [each.manifest_sha256 for each in tombstones] == ["h1", "h2"]
    assert [problem.partition(": this")[0] for problem in problems][1] == "tombstones.jsonl: line 3"
    assert len(problems) == 2


def test_a_line_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "tombstones.jsonl").write_bytes(to_json(tombstone(1)) + to_json(tombstone(2))[:-1])
    assert [len(each) for each in read_tombstones(tmp_path)] == [1, 0]


# --- The chain -------------------------------------------------------------------------------------------------------


def test_a_chain_without_a_fault_is_one_piece_in_its_order() -> None:
    assert pieces([link(3), link(1), link(2)]) == [[link(1), link(2), link(3)]]
    assert pieces([]) == []
    assert head([link(2), link(1)]) == link(2)
    assert head([]) is None


def test_where_one_is_gone_there_are_two_pieces_and_the_next_one_knows_its_hash() -> None:
    links = [link(1), link(2), link(4), link(5)]
    assert pieces(links) == [[link(1), link(2)], [link(4), link(5)]]
    (lost,) = missing(links, link(5), 7)
    assert (lost.manifest_sha256, lost.previous_sha256, lost.segments, lost.reason) == ("h3", "h2", 1, "lost")
    assert link(2).stem < lost.stem < link(4).stem
    assert len(pieces([*links, *links_of([lost])])) == 1


def test_several_that_are_gone_are_counted_by_their_numbers() -> None:
    links = [link(1), link(9)]
    (lost,) = missing(links, None, 7)
    assert (lost.manifest_sha256, lost.segments) == ("h8", 7)


def test_a_beginning_that_is_gone() -> None:
    (lost,) = missing([link(5)], None, 7)
    assert (lost.manifest_sha256, lost.previous_sha256) == ("h4", None)


def test_an_end_that_is_gone_is_missed_by_who_knew_it() -> None:
    (lost,) = missing([link(1), link(2)], link(5), 7)
    assert (lost.stem, lost.manifest_sha256, lost.previous_sha256, lost.segments) == (link(5).stem, "h5", "h2", 3)
    (lost,) = missing([], link(5), 7, remembered=3)
    assert (lost.manifest_sha256, lost.segments) == ("h5", 3)
    assert missing([link(1), link(2)], link(1), 7) == []


def test_an_edited_link_is_not_missing_and_not_healed() -> None:
    edited = Link(link(2).stem, "x", "h1")
    assert missing([link(1), edited, link(3)], None, 7) == []
    assert len(pieces([link(1), edited, link(3)])) == 2
    assert head([link(1), edited], last=link(2)) == link(2)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=12))
def test_links_that_an_editor_made_are_all_in_some_piece(numbers: list[tuple[int, int]]) -> None:
    """Forks and circles too."""
    links = [link(at, previous) for at, previous in numbers]
    assert sorted(each.stem for piece in pieces(links) for each in piece) == sorted(each.stem for each in set(links))
    missing(links, link(9), 7)
    head(links, link(9))
