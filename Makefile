# Every target below creates .venv and installs what it needs by itself.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
LMMS := .venv-lmms-eval
LMMS_STAMP := $(LMMS)/.installed
# What lmms-eval's evaluator imports beside what we need ourselves. Its other requirements are those
# of single models and tasks; torchvision among them, which has no build for the CPU torch.
LMMS_NEEDS := lmms-eval==0.7.3 evaluate==0.4.6 loguru==0.7.3 pytablewriter==0.38.0 pytz==2026.6 \
	sacrebleu==2.6.0 tenacity==9.2.1
# gradio comes without its requirements, and these are they: it asks for Pillow below 13, while all
# else here is tested with 13, and gradio too (tests/demo). 'pip install .[demo]' takes Pillow 12.
DEMO_NEEDS := gradio brotli fastapi gradio-client groovy hf-gradio orjson pydub python-multipart \
	pytz safehttpx semantic-version starlette tomlkit uvicorn
SEED ?= 0
RUN ?= runs/quickstart/seed=$(SEED)
# More workers than cores make the tests slower; one thread each, for tiny tensors.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install quickstart smoke demo test test-slow test-lmms-eval lint format notebooks clean

help: ## What there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(STAMP) ## The environment alone: .venv with everything the other targets use

quickstart: $(STAMP) ## Train and evaluate on embedded weights and data; about 25 minutes of 2 cores
	$(BIN)/python experiments/train.py experiment=quickstart seed=$(SEED)
	$(BIN)/python experiments/evaluate.py run=runs/quickstart/seed=$(SEED)

smoke: $(STAMP) ## The quickstart's whole path in about 3 minutes; learns nothing
	$(BIN)/python experiments/train.py experiment=smoke seed=$(SEED)
	$(BIN)/python experiments/evaluate.py run=runs/smoke/seed=$(SEED)

demo: $(STAMP) ## A local page to ask the quickstart's run (another one: make demo RUN=runs/...)
	$(BIN)/python experiments/demo.py run=$(RUN)

test: $(STAMP) ## The quick tests: no download, no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

test-slow: $(STAMP) ## The tests with real weights and data (fetched once) and the notebooks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n $(WORKERS) --durations=10

test-lmms-eval: $(LMMS_STAMP) ## The adapter under the real lmms-eval, in an environment of its own (2 GB)
	OMP_NUM_THREADS=1 $(LMMS)/bin/python -m pytest tests/interop/test_lmms_eval.py

lint: $(STAMP) ## Style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: $(STAMP) ## Apply what lint would ask of style and formatting
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

notebooks: $(STAMP) ## Open the notebooks in the browser (installs Jupyter Lab)
	$(BIN)/python -m pip install -c constraints.txt jupyterlab
	$(BIN)/jupyter lab notebooks

clean: ## Remove the environment and caches of tools; runs/ and downloaded assets stay
	rm -rf .venv $(LMMS) .pytest_cache .ruff_cache build dist *.egg-info
	find flamingo experiments tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last: an interrupted installation is repeated, a finished one is not.
# torch comes first: any build of the pinned version that is already in .venv (say, for another
# CUDA version) satisfies the rest and is kept.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"Python >= 3.11 is needed, {sys.executable} is {v.major}.{v.minor}: make PYTHON=python3.12 ...")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install -c constraints.txt setuptools torch
	$(BIN)/python -m pip install -c constraints.txt --no-build-isolation -e '.[dev,notebooks,track]'
	$(BIN)/python -m pip install -c constraints.txt --no-deps $(DEMO_NEEDS)
	@touch $@

# lmms-eval comes without its requirements (see LMMS_NEEDS), the others with theirs.
$(LMMS_STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(LMMS)
	$(LMMS)/bin/python -m pip install -c constraints.txt setuptools torch
	$(LMMS)/bin/python -m pip install -c constraints.txt --no-build-isolation -e '.[dev]'
	$(LMMS)/bin/python -m pip install -c constraints.txt $(filter-out lmms-eval%,$(LMMS_NEEDS))
	$(LMMS)/bin/python -m pip install --no-deps $(filter lmms-eval%,$(LMMS_NEEDS))
	@touch $@
