# Cartridge Foundry. `make quickstart` on a fresh machine sets everything up and does the main job.
#   make PYTHON=python3.12 setup     another interpreter (3.11 to 3.13)
#   make VENV=/tmp/cartridges setup  another environment

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev,eval,flows,gateway,peft,postgres,registry,test,train
PIP_FLAGS ?=
PYTEST_FLAGS ?=
SERVE_FLAGS ?=
QUICKSTART_FLAGS ?=
BENCH_FLAGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help setup quickstart serve test lint format types reference-model bench-train bench-recipe bench-gpu stack-test stack-test-gpu infra-check env wheel clean distclean

help:  ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Create the environment with every extra

# torch goes first and alone: for `torch==2.13.0` pip prefers a local `2.13.0+cpu` wheel wherever its configured links
# (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL, pip.conf) offer one, and what follows finds torch satisfied and pulls no GPU packages.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}: set PYTHON=python3.12, say.")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

quickstart: $(STAMP)  ## Documents to a promoted Cartridge: about 8 minutes on two CPU cores
	$(BIN)/cartridge quickstart $(QUICKSTART_FLAGS)

serve: $(STAMP)  ## The gateway and an engine on http://127.0.0.1:8000 (SERVE_FLAGS="--port 9000")
	$(BIN)/cartridge serve $(SERVE_FLAGS)

test: $(STAMP)  ## All tests (CPU only, no network)
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: $(STAMP)  ## Style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## Apply the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)  ## Type checks
	$(BIN)/mypy

reference-model: $(STAMP)  ## Train the shipped reference model from scratch (two CPU cores: about 35 minutes)
	$(BIN)/python -m cartridge_core.reference.train

bench-train: $(STAMP)  ## Tokens trained a second, against peft's CARTRIDGE: about 5 minutes on two idle cores
	$(BIN)/python -m tests.proofs.bench_train $(BENCH_FLAGS)

bench-recipe: $(STAMP)  ## The default recipe against the paper's: steps and seconds to its loss (about two hours)
	$(BIN)/python -m tests.proofs.bench_recipe $(BENCH_FLAGS)

bench-gpu: $(STAMP)  ## Training speed at Llama 3B and 8B shape (needs a CUDA device)
	$(BIN)/python -m tests.proofs.bench_gpu $(BENCH_FLAGS)

stack-test: $(STAMP)  ## The services of docker-compose.yml without containers, from documents to an answer: 4 to 9 minutes
	$(BIN)/python -m tests.proofs.stack_test $(BENCH_FLAGS)

stack-test-gpu: $(STAMP)  ## The same in the profile gpu: vLLM behind the gateway, on this machine's CPU (make vllm-setup first)
	$(BIN)/python -m tests.proofs.stack_test --profile gpu $(BENCH_FLAGS)

infra-check: $(STAMP)  ## Compose file, manifests and alerts by docker-compose, kubectl and promtool
	$(BIN)/python -m tests.proofs.infra_check

env:  ## Write .env for docker-compose.yml, with fresh secrets
	@$(PYTHON) infra/make_env.py

wheel: $(STAMP)  ## Build the wheel into dist/
	$(BIN)/python -m build --wheel

clean:  ## Remove caches and what was built
	rm -rf build/reports dist .mypy_cache .pytest_cache .ruff_cache
	find cartridge_core flows migrations tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## Remove the environment and the quickstart's products as well
	rm -rf $(VENV) .cartridges
