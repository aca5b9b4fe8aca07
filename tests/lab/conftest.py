"""Shared by the lab's tests: those that build networks ask for `root`."""

from __future__ import annotations

import os
import subprocess

import pytest


@pytest.fixture(scope="session")
def root() -> None:
    """Skips where no network namespace can be made; a missing tool is a failure instead."""
    if os.geteuid() != 0:
        pytest.skip("the lab needs root: it builds network namespaces")
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        pytest.skip("the lab needs network namespaces, and this machine allows none (is it a container?)")
