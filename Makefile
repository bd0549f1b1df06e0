# Two commands matter: `make demo` and `make test`. Both set up everything they need in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A tiny model on two cores gains nothing from more threads than cores; THREADS=8 make test to change it.
THREADS ?= 2
# Processes of pytest at the same time; each has one thread. Three for two cores: the tests on the cluster mostly wait for it.
WORKERS ?= 3
export OMP_NUM_THREADS = $(THREADS)
# Waiting OpenMP threads sleep soon, so that two processes on two cores do not hold each other up.
export GOMP_SPINCOUNT = 1000
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Modules are compiled once, also where the environment says otherwise: hundreds of processes import them.
export PYTHONDONTWRITEBYTECODE =
export PYDEVD_DISABLE_FILE_VALIDATION = 1
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: help demo test test-quick test-notebooks test-python lint ratchet check docs readme export clean outputs venv dev bench bench-suite wheel-test extras-test lab

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"xrddiff needs Python 3.11 or newer, this is {sys.version.split()[0]}; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: settings.ini setup.py constraints.txt | $(BIN)/python
	@echo "installing xrddiff into $(VENV) (a few minutes the first time)"
	$(PIP) --editable .
	@touch $@

$(VENV)/.dev: settings.ini setup.py constraints.txt | $(BIN)/python
	@echo "installing xrddiff and its development tools into $(VENV) (a few minutes the first time)"
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.runtime

venv: $(VENV)/.runtime  ## virtual environment with the package
dev: $(VENV)/.dev  ## virtual environment with the development tools too

demo: $(VENV)/.runtime  ## tune the pretrained model for a crystal that it has not seen, judge its samples, write report.html
	$(BIN)/xrddiff run experiment_type=demo

test: lint test-python  ## everything: lint, every cell of every notebook, all other tests

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tools/ratchet.py
	$(BIN)/python tools/prose.py

ratchet: $(VENV)/.dev  ## write down the numbers of tools/ratchet.py that have fallen
	$(BIN)/python tools/ratchet.py --lower

# Tests that share a cluster or a trained run stay together (tests/conftest.py).
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS)

test-python: $(VENV)/.dev
	$(PYTEST) $(PYTEST_ARGS)

# The notebooks are the unit tests: every cell runs, each notebook in a process of its own.
test-notebooks: $(VENV)/.dev  ## the cells of the notebooks alone
	$(PYTEST) tests/test_cells.py $(PYTEST_ARGS)

test-quick: lint  ## for the daily loop: lint, the notebooks that changed since main, every test that is not marked slow
	@notebooks=$$( (git diff --name-only --diff-filter=d $$(git merge-base main HEAD 2>/dev/null || echo HEAD); git ls-files --others --exclude-standard) | grep -E '^nbs/.*\.ipynb$$' | grep -v '^nbs/runs/' | sort -u ); \
	for notebook in $$notebooks; do echo "$$notebook"; OMP_NUM_THREADS=1 $(BIN)/nbdev_test --path $$notebook --n_workers 0 || exit 1; done
	$(PYTEST) -m 'not slow' $(PYTEST_ARGS)

export: $(VENV)/.dev  ## notebooks -> xrddiff/*.py, cleaned and formatted; FILE=nbs/….ipynb: that one, and its cells are run
ifeq ($(FILE),)
	$(BIN)/ruff format -q nbs index.ipynb
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_clean --fname index.ipynb
	$(BIN)/nbdev_export --skip_folder_re '^([_.]|tutorials)'
	$(BIN)/python -c 'from xrddiff.core.registry import write_index; write_index()'
else
	$(BIN)/ruff format -q $(FILE)
	$(BIN)/nbdev_clean --fname $(FILE)
	$(BIN)/nbdev_export --path $(FILE)
	@if grep -q 'register(' $(FILE); then $(BIN)/python -c 'from xrddiff.core.registry import write_index; write_index()'; fi
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --path $(FILE) --n_workers 0
endif

outputs: $(VENV)/.dev  ## run the notebooks in place, so that the outputs they carry are current
	OMP_NUM_THREADS=1 $(BIN)/python docs/execute.py

readme: $(VENV)/.dev  ## index.ipynb -> README.md
	$(BIN)/python docs/readme.py

docs/node_modules/katex: docs/package-lock.json
	cd docs && npm ci --no-audit --no-fund --silent
	@touch $@

docs: $(VENV)/.dev docs/node_modules/katex  ## the offline documentation site, in docs/_build/html
	$(BIN)/python docs/build.py

wheel-test: $(VENV)/.dev  ## build wheel and sdist, install the wheel in an empty environment, run the main job there (PYTHONS=/path/to/python3.13 …)
	$(BIN)/python tests/wheel.py $(PYTHONS)

extras-test: $(VENV)/.dev  ## each extra alone in an environment of its own, with its main use; what a plain installation says without it (EXTRAS="lab s3")
	$(BIN)/python tools/extras.py $(EXTRAS)

bench: $(VENV)/.dev  ## the benchmarks against peers, each in its own table
	@for b in $(filter-out bench/suite.py bench/harness.py, $(wildcard bench/*.py)); do echo "== $$b"; $(BIN)/python $$b || exit 1; done

bench-suite: $(VENV)/.dev  ## how long the checks take, step by step (bench/results/suite.md)
	$(BIN)/python bench/suite.py

lab: $(VENV)/.dev  ## the tutorials, in JupyterLab
	$(BIN)/xrddiff lab

check: export readme  ## what CI asks of a commit beyond the tests: export, clean and README leave no difference
	git diff --exit-code

clean:  ## remove what was built (keeps .venv and output/)
	rm -rf build dist docs/_build _proc _docs *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -exec rm -rf {} +
