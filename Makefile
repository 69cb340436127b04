# Everything a user or packager runs. `make` shows it.

# What `make demo` shows: docker or containerd.
ENGINE ?= docker
# Who is told: hostagent, our own host end, or host-switch, a stand-in for Rancher Desktop's.
SINK ?= hostagent
DEPS_docker = docker
DEPS_containerd = containerd cni demo
T ?= 60
SEEDS ?= 100000
PREFIX ?= /usr/local
DESTDIR ?=
TARGET = x86_64-unknown-linux-musl
MUSL = target/$(TARGET)/release
CARGO_DENY = 0.20.2
BINARIES = rancher-desktop-guestagent rancher-desktop-hostagent

.PHONY: help demo test scenarios simulate mutants check build musl install bench soak fuzz sbom deny reproducible clean
.DEFAULT_GOAL := help

help: ## show this
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: build ## show a container's ports answering on the host (root; a few seconds after the build; ENGINE=containerd, SINK=host-switch)
	@scripts/deps.sh $(DEPS_$(ENGINE))
	@[ $(SINK) != host-switch ] || cargo build --locked --release --example host-switch-stand-in
	@scripts/demo.sh $(ENGINE) $(SINK)

test: musl ## run every test, against real engines and in a VM (root; installs what is missing)
	@scripts/deps.sh docker podman containerd cni openssl commands vm soak mutants
	@tests/vm/prepare.sh
	cargo test --locked --no-fail-fast -- --include-ignored
	@scripts/mutants.sh
	@# Each fault phase once, and what make soak does for minutes, for a while.
	GUESTAGENT_PROGRAM=$(CURDIR)/$(MUSL)/rancher-desktop-guestagent cargo test --locked --bench soak -- --seconds 45
	@# The static agent has other code for TLS (scripts/musl.sh).
	GUESTAGENT_PROGRAM=$(CURDIR)/$(MUSL)/rancher-desktop-guestagent cargo test --locked --test kubernetes -- --include-ignored credentials

scenarios: ## run the tests of the thirty scenarios and list these with pass or fail (root; LOG=FILE: from what make test has printed)
	@scripts/deps.sh docker podman containerd cni openssl commands
	@scripts/scenarios.sh $(LOG)

simulate: ## put the reconciler through SEEDS random histories, or through one (SEED=K)
	@SEEDS=$(SEEDS) cargo test --quiet --locked --profile simulate --no-default-features --test simulation -- --nocapture

mutants: ## break the reconciler in every way of tests/simulation/mutants, and see that the simulation notices
	@scripts/deps.sh mutants
	@scripts/mutants.sh

check: ## formatting, lints, docs, and the tests that need neither root nor an engine
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --all-targets --no-default-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items
	cargo test --locked --quiet
	cargo test --locked --quiet --no-default-features --lib --test cli

build: ## build for this machine, into target/release
	cargo build --locked --release

musl: ## build the static binaries, and prove that they are static and small
	@scripts/musl.sh

install: ## install the musl binaries where they are built, else this machine's (PREFIX, DESTDIR)
	@[ -x $(MUSL)/rancher-desktop-guestagent ] || [ -x target/release/rancher-desktop-guestagent ] || \
		{ echo "nothing to install: run 'make musl' or 'make build' first" >&2; exit 1; }
	from=target/release; [ ! -x $(MUSL)/rancher-desktop-guestagent ] || from=$(MUSL); \
	for binary in $(BINARIES); do install -D -m 0755 "$$from/$$binary" "$(DESTDIR)$(PREFIX)/bin/$$binary" || exit 1; done
	install -D -m 0755 init/rancher-desktop-guestagent.initd "$(DESTDIR)/etc/init.d/rancher-desktop-guestagent"
	sed -i 's|/usr/local/bin/|$(PREFIX)/bin/|' "$(DESTDIR)/etc/init.d/rancher-desktop-guestagent"
	@# Settings that are there already are somebody's own.
	[ -e "$(DESTDIR)/etc/conf.d/rancher-desktop-guestagent" ] || \
		{ install -D -m 0644 init/rancher-desktop-guestagent.confd "$(DESTDIR)/etc/conf.d/rancher-desktop-guestagent" && \
		sed -i 's|/usr/local/bin/|$(PREFIX)/bin/|' "$(DESTDIR)/etc/conf.d/rancher-desktop-guestagent"; }
	install -D -m 0644 init/rancher-desktop-guestagent.logrotate "$(DESTDIR)/etc/logrotate.d/rancher-desktop-guestagent"
	install -D -m 0644 man/rancher-desktop-guestagent.8 "$(DESTDIR)$(PREFIX)/share/man/man8/rancher-desktop-guestagent.8"
	@# The program prints them itself, where it runs on this machine.
	@from=target/release; [ ! -x $(MUSL)/rancher-desktop-guestagent ] || from=$(MUSL); share="$(DESTDIR)$(PREFIX)/share"; \
	for file in bash:bash-completion/completions/rancher-desktop-guestagent zsh:zsh/site-functions/_rancher-desktop-guestagent \
		fish:fish/vendor_completions.d/rancher-desktop-guestagent.fish; do \
		text=$$("$$from/rancher-desktop-guestagent" completions "$${file%%:*}") || \
			{ echo "no completions: the program does not run here" >&2; exit 0; }; \
		install -d "$$share/$$(dirname "$${file#*:}")" && printf '%s\n' "$$text" > "$$share/$${file#*:}" && \
			chmod 0644 "$$share/$${file#*:}" || exit 1; \
	done

bench: musl ## measure the README's claims and put them there (root; some 20 minutes); BASE=PATH: compare with another agent (GROUPS=)
	@scripts/deps.sh docker containerd cni openssl bench
	cargo bench --locked --bench claims -- $(if $(BASE),--base $(BASE) $(GROUPS),--update README.md)

soak: musl ## kill, stop, fill and cut off everything while containers come and go, T seconds (root; T=600 puts its figures into docs/reliability.md)
	@scripts/deps.sh docker containerd cni soak
	GUESTAGENT_PROGRAM=$(CURDIR)/$(MUSL)/rancher-desktop-guestagent cargo bench --locked --bench soak -- --seconds $(T) $(if $(filter 600,$(T)),--update docs/reliability.md)

fuzz: ## fuzz what reads bytes of others, T seconds a target (a C++ compiler)
	@scripts/deps.sh fuzz
	@scripts/fuzz.sh $(T)

sbom: ## write what the static agents are made of, as CycloneDX JSON, next to them
	@scripts/deps.sh sbom
	@mkdir -p $(MUSL) $(MUSL)/../small
	@scripts/sbom.sh cyclonedx > $(MUSL)/rancher-desktop-guestagent.cdx.json
	@scripts/sbom.sh cyclonedx --no-default-features > $(MUSL)/../small/rancher-desktop-guestagent.cdx.json
	@echo "sbom: $(MUSL)/rancher-desktop-guestagent.cdx.json, and in small/ that of the agent without Kubernetes"

deny: ## check licences, sources and versions of all crates against deny.toml (installs cargo-deny where it is missing)
	@command -v cargo-deny >/dev/null || cargo install --locked --version $(CARGO_DENY) cargo-deny
	cargo deny --locked check licenses bans sources

reproducible: ## build the static binaries twice, in two places, and prove that they are the same
	@scripts/reproducible.sh

clean: ## remove everything that was built
	cargo clean
