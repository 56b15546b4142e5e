# The few verbs a person needs. Each installs the Debian packages that it lacks; nothing that is
# installed starts a service. Rust 1.90 or newer comes from rustup, and root or sudo is needed for
# whatever makes network namespaces.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test bench lint soak fuzz docker-plugin prepare

CARGO := cargo
# protoc and the well-known types are needed to build the etcd client.
BUILD_PACKAGES := build-essential ca-certificates protobuf-compiler libprotobuf-dev
RUN_PACKAGES := iproute2 ethtool nftables iputils-ping tcpdump
TEST_PACKAGES := etcd-client gcc-bpf iptables openssl openvswitch-common socat systemd
# Only their files are taken: installed, they would bring services.
UNPACKED := openvswitch-switch busybox-static containerd docker.io etcd-server libdevmapper1.02.1 runc
# The Docker of a later Debian beside that of this one.
LATER := --release trixie docker.io docker-cli containerd

# Builds run as they are; only the built programs and tests run as root.
AS_ROOT := --config 'target."cfg(target_os = \"linux\")".runner = ["$(CURDIR)/.ci/root"]'
# Seconds per fuzz target.
FUZZ_SECONDS ?= 60
# Length of the soak.
SECONDS ?= 600

help: ## Show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

prepare:
	@.ci/rust
	@.ci/packages $(BUILD_PACKAGES)

demo: prepare ## Hosts as namespaces on this machine, end to end, with figures
	@.ci/packages $(RUN_PACKAGES)
	$(CARGO) run --release $(AS_ROOT) -- demo

test: prepare ## All tests; SKYBRIDGE_TEST_REQUIRE=all makes missing capabilities failures
	@.ci/packages $(RUN_PACKAGES) $(TEST_PACKAGES)
	@.ci/unpack $(UNPACKED)
	@.ci/unpack $(LATER)
	@for manifest in tests/etcd/3.*/Cargo.toml; do \
	    $(CARGO) fetch --quiet --locked --manifest-path "$$manifest"; \
	done
	$(CARGO) test $(AS_ROOT) --workspace
	$(CARGO) test $(AS_ROOT) --workspace --test system

bench: prepare ## Throughput and packets beside the kernel's vxlan device and the raw underlay
	@.ci/packages $(RUN_PACKAGES)
	$(CARGO) bench -p bench
	$(CARGO) build --release
	SKYBRIDGE_PROGRAM=$(CURDIR)/target/release/skybridge $(CARGO) run --release $(AS_ROOT) -p bench

lint: prepare ## Format, clippy and documentation, warnings denied
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) clippy --workspace --test system -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --document-private-items

docker-plugin: prepare ## A managed plugin for Docker's Swarm, in target/docker-plugin
	$(CARGO) build --release
	packaging/docker-plugin/build target/release/skybridge target/docker-plugin
	@echo 'docker plugin create skybridge target/docker-plugin && docker plugin enable skybridge'

soak: prepare ## Churn under load for SECONDS (600), and a table of what the agents hold
	@.ci/packages $(RUN_PACKAGES) $(TEST_PACKAGES)
	SKYBRIDGE_TEST_REQUIRE=all SKYBRIDGE_SOAK_SECONDS=$(SECONDS) \
	    $(CARGO) test $(AS_ROOT) --workspace --test system -- soak::

fuzz: prepare ## Each fuzz target for FUZZ_SECONDS (60); needs nightly Rust and cargo-fuzz
	@rustup run nightly rustc --version >/dev/null 2>&1 || \
	    { echo "Fuzzing needs nightly Rust: rustup toolchain install nightly" >&2; exit 1; }
	@$(CARGO) fuzz --version >/dev/null 2>&1 || \
	    { echo "Fuzzing needs cargo-fuzz: cargo install cargo-fuzz" >&2; exit 1; }
	cd tests/fuzz && for target in $$($(CARGO) +nightly fuzz list --fuzz-dir .); do \
	    $(CARGO) +nightly fuzz run --fuzz-dir . "$$target" -- -max_total_time=$(FUZZ_SECONDS); \
	done
