"""The API server stand-in answers as a real one did: every recording of it is replayed unchanged."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3

from tests.lab.api_recordings import FOLDER, History, Recording, recordings
from tests.lab.api_server import ApiServer

pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="shared Kubernetes answers are absent")

NOT_SERVED = {
    "lists_special/pods_table": "kubectl's Tables are left out",
    "errors/409_exists": "writes are left out",
}
SAME_HEADERS = (
    "Content-Type",
    "Cache-Control",
    "Warning",
    "Retry-After",
    "X-Content-Type-Options",
    "Transfer-Encoding",
    "Content-Length",
)
PARTIAL = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
FIRST_WATCHES = 215
SECOND_WATCHES = 461
SECOND_LISTS = 615


@pytest.fixture
def http() -> Iterator[urllib3.PoolManager]:
    with urllib3.PoolManager(retries=False, timeout=20) as pool:
        yield pool


def fast() -> float:
    """Thirty seconds in one."""
    return time.monotonic() * 30


class Clock:
    """Time that passes when the test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def first_session() -> History:
    """Hand-made pods; then, after it, a few more for the story of what is gone."""
    whole = [each for each in recordings("watch/*") if "selector" not in each.name and "partial" not in each.name]
    return History(recordings("lists/*"), [*whole, *recordings("gone/1_*")])


def second_session() -> History:
    """Controllers at work."""
    lists = [*recordings("controllers/lists/*"), *recordings("controllers/lists_after_churn/*")]
    return History(lists, recordings("controllers/watch/*"))


def ask(http: urllib3.PoolManager, server: ApiServer, recording: Recording, **headers: str) -> None:
    """Sends the recorded request and compares the answer."""
    if "partial_metadata" in recording.name:
        headers["Accept"] = PARTIAL
    answer = http.request("GET", server.url + recording.target, headers=headers)
    assert (answer.status, recording.name) == (recording.status, recording.name)
    compare_headers(answer, recording)
    if "text/plain" in recording.headers["Content-Type"]:
        assert answer.data == recording.body
    elif "watch=1" in recording.target and recording.status == 200:
        assert [json.loads(line) for line in answer.data.splitlines()] == recording.lines
    else:
        assert answer.json() == json.loads(recording.body), recording.name


def compare_headers(answer: Any, recording: Recording, same: tuple[str, ...] = SAME_HEADERS) -> None:
    assert set(answer.headers) == set(recording.headers), recording.name
    for name in same:
        assert answer.headers.get(name) == recording.headers.get(name), (recording.name, name)


def test_every_recording_is_replayed() -> None:
    folders = {str(path.parent.relative_to(FOLDER)) for path in FOLDER.rglob("*.http")}
    first = {"lists", "lists_empty", "lists_namespaced", "lists_special", "objects", "watch", "errors", "gone"}
    assert folders == first | {"discovery"} | {
        f"controllers/{each}" for each in ("lists", "lists_after_churn", "watch")
    }


def test_lists_and_objects(http: urllib3.PoolManager) -> None:
    patterns = ("lists_empty/*", "lists/*", "lists_namespaced/*", "lists_special/*")
    asked = [each for pattern in patterns for each in recordings(pattern) if each.name not in NOT_SERVED]
    history = first_session()
    with ApiServer() as server:
        for recording in sorted(asked, key=lambda each: each.revision):
            history.feed(server, recording.revision)
            ask(http, server, recording)
            if recording.name == "lists/pods":
                ask(http, server, *recordings("objects/*"))
        assert [each.status for each in server.requests] == [200] * (len(asked) + 1)


def test_lists_of_what_controllers_made_and_old_versions_of_them(http: urllib3.PoolManager) -> None:
    history = second_session()
    before, after = recordings("controllers/lists/*"), recordings("controllers/lists_after_churn/*")
    with ApiServer() as server:
        for recording in [*before, *after]:
            history.feed(server, recording.revision)
            ask(http, server, recording)
        for recording in before:
            exact = f"{server.url}{recording.target}?resourceVersion={SECOND_LISTS}&resourceVersionMatch=Exact"
            assert http.request("GET", exact).json() == json.loads(recording.body)


class Client:
    """Reads one recorded stream of the stand-in on a thread of its own."""

    def __init__(self, http: urllib3.PoolManager, server: ApiServer, recording: Recording) -> None:
        self.recording = recording
        self.lines: list[dict[str, Any]] = []
        self.ended_cleanly = False
        headers = {"Accept": PARTIAL} if "partial_metadata" in recording.name else {}
        self.answer = http.request("GET", server.url + recording.target, headers=headers, preload_content=False)
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        rest = b""
        for piece in self.answer.stream():
            *whole, rest = (rest + piece).split(b"\n")
            self.lines += map(json.loads, whole)
        self.ended_cleanly = not rest
        self.answer.release_conn()

    def compare(self) -> None:
        """All but the moments of bookmarks, which depend on timers of the real server."""
        recording = self.recording
        self.thread.join(10)
        assert self.ended_cleanly, recording.name
        compare_headers(self.answer, recording)
        told, expected = self.lines, recording.lines
        assert without_bookmarks(told) == without_bookmarks(expected), recording.name
        bookmarks = [line for line in told if line["type"] == "BOOKMARK"]
        versions = [int(line["object"]["metadata"]["resourceVersion"]) for line in bookmarks]
        assert versions == sorted(versions)
        assert [shape(line) for line in bookmarks] == bookmark_shapes(recording), recording.name
        for line in expected:
            if "annotations" in line["object"]["metadata"] and line["type"] == "BOOKMARK":
                assert told.index(line) == expected.index(line), recording.name


