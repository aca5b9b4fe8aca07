"""Where recordings are brought from: nodes of a cluster, or a folder. Each source is a list of origins.

An object store would be one more: it has the same files, so its origin yields the same stream.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Final, Protocol, TypeVar

from capture.cluster import Cluster, ExecError, PodtapPod
from capture.contract import JOURNAL, ContractError, Freeze, safe_name, to_json
from capture.errors import PodtapError
from capture.listing import NodeListing, parse_listing
from capture.recording import Window, node_folders
from capture.sending import list_node, send_journal, send_recording

T = TypeVar("T")

_TRIES: Final = 3
_PATIENCE_S: Final = 10.0
_LONGEST_ARGUMENT: Final = 100_000


class Origin(Protocol):
    """One place that has recordings; `name` is for people. All may raise PodtapError."""

    @property
    def name(self) -> str: ...

    def listing(self, window: Window) -> list[NodeListing]:
        """What it has; of a journal nothing."""

    def send(self, window: Window, addresses: list[str] | None, resume: str, offset: int) -> Iterator[bytes]:
        """The stream of transfer.py."""


class Source(Protocol):
    """All origins of a collection."""

    missing: dict[str, str]
    """Nodes that have no origin, and why."""
    has_journal: bool
    """Whether something is amiss where there is no journal: a folder need not have one."""

    def versions(self) -> dict[str, str]:
        """Of what the recordings come from, by name; what can't be had is left out."""

    def nodes(self) -> Sequence[Origin]: ...

    def journals(self) -> Sequence[Origin]: ...


@dataclass
class AgentOrigin:
    """The agent of one node, asked through the API server."""

    cluster: Cluster
    pod: PodtapPod

    @property
    def name(self) -> str:
        return self.pod.node

    def listing(self, window: Window) -> list[NodeListing]:
        return _run(self._stream, ["podtap", "agent", "list", *_window(window), "-o", "json"], _listings)

    def send(self, window: Window, addresses: list[str] | None, resume: str, offset: int) -> Iterator[bytes]:
        command = ["podtap", "agent", "send", *_window(window)]
        command += [] if addresses is None else ["--addresses", _joined(addresses)]
        command += ["--resume", resume, "--offset", str(offset)] if resume else []
        return self._stream(command)

    def freeze(self, freeze: Freeze) -> None:
        _run(self._stream, _freezing("agent", freeze), len)

    def thaw(self, ids: list[str]) -> str:
        """What became of it, in the agent's words; without ids all are meant."""
        return _run(self._stream, ["podtap", "agent", "thaw", *(ids or ["--all"])], _words)

    def _stream(self, command: list[str]) -> Iterator[bytes]:
        """In the node's agent; in the one that replaced it, if that is so."""
        try:
            yield from self.cluster.stream(self.pod, command)
        except ExecError as error:
            if not error.gone:
                raise
            pod = self.cluster.agent_on(self.pod.node)
            if pod is None or pod == self.pod:
                raise
            self.pod = pod
            yield from self.cluster.stream(self.pod, command)


@dataclass
class JournalOrigin:
    """One writer of the journal, asked through the API server."""

    cluster: Cluster
    pod: PodtapPod

    @property
    def name(self) -> str:
        return self.pod.name

    def listing(self, window: Window) -> list[NodeListing]:
        return []

    def send(self, window: Window, addresses: list[str] | None, resume: str, offset: int) -> Iterator[bytes]:
        return self._stream(["podtap", "journal", "send", *_window(window)])

    def freeze(self, freeze: Freeze) -> None:
        _run(self._stream, _freezing("journal", freeze), len)

    def adopt(self, freezes: Sequence[Freeze]) -> str:
        """Keeps what tells of these, too; its words on those that it did not know."""
        words = ""
        texts = [to_json(each).decode().strip() for each in freezes]
        while texts:
            count = max(1, sum(total <= _LONGEST_ARGUMENT for total in accumulate(map(len, texts))))
            words += _run(self._stream, ["podtap", "journal", "adopt", *texts[:count]], _words)
            texts = texts[count:]
        return words

    def thaw(self, ids: list[str]) -> str:
        """What became of it, in its words; without ids all are meant."""
        return _run(self._stream, ["podtap", "journal", "thaw", *(ids or ["--all"])], _words)

    def _stream(self, command: list[str]) -> Iterator[bytes]:
        return self.cluster.stream(self.pod, command)


