# Two commands do everything: `make pretrain` and `make test`. `make help` lists the rest.
PYTHON ?= python3
MODEL ?= cmt
STORE ?= .cache/sample_world
VENV := .venv
BENCHMARKS := startup images prepare decode train_step finetune_step models evaluate checkpoint learning transfer
BIN := $(CURDIR)/$(VENV)/bin
INSTALLED := $(VENV)/.installed

# The virtual environment's ninja for every process that is started here. DeepSpeed's compiled operations: the package has the
# same default (cromic_ds/shipped.py).
export PATH := $(BIN):$(PATH)
export TORCH_EXTENSIONS_DIR ?= $(CURDIR)/.cache/torch_extensions
export TOKENIZERS_PARALLELISM := false

# Two processes of one thread each take half the time of one process with two threads.
FAST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not long and not cluster"

.PHONY: help setup sample pretrain test test-fast test-long test-cluster lint bench clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(INSTALLED) ## create .venv, install everything, compile DeepSpeed's operation

# torch first: DeepSpeed's build looks for it. The last line compiles DeepSpeed's one CPU operation (about a minute, once).
$(INSTALLED): requirements.txt pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "$$(grep '^torch==' requirements.txt)" "$$(grep '^numpy==' requirements.txt)"
	$(BIN)/pip install --quiet -r requirements.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -c "from cromic_ds.engine import process_group as p; p.start(); p.stop()"
	touch $@

$(STORE)/store.json: | setup
	cromic-ds sample --out $(STORE) --posts 20000

sample: $(STORE)/store.json ## write the sample world

pretrain: sample ## pretrain a small model on the sample world and show its comments (MODEL=cmt RUN=folder)
	@cromic-ds pretrain --config sample_$(MODEL) --gpus all --data.path $(STORE) $(if $(RUN),--out $(RUN))

test: setup lint ## all tests but the long ones and those on a cluster
	$(FAST)
	$(BIN)/python -m pytest -m "slow and not long and not cluster"

test-fast: setup lint ## the tests that start no training run
	$(FAST)

test-long: setup ## the tests that train models to a score, and others that take long (20 minutes)
	$(BIN)/python -m pytest -m long

test-cluster: setup ## the tests that launch on a Slurm and ssh cluster, which they start (as root; Debian's slurm-wlm munge pdsh openssh-server)
	$(BIN)/python -m pytest -m cluster

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

bench: setup ## all benchmarks; each prints its ratio to a baseline measured in the same run
	@failed=; for b in $(BENCHMARKS); do echo "== $$b"; $(BIN)/python benchmarks/$$b.py || failed="$$failed $$b"; done; \
	test -z "$$failed" || { echo "these missed their target or failed:$$failed"; exit 1; }

clean: ## remove what the commands above made, except run folders
	rm -rf $(VENV) .cache
