# Two commands on a fresh machine: `make demo` and `make test`. Each first makes .venv (Python >= 3.11) with the exact
# set of versions in constraints.txt, once per content of pyproject.toml and constraints.txt.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
RUN := $(VENV)/bin/
WORKERS ?= 2
DEMO ?= demo
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
KEY := $(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
READY := $(VENV)/.installed-$(KEY)

# One thread per concurrent task: sums keep their order, and two test workers do not fight for two cores.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: help
help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

.PHONY: install
install: $(READY) ## make .venv with everything that the commands below need

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "eo-batch needs Python 3.11 or newer: install it, or run make PYTHON=/path/to/python" >&2; exit 1; }
	@test -x $(RUN)python || $(PYTHON) -m venv $(VENV)
	$(RUN)python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[dev]"
	@rm -f $(VENV)/.installed-* && touch $@

.PHONY: demo
demo: $(READY) ## write a demo region, map it, print figures and the paths of the results
	$(RUN)eo-batch demo --out $(DEMO)

.PHONY: test
test: lint ## everything that must hold: lint, then all tests but the slow ones
	$(RUN)python -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not gpu"

.PHONY: lint
lint: $(READY) ## ruff, formatting, mypy --strict, layers
	$(RUN)ruff check .
	$(RUN)ruff format --check .
	$(RUN)mypy
	$(RUN)lint-imports

.PHONY: slow
slow: $(READY) ## the slow tests
	$(RUN)python -m pytest -n $(WORKERS) --dist worksteal -m "slow and not gpu"

.PHONY: faults
faults: $(READY) ## every fault, every operation on disk failing once in four ways, and chaos for a while: the long version
	EO_BATCH_FAULT_STEP=1 $(RUN)python -m pytest -s tests/faults --timeout 7200

.PHONY: bench
bench: $(READY) ## every figure that the README quotes
	for figure in $(filter-out benchmarks/machine.py,$(wildcard benchmarks/*.py)); do echo "== $$figure"; $(RUN)python $$figure || exit 1; done

.PHONY: notebooks
notebooks: $(READY) ## execute notebooks/*.py and keep the outputs in the .ipynb beside each
	$(RUN)python notebooks/execute.py

.PHONY: docs
docs: $(READY) ## write the generated reference pages again
	$(RUN)python docs/generate.py

.PHONY: clean
clean: ## remove caches and the demo, keep .venv
	rm -rf $(DEMO) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