@dataclass
class ClusterSource:
    """All agents and journals of a cluster, or those of some nodes."""

    cluster: Cluster
    wanted: tuple[str, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)
    has_journal: bool = True
    notes: list[str] = field(default_factory=list)
    """What could not be found out."""

    def versions(self) -> dict[str, str]:
        return self.cluster.versions()

    def nodes(self) -> list[AgentOrigin]:
        """PodtapError: the cluster can't be asked, or has no agent at all."""
        agents = {pod.node: pod for pod in self.cluster.agents()}
        try:
            nodes = self.cluster.nodes()
        except PodtapError as error:
            nodes = {}
            self.notes.append(f"nodes can't be listed, so nobody knows which have no agent: {error}")
        if unknown := [name for name in self.wanted if name not in agents and name not in (nodes or agents)]:
            raise PodtapError(f"there is no node {', '.join(unknown)}; there are: {', '.join(sorted(nodes or agents))}")
        if not agents:
            raise PodtapError(
                f"no agent of podtap runs in namespace {self.cluster.namespace} of {self.cluster.connection.host}: "
                "is this the right --context, and the right --podtap-namespace?"
            )
        for name in nodes.keys() - agents.keys():
            if not self.wanted or name in self.wanted:
                self.missing[name] = "no agent runs on it"
        return [
            AgentOrigin(self.cluster, pod) for node, pod in agents.items() if not self.wanted or node in self.wanted
        ]

    def journals(self) -> list[JournalOrigin]:
        return [JournalOrigin(self.cluster, pod) for pod in self.cluster.journals()]


@dataclass(frozen=True)
class FolderOrigin:
    """One node's folder on this machine's disk, or the journal beside them."""

    root: Path
    folder: Path
    name: str

    def listing(self, window: Window) -> list[NodeListing]:
        return [list_node(self.root, self.folder, window)]

    def send(self, window: Window, addresses: list[str] | None, resume: str, offset: int) -> Iterator[bytes]:
        if self.folder.name == JOURNAL:
            return send_journal(self.root, window)
        return send_recording(self.root, [self.folder], window, addresses, resume, offset)


@dataclass
class FolderSource:
    """A root with any number of nodes, and maybe a journal: a node's that is mounted here, a copy, another bundle."""

    root: Path
    wanted: tuple[str, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)
    has_journal: bool = False

    def versions(self) -> dict[str, str]:
        return {}

    def nodes(self) -> list[FolderOrigin]:
        folders = node_folders(self.root)
        names = [each.name for each in folders]
        if not folders:
            raise PodtapError(f"no recording is below {self.root}: give the folder that holds <cluster>/<node>")
        if unknown := [each for each in self.wanted if safe_name(each) not in names]:
            raise PodtapError(f"there is no node {', '.join(unknown)}; there are: {', '.join(names)}")
        wanted = [safe_name(each) for each in self.wanted] or names
        origins = [(each.relative_to(self.root).as_posix(), each) for each in folders if each.name in wanted]
        return [FolderOrigin(self.root, folder, name) for name, folder in origins]

    def journals(self) -> list[FolderOrigin]:
        folder = self.root / JOURNAL
        return [FolderOrigin(self.root, folder, str(folder))] if folder.is_dir() else []


def _run(stream: Callable[[list[str]], Iterator[bytes]], command: list[str], parse: Callable[[bytes], T]) -> T:
    """A command that may be run again where the first answer was lost; not for a node that is down."""
    started = time.monotonic()
    for attempt in range(_TRIES):
        try:
            return parse(b"".join(stream(command)))
        except ExecError as error:
            if not error.again or attempt + 1 == _TRIES or time.monotonic() - started > _PATIENCE_S:
                raise
        time.sleep(2**attempt * random.uniform(0.5, 1))
    raise AssertionError


def _freezing(component: str, freeze: Freeze) -> list[str]:
    who = ["--id", freeze.id, "--reason", freeze.reason, "--by", freeze.by]
    return ["podtap", component, "freeze", *who, *_window(Window(freeze.since_ns, freeze.until_ns))]


def _words(answer: bytes) -> str:
    return answer.decode(errors="replace")


def _listings(answer: bytes) -> list[NodeListing]:
    """ExecError where it can't be understood: maybe its end was lost."""
    try:
        return [parse_listing(line) for line in answer.splitlines()]
    except ContractError as error:
        words = f"its agent's answer can't be understood ({error}): is it of the same version?"
        raise ExecError(words, again=True) from None


def _joined(addresses: list[str]) -> str:
    """As one argument of a command, of which the kernel takes 128 KiB."""
    text = ",".join(addresses)
    if len(text) > _LONGEST_ARGUMENT:
        raise PodtapError(
            f"{len(addresses):,} addresses are too many to choose by: leave out -n and -l, or narrow them"
        )
    return text


def _window(window: Window) -> list[str]:
    return ["--since", _seconds(window.since_ns), "--until", _seconds(window.until_ns)]


def _seconds(time_ns: int) -> str:
    """Epoch seconds, as the commands of a node take a time."""
    return f"{time_ns // 10**9}.{time_ns % 10**9:09d}"
