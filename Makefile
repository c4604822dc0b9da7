# The two commands: `make transcribe [AUDIO=file]` and `make test`. Both set up .venv first if needed.
AUDIO ?= $(sort $(wildcard samples/*.opus))
PYTHON ?= python3
BIN := .venv/bin

.PHONY: transcribe test check train-mini clean

transcribe: .venv/installed
	@$(BIN)/diffasr transcribe $(AUDIO)

test: .venv/installed-dev
	scripts/test

check: .venv/installed-dev
	scripts/check

train-mini: .venv/installed-dev
	recipes/mini/run

clean:
	rm -rf .venv

.venv/installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON): install Python 3.11 or newer, or say PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
