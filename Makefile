# make plan    what 1Mi tokens cost on a few clusters: installs the core only, then asks
# make test    the whole test suite
# make quick   without the slow tests; each mixer under one strategy on real ranks: under 6 minutes on two cores
# make lint    ruff, ruff format, mypy
# make docs    docs/mixers.md, the formulas of every mixer; docs/compared.md; what the commands in README.md and docs/ print
# make bench   the benchmarks
# make mutations  how many changes to mixers their definitions find out; half an hour
# make venv    the development environment, in $(VENV)
# make clean   removes caches and build products, keeps $(VENV)

VENV ?= .venv
WORKERS ?= 2
PYTHONS := $(or $(PYTHON),python3.13 python3.12 python3.11 python3 python)
BIN := $(VENV)/bin
CORE := $(VENV)/.installed-core
DEV := $(VENV)/.installed-dev

# Prints the first Python in range that can make a virtual environment.
define FIND_PYTHON
for p in $(PYTHONS); do \
  if $$p -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
      >/dev/null 2>&1; then echo $$p; exit 0; fi; done; \
echo 'costmodel needs Python 3.11, 3.12 or 3.13 with the venv module, and found none among:' \
  '$(PYTHONS). Install one, or name it: make PYTHON=/path/to/python3.12' >&2; exit 1
endef

.PHONY: plan test quick lint docs bench mutations venv clean

# The last question has the answer "no plan fits", which is exit status 1.
plan: $(CORE)
	$(BIN)/costmodel plan --mixer attention --seq 1Mi --cluster 4xrtx4090
	$(BIN)/costmodel plan --model examples/llama-3-8b.json --seq 1Mi --cluster 8xh100 --pass prefill
	$(BIN)/costmodel plan --model examples/llama-3-8b.json --seq 1Mi --cluster 4xrtx4090 --pass prefill || test $$? -eq 1

# One thread a process: the tests start several processes, and threads would only compete for the cores.
test: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal --benchmark-disable

quick: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal --benchmark-disable -m 'not slow'

lint: $(DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(DEV)
	$(BIN)/costmodel formulas --all --markdown > docs/mixers.md
	$(BIN)/python -m tests.validate.test_compared > docs/compared.md
	$(BIN)/python tests/cli/test_readme.py

bench: $(DEV)
	$(BIN)/pytest benchmarks -p no:xdist --benchmark-only

mutations: $(DEV)
	PYTHONPATH=. OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mutation_score.py

venv: $(DEV)

$(BIN)/python:
	@python=$$($(FIND_PYTHON)) && echo "$$python -m venv $(VENV)" && $$python -m venv $(VENV)

$(CORE): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $(CORE) $@

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -not -path './.*/*' -prune -exec rm -rf {} +
