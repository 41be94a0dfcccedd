# The daily commands. `make serve` and `make test` need nothing but Python 3.11+ and the network.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SEEDS := 1000
NATIVE := CMakeLists.txt $(wildcard kernels/cpu/*.cmake kernels/cpu/*.cpp kernels/cpu/src/*)

.DEFAULT_GOAL := help
.PHONY: help install serve test test-long simulate conformance conformance-long amdgpu sanitize evidence check docs format clean

help:
	@echo "make serve    serve the embedded model on http://127.0.0.1:8000   (ARGS='--port 9000')"
	@echo "make test     every test, with the time of each suite             (SUITES='engine kernels')"
	@echo "make test-long    the state machines with 5000 examples each"
	@echo "make simulate the engine loop on a shadow executor with faults     (SEEDS=1000)"
	@echo "make conformance  every kernel and tiny models against the float64 oracle"
	@echo "make conformance-long  the tiny models with 16 draws of weights and text each"
	@echo "make amdgpu   every conformance case as AMD machine code under the emulator (about an hour)"
	@echo "make sanitize the kernel tests on a native module with AddressSanitizer and UBSan"
	@echo "make evidence run conformance on the devices here and record what it showed"
	@echo "make check    format, ruff, mypy, sizes, layout, generated pages"
	@echo "make docs     write the pages of docs/ that are made from data"
	@echo "make format   let ruff rewrite the sources"
	@echo "make install  only create $(VENV) and install into it"
	@echo "make clean    remove $(VENV), what was compiled, and caches"

install: $(STAMP)

$(STAMP): pyproject.toml scripts/install.sh $(NATIVE)
	scripts/install.sh $(VENV)
	@touch $@

serve: $(STAMP)
	$(BIN)/hal-serve $(ARGS)

test: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/run_suites.sh $(SUITES)

test-long: $(STAMP)
	$(BIN)/pytest -q tests/engine --hypothesis-profile long

simulate: $(STAMP)
	PYTHONPATH=tests/support $(BIN)/python tests/support/simulation.py --seeds $(SEEDS) --processes 2

conformance: $(STAMP)
	$(BIN)/pytest -q tests/conformance

conformance-long: $(STAMP)
	$(BIN)/pytest -q tests/conformance --seeds 16

amdgpu: $(STAMP)
	$(BIN)/pytest -q tests/amdgpu
	$(BIN)/hal-info verify --execute --all-cases

sanitize: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/sanitize.sh

evidence: $(STAMP)
	$(BIN)/python scripts/evidence.py

check: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check.sh

docs: $(STAMP)
	$(BIN)/python scripts/generate_docs.py

format: $(STAMP)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:
	rm -rf $(VENV) build/cp* dist test_reports .mypy_cache .pytest_cache .ruff_cache .hypothesis
