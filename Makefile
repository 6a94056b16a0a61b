# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup demo test test-newest lint bench clean
setup: $(VENV)/.ready

# Pinned versions, without any address of an index: pip takes its own.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/fedcats

# Two files at a time: in many of them something is waited for, such as Flower's heartbeats.
test: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Once a week: everything at its newest, beyond what pyproject.toml allows, to see here first what an
# upgrade will break. Prints what is newer than constraints.txt.
test-newest:
	$(PYTHON) -m venv --clear $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(VENV)-newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade \
		'flwr[simulation]' flwr-datasets hydra-core rich
	$(VENV)-newest/bin/python -m pip freeze --exclude-editable | tr _ - | \
		grep --line-regexp --invert-match --ignore-case --fixed-strings --file constraints.txt || true
	$(VENV)-newest/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# All benchmarks on photos: make bench ROOT=DIR [BENCH="--only transport --repeat 1"]
bench: setup $(VENV)-pfl/.ready
	$(BIN)/python benchmarks/suite.py $(ROOT) --pfl $(VENV)-pfl/bin/python $(BENCH)

# pfl wants other versions than Flower, so it has an environment of its own.
$(VENV)-pfl/.ready: constraints.txt
	$(PYTHON) -m venv $(VENV)-pfl
	$(VENV)-pfl/bin/python -m pip install --quiet --disable-pip-version-check \
		'pfl[pytorch]==0.6.0' $$(grep -E '^(torch|torchvision)==' constraints.txt)
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-pfl $(VENV)-newest outputs multirun
