# Every target installs its requirements into .venv and works in a fresh clone with Python (3.11 or
# later, with venv and pip) and make. Variables: make demo PYTHON=python3.12 CORES=4

PYTHON ?= python3
CORES ?= all

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# Relative, because make splits names at spaces and a checkout's path may contain some.
VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.installed-runtime
DEV := $(VENV)/.installed-dev
CLUSTER := $(VENV)/.installed-cluster
SLURM := slurmctld slurmd slurm-client munge
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet
SNAKEMAKE := $(BIN)/snakemake --cores $(CORES) --workflow-profile workflow/profiles/default
CODE := gapinit tests docs/examples $(wildcard benchmarks)

.PHONY: help demo all test test-cluster lint chaos bench reference readme browser clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s  %s\n", $$1, $$2 }' Makefile

demo: $(RUNTIME) ## tables 2, 5, 7 and the figures on the embedded default, then the headline table
	$(SNAKEMAKE) --configfile config/demo.yaml
	$(BIN)/gapinit summary results/scenes

all: $(RUNTIME) ## every table and figure of the default configuration, reusing the demo's results
	$(SNAKEMAKE)
	$(BIN)/gapinit summary results/scenes

test: lint ## lint, then all tests, one process per core (at most 8)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal --durations 10

test-cluster: $(CLUSTER) ## install a private Slurm and run the workflow on it (15 minutes)
	@missing=(); for one in $(SLURM); do dpkg-query -W -f '$${Status}\n' $$one 2>/dev/null | grep -q ' installed$$' || missing+=($$one); done; \
	if (($${#missing[@]})); then \
	if [[ $$(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then \
	echo "Missing: $${missing[*]} (Debian's names). Install them, and run this as root: it creates device nodes." >&2; exit 1; fi; \
	echo "Installing $${missing[*]}"; \
	apt-get update --quiet --quiet; \
	DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --quiet --no-install-recommends $${missing[*]} >/dev/null; fi
	@if [[ $$(id -u) != 0 ]]; then echo "Run this as root: it creates device nodes for fake GPUs." >&2; exit 1; fi
	GAPINIT_TEST_CLUSTER=1 $(BIN)/python -m pytest tests/cluster

lint: $(DEV) ## style, types, order of imports, the workflow's own rules
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/snakemake --lint

chaos: $(DEV) ## kill every stage, with one fault of each kind (tests/chaos): about five minutes
	GAPINIT_TEST_CHAOS=1 $(BIN)/python -m pytest -n 0 -s tests/chaos

bench: $(DEV) ## run all programs in benchmarks/ in sequence, then draw their table and figure
	$(BIN)/python -m benchmarks

reference: $(RUNTIME) ## copy the last complete default run to results/reference
	$(BIN)/gapinit reference --results results/scenes --output results/reference

readme: $(RUNTIME) ## write README's headline table and figure from results/reference
	$(BIN)/gapinit readme --reference results/reference --output README.md

browser: ## install Debian's Chromium for the tests of the report (needs root)
	@command -v chromium >/dev/null || { apt-get update && apt-get install --yes chromium; }

clean: ## remove .venv, caches and all untracked files in results/
	@if git rev-parse --is-inside-work-tree >/dev/null 2>&1; \
	then git clean -fdxq -- results; \
	else find results -mindepth 1 ! -name .gitkeep ! -path 'results/reference*' -delete; fi
	rm -rf $(VENV) .snakemake .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find gapinit tests rules -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are written last, so make repeats an interrupted installation.
$(RUNTIME): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gapinit needs Python 3.11 \
	or later, found " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	@echo "Installing into $(VENV) (a few minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --requirement requirements.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV): requirements-dev.txt $(RUNTIME)
	@echo "Installing the requirements of lint and tests into $(VENV)"
	@$(PIP) install --requirement requirements-dev.txt
	@touch $@

$(CLUSTER): requirements-cluster.txt $(DEV)
	@echo "Installing Snakemake's executor for Slurm into $(VENV)"
	@$(PIP) install --requirement requirements-cluster.txt
	@touch $@
