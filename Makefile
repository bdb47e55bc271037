# The commands of the project. Each makes .venv and installs into it by itself; a second call starts at once.
#   make demo | test | check | test-cluster | bench | clean | help
# PYTHON=python3.12 picks the interpreter. On a machine without a GPU, PIP_FLAGS spares the gigabytes of the CUDA build:
#   make demo PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_FLAGS ?=
PYTEST_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
BENCHMARKS := throughput peers step_overhead kernels scaling
GRID := --stages 1,3 --checkpointing none,selective,full

# Without .pyc files each start compiles torch, transformers and DeepSpeed anew: 13.9 s instead of 3 s.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test check test-cluster bench clean
.NOTPARALLEL:

help:
	@echo "make demo    prepare text, pretrain, kill, resume, export, complete: a few minutes on a laptop"
	@echo "make test    the tests that need no GPU, cluster or network"
	@echo "make check   format, lint, types and tests: what CI runs"
	@echo "make test-cluster  the tests on a SLURM of two nodes inside this machine: as root, minutes; .ci/run lists its packages"
	@echo "make bench   speed on this machine beside other trainers, with tables and plots: the better part of an hour"
	@echo "make clean   remove caches and build outputs (keeps .venv and runs/)"

demo: $(VENV)/.has-test
	$(BIN)/scaletrain demo

# Whole programs start and wait most of the time: side by side they take little longer. PYTEST_FLAGS="-n 0": one by one.
test: $(VENV)/.has-test
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m 'not slow and not gpu and not cluster and not real' $(PYTEST_FLAGS)

check: $(VENV)/.has-dev $(VENV)/.has-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

test-cluster: $(VENV)/.has-test
	$(BIN)/python -m pytest -m 'cluster and not slow' tests/cluster $(PYTEST_FLAGS)

# A benchmark that fails does not keep the others from running. The figures stay in benchmarks/results/local-*.json.
bench: $(VENV)/.has-bench
	@failed=; for name in $(BENCHMARKS); do \
		echo "== benchmarks/$$name.py"; rm -f benchmarks/results/local-$$name.json; \
		$(BIN)/python benchmarks/$$name.py $$([ $$name != throughput ] || echo $(GRID)) \
			--output benchmarks/results/local-$$name.json || failed="$$failed $$name"; \
	done; \
	$(BIN)/python benchmarks/performance.py benchmarks/results/local-*.json --output build/performance.md && \
	$(BIN)/python benchmarks/plots.py benchmarks/results/local-*.json --folder build/performance && \
	echo "the tables and plots are in build/performance.md" && \
	{ [ -z "$$failed" ] || { echo "failed:$$failed" >&2; exit 1; }; }

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# Made again when pyproject.toml changes. pip is upgraded first: an old one takes minutes over these requirements.
$(VENV)/.has-%: pyproject.toml | $(BIN)/pip
	@echo "installing scaletrain[$*] and what it needs into $(VENV): a minute or two"
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --editable '.[$*]'
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
		echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13: install one, then: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; \
		exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
		echo "$(PYTHON) cannot make virtual environments: on Debian or Ubuntu, apt-get install python3-venv" >&2; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)
