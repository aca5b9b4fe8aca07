"""What an address was in the cluster at a time: pod, service, node, external; else unknown, or ambiguous.

dumps.py reads what kubectl wrote, journals.py what the journal did, kubernetes_objects.py says what each object owned,
lives.py from when to when the journal saw it do so, ownerships.py (which holds the rules) settles it into intervals.
Here they become the table `identities`, and answer lookups as of a moment. What the same metadata tells of the
services' endpoints goes with them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from analysis import columns, schemas
from analysis.cluster_ranges import UNKNOWN, ClusterRanges
from analysis.dumps import HOW_TO_DUMP, format_time, parse_time, read_dumps
from analysis.endpoint_slices import endpoints_of_dumps, in_cluster
from analysis.endpoints import Endpoints
from analysis.errors import PodtapError, Problem
from analysis.journals import is_journal, journal_files, read_journal
from analysis.kubernetes_objects import ownerships
from analysis.ownerships import BEGINNING_NS, NO_END_NS, Ownership, Proof, doubtful, settle
from analysis.sandboxes import Sandbox, witnessed
from analysis.timelines import NOBODY, SEVERAL, Timelines

if TYPE_CHECKING:
    Array: TypeAlias = pa.Array[Any]
    Column: TypeAlias = pa.Array[Any] | pa.ChunkedArray[Any]
    Words: TypeAlias = pa.DictionaryArray[Any, Any]

Integers = npt.NDArray[np.int64]
Networks = Mapping[str, Sequence[Sandbox]]
Clocks = Sequence[tuple[str | None, Callable[[Integers], Integers]]]
"""Times as other clocks told them: a node's, which tells when its pods came and went; or one that is asked of all."""

ANSWERS: Final = ("identity", "namespace", "pod", "pod_uid", "workload", "workload_kind", "service", "node")

_NAMELESS: Final = tuple((identity, *[None] * 7) for identity in ("unknown", "external", "node", "ambiguous"))
"""The ANSWERS without a name; their places are cluster_ranges.UNKNOWN, EXTERNAL and ON_NODE, then _AMBIGUOUS."""
_AMBIGUOUS: Final = 3

_PROTOCOLS: Final = ("TCP", "UDP", "SCTP")
"""Those that a port of a pod or service can have."""

_SIDES: Final[dict[str, tuple[str, tuple[str, ...], Callable[[pa.Table], Any]]]] = {
    "flows": ("first_seen", ("orig", "resp"), lambda table: table["protocol"]),
    "connections": ("first_seen", ("orig", "resp", "backend"), lambda table: table["protocol"]),
    "retransmits": ("flow_first_seen", ("orig", "resp"), lambda table: columns.names(np.zeros(len(table)), ["TCP"])),
    "dns": ("flow_first_seen", ("client", "server"), lambda table: table["transport"]),
}
"""For each table with identity columns: as of when its sides are looked up, the sides, and their protocol."""


def load_identities(
    paths: Sequence[str], journals: Sequence[str] = (), cluster: str | None = None
) -> tuple[Identities, list[Problem]]:
    """Read metadata: `kubectl get ... -A -o json` dumps, and the files of a journal; files, and folders of them.

    A dump (.json, .json.gz, .json.zst) may be a List of any kinds, a list of one kind, or a single object. `journals`
    are of `cluster`, and need not say anything. PodtapError if a path does not exist or nothing in all of them owns
    an address; what could not be read is in the problems.
    """
    dumps, problems = read_dumps([path for path in paths if not is_journal(Path(path))])
    found, nonsense = ownerships(dumps)
    given = journal_files(paths)
    lives, slices, damage = read_journal([*given, *(file for file in journal_files(journals) if file not in given)])
    found = [replace(each, cluster=cluster) for each in lives.ownerships()] + [lives.bounded(each) for each in found]
    shown, moments, more_nonsense = endpoints_of_dumps(dumps)
    watched = [each._replace(cluster=cluster) for each in slices.known()]
    endpoints = Endpoints.settled([*shown, *in_cluster(cluster, slices.intervals())], [*moments, *watched])
    problems += nonsense + more_nonsense + damage
    if paths and not found and endpoints.is_empty:
        reasons = "".join(f"\n{problem}" for problem in problems)
        raise PodtapError(f"{', '.join(paths)}: no pods, services or nodes; dump with: {HOW_TO_DUMP}{reasons}")
    table = _to_table(settle(found)) if found else Identities.empty().table
    return Identities(table, lives.blind(), endpoints), problems


