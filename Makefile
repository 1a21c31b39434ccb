# Each target makes the environment itself when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# A process more than cores, since tests wait for processes of their own; the tests of a file in the
# same one, which make its data once; in the order of folders, since the files with the most tests
# are not those that take longest.
PROCESSES := $(shell $(PYTHON) -c 'import os; print(min(4, os.cpu_count() + 1))')
PARALLEL := -n $(PROCESSES) --dist loadfile --no-loadscope-reorder

NEWEST := $(CURDIR)/build/newest
VERSION := 'import importlib.metadata as m; print(m.version("flwr"))'

.DEFAULT_GOAL := help
.PHONY: help setup run quick test slow paper-smoke lint newest docs site clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  ARGS=\"…\"      overrides for make run, arguments for make test; PYTHON=…  the interpreter (3.11 or later)"

setup: $(STAMP) ## the environment, in .venv

run: $(STAMP) ## the main job: FedPGP on the embedded federation, a minute on two idle cores
	@$(BIN)/python -m experiments.run $(ARGS)

quick: $(STAMP) ## the tests that concern a method, for its author; under 2 minutes on two idle cores
	@$(BIN)/python -m pytest tests/fedpgp/test_methods.py tests/fedpgp/methods \
		tests/fedpgp/training tests/docs/test_add_a_method.py tests/docs/test_methods_page.py \
		tests/experiments/test_methods.py $(ARGS)

test: $(STAMP) ## the test suite, under 10 minutes on two idle cores (fast tests; `make slow` runs the rest)
	@$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

slow: $(STAMP) ## the tests that take minutes
	@$(BIN)/python -m pytest -m slow $(ARGS)

paper-smoke: $(STAMP) ## the first cell of every published table, in miniature; under 15 minutes
	@$(BIN)/python -m tests.helpers.paper_smoke $(ARGS)

lint: $(STAMP) ## ruff: style and formatting
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

newest: $(STAMP) ## the newest Flower beside the pinned one (build/newest), and the tests that touch it most
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(NEWEST) flwr \
		|| { echo "note: the newest Flower cannot be fetched; nothing was tested"; exit 0; }; \
	have=$$($(BIN)/python -c $(VERSION)); newest=$$(PYTHONPATH=$(NEWEST) $(BIN)/python -c $(VERSION)); \
	if [ "$$have" = "$$newest" ]; then echo "flwr $$have is the newest"; exit 0; fi; \
	echo "flwr $$newest in the place of $$have"; \
	PYTHONPATH=$(NEWEST) $(BIN)/python -m pytest tests/strategies/test_grid.py tests/strategies/test_flower_strategies.py \
		tests/clients/test_client_app.py tests/experiments/test_superlink.py tests/experiments/test_flower_app.py $(ARGS)

docs: $(STAMP) ## the pages of docs/ as a site, into build/site
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet && echo "wrote build/site/index.html"
	@$(BIN)/python -m experiments.report --site build/site/measured

site: $(STAMP) ## the results site of the published runs, into build/results
	@$(BIN)/python -m experiments.report --site build/results

clean: ## removes the environment and Python's caches, not your runs
	rm -rf $(VENV) .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first and by its pinned version: a build that is already on this machine is taken, and
# nothing else chooses another.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; name an interpreter: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $$($(PYTHON) --version 2>&1) is too old, Python 3.11 or later is needed: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@echo "setting up $(VENV) (once; a few minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
