# `make help` lists the commands. Each one first creates the environment that it needs (.venv, with uv if it is installed,
# else with venv and pip), and updates it only if pyproject.toml has changed.

VENV ?= .venv
PYTHON ?=
WORKERS ?= 2
ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Two installs into one environment at the same time would break it.
.NOTPARALLEL:
.PHONY: help demo soak tpu gpu test check format format-check lint types sanitize bench bench-gpu test-gpu sanitize-gpu registers docs docs-serve parity training test-py test-matrix lines laws clean

RUN := $(VENV)/bin/python -m

##@ Use
demo: $(VENV)/.with-demo ## train a small model with both faces, and draw it
	$(RUN) examples.demo $(ARGS)

bench: $(VENV)/.with-bench $(if $(TORCH),$(VENV)/.with-torch) ## compare step time, memory and compile time with other libraries; TORCH=1 installs torch too
	$(RUN) benchmarks $(ARGS)

TPU_VENV := .venv-tpu
tpu: ## compile steps for a described TPU v5e and v6e, count them and test the counts; no TPU is needed
	$(MAKE) $(TPU_VENV)/.with-tpu VENV=$(TPU_VENV) PYTHON= PY=3.13 JAX=0.12
	JAX_PLATFORMS=cpu $(TPU_VENV)/bin/python -m pytest -q tests/engine/test_tpu.py $(ARGS)

# It skips JAX's test of CUDA's libraries, which only a run needs.
GPU_VENV := .venv-gpu
gpu: ## compile steps and kernels for described GPUs, count them and test the counts; no GPU is needed
	$(MAKE) $(GPU_VENV)/.with-gpu VENV=$(GPU_VENV) PYTHON= PY=3.12 JAX=0.11
	JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 JAX_PLATFORMS=cpu $(GPU_VENV)/bin/python -m pytest -q \
	  tests/engine/test_kernels.py tests/engine/native/test_cuda_ptx.py $(ARGS)

# JAX would reserve most of the memory, and torch needs some. Peers that are installed in this environment are timed too:
# pip install flashoptim bitsandbytes torchao.
bench-gpu: $(VENV)/.with-cuda $(if $(TORCH),$(VENV)/.with-torch) ## on a GPU: check the numbers of steps, then compare their times with the library's bars; TORCH=1 installs torch too
	XLA_PYTHON_CLIENT_PREALLOCATE=false $(RUN) benchmarks.gpu $(ARGS)

parity: $(VENV)/.with-bench ## compare every optimizer with Keras, optax, torch and float64
	$(RUN) benchmarks.parity $(ARGS)

training: $(VENV)/.with-bench $(VENV)/.with-training ## train with every optimizer on 23 small tasks: steps to the target, window of rates
	$(RUN) benchmarks.training $(ARGS)

docs: $(VENV)/.with-docs ## build the site, docs/_build/index.html; a warning is an error
	$(RUN) sphinx --fail-on-warning --keep-going --fresh-env --quiet docs docs/_build
	@echo "Open docs/_build/index.html: it needs no server and no network."

docs-serve: docs ## build the site and serve it at http://127.0.0.1:8000
	$(RUN) http.server --bind 127.0.0.1 --directory docs/_build 8000

##@ Develop
# The address sanitizer needs its runtime, and that of C++, loaded before Python.
IN_BUFFERS := test_what_is_needed_elsewhere_too_is_there test_flat_equals_tree[Lamb] test_whatever_is_around_the_rule[codes]
ENGINE := tests/laws/test_native_equals_xla.py tests/engine/native/test_native_rows.py tests/engine/native/test_unpack.py \
  $(patsubst %,'tests/packing/test_flat.py::%',$(IN_BUFFERS))
SANITIZED := $(RUN) pytest -q -p no:cacheprovider $(ENGINE)
sanitize: $(VENV)/.with-dev ## test the native loops with the sanitizers for addresses and undefined behaviour
	JAXOPT_KERAS_CACHE=$$(mktemp -d) CC="cc -g -fno-sanitize-recover=all -fsanitize=undefined" $(SANITIZED)
	JAXOPT_KERAS_CACHE=$$(mktemp -d) CC="cc -g -fno-sanitize-recover=all -fsanitize=address" ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libstdc++.so.6)" $(SANITIZED)

test: $(VENV)/.with-dev ## run the tests; ARGS="-k adam" selects some, WORKERS=8 runs eight at a time
	$(RUN) pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-gpu: $(VENV)/.with-dev $(VENV)/.with-cuda ## run the tests on a GPU, one at a time
	JAXOPT_KERAS_TEST_DEVICE=cuda XLA_PYTHON_CLIENT_PREALLOCATE=false $(RUN) pytest $(ARGS)

# Each array has memory of its own, so that a place past its end is found. XLA asks the driver for what it may not have.
SANITIZER := compute-sanitizer --target-processes all --report-api-errors no --error-exitcode 1
sanitize-gpu: $(VENV)/.with-dev $(VENV)/.with-cuda ## on a GPU: test the kernels under NVIDIA's compute-sanitizer, which comes with CUDA's toolkit
	JAXOPT_KERAS_TEST_DEVICE=cuda XLA_PYTHON_CLIENT_ALLOCATOR=platform $(SANITIZER) --tool memcheck $(SANITIZED)
	JAXOPT_KERAS_TEST_DEVICE=cuda XLA_PYTHON_CLIENT_ALLOCATOR=platform $(SANITIZER) --tool racecheck $(SANITIZED)