def add_identities(
    identities: Identities,
    table_name: str,
    table: pa.Table,
    cluster: str | None = None,
    other_clocks: Clocks = (),
) -> pa.Table:
    """`table` with its identity columns filled or replaced, in the order and types of schemas.TABLES[table_name].

    Both sides of a flow are looked up as of its first packet, in `cluster`, unless the table says in which; who was
    another one by one of the `other_clocks` is ambiguous. Tables without identity columns come back as they are.
    """
    if table_name not in _SIDES:
        return table
    if "cluster" not in table.column_names:
        table = table.append_column("cluster", _repeated(cluster, len(table)))
        return _named(identities, table_name, table, cluster, other_clocks)
    names = table["cluster"].to_pylist()
    clusters = list(dict.fromkeys(names)) or [None]
    if len(clusters) == 1:
        return _named(identities, table_name, table, clusters[0], other_clocks)
    rows = [np.array([row for row, name in enumerate(names) if name == each]) for each in clusters]
    parts = [
        _named(identities, table_name, table.take(each), name, other_clocks)
        for each, name in zip(rows, clusters, strict=True)
    ]
    return pa.concat_tables(parts).unify_dictionaries().take(np.argsort(np.concatenate(rows)))


def _named(
    identities: Identities, table_name: str, table: pa.Table, cluster: str | None, other_clocks: Clocks
) -> pa.Table:
    """The rows of one cluster."""
    time, sides, protocol_of = _SIDES[table_name]
    protocol = _dictionary(protocol_of(table))
    filled: dict[str, Column] = {name: table[name] for name in table.column_names}
    for side in sides:
        ip, port = table[f"{side}_ip"], table[f"{side}_port"]
        answers = identities.identify(ip, port, protocol, table[time], cluster, other_clocks)
        filled.update({f"{side}_{name}": answer for name, answer in answers.items()})
    schema = pa.schema([field for field in schemas.TABLES[table_name].schema if field.name in filled])
    return pa.Table.from_arrays([filled[field.name] for field in schema], schema=schema)


class Identities:
    """The owners of all addresses over time."""

    def __init__(
        self, table: pa.Table, blind: Sequence[tuple[int, int]] = (), endpoints: Endpoints | None = None
    ) -> None:
        """`table` as schemas.IDENTITIES, settled; `blind`: when the journal that it is from saw nothing of the pods."""
        self.table = table
        self.blind = blind
        self.endpoints = endpoints or Endpoints()
        self._lookups: dict[str | None, _Lookup] = {}
        self._lock = Lock()

    @property
    def is_empty(self) -> bool:
        """Nothing is known."""
        return not len(self.table) and self.endpoints.is_empty

    @staticmethod
    def empty() -> Identities:
        """Without metadata: every address is unknown."""
        return Identities(pa.Table.from_batches([], schemas.IDENTITIES.schema))

    def united_with(self, other: Identities, networks: Networks | None = None) -> Identities:
        """What both know, bounded by each other, and by the pods' `networks`, which sandboxes() found."""
        owners = _from_table(self.table) + _from_table(other.table)
        by_address = networks or {}
        settled = settle(owners, lambda each: witnessed(each, by_address.get(each[0].ip, [])) if each else each)
        return Identities(_to_table(settled), other.blind, self.endpoints.united_with(other.endpoints))

    def tables(self) -> dict[str, pa.Table]:
        """As the lake keeps them."""
        endpoints = self.endpoints
        return {
            schemas.IDENTITIES.name: self.table,
            schemas.ENDPOINTS.name: endpoints.table,
            schemas.ENDPOINTS_KNOWN.name: endpoints.known_table,
        }

    def identify(
        self,
        ip: Column,
        port: Column,
        protocol: Column,
        ts: Column,
        cluster: str | None = None,
        other_clocks: Clocks = (),
    ) -> dict[str, Words]:
        """The owner of each address at its time, one array of schemas.NAME per name in ANSWERS.

        Owners in other clusters than `cluster` don't count; None: those of all do. `ip` and `protocol` (in any case)
        are dictionaries of strings, `port` uint16, `ts` timestamp[ns, UTC]; all are of one length, and all but `ts`
        may be null. An owner of the very port is preferred to one of the address. Who was another one by one
        of the `other_clocks` is ambiguous.
        """
        if not len(self.table):
            return _nobody(len(ip))
        nanoseconds = columns.plain(ts.cast(pa.timestamp("ns", tz="UTC")))
        lookup = self._lookup(cluster)
        asked = _dictionary(ip), _numpy(port, -1), _dictionary(protocol)
        owner = lookup.owners(*asked, nanoseconds)
        for node, clock in other_clocks:
            rows = lookup.of_node(asked[0], node)
            some = tuple(each.take(columns.array(rows)) for each in (asked[0], asked[2]))
            another = lookup.owners(some[0], asked[1][rows], some[1], clock(nanoseconds)[rows])
            owner[rows[owner[rows] != another]] = _AMBIGUOUS
        return _answers(lookup.names, owner)

    def _lookup(self, cluster: str | None) -> _Lookup:
        with self._lock:  # lookups run in several threads
            if cluster not in self._lookups:
                rows = _from_table(self.table)
                self._lookups[cluster] = _Lookup([row for row in rows if not cluster or row.cluster in (None, cluster)])
            return self._lookups[cluster]


