# Python 3.11 or later, pip and make are all that a fresh machine needs.
PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/demo

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint types docs check generated hooks audit lock bench gpu results metaworld versions clean

demo: $(STAMP)
	$(BIN)/metarl train maml point-navigation --outer trpo --iterations 60 --meta-batch-size 20 \
		--algorithm.step-size 0.5 --out $(RUN) --overwrite
	$(BIN)/metarl evaluate $(RUN) --tasks 40 --steps 3 --checkpoint best
	$(BIN)/metarl plot $(RUN)

# A process for each core, of one thread each: tests are many and small.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not benchmark" --numprocesses auto --dist worksteal --durations 20

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

# Not quietly: --quiet keeps warnings from --strict, too.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: lint types docs test

# All files that are written by programs, from the code and from the store of results. Tests fail where one is stale.
generated: $(STAMP)
	$(BIN)/python docs/generate_commands.py
	$(BIN)/python docs/draw_architecture.py
	$(BIN)/python tests/test_public_surface.py
	$(BIN)/python tests/benchmarks/learners.py --page
	$(BIN)/python tests/benchmarks/results page

# Lint and types before each commit, by the same ruff and mypy: .pre-commit-config.yaml.
hooks: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pre-commit
	$(BIN)/pre-commit install

# Known weaknesses of the installed packages. It asks the Python advisory database, and fails where that has no answer.
audit: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip-audit
	$(BIN)/pip-audit --strict --local --skip-editable

# For a release: its dependencies with versions and hashes, for pip install --require-hashes.
lock: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip-tools
	$(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --constraint constraints.txt \
		--output-file requirements.lock pyproject.toml

# Every speed that docs/performance.md tells of, beside other libraries, into suite.json: half an hour on 2 cores.
bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,docs,bench]"
	$(BIN)/python tests/benchmarks/suite.py --json suite.json

# What docs/results.md and docs/study.md lack, most telling first, two trainings at a time: days in all. Stop it at any
# time (Ctrl-C): it goes on where it was. ROW=name for one row, WORKERS=1 for one training at a time.
WORKERS ?= 2
results: $(STAMP)
	$(BIN)/python tests/benchmarks/results work --workers $(WORKERS) $(if $(ROW),--row $(ROW))

# On a machine with a GPU: the same there, and the tests that need it, into gpu.json.
gpu: $(STAMP)
	$(BIN)/python tests/benchmarks/gpu.py --json gpu.json

# metarl-toolkit was once called metarl: pip would keep both, and each plugin would be offered by two packages.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip uninstall -qq --yes metarl
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,docs]"
	touch $@

# Meta-World pins an old MuJoCo: its plugin is installed, and tested, in an environment of its own.
metaworld:
	$(PYTHON) -m venv .venv-metaworld
	.venv-metaworld/bin/python -m pip uninstall -qq --yes metarl
	.venv-metaworld/bin/python -m pip install --quiet --constraint plugins/metaworld/constraints.txt \
		. ./plugins/metaworld pytest pytest-timeout
	cd plugins/metaworld && ../../.venv-metaworld/bin/python -m pytest

# The tests that meet other packages, with the lowest and the newest versions, on each Python that is found. PIN for
# versions that cannot be installed: make versions PIN=torch==2.13.0.
versions:
	$(PYTHON) tests/versions.py $(if $(PIN),--pin $(PIN))

clean:
	rm -rf $(VENV) .venv-metaworld .versions runs site
