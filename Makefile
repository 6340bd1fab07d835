# Everything here makes its own environment first: GNU make, a shell and
# Python 3.11 or newer are enough. Override with, for example,
#
#   make demo PYTHON=python3.12 VENV=.venv312
#   make demo EXTRAS=dev,gpu

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev
WORKDIRS ?= $(wildcard runs/*)
CONFIG ?= experiments/r1_zero.py
TOPOLOGY ?= v5p:8x8x8
FLAGS ?=
TPU_VENV ?= .venvtpu
TESTS ?= tests
PART ?=

RUN = "$(VENV)/bin/python"
RUN_TPU = "$(TPU_VENV)/bin/python"
MAKEFLAGS += --no-print-directory

# They would put other packages in front of the environment's own.
unexport PYTHONPATH PYTHONHOME

.DEFAULT_GOAL := help
.PHONY: help demo demo-base r1 r1-base golden test lint soak soak-list report clean
.PHONY: venv plan plans test-cluster test-tpu venv-tpu notebooks docs venv-docs

help:
	@echo "make demo       R1-Zero from the shipped base model, then a report"
	@echo "make demo-base  that base model, from nothing"
	@echo "make r1         all stages of R1 and two students, then a report"
	@echo "make r1-base    the base model that they start from, from nothing"
	@echo "make test       the tests"
	@echo "make lint       style"
	@echo "make golden     writes the numbers of the demo's first round anew"
	@echo "make soak       the tests that take long, or PART of them, as far as"
	@echo "                they have not passed; make soak-list: the parts"
	@echo "make report     compare the runs in WORKDIRS ($(WORKDIRS))"
	@echo "make notebooks  executes notebooks/ anew, outputs included"
	@echo "make docs       the docs, as HTML in site/"
	@echo "make plan       what CONFIG would take of TOPOLOGY, with any FLAGS"
	@echo "make plans      plans of the large runs, as tables; takes hours"
	@echo "make test-cluster, make test-tpu: the tests of several processes, and"
	@echo "                those that compile for TPUs, on a CPU"
	@echo "make clean      remove environments and caches; runs/ stays"

demo: venv
	@$(RUN) -m r1jax train --config=experiments/demo.py --workdir=runs/demo

demo-base: venv
	@$(RUN) -m r1jax train --config=experiments/demo_base.py \
	  --workdir=runs/demo_base
	@cp runs/demo_base/model/* r1jax/base/
	@echo "it is what r1jax/base ships now"

r1: venv
	@$(RUN) -m r1jax train --config=experiments/r1/pipeline.py:tiny \
	  --workdir=runs/r1
	@$(RUN) -m r1jax report runs/r1

r1-base: venv
	@$(RUN) -m r1jax train --config=experiments/r1/base.py \
	  --workdir=runs/r1_base
	@mkdir -p r1jax/base_r1
	@cp runs/r1_base/model/* r1jax/base_r1/
	@echo "it is what r1jax/base_r1 ships now"

test: venv
	@$(RUN) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder \
	  $(TESTS)

golden: venv
	@$(RUN) tests/test_golden.py

lint: venv
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@"$(VENV)/bin/shellcheck" launch/*.sh .ci/run .ci/soak

soak: venv-docs
	@VENV="$(VENV)" .ci/soak $(PART)

soak-list:
	@.ci/soak --list

report: venv
	@$(RUN) -m r1jax report $(WORKDIRS)

# Each notebook is written from its plain text, and executed. R1JAX_FAST=1 tries
# them with next to no training.
notebooks: venv-docs
	@rm -rf runs/notebook_*
	@for text in notebooks/[0-9]*.py; do \
	  echo "$$text"; \
	  "$(VENV)/bin/jupytext" --quiet --update --to ipynb "$$text" && \
	  "$(VENV)/bin/jupyter" nbconvert --log-level WARN --to notebook --inplace \
	    --ExecutePreprocessor.record_timing=False --execute \
	    "$${text%.py}.ipynb" || exit 1; \
	done

# Warnings are errors: mkdocs.yml sets `strict`.
docs: venv-docs
	@NO_MKDOCS_2_WARNING=1 "$(VENV)/bin/mkdocs" build --quiet
	@echo "open site/index.html, or: $(VENV)/bin/mkdocs serve"

venv-docs:
	@$(MAKE) venv EXTRAS="$(EXTRAS),notebooks,docs"

# With SLURM (slurm-wlm, munge) and Open MPI (openmpi-bin), all of them run.
test-cluster: venv
	@$(RUN) -m pytest -q -m cluster

# libtpu compiles for TPUs that are not there; it has an environment of its own.
venv-tpu:
	@$(MAKE) venv VENV="$(TPU_VENV)" EXTRAS=dev,tpu

plan: venv-tpu
	@$(RUN_TPU) -m r1jax plan --config="$(CONFIG)" \
	  --topology="$(TOPOLOGY)" --json $(FLAGS)

plans: venv-tpu
	@$(RUN_TPU) -m r1jax.tools.plan.tables

test-tpu: venv-tpu
	@$(RUN_TPU) -m pytest -q -n 2 -m tpu

clean:
	rm -rf .venv .venv3* "$(TPU_VENV)" build dist site *.egg-info .pytest_cache .ruff_cache
	rm -rf .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment is stale when what it was made from has changed: the
# interpreter, the requirements, the place of the repository. The stamp is
# written last, so an install that fails leaves none. pip compiles on one core,
# compileall on all of them.
define IDENTITY
import hashlib, os, sys
if sys.version_info < (3, 11):
  sys.exit(
    "error: r1jax needs Python 3.11 or newer, and %s is %d.%d; name another: "
    "make PYTHON=python3.12" % ((os.environ["PYTHON"],) + sys.version_info[:2])
  )
version = "py%d%d" % sys.version_info[:2]
constraints = "constraints/%s.txt" % version
made_from = [sys.version, os.path.realpath(sys.executable)]
made_from += [os.getcwd(), os.environ["EXTRAS"]]
for name in ("setup.py", "pyproject.toml", constraints):
  if os.path.exists(name):
    made_from.append(open(name, encoding="utf-8").read())
print(version, hashlib.sha256(repr(made_from).encode()).hexdigest())
endef
export IDENTITY PYTHON EXTRAS

venv:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "error: there is no $(PYTHON); name a Python 3.11 or newer:" \
	    "make PYTHON=python3.12" >&2; exit 1; }; \
	identity=$$("$(PYTHON)" -c "$$IDENTITY") || exit 1; \
	stamp="$(VENV)/.stamp"; \
	if [ "$$(cat "$$stamp" 2>/dev/null)" = "$$identity" ]; then exit 0; fi; \
	rm -f "$$stamp"; \
	version=$${identity%% *}; \
	began=$$(date +%s); \
	echo "installing r1jax[$(EXTRAS)] for $$version into $(VENV)" \
	  "(about a minute) ..."; \
	has=$$($(RUN) -c 'import sys, pip; print("py%d%d" % sys.version_info[:2])' \
	  2>/dev/null) || has=; \
	if [ "$$has" != "$$version" ] || [ -e "$(VENV)/.unfinished" ]; then \
	  "$(PYTHON)" -m venv --clear "$(VENV)" || exit 1; fi; \
	touch "$(VENV)/.unfinished"; \
	pins="constraints/$$version.txt"; \
	if [ -e "$$pins" ]; then set -- -c "$$pins"; else set --; \
	  echo "note: $$pins does not exist; taking the newest of everything"; fi; \
	$(RUN) -m pip install -q --no-compile --disable-pip-version-check "$$@" \
	  -e ".[$(EXTRAS)]" || { \
	  echo "error: the install failed; run the command again once the cause" \
	    "above is gone" >&2; exit 1; }; \
	$(RUN) -W ignore -m compileall -qq -j 0 "$(VENV)/lib" || true; \
	rm "$(VENV)/.unfinished"; \
	echo "$$identity" > "$$stamp"; \
	echo "installed in $$(( $$(date +%s) - began )) s"
