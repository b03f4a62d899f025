# make demo   install, record the demo on real digits, replay and verify it, open the app (NO_BROWSER=1 only serves)
# make test   install what the tests need, a browser included where it can, and run them
# Python 3.11 or newer is all that is needed; PYTHON=python3.12 or VENV=path choose another.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_FLAGS ?=
# Empty or not: `rewind` reads it.
export NO_BROWSER

.PHONY: demo test app bench bench-quick trust soak clean browser screenshots
.DELETE_ON_ERROR:

demo: $(VENV)/.rewind
	$(BIN)/rewind demo $(DEMO_FLAGS)

app: $(VENV)/.rewind
	$(BIN)/rewind app runs

test: $(VENV)/.rewind-test browser
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

bench: $(VENV)/.rewind-bench
	$(BIN)/python -m tests.benchmarks.run

bench-quick: $(VENV)/.rewind-bench
	$(BIN)/python -m tests.benchmarks.run --quick

# The browser tests use the system's Chromium; where none can be had they are skipped and say so.
browser:
	@if { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
		echo "installing chromium for the browser tests"; \
		{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium; } \
			>/dev/null || echo "chromium could not be installed: the browser tests will be skipped"; \
	else echo "no chromium here: the browser tests will be skipped"; fi

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Rewind needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	@echo 'installing into $(VENV): several GB the first time, some minutes'

# The stamps: nothing is installed again until pyproject.toml changes.
$(VENV)/.rewind: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/.rewind-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e ".[test]"
	@touch $@ $(VENV)/.rewind

$(VENV)/.rewind-bench: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e ".[bench]"
	@touch $@ $(VENV)/.rewind

# The pictures of the README, from the demo's own trace.
screenshots: $(VENV)/.rewind-test browser
	$(BIN)/python -m tests.browser.screenshots

# Every damage, kill and fault in full numbers: two hours or so. `make test` has a sample.
trust: $(VENV)/.rewind-test
	REWIND_FLIPS=10000 REWIND_EVERY=1 REWIND_KILLS=200 $(BIN)/python -m pytest tests/trust --timeout=0
	$(PYTHON) -m venv $(VENV)/fuzz
	$(VENV)/fuzz/bin/python -m pip install --quiet "schemathesis>=4.3"
	$(BIN)/python -m tests.trust.fuzz_api $(VENV)/fuzz/bin/schemathesis 1000

# Record, kill, resume, repair, read, in any order, for so many minutes: memory and open files must stay as they are.
SOAK_MINUTES ?= 30
soak: $(VENV)/.rewind-test
	$(BIN)/python -m tests.trust.soak $(SOAK_MINUTES)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
