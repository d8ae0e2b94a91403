# Two commands do all on a fresh machine: `make demo` and `make test`. Needs Python >= 3.11 with venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test lint docs bench clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	touch $@

demo: setup
	$(BIN)/vesalius demo

test: setup
	$(BIN)/python -m ruff check src tests bench proofs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

docs: setup
	$(BIN)/python docs/generate.py

bench: setup
	bash bench/setup_peers.sh
	$(BIN)/python bench/run.py

clean:
	rm -rf .venv .venv-peers runs build dist
