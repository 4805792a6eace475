# Casemate: two commands do everything.
#
#   make demo    runs the main job, start to end, on this machine
#   make test    formats, lints, tests, and boots microVMs
#   make bench   the hot paths beside their peers
#   make lab     our monitor on nested KVM: devices, limits, hostile guests, the demo
#
# Both install what is missing first (scripts/setup says what and why), work
# twice in a row, and keep what they make under target/ and .casemate/.

TARGET := $(or $(CARGO_TARGET_DIR),target)
# A whole run compiles everything once; what would speed up the next edit
# takes gigabytes. `cargo` by hand still keeps it.
export CARGO_INCREMENTAL ?= 0
MUSL   := x86_64-unknown-linux-musl

# Always the whole workspace: with `-p`, cargo unites the features of that one
# package alone, and compiles the dependencies again for each such choice.
TESTS := cargo test --locked --workspace
DEBUG := cargo build --locked --quiet --workspace --bins --examples

.PHONY: help demo test setup setup-test build lint deny unit backends instructions counterparties e2e lab bench bench-gateway clean

help:
	@sed -n 's/^#  *make/  make/p' $(MAKEFILE_LIST)

demo: setup build
	@$(TARGET)/release/casemate demo

test: setup-test lint deny unit backends instructions counterparties e2e lab
	@echo "make test: everything passed"

setup:
	@scripts/setup

setup-test:
	@scripts/setup test

# The tools for people, the monitor, and the two programs that go into the image.
build:
	@echo "== build: casemate, and the guest's static programs"
	@cargo build --release --locked --quiet -p casemate -p casemate-vmm
	@cargo build --release --locked --quiet --target $(MUSL) -p casemate-guest -p casemate-agent

lint:
	@echo "== format and lints"
	@cargo fmt --all --check
	@cargo clippy --locked --quiet --workspace --all-targets -- -D warnings
	@$(DEBUG)
	@$(TARGET)/debug/xtask tidy

deny:
	@echo "== dependencies: licences, sources, duplicates, advisories"
	@scripts/deny

unit:
	@echo "== tests of every crate"
	@$(TESTS)

# The other two backends of the verifying library: the same tests, the same
# refusals. The flips of every byte stay with the default one, for their time.
BACKEND_TESTS := -p casemate-attestation -p casemate-model --no-default-features \
	--lib --test snp_reasons --test appraisal --test tdx --test tdx_rules --test bundle \
	--test azure --test gpu

backends:
	@echo "== tests of the verifying library with ring, then with RustCrypto; and its check for wasm32"
	@cargo test --locked --quiet $(BACKEND_TESTS) --features casemate-attestation/ring -- --skip every_flipped
	@cargo test --locked --quiet $(BACKEND_TESTS) --features casemate-attestation/rustcrypto -- --skip every_flipped
	@cargo check --locked --quiet -p casemate-attestation --no-default-features --features rustcrypto \
		--target wasm32-unknown-unknown

instructions:
	@echo "== what verification costs, in instructions"
	@$(DEBUG)
	@$(TARGET)/debug/xtask instructions

# Programs of others, unchanged, through port and gateway; a line for each.
counterparties:
	@scripts/setup counterparties
	@echo "== counterparties: MCP clients, servers, inspector and conformance suite of others"
	@$(DEBUG)
	@$(TESTS) --quiet --test unmodified -- --ignored --nocapture --test-threads=1

# Real machines: everything above the hardware is the product itself.
e2e: build
	@echo "== end to end: the demo's line, with a real microVM, and what must fail"
	@$(TESTS) --test build -- --ignored
	@$(TESTS) --test boot -- --include-ignored --test-threads=1
	@$(TESTS) --test e2e -- --ignored --test-threads=1 --nocapture

# Our own monitor on real KVM, inside a machine that QEMU emulates: no KVM and no root needed.
lab: build
	@echo "== lab: our monitor on nested KVM, and the product on it"
	@$(DEBUG)
	@$(TARGET)/debug/xtask lab

# Beside the peers, in one run each: read the ratios. Not in `make test`: a busy
# machine would fail it for nothing.
bench: bench-gateway
	@scripts/setup bench
	@echo "== benchmark: SNP beside the crate sev with its two back ends; TDX beside dcap-qvl"
	@cd benches/snp && cargo run --locked --release --quiet
	@cd benches/snp && cargo run --locked --release --quiet --no-default-features --features sev-openssl
	@cd benches/tdx && cargo run --locked --release --quiet

bench-gateway:
	@echo "== benchmark: a tool call direct, through a bare relay, through port and gateway"
	@cd benches/gateway && cargo build --locked --release --quiet --examples && cargo bench --locked --quiet

clean:
	@rm -rf target .casemate
