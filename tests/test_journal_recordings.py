"""What a real API server was recorded to answer, told to the journal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from capture.connection import ApiError
from capture.prune import KEEP, prune
from capture.reflector import ListPage, Reflector, Watch
from capture.watch import Resource, moment
from tests.journal_rig import make_server, running
from tests.journals import replay
from tests.lab.api_recordings import FOLDER, History, Recording, recordings

pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="shared Kubernetes answers are absent")


def kind_of(recording: Recording) -> str:
    plural = recording.target.partition("?")[0].rpartition("/")[2]
    return next((kind for kind in KEEP if Resource.of(kind).path.endswith(f"/{plural}")), "")


def listed(kind: str, *answers: bytes) -> Reflector:
    reflector = Resource.of(kind).reflector()
    for answer in answers:
        assert isinstance(reflector.start(moment()), ListPage)
        reflector.page(json.loads(answer), moment())
    return reflector


def known(reflector: Reflector) -> dict[str, Any]:
    return {uid: json.loads(each.content) for uid, each in reflector.objects.items()}


def pruned(kind: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    return {item["metadata"]["uid"]: prune(kind, item) for item in items}


def test_every_list_is_known_whole() -> None:
    found = set()
    for recording in [*recordings("lists/*"), *recordings("controllers/lists_after_churn/*")]:
        if kind := kind_of(recording):
            assert known(listed(kind, recording.body)) == pruned(kind, recording.items)
            found.add(kind)
    assert found == set(KEEP) - {"Event"}


def test_pages_make_one_list() -> None:
    first, second = recordings("lists_special/pods_limit2_page?")
    reflector = listed("Pod", first.body, second.body)
    assert known(reflector) == pruned("Pod", [*first.items, *second.items])
    assert reflector.start(moment()) == Watch(json.loads(second.body)["metadata"]["resourceVersion"])


@pytest.mark.parametrize("name", ["watch/*", "controllers/watch/*", "gone/1_*"])
def test_every_stream_is_followed_to_its_end(name: str) -> None:
    for recording in recordings(name):
        if not (kind := kind_of(recording)) or "partial" in recording.name:
            continue
        reflector = listed(kind, b'{"metadata":{"resourceVersion":"1"},"items":null}')
        state: dict[str, Any] = {}
        told = []
        assert isinstance(reflector.start(moment()), Watch)
        reflector.opened(moment())
        for line in recording.body.splitlines():
            told += [
                {"type": each.type, "kind": each.kind, "uid": each.uid, "object": each.object}
                for each in reflector.line(line, moment())
            ]
            event = json.loads(line)
            if event["type"] == "DELETED":
                del state[event["object"]["metadata"]["uid"]]
            elif event["type"] != "BOOKMARK":
                state |= pruned(kind, [event["object"]])
        reflector.ended(moment())
        assert replay(told).get(kind, {}) == known(reflector) == state
        last = json.loads(recording.body.splitlines()[-1])["object"]["metadata"]["resourceVersion"]
        assert reflector.start(moment()) == Watch(last)


@pytest.mark.parametrize("name", ["gone/6_*", "gone/7_*", "gone/8_*", "gone/11_*"])
def test_a_version_that_is_too_old_leads_to_a_new_list(name: str) -> None:
    [recording] = recordings(name)
    reflector = listed("Pod", b'{"metadata":{"resourceVersion":"1"},"items":[]}')
    assert isinstance(reflector.start(moment()), Watch)
    reflector.opened(moment())
    with pytest.raises(ApiError) as error:
        reflector.line(recording.body.strip(), moment())
    assert error.value.status == 410
    reflector.failed(error.value, moment())
    assert reflector.start(moment()) == ListPage()


@pytest.mark.parametrize("session", ["hand-made pods", "controllers at work"])
def test_the_journal_of_a_recorded_session_ends_with_its_last_lists(tmp_path: Path, session: str) -> None:
    if session == "hand-made pods":
        lists = recordings("lists/*")
        whole = [each for each in recordings("watch/*") if "selector" not in each.name and "partial" not in each.name]
        history = History(lists, whole)
    else:
        lists = recordings("controllers/lists_after_churn/*")
        history = History([*recordings("controllers/lists/*"), *lists], recordings("controllers/watch/*"))
    with make_server() as server, running(tmp_path, server) as rig:
        rig.until(lambda: not rig.journal.ready())
        last = max(each.revision for each in lists)
        for revision in sorted(history.changes):
            history.feed(server, min(revision, last))
        history.feed(server, last)
        rig.until_true()
        state = rig.state()
    compared = 0
    for recording in lists:
        kind = kind_of(recording)
        later = [item for revision, (_, item) in history.changes.items() if recording.revision < revision <= last]
        if kind and kind not in {item["kind"] for item in later} and kind != "ServiceCIDR":
            assert state.get(kind, {}) == pruned(kind, recording.items)
            compared += 1
    assert compared > 5
