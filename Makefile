# The README's two commands are `make demo` and `make test`; `.ci/run` calls these same targets.

PYTHON ?= python3
BIN := .venv/bin
# Two at once: much of what the tests do is waiting for a daemon.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal
# Rendered by the program itself; `make check` fails when one of them is stale.
MODELFILES := modelfiles/OLLAMA_MODELFILE_F16 modelfiles/OLLAMA_MODELFILE_INT4

.PHONY: help demo test test-fast test-ollama test-clients soak bench rivals tiny-llava test-tiny setup daemons lint fix modelfiles readme pages check build clean

help: ## Show this help
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

demo: .venv/demo ## Draw pictures and have the tiny model describe them
	@$(BIN)/llava-ollama demo

test: test-fast test-ollama ## Lint, types, and all tests, on real daemons

test-fast: lint check ## Everything that needs no daemon
	$(PYTEST) -m "not ollama and not soak"

test-ollama: setup ## What meets real Ollama daemons; without them it is skipped, loudly, but not in CI
	@$(BIN)/python -m tests.daemons.build || test -z "$$CI"
	$(PYTEST) -m "ollama and not soak"

# No file of the project's own tests is near: this is a stranger's project that uses the plugin.
test-clients: .venv-clients/done daemons ## simonw/llm and LangChain see through the pytest plugin
	.venv-clients/bin/python -m pytest -c /dev/null --rootdir . --confcutdir tests/clients \
	  -p no:cacheprovider -rA --llava-require-daemon \
	  --llava-daemon "$$($(BIN)/python -m tests.daemons.build 0.34.4 | cut -f 2)" \
	  tests/clients/others.py

soak: setup daemons ## The long versions of the fault tests
	$(PYTEST) -m "soak and not tiny" --timeout 3600

bench: setup daemons rivals ## Measure every figure in the README
	$(BIN)/python -m tests.bench

rivals: .venv/rivals ## Install the programs that the batch is measured against (a gigabyte)

# llama.cpp, PyTorch and this machine's other work share the cores; waiting threads must not spin.
tiny-llava: setup .venv/tiny daemons ## Train the tiny model anew, evaluate it, write its card (an hour)
	OMP_WAIT_POLICY=passive $(BIN)/python -m tests.tiny_llava --into-package

test-tiny: setup .venv/tiny ## Tests of the recipe that need PyTorch (5 GB)
	OMP_WAIT_POLICY=passive $(PYTEST) -m tiny

daemons: .venv/demo ## Build the Ollama daemons to test on (ten minutes, once; cached outside the checkout)
	@$(BIN)/python -m tests.daemons.build

setup: .venv/dev

lint: setup ## Style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fix: setup ## Format, and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

modelfiles: setup ## Render modelfiles/
	@$(BIN)/llava-ollama --quiet render llava-llama3 --quant f16 --force -o modelfiles/OLLAMA_MODELFILE_F16
	@$(BIN)/llava-ollama --quiet render llava-llama3 --quant int4 --force -o modelfiles/OLLAMA_MODELFILE_INT4

readme: setup ## Write the README's generated parts
	@$(BIN)/python -m tests.readme --write

pages: setup ## Make the pictures and figures of docs/pictures.md
	@$(BIN)/python -m tests.pages --write

check: setup ## Fail when a generated file is stale
	@$(BIN)/python -m tests.readme
	@$(BIN)/python -m tests.pages
	@for quant in f16 int4; do \
	  file=modelfiles/OLLAMA_MODELFILE_$$(echo $$quant | tr a-z A-Z); \
	  $(BIN)/llava-ollama render llava-llama3 --quant $$quant | diff $$file - \
	    || { echo "$$file is stale: run make modelfiles" >&2; exit 1; }; \
	done

build: setup ## Build the wheel and the sdist
	$(BIN)/python -m build

clean: ## Remove the environment and what was built
	rm -rf .venv .venv-clients dist demo-pictures

.venv/demo: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or later is needed; name one with make PYTHON=..." >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { rm -rf .venv; $(PYTHON) -m venv .venv; }
	@echo "installing llava-ollama into .venv (a minute, once)" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[embedded]'
	@touch $@

.venv-clients/done: pyproject.toml
	@$(PYTHON) -m venv .venv-clients
	@.venv-clients/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@.venv-clients/bin/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[embedded]' --group clients
	@touch $@

.venv/tiny: pyproject.toml .venv/dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group tiny
	@touch $@

.venv/dev: pyproject.toml .venv/demo
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group dev
	@touch $@

# Of their own, so that nothing of theirs is imported by accident.
.venv/rivals: pyproject.toml .venv/demo
	@$(BIN)/python -m venv $@
	@$@/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$@/bin/python -m pip install --quiet --disable-pip-version-check --group bench
	@touch $@
