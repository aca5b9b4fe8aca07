"""What import-linter can't say: allow-lists of imports, the shape of kernels, the size of modules."""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted([ROOT / "podtap.py", *(ROOT / "analysis").rglob("*.py"), *(ROOT / "capture").rglob("*.py")])
KERNELS = [path for path in MODULES if path.stem.endswith("_kernels")]
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imported(path: Path) -> list[str]:
    """Every module that a file imports, at its top or inside a function; `from a import b` gives `a.b`."""
    modules: list[str] = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}: line {node.lineno}: import by the full name"
            modules += [f"{node.module}.{alias.name}" for alias in node.names]
    return modules


def is_part_of(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


@pytest.mark.parametrize("path", KERNELS, ids=name)
def test_kernels_import_numpy_layout_loads_each_other_and_their_compiler_only(path: Path) -> None:
    allowed = {"numpy", "analysis.kernel_compiler", "analysis.layout", "analysis.loads", "typing", "__future__"}
    allowed |= {f"analysis.{other.stem}" for other in KERNELS}
    assert [module for module in imported(path) if not is_part_of(module, allowed)] == []


@pytest.mark.parametrize("path", KERNELS, ids=name)
def test_every_function_of_kernels_is_compiled(path: Path) -> None:
    decorators = {module for module in imported(path) if is_part_of(module, {"analysis.kernel_compiler"})}
    names = {module.rpartition(".")[2] for module in decorators}
    for function in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)):
        assert [ast.unparse(decorator) in names for decorator in function.decorator_list] == [True], function.name


@pytest.mark.parametrize("path", KERNELS, ids=name)
def test_only_python_calls_a_kernel(path: Path) -> None:
    """What is in the cache can be run, but not be compiled into another kernel."""
    here = {name.rpartition(".")[2]: name for name in imported(path)}
    called = {ast.unparse(node.func) for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)}
    kernels = {
        f"analysis.{file.stem}.{node.name}"
        for file in KERNELS
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.FunctionDef) and ast.unparse(node.decorator_list[0]) == "kernel"
    }
    assert kernels and {here.get(name, f"analysis.{path.stem}.{name}") for name in called} & kernels == set()


def test_kernels_are_cached_check_bounds_and_free_the_gil() -> None:
    """A function without a wrapper for Python is part of the kernels that call it, and cached with them only."""
    nodes = ast.walk(ast.parse((ROOT / "analysis" / "kernel_compiler.py").read_text()))
    compilers = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "numba.njit"]
    assert len(compilers) == 2
    for call in compilers:
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert (options["boundscheck"], options["nogil"]) == ("True", "True"), f"line {call.lineno}"
        kind = options["pipeline_class"], "cache" in options, "no_cpython_wrapper" in options
        assert kind in {("KernelCompiler", True, False), ("PartCompiler", False, True)}, f"line {call.lineno}"


@pytest.mark.parametrize("path", KERNELS, ids=name)
def test_a_test_marked_kernel_imports_the_kernels_or_their_wrapper(path: Path) -> None:
    kernels = f"analysis.{path.stem}"
    wrappers: set[str] = set()
    for file in (path, *(file for file in KERNELS if any(is_part_of(i, {kernels}) for i in imported(file)))):
        own = f"analysis.{file.stem}"
        wrappers |= {
            f"analysis.{module.stem}" for module in MODULES if any(is_part_of(i, {own}) for i in imported(module))
        }
    tests = [test for test in TESTS if re.search(r"^(@|pytestmark = )pytest\.mark\.kernel", test.read_text(), re.M)]
    assert [test.name for test in tests if any(is_part_of(i, wrappers | {kernels}) for i in imported(test))] != []


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_fits_the_head(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= (800 if path in KERNELS else 500)


def test_the_contract_imports_the_standard_library_only() -> None:
    contract = ROOT / "capture" / "contract.py"
    modules = set(imported(contract)) if contract.exists() else set()
    assert [module for module in modules if module.partition(".")[0] not in sys.stdlib_module_names] == []
