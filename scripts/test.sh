#!/usr/bin/env bash
# Runs everything that CI runs: lint, audit, each module on its own, the unit
# tests (the most concurrent packages under the race detector), black-box tests of the
# built programs, and a sample of the official conformance suite.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
step() { printf '== %s (after %d:%02d)\n' "$1" $((SECONDS / 60)) $((SECONDS % 60)); }
. scripts/versions.env
scripts/install-packages.sh nftables iptables iproute2 containernetworking-plugins conntrack dnsutils curl procps
# Packages that lint, tests and programs have in common are compiled once, because all are
# built with the flags of `make build`. Race needs cgo, and other modules have their own flags.
with() { CGO_ENABLED=0 GOFLAGS="-trimpath -tags=$GO_TAGS" "$@"; }
with scripts/lint.sh
step "audit"
scripts/audit.sh
step "each module alone"
# A module whose packages all resolve, to the versions that the workspace uses, compiles alone
# as it does there.
for m in proto services/internal services/apiserver services/scheduler services/controller-manager services/cloud-controller services/node tools e2e; do
	(cd "$m" && GOWORK=off go list -deps -test ./... >/dev/null)
done
versions() { sha256sum proto/go.mod services/*/go.mod tools/go.mod e2e/go.mod; }
before=$(versions)
go work sync
[ "$(versions)" = "$before" ] || { echo "the modules require other versions than the workspace: commit what 'go work sync' changed" >&2; exit 1; }
# The examples are a module outside the workspace, as a user's is.
(cd examples/go && GOWORK=off with go vet ./... && GOWORK=off with go test ./...)
step "unit tests"
# The longest tests come first. Vet is off because lint has run it. What runs with the race
# detector does not run twice, but for the pipeline, some of whose tests bound allocations.
mapfile -t packages < <(go list ./proto/... ./services/{internal,apiserver,scheduler,controller-manager,cloud-controller,node}/... ./tools/... |
	grep -vxFf <(scripts/race.sh --list | grep -v '/pipeline$'))
with scripts/gotest.sh -vet=off -timeout=10m ./services/apiserver/internal/store/{etcd,raft} ./services/node/internal/agent "${packages[@]}"
step "race"
scripts/race.sh
step "end to end"
scripts/e2e.sh
step "a sample of the official suite"
make --no-print-directory -C e2e/conformance sample
