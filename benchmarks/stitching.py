"""What stitching costs: the analysis of two nodes' recordings of the same traffic, with what it takes of that.

    python -m benchmarks.stitching 1000000 5000000 20000000

prints a Markdown table. Seconds are CPU time of all threads; each analysis is a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Final

from benchmarks import generate

SHARE_TARGET: Final = 0.35
"""Of the analysis without it."""

MEASURED: Final = """
import json, resource, sys, time
from analysis import pipeline
derive, spent = pipeline.derive, []

def timed(*arguments):
    begun = time.process_time()
    derive(*arguments)
    spent.append(time.process_time() - begun)

pipeline.derive = timed
begun = time.process_time()
pipeline.analyze(sys.argv[2:], sys.argv[1])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
print(json.dumps([time.process_time() - begun - sum(spent), sum(spent), peak]))
"""


def main(sizes: list[int]) -> None:
    print("| packets | analysis CPU s | stitching CPU s | share | a million packets | peak MiB | |")
    print("|---|---|---|---|---|---|---|")
    for packets in sizes:
        captures = [str(generate.capture(kind, packets // 2)) for kind in ("node", generate.OTHER)]
        with tempfile.TemporaryDirectory(dir=generate.DATA) as lake:
            command = [sys.executable, "-c", MEASURED, lake, *captures]
            done = subprocess.run(command, env={**os.environ, "PYTHONPATH": "."}, stdout=subprocess.PIPE, check=True)
        analysis, stitching, peak = json.loads(done.stdout)
        share = stitching / analysis
        verdict = "ok" if share <= SHARE_TARGET else f"missed, at most {SHARE_TARGET:.0%}"
        cells = f"{analysis:.1f} | {stitching:.1f} | {share:.0%} | {stitching / packets * 1e6:.2f} | {peak:,}"
        print(f"| {packets:,} | {cells} | {verdict} |", flush=True)


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]] or [1_000_000, 5_000_000, 20_000_000])
