#!/usr/bin/env bash
# Unit tests with the race detector, of the packages where goroutines meet.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
scripts/gotest.sh -race -vet=off -timeout=10m ./services/apiserver/internal/{fence,front/rest,member,pipeline,store/memory,store/wire,tunnel,watchcache} \
	./services/internal/... ./services/scheduler/... ./proto/client/...
