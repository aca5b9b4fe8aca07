"""Brings a window of recordings, and the journal of it, into an evidence bundle."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from capture.bundle import WORK, Request, node_summary, write_head
from capture.contract import (
    BUNDLE,
    MANIFEST_SUFFIX,
    NANOSECONDS,
    Bundle,
    BundleNode,
    ContractError,
    Manifest,
    from_json,
    node_folder,
)
from capture.coverage import missing
from capture.download import Claims, DiskFull, Download, Throttle, half_files
from capture.errors import PodtapError, UsageError
from capture.journal_records import journal_missing
from capture.listing import NodeListing
from capture.parallel import in_parallel
from capture.pod_addresses import Found
from capture.progress import Bar, size_text
from capture.recording import Segment, Window, clock_text, node_folders, segments
from capture.segment_writer import TEMPORARY, write_atomically
from capture.sources import Origin, Source
from capture.tombstones import read_tombstones

LISTING_WORKERS: Final = 16
DOWNLOAD_WORKERS: Final = 8
POLL_S: Final = 2.0
TOLERATED_CLOCK_NS: Final = 2 * NANOSECONDS
_REQUEST: Final = "request.json"
_SHOWN: Final = 5

Say = Callable[[str], None]


@dataclass
class Plan:
    """What a collection is about to do, for whoever is asked."""

    listings: dict[str, list[NodeListing]]
    """By origin."""
    problems: dict[str, str]
    """Nodes that can't be asked, and why."""

    @property
    def send_bytes(self) -> int:
        return sum(segment.send_bytes for each in self.all() for segment in each.listed())

    @property
    def segment_count(self) -> int:
        return sum(len(each.segments) for each in self.all())

    @property
    def node_count(self) -> int:
        return len(self.all())

    def all(self) -> list[NodeListing]:
        """Of all nodes that could be asked."""
        return [each for listings in self.listings.values() for each in listings]


class NoSuchPodsError(PodtapError):
    """There is no pod of those that were asked for. The folder is left as it was before, for a better question."""


