# Two commands: `make demo` runs the main job, `make test` passes the tests. Both install what they need into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN_TESTS := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python
# A file's tests in one process, so that what they share is made once; the long ones are in the middle.
BY_FILE := -n auto --dist loadfile --no-loadscope-reorder
# pip would compile on one core what it installs, packages' tests too.
COMPILE := $(BIN)/python -m compileall -qq -j 0 -x '[/\\]tests?[/\\]' $(VENV) || true
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

.PHONY: demo test test-all check format docs clean

demo: $(VENV)/.train
	$(BIN)/handlens demo

test: $(VENV)/.dev check
	$(RUN_TESTS) -m slipcover -m pytest $(BY_FILE) -m "not slow"

test-all: $(VENV)/.dev check
	$(RUN_TESTS) -m pytest $(BY_FILE)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.dev
	$(BIN)/python docs/make.py
	$(BIN)/python docs/cost.py
	$(BIN)/python docs/sheet.py
	$(BIN)/python benchmarks/table.py

$(VENV)/.train: pyproject.toml constraints.txt
	@echo "installing into $(VENV): some gigabytes, a few minutes without a word"
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[train,export-onnx]'
	$(COMPILE)
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	@echo "installing into $(VENV): some gigabytes, a few minutes without a word"
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[dev]'
	$(COMPILE)
	touch $@ $(VENV)/.train

clean:
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache
