# What a newcomer types. `make demo` and `make test` work on a fresh machine with make and Python >= 3.11, nothing else.
#
#   make install              .venv with the `mesh` command
#   make demo                 agents of two teams: registered, called, killed, healed, answered
#   make dev [ARGS=...]       a gateway with its embedded store on loopback
#   make test [ARGS=...]      the tests; ARGS go to pytest
#   make check                linter, types, walls
#   make bench [JSON=path]    the figures
#   make lock                 resolve the exact versions anew (needs uv)

PYTHON  ?= python3
WORKERS ?= 3
ARGS    ?=
JSON    ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

.PHONY: install install-dev demo dev test check bench lock clean
.DEFAULT_GOAL := install

install: .venv/installed
install-dev: .venv/installed-dev

# The lock is complete, hence --no-deps; the build backend is in it, hence --no-build-isolation.
.venv/installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Mesh needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@echo "Installing into .venv (once; under a minute on a usual line)"
	@[ -x $(BIN)/pip ] || $(PYTHON) -m venv --clear .venv
	@$(PIP) install --no-deps -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@$(BIN)/python -m compileall -q mesh registry gateway
	@touch $@

.venv/installed-dev: .venv/installed requirements-dev.lock
	@echo "Installing what the tests and checks need"
	@$(PIP) install --no-deps -r requirements-dev.lock
	@touch $@

demo: install
	@$(BIN)/mesh demo $(ARGS)

dev: install
	@$(BIN)/mesh dev $(ARGS)

# A file's tests stay on one worker (loadfile), so that its store boots once. Three workers keep two cores busy: tests wait a lot.
# Compiled first: of the hundreds of processes that tests start each would do it where PYTHONDONTWRITEBYTECODE is set.
test: install-dev
	@$(BIN)/python -m compileall -q mesh registry gateway bench tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

check: install-dev
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: install
	$(BIN)/python -m bench $(if $(JSON),--json $(JSON)) $(ARGS)

LOCK := uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --custom-compile-command "make lock" \
        --group build $(if $(UPGRADE),--upgrade)

# UPGRADE=1 takes newer versions; without it only what pyproject.toml changed moves.
lock:
	$(LOCK) --extra gateway -o requirements.lock pyproject.toml
	$(LOCK) --extra dev -c requirements.lock -o requirements-dev.lock pyproject.toml

clean:
	rm -rf .venv .temporal .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
