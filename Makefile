# On a fresh machine, as root: everything that is needed is installed first, into .venv and from the distribution.
#   make migrate workload=redis     makes the lab unless nodes are named, migrates, ends with the summary
#   make test                       lint, unit tests, tests with real CRIU in the lab
# Every name=value becomes an extra variable of Ansible: make migrate workload=memory mb_size=512 deadline=aws
MAKEFLAGS += --no-print-directory
BIN := .venv/bin
READY := .venv/.ready
# Names of make itself; all others on the command line go to Ansible.
OWN := inventory rounds BENCHMARK_ARGS ANSIBLE_ARGS PYTEST_ARGS PYTHON
rounds ?= 20
ANSIBLE_ARGS ?=
PYTEST_ARGS ?=

given := $(sort $(foreach name,$(filter-out $(OWN) -% MAKE%,$(.VARIABLES)),\
  $(if $(filter command,$(firstword $(origin $(name)))),$(name))))
comma := ,
# As JSON, so that spaces and quotes survive; then quoted for the shell.
json = "$(1)": "$(subst ",\",$(subst \,\\,$(value $(1))))"
extra = {$(foreach name,$(given),$(call json,$(name))$(if $(filter-out $(lastword $(given)),$(name)),$(comma)))}
quoted = '$(subst ','\'',$(1))'

.DEFAULT_GOAL := help
.PHONY: help setup migrate lab clean-lab test lint unit labtest browser compiler vmtest soak benchmark benchmark-fill benchmark-workloads \
  collection clean

help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

setup: $(READY) ## install what the control node needs, into .venv and from the distribution

$(READY): pyproject.toml scripts/setup
	@scripts/setup

migrate: $(READY) ## workload=NAME [name=value ...]: migrate, in the lab unless nodes are named
	@inventory=$(call quoted,$(inventory)) scripts/migrate $(call quoted,$(extra)) $(ANSIBLE_ARGS)

lab: $(READY) ## [lab_name=.. lab_nodes=..]: make the lab
	@$(BIN)/ansible-playbook playbooks/lab.yml -e $(call quoted,$(extra)) $(ANSIBLE_ARGS)

clean-lab: $(READY) ## remove every trace of the lab
	@$(BIN)/ansible-playbook playbooks/lab.yml -e $(call quoted,$(extra)) -e lab_state=absent $(ANSIBLE_ARGS)

test: lint unit labtest ## one pass of every kind of test

lint: $(READY) ## ruff, mypy, ansible-lint with yamllint
	$(BIN)/ruff check .
	$(BIN)/mypy -p ansible_collections.criu.migrate.plugins
	$(BIN)/mypy workloads tests filter_plugins benchmarks criu_migrate_cli
	PATH="$(CURDIR)/$(BIN):$$PATH" ansible-lint --offline

unit: $(READY) ## tests of functions and of plugins, without CRIU
	$(BIN)/pytest tests/unit $(PYTEST_ARGS)

labtest: $(READY) browser compiler ## tests with real CRIU on the lab's nodes
	$(BIN)/pytest tests/lab $(PYTEST_ARGS)

# report.html is looked at in one; where none can be had, those tests are skipped
GET_BROWSER := DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium fonts-dejavu-core </dev/null
browser:
	@command -v chromium >/dev/null || $(GET_BROWSER) || { apt-get update && $(GET_BROWSER); } || \
	  echo 'no chromium: report.html is not looked at'

# PostgreSQL refuses to be root; where CRIU can dump root's processes only, its test lets it see another user
GET_COMPILER := DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends gcc </dev/null
compiler:
	@command -v cc >/dev/null || $(GET_COMPILER) || { apt-get update && $(GET_COMPILER); }

vmtest: $(READY) ## tests on nodes that are virtual machines, with kernels, clocks and disks of their own
	$(BIN)/pytest tests/vm $(PYTEST_ARGS)

soak: $(READY) browser compiler ## [rounds=20]: every lab test so many times, 300 random faults, virtual machines, every workload 41 times: hours
	$(BIN)/pytest tests/unit tests/lab tests/vm --soak --rounds $(rounds) --faults 300 $(PYTEST_ARGS)
	@$(MAKE) lab benchmark-workloads

benchmark: $(READY) ## [BENCHMARK_ARGS=..]: how long clients wait, beside the same moved by hand (docs/benchmarks.md); needs the lab
	PYTHONPATH=collections:. $(BIN)/python -m benchmarks.full $(BENCHMARK_ARGS)

benchmark-fill: $(READY) ## [BENCHMARK_ARGS=..]: until every page of a post-copy has come, beside a plain copy; needs the lab
	PYTHONPATH=collections:. $(BIN)/python -m benchmarks.fill $(BENCHMARK_ARGS)

benchmark-workloads: $(READY) ## [BENCHMARK_ARGS=..]: every workload back and forth, four ways, each move proved; needs the lab
	PYTHONPATH=collections:. $(BIN)/python -m benchmarks.workloads $(BENCHMARK_ARGS)

collection: $(READY) ## build the collection criu.migrate into build/
	$(BIN)/ansible-galaxy collection build --force --output-path build

clean: ## remove .venv, caches and builds; the lab and results stay
	rm -rf .venv build .mypy_cache .pytest_cache .ruff_cache .ansible
