# bootcast: build, test, demonstrate, measure. `make help` lists the targets.

PREFIX ?= /usr/local
# mount(8) looks for helpers nowhere else.
HELPER_DIR ?= /sbin
BINARIES := bootcast-server bootcastfs bootcast
TARGET := $(or $(CARGO_TARGET_DIR),target)

# Files and caches of benchmarks: in memory, or they would measure the disk.
BENCH_DIR ?= /dev/shm

# Tests that run at once. Most of the time each waits.
TEST_THREADS ?= 3

.PHONY: all help manual deps check wasm test demo demo-fleet test-boot demo-netboot bench fuzz chaos install small first-stage install-initramfs deb rpm test-packages clean-lab clean
all: ## release binaries in target/release
	cargo build --release --workspace --bins

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps: ## install the Debian packages that are missing
	tests/scripts/install-deps.sh

check: wasm ## format, lints and documentation, without tests
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items
	if cargo deny --version >/dev/null 2>&1; then cargo deny check; \
	    else echo "skipped: cargo deny, which is not installed"; fi
	if command -v shellcheck >/dev/null; then \
	    find $(INITRAMFS) -type f ! -name '*.config' ! -name '*.7' | xargs shellcheck --exclude SC1091; \
	    else echo "skipped: shellcheck, which is not installed"; fi

# What cannot be built for a machine without sockets and clock has crept in where it must not be.
# Where the target is not installed, tests/workspace.rs keeps watch alone.
wasm:
	if [ -d "$$(rustc --print sysroot)/lib/rustlib/wasm32-unknown-unknown" ]; then \
	    cargo check -p bootcast-proto --target wasm32-unknown-unknown; \
	    else echo "skipped: proto for wasm32-unknown-unknown, which is not installed"; fi

test: deps check ## everything that can fail: checks, unit tests, end to end in network namespaces
	cargo build --workspace --bins
	RUST_TEST_THREADS=$(TEST_THREADS) tests/scripts/run-tests.sh

# Built like the tests, so that whoever runs both compiles once.
demo: deps ## two nodes read an image at once on this machine, and it is sent once
	cargo build -p bootcast-server -p bootcast-fs
	BOOTCAST_BIN_DIR=$(TARGET)/debug tests/scripts/demo.sh

# The Debian system is built once, and kept in $(GUEST). WAYS=demand,full,nbd,rclone compares.
GUEST ?= $(TARGET)/guest
WAYS ?= demand,full
demo-fleet: ## four virtual machines boot Debian off one image at once (as root, ten minutes)
	tests/scripts/install-guest-deps.sh $(if $(findstring nbd,$(WAYS)),nbdkit) \
	    $(if $(findstring rclone,$(WAYS)),rclone)
	tests/scripts/make-guest.sh $(GUEST)
	cargo build --workspace --bins
	cargo run -p bootcast-tests --bin boot -- $(GUEST) --ways $(WAYS)

# The programs are those for an initramfs: debug builds are slow where processors are emulated.
# ONLY=one,ram,dracut,pxe runs these scenarios; docs/TESTING.md, "Machines that boot", has all.
NETBOOT ?= $(TARGET)/netboot
test-boot: small ## virtual machines boot Debian over the cast, ONLY=one: one scenario (as root)
	tests/scripts/install-guest-deps.sh squashfs-tools dnsmasq-base ipxe-qemu
	cargo build --workspace --bins
	tests/scripts/make-netboot.sh $(NETBOOT)
	cargo run -p bootcast-tests --bin netboot -- $(NETBOOT) $(if $(ONLY),--only $(ONLY))

demo-netboot: ## a machine with nothing but a network card boots Debian: DHCP, iPXE, the cast
	$(MAKE) test-boot ONLY=pxe

bench: ## measure in network namespaces, write docs/BENCHMARKS.md; PART=name measures one part and prints it
	tests/scripts/install-bench-deps.sh
	cargo build --release --workspace --bins
	TMPDIR=$(BENCH_DIR) cargo bench -p bootcast-tests --bench fleet -- $(PART)

# TARGETS=page,repair fuzzes these alone. What is found stays in target/fuzz/corpus.
FUZZ_SECONDS ?= 600
comma := ,
fuzz: ## fuzz every decoder for FUZZ_SECONDS=600 each, TARGETS=page,repair: these (hours, needs a C++ compiler)
	FUZZ_SECONDS=$(FUZZ_SECONDS) tests/scripts/fuzz.sh $(subst $(comma), ,$(TARGETS))

# BOOTCAST_SEED repeats the choices of a run, which it prints.
FAULTS ?= 500
chaos: deps ## FAULTS=500 faults at random moments while files are read (as root, at two seconds each)
	cargo build --workspace --bins
	BOOTCAST_FAULTS=$(FAULTS) cargo test -p bootcast-tests --test netns -- chaos:: --nocapture