registers: $(VENV)/.with-dev $(VENV)/.with-nvidia ## the registers of kernels for GPUs of three generations; no GPU is needed
	JAX_PLATFORMS=cpu $(RUN) benchmarks.registers $(ARGS)

soak: $(VENV)/.with-dev ## run 20,000 random operations on the stateful face, and compare it with a plain model
	JAXOPT_KERAS_SOAK=$(or $(STEPS),20000) $(RUN) pytest tests/stateful/test_soak.py $(ARGS)

check: format-check lint types test ## check format, lint and types, and run the tests, as CI does

format: $(VENV)/.with-dev ## rewrite the code in the project's format
	$(RUN) ruff check --select I --fix .
	$(RUN) ruff format .

format-check: $(VENV)/.with-dev
	$(RUN) ruff format --check .

lint: $(VENV)/.with-dev
	$(RUN) ruff check .

types: $(VENV)/.with-dev
	$(RUN) pyright --pythonpath $(VENV)/bin/python

# The range of versions in pyproject.toml: the oldest and the newest JAX, and every Python. JAX 0.10 is the newest for
# Python 3.11.
JAX_FOR_3.11 := 0.10
JAX_FOR_PY = $(or $(JAX_FOR_$(PY)),0.12)

test-py: ## run the tests on one Python, in its own environment: make test-py PY=3.12 [JAX=0.11]
	$(if $(PY),,$(error Which Python? Say `make test-py PY=3.12`))
	$(MAKE) test VENV=.venv-$(PY) PYTHON= PY=$(PY) JAX=$(or $(JAX),$(JAX_FOR_PY))

test-matrix: ## run test-py on Python 3.11, 3.12 and 3.13
	$(MAKE) test-py PY=3.11
	$(MAKE) test-py PY=3.12
	$(MAKE) test-py PY=3.13

# The newest patch of every line of JAX that pyproject.toml allows, each with a Python that supports it.
LINES := 0.10-3.11 0.11-3.12 0.12-3.13
LAWS := tests/project/test_smoke.py tests/engine/native/test_native.py $(ENGINE)

lines: ## test the native engine and each face on every supported line of JAX, each in its own environment
	$(foreach line,$(LINES),$(MAKE) laws VENV=.venv-jax-$(line) PYTHON= \
	  JAX=$(firstword $(subst -, ,$(line))) PY=$(lastword $(subst -, ,$(line))) &&) true

laws: $(VENV)/.with-laws # with XLA's default code generator; on JAX 0.10 `make test` uses an older one
	XLA_FLAGS= $(RUN) pytest -n $(WORKERS) --dist worksteal $(LAWS) $(ARGS)

clean: ## remove the environments, caches and built files
	rm -rf .venv .venv-* .pytest_cache .ruff_cache .hypothesis .jax_cache docs/_build build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## print this list
	@awk -F ':.*## ' '/^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

# ---------------------------------------------------------------------------------------------------------------------
# Environments

# uv and python are run, not only looked up: a pyenv shim exists for versions that are not installed.
UV := $(shell uv --version >/dev/null 2>&1 && echo uv)
VERSIONS := $(or $(PY),3.13 3.12 3.11)
PYENV := $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions
CANDIDATES = $(or $(PYTHON),$(VERSIONS:%=python%) $(if $(PY),,python3) \
	$(foreach v,$(VERSIONS),$(wildcard $(PYENV)/$(v).*/bin/python)))
# Without ensurepip (Debian's python3 without python3-venv) venv does not work; uv needs neither.
USABLE := import sys; assert sys.version_info >= (3, 11); print(sys.executable)$(if $(UV),,; import venv, ensurepip)

$(VENV)/bin/python:
	@rm -rf $(VENV)
	@for candidate in $(CANDIDATES); do \
	    found=$$($$candidate -c '$(USABLE)' 2>/dev/null) && break; found=; \
	done; \
	if [ -n '$(UV)' ]; then \
	    echo "uv venv $(VENV), with $${found:=$(or $(PYTHON),$(firstword $(VERSIONS)))}"; \
	    uv venv --quiet --seed --python "$$found" $(VENV); \
	elif [ -n "$$found" ]; then \
	    echo "python -m venv $(VENV), with $$found"; \
	    "$$found" -m venv $(VENV); \
	else \
	    echo "No Python that can make an environment. Needed: Python $(or $(PY),3.11 or newer), with venv." >&2; \
	    echo "Tried: $(CANDIDATES)" >&2; \
	    echo "Remedy: install one (Debian, Ubuntu: apt install python3-venv), or uv, or name one: make PYTHON=/path/to/python ..." >&2; \
	    exit 1; \
	fi

# Each extra has its own stamp, so that `make demo` installs only the demo's packages. `JAX` selects the version.
INSTALL = $(if $(UV),uv pip install --quiet --python $(VENV)/bin/python,$(RUN) pip install --quiet --disable-pip-version-check)
$(VENV)/.with-%: pyproject.toml | $(VENV)/bin/python
	@echo "Installing jaxopt_keras[$*] into $(VENV) (a minute or two, once)"
	@$(INSTALL) --editable '.[$*]' $(if $(JAX),'jax==$(JAX).*')
	@touch $@
