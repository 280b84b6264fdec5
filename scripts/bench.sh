#!/usr/bin/env bash
# Measures the figures in docs/figures.md on this machine. ONLY=name,… selects some of them.
# AGAINST=DIR compares the servers' CPU time per request with the programs of another build.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root/tools" && go build -buildvcs=false -o "$root/.tools/bin/bench" ./bench
exec "$root/.tools/bin/bench" --bin "$root/bin" --only "${ONLY:-}" ${AGAINST:+--against "$AGAINST"}
