# `make run` and `make test` are all a fresh machine needs; each sets up what it uses.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: run dist test pytest test-all test-faults soak fuzz check format man bench clean

# Start a daemon on config.yaml if none answers, then open the interactive client. Commands can be piped in.
run: $(VENV)/ready
	@$(BIN)/python client.py --spawn

test: check pytest

pytest: $(VENV)/ready-dev
	@$(BIN)/python -m pytest $(ARGS)

# All tests with each Python that is supported and found, each in a virtual environment of its own (.venv-3.X).
# VERSIONS=3.14 is one of them; ARGS go to pytest.
test-all:
	@$(PYTHON) -m tests.matrix "$(VERSIONS)" $(ARGS)

# Crashes, broken disks and abuse, many times over: some 20 minutes. As root all of it runs; what cannot is skipped with
# its reason.
test-faults: $(VENV)/ready-dev
	@$(BIN)/python -m pytest tests/faults --faults=full --timeout=600 -rs $(ARGS)

# Let a fuzzer try each of TARGETS (all) for so many seconds; what it finds of interest goes to tests/fuzz/corpus.
SECONDS := 60
fuzz: $(VENV)/ready-fuzz
	@$(BIN)/python -m tests.fuzz.run $(SECONDS) $(TARGETS)

# Crash one store again and again for HOURS, a fraction is fine; as root with power cuts.
HOURS ?= 1
soak: $(VENV)/ready-dev
	@$(BIN)/python -m tests.faults.soak --hours $(HOURS) $(ARGS)

check: $(VENV)/ready-dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(VENV)/ready-dev
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

# Write the manual pages anew, from the parsers and config.yaml; a test tells when that is due.
man: $(VENV)/ready-dev
	@$(BIN)/python docs/man/generate.py

# `make bench ARGS=--quick` only sees that all of it works.
bench: $(VENV)/ready-bench
	@$(BIN)/python bench/run.py $(ARGS)

# A source distribution and a wheel, in dist/.
dist: $(VENV)/ready-dev
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation >&2

clean:
	rm -rf $(VENV) $(VENV)-3.* build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pfsd needs Python 3.11 or newer")'
	@echo "making a virtual environment in $(VENV)" >&2
	@$(PYTHON) -m venv $(VENV) || { \
		echo "python3 -m venv failed; on Debian: apt-get install python3-venv" >&2; rm -rf $(VENV); exit 1; }

# What is said goes to stderr: the output of `make run` with piped commands is the client's alone.
$(VENV)/ready: setup.cfg pyproject.toml | $(BIN)/python
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cli,simd]' >&2
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' >&2
	@touch $@

$(VENV)/ready-fuzz: $(VENV)/ready-dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz]' >&2
	@touch $@

$(VENV)/ready-bench: $(VENV)/ready
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]' >&2
	@touch $@
