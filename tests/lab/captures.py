"""Plain tcpdump inside a namespace, which has seen everything when it says so."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from tests.lab.namespaces import Namespace

BUFFER_KIB: Final = 32 << 10
_COUNTS: Final = re.compile(
    r"(\d+) packets? captured\D+?(\d+) packets? received by filter\D+?(\d+) packets? dropped by kernel"
)


def merged(captures: Sequence[Path], path: Path) -> None:
    """One pcap of several, which does not say what came from which."""
    subprocess.run(["mergecap", "-F", "nsecpcap", "-w", path, *captures], check=True)


class Capture:
    """`with Capture(namespace, path):` writes what passes meanwhile; snaplen 0 keeps whole packets.

    `link_type`: LINUX_SLL does not tell interfaces, as LINUX_SLL2 does, which is what "any" is captured as otherwise.
    Raises at the end if the kernel dropped anything: a capture with holes is no evidence.
    """

    def __init__(
        self,
        namespace: Namespace,
        path: str | Path,
        interface: str = "any",
        snaplen: int = 0,
        expression: str = "",
        link_type: str = "",
    ) -> None:
        self.namespace = namespace
        self.path = Path(path)
        self.interface = interface
        self.snaplen = snaplen
        self.expression = expression
        self.link_type = link_type
        self.packets = 0
        """How many it wrote; known at the end."""
        self._log = self.path.with_name(self.path.name + ".log")
        self._process: subprocess.Popen[str]

    def __enter__(self) -> Capture:
        with self._log.open("w") as log:
            self._process = self.namespace.start(
                *("tcpdump", "-n", "-U", "-Z", "root", "--time-stamp-precision=nano", "-B", str(BUFFER_KIB)),
                *("-i", self.interface, "-s", str(self.snaplen), "-w", str(self.path.resolve())),
                *(["-y", self.link_type] if self.link_type else []),
                *([self.expression] if self.expression else []),
                stderr=log,
            )
        self._wait(lambda text: "listening on" in text, "did not listen")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._wait_until_read()
        finally:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(10)
        self.packets, _, dropped = self._counts()[-1]
        self._log.unlink()
        if dropped and error is None:
            raise RuntimeError(f"{self.path}: the kernel dropped {dropped} packets, {self.packets} were written")

    def _wait_until_read(self) -> None:
        """tcpdump gets packets by the block, up to a second late: until then it has received more than it captured."""
        deadline = time.monotonic() + 30
        asked = 0
        while time.monotonic() < deadline:
            self._process.send_signal(signal.SIGUSR1)
            asked += 1
            while len(self._counts()) < asked and time.monotonic() < deadline and self._process.poll() is None:
                time.sleep(0.002)
            captured, received, _ = self._counts()[-1]
            if captured >= received:
                return
            time.sleep(0.02)
        raise RuntimeError(f"{self.path}: tcpdump does not come to an end: {self._log.read_text()}")

    def _wait(self, done: Callable[[str], bool], complaint: str) -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and self._process.poll() is None:
            if done(self._log.read_text()):
                return
            time.sleep(0.002)
        raise RuntimeError(f"tcpdump {complaint} on {self.interface}: {self._log.read_text()}")

    def _counts(self) -> list[tuple[int, int, int]]:
        """What it has captured, received and lost, each time it said so."""
        found = _COUNTS.findall(self._log.read_text())
        return [(int(captured), int(received), int(dropped)) for captured, received, dropped in found]
