"""Label selectors: as the API server stand-in reads them, which was held to a real server's answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.errors import UsageError
from capture.selectors import parse
from tests.lab.api_selectors import parse_labels

KEYS = st.sampled_from(["app", "tier", "app.kubernetes.io/name", "canary"])
VALUES = st.sampled_from(["web", "db", "a-1", "x_y.z"])
REQUIREMENTS = st.one_of(
    st.builds("{}{}{}".format, KEYS, st.sampled_from(["=", "==", "!=", " = "]), VALUES),
    st.builds("{} {} ({})".format, KEYS, st.sampled_from(["in", "notin"]), st.lists(VALUES, min_size=1).map(",".join)),
    KEYS,
    KEYS.map("!{}".format),
)


@given(requirements=st.lists(REQUIREMENTS, max_size=4), labels=st.dictionaries(KEYS, VALUES))
def test_selects_what_the_api_server_selects(requirements: list[str], labels: dict[str, str]) -> None:
    selector = ",".join(requirements)
    expected = all(matches(labels) for matches in parse_labels(selector))
    assert all(each.matches(labels) for each in parse(selector)) == expected


@pytest.mark.parametrize("selector", ["app=web,", "=web", "app in web", "app in (a", "a b", "app=we b"])
def test_what_is_no_selector_is_an_error(selector: str) -> None:
    with pytest.raises(UsageError, match="is no label selector"):
        parse(selector)
