PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help notebooks test test-all test-least gpu site lab lint clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

notebooks: $(STAMP)  ## run every notebook; executed copies and HTML go to build/notebooks
	$(BIN)/python -m asa_classroom notebooks

test: $(STAMP)  ## run the tests, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0

test-all: $(STAMP)  ## run the slow tests as well
	$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0 -m ""

# They refuse some of the versions in constraints.txt: torch 2.11 takes setuptools below 82, and triton 3.6, which
# cannot be interpreted with numpy 2.4; transformers 5.17 huggingface_hub below 2; datasets 4.0 old fsspec, dill, multiprocess.
LEAST := torch==2.11.0 transformers==5.17.0 accelerate==1.10.0 datasets==4.0.0 'numpy<2.4'
FREE := torch|transformers|accelerate|datasets|numpy|triton|setuptools|huggingface-hub|fsspec|dill|multiprocess
test-least:  ## run the tests with the oldest versions that pyproject.toml allows of torch and Hugging Face, in .venv-least
	$(PYTHON) -m venv .venv-least
	grep -vE '^($(FREE))==' constraints.txt > .venv-least/constraints.txt
	.venv-least/bin/pip install -q -c .venv-least/constraints.txt $(LEAST) -e '.[test]'
	.venv-least/bin/python -m pytest -n 2 --dist loadfile --max-worker-restart 0

# A GPU machine often has no network, but a torch that fits its driver: what PYTHON has is taken as it
# is where that torch has CUDA, and only elsewhere the environment of the other targets.
gpu:  ## check and measure the kernels on an NVIDIA GPU, in 8 minutes at most: results/gpu_*.json
	@if $(PYTHON) -c 'import sys, torch, transformers, triton; sys.exit(not torch.version.cuda)' 2> /dev/null; \
	then $(PYTHON) -m asa_mini bench gpu; else $(MAKE) $(STAMP) && $(BIN)/python -m asa_mini bench gpu; fi

site: $(STAMP)  ## make the static site of notebooks, README and modules: build/site/index.html
	rm -rf build/site build/site-trees build/jupyter_execute
	$(BIN)/python -m sphinx -q -W --keep-going -c site -d build/site-trees . build/site
	@echo "made build/site: open build/site/index.html in a browser"

lab: $(STAMP)  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

lint: $(STAMP)  ## check style and formatting, notebooks included
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:  ## remove everything that these commands made
	rm -rf $(VENV) .venv-least build *.egg-info .pytest_cache .ruff_cache .hypothesis

# Every other target waits for the stamp, so repeated calls install nothing; a failed install leaves none.
$(STAMP): pyproject.toml constraints.txt
	@rm -f $@
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || { \
		echo "asa_mini needs Python 3.10 to 3.13, and $(PYTHON) is not one: try make PYTHON=python3.12" >&2; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'
	@touch $@
