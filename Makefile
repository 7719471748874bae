# weir: make help says what can be done.
GO          ?= go
BIN         := bin
PROGRAMS    := weir weir-proxy weir-init
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
# grpcnotrace: what draws pages of traces keeps the linker from leaving out dead code.
BUILD_FLAGS := -trimpath -tags grpcnotrace -ldflags "-s -w -X main.version=$(VERSION)"
FUZZTIME    ?= 5s
SOAK        ?= 3m
SILENCE     ?= 1h
# What to test: make race PACKAGES=./proxy/...
PACKAGES    ?= ./...

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## install what the demo needs and is missing (as root; else say what to install)
	@.ci/deps demo

.PHONY: test-deps
test-deps: ## install what the tests need and is missing (as root; else say what to install)
	@.ci/deps test

.PHONY: build
build: $(addprefix $(BIN)/,$(PROGRAMS)) ## build the three programs into bin/

.PHONY: FORCE
$(BIN)/%: FORCE
	CGO_ENABLED=0 $(GO) build $(BUILD_FLAGS) -o $@ ./cmd/$*

.PHONY: demo
demo: deps build ## show the main job on real programs
	$(BIN)/weir demo

.PHONY: test
test: test-deps build fuzz race ## everything: a short fuzz of each target, then all tests with -race

.PHONY: race
race: build ## all tests with -race: unit, namespaces, end to end
	WEIR_BIN=$(CURDIR)/$(BIN) $(GO) test -race -shuffle=on -parallel 3 -timeout 20m $(PACKAGES)

.PHONY: e2e
e2e: test-deps build ## the black-box tests only
	WEIR_BIN=$(CURDIR)/$(BIN) $(GO) test -race -shuffle=on -parallel 3 -count=1 -v -timeout 20m ./test/e2e/...

.PHONY: soak
soak: test-deps build ## a cluster in random trouble for SOAK (3m), with a ledger of what was answered
	WEIR_BIN=$(CURDIR)/$(BIN) WEIR_SOAK=$(SOAK) $(GO) test -tags soak -count=1 -v -timeout 24h -run Soak ./test/e2e

.PHONY: silent-hour
silent-hour: build ## connections that say nothing for SILENCE (1h), through one proxy and through two
	WEIR_BIN=$(CURDIR)/$(BIN) WEIR_SILENCE=$(SILENCE) $(GO) test -count=1 -v -timeout 24h -run TestSilentConnections ./test/e2e

.PHONY: kubernetes
kubernetes: test-deps build ## joining by service accounts against a real kube-apiserver (builds one: ten minutes)
	cd test/kubernetes && CGO_ENABLED=0 $(GO) build -o $(CURDIR)/$(BIN)/kube-apiserver k8s.io/kubernetes/cmd/kube-apiserver
	WEIR_BIN=$(CURDIR)/$(BIN) KUBE_APISERVER=$(CURDIR)/$(BIN)/kube-apiserver $(GO) test -tags kubernetes -count=1 -v -timeout 10m -run PodsJoin ./test/e2e

.PHONY: fuzz
fuzz: ## run each fuzz target for FUZZTIME (5s)
	@.ci/fuzz $(FUZZTIME)

.PHONY: bench-build
bench-build: build
	@.ci/deps bench
	CGO_ENABLED=0 $(GO) build -o $(BIN)/bench ./bench

.PHONY: bench
bench: bench-build ## the proxy beside HAProxy, nginx and Envoy; writes docs/PERFORMANCE.md (as root, half an hour)
	$(BIN)/bench -doc docs/PERFORMANCE.md

.PHONY: bench-quick
bench-quick: bench-build ## the same in three minutes; writes nothing
	$(BIN)/bench -quick

.PHONY: bench-control-build
bench-control-build: deps build
	CGO_ENABLED=0 $(GO) build -o $(BIN)/bench-control ./bench/control

.PHONY: bench-control
bench-control: bench-control-build ## the control plane at scale; writes docs/CONTROL-PLANE-SCALE.md (as root, eight minutes)
	$(BIN)/bench-control -doc docs/CONTROL-PLANE-SCALE.md

.PHONY: bench-control-quick
bench-control-quick: bench-control-build ## a tenth of it in two minutes; writes nothing
	$(BIN)/bench-control -quick

.PHONY: golden
golden: ## write the golden files anew
	$(GO) test ./redirect/... -run 'Golden|Plan' -update

.PHONY: generate
generate: ## make the protobuf code anew (needs protoc, protoc-gen-go, protoc-gen-go-grpc)
	$(GO) generate ./policy/wire/...

.PHONY: lint
lint: ## vet and golangci-lint
	@.ci/lint

.PHONY: tls-scan
tls-scan: test-deps build ## openssl and testssl.sh against all ports that speak TLS; writes docs/reports/tls.md
	@.ci/deps scan
	WEIR_BIN=$(CURDIR)/$(BIN) WEIR_TLS_REPORT=$(CURDIR)/docs/reports/tls.md $(GO) test -tags tlsscan -count=1 -v -timeout 30m -run TLSScan ./test/e2e

.PHONY: licenses
licenses: ## the licences of what is linked against deploy/release/licenses.allow
	$(GO) -C deploy/release vet ./...
	$(GO) -C deploy/release run . -root ../.. -allow licenses.allow

.PHONY: vulncheck
vulncheck: ## govulncheck; fails, too, where its database cannot be reached
	@.ci/vulncheck

.PHONY: release
release: ## static programs for linux/amd64 and arm64 with SBOM and SHA256SUMS, into dist/
	@.ci/release dist

.PHONY: release-check
release-check: ## build the release of this commit twice and compare the bytes
	@.ci/release-check

.PHONY: clean
clean: ## remove what was built
	rm -rf $(BIN)
