# `make help` lists what there is. Every target installs what it needs, once.
SHELL := /bin/bash
.DEFAULT_GOAL := help

include scripts/versions.env

BIN      := $(CURDIR)/bin
TOOLS    := $(CURDIR)/.tools/bin
HOME_DIR ?= /var/lib/keelson
NODES    ?= 3
MODULES  := proto services/internal services/apiserver services/scheduler services/controller-manager services/cloud-controller services/node tools e2e
PROGRAMS := apiserver scheduler controller-manager cloud-controller node
VERSION  ?= $(shell scripts/version.sh)
GOBUILD  := CGO_ENABLED=0 go build -buildvcs=false -trimpath -tags=$(GO_TAGS) -ldflags="-s -w"

export GOTOOLCHAIN := $(GO_TOOLCHAIN)
export PATH := $(TOOLS):$(BIN)/runtime:$(PATH)

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  \1\t\2/' | expand -t 18

.PHONY: build
build: ## Build the six programs into bin/
	@mkdir -p $(BIN)
	@for p in $(PROGRAMS); do echo "building $$p"; (cd services/$$p && $(GOBUILD) -o $(BIN)/$$p .) || exit 1; done
	@echo "building keel"; cd tools && $(GOBUILD) -ldflags="-s -w -X keelson.dev/tools/keel/internal/command.release=$(VERSION)" -o $(BIN)/keel ./keel

.PHONY: runtime
runtime: ## Install what nodes run on: containerd, runc, CNI plugins, kubectl, the sandbox image
	@scripts/install-runtime.sh $(BIN)/runtime
	@cd tools && go run ./image-builder --out $(BIN)/runtime ../deploy/images/pause.yaml >/dev/null

.PHONY: up
up: build runtime ## Start a cluster of three nodes, deploy the demonstration application and fetch its page
	@scripts/up.sh "$(HOME_DIR)" "$(NODES)"

.PHONY: down
down: ## Stop the cluster; its data stays
	@$(BIN)/keel down --home "$(HOME_DIR)"

.PHONY: delete
delete: ## Stop the cluster and remove everything of it
	@$(BIN)/keel delete --home "$(HOME_DIR)"

.PHONY: test
test: build runtime ## Everything that CI runs: lint, unit tests, tests of the built programs
	@scripts/test.sh

.PHONY: clients
clients: ## Generate, check and test the clients in other languages
	@scripts/clients.sh

.PHONY: e2e
e2e: build runtime ## Black-box tests against a real cluster
	@scripts/e2e.sh

.PHONY: images
images: build runtime ## Build the images of the six programs into bin/images: make images KEELSON_TAG=1.2
	@KEELSON_TAG=$(KEELSON_TAG) scripts/images.sh $(BIN)/images

.PHONY: compose-test
compose-test: images ## deploy/compose in an engine of its own: up, kills, down and up: make compose-test ROUNDS=20
	@scripts/install-docker.sh
	@scripts/demo-images.sh $(CURDIR)/.cache/images
	@cd e2e && KEELSON_BIN=$(BIN) KEELSON_IMAGES=$(CURDIR)/.cache/images go test -count=1 -timeout $(or $(TIMEOUT),30m) ./compose $(if $(ROUNDS),-args -rounds $(ROUNDS))

.PHONY: chart
chart: build runtime ## Install charts/keelson with helm 4 and 3, scale, kill, upgrade, sleep, restore: make chart HELMS=helm
	@HELMS="$(HELMS)" scripts/chart.sh

.PHONY: chart-density
chart-density: build runtime ## Many control planes beside each other, and what each costs: make chart-density COUNT=50
	@HELMS=helm scripts/chart.sh -count-of-control-planes $(or $(COUNT),50) -test.run TestDensity

.PHONY: chart-kubernetes
chart-kubernetes: build runtime ## Let a kube-apiserver of Kubernetes accept every values file of the charts
	@scripts/chart-kubernetes.sh

.PHONY: race
race: ## Unit tests where goroutines meet, with the race detector
	@scripts/race.sh

