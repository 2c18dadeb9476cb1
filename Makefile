# Every job of a newcomer in one word. Each installs what it needs into .venv first.
VENV   ?= .venv
PYTHON ?= python3
MINUTES ?= 20
RUN    := $(VENV)/bin

# Prometheus and promtool, where the machine has none: Debian's package, unpacked in build/.
PROMETHEUS := build/prometheus/usr/bin
export PATH := $(PATH):$(CURDIR)/$(PROMETHEUS)

.PHONY: dashboards observability
.PHONY: demo demo-stop train-demo loop test bench bench-gateway bench-overload bench-faults fuzz soak lint
.PHONY: format demo-package clean

demo: $(VENV)/.base          ## serve the demo package with its users, print a ranked table
	$(RUN)/mtgr demo

demo-stop:                   ## stop the server that `make demo` or `make train-demo` left up
	$(RUN)/mtgr demo --stop

train-demo: $(VENV)/.dev     ## the same from nothing: simulate, train, build, serve
	$(RUN)/mtgr simulate var/train-demo/logs
	$(RUN)/mtgr train var/train-demo/logs var/train-demo/checkpoint
	$(RUN)/mtgr build var/train-demo/checkpoint var/train-demo/package
	$(RUN)/mtgr demo --package var/train-demo/package

loop: $(VENV)/.dev           ## serve, join, train, build, promote, serve better: regret by round
	$(RUN)/mtgr loop

demo-package: $(VENV)/.dev   ## make the package that `make demo` serves
	$(RUN)/mtgr simulate var/demo-package/logs
	$(RUN)/mtgr train --version demo-1 var/demo-package/logs var/demo-package/checkpoint
	$(RUN)/mtgr build var/demo-package/checkpoint service/demo_package

APART := tests/model_def tests/engine_build tests/plugins tests/deploy

# What serves is tested alone: its promises are about time, and servers share the cores.
test: lint build/prometheus                  ## lint, types and every test that needs no GPU
	$(RUN)/pytest -q -n 2 --dist loadfile $(APART)
	$(RUN)/pytest -q $(APART:%=--ignore %)

dashboards: $(VENV)/.observe build/prometheus  ## watch the demo under live traffic in a browser
	$(RUN)/mtgr dashboards

observability: $(VENV)/.dev  ## what is made from code: rules, dashboards, the chart's README, a picture
	$(RUN)/python -m service.observability.files
	$(RUN)/python -m tests.deploy.chart_readme
	$(RUN)/python -m tests.docs.request_path

bench: $(VENV)/.dev          ## side by side, as ratios in one run
	$(RUN)/python -m tests.bench

fuzz: $(VENV)/.dev           ## 100,000 cases of each target: bodies, records, the whole gateway
	$(RUN)/python -W error -m tests.service.fuzz

soak: $(VENV)/.dev           ## MINUTES at 0.6 x capacity with bursts, reloads and faults
	$(RUN)/python -m tests.bench.soak --minutes $(MINUTES)

bench-overload: $(VENV)/.dev ## three times the load that can be answered, 6 minutes
	$(RUN)/python -m tests.bench.overload

bench-faults: $(VENV)/.dev   ## the fault table: every dependency failing in every way, 5 minutes
	$(RUN)/python -m tests.bench.faults

bench-gateway: $(VENV)/.dev  ## CPU of a request by stage, beside an echo, plain FastAPI, LitServe
	$(RUN)/python -m tests.bench.gateway

lint: $(VENV)/.dev
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

format: $(VENV)/.dev
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

# Without Debian's packages, install Prometheus yourself; its tests skip and say so without it.
build/prometheus:
	mkdir -p build/deb
	command -v prometheus promtool || ( cd build/deb && (apt-get download prometheus || \
	  (apt-get update -q && apt-get download prometheus)) && \
	  dpkg -x prometheus_*.deb ../prometheus ) || echo "no Prometheus to be had"

clean:
	rm -rf build var .mypy_cache .ruff_cache .pytest_cache

$(VENV)/.base: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install -q -e .
	touch $@

$(VENV)/.observe: $(VENV)/.base
	$(RUN)/pip install -q -e '.[observe]'
	touch $@

$(VENV)/.dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install -q -e '.[dev]'
	touch $@ $(VENV)/.base
