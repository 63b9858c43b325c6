# Two commands do it: `make demo` and `make test`. Both set up .venv first, and both can be repeated.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
BIN := .venv/bin
# Tests run beside each other, one thread each; a worker with vLLM engines takes some 4 GB.
WORKERS ?= 2
STAMP := .venv/.ready
# Tests start many interpreters, each of which would compile everything again where none may keep what it compiled.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip
# Exactly what a lock lists, by its hashes; what is built is built with what requirements/build.lock has.
LOCKED := $(PIP) install --quiet --require-hashes --no-deps --no-build-isolation --use-pep517 --requirement
# vLLM is for NVIDIA's GPUs, and has a CPU build for this machine alone; elsewhere its tests are left out.
GPU := $(shell command -v nvidia-smi 2>/dev/null)
VLLM := $(or $(GPU),$(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)))
TIERS := not browser$(if $(VLLM),, and not vllm)
# Of `make test-versions`, e.g. TORCH===2.11.0 TRANSFORMERS===5.17.0; the newest where nothing is said.
TORCH ?=
TRANSFORMERS ?=
OTHER := .venv-versions

.PHONY: help setup demo test test-fast test-browser chromium test-install test-versions lint typecheck docs audit lock smoke ablate campaign clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP)  ## create .venv and install what is needed

# With a GPU, vLLM's CUDA build brings the torch it was compiled for; versions are those that pyproject.toml allows. Without
# one, everything is locked but torch, whose build depends on the machine: its version stands in constraints.txt, and a
# CUDA build of it does not load without what it names. (`set -e`, for macOS has a make that knows no .SHELLFLAGS.)
$(STAMP): pyproject.toml constraints.txt $(wildcard requirements/*.lock)
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else 0'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(LOCKED) requirements/build.lock
	$(if $(VLLM),:,echo "vLLM has no build for $$(uname -s) on $$(uname -m): everything else is installed")
	set -e; if test -n "$(GPU)"; then \
		$(PIP) install --quiet --editable '.[dev,vllm]'; \
	else \
		$(LOCKED) requirements/cpu.lock; \
		$(PIP) install --quiet --no-deps --constraint constraints.txt torch; \
		$(BIN)/python -c 'import torch' 2>/dev/null || { \
			$(PIP) install --quiet --constraint constraints.txt torch; $(PIP) uninstall --quiet --yes triton; }; \
		$(PIP) install --quiet --no-build-isolation --constraint constraints.txt --editable '.[dev]'; \
	fi
	$(LOCKED) requirements/evalplus.lock
	touch $(STAMP)

demo: setup  ## distil the toy student with iw and see its accuracy before and after
	$(BIN)/iwopd train

test: setup  ## run every test but those of test-browser
	$(BIN)/python -m pytest --numprocesses $(WORKERS) -m '$(TIERS)'

test-browser: setup chromium  ## read the reports in a real Chromium
	$(LOCKED) requirements/browser.lock
	$(BIN)/python -m pytest -m browser

chromium:  ## install it, where that is allowed (root, Debian) and there is none
	if [[ -z "$${CHROMIUM:-}" ]] && ! command -v chromium chromium-browser google-chrome >/dev/null; then \
		[[ $$(id -u) = 0 ]] && command -v apt-get >/dev/null \
			|| { echo 'there is no chromium: install it, or name it with CHROMIUM=PATH' >&2; exit 1; }; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes chromium fonts-dejavu-core >/dev/null; \
	fi

test-fast: setup  ## run the tests that start no process of their own
	$(BIN)/python -m pytest --numprocesses $(WORKERS) -m 'unit or cli'

test-install: setup  ## the wheel in a new environment, with what it requires from PyPI (minutes)
	$(BIN)/python scripts/check_install.py

test-versions:  ## the fast tests with other versions: make test-versions TORCH===2.11.0 TRANSFORMERS===5.17.0
	test -x $(OTHER)/bin/python || $(PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/python -m pip install --quiet --editable '.[dev]' 'torch$(TORCH)' 'transformers$(TRANSFORMERS)'
	$(OTHER)/bin/python -m pytest --numprocesses $(WORKERS) -m 'unit or cli'

lint: setup docs  ## style, the layers, and the links of the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

typecheck: setup  ## pyright, strict on numerics, config, types and errors
	$(BIN)/pyright --pythonpath $(BIN)/python

audit: setup  ## known vulnerabilities of what is installed (pip-audit asks PyPI)
	test -x .venv/audit/bin/pip-audit || { $(PYTHON) -m venv .venv/audit && .venv/audit/bin/python -m pip install --quiet pip-audit==2.10.1; }
	.venv/audit/bin/pip-audit --skip-editable --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

lock:  ## make requirements/*.lock again, with the newest versions that fit
	$(PYTHON) scripts/lock.py

docs: setup  ## the documentation as a site in site/, every link checked; nothing is fetched
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

smoke: setup  ## the whole program once, at the smallest size
	$(BIN)/iwopd train +experiment=smoke

ablate: setup  ## the study: four weightings, eight seeds, with statistics and a report (about a quarter of an hour)
	$(BIN)/iwopd ablate run.dir=runs/ablate-toy eval.greedy=false run.samples=0

campaign: setup  ## interrupt training 300 times at random moments, and resume it each time (about an hour)
	$(BIN)/python scripts/campaign.py --kills 300 --minutes 60 --workers 2 \
		--rollouts hf,hf,vllm,hf,vllm_server,hf,hf,study --out runs/campaign

clean:  ## remove .venv and caches; runs/ stays
	rm -rf .venv .venv-versions .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist build site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