.PHONY: shake
shake: ## Unit tests stopped at random, on one busy core: make shake PKG=./proto/client SEED=7 ROUNDS=5 RUN=TestCache
	@SEED="$(SEED)" ROUNDS="$(ROUNDS)" RUN="$(RUN)" RACE="$(RACE)" scripts/shake.sh $(PKG)

.PHONY: perturb
perturb: ## Controllers killed, restarted with old views, and blind to changes, at random: make perturb SEED=1 COUNT=250
	@cd services/controller-manager && go test -count=1 -timeout 30m -run TestEveryControllerUnderPerturbation . -args -perturb.first $(or $(SEED),1) -perturb.seeds $(or $(COUNT),250)

.PHONY: preemption
preemption: ## Compare the victims of preemption with an exhaustive search: make preemption CASES=10000
	@cd services/scheduler && go test -count=1 -run TestPreemptionIsMinimal ./internal/decide -args -preempt.cases $(or $(CASES),10000)

.PHONY: policies
policies: ## Compare random network policies on real connections with a plain evaluation: make policies SEED=1 PAIRS=10000
	@cd services/node && go test -count=1 -timeout 30m -run TestRandom ./internal/policy -args -seed $(or $(SEED),1) -pairs $(or $(PAIRS),10000)

.PHONY: fuzz
fuzz: ## Fuzz every decoder: make fuzz SECONDS=60
	@scripts/fuzz.sh "$(or $(SECONDS),10)"

.PHONY: soak
soak: build runtime ## Memory and CPU time under 1,000 nodes and 10,000 pods, at rest, and with 10,000 heartbeats: 19 minutes
	@scripts/soak.sh -test.run 'TestSoak|TestIdle|TestHeartbeats'

.PHONY: overnight
overnight: build runtime ## A cluster left alone: 50 workloads of all kinds roll every minute; make overnight MINUTES=120 (slopes are judged from 90 on)
	@SOAK_TIMEOUT=$$(( $(or $(MINUTES),120) + 30 ))m scripts/soak.sh -test.run TestRolling -soak.minutes $(or $(MINUTES),120)

.PHONY: fault
fault: build runtime ## Faults under load: make fault SEED=7 SECONDS=120, or FAULTS=200
	@SEED="$(SEED)" SECONDS_OF_FAULTS="$(SECONDS)" FAULTS="$(FAULTS)" scripts/fault.sh

.PHONY: sequences
sequences: build runtime ## Random sequences of keel's commands and kills: make sequences SEED=1 COUNT=50 NODES=2
	@cd e2e && KEELSON_BIN=$(BIN) go test -count=1 -timeout 90m ./sequence -args -seed $(or $(SEED),1) -count $(or $(COUNT),50) -nodes $(or $(NODES),0)

.PHONY: removals
removals: build runtime ## Members removed down to one, leaders among them, and added again: make removals ROUNDS=50 SEED=7
	@cd e2e && KEELSON_BIN=$(BIN) go test -count=1 -timeout 60m -run TestMembersAreRemovedInAnyOrder ./ha -args -removals $(or $(ROUNDS),50) -removal-seed $(or $(SEED),7)

.PHONY: bench
bench: build runtime ## Measure this machine's figures: make bench ONLY=rest-get AGAINST=DIR-OF-OTHER-PROGRAMS, or KUBERNETES=1
	@scripts/bench.sh

.PHONY: gen
gen: ## Generate code: protobuf, OpenAPI, descriptors
	@scripts/gen.sh

.PHONY: descriptors
descriptors: ## Build the descriptor set of the gRPC API, with its comments: bin/keelson.binpb
	@scripts/descriptors.sh $(BIN)/keelson.binpb

.PHONY: check-gen
check-gen: gen ## Fail if generated code is not what `make gen` makes
	@git diff --exit-code --stat -- . || { echo "run 'make gen' and commit what it changed"; exit 1; }

.PHONY: lint
lint: ## Check style and the arrows between modules
	@scripts/lint.sh

.PHONY: audit
audit: build runtime ## Check vulnerabilities, licences, file modes and capabilities
	@scripts/audit.sh

.PHONY: conformance
conformance: build runtime ## Run the official suite: make conformance FOCUS='regular expression'
	@$(MAKE) --no-print-directory -C e2e/conformance run FOCUS='$(FOCUS)'
