# Two commands do it: `make demo` and `make test`. Both set up .venv first, and both can be repeated.
.DEFAULT_GOAL := help
SHELL := bash
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready

.PHONY: help setup demo test lint typecheck smoke ablate clean

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## create .venv and install what is needed

# torch comes first and alone: with it in place, no other package can pull in another build of it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else 0'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: setup  ## distil the toy student with iw and see its accuracy before and after
	$(BIN)/iwopd train

test: setup  ## run every test
	$(BIN)/python -m pytest

lint: setup  ## style, and the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

typecheck: setup  ## pyright, strict on numerics, config, types and errors
	$(BIN)/pyright --pythonpath $(BIN)/python

smoke: setup  ## the whole program once, at the smallest size
	$(BIN)/iwopd train +experiment=smoke

ablate: setup  ## the study: four weightings, five seeds, with statistics and a report (about a quarter of an hour)
	$(BIN)/iwopd ablate run.dir=runs/ablate-toy eval.greedy=false run.samples=0

clean:  ## remove .venv and caches; runs/ stays
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
