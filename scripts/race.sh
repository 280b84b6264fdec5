#!/usr/bin/env bash
# Unit tests with the race detector, of the packages where goroutines meet.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
(cd proto && go test -race -timeout 10m ./client/...)
(cd services/internal && go test -race -timeout 10m ./...)
(cd services/apiserver && go test -race -timeout 10m ./internal/{fence,front/rest,member,pipeline,store/memory,store/wire,tunnel,watchcache})
(cd services/scheduler && go test -race -timeout 10m ./...)
