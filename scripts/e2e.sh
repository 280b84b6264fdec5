#!/usr/bin/env bash
# Black-box tests against a cluster of the built programs.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
WITH_TEST_CLIENTS=1 scripts/install-runtime.sh "$root/bin/runtime"
scripts/demo-images.sh "$root/.cache/images"
cd e2e && KEELSON_BIN=$root/bin KEELSON_IMAGES=$root/.cache/images go test -count=1 -timeout 30m ./...
