"""Pure: when a rising counter freezes the minutes around it. The agent feeds it, and freezes what it returns."""

from __future__ import annotations

from dataclasses import dataclass

from capture.contract import NANOSECONDS
from capture.recording import Window


@dataclass
class Trigger:
    """Fires where a counter grows faster than `per_second`, over at least `over_ns`; then is quiet for `quiet_ns`."""

    name: str
    per_second: float
    before_ns: int = 300 * NANOSECONDS
    after_ns: int = 120 * NANOSECONDS
    over_ns: int = 10 * NANOSECONDS
    quiet_ns: int = 900 * NANOSECONDS
    """One incident is one freeze."""
    _since: tuple[int, int] | None = None
    _quiet_until_ns: int = 0

    def observe(self, now_ns: int, value: int) -> Window | None:
        """A sample of the counter; the window to freeze, if it is time to. A counter that fell was made anew."""
        if self._since is None or value < self._since[1] or now_ns < self._since[0]:
            self._since = now_ns, value
            return None
        elapsed = now_ns - self._since[0]
        if elapsed < self.over_ns:
            return None
        rate = (value - self._since[1]) * NANOSECONDS / elapsed
        self._since = now_ns, value
        if rate <= self.per_second or now_ns < self._quiet_until_ns:
            return None
        self._quiet_until_ns = now_ns + self.quiet_ns
        return Window(now_ns - self.before_ns, now_ns + self.after_ns)

    def reason(self) -> str:
        return f"{self.name} grew by more than {self.per_second:g} a second"
