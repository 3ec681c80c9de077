# Everything runs in .venv, which `make` builds from the pinned constraints. Python 3.11 to 3.13 is all it needs.
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv

.DEFAULT_GOAL := install
.PHONY: help install style quality test test-oldest test-slow demo bench constraints

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: .venv/.installed  ## build .venv with all extras (the default)

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "reid_hub needs Python 3.11 to 3.13, got $$($(PYTHON) --version): run make PYTHON=python3.12"; exit 1; }
	test -x $(UV) || { $(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet $$(grep '^uv==' constraints.txt); }
	$(UV) pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[all]' --group dev
	@touch $@

style: install  ## format the code
	$(BIN)/ruff check --fix reid_hub examples benchmarks tests
	$(BIN)/ruff format reid_hub examples benchmarks tests

quality: install  ## check formatting, lint and types
	$(BIN)/ruff check reid_hub examples benchmarks tests
	$(BIN)/ruff format --check reid_hub examples benchmarks tests
	$(BIN)/mypy

test: install  ## run the fast tests, one process per core
	$(BIN)/python -m pytest -n auto

test-oldest: .venv-oldest/.installed  ## run the fast tests on the oldest versions that pyproject.toml admits
	.venv-oldest/bin/python -m pytest -n auto

.venv-oldest/.installed: pyproject.toml | install
	test -x .venv-oldest/bin/python || $(UV) venv --quiet --python $(BIN)/python .venv-oldest
	$(UV) pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct -e '.[all]' --group dev
	@touch $@

test-slow: install  ## run the tests that take minutes
	$(BIN)/python -m pytest -m slow

demo: install  ## train, evaluate, save, load back, index and search on synthetic people
	$(BIN)/reid-hub demo

bench: install  ## measure speed and memory: input pipeline, evaluation, refinement, search
	$(BIN)/python benchmarks/run.py input_pipeline
	$(BIN)/python benchmarks/run.py evaluation
	$(BIN)/python benchmarks/run.py oskt_speed
	$(BIN)/python benchmarks/run.py index_search

constraints:  ## rewrite constraints.txt: pin every version (needs uv)
	$(UV) export --quiet --no-hashes --no-emit-project --no-header --no-annotate --all-extras --all-groups -o constraints.txt
	rm -f uv.lock
