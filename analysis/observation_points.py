"""Every place at which packets were seen, and by which number records name it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from analysis import columns
from analysis.layout import LINKTYPE_NFLOG, LINKTYPE_SLL, LINKTYPE_SLL2, POINT_MIXED, POINT_NAMED, POINT_UNNAMED
from analysis.manifests import InterfaceNames

Records = npt.NDArray[Any]


class ObservationPoints:
    """Every (node, interface) at which packets were seen, numbered as they turn up."""

    def __init__(self) -> None:
        self.names: list[str | None] = []
        self._kinds: list[int] = []
        self._hashes: list[int] = []
        self._numbers: dict[tuple[str, str | None, int], int] = {}

    def of(self, node: str, name: str | None, link_type: int) -> int:
        is_mixed = link_type in (LINKTYPE_SLL, LINKTYPE_NFLOG)
        is_named = name is not None or link_type == LINKTYPE_SLL2
        kind = POINT_MIXED if is_mixed else POINT_NAMED if is_named else POINT_UNNAMED
        return self._number(node, name, kind)

    def tell_apart(self, node: str, packets: Records, names: InterfaceNames) -> None:
        """Gives SLL2 packets the interface whose index their header has, by its name at that time."""
        cooked = packets["ifindex"] >= 0
        index, firsts = columns.distinct(
            np.zeros(len(packets), np.uint64), packets["ifindex"].astype(np.int64).astype(np.uint64)
        )
        found = packets["ifindex"][firsts].tolist()
        named = [names.of(ifindex) if ifindex >= 0 else [] for ifindex in found]
        numbers = [self._number(node, each[0][1], POINT_NAMED) if each else 0 for each in named]
        packets["interface"] = np.where(cooked, np.array(numbers, np.int32)[index], packets["interface"])
        for place, several in enumerate(named):
            for since_ns, name in several[1:]:
                later = cooked & (index == place) & (packets["ts"] >= since_ns)
                packets["interface"][later] = self._number(node, name, POINT_NAMED)

    def kinds(self) -> npt.NDArray[np.int64]:
        return np.array(self._kinds, np.int64)

    def hashes(self) -> npt.NDArray[np.uint64]:
        return np.array(self._hashes, np.uint64)

    def _number(self, node: str, name: str | None, kind: int) -> int:
        key = (node, name, kind)
        if key not in self._numbers:
            self._numbers[key] = len(self.names)
            self.names.append(name)
            self._kinds.append(kind)
            self._hashes.append(xxhash.xxh3_64_intdigest(f"{name}\0{kind}".encode()))
        return self._numbers[key]