install: all manual ## binaries to $(PREFIX)/bin, helpers of mount(8) to $(HELPER_DIR)
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 755 $(BINARIES:%=$(TARGET)/release/%) $(DESTDIR)$(PREFIX)/bin
	ln -sf bootcast $(DESTDIR)$(PREFIX)/bin/bootcast-urlmount
	install -d $(DESTDIR)$(HELPER_DIR)
	ln -sf $(PREFIX)/bin/bootcastfs $(DESTDIR)$(HELPER_DIR)/mount.bootcastfs
	ln -sf $(PREFIX)/bin/bootcastfs $(DESTDIR)$(HELPER_DIR)/mount.fuse.bootcastfs
	install -D -m 644 $(TARGET)/manual/man/*.1 -t $(DESTDIR)$(PREFIX)/share/man/man1
	install -D -m 644 $(TARGET)/manual/man/*.8 -t $(DESTDIR)$(PREFIX)/share/man/man8

manual: ## man pages and shell completions in target/manual
	cargo run -p bootcast-tests --bin manual -- $(TARGET)/manual

small: ## programs for an initramfs in target/small, built for size
	cargo build --profile small -p bootcast-fs --bins

# For a kernel with built-in network drivers. DRIVERS="/lib/modules/VERSION MODULE.." adds modules.
# Linked statically, what the program does not use of libc is left out.
FIRST_STAGE ?= $(TARGET)/first-stage
RUST_HOST = $(shell rustc -vV | sed -n 's/^host: //p')
first-stage: ## initramfs that fetches kernel and initramfs by the cast, target/first-stage
	RUSTFLAGS="-C target-feature=+crt-static" \
	    cargo build --profile small -p bootcast-fs --bin bootcast --target $(RUST_HOST)
	BOOTCAST=$(TARGET)/$(RUST_HOST)/small/bootcast \
	    $(INITRAMFS)/first-stage/make-first-stage $(FIRST_STAGE) $(DRIVERS)

# The hooks of both families look for the program in /usr/lib/bootcast first.
INITRAMFS := bootcast-fs/initramfs
install-initramfs: small ## modules for initramfs-tools and dracut, to boot machines over the cast
	install -d $(DESTDIR)/usr/lib/bootcast
	install -m 755 $(TARGET)/small/bootcast $(DESTDIR)/usr/lib/bootcast
	install -d $(DESTDIR)/usr/share/bootcast $(DESTDIR)/usr/share/initramfs-tools/hooks \
	    $(DESTDIR)/usr/share/initramfs-tools/scripts/init-top \
	    $(DESTDIR)/usr/lib/dracut/modules.d/74bootcast
	install -m 644 $(INITRAMFS)/netboot.sh $(DESTDIR)/usr/share/bootcast
	install -m 755 $(INITRAMFS)/first-stage/init $(INITRAMFS)/first-stage/make-first-stage \
	    $(DESTDIR)/usr/share/bootcast
	install -m 644 $(INITRAMFS)/first-stage/kernel.config $(DESTDIR)/usr/share/bootcast
	install -m 755 $(INITRAMFS)/initramfs-tools/hooks/bootcast \
	    $(DESTDIR)/usr/share/initramfs-tools/hooks
	install -m 644 $(INITRAMFS)/initramfs-tools/scripts/bootcast \
	    $(DESTDIR)/usr/share/initramfs-tools/scripts
	install -m 755 $(INITRAMFS)/initramfs-tools/scripts/init-top/bootcast \
	    $(DESTDIR)/usr/share/initramfs-tools/scripts/init-top
	install -m 755 $(INITRAMFS)/dracut/74bootcast/*.sh \
	    $(DESTDIR)/usr/lib/dracut/modules.d/74bootcast
	install -D -m 644 $(INITRAMFS)/bootcast-netboot.7 -t $(DESTDIR)$(PREFIX)/share/man/man7

# Packages get what was built here, and run where the C library is not older than here.
deb: all manual small ## Debian packages in target/debian: server, client, initramfs (needs cargo-deb)
	cargo deb --no-build --strip -p bootcast-server
	cargo deb --no-build --strip -p bootcast-fs
	cargo deb --no-build --strip -p bootcast-fs --variant initramfs --profile small

rpm: all manual small ## RPM packages in target/generate-rpm (needs cargo-generate-rpm)
	cargo generate-rpm -p bootcast-server
	cargo generate-rpm -p bootcast-fs
	cargo generate-rpm -p bootcast-fs --variant initramfs

test-packages: deb ## install, use and remove the Debian packages in a Debian system (as root, minutes)
	tests/scripts/install-deps.sh mmdebstrap
	tests/scripts/test-packages.sh $(TARGET)/debian

clean-lab: ## remove namespaces, mounts and processes of test runs that were killed
	tests/scripts/clean-lab.sh

clean: ## remove what was built
	cargo clean