def without_bookmarks(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["type"] != "BOOKMARK"]


def shape(line: dict[str, Any]) -> dict[str, Any]:
    """A bookmark without its version."""
    metadata = {**line["object"]["metadata"], "resourceVersion": ""}
    return {**line, "object": {**line["object"], "metadata": metadata}}


def bookmark_shapes(recording: Recording) -> list[dict[str, Any]]:
    """The last one sometimes came twice within two seconds."""
    timed = [
        (at, line) for at, line in zip(recording.times, recording.lines, strict=True) if line["type"] == "BOOKMARK"
    ]
    doubled = len(timed) > 1 and timed[-1][0] - timed[-2][0] < 2
    return [shape(line) for _, line in (timed[:-1] if doubled else timed)]


def let_pass(server: ApiServer, clock: Clock, *moments: float) -> None:
    """Moves time on, and waits each time until all watches noticed."""
    for moment in moments:
        clock.now = moment
        server.wait_until(lambda moment=moment: server.is_settled(since=moment))  # type: ignore[misc]


def test_watches_with_selectors_bookmarks_and_initial_events(http: urllib3.PoolManager) -> None:
    history, clock = first_session(), Clock()
    with ApiServer(clock=clock) as server, urllib3.PoolManager(maxsize=30, timeout=20) as pool:
        history.feed(server, FIRST_WATCHES)
        clients = [Client(pool, server, recording) for recording in recordings("watch/*")]
        server.wait_until(lambda: server.is_settled(len(clients)))
        history.feed(server, 283)
        let_pass(server, clock, 0.4, 60.5, 98.1, 100.1)
        for client in clients:
            client.compare()


def test_watches_of_what_controllers_do(http: urllib3.PoolManager) -> None:
    history, clock = second_session(), Clock()
    all_streams = recordings("controllers/watch/*")
    late = [each for each in all_streams if "timeoutSeconds=20" in each.target]
    with ApiServer(clock=clock) as server, urllib3.PoolManager(maxsize=30, timeout=20) as pool:
        history.feed(server, SECOND_WATCHES)
        clients = [Client(pool, server, each) for each in all_streams if each not in late]
        server.wait_until(lambda: server.is_settled(len(clients)))
        history.feed(server, SECOND_LISTS)
        clock.now = 13
        clients += [Client(pool, server, each) for each in late]
        server.wait_until(lambda: server.is_settled(len(clients)))
        history.feed(server, 909)
        let_pass(server, clock, 13.4, 31.1, 33.1)
        history.feed(server, 1131)
        let_pass(server, clock, 60.1, 108.1, 110.1)
        for client in clients:
            client.compare()


def test_refusals(http: urllib3.PoolManager) -> None:
    bearer = {"401_no_token_bad": "stale", "403_anonymous": "", "403_user": "of-nobody", "403_watch": "of-nobody"}
    with ApiServer(clock=fast, tokens={"of-admin": "admin", "of-nobody": "nobody"}) as server:
        server.forbidden.add("nobody")
        first_session().feed(server, 259)
        for recording in recordings("errors/*"):
            token = bearer.get(recording.name.rpartition("/")[2], "of-admin")
            if recording.name not in NOT_SERVED:
                ask(http, server, recording, **({"Authorization": f"Bearer {token}"} if token else {}))


def test_what_is_gone_after_compaction_and_restart(http: urllib3.PoolManager) -> None:
    story = {each.name.rpartition("/")[2].split("_")[0]: each for each in recordings("gone/*")}
    history = first_session()
    with ApiServer(clock=fast) as server:
        history.feed(server, 286)
        ask(http, server, story["before"])
        history.feed(server, 298)
        server.compact()
        for number in "1234":
            ask(http, server, story[number])
        client = http.request("GET", server.url + story["5"].target, preload_content=False)
        history.feed(server, 308)
        server.restart()
        with pytest.raises(urllib3.exceptions.ProtocolError):
            client.read()
        for number in ("6", "7", "8", "9", "10"):
            ask(http, server, story[number])
    with ApiServer(clock=fast, watch_cache=False) as server:
        history.feed(server, 308)
        server.compact()
        for number in ("11", "12", "13"):
            ask(http, server, story[number])


@pytest.mark.parametrize("recording", recordings("discovery/*"), ids=lambda each: each.name)
def test_discovery(http: urllib3.PoolManager, recording: Recording) -> None:
    """Less than a real server offers, in the same words."""
    with ApiServer() as server:
        answer = http.request("GET", server.url + recording.target)
    assert answer.status == recording.status
    assert answer.headers["Content-Type"] == recording.headers["Content-Type"]
    if recording.target in ("/livez", "/readyz"):
        assert answer.data == recording.body
        return
    told, expected = answer.json(), json.loads(recording.body)
    assert told.keys() == expected.keys()
    for key in ("kind", "apiVersion", "groupVersion", "versions", "gitVersion"):
        assert told.get(key) == expected.get(key)
    for key in ("groups", "resources"):
        assert [each for each in expected.get(key, []) if each in told[key]] == told.get(key, [])
