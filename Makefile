# What a developer and CI run. Each target first sets up what it needs: a .venv with the locked dependencies, made again
# only when they changed. A Redis comes from PATH, else from a wheel among the dependencies.

.POSIX:
.SUFFIXES:
.DEFAULT_GOAL := help

# The interpreter the .venv is made with, 3.11 or later: make setup PYTHON=python3.13
PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready
# With -qq errors only: pip says a line for each package and index else.
PIP = $(BIN)/python -m pip --disable-pip-version-check

# Tests that run at once: most of them wait for processes to start, or for a timer. The fault suite runs one at a time:
# it measures.
JOBS = 4
# make demo KEEP=1 lets the demo run on, to be looked at.
KEEP =
# make lock keeps the versions that still fit; make lock UPGRADE=--upgrade takes the newest.
UPGRADE =
# For every Python and platform that is promised, and with no trace of this machine's index.
LOCK = pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-annotate --no-emit-index-url $(UPGRADE)

.PHONY: help setup fix lint test faults faults-all faults-table mutants check demo bench docs lock image-check clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## Make the .venv with the locked dependencies

$(READY): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Python 3.11 or later is needed and $(PYTHON) is not: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments: apt-get install python3-venv (Debian, Ubuntu)" >&2; exit 1; }
	@echo "Making $(VENV) and installing the locked dependencies (a minute, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -qq --require-hashes -r requirements/dev.txt
	@$(PIP) install -qq --no-deps --no-build-isolation -e .
	@touch $(READY)

fix: $(READY) ## Mend what the linter can mend, and format
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

lint: $(READY) ## Style, types, and the layers of the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(READY) ## Run the tests, with a real Redis and real workers
	$(BIN)/python -m pytest -m "not faults" -n $(JOBS) --dist worksteal

faults: $(READY) ## Kill, stop, cut, and see that nothing is lost: the fault suite, without its slow part
	$(BIN)/python -m pytest tests/faults -m "faults and not slow"

faults-all: $(READY) ## The fault suite, slow scenarios too
	$(BIN)/python -m pytest tests/faults -m faults

faults-table: $(READY) ## Run the whole fault suite and write docs/faults.md anew from what it showed
	$(BIN)/python -m pytest tests/faults -m faults --faults-table docs/faults.md

mutants: $(READY) ## Break the relay in one way after the other, and see that the tests notice: some twenty minutes
	$(BIN)/python tests/faults/mutants.py

check: lint test faults ## What CI runs: lint, test and faults

demo: $(READY) ## Watch 20,000 deployments go through the relay, and count them; KEEP=1: with Flower, until Ctrl-C
	@keep='$(KEEP)'; $(BIN)/relay demo $${keep:+--flower --keep}

bench: $(READY) ## Measure the relay, and plain Celery beside it
	$(BIN)/python -m benchmarks

# dev.txt constrains the others, so that what is tested is what is shipped. uv reads no configuration of pip, hence the index. The image leaves out the extra `embedded`: its
# Redis is a service of its own, and a server that nobody runs is one more thing to keep current.
lock: $(READY) ## Write requirements/*.txt anew from pyproject.toml
	@echo "Installing uv and resolving"
	@$(PIP) install -qq uv
	@index=$${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$$($(PIP) config get global.index-url 2>/dev/null || :)}}; \
	if [ -n "$$index" ]; then UV_DEFAULT_INDEX=$$index; export UV_DEFAULT_INDEX; fi; set -ex; \
	$(BIN)/uv $(LOCK) --all-extras --group dev pyproject.toml -o requirements/dev.txt; \
	$(BIN)/uv $(LOCK) --extra workers --extra gateway --extra kubernetes --extra flower \
		-c requirements/dev.txt pyproject.toml -o requirements/runtime.txt; \
	echo hatchling | $(BIN)/uv $(LOCK) -c requirements/dev.txt - -o requirements/build.txt

docs: $(READY) ## Write the pages anew that are made from the code
	$(BIN)/python docs/make_settings.py
	$(BIN)/python docs/make_metrics.py > docs/metrics.md
	$(BIN)/python docs/make_cli.py > docs/cli.md

image-check: ## Build the container image without an engine, and try it (Debian, root)
	.ci/image-check

clean: ## Remove what the other targets made
	rm -rf $(VENV) build dist .coverage htmlcov .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find relay workers tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
