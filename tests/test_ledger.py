"""Ledgers and the ends of segments: sums that can be done by hand."""

from __future__ import annotations

from capture.contract import Ledger
from capture.ledger import Totals, Unwrapped, add_lost, gone, ledger_of
from capture.libpcap import Stats
from capture.rotation import Rotation


def test_what_waits_in_the_ring_is_the_next_segments() -> None:
    totals = Totals(received=110, read=90, kernel=15, disk=10, policy=20)
    assert totals.waiting == 5
    ledger = ledger_of(totals, is_interface_known=False)
    assert ledger == Ledger(accepted=105, written=60, kernel=15, disk=10, policy=20)
    assert ledger.is_balanced


def test_segments_are_differences_of_totals() -> None:
    before, after = Totals(received=10, read=10), Totals(received=25, read=20, kernel=5, interface=3)
    assert ledger_of(after - before, is_interface_known=True) == Ledger(accepted=15, written=10, kernel=5, interface=3)


def test_packets_of_a_lost_segment_are_the_disks() -> None:
    ledger = Ledger(accepted=10, written=10, interface=1)
    add_lost(ledger, Ledger(accepted=9, written=4, kernel=2, disk=1, policy=2, interface=1))
    assert ledger == Ledger(accepted=19, written=10, kernel=2, disk=5, policy=2, interface=2)
    assert ledger.is_balanced


def test_of_a_segment_that_was_moved_only_what_was_dropped_is_told_by_another() -> None:
    lost = Ledger(accepted=9, written=4, kernel=2, disk=1, policy=2, interface=1)
    assert gone(lost, is_elsewhere=False) == lost
    assert gone(lost, is_elsewhere=True) == Ledger(accepted=5, written=0, kernel=2, disk=1, policy=2, interface=1)


def test_counters_of_32_bits_go_on_over_their_end() -> None:
    counters = Unwrapped(Stats(2**32 - 10, 5, 0))
    assert counters.count(Stats(2**32 - 1, 5, 1)) == Stats(9, 0, 1)
    assert counters.count(Stats(20, 7, 1)) == Stats(30, 2, 1)


def test_a_segment_ends_at_its_size_or_its_time() -> None:
    rotation = Rotation(1000, 60.0)
    assert not rotation.is_due(999, 100.0, 159.9)
    assert rotation.is_due(1000, 100.0, 100.0)
    assert rotation.is_due(0, 100.0, 160.0)
