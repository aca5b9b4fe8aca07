"""Writes metrics.md, beside this file, from capture/metrics.py: `make docs`."""

from __future__ import annotations

from pathlib import Path

from capture.metrics import ALL

INTRODUCTION = """# Metrics

Made from [capture/metrics.py](../capture/metrics.py) by `make docs`.

What `podtap agent` and `podtap journal` tell Prometheus at `/metrics`. A metric is exposed once it has a value. Beside
it: `/healthz` answers 200 as long as the process lives; `/readyz` answers 503 and a line for each reason while it does
not do what it is there for.

For the agent, accepted packets = written + dropped, summed over all reasons; the same figures are in each segment's
manifest.

| metric | type | labels | |
|---|---|---|---|
"""


def markdown() -> str:
    """The whole of metrics.md."""
    rows = (
        f"| `{each.name}` | {each.kind} | {', '.join(f'`{label}`' for label in each.labels)} | {each.help} |\n"
        for each in ALL
    )
    return INTRODUCTION + "".join(rows)


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(markdown())
