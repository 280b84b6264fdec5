#!/usr/bin/env bash
# Faults under load: SEED chooses them; SECONDS_OF_FAULTS or FAULTS says how many; with
# neither, each kind comes once. Arguments go to the tests: -kinds kill,pause;
# -logs DIR.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
scripts/install-packages.sh iproute2
cd e2e && KEELSON_BIN=$root/bin exec go test -count=1 -timeout 3h -v ./fault -run 'TestFaults$' \
	-seed "${SEED:-7}" -seconds "${SECONDS_OF_FAULTS:-0}" -faults "${FAULTS:-0}" "$@"