@dataclass
class Collection:
    """One run; `asked` is what was typed. `find_addresses` is called once the journal is in the folder."""

    source: Source
    folder: Path
    request: Request
    say: Say
    confirm: Callable[[Plan], None] = lambda plan: None
    find_addresses: Callable[[Path], Found | None] = lambda folder: None
    bandwidth: int | None = None
    wait_s: float = 0
    _failed: dict[str, str] = field(default_factory=dict)
    _damage: dict[str, list[str]] = field(default_factory=dict)
    """Sentences by node's folder."""
    journal_missing: list[str] = field(default_factory=list)
    """What the journal does not tell of the window, a sentence each."""
    _agents: set[str] = field(default_factory=set)
    """Versions of podtap on the nodes."""

    @property
    def window(self) -> Window:
        return Window(self.request.since_ns, self.request.until_ns)

    def run(self) -> Bundle:
        """PodtapError where nothing at all could be had; DiskFull. What is missing stands in the head."""
        origins = self.source.nodes()
        plan = self._ask(origins)
        if len(plan.problems) == len(origins):
            reasons = "; ".join(f"{name}: {why}" for name, why in plan.problems.items())
            raise PodtapError(f"no node could be asked: {reasons}")
        if not plan.segment_count and not any(self._is_open(each) for each in plan.all()):
            raise PodtapError(f"no node has anything of {_window_text(self.window)}: {_reach(plan)}")
        self.confirm(plan)
        with _locked(self.folder):
            return self._bring(origins, plan)

    def _bring(self, origins: Sequence[Origin], plan: Plan) -> Bundle:
        _write_request(self.folder, self.request)
        claims, throttle = Claims(), Throttle(self.bandwidth)
        has_journal = self._bring_journal(claims, throttle)
        try:
            found = self.find_addresses(self.folder)
        except NoSuchPodsError:
            if not node_folders(self.folder):  # only the journal came: nothing to go on with
                _empty(self.folder)
            raise
        addresses = None if found is None else sorted(found.addresses)
        self._bring_nodes(origins, plan, addresses, claims, throttle)
        nodes = self._nodes(origins, plan)
        for path in self.folder.rglob(f"*{MANIFEST_SUFFIX}{TEMPORARY}"):  # of a run that was ended amid it
            path.unlink()
        versions = self.source.versions() | {"agents": ", ".join(sorted(self._agents))}
        head = write_head(self.folder, self.request, nodes, has_journal, time.time_ns(), versions)
        if not any(half_files(self.folder)):
            shutil.rmtree(self.folder / WORK)
        return head

    def _ask(self, origins: Sequence[Origin]) -> Plan:
        plan = Plan({}, {})
        for origin, answer in in_parallel(self._timed_listing, origins, LISTING_WORKERS):
            if isinstance(answer, PodtapError):
                plan.problems[origin.name] = str(answer)
            else:
                plan.listings[origin.name], asked_ns, answered_ns = answer
                self._compare_clocks(plan.listings[origin.name], asked_ns, answered_ns)
        return plan

    def _timed_listing(self, origin: Origin) -> tuple[list[NodeListing], int, int]:
        asked_ns = time.time_ns()
        return origin.listing(self.window), asked_ns, time.time_ns()

    def _compare_clocks(self, listings: list[NodeListing], asked_ns: int, answered_ns: int) -> None:
        """`15m` is said by this machine's clock, and packets have their node's."""
        for each in listings:
            ahead = max(each.now_ns - answered_ns, 0) - max(asked_ns - each.now_ns, 0)
            if abs(ahead) > TOLERATED_CLOCK_NS:
                which = "ahead of" if ahead > 0 else "behind"
                self.say(
                    f"the clock of {each.node} is {abs(ahead) / 1e9:.1f} s {which} this machine's: is the window right?"
                )

    def _bring_journal(self, claims: Claims, throttle: Throttle) -> bool:
        """Whether the journal of at least one writer came, and saw all of the window."""
        try:
            journals = self.source.journals()
        except PodtapError as error:
            self._miss(f"journal: {error}")
            return False
        if not journals:
            words = "journal: none is here, so names of pods are known only where other metadata is given"
            if self.source.has_journal:
                self._miss(words)
            else:
                self.say(words)
            return False
        downloads = [Download(each, self.folder, self.window, None, claims, throttle) for each in journals]
        results = in_parallel(lambda download: download.run(), downloads, DOWNLOAD_WORKERS)
        failed = [
            f"journal {each.origin.name}: {answer}" for each, answer in results if isinstance(answer, PodtapError)
        ]
        sentences = journal_missing(self.folder, self.window)
        for sentence in failed:
            self.say(sentence)
        for sentence in sentences:
            self._miss(sentence)
        if len(failed) == len(results):
            self.journal_missing += failed
        return not self.journal_missing

    def _miss(self, sentence: str) -> None:
        self.say(sentence)
        self.journal_missing.append(sentence)

    def _bring_nodes(
        self, origins: Sequence[Origin], plan: Plan, addresses: list[str] | None, claims: Claims, throttle: Throttle
    ) -> None:
        with Bar(plan.send_bytes, _bytes_below(self.folder)) as bar:
            downloads = {}
            for origin in origins:
                if origin.name in plan.listings:
                    download = Download(origin, self.folder, self.window, addresses, claims, throttle, bar.add)
                    download.node_folders |= {each.path for each in plan.listings[origin.name]}
                    downloads[origin.name] = download
            self._run(downloads.values())
            self._wait(downloads, plan)
        self._agents = {each.versions["podtap"] for each in downloads.values() if "podtap" in each.versions}
        for name, download in downloads.items():
            self._damage |= {each.path: _damage_of(download, each.path) for each in plan.listings[name]}

    def _run(self, downloads: Iterable[Download]) -> None:
        for download, answer in in_parallel(lambda each: each.run(), downloads, DOWNLOAD_WORKERS):
            if isinstance(answer, PodtapError):
                self._failed[download.origin.name] = str(answer)

    def _wait(self, downloads: dict[str, Download], plan: Plan) -> None:
        """Until the segments that were open in the window are sealed, and brought too."""
        end = time.monotonic() + self.wait_s
        waiting = [each for name, each in downloads.items() if self._waits_for(name, plan)]
        if waiting and self.wait_s:
            self.say(
                f"waiting for segments that are being written on {len(waiting):,} nodes, {self.wait_s:.0f} s at most"
            )
        while waiting and time.monotonic() < end:
            time.sleep(POLL_S)
            for each, answer in in_parallel(lambda each: each.origin.listing(self.window), waiting, LISTING_WORKERS):
                if not isinstance(answer, PodtapError):
                    plan.listings[each.origin.name] = answer
            still = [each for each in waiting if self._waits_for(each.origin.name, plan)]
            self._run(each for each in waiting if each not in still)
            waiting = still

    def _waits_for(self, name: str, plan: Plan) -> bool:
        return name not in self._failed and any(self._is_open(each) for each in plan.listings[name])

    def _is_open(self, listing: NodeListing) -> bool:
        return listing.open_since_ns is not None and listing.open_since_ns < self.window.until_ns

    def _nodes(self, origins: Sequence[Origin], plan: Plan) -> list[BundleNode]:
        """All nodes, those too of which there is nothing."""
        nodes = [
            self._node(listing, self._failed.get(origin.name))
            for origin in origins
            for listing in plan.listings.get(origin.name, [])
        ]
        known = {each.node for each in nodes}
        silent = {
            name: self._failed.get(name, "it has recorded nothing") for name, each in plan.listings.items() if not each
        }
        absent = self.source.missing | plan.problems | silent
        cluster = nodes[0].cluster if nodes else self._cluster_here()
        nodes += [self._absent(cluster, name, why) for name, why in absent.items() if name not in known]
        return sorted(nodes, key=lambda each: (each.cluster, each.node))

    def _cluster_here(self) -> str:
        """The cluster's name as an earlier run brought it."""
        found = (segment.manifest.cluster for folder in node_folders(self.folder) for segment in segments(folder))
        return next(found, "")

    def _absent(self, cluster: str, node: str, why: str) -> BundleNode:
        """Of an earlier run of the same command there may be something of it, or all."""
        found = self._found(cluster, node)
        sentences = self._missing(found, cluster, node, None) if found else []
        return node_summary(found, cluster, node, [why, *sentences] if sentences or not found else [])

    def _node(self, listing: NodeListing, failure: str | None) -> BundleNode:
        found = self._found(listing.cluster, listing.node)
        sentences = [f"not all came: {failure}"] if failure else []
        sentences += self._missing(found, listing.cluster, listing.node, listing.open_since_ns)
        sentences += self._damage.get(listing.path, [])
        return node_summary(found, listing.cluster, listing.node, sentences)

    def _found(self, cluster: str, node: str) -> list[Segment]:
        return list(segments(self.folder / node_folder(cluster, node)))

    def _missing(self, found: list[Segment], cluster: str, node: str, open_since_ns: int | None) -> list[str]:
        whole = [each.manifest if each.chain_bytes is None else from_json(Manifest, each.chain_bytes) for each in found]
        tombstones, _ = read_tombstones(self.folder / node_folder(cluster, node))
        return missing(self.window, whole, tombstones, open_since_ns)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path)


