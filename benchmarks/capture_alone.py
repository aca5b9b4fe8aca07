"""podtap's agent without SHA-256 and rotation: what capturing alone costs. For benchmarks/capture.py, not for use."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import podtap
from capture import packet_file


class NoDigest:
    """In the place of hashlib, and of what it makes."""

    def sha256(self) -> NoDigest:
        return self

    def copy(self) -> NoDigest:
        return self

    def update(self, data: object) -> None:
        pass

    def hexdigest(self) -> str:
        return "0" * 64


packet_file.hashlib = NoDigest()  # type: ignore[assignment]
podtap.main()
