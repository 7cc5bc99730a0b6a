# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup dev demo test lint messages site bench soak faults powercuts machines knockout tables fuzz vendor pictures audit clean

# ---- to run the node

setup: .venv/ready

# Before anything is fetched: is this Python one that the pinned packages are made for? And how much is it?
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v < (3, 14) or sys.exit("pacs-node needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is %d.%d; try: make $(MAKECMDGOALS) PYTHON=python3.12" % v)'
	@echo "Setting up .venv: about 0.4 GB to download and 1.8 GB on disk; some 3 GB more where your"
	@echo "package index serves PyTorch with CUDA (pypi.org does on Linux). README.md says how to do without."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[openvino]'
	touch $@

demo: setup
	$(BIN)/pacs-node demo $(if $(ORTHANC),--orthanc)

# ---- to change it

dev: .venv/dev

.venv/dev: .venv/ready
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

# Three processes, a file's tests in one of them: many wait for peers and clocks. More threads than cores would only
# wait for each other. Files in the order of tests/conftest.py, and compiled once wherever that may be kept.
test: dev
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not bench"

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# what the pages say, into the catalogue of each language, and compiled; docs/languages.md
messages: dev
	$(BIN)/python deploy/messages.py

# the documentation as pages: build/site/index.html
site: dev
	$(BIN)/python deploy/site.py

bench: dev
	$(BIN)/python -m tests.bench

# Whole runs of which the tests make a part; docs/reliability.md says what they look for, and holds their figures.
soak: dev
	TCP_NODELAY=1 $(BIN)/python -m tests.fault.soak --seed $(or $(SEED),1) --kills $(or $(KILLS),500)

faults: dev
	$(BIN)/python -m tests.fault.nth $(or $(PART),0:1) $(or $(MINUTES),inf) $(or $(SEED),1)

powercuts: dev
	$(BIN)/python -m tests.fault.power $(CUTS)

# several workers on PostgreSQL, some of which die, and a database that goes away; the tests do a little of it
machines: dev
	MACHINES_SERIES=40 MACHINES_AWAY_S=10 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --timeout 1800 tests/interop/test_machines.py

# every attribute of every kind of image, damaged in every way; the tests draw some of them
knockout: dev
	KNOCKOUT=all OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --timeout 7200 tests/unit/test_knockout.py

# the whole of the tables of which the tests take each n-th case
tables: dev
	EVERY_CASE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m one_in --timeout 1800

# wrong associations, data sets, requests and answers, drawn from SEED, against a running node; the tests draw some
fuzz: dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --seed $(or $(SEED),1) --inputs $(or $(INPUTS),100000) --json docs/results/fuzz.json; \
	found=$$?; $(BIN)/python -m tests.fault.page && exit $$found

# the one file of others that the pages load, as its makers built it; deploy/viewer pins it
vendor:
	npm ci --ignore-scripts --no-audit --no-fund --prefix deploy/viewer
	cp deploy/viewer/node_modules/@niivue/niivue/dist/niivue.umd.js pacs_node/web/static/vendor/niivue.js

# the pictures of pages in docs/results, as the tests see them, and those of samples
pictures: dev
	PICTURES=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/interop/test_every_page.py -k picture
	PICTURES=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/interop/test_viewer.py -k 'picture or clip'
	PICTURES=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/unit/dicom_sr/test_samples.py

# What is known against the pinned packages (as far as the network lets it ask), what the node is made of (CycloneDX), and
# under which licences: into build/
audit: dev
	mkdir -p build
	$(BIN)/python -m tests.licences build/licences.csv
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o build/sbom.cdx.json $(BIN)/python
	$(BIN)/python -m tests.licences --into build/sbom.cdx.json
	test -x build/tools/bin/pip-audit || { $(PYTHON) -m venv build/tools && build/tools/bin/pip install -q pip-audit; } || \
	  { echo "pip-audit cannot be installed: is there a network?"; exit 2; }
	build/tools/bin/pip-audit --disable-pip --no-deps -r constraints.txt -f json -o build/vulnerabilities.json; code=$$?; \
	  test -s build/vulnerabilities.json || echo "nothing was asked: the database of vulnerabilities was not reached"; exit $$code

clean:
	rm -rf .venv demo-out runs build *.egg-info
