# Everything a person types. `make` alone lists the targets.
#
# Needs Python 3.11 to 3.13, git and make. uv is used when it is on PATH and otherwise fetched from the package
# registry into .uv-bootstrap/; an interpreter is never downloaded.

HOME_DIR ?= .bike
COMMIT ?= HEAD
ARGS ?=
# Two test processes, a file in one of them, in the order of the folders: most tests wait for processes of their own.
WORKERS ?= -n 2 --dist loadfile --no-loadscope-reorder

BOOTSTRAP := .uv-bootstrap
UV_VERSION := 0.13.8
UV_ON_PATH := $(shell command -v uv 2>/dev/null)
UV := $(or $(UV_ON_PATH),$(BOOTSTRAP)/bin/uv)

# The first interpreter that the project supports. An existing environment comes before what is on PATH, so that a
# second Python never makes uv throw the environment away. Looked up once, and only when a target needs it.
# UV_PYTHON (a path or a version such as 3.13) overrides it.
PYTHON_CANDIDATES := "$${UV_PROJECT_ENVIRONMENT:-.venv}/bin/python" python3.12 python3.13 python3.11 python3 python
FIND_PYTHON = for candidate in $(PYTHON_CANDIDATES); do "$$candidate" -c \
	'import sys; (3, 11) <= sys.version_info[:2] <= (3, 13) or sys.exit(1); print(sys.executable)' \
	2>/dev/null && break; done
FOUND_PYTHON = $(eval FOUND_PYTHON := $$(shell $$(FIND_PYTHON)))$(FOUND_PYTHON)
PYTHON = $(or $(UV_PYTHON),$(FOUND_PYTHON))

RUN = UV_PYTHON="$(PYTHON)" $(UV) run --locked

export UV_PYTHON_DOWNLOADS := never
export UV_HTTP_TIMEOUT ?= 180
# Without compiled modules every process would compile thousands of files again.
unexport PYTHONDONTWRITEBYTECODE
# No library reports home. MLflow understands the word, not 1.
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export DAGSTER_DISABLE_TELEMETRY := 1
export DBT_SEND_ANONYMOUS_USAGE_STATS := false
export GX_ANALYTICS_ENABLED := false

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-all check lint-deploy dbt-slim audit up compose-up bench clean python

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(UV) ## everything from nothing, offline: simulated city, six assets, champion, report (HOME_DIR=.bike, ARGS=)
	$(RUN) bike-assets demo --home "$(HOME_DIR)" $(ARGS)

test: $(UV) ## the test suite without the proofs that take minutes
	$(RUN) pytest -m "not slow" $(WORKERS) $(ARGS)

test-all: $(UV) ## the test suite with the proofs that take minutes
	$(RUN) pytest $(ARGS)

check: $(UV) ## lint, formatting, types, import contracts, what Dagster loads
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy
	$(RUN) lint-imports
	$(RUN) dg check defs

lint-deploy: $(UV) ## lint of workflows, Dockerfiles and manifests, and a search for secrets
	UV="$(UV)" PYTHON="$(PYTHON)" .ci/lint-deploy

dbt-slim: $(UV) ## changed dbt models and what follows, built beside a home of other code (HOME_DIR=.bike, COMMIT=HEAD)
	$(RUN) .ci/dbt-slim "$(HOME_DIR)" "$(COMMIT)"

audit: $(UV) ## known vulnerabilities of what uv.lock installs
	$(UV) audit --locked --preview-features audit-command

up: $(UV) ## Dagster UI :3000, MLflow :5000, REST service :8000 over the same local home (HOME_DIR=.bike)
	$(RUN) bike-assets up --home "$(HOME_DIR)" $(ARGS)

# Debian's docker-compose, which comes without the plugin, understands the same.
COMPOSE ?= docker compose

.env:
	deploy/make-env

compose-up: .env ## the same as containers with PostgreSQL and TLS: https://localhost:8443 (COMPOSE="docker compose")
	GIT_COMMIT="$$(git rev-parse HEAD 2>/dev/null || echo unknown)" $(COMPOSE) up -d --build

# What benchmarks are compared with, and what mutates, is no dependency of ours.
RIVALS := --with cosmic-ray==8.7.0 --with mlforecast

bench: $(UV) ## every performance claim, measured again
	@set -e; for claim in benchmarks/*.py; do \
		case "$$claim" in */__init__.py|*/_*) continue;; esac; \
		test -e "$$claim" || { echo "make: benchmarks/ holds no benchmark" >&2; exit 1; }; \
		echo "== $$claim"; $(RUN) $(RIVALS) python "$$claim" $(ARGS); done

clean: ## remove caches and build output; keeps .venv and the home folder
	rm -rf dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis catboost_info \
		dbt_project/target dbt_project/logs
	find bike_assets bike_assets_tests serving -type d -name __pycache__ -prune -exec rm -rf {} +

python:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11, 3.12 or 3.13 on PATH; install one, or name it with UV_PYTHON=/path/to/python" >&2; exit 1; }

ifeq ($(UV_ON_PATH),)
$(UV): | python
	@echo "uv is not on PATH: installing it into $(BOOTSTRAP)/"
	@rm -rf $(BOOTSTRAP)
	@"$(FOUND_PYTHON)" -m venv $(BOOTSTRAP) >/dev/null || { rm -rf $(BOOTSTRAP); \
		echo "make: $(FOUND_PYTHON) cannot create environments; install its venv module (python3-venv on Debian) or uv itself" >&2; exit 1; }
	@$(BOOTSTRAP)/bin/python -m pip install --quiet --disable-pip-version-check "uv==$(UV_VERSION)" || { rm -rf $(BOOTSTRAP); \
		echo "make: uv $(UV_VERSION) cannot be installed from the package registry; check the network or install uv yourself" >&2; exit 1; }
	@echo '*' > $(BOOTSTRAP)/.gitignore
else
$(UV): python ;
endif
