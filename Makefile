# Two commands do everything on a fresh machine: `make demo` and `make test`.
VENV      := .venv
PYTHON    ?= python3
INSTALLED := $(VENV)/.installed
READY     := $(VENV)/.ready

.PHONY: demo test test-studio lint docs format clean

demo: $(INSTALLED)
	$(VENV)/bin/impasto demo

test: $(READY) lint
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal  # a file mostly in one process

test-studio: $(READY)  # the studio, in Chromium where that is installed
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests/studio

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright
	@report=$$($(VENV)/bin/lint-imports --no-cache) || { echo "$$report"; exit 1; }  # layers, see pyproject.toml
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet --strict  # no warning, no broken link; see mkdocs.yml

docs: $(READY)  # the site: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

format: $(READY)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "impasto needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(READY): $(INSTALLED)  # tools and every optional package, so that no test is skipped
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev,artworld]'
	touch $@

clean:
	rm -rf $(VENV) runs dist build
