# What a person or CI runs. Each target sets up all it needs, and running it twice does nothing twice.

VENV   := .venv
BIN    := $(VENV)/bin
SWIFT  := .swift
STAMP  := $(VENV)/.installed
UV     := 0.13.8
STORE  ?=
OUT    ?= demo
# What make test is given besides: paths or options of pytest; nothing runs all.
TESTS  ?=
# Options of make bench, e.g. BENCH="--op scan".
BENCH  ?=
# Options of the ingest part of make bench-data, e.g. BENCH_INGEST=--without-workers.
BENCH_INGEST ?=

# Ray would otherwise package the folder again, phone home, or write a token into HOME while tests run.
export RAY_USAGE_STATS_ENABLED := 0
export RAY_ENABLE_UV_RUN_RUNTIME_ENV := 0

.PHONY: help demo test test-gpu test-s3 check bench bench-data bench-brainmt bench-extract bench-extract-workers bench-neuroar constraints readme clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    the whole way through: simulated cohort -> store -> training -> report -> served answer (STORE=s3://bucket/prefix, OUT=demo)"
	@echo "make test    all tests that run without a GPU"
	@echo "make test-gpu  the kernels' and models' contract suites on a GPU; PYTHON=python3 takes that one's torch, triton, pytest"
	@echo "make test-s3  the tests of object storage on OpenStack Swift, which it installs; NEURORAY_TEST_BUCKET=s3://bucket/prefix: there"
	@echo "make bench   kernels against their peers on this machine, into docs/benchmarks (BENCH=options)"
	@echo "make bench-extract  slice features against a plain timm loop, into docs/benchmarks (BENCH=options)"
	@echo "make bench-extract-workers  the same by one and by two actors of Ray"
	@echo "make bench-data  windows, streams and ingest against their peers on this machine, into docs/benchmarks (BENCH=options)"
	@echo "make bench-brainmt  memory and time of BrainMT's steps against frames and against other ways, into docs/benchmarks (BENCH=options)"
	@echo "make bench-neuroar  NeuroAR's generation on kept keys against whole passes, sweeps of ages and the decoder, into docs/benchmarks"
	@echo "make check   formatting, lint, types, layers"
	@echo "make clean   remove the environment and caches"

demo: $(STAMP)
	@$(BIN)/python -m neuroray demo --out "$(OUT)" $(if $(STORE),--store "$(STORE)")

# Files two at a time; then what starts a Ray, alone: two clusters that start at once on two cores have been seen to wait
# for each other until one gives up. TESTS may leave one of the two nothing to do, which pytest calls 5.
test: $(STAMP)
	@$(BIN)/python -m pytest -m "not gpu and not ray" -n 2 --dist loadfile $(TESTS) || test $$? -eq 5
	@$(BIN)/python -m pytest -m "not gpu and ray" $(TESTS) || test $$? -eq 5

# A GPU machine often has its own torch: with PYTHON given nothing is installed, and nothing but torch, triton and
# pytest is needed.
test-gpu: $(if $(PYTHON),,$(STAMP))
	@$(if $(PYTHON),$(PYTHON),$(BIN)/python) -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "neuroray: torch sees no CUDA device here; make test runs what a CPU can")'
	@$(if $(PYTHON),$(PYTHON),$(BIN)/python) -m pytest -m gpu tests/kernels tests/platform/models $(TESTS)

# What needs a server that is made to fail stays with moto and Swift; a bucket of yours is asked with your credentials.
test-s3: $(STAMP) $(if $(NEURORAY_TEST_BUCKET),,$(SWIFT)/.installed)
	@$(if $(NEURORAY_TEST_BUCKET),,NEURORAY_SWIFT_PYTHON="$(CURDIR)/$(SWIFT)/bin/python") $(BIN)/python -m pytest -m "s3 and not ray" \
	  tests/storage/test_store_s3.py tests/storage/test_locations.py tests/storage/test_withdrawal.py tests/storage/test_features.py \
	  $(if $(NEURORAY_TEST_BUCKET),,tests/storage/test_faults_s3.py tests/storage/test_crashes.py) $(TESTS)

# An environment of its own: Swift is no part of what the package needs.
$(SWIFT)/.installed: $(STAMP)
	@$(BIN)/python -m uv venv --quiet --clear $(SWIFT)
	@$(BIN)/python -m uv pip install --quiet --python $(SWIFT)/bin/python swift==2.38.3
	@touch $@

bench: $(if $(PYTHON),,$(STAMP))
	@$(if $(PYTHON),,$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev,bench]')
	@$(if $(PYTHON),$(PYTHON),$(BIN)/python) -m neuroray.kernels.benchmark $(BENCH)

bench-data: $(STAMP)
	@$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev,bench]'
	@$(BIN)/python -m neuroray.platform.data.benchmark $(BENCH); missed=$$?; \
	$(BIN)/python -m neuroray.jobs.benchmark_ingest --out docs/benchmarks/ingest.md $(BENCH_INGEST) && exit $$missed

bench-brainmt: $(if $(PYTHON),,$(STAMP))
	@$(if $(PYTHON),$(PYTHON),$(BIN)/python) -m neuroray.platform.models.brainmt.benchmark $(BENCH)

bench-extract: $(STAMP)
	@$(BIN)/python -m neuroray.platform.data.benchmark_extract $(BENCH)

bench-extract-workers: $(STAMP)
	@$(BIN)/python -m neuroray.platform.data.benchmark_extract_workers $(BENCH)

# On a GPU the paper's size, on a CPU that of base.
bench-neuroar: $(if $(PYTHON),,$(STAMP))
	@$(if $(PYTHON),$(PYTHON),$(BIN)/python) -m neuroray.platform.models.neuroar.benchmark --page docs/benchmarks/neuroar_speed.md $(BENCH)

check: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports

# The first interpreter that is new enough; an old one is told apart in one line before anything is made.
$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	for candidate in "$(PYTHON)" python3.12 python3 python3.13 python3.14; do \
	  test -n "$$candidate" || continue; \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; then found="$$candidate"; break; fi; \
	done; \
	if test -z "$$found"; then \
	  echo "neuroray: needs Python >= 3.12; found $$(python3 --version 2>&1 || echo none); install one, or name it: make PYTHON=/path/to/python3.12" >&2; \
	  exit 2; \
	fi; \
	test -x $(BIN)/python || "$$found" -m venv $(VENV); \
	$(BIN)/python -c 'import uv' >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV); \
	echo "installing into $(VENV) (the first time fetches about 3 GB, most of it PyTorch)"; \
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'; \
	touch $(STAMP)

# Resolves everything anew; run it on purpose, read the difference, commit it.
constraints:
	@$(BIN)/python -m uv pip compile pyproject.toml --extra dev --extra ants --extra bench --extra dicom --python-version 3.12 --upgrade \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet --output-file constraints.txt

# The tree in README.md, from the first sentence of every module.
readme: $(STAMP)
	@$(BIN)/python docs/readme_tree.py

clean:
	rm -rf $(VENV) $(SWIFT) .pytest_cache .ruff_cache
