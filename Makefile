# Two commands on a fresh machine: `make demo && make test`. Everything lives in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint clean

# Rebuilt when the dependencies change.
$(VENV)/.installed: pyproject.toml src/_convstem_autoload.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

demo: $(VENV)/.installed  ## first run: real images through the embedded weights, in both factories
	$(BIN)/convstem demo

test: $(VENV)/.installed  ## the everyday tests, quick and offline; everything: make test TESTS=--full
	$(BIN)/python -m pytest $(TESTS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) dist build demo_output
