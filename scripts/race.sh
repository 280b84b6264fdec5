#!/usr/bin/env bash
# Runs the unit tests of the packages with the most concurrency under the race detector.
# --list prints those packages instead.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
packages=(./services/apiserver/internal/{fence,front/rest,member,pipeline,store/memory,store/wire,tunnel,watchcache}
	./services/internal/... ./services/scheduler/... ./proto/client/...)
if [ "${1:-}" = --list ]; then
	exec go list "${packages[@]}"
fi
scripts/gotest.sh -race -vet=off -timeout=10m "${packages[@]}"
