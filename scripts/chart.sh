#!/usr/bin/env bash
# Installs charts/keelson into a cluster of the built programs and does to it what its users do,
# with helm 4 and helm 3. Arguments are passed to the tests: -count-of-control-planes 50.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
scripts/install-helm.sh "$root/bin/runtime"
scripts/images.sh "$root/bin/images"
for helm in ${HELMS:-helm helm3}; do
	(cd e2e && KEELSON_BIN=$root/bin go test -count=1 -timeout 60m -v ./chart/install -args -helm "$helm" "$@")
done
