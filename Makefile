# shimlan's one loop: `make help` lists what there is, `make test` is what CI runs.
VENV ?= .venv
# The distribution's Python where it is new enough: built for speed, it takes a fifth less time for an ADD than most others.
PYTHON ?= $(shell /usr/bin/python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null && \
	echo /usr/bin/python3 || echo python3)
BIN := $(VENV)/bin
STAMP := $(VENV)/.shimlan
# What pip leaves in the tree.
LEFTOVERS := build/lib build/bdist.* build/scripts-* *.egg-info
SOURCES := $(shell find cni ipam bin -name '*.py' -o -name '*.json' -o -path 'bin/*' -type f)

# What the tests and the demo call, and the Debian package that has it.
TOOLS := ip=iproute2 ping=iputils-ping nsenter=util-linux nft=nftables /usr/lib/cni/macvlan=containernetworking-plugins

TORTURES := $(addprefix tests/kernel/test_,crash.py concurrency.py fuzz.py races.py agent_crash.py agent_walk.py)

# The data path is measured with iperf3, plots are drawn with matplotlib: for `make bench` alone.
BENCH_TOOLS := iperf3=iperf3

# How the tests in a virtual machine look at a NIC; the machine shows the files of this one.
VM_TOOLS := ethtool=ethtool iw=iw teamnl=libteam-utils ovs-vsctl=openvswitch-switch

# The functional core: no I/O, so that plain unit tests can go everywhere in it.
CORE := cni/attachment.py,cni/config.py,cni/diff.py,cni/errors.py,cni/frozen.py,cni/inet.py,cni/mac.py,cni/protocol.py,cni/quickjson.py,cni/refusals.py,cni/rtnetlink.py,cni/section.py,cni/values.py,cni/agent/backoff.py,cni/agent/events.py,cni/agent/mending.py,cni/agent/wire.py,ipam/allocate.py,ipam/config.py,ipam/pools.py

# The native client is static, so that it runs on any node: on this machine's kind, and on those of most clusters.
CLIENTS := build/client/shimlan build/client/x86_64/shimlan build/client/aarch64/shimlan
CLIENT_FLAGS := -static -Os -s -fno-unwind-tables -fno-asynchronous-unwind-tables -std=c11 -Wall -Wextra -Werror

# What `make image` builds with, on what, and as what.
DOCKER ?= docker
BASE ?= python:3.13-slim
IMAGE ?= shimlan:$(shell sed -n 's/^__version__ = "\(.*\)"$$/\1/p' cni/__init__.py)

.DEFAULT_GOAL := help
.PHONY: help demo test lint unit kernel undisturbed agent torture walk test-vm client image bench e2e-runtimes e2e-cluster e2e-kind pod-start tools clean

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: $(STAMP) tools ## Show what shimlan does, in namespaces of its own (20 s at most)
	@$(BIN)/shimlanctl demo

test: lint unit kernel undisturbed ## Linters, unit tests with coverage, kernel tests

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(STAMP) ## Unit tests; branch coverage of the functional core at least 95 %
	$(BIN)/coverage run --branch --source=cni,ipam -m pytest -q tests/unit
	$(BIN)/coverage report --include='$(CORE)' --fail-under=95 --skip-covered

kernel: $(STAMP) tools ## Tests against the real kernel; they skip, saying so, what needs root
	$(BIN)/pytest -n 4 --dist worksteal -m "not undisturbed" tests/kernel

undisturbed: $(STAMP) tools ## Those of them that have a limit of time, one after the other
	$(BIN)/pytest -m undisturbed tests/kernel

agent: $(STAMP) tools ## The kernel tests once more, through client and agent
	SHIMLAN_TEST_AGENT=1 $(BIN)/pytest -n 4 --dist worksteal -m "not undisturbed" tests/kernel

torture: $(STAMP) tools ## The long form of the crash, concurrency, race and fuzz tests, and three minutes of the walk
	SHIMLAN_TORTURE=full SHIMLAN_WALK_SECONDS=180 $(BIN)/pytest -n 3 --dist worksteal $(TORTURES)

walk: $(STAMP) tools ## A random walk of an hour over all that can happen to a host (SHIMLAN_WALK_SECONDS, SHIMLAN_SEED)
	SHIMLAN_WALK_SECONDS=$(or $(SHIMLAN_WALK_SECONDS),3600) $(BIN)/pytest -s tests/kernel/test_agent_walk.py

