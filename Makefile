# `make demo`, `make test`, `make docs`: each does its own set-up in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo docs test lint setup

demo: setup
	$(BIN)/python -m pipelines run shapes --out runs/demo --jobs 2

# Numba does not notice that a function a cached kernel calls has changed in another module.
test: lint docs
	find texturegen -name '*.nb[ci]' -delete
	rm -f .coverage .coverage.* coverage.json
	# A core for each of the two: torch threads that wait for each other spin.
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -n 2 --dist worksteal
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage json --quiet -o coverage.json --fail-under 0
	$(BIN)/python tests/check_coverage.py coverage.json
	$(BIN)/coverage report --skip-covered --sort=cover

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
