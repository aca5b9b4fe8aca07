"""Shared by the lab's tests: those that build networks ask for `root`."""

from __future__ import annotations

import contextlib
import inspect
import os
import shutil
import subprocess
from typing import Final

import pytest

from tests.lab.bpf import IncompleteTruthError

ATTEMPTS: Final = 3


@pytest.fixture(scope="session")
def root() -> None:
    """Skips where no network namespace can be made; a missing tool is a failure instead."""
    if os.geteuid() != 0:
        pytest.skip("the lab needs root: it builds network namespaces")
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        pytest.skip("the lab needs network namespaces, and this machine allows none (is it a container?)")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool:
    """Tests that run beside each other may keep the kernel from telling one of them all: it asks again."""
    names = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    for _ in range(ATTEMPTS - 1):
        with contextlib.suppress(IncompleteTruthError):
            pyfuncitem.obj(**arguments)
            return True
        if "tmp_path" in arguments:
            shutil.rmtree(arguments["tmp_path"])
            arguments["tmp_path"].mkdir()
    pyfuncitem.obj(**arguments)
    return True