class _Lookup:
    """The table, laid out to be searched."""

    def __init__(self, rows: list[Ownership]) -> None:
        owners = [row for row in rows if not row.is_range]
        self._ips = columns.texts(sorted({row.ip for row in owners}))
        numbers = {ip: number for number, ip in enumerate(self._ips.to_pylist())}
        names: dict[tuple[str | None, ...], int] = {name: at for at, name in enumerate(_NAMELESS)}
        of_address, of_port = [], []
        named = [(row, row.end_ns, names.setdefault(_names(row), len(names))) for row in owners]
        for row, end_ns, owner in [*named, *((row, row.held_ns, _AMBIGUOUS) for row in doubtful(owners))]:
            interval = row.start_ns, end_ns, owner
            if row.port is None:
                of_address.append((numbers[row.ip], *interval))
            elif row.protocol in _PROTOCOLS:
                of_port.append((_port_key(numbers[row.ip], _PROTOCOLS.index(row.protocol), row.port), *interval))
        self._of_address, self._of_port = Timelines(of_address), Timelines(of_port)
        self._nodes: dict[str | None, npt.NDArray[np.bool_]] = {None: np.ones(len(numbers) + 1, np.bool_)}
        for row in owners:
            had = self._nodes.setdefault(row.node, np.zeros(len(numbers) + 1, np.bool_))
            had[numbers[row.ip]] = True
        self._has_ports = np.zeros(len(numbers) + 1, np.bool_)
        self._has_ports[[_number_of(key) for key, *_ in of_port]] = True
        self.names = _names_table(names)
        self._ranges = _ranges(rows)

    def owners(self, ip: Words, port: Integers, protocol: Words, ts: Integers) -> Integers:
        """The owner of each address, port (-1: none) and protocol at each time, as a row of `names`."""
        word = _numpy(ip.indices, -1)
        number = _index_in(ip.dictionary, self._ips)[word]
        owner = self._of_address.at(number, ts)
        rows = np.flatnonzero(self._has_ports[number])
        protocols = columns.texts([str(name).upper() for name in protocol.dictionary.to_pylist()])
        transport = _index_in(protocols, columns.texts(_PROTOCOLS))[_numpy(protocol.indices, -1)[rows]]
        of_port = self._of_port.at(_port_key(number[rows], transport, port[rows]), ts[rows])
        owner[rows] = np.where(of_port == NOBODY, owner[rows], of_port)
        owner[owner == SEVERAL] = _AMBIGUOUS
        nobody = owner == NOBODY
        owner[nobody] = self._fallbacks(ip.dictionary, word[nobody])
        return owner

    def of_node(self, ip: Words, node: str | None) -> Integers:
        """Which of these addresses a node's pods had at some time; of None, all."""
        had = self._nodes.get(node)
        if had is None:
            return np.zeros(0, np.int64)
        return np.flatnonzero(had[_index_in(ip.dictionary, self._ips)[_numpy(ip.indices, -1)]])

    def _fallbacks(self, words: Array, index: Integers) -> Integers:
        """What the addresses are that nobody owns; `index` into `words`, -1 for none."""
        kinds = np.full(len(words) + 1, UNKNOWN, np.int64)
        occurs = np.zeros(len(words) + 1, np.bool_)
        occurs[index] = True
        used = np.flatnonzero(occurs[:-1])
        kinds[used] = self._ranges.classify(words.take(columns.array(used)).to_pylist())
        return kinds[index]


def _port_key(number: Any, transport: Any, port: Any) -> Any:
    """One number for an address's number, a protocol's place in _PROTOCOLS and a port; of ints or of arrays.

    Negative, and so nobody's, where protocol or port are -1.
    """
    return (number << 24) | (transport << 16) | port


def _number_of(port_key: int) -> int:
    return port_key >> 24


def _names(row: Ownership) -> tuple[str | None, ...]:
    """A row's ANSWERS."""
    is_pod = row.identity == "pod"
    return (
        row.identity,
        row.namespace,
        row.name if is_pod else None,
        row.uid if is_pod else None,
        row.workload,
        row.workload_kind,
        row.name if row.identity == "service" else None,
        row.node,
    )


def _names_table(names: Iterable[tuple[str | None, ...]]) -> pa.Table:
    words = zip(*names, strict=True)
    return pa.table({answer: columns.texts(column) for answer, column in zip(ANSWERS, words, strict=True)})


