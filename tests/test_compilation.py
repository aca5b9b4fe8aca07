"""The kernels are compiled before the first run, all that it needs, in processes that do not outlive it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from analysis import compilation

ROOT = Path(__file__).resolve().parents[1]
FILES_OF_PARTS = """
import json, sys
from analysis.compilation import PARTS
files = []
for part in PARTS:
    called = set()
    sys.setprofile(lambda frame, event, _: called.add(frame.f_code.co_filename))
    part()
    sys.setprofile(None)
    files.append(sorted(path for path in called if path.endswith("_kernels.py")))
print(json.dumps(files))
"""
"""Without the compiler kernels are functions, and it can be seen which ones a part calls."""

SIGNATURES = """
import sys
from numba.core.dispatcher import Dispatcher
for name, module in list(sys.modules.items()):
    if name.startswith("analysis."):
        for kernel in vars(module).values():
            if isinstance(kernel, Dispatcher):
                for types in kernel.signatures:
                    print(kernel.py_func.__module__, kernel.py_func.__name__, types)
"""
"""Prints what a process has of kernels: each, with the types that it was called with."""

ONE_PART = """
import os
from analysis import compilation
assert compilation.must_compile()
queue, end = os.pipe()
os.write(end, bytes([compilation.PARTS.index(compilation._framing)]))
os.close(end)
assert compilation._helper(queue).wait() == 0
"""


NEXT_TO_KERNELS = """
import numba, numpy as np
from analysis.compilation import NUMBERS
from analysis.flows_kernels import one_way_icmp

one_way_icmp(NUMBERS.astype(np.uint8), NUMBERS.astype(np.uint16), np.zeros(1, np.bool_))
assert one_way_icmp.stats.cache_misses

@numba.njit
def total(values):
    with numba.objmode(mean="float64"):
        mean = float(np.mean(values))
    return sum([each for each in values]) + mean

print(total(np.arange(5.0)))
"""


def signatures(code: str, environment: Mapping[str, str]) -> set[str]:
    """Those that `code` calls."""
    command = [sys.executable, "-c", f"{code}\n{SIGNATURES}"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "compiling" not in run.stderr
    return set(run.stdout.splitlines())


def podtap(*arguments: str | Path, cache: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    environment.pop("NUMBA_DISABLE_JIT", None)
    command = [sys.executable, "podtap.py", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def helpers_of(parent: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, owner = status.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(owner) == parent:
            found.append(int(status.parent.name))
    return found


def test_what_is_compiled_before_the_first_run_is_all_that_the_samples_need(tmp_path: Path) -> None:
    """If this fails, a kernel that the run calls is missing in PARTS, or called there with other types.

    What was called is compared, not what was compiled: so nothing is, where it was before.
    """
    environment = {**os.environ}
    environment.pop("NUMBA_DISABLE_JIT", None)
    code = "from analysis.compilation import *; compile_kernels(1); assert not must_compile()"
    before = signatures(code, environment)
    arguments = ["analyze", "sample_pcaps", "--lake", str(tmp_path)]
    needed = signatures(f"import podtap; podtap.main({arguments}, standalone_mode=False)", environment)
    assert len(needed) > 15
    assert needed - before == set()


def test_a_helper_leaves_what_it_compiles_in_the_cache(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    environment.pop("NUMBA_DISABLE_JIT", None)
    subprocess.run([sys.executable, "-c", ONE_PART], cwd=ROOT, env=environment, check=True)
    assert {path.name.partition(".")[0] for path in tmp_path.rglob("*.nbc")} == {"framing_kernels"}


def test_a_kernel_is_compiled_anew_when_a_file_it_was_made_of_has_changed(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "analysis", tmp_path / "analysis", ignore=shutil.ignore_patterns("__pycache__"))
    decorated = "from analysis.kernel_compiler import *\n@{}\ndef {}(x):\n    return {}\n"
    (tmp_path / "analysis" / "answer_kernels.py").write_text(
        "from analysis.middle_kernels import middle\n" + decorated.format("kernel", "answer", "middle(x)")
    )
    (tmp_path / "analysis" / "middle_kernels.py").write_text(
        "from analysis.inner_kernels import inmost\n" + decorated.format("inner", "middle", "inmost(x)")
    )
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("NUMBA_DISABLE_JIT", None)
    code = "from analysis.answer_kernels import answer as a; print(a(1), sum(a.stats.cache_hits.values()))"

    def run() -> str:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    changed = tmp_path / "analysis" / "inner_kernels.py"
    changed.write_text(decorated.format("inner", "inmost", "x + 1"))
    assert (run(), run()) == ("2 0\n", "2 1\n")
    changed.write_text(decorated.format("inner", "inmost", "x + 2"))
    assert run() == "3 0\n"
    with (tmp_path / "analysis" / "layout.py").open("a") as layout:
        layout.write("# of which the kernel took a number\n")
    assert run() == "3 0\n"


def test_numba_compiles_for_others_what_kernels_do_without(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    environment.pop("NUMBA_DISABLE_JIT", None)
    command = [sys.executable, "-c", NEXT_TO_KERNELS]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout == "12.0\n"


def test_no_two_parts_call_kernels_of_one_file() -> None:
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    run = subprocess.run([sys.executable, "-c", FILES_OF_PARTS], cwd=ROOT, env=environment, capture_output=True)
    files = [Path(path).name for part in json.loads(run.stdout) for path in part]
    assert len(files) == len(set(files))
    entered = re.compile(r"^@kernel$", re.M)
    kernels = [path for path in (ROOT / "analysis").glob("*_kernels.py") if entered.search(path.read_text())]
    assert set(files) == {path.name for path in kernels}


def test_interrupted_while_it_compiles_nothing_is_left_running(tmp_path: Path) -> None:
    run = podtap("analyze", "sample_pcaps", "--jobs", "2", "--lake", tmp_path / "lake", cache=tmp_path / "cache")
    deadline = time.monotonic() + 60
    while not (helpers := helpers_of(run.pid)) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)  # until the helper is more than a fork
    for _ in range(5):  # Python drops an interrupt that comes while it clears away an object
        run.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            stderr = run.communicate(timeout=10)[1]
            break
    else:
        run.kill()
        pytest.fail("it does not end by Ctrl-C")
    assert (run.returncode, len(helpers)) == (130, 1)
    assert stderr.splitlines()[-1] == "interrupted"
    assert not Path(f"/proc/{helpers[0]}").exists()


def test_without_other_processes_one_compiles_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    done: list[int] = []
    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(compilation, "PARTS", (lambda: done.append(1), lambda: done.append(2)))
    compilation.compile_kernels(2)
    assert done == [1, 2]


def test_a_helper_that_fails_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr(compilation, "PARTS", (lambda: done.append(1), lambda: done.append(2)))
    compilation.compile_kernels(2)
    assert done == [1, 2]