def _damage_of(download: Download, folder: str) -> list[str]:
    """What came of a node, but not as it was sealed."""
    damaged = sorted(each for each in download.damaged - download.vanished if each.startswith(f"{folder}/"))
    return [f"{each.removeprefix(folder + '/')} is damaged on the node's disk" for each in damaged]


def _bytes_below(folder: Path) -> int:
    """What is here already."""
    return sum(path.stat().st_size for path in folder.glob("[!_.]*/*/*/*.pcap*"))


def _window_text(window: Window) -> str:
    return f"{clock_text(window.since_ns)} to {clock_text(window.until_ns)}"


def _reach(plan: Plan) -> str:
    """What nodes have, where it is not what was asked for."""
    known = [
        f"{each.node} has {_window_text(Window(each.oldest_ns, each.newest_ns))}"
        for each in plan.all()
        if each.oldest_ns is not None and each.newest_ns is not None
    ]
    return "; ".join(known[:_SHOWN]) + ("; ..." if len(known) > _SHOWN else "") or "they have recorded nothing yet"


def prepare(folder: Path, request: Request, say: Say) -> Request | None:
    """The folder is made. Returns the request as it is to be run: an earlier run of the same command fixed its window.

    None: it was done before, wholly. UsageError: the folder is in use for something else. PodtapError: no such place.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise PodtapError(f"{folder} can't be made: {error.strerror}; give another -o") from error
    earlier = _earlier(folder)
    if earlier is None:
        if names:
            raise UsageError(f"{folder} is not empty, and no collection was begun there: choose another folder with -o")
        return request
    known, is_complete = earlier
    if known.asked != request.asked:
        was = ", ".join(f"{name} {value}" for name, value in known.asked.items() if value)
        raise UsageError(f"{folder} holds another collection ({was}): choose another folder with -o")
    window = _window_text(Window(known.since_ns, known.until_ns))
    if is_complete:
        say(f"{folder} is complete: {window}; there is nothing left to do")
        return None
    say(f"going on with {window} in {folder}")
    return known


def _earlier(folder: Path) -> tuple[Request, bool] | None:
    """What was asked for in this folder before, and whether it is all there."""
    try:
        with contextlib.suppress(FileNotFoundError):
            head = from_json(Bundle, (folder / BUNDLE).read_bytes())
            has_all = all(each.complete for each in head.nodes) and head.journal_complete
            is_complete = has_all and not (folder / WORK).exists()
            return Request(head.since_ns, head.until_ns, head.selection), is_complete
        with contextlib.suppress(FileNotFoundError):
            values = json.loads((folder / WORK / _REQUEST).read_bytes())
            return Request(values["since_ns"], values["until_ns"], values["asked"]), False
    except (ContractError, ValueError, KeyError, TypeError) as error:
        raise PodtapError(f"{folder} holds a collection that can't be understood ({error}): choose another") from None
    return None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """PodtapError: another one collects into the folder."""
    try:
        (folder / WORK).mkdir(exist_ok=True)
        file = open(folder / WORK / "lock", "w")  # noqa: SIM115
    except OSError as error:
        raise DiskFull(f"{folder} can't be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PodtapError(f"another podtap collect is at work in {folder}: wait for it, or end it") from None
        yield


def _write_request(folder: Path, request: Request) -> None:
    values = {"since_ns": request.since_ns, "until_ns": request.until_ns, "asked": request.asked}
    try:
        write_atomically(folder / WORK / _REQUEST, json.dumps(values).encode())
    except OSError as error:
        raise DiskFull(f"{folder} can't be written: {error.strerror}") from error


def check_space(folder: Path, needed_bytes: int) -> None:
    """PodtapError where the estimate does not fit on the disk."""
    free = shutil.disk_usage(folder).free
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if needed_bytes - there > free:
        raise PodtapError(
            f"{size_text(needed_bytes)} are needed and {folder} has {size_text(free)} free: "
            "choose another folder, a shorter window, or fewer pods with -n and -l"
        )
