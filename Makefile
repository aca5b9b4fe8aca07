# Each target does all its own set-up and is quick when nothing changed.
#   make demo   analyse the incident in sample_pcaps/ into build/demo-lake and print four reports
#   make test   all tests, the kernels' ones with and without the JIT compiler
#   make lint   ruff, strict types, import rules, docs
#   make lab    a small cluster of network namespaces to play in, until Ctrl-C (as root; LAB="--cni cilium --ipv6")
#   make bench  podtap and its peers on the same captures
#   make docs   write docs/tables.md, reports.md, metrics.md and files.md from the code
#   make lock   take new versions of all dependencies into constraints.txt
#   make clean  remove whatever was built

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_LAKE := build/demo-lake
PODTAP := $(BIN)/podtap

# Answers "why can't this Python make a virtual environment?" before pip can fail in a less clear way.
CHECK_PYTHON := command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing; run: sudo apt-get install python3 python3-venv" >&2; exit 1; }; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "podtap needs Python 3.11 or newer and $(PYTHON) is $$($(PYTHON) -V 2>&1); name another one: make PYTHON=python3.12 ..." >&2; exit 1; }; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "python3-venv is missing; run: sudo apt-get install python3-venv" >&2; exit 1; }
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --root-user-action=ignore -c constraints.txt

# Tests start podtap hundreds of times: Python is to compile it once, whatever the environment says.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint lab bench docs lock clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed-analysis
	rm -rf $(DEMO_LAKE)
	$(PODTAP) analyze sample_pcaps/incident --metadata sample_pcaps/incident/metadata --lake $(DEMO_LAKE)
	$(PODTAP) report retransmits --by workload --node node-b --lake $(DEMO_LAKE)
	$(PODTAP) report paths --limit 3 --lake $(DEMO_LAKE)
	$(PODTAP) report dns --by name --service kube-dns --limit 4 --lake $(DEMO_LAKE)
	$(PODTAP) report flows --by pod --service orders --lake $(DEMO_LAKE)

test: $(VENV)/installed-dev
	$(BIN)/python -c 'from analysis.compilation import compile_kernels; compile_kernels(2)'
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest -m kernel --numprocesses 2

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --quiet --numprocesses 2 tests/test_architecture.py tests/test_docs.py

lab: $(VENV)/installed-dev
	$(BIN)/python -m tests.lab $(LAB)

bench: $(VENV)/installed-dev
	$(BIN)/python benchmarks/run.py

docs: $(VENV)/installed-dev
	$(BIN)/python docs/tables.py
	$(BIN)/python docs/reports.py
	$(BIN)/python docs/metrics.py
	$(BIN)/python docs/files.py

lock:
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv --clear build/lock
	build/lock/bin/python -m pip install --quiet --disable-pip-version-check '.[analysis,capture,dev]'
	build/lock/bin/python -m pip freeze --exclude podtap > constraints.txt

clean:
	rm -rf $(VENV) build dist lake .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find analysis capture tests sample_pcaps benchmarks -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-analysis: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[analysis]'
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[analysis,capture,dev]'
	@touch $@ $(VENV)/installed-analysis
