# make demo         install into .venv, then train and quantize a small network on scikit-learn's digits
# make test         install into .venv, then lint, types, docs, doctests and tests
# make types        install into .venv, then check the types
# make docs         install into .venv, then build the documentation in build/docs, offline, warnings being errors
# make benchmarks   install into .venv, then run every benchmark in a short form, on made-up data
# make soak         install into .venv, then kill, interrupt and mutate; SOAK=--quick for a minute's worth
# make peers        make an environment in .peers for each quantizer that benchmarks/runs/peers compares with, and for vLLM
# make constraints  write the versions that .venv holds to constraints.txt
#
# Another Python: make demo PYTHON=python3.12

PYTHON ?= python3
PYTEST_OPTIONS ?= -n 2 --dist loadfile
BIN := .venv/bin
INSTALLED := .venv/installed
PEERS := $(basename $(notdir $(wildcard benchmarks/runs/peers/requirements/*.txt)))
BENCHMARKS := $(filter-out inference_gpu,$(notdir $(patsubst %/,%,$(dir $(wildcard benchmarks/runs/*/__main__.py)))))

# oneDNN 3.12, which torch 2.13 brings, writes beyond its memory in the backward pass of convolutions on one thread where
# the processor has AVX2 and not AVX-512; its kernels for AVX do not.
ifeq ($(shell grep -cm 1 avx512f /proc/cpuinfo 2>/dev/null),0)
export ONEDNN_MAX_CPU_ISA ?= AVX
endif

.PHONY: demo test types docs benchmarks soak peers constraints
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	$(BIN)/lightning-mpq

# Types and docs take one processor each. One thread a process: the tests run in processes of their own, their networks are
# tiny, and those of one file stay together, since they share what takes long to make.
test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --jobs=2 types docs
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/pytest $(PYTEST_OPTIONS)

types: $(INSTALLED)
	$(BIN)/mypy

docs: $(INSTALLED)
	$(BIN)/sphinx-build -q -n -W --keep-going docs build/docs

benchmarks: $(INSTALLED)
	set -e; for name in $(BENCHMARKS); do OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.runs.$$name --quick; done

soak: $(INSTALLED)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m benchmarks.runs.soak $(SOAK)

# One that cannot be installed does not keep the others: make -k peers. make .peers/hqq/installed makes one alone.
peers: $(PEERS:%=.peers/%/installed)

.peers/%/installed: benchmarks/runs/peers/requirements/%.txt
	$(PYTHON) -m venv --clear .peers/$*
	.peers/$*/bin/python -m pip install --disable-pip-version-check torch==2.13.0
	.peers/$*/bin/python -m pip install --disable-pip-version-check torch==2.13.0 numpy safetensors -r $<
	touch $@

# torch first, by itself: its wheel may come from another index (set PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS for that).
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "lightning_mpq needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is not: `$(PYTHON) --version 2>&1`." \
			"Name another one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

constraints: $(INSTALLED)
	{ head -n 1 constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > constraints.new
	mv constraints.new constraints.txt
	touch $(INSTALLED)
