"""How complete the data is that a report stands on, and why a report is empty: no report lies by omission."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.layout import LINKTYPE_NFLOG, LINKTYPE_SLL
from analysis.reports.connections import Points, flows_in
from analysis.reports.filters import FLOW_SIDES, Filters
from analysis.reports.missing import Missing, missing
from analysis.reports.window import Window, time_text

if TYPE_CHECKING:
    from analysis.lake_reader import Lake

_MIXED = ", ".join(f"'{link_type}'" for link_type in (LINKTYPE_SLL, LINKTYPE_NFLOG))
_BLENDED = f"(interfaces IS NULL AND packets > 0 AND list_has_any(string_split(link_types, ','), [{_MIXED}]))"
SHOWN_PROBLEMS = 3
SHOWN_NAMES = 8


@dataclass(frozen=True)
class Completeness:
    """What the capture files in the window had, lost, and could not say; counts are of packets where not named."""

    files: int
    packets: int
    first_ns: int | None
    last_ns: int | None
    drops_kernel: int
    drops_interface: int
    files_without_drops: int
    """Files that do not say what was dropped: a zero would be a guess."""
    malformed: int
    skipped: int
    copies: int
    """Of files that do not name interfaces: what they show again of packets that they had shown."""
    blended_files: int
    """Files that have copies, or are of all interfaces at once, and do not name any."""
    truncated_files: int
    unsealed_files: int
    forged_files: int
    """Files whose content does not match their manifest."""
    problems: tuple[str, ...]
    missed_share: float | None
    """Share of TCP bytes that were acknowledged but never captured; None without TCP bytes."""
    headless: int
    """TCP connections of whose headers the snap length left the ports alone."""
    unseen: int
    """Retransmissions of data that no point had seen before: they were lost before the first one."""
    has_names: bool
    missing: Missing

    def notes(self, counted: str = "counts") -> list[str]:
        """Sentences for the foot of a report, the ordinary ones first; `counted`: what it counts."""
        if not self.files:
            return ["no capture file has packets in this window", *self.missing.notes(counted)]
        data = "" if self.first_ns is None or self.last_ns is None else f" from {_span(self.first_ns, self.last_ns)}"
        complete = f", {self.missing.summary()}" if self.missing.nodes else ""
        notes = [f"{_count(self.files, 'file')}, {_count(self.packets, 'packet')}{data}{complete}"]
        notes += [*self.missing.notes(counted), self._drops()]
        if self.blended_files:
            what = _count(self.blended_files, "file")
            notes.append(f"{what} without interface names: {self._copies()}, and paths within a node can't be told")
        if self.missed_share is not None and self.missed_share >= 0.0005:
            notes.append(f"capture missed {self.missed_share:.1%} of TCP bytes: retransmissions are a lower bound")
        if self.headless:
            what = _count(self.headless, "connection")
            notes.append(
                f"{what} without TCP headers, which the snap length cut off: retransmissions can't be told there"
            )
        if self.unseen:
            what = _count(self.unseen, "retransmission")
            notes.append(
                f"{what} of data lost before the first point that could see it: there, counts are a lower bound"
            )
        damages = [
            (self.truncated_files, "truncated file"),
            (self.unsealed_files, "unsealed file"),
            (self.forged_files, "altered file"),
            (self.malformed, "malformed packet"),
            (self.skipped, "undecodable packet"),
        ]
        if any(number for number, _ in damages):
            notes.append(", ".join(_count(number, what) for number, what in damages if number))
        notes += self.problems[:SHOWN_PROBLEMS]
        if (more := len(self.problems) - SHOWN_PROBLEMS) > 0:
            notes.append(f"and {_count(more, 'more problem')}: see the table segments")
        if not self.has_names:
            notes.append("no metadata, so addresses have no names: podtap enrich --metadata PATH adds them")
        return notes

    def _copies(self) -> str:
        return "1 copy counts for nothing" if self.copies == 1 else f"{self.copies:,} copies count for nothing"

    def _drops(self) -> str:
        if self.files_without_drops == self.files:
            return "drops not reported by the capture"
        text = f"drops: kernel {self.drops_kernel:,}, interface {self.drops_interface:,}"
        if self.files_without_drops:
            text += f" (not reported by {_count(self.files_without_drops, 'file')})"
        return text


def completeness(lake: Lake, window: Window) -> Completeness:
    """Of the files with packets in the window, and of the TCP flows active in it."""
    where = window.overlaps("first_ts", "last_ts")
    (row,) = lake.arrow(
        f"""SELECT count(*) AS files, coalesce(sum(packets), 0)::BIGINT AS packets,
            epoch_ns(min(first_ts) FILTER (packets > 0)) AS first_ns,
            epoch_ns(max(last_ts) FILTER (packets > 0)) AS last_ns,
            coalesce(sum(drops_kernel), 0)::BIGINT AS drops_kernel,
            coalesce(sum(drops_interface), 0)::BIGINT AS drops_interface,
            count(*) FILTER (drops_kernel IS NULL AND drops_interface IS NULL) AS files_without_drops,
            coalesce(sum(malformed_packets), 0)::BIGINT AS malformed,
            coalesce(sum(skipped_packets), 0)::BIGINT AS skipped,
            coalesce(sum(copies), 0)::BIGINT AS copies,
            count(*) FILTER (copies > 0 OR {_BLENDED}) AS blended_files,
            count(*) FILTER (truncated) AS truncated_files,
            count(*) FILTER (unsealed) AS unsealed_files,
            count(*) FILTER (NOT sha256_ok) AS forged_files,
            coalesce(list(segment || ': ' || problems ORDER BY segment) FILTER (problems IS NOT NULL), []) AS problems
        FROM segments WHERE {where}"""
    ).to_pylist()
    (flows,) = lake.arrow(
        f"""SELECT sum(missed_bytes) / nullif(sum(orig_bytes + resp_bytes), 0) AS share
        FROM flows WHERE protocol = 'TCP' AND {flows_in(window)}"""
    ).to_pylist()
    stitched = "SELECT flow_uid FROM connection_flows WHERE is_primary"
    counted = stitched if lake.points is Points.STITCHED else "SELECT flow_uid FROM flows"
    (headless,) = lake.arrow(
        f"""SELECT count(*) AS n FROM flows
        WHERE protocol = 'TCP' AND history = '' AND orig_tcp_segments + resp_tcp_segments = 0
        AND orig_packets + resp_packets > 0 AND {flows_in(window)} AND flow_uid IN ({counted})"""
    ).to_pylist()
    at = window.overlaps("ts", "ts")
    before = f"losses WHERE verdict = 'before' AND {at}"
    if lake.points is not Points.STITCHED:
        before = f"retransmits WHERE kind = 'unseen_original' AND {at}"
    (unseen,) = lake.arrow(f"SELECT count(*) AS n FROM {before}").to_pylist()
    (names,) = lake.arrow("SELECT count(*) > 0 AS known FROM identities").to_pylist()
    return Completeness(
        **{**row, "problems": tuple(row["problems"])},
        missed_share=flows["share"],
        headless=headless["n"],
        unseen=unseen["n"],
        has_names=names["known"],
        missing=missing(lake, window),
    )


def why_empty(lake: Lake, table: str, window: Window, filters: Filters) -> str:
    """Why a report has no rows: the lake has none, the window has none, or the filters match none."""
    seen = ("first_seen", "last_seen")
    dns, spans = ("ts", "coalesce(response_ts, ts)"), ("start", '"end"')
    time = {"flows": seen, "hops": seen, "dns": dns, "coverage": spans}.get(table, ("ts", "ts"))
    (data,) = lake.arrow(
        f"SELECT count(*) AS n, epoch_ns(min({time[0]})) AS first_ns, epoch_ns(max({time[1]})) AS last_ns FROM {table}"
    ).to_pylist()
    if not data["n"]:
        return f"the lake has no {table}"
    if not window.is_everything:
        (within,) = lake.arrow(f"SELECT count(*) AS n FROM {table} WHERE {window.overlaps(*time)}").to_pylist()
        if not within["n"]:
            return f"no {table} from {window}; the data reaches {_span(data['first_ns'], data['last_ns'])}"
    unknown = [
        f"there is no {kind} '{wanted}' in the lake" + _suggestions(wanted, _names(lake, kind))
        for kind in ("namespace", "pod", "service", "node")
        if (wanted := getattr(filters, kind)) and wanted not in _names(lake, kind)
    ]
    if unknown:
        return "; ".join(unknown)
    return f"no {table} of {filters}" if str(filters) else f"no {table} that this report counts"


def _names(lake: Lake, kind: str) -> list[str]:
    """All namespaces, pods, services or nodes that flows have."""
    of_sides = [f"SELECT {side}_{kind} AS name FROM flows" for side in FLOW_SIDES]
    if kind == "node":
        of_sides += [f"SELECT node FROM {table}" for table in ("flows", "coverage")]
    names = lake.arrow(
        f"SELECT DISTINCT name FROM ({' UNION ALL '.join(of_sides)}) WHERE name IS NOT NULL ORDER BY name"
    )
    return [str(name) for name in names["name"].to_pylist()]


def _suggestions(wanted: str, names: list[str]) -> str:
    if not names:
        return ", which has no such names: podtap enrich --metadata PATH adds them"
    if close := difflib.get_close_matches(wanted, names, SHOWN_NAMES) or [name for name in names if wanted in name]:
        return f"; did you mean {', '.join(close[:SHOWN_NAMES])}?"
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return f"; there are {', '.join(names[:SHOWN_NAMES])}{more}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _span(first_ns: int, last_ns: int) -> str:
    return f"{time_text(first_ns, 0)} to {time_text(last_ns, 0)}"
