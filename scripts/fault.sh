#!/usr/bin/env bash
# Injects faults under load. SEED chooses them; FAULTS limits their number, or
# SECONDS_OF_FAULTS their duration; with neither, each kind is injected once. Arguments are
# passed to the tests: -kinds kill,pause; -logs DIR.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
scripts/install-packages.sh iproute2
cd e2e && KEELSON_BIN=$root/bin exec go test -count=1 -timeout 3h -v ./fault -run 'TestFaults$' \
	-seed "${SEED:-7}" -seconds "${SECONDS_OF_FAULTS:-0}" -faults "${FAULTS:-0}" "$@"
