# `make help` lists the targets. Two commands on a fresh machine: `make demo && make test`. Everything lives in .venv.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= test
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install demo test lint docs licences audit clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):[^#]*## /make \1|/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r name what; do \
		printf '%-14s %s\n' "$$name" "$$what"; done

# Rebuilt when the dependencies change.
$(VENV)/.installed: pyproject.toml src/_convstem_autoload.py
	@echo "installing into $(VENV): several gigabytes with torch and what the tests use, some minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS)]"
	touch $@

install: $(VENV)/.installed  ## this checkout and the tools for tests, editable, in .venv; the targets below do it themselves

demo: $(VENV)/.installed  ## first run: real images through the embedded weights, in both factories
	$(BIN)/convstem demo

test: export OMP_NUM_THREADS ?= 1  # one thread for each test process
test: $(VENV)/.installed  ## the everyday tests, quick and offline, on all cores; everything: make test TESTS=--full
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal $(TESTS)

lint: $(VENV)/.installed  ## ruff and mypy, as in CI and in the pre-commit hook
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

docs: $(VENV)/.docs  ## the documentation as a site in build/site; a broken link fails
	$(BIN)/python -m tools.pages --check
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/mkdocs build --strict --quiet

$(VENV)/.audit: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[audit]"
	touch $@

licences: $(VENV)/.audit  ## licences of everything that is installed here
	$(BIN)/pip-licenses --order=license

audit: $(VENV)/.audit  ## known vulnerabilities of the dependencies; asks the Python Package Index about each
	$(BIN)/pip-audit --local --skip-editable

clean:  ## remove .venv and what was built or printed into this folder
	rm -rf $(VENV) dist build demo_output
