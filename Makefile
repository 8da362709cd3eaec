# Keepwell needs python3 (3.11 or newer), make and git; everything else is set up here.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv pip
ARGS ?=

# Tests, benchmarks and the demo start hundreds of processes: without kept bytecode each would compile all that it
# imports anew, five seconds instead of one.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup setup-mlflow setup-oracles browser prometheus test lint types imports unit search kills demo bench-tracking bench-serving bench-stats storm soak reference lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

setup: $(VENV)/.ready ## make the environment from the lock files

$(VENV)/.ready: pyproject.toml requirements/dev.lock requirements/data.lock requirements/uv.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Keepwell needs Python 3.11 or newer; set PYTHON=...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.lock 2>/dev/null \
	  || $(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r requirements/uv.lock
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(UV) install --quiet --require-hashes -r requirements/dev.lock
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(UV) install --quiet --require-hashes --no-deps -r requirements/data.lock
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(UV) install --quiet --no-deps --editable .
	@touch $@

setup-mlflow: .venv-mlflow/.ready ## make the environment of the real MLflow client (for tests and benchmarks)

.venv-mlflow/.ready: $(VENV)/.ready requirements/mlflow.lock
	@test -x .venv-mlflow/bin/python || $(PYTHON) -m venv .venv-mlflow
	@echo "setting up .venv-mlflow ..."
	@VIRTUAL_ENV=$(CURDIR)/.venv-mlflow $(UV) install --quiet --require-hashes -r requirements/mlflow.lock
	@touch $@

setup-oracles: .venv-oracles/.ready ## make the environment of the packages that statistics are compared with

.venv-oracles/.ready: $(VENV)/.ready requirements/oracles.lock requirements/oracles-alone.lock
	@test -x .venv-oracles/bin/python || $(PYTHON) -m venv --without-pip .venv-oracles
	@echo "setting up .venv-oracles ..."
	@VIRTUAL_ENV=$(CURDIR)/.venv-oracles $(UV) install --quiet --require-hashes -r requirements/oracles.lock
	@VIRTUAL_ENV=$(CURDIR)/.venv-oracles $(UV) install --quiet --require-hashes --no-deps -r requirements/oracles-alone.lock
	@touch $@

browser: ## find a Chromium for the browser tests, or install Debian's
	@scripts/ensure-browser

prometheus: ## find Prometheus for the tests of /metrics, or unpack Debian's
	@scripts/ensure-prometheus

test: setup setup-mlflow setup-oracles browser prometheus lint types imports unit ## everything that CI runs

lint: setup ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/deptry --no-ansi .

types: setup ## strict types
	$(BIN)/mypy

imports: setup ## the rooms import one way
	$(BIN)/lint-imports --no-cache

unit: setup ## the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q $(ARGS)

search: setup ## the property tests on other examples each time; ARGS="--hypothesis-seed 7" repeats one
	$(BIN)/python -m pytest -n 2 --dist loadfile -q -m hypothesis --hypothesis-profile search $(ARGS)

kills: setup ## the stories with the plug pulled after every step and on every second day; a quarter of an hour
	KEEPWELL_LONG=1 $(BIN)/python -m pytest -q tests/stories/test_second_project.py tests/stories/test_strategies.py $(ARGS)

demo: setup ## the whole way on real flights; ARGS="--exit --summary FILE"
	@$(BIN)/keepwell demo examples/flights $(ARGS)

bench-tracking: setup-mlflow ## the tracking server beside MLflow's own
	$(BIN)/python benchmarks/tracking.py $(ARGS)

storm: setup ## the gateway while plans, workers, disks and models fail beneath it; ARGS="--json FILE"
	$(BIN)/python -m tests.serving.storms $(ARGS)

soak: setup ## the gateway under steady load; ARGS="--minutes 10 --json FILE"
	$(BIN)/python -m tests.serving.storms --soak $(ARGS)

bench-serving: setup ## the gateway beside the field's servers; ARGS="--quick --json FILE"
	$(BIN)/python benchmarks/serving.py $(ARGS)

bench-stats: setup ## decision statistics against their bars; ARGS="--quick --json FILE"
	@$(BIN)/python -m benchmarks.stats $(ARGS)

reference: setup ## write anew what the reference pages take from the code
	$(BIN)/python scripts/reference.py

lock: setup ## resolve the lock files anew
	$(UV) compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --group dev --extra grpc --extra otel --extra postgres --extra sklearn pyproject.toml -o requirements/dev.lock
	$(UV) compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate requirements/mlflow.in -o requirements/mlflow.lock
	$(UV) compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate requirements/oracles.in -o requirements/oracles.lock
	$(UV) compile -q --universal --no-deps --generate-hashes --no-emit-index-url --no-header --no-annotate requirements/oracles-alone.in -o requirements/oracles-alone.lock
	$(UV) compile -q --universal --no-deps --generate-hashes --no-emit-index-url --no-header --no-annotate requirements/data.in -o requirements/data.lock
	$(UV) compile -q --universal --generate-hashes --no-emit-index-url --no-header --no-annotate requirements/uv.in -o requirements/uv.lock

clean: ## remove the environments and caches
	rm -rf $(VENV) .venv-mlflow .venv-oracles .bench .tools .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
