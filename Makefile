# make run and make test install what they need first; the stamp file keeps that from being repeated.
PYTHON ?= python3
# Test workers; each needs a core and about 2 GB.
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTAG := $(shell $(PYTHON) -c 'import sys; print("py%d%d" % sys.version_info[:2])' 2>/dev/null)
# Versions known to work together; a Python without such a file gets the newest that pyproject.toml allows.
CONSTRAINTS := $(wildcard constraints/$(PYTAG).txt)

.DEFAULT_GOAL := help
.PHONY: help install run snse-reduced rbi-reduced test test-slow lint format bench-install bench clean

help:
	@echo "make run         argon: Green-Kubo and HNEMD; silicon: Wigner and Boltzmann; with reports (minutes)"
	@echo "make snse-reduced, rbi-reduced   published and foundation potentials at a size for two cores"
	@echo "make test        tests (without the slow ones)"
	@echo "make test-slow   the slow tests: statistics of physics, long runs"
	@echo "make lint        ruff and pyright"
	@echo "make bench       this project and its peers side by side (make bench-install first)"
	@echo "make install     only the installation, into $(VENV); PYTHON=... picks the interpreter"

install: $(STAMP)

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; ok = sys.version_info >= (3, 11); \
	sys.exit(None if ok else "%s is Python %d.%d; at least 3.11 is needed: make PYTHON=/path/to/python3.11 ..." % (sys.executable, *sys.version_info[:2]))'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[dev]'
	@touch $@

run: install
	$(BIN)/python experiments/argon/run.py --out runs/argon
	$(BIN)/python experiments/silicon_wigner/run.py --out runs/silicon

snse-reduced: install
	$(BIN)/python experiments/snse_green_kubo/run.py --reduced --out runs/snse-reduced

rbi-reduced: install
	$(BIN)/python experiments/rbi_green_kubo/run.py --reduced --out runs/rbi-reduced

test: install
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile

# One process, with every core as a device: long runs share out their replicas.
test-slow: install
	JAX_NUM_CPU_DEVICES=$(WORKERS) $(BIN)/python -m pytest -m "slow"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-install: install
	test -x benchmarks/.venv/bin/python || $(PYTHON) -m venv benchmarks/.venv
	benchmarks/.venv/bin/python -m pip install --disable-pip-version-check -r benchmarks/requirements.txt
	benchmarks/.venv/bin/python -m pip install --disable-pip-version-check --no-deps nequix==0.4.3

bench: install
	$(BIN)/python -m benchmarks.run

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .hypothesis .ruff_cache
