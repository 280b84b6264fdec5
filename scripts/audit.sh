#!/usr/bin/env bash
# Checks what is built and shipped for known vulnerabilities, licences, file modes and
# capabilities. The vulnerability database is a Go module, pinned in versions.env next to
# the scanner; `scripts/audit.sh --renew` pins the newest version.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/versions.env"
. "$root/scripts/install-tool.sh"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
printf 'module scratch\n' >go.mod
if [ "${1:-}" = --renew ]; then
	VULNDB_VERSION=$(GOWORK=off go list -m -f '{{.Version}}' golang.org/x/vulndb@latest)
	sed -i "s/^VULNDB_VERSION=.*/VULNDB_VERSION=$VULNDB_VERSION/" "$root/scripts/versions.env"
	echo "scripts/versions.env: $VULNDB_VERSION"
fi
advisories=()
if db=$(GOWORK=off go mod download -json "golang.org/x/vulndb@$VULNDB_VERSION" 2>/dev/null); then
	dir=$(sed -n 's/^\t"Dir": "\(.*\)",$/\1/p' <<<"$db")
	stamp=${VULNDB_VERSION#*-}
	stamp=${stamp#0.}
	stamp=${stamp%-*}
	advisories=(-advisories "$dir/data/osv" -modified "${stamp:0:4}-${stamp:4:2}-${stamp:6:2}T${stamp:8:2}:${stamp:10:2}:${stamp:12:2}Z")
	install_tool govulncheck "$GOVULNCHECK_VERSION" golang.org/x/vuln/cmd/govulncheck
else
	echo "golang.org/x/vulndb@$VULNDB_VERSION could not be downloaded: skipping the vulnerability check" >&2
fi
cd "$root/tools"
go build -buildvcs=false -o "$scratch/audit" ./audit
"$scratch/audit" -root "$root" -bin "$root/bin" -accepted "$root/scripts/vulnerabilities.txt" \
	-govulncheck "$root/.tools/bin/govulncheck" "${advisories[@]}"
