#!/usr/bin/env bash
# Measures the figures in docs/figures.md on this machine. ONLY=name,… selects some of them.
# AGAINST=DIR compares the servers' CPU time per request with the programs of another build,
# KUBERNETES=1 with those of Kubernetes, which are built first. ROUNDS, NODES and PODS are
# passed on.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
args=(--bin "$root/bin" --only "${ONLY:-}" --rounds "${ROUNDS:-3}" --nodes "${NODES:-1000}" --pods "${PODS:-5000}")
if [ -n "${KUBERNETES:-}" ]; then
	"$root/scripts/kubernetes.sh" "$root/.cache/kubernetes"
	args+=(--kubernetes "$root/.cache/kubernetes")
elif [ -n "${AGAINST:-}" ]; then
	args+=(--against "$AGAINST")
fi
cd "$root/tools" && go build -buildvcs=false -o "$root/.tools/bin/bench" ./bench
exec "$root/.tools/bin/bench" "${args[@]}"
