# Everything one does here. Needs Python 3.10 or newer and make; the rest goes into .venv.
PYTHON ?= python3
PYTEST_ARGS ?=
# A worker a core, up to four: each holds torch and Lightning, some 700 MB. Empty: one process, as pytest alone has.
PYTEST_WORKERS ?= -n logical --maxprocesses 4 --dist worksteal
DEMO_ARGS ?=
BENCH ?= $(filter-out benchmarks/wild benchmarks/trace_zoo,$(patsubst recipes/benchmarks/%.py,benchmarks/%,$(wildcard recipes/benchmarks/[a-z]*.py)))
BENCH_ARGS ?=
WILD_ARGS ?=

BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint typecheck bench wild docs-check

help: ## list what one can do
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | while IFS='	' read -r target what; do \
		printf '  make %-11s %s\n' "$$target" "$$what"; done
	@echo
	@echo '  PYTHON=python3.12, PYTEST_ARGS="-k hardware", DEMO_ARGS="--trainer.max_epochs 2",'
	@echo '  BENCH=benchmarks/name and BENCH_ARGS="..." change what is run; PYTEST_WORKERS= runs tests in one process.'

demo: $(INSTALLED) ## train a small CNN on digits, its cost on a chip logged each epoch
	@echo "== effnn run quickstart $(DEMO_ARGS)"
	@$(BIN)/effnn run quickstart $(DEMO_ARGS)

test: $(INSTALLED) ## run the tests and doctests (PYTEST_ARGS="-m slow" runs the slow ones)
	$(BIN)/pytest $(PYTEST_WORKERS) $(PYTEST_ARGS)

lint: $(INSTALLED) ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Checked as installed: type checkers do not see through an editable install's import hook. An old
# build/ would put deleted files into the copy.
typecheck: $(INSTALLED) ## check types, strictly, of a copy installed into .typecheck
	rm -rf .typecheck build
	$(BIN)/pip install --no-deps --quiet --target .typecheck .
	cd .typecheck && MYPYPATH=. ../$(BIN)/mypy --config-file ../pyproject.toml -p lightning_effnn

bench: $(INSTALLED) ## run the benchmarks (BENCH=benchmarks/name for one)
	@for name in $(BENCH); do \
		echo "== effnn run $$name $(BENCH_ARGS)"; $(BIN)/effnn run $$name $(BENCH_ARGS) || exit 1; done

wild: $(INSTALLED) ## run other people's projects with the callbacks (WILD_ARGS="--only chemprop" for one)
	$(BIN)/effnn run benchmarks/wild $(WILD_ARGS)

docs-check: $(INSTALLED) ## run the doctests; check that what the READMEs name exists
	$(BIN)/pytest -q lightning_effnn callbacks tests/cli/test_docs.py

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "$(PYTHON) is missing or older than 3.10: make PYTHON=/path/to/python3.12"; exit 1; }
	@echo "== making .venv and installing the package with its development tools (once, some minutes)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	@touch $@