test-vm: $(STAMP) ## Tests that need another kernel or NIC, in a virtual machine: SHIMLAN_VM is what runs a command in one
	@$(MAKE) --no-print-directory tools TOOLS="$(TOOLS) $(if $(SHIMLAN_VM),$(VM_TOOLS))"
	$(SHIMLAN_VM) env SHIMLAN_IN_VM=$(if $(SHIMLAN_VM),1) $(BIN)/pytest tests/vm

client: $(CLIENTS) ## Build the native client into build/client (some minutes at first, then at once)

build/client/shimlan: build/client/$(shell uname -m)/shimlan
	@cp $< $@

# Zig has a C library for each kind of machine; what it makes of them stays below build/.
build/client/%/shimlan: cni/client/client.c cni/__init__.py | $(VENV)/.compiler
	@mkdir -p $(@D)
	ZIG_GLOBAL_CACHE_DIR=$(abspath build/zig) ZIG_LOCAL_CACHE_DIR=$(abspath build/zig) \
	$(BIN)/python -m ziglang cc -target $*-linux-musl $(CLIENT_FLAGS) \
		-DSHIMLAN_VERSION='"$(shell sed -n 's/^__version__ = "\(.*\)"$$/\1/p' cni/__init__.py)"' -o $@ $<

# Only for the client: 400 MB.
$(VENV)/.compiler: | $(STAMP)
	@$(BIN)/pip install --quiet --disable-pip-version-check '.[client]'
	@rm -rf $(LEFTOVERS)
	@touch $@

image: ## Build the container image; BASE, IMAGE, DOCKER and BUILD_OPTIONS may be given
	$(DOCKER) build --build-arg BASE=$(BASE) $(BUILD_OPTIONS) --tag $(IMAGE) .

bench: $(STAMP) client ## Compare with the reference plugins; table and plots go to docs/ (10 minutes)
	@$(MAKE) --no-print-directory tools TOOLS="$(TOOLS) $(BENCH_TOOLS)"
	@$(BIN)/pip install --quiet --disable-pip-version-check '.[bench]'
	@rm -rf $(LEFTOVERS)
	$(BIN)/python -m bench --plugin $(abspath $(BIN))/shimlan --client $(abspath build/client/shimlan) \
		--output docs/benchmarks.md

e2e-runtimes: $(STAMP) tools $(VENV)/.e2e ## Tests with containerd and podman: docs/testing.md
	VENV=$(VENV) e2e/run runtimes -q

e2e-cluster: $(STAMP) tools $(VENV)/.e2e ## Tests in a Kubernetes cluster
	VENV=$(VENV) e2e/run cluster -q

e2e-kind: $(STAMP) $(VENV)/.e2e ## The same in a cluster of three nodes that kind makes
	VENV=$(VENV) e2e/kind -q

pod-start: $(STAMP) tools $(VENV)/.e2e client ## How long containerd takes for a pod, beside the reference plugins
	VENV=$(VENV) e2e/run pod-start

# Speaks CRI: 40 MB.
$(VENV)/.e2e: | $(STAMP)
	@$(BIN)/pip install --quiet --disable-pip-version-check '.[e2e]'
	@rm -rf $(LEFTOVERS)
	@touch $@

tools: ## Install the Debian packages that tests and demo need, when root
	@missing=; for tool in $(TOOLS); do command -v "$${tool%%=*}" > /dev/null || missing="$$missing $${tool##*=}"; done; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		echo "installing$$missing"; \
		(apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qqy --no-install-recommends $$missing) > /dev/null; \
	else echo "missing, and tests that need it will be skipped:$$missing"; fi

# Installed as users install it, so that tests and benchmarks run what they would run; anew whenever a source changed.
$(STAMP): pyproject.toml $(SOURCES)
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { \
		[ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -qqy python3-venv > /dev/null && $(PYTHON) -m venv $(VENV); }
	@$(BIN)/pip install --quiet --disable-pip-version-check --upgrade '.[dev]'
	@rm -rf $(LEFTOVERS)
	@touch $@

clean: ## Remove what the targets above made
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
