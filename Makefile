# Every target sets up what it needs, in a virtual environment inside this folder.
#
#   make demo                  train on both backends, clean a file with each, write a report
#   make demo DATA=folder      the same on your own recordings
#   make test                  lint and tests          make test-slow   the long tests
#   make lint                  ruff and pyright        make bench       benchmarks, as JSON
#   make setup                 only the environment    make clean       remove what was made
#   make plan                  the table of docs/tpu.md, compiled anew: hours

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
DATA ?=
OUT ?= demo-out
PLAN_ARGS ?=
BENCH_ARGS ?=
# Two processes; a file stays in one, since its tests share what is slow to make. The order is that of conftest.py.
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder

BIN := $(VENV)/bin
STAMP := $(VENV)/.parivox-installed
BUILD_LOG := $(VENV)/deepspeed-build.log
PIP_INSTALL = $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

.PHONY: help setup demo test test-slow lint bench plan deepspeed-ops constraints clean distclean

help:
	@sed -n '/^$$/q; s/^# \{0,1\}//p' Makefile

setup: $(STAMP)
	@echo "Ready. Try: make demo, or: source $(BIN)/activate && parivox doctor"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Parivox needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@echo "Setting up $(VENV), once: about 3 minutes on a fast line, mostly downloads."
	@$(PYTHON) -m venv $(VENV)
# The extras praat and media are here for the tests; both bring GPL parts, which the core has not.
	@echo "[1/4] parivox, the audio libraries, the scores and the rest"
	@$(PIP_INSTALL) -e '.[praat,media,metrics,ui,export]'
	@echo "[2/4] the JAX backend"
	@$(PIP_INSTALL) -e '.[jax]'
	@echo "[3/4] the PyTorch backend and DeepSpeed (the largest download)"
	@$(PIP_INSTALL) -e '.[torch,deepspeed]'
	@echo "[4/4] the test and lint tools"
	@$(PIP_INSTALL) -e '.[changed,dev]'
# libtpu lies beside the environment, for the tests and make plan: inside, JAX would look for a TPU at every start.
	@if [ "$$(uname -sm)" = "Linux x86_64" ]; then $(PIP_INSTALL) --no-deps --upgrade --target $(VENV)/plan libtpu; fi
	@touch $@
	@echo "Environment ready."

# DeepSpeed compiles a C++ extension at its first use: a minute or two, once for each environment.
# The compilation runs beside the first steps of a target, which need no DeepSpeed.
define start_build
echo "DeepSpeed's extension is prepared in the background: a minute or two the first time, then seconds."; \
$(BIN)/python -m torch_impl.engine </dev/null >$(BUILD_LOG) 2>&1 & build=$$!
endef
define await_build
wait $$build || { tail -n 20 $(BUILD_LOG); echo "The DeepSpeed build failed; all of it: $(BUILD_LOG)"; exit 1; }
endef

define run_lint
echo "ruff: style and common mistakes"; \
$(BIN)/ruff check .; \
$(BIN)/ruff format --check --quiet . || { echo "Not formatted; run: $(BIN)/ruff format ."; exit 1; }; \
echo "pyright: types (about a minute)"; \
$(BIN)/pyright --pythonpath $(BIN)/python
endef

deepspeed-ops: $(STAMP)
	@echo "Compiling DeepSpeed's extension: a minute or two the first time, then seconds."
	@$(BIN)/python -m torch_impl.engine

demo: $(STAMP)
	@$(start_build); \
	$(BIN)/parivox demo --out "$(OUT)" $(if $(DATA),--data "$(DATA)"); \
	$(await_build)

test: $(STAMP)
	@$(start_build); \
	$(run_lint); \
	$(await_build); \
	echo "Tests (the long ones: make test-slow)"; \
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-slow: $(STAMP)
	@$(start_build); $(await_build); \
	echo "The long tests"; \
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

lint: $(STAMP)
	@$(run_lint)

# BENCH_ARGS="--only inference" measures one part; "--quick" shows in minutes that all of them work.
bench: $(STAMP)
	@$(start_build); $(await_build); \
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

# PLAN_ARGS="--only denoise --topology v5e:2x2" compiles some cells and keeps the others.
plan: $(STAMP)
	@PYTHONPATH=$(abspath $(VENV))/plan $(BIN)/python -m benchmarks.plan $(PLAN_ARGS)

# How constraints.txt is made: the newest versions that fit pyproject.toml, from a clean environment.
# A local version ("+cpu" of a torch wheel) is left out, so that any build of that version fits.
constraints:
	@echo "Resolving a clean environment: several minutes."
	@folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	$(PYTHON) -m venv "$$folder/venv"; \
	"$$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check --no-compile '.[jax,torch,deepspeed,praat,media,metrics,changed,ui,export,plan,dev]'; \
	{ echo "# Every package of the environment that make sets up. Made by: make constraints"; \
	  "$$folder/venv/bin/python" -m pip freeze --exclude parivox | sed -E 's/\+[A-Za-z0-9.]+$$//'; \
	} >"$$folder/constraints.txt"; \
	mv "$$folder/constraints.txt" constraints.txt
	@echo "constraints.txt written; run: make test"

clean:
	rm -rf build dist demo-out *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
