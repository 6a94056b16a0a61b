# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup demo test test-fast test-nightly test-newest docs notebook lint lock audit bench clean
PYTEST := -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder
setup: $(VENV)/.ready

# Every package as it was tested, by the sha256 of its file; without any address of an index: pip
# takes its own. fedcats' own build takes hatchling from there, too.
$(VENV)/.ready: pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-deps --no-build-isolation --editable .
	touch $@
	@echo "fedcats is in $(BIN): source $(BIN)/activate, then fedcats --help"

# After a change of pyproject.toml; `make lock UPGRADE=--upgrade` takes the newest of everything.
lock: $(VENV)-tools/.ready
	$(VENV)-tools/bin/uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header \
		--all-extras $(UPGRADE) --output-file requirements.lock pyproject.toml

# Needs the vulnerability database of PyPI, and says so where that cannot be reached.
audit: $(VENV)-tools/.ready
	$(VENV)-tools/bin/pip-audit --strict --disable-pip --requirement requirements.lock || { \
		echo 'make audit: a package above has a known fault, or the database could not be reached for it'; \
		exit 1; }

$(VENV)-tools/.ready:
	$(PYTHON) -m venv $(VENV)-tools
	$(VENV)-tools/bin/python -m pip install --quiet --disable-pip-version-check uv pip-audit
	touch $@

demo: setup
	$(BIN)/fedcats

# Three files at a time: in many of them something is waited for, such as Flower's heartbeats.
test: setup
	$(BIN)/python $(PYTEST)

# What takes minutes, or starts Ray or Flower's own processes, is left out.
test-fast: setup
	$(BIN)/python $(PYTEST) -m 'not slow and not ray and not flower'

# Every test, with more random trials, others each day (FEDCATS_SEED=.. repeats them), and how much of
# the package the tests run, which must not become less.
NIGHT ?= $(shell date +%Y%m%d)
test-nightly: setup
	FEDCATS_RANDOM=1000 FEDCATS_SEED=$(NIGHT) $(BIN)/python $(PYTEST) --cov

# The pages that are made from the code, then the site of all pages: build/site/index.html
docs: setup
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/gather.py
	$(BIN)/zensical build --strict

# Once a week: everything at its newest, beyond what pyproject.toml allows, to see here first what an
# upgrade will break. Prints what is newer than requirements.lock.
test-newest:
	$(PYTHON) -m venv --clear $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(VENV)-newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade \
		'flwr[simulation]' flwr-datasets hydra-core rich
	$(VENV)-newest/bin/python -m pip freeze --exclude-editable | tr _ - > $(VENV)-newest/versions
	grep -oE '^[^ ]+==[^ ]+' requirements.lock | grep --line-regexp --invert-match --ignore-case \
		--fixed-strings --file - $(VENV)-newest/versions || true
	$(VENV)-newest/bin/python $(PYTEST)

# JupyterLab is not among the pinned packages: uv, which comes with Flower, lays its newest version over
# the environment and leaves that as it is.
notebook: setup
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv run --quiet --no-project --with jupyterlab \
		jupyter lab notebooks/paper.ipynb

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini
	$(BIN)/lint-imports

# All benchmarks on photos: make bench ROOT=DIR [BENCH="--only transport --repeat 1"]
bench: setup $(VENV)-pfl/.ready
	$(BIN)/python benchmarks/suite.py $(ROOT) --pfl $(VENV)-pfl/bin/python $(BENCH)

# pfl wants other versions than Flower, so it has an environment of its own.
$(VENV)-pfl/.ready: requirements.lock
	$(PYTHON) -m venv $(VENV)-pfl
	$(VENV)-pfl/bin/python -m pip install --quiet --disable-pip-version-check \
		'pfl[pytorch]==0.6.0' $$(grep -oE '^(torch|torchvision)==[^ ]+' requirements.lock)
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-pfl $(VENV)-newest $(VENV)-tools build outputs multirun
