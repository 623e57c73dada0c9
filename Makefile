# Targets of developers and CI. Each first sets up a .venv with the locked dependencies, and again only when they have
# changed. A Redis comes from PATH, else from a wheel among the dependencies.

.POSIX:
.SUFFIXES:
.DEFAULT_GOAL := help

# The interpreter the .venv is made with, 3.11 or later: make setup PYTHON=python3.13
PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready
# Errors only: otherwise pip prints a line for each package and index.
PIP = $(BIN)/python -m pip --disable-pip-version-check

# Concurrent tests: most of them wait for processes to start, or for a timer. The fault suite runs one test at a time,
# because it measures times.
JOBS = 4
# make demo KEEP=1 keeps the demo's processes running.
KEEP =
# make lock keeps the versions that still fit; make lock UPGRADE=--upgrade installs the newest.
UPGRADE =
# For every supported Python and platform, without this machine's index.
LOCK = pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-annotate --no-emit-index-url $(UPGRADE)

.PHONY: help setup fix lint test faults faults-all faults-table mutants check demo bench docs lock image-check clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## Make the .venv with the locked dependencies

$(READY): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Python 3.11 or later is needed and $(PYTHON) is older: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments: apt-get install python3-venv (Debian, Ubuntu)" >&2; exit 1; }
	@echo "Making $(VENV) and installing the locked dependencies (a minute, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -qq --require-hashes -r requirements/dev.txt
	@$(PIP) install -qq --no-deps --no-build-isolation -e .
	@touch $(READY)

fix: $(READY) ## Apply the linter's fixes, and format
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

lint: $(READY) ## Check style, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(READY) ## Run the tests, with a real Redis and real workers
	$(BIN)/python -m pytest -m "not faults" -n $(JOBS) --dist worksteal

faults: $(READY) ## Run the fault suite without its slow scenarios
	$(BIN)/python -m pytest tests/faults -m "faults and not slow"

faults-all: $(READY) ## Run the fault suite with its slow scenarios
	$(BIN)/python -m pytest tests/faults -m faults

faults-table: $(READY) ## Run the whole fault suite and write its observations to docs/faults.md
	$(BIN)/python -m pytest tests/faults -m faults --faults-table docs/faults.md

mutants: $(READY) ## Break the relay in one way at a time, and check that a test fails: about twenty minutes
	$(BIN)/python tests/faults/mutants.py

check: lint test faults ## Run what CI runs: lint, test and faults

demo: $(READY) ## Send 24,782 events through the relay, and account for each; KEEP=1: with Flower, until Ctrl-C
	@keep='$(KEEP)'; $(BIN)/relay demo $${keep:+--flower --keep}

bench: $(READY) ## Measure the relay and plain Celery
	$(BIN)/python -m benchmarks

# dev.txt constrains the others: the shipped versions are the tested ones. uv does not read pip's configuration, hence
# the index. The image leaves out the extra `embedded`, because its Redis is a service of its own.
lock: $(READY) ## Write requirements/*.txt from pyproject.toml
	@echo "Installing uv and resolving"
	@$(PIP) install -qq uv
	@index=$${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$$($(PIP) config get global.index-url 2>/dev/null || :)}}; \
	if [ -n "$$index" ]; then UV_DEFAULT_INDEX=$$index; export UV_DEFAULT_INDEX; fi; set -ex; \
	$(BIN)/uv $(LOCK) --all-extras --group dev pyproject.toml -o requirements/dev.txt; \
	$(BIN)/uv $(LOCK) --extra workers --extra gateway --extra kubernetes --extra flower \
		-c requirements/dev.txt pyproject.toml -o requirements/runtime.txt; \
	echo hatchling | $(BIN)/uv $(LOCK) -c requirements/dev.txt - -o requirements/build.txt

docs: $(READY) ## Write the pages that are generated from the code
	$(BIN)/python docs/make_settings.py
	$(BIN)/python docs/make_metrics.py > docs/metrics.md
	$(BIN)/python docs/make_cli.py > docs/cli.md

image-check: ## Build the container image without an engine, and test it (Debian, root)
	.ci/image-check

clean: ## Remove the other targets' files
	rm -rf $(VENV) build dist .coverage htmlcov .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find relay workers tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
