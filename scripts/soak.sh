#!/usr/bin/env bash
# Memory and CPU time of the control plane with 1,000 simulated nodes and 10,000
# pods, of one at rest, and of one that hears 10,000 nodes: about 19 minutes. Arguments go to the tests:
# -soak.nodes, -soak.pods, -soak.minutes, -soak.profiles DIR, -test.run NAME.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root/e2e" && KEELSON_BIN=$root/bin exec go test -count=1 -timeout 60m -v ./soak "$@"
