# Everything a newcomer needs: `make demo`, `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
CODE_PATHS := ATEN_CPU_CAPABILITY=avx2 ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 SA2DEPTH_OPS=torch \
	SA2DEPTH_CPU_PATH=avx2 SA2DEPTH_CPU_PATH=portable SA2DEPTH_TEST_THREADS=4
export NO_ALBUMENTATIONS_UPDATE := 1
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  \033[1m%-13s\033[0m %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt hatch_build.py $(wildcard csrc/cpu/*)
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] < (3, 14) else f"sa2depth needs Python 3.11 to 3.13, and $(PYTHON) is {sys.version.split()[0]}. Name another one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

setup: $(STAMP) ## create .venv with pinned versions (no compiler needed)

demo: $(STAMP) ## train, evaluate and predict on generated scenes: about four minutes on two cores
	$(BIN)/python -m sa2depth.demo

test: lint type $(STAMP) ## check style and types, run every test that needs no GPU, then `make test-rounding`
	$(BIN)/python -m pytest -n auto --dist loadgroup
	$(MAKE) test-rounding

test-fast: $(STAMP) ## the quick tests, for daily use: under three minutes on two cores
	$(BIN)/python -m pytest -q -n auto --dist loadgroup -m "not slow"

# Two more code paths: the simplest kernels of PyTorch, oneDNN and our library, and simulated rounding (tests/rounding.py).
test-rounding: $(STAMP) ## run the tests that compare float32 results of a network again, under two other code paths
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 SA2DEPTH_CPU_PATH=portable $(BIN)/python -m pytest -q -n auto -m code_path
	SA2DEPTH_TEST_ROUNDING=3,16 $(BIN)/python -m pytest -q -n auto -m code_path

test-paths: $(STAMP) ## run the whole suite under each code path of this processor (needs many cores)
	@failed=; for setting in $(CODE_PATHS); do \
		echo "== $$setting"; \
		env $$setting $(BIN)/python -m pytest -q -n auto --dist loadgroup || failed="$$failed $$setting"; \
	done; test -z "$$failed" || { echo "failed under:$$failed"; exit 1; }

test-gpu: $(STAMP) ## run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu tests

bench: $(STAMP) ## time operators, parts and whole networks, in plain PyTorch and with the fast operators
	$(BIN)/sa2depth bench

doctor: $(STAMP) ## show what this machine has, and test each fast operator
	$(BIN)/sa2depth doctor

lint: $(STAMP) ## ruff checks style and formatting; import-linter checks which package may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache

format: $(STAMP) ## ruff fixes style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(STAMP) ## check types with mypy --strict
	$(BIN)/mypy

clean: ## remove what building and running leaves behind (not .venv, not runs/)
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

.PHONY: help setup demo test test-fast test-rounding test-paths test-gpu bench doctor lint format type clean
