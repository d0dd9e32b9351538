# `make demo`, `make test`, `make docs`: each does its own set-up in .venv.
PYTHON ?= python3
BIN := .venv/bin

# Mutated files and failing system calls of `make fuzz`.
FUZZ_CASES ?= 20000
FUZZ_SYSTEM_CASES ?= 2000

.PHONY: demo docs test lint setup kernels fuzz bits kills

demo: setup
	$(BIN)/python -m pipelines run shapes --out runs/demo --jobs 2

test: setup
	$(MAKE) --jobs 2 --output-sync=target lint docs kernels
	rm -f .coverage .coverage.* coverage.json
	# A core for each of the two: torch threads that wait for each other spin.
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -n 2 --dist worksteal
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage json --quiet -o coverage.json --fail-under 0
	$(BIN)/python tests/check_coverage.py coverage.json
	$(BIN)/coverage report --skip-covered --sort=cover

# Numba does not notice that a function a cached kernel calls has changed in another module. Each worker of pytest would
# compile them anew.
kernels: setup
	find texturegen -name '*.nb[ci]' -delete
	$(BIN)/python -m tests.compile_kernels

# The tests that `make test` runs in part. OMP_NUM_THREADS=1 as there.
fuzz: setup
	rm -f fuzz.jsonl
	OMP_NUM_THREADS=1 FUZZ_CASES=$(FUZZ_CASES) FUZZ_SYSTEM_CASES=$(FUZZ_SYSTEM_CASES) FUZZ_REPORT=fuzz.jsonl \
		$(BIN)/python -m pytest tests/fuzz
	$(BIN)/python -m tests.fuzz.summary fuzz.jsonl

bits: setup
	SACL_ALL_BITS=1 $(BIN)/python -m pytest tests/sacl_train/training/test_bits.py

kills: setup
	OMP_NUM_THREADS=1 TEXTUREGEN_KILL_STRIDE=1 TEXTUREGEN_KILLS=20 TEXTUREGEN_PAIRS=10 SACL_KILLS=30 SACL_ALL_CELLS=1 $(BIN)/python -m pytest -n 2 \
		tests/texturegen/builds tests/texturegen/shards/test_merge.py tests/sacl_train/training/test_loop.py tests/pipelines

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: .venv/.installed

# The stamp is made last, so an interrupted installation starts again.
.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
		{ echo "Python 3.11 to 3.13 is needed; '$(PYTHON)' is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	# Its dependency opencv-python would take the place of the headless build.
	$(BIN)/python -m pip install --quiet --no-deps 'imagecorruptions-imaug>=1.1.5,<1.2'
	touch $@
