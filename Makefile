# make demo · make test · make bench · make lint · make types · make web · make pictures
# Everything runs in .venv, made on first use with the pinned versions of requirements/constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq

.DEFAULT_GOAL := help
.PHONY: help install demo test bench test-core lint types web pictures format clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

install: $(INSTALLED)  ## make .venv and install everything into it

# Build isolation would install setuptools anew, unpinned, so it is off and setuptools comes first.
$(INSTALLED): pyproject.toml requirements/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "The pinned versions need Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@echo "Installing into $(VENV) (a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --constraint requirements/constraints.txt setuptools
	@$(PIP) install --constraint requirements/constraints.txt --no-build-isolation --editable '.[diffusers,pocket,dev]'
	@touch $@

demo: $(INSTALLED)  ## distil a few pocket effects, write out/demo; IMAGE=photo.jpg takes your own picture
	@$(BIN)/collectionlora demo $(if $(IMAGE),--image "$(IMAGE)")

test: test-core  ## all tests; those in tests/comfy need a ComfyUI (COMFYUI_PATH, ~/comfy/ComfyUI, or the one around this folder) and Chromium
	@$(BIN)/pytest tests/comfy

bench: $(INSTALLED)  ## the paper's schedule against ours: evaluations, time, memory, quality; writes out/bench
	@$(BIN)/python -m collectionlora.bench.compare $(BENCH)

# Their models are too small for several cores, so as many tests run side by side.
test-core: $(INSTALLED)  ## the tests that need no ComfyUI
	@OMP_NUM_THREADS=1 $(BIN)/pytest --ignore=tests/comfy --numprocesses=logical --maxprocesses=4 --dist=worksteal

lint: $(INSTALLED)  ## ruff: rules and format
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

# mypy does not follow an editable install whose root is the package, so it is given a folder holding that name.
types: $(INSTALLED)  ## mypy on training/ and collection/
	@mkdir -p build/types && ln -sfn ../.. build/types/collectionlora
	@$(BIN)/mypy

# Only to check: the scripts in web/ run as they are. The types want vue and zod, which nothing here uses.
web:  ## types and rules of the scripts in web/; needs Node.js 20 and npm
	@cd tests/web && npm install --silent --no-audit --no-fund --no-package-lock --legacy-peer-deps
	@cd tests/web && npx tsc
	@tests/web/node_modules/.bin/eslint --config tests/web/eslint.config.js web

pictures: $(INSTALLED)  ## take the pictures of workflows and help pages anew; needs a ComfyUI and Chromium
	@$(BIN)/python docs/take_pictures.py $(PICTURES)
	@$(BIN)/python docs/take_states.py

format: $(INSTALLED)  ## let ruff repair and format the code
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

clean:  ## remove what make and the demo wrote
	rm -rf $(VENV) build out *.egg-info
