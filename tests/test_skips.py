"""Green must mean tested: in CI, conftest.py turns a skip into a failure unless its reason is allowed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNEXPECTED = "import pytest\ndef test_it(): pytest.skip('no tshark')"
UNEXPECTED_MODULE = "import pytest\npytest.skip('no tshark', allow_module_level=True)"
EXPECTED = "import pytest\n@pytest.mark.skipif(True, reason='shared captures are absent')\ndef test_it(): ..."


@pytest.mark.parametrize(
    ("source", "ci", "exit_code"),
    [
        (UNEXPECTED, "true", 1),
        (UNEXPECTED, "", 0),
        (UNEXPECTED_MODULE, "true", 2),
        (EXPECTED, "true", 0),
    ],
    ids=["a test in CI", "a test elsewhere", "a module in CI", "an allowed reason in CI"],
)
def test_an_unexpected_skip_fails_in_ci(tmp_path: Path, source: str, ci: str, exit_code: int) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_it.py").write_text(source + "\n\ndef test_runs(): ...\n")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
    )
    assert run.returncode == exit_code, run.stdout
