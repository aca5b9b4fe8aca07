"""DNS messages over UDP that came in IP fragments, put together again (RFC 791, RFC 8200).

A message belongs to the fragment that completed it, whatever their order: so does Wireshark's. One that is not whole
after a minute, or at the end, counts with what came of it from its begin on, and belongs to its first fragment.
Without the first fragment nobody can say whether it was DNS.

There are as many places as DATAGRAMS, each datagram has one by its key. One whose first fragment came and is DNS
keeps it against fragments of others that came before their first one.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from analysis import dns_fragments_kernels as kernels
from analysis.layout import FRAGMENT_NONE

DATAGRAMS: Final = 256

Messages = npt.NDArray[np.void]
Bytes = npt.NDArray[np.uint8]


class Fragments:
    """The datagrams of a recording that are not whole yet; carries them over chunks and file borders."""

    def __init__(self, dtype: np.dtype[np.void]) -> None:
        """`dtype`: of the messages."""
        self._dtype = dtype
        self._state = np.zeros(kernels.STATE_SIZE, np.int64)
        self._state[kernels.OLDEST] = kernels.NEVER
        self._datagrams = np.zeros(0, kernels.DATAGRAM)
        self._firsts = np.zeros(0, dtype)
        self._payloads = np.zeros((0, kernels.PAYLOAD_BYTES), np.uint8)
        self._covered = np.zeros((0, kernels.PAYLOAD_BYTES // kernels.BLOCK), np.uint8)

    def feed(self, data: Bytes, candidates: Messages) -> tuple[Messages, Bytes]:
        """Put messages in place of the fragments among the candidates.

        Returns all messages in order, and the bytes into which `offset` of the reassembled ones points.
        """
        is_fragment = candidates["fragment"] != FRAGMENT_NONE
        if not self._datagrams.size:
            if not is_fragment.any():
                return candidates, np.zeros(0, np.uint8)
            self._make_room()
        elif self._state[kernels.OLDEST] == kernels.NEVER and not is_fragment.any():
            return candidates, np.zeros(0, np.uint8)
        room = int(candidates["captured"][is_fragment].sum() + self._datagrams["captured"].sum())
        messages, out = np.zeros(len(candidates) + DATAGRAMS, self._dtype), np.zeros(room, np.uint8)
        self._state[[kernels.MESSAGE_COUNT, kernels.BYTE_COUNT]] = 0
        kernels.reassemble(
            data, candidates, self._datagrams, self._firsts, self._payloads, self._covered, messages, out, self._state
        )
        return self._counted(messages, out)

    def finish(self) -> tuple[Messages, Bytes]:
        """What came of datagrams that are not whole."""
        messages = np.zeros(len(self._datagrams), self._dtype)
        out = np.zeros(int(self._datagrams["captured"].sum()), np.uint8)
        self._state[[kernels.MESSAGE_COUNT, kernels.BYTE_COUNT]] = 0
        kernels.give_up(self._datagrams, self._firsts, self._payloads, self._covered, messages, out, self._state)
        return self._counted(messages, out)

    def _make_room(self) -> None:
        """Most recordings never need it."""
        self._datagrams = np.zeros(DATAGRAMS, kernels.DATAGRAM)
        self._firsts = np.zeros(DATAGRAMS, self._dtype)
        self._payloads = np.zeros((DATAGRAMS, kernels.PAYLOAD_BYTES), np.uint8)
        self._covered = np.zeros((DATAGRAMS, kernels.PAYLOAD_BYTES // kernels.BLOCK), np.uint8)

    def _counted(self, messages: Messages, out: Bytes) -> tuple[Messages, Bytes]:
        return messages[: self._state[kernels.MESSAGE_COUNT]], out[: self._state[kernels.BYTE_COUNT]]
