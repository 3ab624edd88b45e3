# Needs Python 3.11 or newer with venv, and make.  Another Python: make test PYTHON=python3.12
PYTHON ?= python3
EXTRAS ?= dev,examples,plots,fast,docs
PYTEST_ARGS ?=

# The networks and programs here are small: more threads than one only wait for each other.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1

BIN := .venv/bin
# The stamp names the extras, so that asking for others builds another environment.
READY := .venv/ready-$(EXTRAS)

.PHONY: demo test slow docs lint types check clean
.DELETE_ON_ERROR:

# The quick tests.
test: $(READY)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# The tests marked slow, and only these; all of them: make test slow
slow: $(READY)
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

demo: $(READY)
	$(BIN)/mipprune demo --out demo-out

# The documentation as pages to read in a browser: site/index.html.  Needs no network; every warning is an error.
docs: $(READY)
	$(BIN)/python -m sphinx -q -W --keep-going -d build/doctrees -b html docs site

lint: $(READY)
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

check: lint types

clean:
	rm -rf .venv build dist site demo-out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --clear throws away what an interrupted or an older installation left; the stamp is the last thing written.
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: no '$(PYTHON)' found; name a Python >= 3.11: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("error: mipprune needs Python >= 3.11, $(PYTHON) is %d.%d; name another: make PYTHON=/path/to/python" % v[:2])'
	@echo "building .venv with the versions in constraints.txt; this takes a few minutes"
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[$(EXTRAS)]"
	@touch $@
