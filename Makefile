# Every target does its own set-up. `make quickstart` and `make test` need git, make, python3 >= 3.11
# with venv, and a package registry that pip reaches; nothing else.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HERMES_CACHE ?= $(CURDIR)/build/cache
export PYTHONDONTWRITEBYTECODE := 1
WORKERS ?= 2
DOCKER ?= docker
VERSION := 0.1.0

.PHONY: help quickstart test check lint generate model bench requirements clean images cluster cluster-down e2e

help: ## what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

quickstart: $(VENV)/runtime.done ## run the main job on this machine, and print where the report is
	$(BIN)/hermes run -f examples/quickstart.yaml

test: lint ## lint, then every test but those of `make e2e`
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not cluster and not timing"

check: $(VENV)/dev.done ## the fast tests only
	$(BIN)/python -m pytest -q tests/unit

lint: $(VENV)/dev.done ## format, lint, types, layers, protocols
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	cd proto && ../$(BIN)/buf lint
	$(BIN)/mypy
	$(BIN)/lint-imports

generate: $(VENV)/dev.done ## generate code from proto/, and the definition of HermesRun from document.py
	PYTHON=$(CURDIR)/$(BIN)/python sh proto/generate.sh
	$(BIN)/hermes-operator crd > crds/hermesruns.hermes.dev.yaml
	sh charts/crd.sh

images: ## build the operator's and the runtime's image (DOCKER=podman, BUILD="--build-arg ...": yours)
	$(DOCKER) build $(BUILD) --target operator --tag hermes-operator:$(VERSION) .
	$(DOCKER) build $(BUILD) --target runtime --tag hermes-runtime:$(VERSION) .

cluster: $(VENV)/dev.done ## a kind cluster with HERMES installed from this checkout; may be called twice
	$(BIN)/python -m tests.cluster up
	$(BIN)/python -m tests.cluster install

cluster-down: $(VENV)/dev.done ## take that cluster down; nothing is left but what was built
	$(BIN)/python -m tests.cluster down

e2e: $(VENV)/dev.done ## the tests on Kubernetes, on a cluster that comes and goes with them, and bounds on time
	$(BIN)/python -m tests.cluster prepare
	$(BIN)/python -m pytest -m "cluster or timing"

model: $(VENV)/runtime.done ## train the bundled model from nothing (SMALL=1: a two-minute one)
	$(BIN)/hermes model make --out build/model $(if $(SMALL),--small)

bench: $(VENV)/dev.done ## every benchmark (ONLY="store acts": some); the tables of bench/README.md
	$(BIN)/python -m bench $(ONLY)

requirements: $(VENV)/dev.done ## compile requirements/*.txt from pyproject.toml
	$(BIN)/pip-compile -q $(COMPILE) --extra all -o requirements/runtime.txt pyproject.toml
	$(BIN)/pip-compile -q $(COMPILE) --extra all --extra dev -o requirements/dev.txt pyproject.toml
	$(BIN)/pip-compile -q $(COMPILE) --constraint requirements/runtime.txt --extra operator -o requirements/operator.txt pyproject.toml
	$(BIN)/pip-compile -q $(COMPILE) --constraint requirements/runtime.txt --extra store --extra evaluate --extra hub --extra cluster \
	  -o requirements/runtime-slim.txt pyproject.toml

COMPILE := --build-deps-for editable --generate-hashes --allow-unsafe --strip-extras --no-header --no-annotate \
  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host

clean: ## remove what was built; keeps runs/
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)

INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps

$(VENV)/runtime.done: requirements/runtime.txt pyproject.toml | $(VENV)/bin/python
	@echo "installing what HERMES needs into $(VENV) (6 GB, most of it torch; some minutes)"
	$(INSTALL) --require-hashes -r requirements/runtime.txt
	$(INSTALL) --no-build-isolation --editable .
	touch $@

$(VENV)/dev.done: requirements/dev.txt pyproject.toml | $(VENV)/bin/python
	@echo "installing what HERMES and its tests need into $(VENV) (6 GB, most of it torch; some minutes)"
	$(INSTALL) --require-hashes -r requirements/dev.txt
	$(INSTALL) --no-build-isolation --editable .
	touch $@ $(VENV)/runtime.done
