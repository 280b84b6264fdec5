#!/usr/bin/env bash
# Measures memory and CPU time of a control plane with 1,000 simulated nodes and 10,000
# pods, of an idle one, and of one that gets the heartbeats of 10,000 nodes; this takes
# about 19 minutes. Arguments are passed to the tests: -soak.nodes, -soak.pods,
# -soak.minutes, -soak.profiles DIR, -test.run NAME.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root/e2e" && KEELSON_BIN=$root/bin exec go test -count=1 -timeout "${SOAK_TIMEOUT:-60m}" -v ./soak "$@"
