PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test soak bench lint format clean

demo: $(VENV)/.installed
	$(BIN)/holdfast demo

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2

# What takes minutes, once; then the suite of faults ten times, killed at other moments each time, and oftener: for
# what fails once in a while.
# About two hours on two cores; ROUNDS=3 for less, KILLS=50 for more
ROUNDS ?= 10
KILLS ?= 20
soak: $(VENV)/.installed-test
	HOLDFAST_SOAK=1 $(BIN)/python -m pytest -n 2 -m soak
	set -e; for round in $$(seq 1 $(ROUNDS)); do \
	  echo "round $$round of $(ROUNDS)"; \
	  HOLDFAST_SOAK_SEED=$$round HOLDFAST_KILLS=$(KILLS) $(BIN)/python -m pytest -n 2 tests/faults; \
	done

# Three rounds of everything: about an hour on two idle cores; ARGS="--quick" for a minute.
# Each script has options of its own: python benchmarks/preference_step.py --help
bench: $(VENV)/.installed-bench
	$(BIN)/python benchmarks/preference_step.py $(ARGS)
	$(BIN)/python benchmarks/sft_step.py $(ARGS)
	$(BIN)/python benchmarks/linear_logprob.py $(ARGS)

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --editable '.[test]'
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(PIP) --editable '.[bench]'
	touch $@
