PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test check proofs bench clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## make .venv with the command mmssl in it (does nothing when up to date)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mmssl needs Python 3.11 or newer, and $(PYTHON) is older: make install PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "Python's venv module is not complete here: run 'apt-get install python3-venv' (as root), then make install again"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	@touch $@

demo: install  ## pre-train and evaluate one small encoder each for image, video and audio
	$(BIN)/python recipes/demo.py

test: install  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

proofs: install  ## run the longer proofs: learning over seeds, kill at random steps, long videos
	$(BIN)/python -m pytest -m heavy

check: install  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: install  ## time the training steps and input paths against their peers
	$(BIN)/python benchmarks/run.py

clean:  ## remove the virtual environment and the demo's runs
	rm -rf $(VENV) runs/demo
