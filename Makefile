# Two commands: `make demo` and `make test`. Each starts from nothing and needs only Python 3.11+ and the network's PyPI.
# For every change: `make quick`.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# A process for each core, and all tests of a file in one of them.
PARALLEL := -n auto --dist loadfile

.PHONY: demo test quick lint types bench install clean

demo: $(VENV)/.demo
	$(BIN)/alphaedit compare

test: install
	$(BIN)/pytest $(PARALLEL)

quick: install
	$(BIN)/pytest $(PARALLEL) --hypothesis-profile=quick -m "not slow and not real_model and not easyedit and not browser"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

bench: install
	for script in covariance projection hook attention targets threads history solve; do echo; echo "== benchmarks/$$script.py"; $(BIN)/python benchmarks/$$script.py || exit 1; done

include docs/paper.mk

.PHONY: docs dist

# The site needs neither torch nor the package: the reference is read from the source.
docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

dist: $(VENV)/.dist
	rm -rf build dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

install: $(VENV)/.installed

# What the demo needs: about half of what the tests need.
$(VENV)/.demo: setup.cfg pyproject.toml constraints.txt requirements-demo.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[gguf]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-demo.txt
	touch $@

$(VENV)/.installed: $(VENV)/.demo requirements-tests.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[tests,evaluation,gguf]' ruff mypy
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-tests.txt
	touch $@

$(VENV)/.docs: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt mkdocs-material 'mkdocstrings[python]' ruff
	touch $@

$(VENV)/.dist: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt build setuptools twine
	touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info