def _ranges(rows: list[Ownership]) -> ClusterRanges:
    owners = [row for row in rows if not row.is_range]
    return ClusterRanges(
        pod_ips={row.ip for row in owners if row.identity == "pod" and row.port is None},
        other_ips={row.ip for row in owners},
        service_start={
            row.ip
            for row in owners
            if (row.identity, row.namespace, row.name, row.port) == ("service", "default", "kubernetes", None)
        },
        ranges={row.ip for row in rows if row.is_range},
    )


def _answers(names: pa.Table, owner: Integers) -> dict[str, Words]:
    """The names of each row's owner, in dictionaries of those that occur."""
    occurs = np.zeros(len(names), np.bool_)
    occurs[owner] = True
    place = (np.cumsum(occurs) - 1)[owner]
    used = names.take(columns.array(np.flatnonzero(occurs)))
    answers: dict[str, Words] = {}
    for name in ANSWERS:
        column: Any = used[name].combine_chunks().dictionary_encode()
        index = columns.plain(column.indices, -1)[place]
        named: Any = columns.names(index, column.dictionary, columns.bitmap(index >= 0))
        answers[name] = named
    return answers


def _index_in(words: Array, values: Array) -> Integers:
    """Where each word is among the values; -1 for none, and one more -1 that an index of -1 finds."""
    import pyarrow.compute as pc  # on first use: it takes a while

    return np.append(_numpy(pc.index_in(words, value_set=values), -1), -1)


def _repeated(word: str | None, length: int) -> Any:
    return pa.nulls(length, schemas.NAME) if word is None else columns.names(np.zeros(length, np.int32), [word])


def _nobody(length: int) -> dict[str, Words]:
    """The ANSWERS where nothing is known."""
    return dict.fromkeys(ANSWERS, _repeated(None, length)) | {"identity": _repeated("unknown", length)}


def _dictionary(column: Column) -> Words:
    words: Any = column.unify_dictionaries().combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return words if isinstance(words, pa.DictionaryArray) else words.dictionary_encode()


def _numpy(column: Column, null: int) -> Integers:
    return columns.plain(column.cast(pa.int64()), null)


def _to_table(rows: Sequence[Ownership]) -> pa.Table:
    """Rows of schemas.IDENTITIES."""
    special: dict[str, Callable[[Ownership], Any]] = {
        "start": lambda row: None if row.start_ns == BEGINNING_NS else row.start_ns,
        "held": lambda row: None if row.held_ns == row.start_ns else row.held_ns,
        "kept": lambda row: None if row.kept_ns == _kept_by_proof(row) else row.kept_ns,
        "end": lambda row: None if row.end_ns == NO_END_NS else row.end_ns,
        "source": lambda row: _source(row.proofs),
    }
    schema = schemas.IDENTITIES.schema
    values = {name: special.get(name, attrgetter(name)) for name in schema.names}
    made = [columns.values([values[name](row) for row in rows], schema.field(name).type) for name in schema.names]
    return pa.table(made, schema=schema)


def _from_table(table: pa.Table) -> list[Ownership]:
    starts = columns.plain(table["start"], BEGINNING_NS).tolist()
    held = columns.plain(table["held"], BEGINNING_NS).tolist()
    kept = columns.plain(table["kept"], NO_END_NS).tolist()
    ends = columns.plain(table["end"], NO_END_NS).tolist()
    rows = table.drop_columns(["start", "held", "kept", "end"]).to_pylist()
    found = [
        Ownership(
            **{name: value for name, value in row.items() if name not in ("labels", "source")},
            start_ns=start_ns,
            held_ns=max(start_ns, held_ns),
            kept_ns=kept_ns,
            end_ns=end_ns,
            labels=tuple(row["labels"]),
            proofs=_proofs(row["source"]),
        )
        for row, start_ns, held_ns, kept_ns, end_ns in zip(rows, starts, held, kept, ends, strict=True)
    ]
    return [replace(row, kept_ns=_kept_by_proof(row)) if row.kept_ns == NO_END_NS else row for row in found]


def _kept_by_proof(row: Ownership) -> int:
    """Until when an owner is proven where nothing but its proofs tells it."""
    return max(row.start_ns, min(row.newest_proof.taken_ns, row.end_ns))


@lru_cache(maxsize=1 << 12)
def _source(proofs: frozenset[Proof]) -> str:
    """All dumps that show an owner: 'name @ time' or 'name (part) @ time', joined by ', '."""
    return ", ".join(f"{proof.dump}{_PART * proof.is_part} @ {format_time(proof.taken_ns)}" for proof in sorted(proofs))


@lru_cache(maxsize=1 << 12)
def _proofs(source: str) -> frozenset[Proof]:
    """What _source wrote."""
    found = _PROOF.findall(source)
    return frozenset(Proof(parse_time(taken), name.removesuffix(_PART), name.endswith(_PART)) for name, taken in found)


_PART: Final = " (part)"
_PROOF: Final = re.compile(r"(.+?) @ (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{6})?Z)(?:, |$)")
