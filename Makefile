# Python 3.11 or later, pip and make are all that a fresh machine needs.
PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/demo

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint types docs check clean

demo: $(STAMP)
	$(BIN)/metarl train maml point-navigation --outer trpo --iterations 60 --meta-batch-size 20 \
		--algorithm.step-size 0.5 --out $(RUN) --overwrite
	$(BIN)/metarl evaluate $(RUN) --tasks 40 --steps 3 --checkpoint best
	$(BIN)/metarl plot $(RUN)

test: $(STAMP)
	$(BIN)/python -m pytest -m "not benchmark"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

# Not quietly: --quiet keeps warnings from --strict, too.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: lint types docs test

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,docs]"
	touch $@

clean:
	rm -rf $(VENV) runs site
