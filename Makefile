# Everything happens in .venv; nothing is installed outside it. Run `make help` for the targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# CUDA kernels in the build: auto, on, or off, which leaves them to `make cuda`.
SPLICE_CUDA ?= off
# Architectures that `make cuda` compiles for, such as 90;90a, and units it compiles; empty: all of csrc/cuda/units.txt.
CUDA_ARCHITECTURES ?=
CUDA_UNITS ?=
# One of them may take 6 GiB.
CUDA_JOBS ?= 2
PIP    := $(BIN)/python -m pip -qq --disable-pip-version-check --no-input
SAY    := @printf '\033[2m%s\033[0m\n'

NATIVE := $(shell find csrc cmake proto -type f) CMakeLists.txt

# What compares bits between instruction sets, for those that `make test` cannot run; the rest need not run under emulation, being slow.
EMULATED_TESTS := tests/unit/native tests/unit/model/test_instruction_sets.py -k "(instruction_set or cpu_isa or native_int8 or tiles) and not (portable or avx2)"

.PHONY: help setup build cuda demo serve test test-fast test-isa bench-micro lint types floors format clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup ## start everything, stream one answer, show the receipt, leave nothing behind
	@$(BIN)/splice demo

serve: setup ## start a local cluster and keep it running
	@$(BIN)/splice pull smollm2 >/dev/null
	@$(BIN)/splice serve smollm2 $(ARGS)

test: setup $(VENV)/.test ## every test: units, end to end, faults
	@$(BIN)/python -m pytest -q $(ARGS)

test-fast: setup $(VENV)/.test ## tests that start no cluster, wait for no lease and load no real model
	@$(BIN)/python -m pytest -q -m "not slow" $(ARGS)

test-isa: setup $(VENV)/.test ## kernels of instruction sets this machine lacks, under emulation, against those it has
	@case "$$(uname -m)" in x86_64|amd64) ;; *) echo "test-isa: skipped, the emulation stands on AVX2 and this is $$(uname -m)"; exit 0 ;; esac; \
	grep -qw avx2 /proc/cpuinfo || { echo "test-isa: skipped, the emulation stands on AVX2, which this processor lacks"; exit 0; }; \
	{ PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/inplace -G Ninja -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	  && PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/inplace --target _native_emulated; } >build/.log 2>&1 || { cat build/.log; exit 1; }; \
	$(BIN)/python -m pytest -q -p tests.emulated_native $(EMULATED_TESTS) $(ARGS)

bench-micro: setup ## micro-benchmarks against their baseline: instructions and ratios, never times
	@$(BIN)/python -m benchmarks.micro $(ARGS)

lint: $(VENV)/.lint ## style
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup $(VENV)/.test $(VENV)/.lint ## mypy, strict
	@$(BIN)/mypy

floors: setup $(VENV)/.lint ## who may import whom
	@$(BIN)/lint-imports

format: $(VENV)/.lint ## rewrite what `lint` would complain of
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

setup: $(VENV)/.project $(VENV)/.native ## .venv with all dependencies and the native modules

build: $(VENV)/.native ## native modules and gRPC stubs, in place

cuda: $(VENV)/.cuda ## the CUDA kernels, in place: needs nvcc, no GPU

clean: ## remove what was built and installed
	rm -rf $(VENV) build wire/v1 wire/inference wire/etcd
	find . -name '*.so' -not -path './.git/*' -delete

$(VENV)/.python:
	$(SAY) "set-up 1/4  virtual environment in $(VENV)"
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Splice needs Python 3.11 or newer, $(PYTHON) is {v.major}.{v.minor}: make PYTHON=python3.11")'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.build: $(VENV)/.python constraints.txt
	$(SAY) "set-up 2/4  build tools"
	@$(PIP) install -c constraints.txt --group build
	@touch $@

$(VENV)/.project: $(VENV)/.build pyproject.toml constraints.txt
	$(SAY) "set-up 3/4  dependencies (about 2 minutes the first time)"
	@$(PIP) install -c constraints.txt torch
	@$(PIP) install -c constraints.txt --no-build-isolation -e . -C editable.mode=inplace -C wheel.cmake=false
	@touch $@

$(VENV)/.native: $(VENV)/.build $(NATIVE) 
	$(SAY) "set-up 4/4  native modules and gRPC stubs"
	@mkdir -p build
	@PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/inplace -G Ninja -DSPLICE_CUDA=$(SPLICE_CUDA) -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python >build/.log 2>&1 || { cat build/.log; exit 1; }
	@PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/inplace >build/.log 2>&1 || { cat build/.log; exit 1; }
	@PATH="$(CURDIR)/$(BIN):$$PATH" cmake --install build/inplace --prefix . >build/.log 2>&1 || { cat build/.log; exit 1; }
	@touch $@

$(VENV)/.cuda: $(VENV)/.build $(shell find csrc/cuda -type f)
	$(SAY) "CUDA kernels"
	@$(PIP) install -c constraints.txt --no-deps --target build/cutlass --upgrade nvidia-cutlass
	@PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/cuda -G Ninja -DSPLICE_CUDA=on "-DSPLICE_CUDA_ARCHITECTURES=$(CUDA_ARCHITECTURES)" "-DSPLICE_CUDA_UNITS=$(CUDA_UNITS)" -DCUTLASS_ROOT=$(CURDIR)/build/cutlass/cutlass_library -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python >build/.log 2>&1 || { cat build/.log; exit 1; }
	@PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/cuda --target splice_cuda -j $(CUDA_JOBS) >build/cuda/compiled.log 2>&1 || { cat build/cuda/compiled.log; exit 1; }
	@cp build/cuda/csrc/cuda/libsplice_cuda.so engine/
	@touch $@

$(VENV)/.test: $(VENV)/.project pyproject.toml constraints.txt
	$(SAY) "set-up      test tools"
	@$(PIP) install -c constraints.txt --group test
	@touch $@

$(VENV)/.lint: $(VENV)/.python pyproject.toml constraints.txt
	$(SAY) "set-up      lint tools"
	@$(PIP) install -c constraints.txt --group lint
	@touch $@
