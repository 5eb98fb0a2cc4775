# Everything runs in .venv, which these targets make and fill themselves.
#   make demo      build, score real exported models, print one table
#   make test      the tests
#   make bench     install every peer, and compare fastgru with them (about 12 minutes; 5 GB of disk)
#   make lint      ruff and mypy --strict
#   make mutants   seeded faults in the kernels, each of which a test must find
#   make fuzz      mutated files at every reader (FUZZ="--reader h5 --seconds 600" for one; docs/security.md)
#   make counts    instructions of each kernel, compared with the recorded ones (exit code 77: no valgrind here)
#   make parity    install the frameworks, and compare with them live
#   make parity-full  the same over the whole product of Keras GRU settings (long)

PYTHON ?= python3
PY := .venv/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
# What must be compiled again when it changes; Python files are used in place
CORE := setup.py pyproject.toml $(wildcard fastgru/simd/*.[ch] fastgru/_core/*.pyx fastgru/_core/*.pxd)

.PHONY: demo test bench counts fuzz lint mutants parity parity-full clean

demo: .venv/built
	$(PY) -m fastgru.demo

test: .venv/test
	$(PY) -m pytest

bench: .venv/bench
	$(PY) benchmarks/compare.py

counts:
	$(PYTHON) tools/instruction_counts.py --check

lint: .venv/lint
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

mutants: .venv/test
	$(PIP) cython setuptools
	$(PY) tools/mutants.py

fuzz: .venv/test
	$(PY) tools/fuzz.py $(FUZZ)

parity: .venv/parity
	FASTGRU_REQUIRE_PARITY=torch,keras,tf_keras,onnxruntime $(PY) -m pytest -m parity

parity-full: .venv/parity
	FASTGRU_PARITY=full FASTGRU_REQUIRE_PARITY=torch,keras,tf_keras,onnxruntime $(PY) -m pytest -m parity

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/built: $(CORE) | .venv/bin/python
	@echo "building: about a minute"
	$(PIP) -e .
	@touch $@

.venv/test: $(CORE) | .venv/bin/python
	@echo "building and installing the tests' needs: about a minute"
	$(PIP) -e ".[test]"
	@touch $@ .venv/built

.venv/bench: $(CORE) | .venv/bin/python
	@echo "building and installing the peers: some minutes"
	$(PIP) -e ".[bench]"
	@touch $@ .venv/built

.venv/parity: $(CORE) | .venv/bin/python
	@echo "building and installing the frameworks: some minutes"
	$(PIP) -e ".[test,parity]"
	@touch $@ .venv/built

.venv/lint: pyproject.toml | .venv/bin/python
	$(PIP) "ruff==0.17.6" "mypy==2.4.1" numpy
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info fastgru/_core/*.so fastgru/_core/*.c
