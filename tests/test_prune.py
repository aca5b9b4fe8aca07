"""What is kept of an API object is enough to name addresses, and holds no secrets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.dumps import Dump, read_dumps
from analysis.kubernetes_objects import ownerships
from capture.contract import KINDS
from capture.prune import KEEP, prune
from capture.watch import Resource
from tests.lab.api_recordings import FOLDER, recordings

INCIDENT = Path(__file__).resolve().parents[1] / "sample_pcaps" / "incident" / "metadata"


def pruned(dump: Dump) -> Dump:
    known = [prune(item["kind"], item) for item in dump.objects if item["kind"] in KEEP]
    return Dump(dump.path, dump.taken_ns, known, dump.is_part)


def test_every_kind_of_the_journal_has_its_rules_and_its_place() -> None:
    assert set(KEEP) >= set(KINDS)
    assert all(Resource.of(kind).path for kind in KEEP)


def test_names_of_addresses_are_the_same_as_of_whole_objects() -> None:
    dumps, _ = read_dumps([str(INCIDENT)])
    whole = ownerships(dumps)
    assert len(whole[0]) > 30
    assert ownerships([pruned(dump) for dump in dumps]) == whole


@pytest.mark.skipif(not FOLDER.exists(), reason="shared Kubernetes answers are absent")
def test_names_of_addresses_are_the_same_as_of_what_a_real_server_answered() -> None:
    for pattern in ("lists/*", "controllers/lists/*", "controllers/lists_after_churn/*"):
        items = [item for recording in recordings(pattern) for item in recording.items]
        dump = Dump("recorded", 1_800_000_000 * 10**9, items, False)
        found, problems = ownerships([dump])
        assert (len(found) > 10, problems) == (True, [])
        assert ownerships([pruned(dump)]) == (found, [])


def test_secrets_and_noise_are_left_out() -> None:
    pod = {
        "apiVersion": "v1",
        "metadata": {
            "name": "a",
            "uid": "u",
            "resourceVersion": "7",
            "labels": {"app": "shop"},
            "annotations": {"vault": "SECRET", "cni.projectcalico.org/podIP": "10.0.0.1/32"},
            "managedFields": [{"manager": "SECRET"}],
        },
        "spec": {
            "nodeName": "n",
            "containers": [
                {
                    "name": "c",
                    "image": "SECRET",
                    "env": [{"value": "SECRET"}],
                    "args": ["SECRET"],
                    "command": ["SECRET"],
                    "ports": [{"containerPort": 80}],
                    "livenessProbe": {"exec": {"command": ["SECRET"]}},
                }
            ],
            "volumes": [{"secret": {"secretName": "SECRET"}}],
        },
        "status": {
            "podIP": "10.0.0.1",
            "message": "SECRET",
            "conditions": [{"type": "Ready", "status": "True", "message": "SECRET"}],
            "containerStatuses": [
                {"name": "c", "state": {"terminated": {"exitCode": 1, "message": "SECRET"}}, "imageID": "SECRET"}
            ],
        },
    }
    assert prune("Pod", pod) == {
        "kind": "Pod",
        "metadata": {
            "name": "a",
            "uid": "u",
            "labels": {"app": "shop"},
            "annotations": {"cni.projectcalico.org/podIP": "10.0.0.1/32"},
        },
        "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"containerPort": 80}]}]},
        "status": {
            "podIP": "10.0.0.1",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": 1}}}],
        },
    }


def test_an_event_says_what_happened_to_whom_and_how_often() -> None:
    event = {
        "metadata": {"name": "a.1", "namespace": "shop", "uid": "e"},
        "involvedObject": {"kind": "Pod", "namespace": "shop", "name": "a", "uid": "u", "resourceVersion": "1"},
        "reason": "BackOff",
        "message": "SECRET",
        "type": "Warning",
        "count": 5,
        "firstTimestamp": "2026-03-01T14:03:00Z",
        "lastTimestamp": "2026-03-01T14:04:00Z",
        "source": {"component": "kubelet", "host": "n"},
    }
    kept = prune("Event", event)
    assert "SECRET" not in json.dumps(kept)
    assert (kept["reason"], kept["count"], kept["involvedObject"]["uid"]) == ("BackOff", 5, "u")


def test_null_stays_and_parts_of_a_wrong_shape_go() -> None:
    slice_ = {"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": None, "ports": None}
    assert prune("EndpointSlice", slice_) == {"kind": "EndpointSlice"} | slice_
    assert prune("Pod", {"metadata": None, "spec": "SECRET", "status": ["SECRET", {"phase": "Running"}]}) == {
        "kind": "Pod",
        "metadata": None,
        "status": [{"phase": "Running"}],
    }


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["metadata", "annotations", "spec", "status", "containers", "x"]), inner)
    ),
    max_leaves=20,
)


@given(st.sampled_from(list(KEEP)), st.dictionaries(st.sampled_from(["metadata", "spec", "status", "endpoints"]), JSON))
def test_whatever_comes_is_pruned(kind: str, item: dict[str, Any]) -> None:
    once = prune(kind, item)
    assert prune(kind, once) == once
