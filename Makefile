PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Each in processes of its own: exporters and runtimes don't bear forks and each other in one for long.
# The distributed ones one after the other: each has workers of its own.
SUITES := cli contract distributed faults golden integration parity unit/compression unit/models unit/training

.PHONY: demo test check sweep bench bench-families install clean

demo: $(STAMP)  ## Train, compress, verify and report on handwritten digits.
	$(BIN)/fmdist run recipes/digits.yaml

test: check  ## Everything: lint, types, layers, all tests.
	failed=0; for suite in $(SUITES); do \
	    workers=2; test $$suite != distributed || workers=0; \
	    $(BIN)/python -m pytest -m "slow and not sweep" -n $$workers --dist loadgroup tests/$$suite || failed=1; \
	done; exit $$failed

check: $(STAMP)  ## Lint, types, layers and the fast tests.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -m "not slow" -n 2 tests

sweep: $(STAMP)  ## All rounds of the kill sweeps, and INT8 of every family; results go to benchmarks/results/.
	$(BIN)/python -m tests.faults.sweep
	$(BIN)/python -m tests.distributed.sweep
	$(BIN)/python -m pytest -m sweep -n 2 tests/contract tests/integration
	$(BIN)/python -m pytest -m sweep tests/distributed

bench: $(STAMP)  ## Every benchmark; the results go to benchmarks/results/.
	$(BIN)/python -m benchmarks.cli_startup
	$(BIN)/python -m benchmarks.training_overhead
	$(BIN)/python -m benchmarks.digits
	$(BIN)/python -m benchmarks.reference_vae
	$(BIN)/python -m benchmarks.text_baselines
	$(BIN)/python -m benchmarks.distributed
	$(BIN)/python -m benchmarks.compression
	$(BIN)/python -m benchmarks.sparsity
	$(BIN)/python -m benchmarks.quantize_aware

bench-families: $(STAMP)  ## Every recipe, whole; the table goes to benchmarks/results/.
	$(BIN)/python -m benchmarks.families

install: $(STAMP)  ## The virtual environment alone.

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps recbole==1.2.1
	touch $@

clean:  ## Remove the virtual environment and the caches; runs and artifacts stay.
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
