# `make` alone lists the targets. Everything happens in .venv and .state, inside this folder.
PYTHON ?= python3.11
BIN := .venv/bin
# One place for every cache, pip's included; point PIP_CACHE_DIR at a shared one to save downloads.
export PIP_CACHE_DIR ?= $(CURDIR)/.state/pip
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PATH := $(CURDIR)/$(BIN):$(PATH)
.DEFAULT_GOAL := help
.PHONY: help setup run server-run test test-long ui serve image lint size lock clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The stamp is newer than both files once their contents are installed.
.venv/installed: requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
	  { echo "Python 3.11 is needed: put python3.11 on PATH or set PYTHON=/path/to/python" >&2; exit 1; }
	@echo "Installing requirements.lock into .venv (minutes the first time) ..."
	@start=$$(date +%s); \
	$(BIN)/python -m pip install --quiet --requirement requirements.lock && \
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable . && \
	echo "time: install $$(( $$(date +%s) - start )) s" && touch $@

setup: .venv/installed  ## Create .venv with the locked dependencies and this package

run: setup  ## Run the whole job on data/ and end with the comparison table
	@tumorseg run

server-run: setup  ## The same on PostgreSQL and S3, run here for it (needs PostgreSQL's programs)
	@python -m deploy.local

test: setup  ## Check the code, the end-to-end run included
	@python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m "not long"

test-long: setup  ## Kill servers, workers and runs, and check that nothing is lost
	@python -m pytest --numprocesses auto --maxprocesses 2 --dist loadfile --no-loadscope-reorder -m long

ui: setup  ## Open MLflow on port 5000 and Prefect on port 4200
	@tumorseg ui

serve: setup  ## Serve the packaged champion on port 3000
	@tumorseg serve

image: setup  ## Make a container image of the packaged champion (needs Docker or Podman)
	@engine=$$(command -v docker || command -v podman) || \
	  { echo "image: neither docker nor podman is on PATH: install one of them" >&2; exit 1; }; \
	eval "$$(tumorseg env)" && engine=$${engine##*/} && tag=$$(tumorseg package) && \
	bentoml containerize --backend $$engine $$tag && \
	echo "run it: $$engine run -p 3000:3000 -e TUMORSEG_API_KEY=... --stop-timeout 150 $$tag" && \
	echo "        (a stop waits for the answers to all that was accepted)"

lint: setup  ## Format, lint, check types and the direction of imports
	@ruff format .
	@ruff check --fix .
	@mypy
	@lint-imports

size:  ## Count lines and modules of each room
	@printf '%-24s %7s %7s\n' '' modules lines; \
	count() { printf '%-24s %7s %7s\n' "$$1" $$(git ls-files "$$@" | wc -l) $$(git ls-files "$$@" | xargs cat | wc -l); }; \
	for room in $$(git ls-files src/tumorseg | cut -d/ -f3 | grep -v "[.]" | sort -u); do count "src/tumorseg/$$room/*.py"; done; \
	for place in src pipelines tests benchmarks deploy; do count "$$place/*.py"; done; \
	count 'src/*.html' 'src/*.css' 'src/*.js' 'src/*.md'

lock:  ## Resolve the dependencies of pyproject.toml anew into requirements.lock
	rm -rf .state/lock && $(PYTHON) -m venv .state/lock
	.state/lock/bin/pip install --quiet torch==2.13.0
	.state/lock/bin/pip install --quiet --editable '.[dev]'
	@{ echo "# Written by 'make lock'. torch carries no build suffix, so that pip takes the build"; \
	   echo "# that its index offers: CPU or CUDA."; \
	   .state/lock/bin/pip freeze --all --exclude-editable | grep -v '^pip==' | sed 's/^\(torch==[0-9.]*\)+.*/\1/'; \
	} > requirements.lock.new && mv requirements.lock.new requirements.lock
	rm -rf .state/lock

clean:  ## Remove what a run made; data/ and DVC's cache of it stay
	rm -rf artifacts reports .state/prefect .state/mlflow* .state/bentoml .state/matplotlib .state/run
