#!/usr/bin/env bash
# Checks style and the dependencies between modules.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/versions.env"
. "$root/scripts/install-tool.sh"
cd "$root"
unformatted=$(git ls-files '*.go' | grep -vE '\.pb\.go$' | xargs gofmt -l)
[ -z "$unformatted" ] || { printf 'not gofmt-ed:\n%s\n' "$unformatted"; exit 1; }

# Dependencies point one way: proto ← services/internal ← each service; tools and e2e
# import proto only.
fail=0
check() { # MODULE FORBIDDEN…
	local module=$1 pattern
	shift
	for pattern in "$@"; do
		if git grep -nE "^[[:space:]]*([a-z]+ )?\"$pattern" -- "$module/*.go"; then
			echo "$module must not import $pattern" >&2
			fail=1
		fi
	done
}
check proto 'keelson.dev/(services|tools|e2e)'
check services/internal 'keelson.dev/services/(apiserver|scheduler|controller-manager|cloud-controller|node)' 'keelson.dev/(tools|e2e)'
for s in apiserver scheduler controller-manager cloud-controller node; do
	for o in apiserver scheduler controller-manager cloud-controller node; do
		[ "$s" = "$o" ] || check "services/$s" "keelson.dev/services/$o"
	done
	check "services/$s" 'keelson.dev/(tools|e2e)'
done
check services 'k8s.io/kubernetes/' 'k8s.io/apiserver/pkg/(server|endpoints|registry|storage)' 'sigs.k8s.io/controller-runtime'
check tools 'keelson.dev/(services|e2e)'
check e2e 'keelson.dev/(services|tools)'
if git grep -nE 'time\.Sleep\(' -- '*_test.go'; then echo "tests must wait for a condition, not sleep" >&2; fail=1; fi
if git grep -nE '\b[tb]\.Skip' -- '*_test.go'; then echo "tests must not be skipped" >&2; fail=1; fi
[ $fail -eq 0 ]
install_tool buf "$BUF_VERSION" github.com/bufbuild/buf/cmd/buf
install_tool golangci-lint "$GOLANGCI_LINT_VERSION" github.com/golangci/golangci-lint/v2/cmd/golangci-lint
# proto/released.binpb is the API that released clients were built with. Each release
# updates it with `buf build -o released.binpb`.
(cd proto && "$root/.tools/bin/buf" lint && "$root/.tools/bin/buf" breaking --against released.binpb)
scripts/descriptors.sh bin/keelson.binpb
for m in proto services/internal services/apiserver services/scheduler services/controller-manager services/cloud-controller services/node tools e2e; do
	(cd "$m" && "$root/.tools/bin/golangci-lint" run --allow-parallel-runners ./...)
done
