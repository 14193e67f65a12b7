# `make pretrain` and `make test` each work alone on a fresh machine with Python 3.11 and a C++ compiler: they create .venv,
# install into it, and run. Nothing is compiled on a machine without a GPU.

PYTHON ?= python3
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
# DALI's wheel carries the CUDA version in its name and also runs on the CPU; on a CUDA 13 machine: make DALI=cuda130 ...
DALI ?= cuda120

export TORCH_EXTENSIONS_DIR ?= $(VENV)/torch_extensions
export PATH := $(BIN):$(PATH)
export TOKENIZERS_PARALLELISM := false

.PHONY: install pretrain test test-fast test-interpreter test-cpus test-slow test-all lint format downstream bench aot gpu-check test-versions test-pythons clean

install: $(STAMP)

# torch comes first and alone: DeepSpeed's build imports it. DS_BUILD_OPS stays 0, so that nothing is compiled here.
$(STAMP): setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "m5ds needs Python 3.11 or newer; try make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)" "$$(grep '^numpy==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --no-build-isolation --constraint constraints.txt -e ".[train,dali-$(DALI),dev]"
	touch $(STAMP)

pretrain: install
	deepspeed m5ds/pretrain.py --ds_config configs/zero3.json

# Test files side by side, each on one core: small models gain nothing from a second thread.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 python -m pytest -q -n $(WORKERS) --dist loadfile

# The fast tier: everything that is not marked slow, then the kernels in Triton's interpreter (a process of its own, since
# the variable must be set before a kernel is imported).
test: test-fast test-interpreter

test-fast: install
	$(PYTEST) -m "not slow" --ignore=tests/kernels/interpreter

test-interpreter: install
	TRITON_INTERPRET=1 $(PYTEST) -m "not slow" tests/kernels/interpreter

# The slow tier alone; .ci/run calls it last.
test-slow: install
	python -m pytest -q -m slow --ignore=tests/kernels/interpreter --timeout=1200
	TRITON_INTERPRET=1 python -m pytest -q -m slow tests/kernels/interpreter --timeout=1200

# Kernels, model and training once more as CPUs without AVX-512 compute, and without AVX2: other vector widths and fused
# products round otherwise, and bf16 is emulated. What is exactly zero here is 1e-17 there. `--expect-cpu` stops where torch
# does not obey. The interpreter's tests stay out: their kernels run in numpy, which these variables do not reach.
CPU_TESTS := tests/repository/test_closeness.py tests/repository/test_older_cpus.py tests/kernels tests/model tests/train tests/dist
CPU_TESTS += --ignore=tests/kernels/interpreter --ignore=tests/kernels/compile

test-cpus: install
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 $(PYTEST) -m "not slow" --expect-cpu DEFAULT $(CPU_TESTS)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 $(PYTEST) -m "not slow" --expect-cpu AVX2 $(CPU_TESTS)

test-all: test test-cpus test-slow

lint: install
	ruff check .
	ruff format --check .
	mypy
	codespell

format: install
	ruff check --fix .
	ruff format .

clean:
	rm -rf runs data build dist *.egg-info

# All four downstream tasks and the report from the quickstart's checkpoint (made first where there is none).
downstream: install
	test -e runs/quickstart/checkpoints/latest || $(MAKE) pretrain
	python tools/evaluate.py all --checkpoint runs/quickstart

# The kernels' CPU paths against torch's own, and what packing saves; on a GPU the Triton kernels.
bench: install
	python kernels/benchmarks/run.py
	python tools/bench/packing.py

# Registers, spills, shared memory and MMA class of every kernel, without a driver.
aot: install
	python kernels/verify/aot.py --targets sm_80,sm_90,sm_100

# One CUDA GPU, within nine minutes; needs no network, no DALI and no installation (CHECK="--bundle FOLDER --all ...").
gpu-check:
	$(if $(wildcard $(STAMP)),python,$(PYTHON)) tools/gpu/gpu_check.py $(CHECK)

# Kernels, model and training with other versions than the pins, in a virtual environment of their own. It downloads
# gigabytes: PyPI's torch brings CUDA along. For instance make test-versions PYTHON=python3.13 VERSIONS=constraints.txt
VERSIONS ?= constraints-oldest.txt
OTHER := $(CURDIR)/.venv-versions
test-versions:
	$(PYTHON) -m venv --clear $(OTHER)
	$(OTHER)/bin/python -m pip install --quiet --upgrade pip setuptools wheel pytest pytest-timeout pytest-xdist hypothesis
	$(OTHER)/bin/python -m pip install --quiet $$(grep -E '^(torch|numpy|triton)==' $(VERSIONS))
	$(OTHER)/bin/python -m pip install --quiet --no-build-isolation --constraint $(VERSIONS) -e ".[train,dali-$(DALI)]"
	PATH=$(OTHER)/bin:$$PATH python -m pytest -q -m "not slow" tests/kernels tests/model tests/train --ignore=tests/kernels/interpreter
	PATH=$(OTHER)/bin:$$PATH TRITON_INTERPRET=1 python -m pytest -q -m "not slow" tests/kernels/interpreter
	PATH=$(OTHER)/bin:$$PATH python m5ds/pretrain.py --ds_config configs/zero3.json name=versions

# Whether the other Pythons can read our files. It says nothing of what runs there: that is what test-versions is for.
PYTHONS ?= $(or $(wildcard $(HOME)/.pyenv/versions/3.1[23].*/bin/python),python3.12 python3.13)

test-pythons:
	@for python in $(PYTHONS); do \
	  if $$python -c "" 2>/dev/null; then \
	    PYTHONPYCACHEPREFIX=$(CURDIR)/build/bytecode $$python -m compileall -q m5ds kernels tools tests && echo "$$($$python --version) compiles every file"; \
	  else echo "SKIPPED: $$python does not run on this machine, nothing was tried with it"; fi || exit 1; \
	done
