# make demo   set up, then compile a small network and compare it with PyTorch
# make test   set up, then lint, types and tests

PYTHON ?= python3
VENV ?= .venv
# A plain "torch" may bring a CUDA build of several gigabytes, which nothing here uses. Name another build to
# change that, within the range of pyproject.toml: make demo TORCH=torch==2.13.0+cpu
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin

.PHONY: demo test lint clean

demo: $(VENV)/.installed-demo
	$(BIN)/qcompile demo

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist demo-bundle qcompiler.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One recipe for both sets of packages; a stamp is older than pyproject.toml when that has changed.
$(VENV)/.installed-demo: EXTRAS := demo
$(VENV)/.installed-dev: EXTRAS := cuda,dev,demo
$(VENV)/.installed-demo $(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --disable-pip-version-check --editable ".[$(EXTRAS)]"
	touch $@
