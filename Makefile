# Needs GNU make and Python 3.10 to 3.13 with its `venv` module, nothing else. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
# Only ready-made files, each with its recorded hash: no compiler is needed and no foreign build script runs.
PIP_INSTALL = $(VENV)/bin/python -m pip install --disable-pip-version-check --require-virtualenv
LOCKED = --require-hashes --only-binary :all:
# The packages are imported as they are needed; compiling all of them beforehand takes longer than the demo itself.
NO_COMPILE = --no-compile
# That once: without the bytecode each process of a search would compile TensorFlow and Ray again, its whole start twice.
unexport PYTHONDONTWRITEBYTECODE
PYTEST_ARGS ?=
# The tests wait for servers and clusters about as long as they compute; each process holds up to 4 GB. Files stay in
# the order of tests/conftest.py, the long ones first: xdist would begin with those of many tests.
SIDE_BY_SIDE = -n 2 --dist loadgroup --no-loadscope-reorder
UV ?= uv

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo cluster-demo test check format lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.all ## Install into .venv

demo: $(VENV)/.all ## Install, then sample -> tune -> serve -> classify over HTTP
	$(VENV)/bin/rayml demo

cluster-demo: $(VENV)/.all ## Install, then the manifests' own texts on a cluster of this machine (Linux)
	$(VENV)/bin/python -m scripts.cluster_demo

test: $(VENV)/.dev ## Install what tests need, then run them; PYTEST_ARGS="-m slow" for the long ones
	$(VENV)/bin/python -m pytest $(SIDE_BY_SIDE) $(PYTEST_ARGS)

check: $(VENV)/.dev ## Lint, format, types, import directions
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy
	$(VENV)/bin/python -m pytest -q tests/test_structure.py

format: $(VENV)/.dev ## Let ruff put the code into form
	$(VENV)/bin/python -m ruff check --fix .
	$(VENV)/bin/python -m ruff format .

# The first holds everything; the others take their versions from it, so that all of them install the same.
PINS = $(UV) pip compile --no-config --quiet --universal --python-version 3.10 --only-binary :all: \
	--generate-hashes --no-annotate --no-header --no-emit-index-url
COMPILE = $(PINS) pyproject.toml requirements/build.in
lock: ## Renew the pins with uv; LOCK_ARGS=--upgrade for new versions
	$(COMPILE) $(LOCK_ARGS) --extra dev -o requirements/dev.txt
	$(COMPILE) --extra all -c requirements/dev.txt -o requirements/all.txt
	$(COMPILE) --extra serve -c requirements/dev.txt -o requirements/serve.txt
	$(COMPILE) --extra all --extra cuda -c requirements/dev.txt -o requirements/cuda.txt
	$(PINS) requirements/vm.in -c requirements/dev.txt -o requirements/vm.txt

clean: ## Remove the environment and caches
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: a file is written only when the whole step went well, so that a broken installation is done again.
$(VENV)/.all: requirements/all.txt pyproject.toml
	$(call install,$<)
$(VENV)/.dev: requirements/dev.txt pyproject.toml
	$(call install,$<)

define install
@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
	{ echo 'rayml needs Python 3.10 to 3.13. Received: '"`$(PYTHON) --version 2>&1`"; \
	echo 'Name another one: make PYTHON=python3.12'; exit 1; } >&2
$(PYTHON) -m venv $(VENV)
$(PIP_INSTALL) $(LOCKED) $(NO_COMPILE) -r $(1)
$(PIP_INSTALL) --no-deps --no-build-isolation --no-index --quiet -e .
@touch $@
endef
