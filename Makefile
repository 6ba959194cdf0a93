# Every target sets up its own environment in .venv (python3.11, the exact versions of constraints.txt): nothing
# needs to be installed or active before. `make` alone prints what there is.

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
OUT    ?= out

# One thread in the linear algebra of each test process: the processes are what runs in parallel.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench bench-gram bench-products bench-posterior bench-methods clean

help:  ## this list
	@awk -F ':.*##' '/^[a-z-]+:.*##/ { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP)  ## digits and sinusoids in under four minutes: tables, and a picture whose path comes last
	@$(BIN)/python -m experiments.demo --out $(OUT)/demo

test: $(STAMP)  ## the whole test suite, README and docstrings included
	@$(TEST_ENV) $(BIN)/python -m pytest -q --numprocesses=auto $(ARGS)

lint: $(STAMP)  ## ruff (rules and format) and mypy (strict)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(STAMP)  ## timings, as a table and as JSON with the environment
	@$(BIN)/python -m benchmarks --out $(OUT)/bench

bench-gram: $(STAMP)  ## the dense kernel against vmap(jacrev): seconds, floors and peak memory, half an hour
	@$(BIN)/python -m benchmarks.gram --threads 2 --out $(OUT)/bench

bench-products: $(STAMP)  ## Fisher products against a training step, finite differences and double backward: minutes
	@$(BIN)/python -m benchmarks.products --threads 2 --out $(OUT)/bench

bench-posterior: $(STAMP)  ## posteriors of 300 to 100,000 examples and up to 75 million parameters: half an hour
	@$(BIN)/python -m benchmarks.posterior --threads 2 --out $(OUT)/bench

bench-methods: $(STAMP)  ## every way to a posterior against the factorised one, more data
	@$(BIN)/python -m benchmarks.methods --threads 2 --out $(OUT)/bench

clean:  ## remove the environment, the caches and what runs wrote
	rm -rf $(VENV) $(OUT) .mypy_cache .pytest_cache .ruff_cache

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; name another 3.11 or later: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || { echo "Setting up $(VENV) ..."; $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
