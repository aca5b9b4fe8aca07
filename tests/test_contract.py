"""What is written is read back; what is hostile is refused with a reason; names stay inside."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture import contract
from capture.contract import (
    Bundle,
    BundleFile,
    BundleNode,
    Clock,
    ContractError,
    Counters,
    DerivedFrom,
    Freeze,
    Interface,
    JournalRecord,
    Ledger,
    Manifest,
    Tombstone,
    from_json,
    to_json,
)

MANIFEST = Manifest(
    cluster="lab",
    node="node-a",
    stem="20261127/1795000000000000000-000001",
    opened_ns=1,
    sealed_ns=2,
    link_type=276,
    snaplen=262144,
    packets=3,
    size_bytes=24,
    sha256="ab",
    ledger=Ledger(accepted=6, written=3, kernel=2, disk=1, interface=None),
    interfaces=[Interface(3, "cali1", "veth", peer=2, addresses=["10.0.0.1/32"], reaches=["10.0.0.2"])],
    counters=[Counters(5, {"softnet_dropped": 1})],
    clock=Clock(True, 5, -3, False),
    derived_from=DerivedFrom("cd", "ef", 9, 1, None, ["10.0.0.1"]),
)
FULL: list[Any] = [
    MANIFEST,
    Tombstone("20261127/1795000000000000000-000001", "ab", 7, "quota", "cd", 1, 2, 3, 4, "ef", 5),
    Freeze("id", 1, 2, "an incident", 3, "alice"),
    JournalRecord("added", 1, "Pod", "uid", "17", {"metadata": {"name": "a"}}, None, 3, ""),
    Bundle(1, 2, 3, [BundleNode("lab", "node-a", False, missing=["was down"])], [BundleFile("a/b", 1, "ab")]),
]
KINDS = [type(each) for each in FULL]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@pytest.mark.parametrize("value", FULL, ids=lambda value: type(value).__name__)
def test_what_is_written_is_read_back(value: Any) -> None:
    data = to_json(value)
    assert from_json(type(value), data) == value
    assert to_json(from_json(type(value), data)) == data
    assert data.endswith(b"\n")


@pytest.mark.parametrize("value", [FULL[1], FULL[3]], ids=["Tombstone", "JournalRecord"])
def test_records_of_a_file_of_lines_are_one_line(value: Any) -> None:
    assert to_json(value).count(b"\n") == 1


@pytest.mark.parametrize("value", FULL, ids=lambda value: type(value).__name__)
def test_a_key_that_is_not_known_is_passed_over(value: Any) -> None:
    data = json.loads(to_json(value)) | {"of a later version": {"x": 1}}
    assert from_json(type(value), json.dumps(data).encode()) == value


@pytest.mark.parametrize("value", [MANIFEST, FULL[1], FULL[2], FULL[4]], ids=lambda value: type(value).__name__)
def test_a_later_contract_is_refused_and_says_so(value: Any) -> None:
    data = json.loads(to_json(value)) | {"contract": contract.VERSION + 1}
    with pytest.raises(ContractError, match="upgrade"):
        from_json(type(value), json.dumps(data).encode())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[]", "no JSON object"),
        (b"17", "no JSON object"),
        (b"[" * 100_000, "too deeply|no JSON"),
        (b"{}", "missing"),
        (b'{"id": 1, "since_ns": 1, "until_ns": 2}', "id: expected str, found int"),
        (b'{"id": "a", "since_ns": true, "until_ns": 2}', "since_ns: expected int, found bool"),
        (b'{"id": "a", "since_ns": 1.5, "until_ns": 2}', "since_ns: expected int, found float"),
        (b'{"id": "a", "since_ns": null, "until_ns": 2}', "since_ns: expected int, found NoneType"),
        (b'{"id": "a", "since_ns": 1}', "until_ns"),
    ],
)
def test_a_freeze_that_is_none_is_refused_with_a_reason(data: bytes, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        from_json(Freeze, data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ledger": 17}, "ledger: not an object"),
        ({"ledger": {"written": "3"}}, "ledger: written: expected int"),
        ({"interfaces": {}}, "interfaces: expected list"),
        ({"interfaces": [17]}, "interfaces: not an object"),
        ({"interfaces": [{"index": 1}]}, "interfaces: .*name"),
        ({"capture": ["any", 1]}, "capture: expected list"),
        ({"derived_from": []}, "derived_from: not an object"),
        ({"previous_sha256": 1}, "previous_sha256: expected str"),
    ],
)
def test_a_part_of_a_manifest_that_is_none_is_refused_with_a_reason(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        from_json(Manifest, json.dumps(json.loads(to_json(MANIFEST)) | change).encode())


@given(st.sampled_from(range(len(KINDS))), st.data())
def test_hostile_json_is_read_or_refused(which: int, data: st.DataObject) -> None:
    """With any value in any place: no other exception than ContractError."""
    values = json.loads(to_json(FULL[which]))
    name = data.draw(st.sampled_from(sorted(values)))
    place = values[name]
    junk = data.draw(JSON)
    if isinstance(place, dict) and place and data.draw(st.booleans()):
        place[data.draw(st.sampled_from(sorted(place)))] = junk
    elif isinstance(place, list) and place and isinstance(place[0], dict):
        place[0][data.draw(st.sampled_from(sorted(place[0])))] = junk
    else:
        values[name] = junk
    try:
        read = from_json(KINDS[which], json.dumps(values).encode())
    except ContractError as error:
        assert str(error)
    else:
        assert isinstance(read, KINDS[which])


@given(st.binary(max_size=200))
def test_hostile_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ContractError):
        from_json(Manifest, data)


def test_a_ledger_that_adds_up_is_balanced() -> None:
    assert Ledger(15, 1, 2, 3, 4, 5, 100).is_balanced
    assert not Ledger(16, 1, 2, 3, 4, 5).is_balanced


# --- Names -----------------------------------------------------------------------------------------------------------

NAMES = st.text(max_size=300) | st.sampled_from(["", ".", "..", "/", "_journal", "a/../../b", "%2E", "\0", "\ud800"])


@given(NAMES)
def test_a_safe_name_is_one_visible_folder(name: str) -> None:
    safe = contract.safe_name(name)
    path = PurePosixPath("root", safe)
    assert path.parts == ("root", safe)
    assert safe not in (".", "..")
    assert safe[0] not in "._"
    assert "/" not in safe
    assert "\0" not in safe
    assert 0 < len(os.fsencode(safe)) <= 255
    safe.encode("ascii")


@given(NAMES, NAMES)
def test_two_names_are_never_one_folder(one: str, other: str) -> None:
    printable = all(not ("\ud800" <= letter <= "\udfff") for letter in one + other)
    if one != other and printable:
        assert contract.safe_name(one) != contract.safe_name(other)


@pytest.mark.parametrize("name", ["node-a", "ip-10-0-0-1.eu-central-1.compute.internal", "A", "prod.eu_1"])
def test_names_that_kubernetes_allows_stay_as_they_are(name: str) -> None:
    assert contract.safe_name(name) == name


@given(st.integers(0, 10**19 - 1), st.integers(0, 10**7), st.integers(0, 10**19 - 1))  # up to the year 2286
def test_names_in_order_are_times_in_order(start_ns: int, seq: int, other_ns: int) -> None:
    stem = contract.stem(start_ns, seq)
    assert contract.parse_stem(stem) == (start_ns, seq)
    assert contract.parse_stem(f"root/lab/node/{stem}.pcap.zst") == (start_ns, seq)
    other = contract.stem(other_ns, seq)
    assert (stem < other) == (start_ns < other_ns)


@pytest.mark.parametrize("name", ["", "1-1", "179500000000000000-000001", "bundle.json", "x1795000000000000000-000001"])
def test_other_names_are_none(name: str) -> None:
    assert contract.parse_stem(name) is None


def test_every_part_of_a_value_is_known_to_the_reader() -> None:
    """A field whose type is a class of the contract would else be read as a plain object."""
    classes = {name for name, value in vars(contract).items() if dataclasses.is_dataclass(value)}
    for owner in classes:
        for name, kind in vars(contract)[owner].__annotations__.items():
            if any(part in classes for part in kind.replace("[", " ").replace("]", " ").replace("|", " ").split()):
                assert (owner, name) in contract._PARTS
