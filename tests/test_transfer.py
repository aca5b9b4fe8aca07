"""The stream between a node and a collector: whatever way it is cut, the same files come out, or an error."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.transfer import End, Header, Receiver, Trailer, TransferError, send_end, send_file

FILES = st.lists(st.tuples(st.lists(st.binary(max_size=40), max_size=5), st.integers(0, 120)), max_size=4)


def sent(files: list[tuple[list[bytes], int]]) -> bytes:
    def name(trailer: Trailer) -> None:
        trailer.manifest = f"{trailer.size_bytes}\n"

    stream = b"".join(
        piece
        for number, (pieces, offset) in enumerate(files)
        for piece in send_file(Header(f"c/n/{number}", min(offset, len(b"".join(pieces)))), pieces, name)
    )
    return stream + send_end(End(vanished=["gone"], now_ns=7))


def received(chunks: Iterator[bytes]) -> tuple[list[tuple[Header, bytes, Trailer]], End]:
    receiver, found = Receiver(chunks), []
    while isinstance(header := receiver.header(), Header):
        found.append((header, b"".join(receiver.pieces()), receiver.trailer()))
    return found, header


@given(files=FILES, cuts=st.lists(st.integers(1, 50), min_size=1))
def test_files_come_out_as_they_went_in_from_their_offsets_on(
    files: list[tuple[list[bytes], int]], cuts: list[int]
) -> None:
    stream, place, chunks = sent(files), 0, []
    while place < len(stream):
        size = cuts[len(chunks) % len(cuts)]
        chunks.append(stream[place : place + size])
        place += size
    found, end = received(iter(chunks))
    assert (end.vanished, end.now_ns) == (["gone"], 7)
    assert len(found) == len(files)
    for (header, data, trailer), (pieces, offset) in zip(found, files, strict=True):
        whole = b"".join(pieces)
        assert data == whole[offset:]
        assert header.offset == min(offset, len(whole))
        assert (trailer.size_bytes, trailer.sha256) == (len(whole), hashlib.sha256(whole).hexdigest())
        assert trailer.manifest == f"{len(whole)}\n"


@given(files=FILES, data=st.data())
def test_a_stream_that_ends_early_is_never_taken_for_a_whole_one(
    files: list[tuple[list[bytes], int]], data: st.DataObject
) -> None:
    stream = sent(files)
    end = data.draw(st.integers(0, len(stream) - 1))
    with pytest.raises(TransferError):
        received(iter([stream[:end]]))


@given(noise=st.binary())
def test_noise_is_an_error(noise: bytes) -> None:
    with pytest.raises(TransferError):
        received(iter([noise]))
