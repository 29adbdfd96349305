# make run      a fleet of real workers, kept alive by Dagster, on this machine
# make chaos    kills one of its workers
# make test     the tests of a developer: all that need no engine, no browser and no long time
# make test-all the other tests; those of engines that are not there are skipped, and say so
# make engines  Flink, Spark and a Kubernetes API for the tests; needs Java 11, npm and 600 MB
# make test-lowest  some tests on the lowest versions that pyproject.toml allows
# make lint     ruff, mypy, import-linter
# make vulnerabilities  what is known against the versions in uv.lock, where that can be asked
# make bench    the benchmarks, which print ratios

FOLDER := .dagster-amoro
VENV := $(FOLDER)/venv
BIN := $(VENV)/bin
LOWEST := $(FOLDER)/lowest
UV := UV_PROJECT_ENVIRONMENT=$(VENV) UV_PYTHON_DOWNLOADS=never $(BIN)/uv

# The first of these that is there, works and is new enough; `make PYTHON=… run` chooses another.
PYTHON ?= $(shell for python in python3.14 python3.13 python3.12 python3.11 python3; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' \
	2>/dev/null && echo $$python && break; done)

# As many processes as processors; tests that share a cluster stay in one of them.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadgroup --durations 10

# uv trusts whom the system trusts, as pip does: behind a proxy that is the company's authority.
export UV_SYSTEM_CERTS := true
# Where it is set, each of the many processes would compile all of Dagster anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run chaos test test-all test-lowest engines lint vulnerabilities bench clean

run: $(VENV)/ready
	@$(BIN)/python -m dagster_amoro.demo run --folder $(FOLDER)

chaos: $(VENV)/ready
	@$(BIN)/python -m dagster_amoro.demo chaos --folder $(FOLDER)

test: $(VENV)/ready
	@$(PYTEST) --suite developer

test-all: $(VENV)/ready
	@$(PYTEST) --suite rest

# What the libraries could break; warnings of old versions about each other are not ours to mend.
test-lowest: $(LOWEST)/ready
	@$(LOWEST)/bin/python -m pytest --numprocesses auto --dist loadgroup --suite developer \
		-o filterwarnings=default --disable-warnings \
		tests/unit/test_charts.py tests/unit/test_frames.py tests/unit/test_amoro_config.py \
		tests/unit/test_public_api.py tests/integration/stores tests/integration/test_ams_ping.py \
		tests/integration/test_loop.py tests/integration/test_cli.py \
		tests/integration/test_checks.py tests/integration/test_history.py

lint: $(VENV)/ready
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

vulnerabilities: $(VENV)/ready
	@scripts/vulnerabilities.sh $(BIN)/uv

bench: $(VENV)/ready
	@$(BIN)/python -m benchmarks

engines: $(VENV)/ready
	@PYTHON=$(BIN)/python tests/engines/install.sh $(FOLDER)/engines

clean:
	rm -rf $(FOLDER)

# Exactly the versions of uv.lock, uv's own included.
$(VENV)/ready: uv.lock pyproject.toml client/pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 to 3.14 is needed: make PYTHON=/path/to/python run"; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON), once; this takes a minute …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(UV) sync --quiet --locked --all-extras
	@touch $@

# The lowest versions that pyproject.toml allows, as wheels, and the newest of what those need.
$(LOWEST)/ready: $(VENV)/ready pyproject.toml client/pyproject.toml
	@echo "Setting up $(LOWEST), once …"
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(LOWEST)
	@$(BIN)/uv pip compile --quiet --no-header --all-extras --group test --only-binary :all: \
		--no-binary pypd --no-emit-package dagster-amoro-worker --resolution lowest-direct \
		--python $(BIN)/python -o $(LOWEST)/versions.txt pyproject.toml
	@$(BIN)/uv pip sync --quiet --python $(LOWEST)/bin/python $(LOWEST)/versions.txt
	@$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python --no-deps \
		--editable . --editable client
	@touch $@
