"""What commands load: the base install is click alone, and nobody waits for what they do not use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def modules_loaded_by(code: str) -> set[str]:
    """Modules that `code` loads in a fresh interpreter."""
    program = f"""
import json, sys
before = set(sys.modules)
try:
    {code}
except SystemExit:
    pass
sys.stderr.write("\\n" + json.dumps(sorted(set(sys.modules) - before)))
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(run.stderr.splitlines()[-1]))


def loaded_by(code: str) -> set[str]:
    """Packages beyond the standard library that `code` loads in a fresh interpreter."""
    return {module.partition(".")[0] for module in modules_loaded_by(code)} - sys.stdlib_module_names


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["no-such-command"]], ids=" ".join)
def test_the_base_install_needs_click_only(arguments: list[str]) -> None:
    assert loaded_by(f"import podtap; podtap.main({arguments})") <= {"podtap", "click"}


def test_the_analysis_package_loads_nothing_until_asked() -> None:
    assert loaded_by("import analysis") == {"analysis"}


def test_an_analysis_loads_neither_pandas_nor_duckdb_and_rich_for_a_terminal_only(tmp_path: Path) -> None:
    incident = str(ROOT / "sample_pcaps" / "incident")
    arguments = ["analyze", incident, "--metadata", incident, "--lake", str(tmp_path)]
    loaded = loaded_by(f"import podtap; podtap.main({arguments})")
    assert "pyarrow" in loaded
    assert loaded & {"pandas", "duckdb", "rich"} == set()


def test_an_analysis_of_one_observation_point_loads_no_functions_of_arrow(tmp_path: Path) -> None:
    arguments = ["analyze", str(ROOT / "sample_pcaps" / "dns.pcap"), "--lake", str(tmp_path)]
    loaded = modules_loaded_by(f"import podtap; podtap.main({arguments})")
    assert "pyarrow.parquet" in loaded and "pyarrow.compute" not in loaded


def test_a_command_starts_no_threads_for_linear_algebra() -> None:
    code = "import os; from analysis.cli import importing\nwith importing(): import numpy\n"
    code += "print(len(os.listdir('/proc/self/task')))"
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert run.stdout == b"1\n"


def test_kernels_that_are_compiled_are_run_without_the_compiler() -> None:
    """Also where they look outside of an array: then they say so."""
    before = "from analysis.compilation import BYTES, NUMBERS, dns_kernels, np; ends = np.arange(2, dtype=np.int32); "
    inside = before + "dns_kernels.gather(BYTES, NUMBERS, ends, BYTES[1:])"
    outside = before + "dns_kernels.gather(BYTES, NUMBERS + 64, ends, BYTES[1:])"
    modules_loaded_by(inside)  # compiles, unless that was done before
    loaded = modules_loaded_by(inside)
    assert "numba.core.dispatcher" in loaded and "numba.cpython.rangeobj" not in loaded
    run = subprocess.run([sys.executable, "-c", outside], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1 and "IndexError" in run.stderr.splitlines()[-1]
