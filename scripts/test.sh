#!/usr/bin/env bash
# Runs everything that CI runs: lint, audit, each module's build on its own, the unit
# tests (the most concurrent packages also under the race detector), black-box tests of the
# built programs, and a sample of the official conformance suite.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
scripts/install-packages.sh nftables iptables iproute2 containernetworking-plugins conntrack dnsutils curl procps
scripts/lint.sh
echo "== audit"
scripts/audit.sh
echo "== each module alone"
for m in proto services/internal services/apiserver services/scheduler services/controller-manager services/cloud-controller services/node tools e2e; do
	(cd "$m" && GOWORK=off go build ./...)
done
echo "== unit tests"
# The longest tests come first. Vet is off because lint has run it.
scripts/gotest.sh -vet=off -timeout=10m ./services/apiserver/internal/store/{etcd,raft} ./services/node/internal/agent \
	./proto/... ./services/{internal,apiserver,scheduler,controller-manager,cloud-controller,node}/... ./tools/...
echo "== race"
scripts/race.sh
echo "== end to end"
scripts/e2e.sh
echo "== a sample of the official suite"
make --no-print-directory -C e2e/conformance sample
