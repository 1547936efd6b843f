# The few commands that a person types; `make help` lists them.
PYTHON ?= python3
PORT ?= 8000
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help serve install test test-slow lint image clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

serve: .venv-serve/installed ## start the service on the built-in model; PORT=8000
	.venv-serve/bin/clq-serve run --port $(PORT)

install: .venv/installed ## install everything into .venv

test: .venv/installed ## the tests, under 5 minutes on 2 cores after installing
	.venv/bin/python -m pytest

test-slow: .venv/installed ## the tests that take long or need Docker; each skipped one says why
	.venv/bin/python -m pytest -m 'slow and not gpu' -rs

lint: .venv/installed ## ruff and mypy
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

image: ## build the Docker image of the service
	docker build -f docker/serve.Dockerfile -t clq-serve .

clean: ## remove the virtual environments
	rm -rf .venv .venv-serve

# Editable installs: the environments follow the sources, and are made again when a dependency changes.
.venv-serve/installed: serve/pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "CLQ needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv-serve
	.venv-serve/bin/python $(PIP_INSTALL) --editable ./serve
	touch $@

.venv/installed: train/pyproject.toml export/pyproject.toml serve/pyproject.toml client/pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "CLQ needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP_INSTALL) -r requirements-dev.txt
	.venv/bin/python $(PIP_INSTALL) --editable ./serve --editable './client[cli,video,parquet,eval]' --editable './train[tensorboard]' --editable ./export
	touch $@
