#!/usr/bin/env bash
# Measures this machine's figures (docs/figures.md). ONLY=name,… selects some. AGAINST=DIR compares the
# servers' CPU time of requests with the programs of another build.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root/tools" && go build -buildvcs=false -o "$root/.tools/bin/bench" ./bench
exec "$root/.tools/bin/bench" --bin "$root/bin" --only "${ONLY:-}" ${AGAINST:+--against "$AGAINST"}
