#!/usr/bin/env bash
# Runs the tests that FOCUS names (a regular expression) but SKIP does not, and
# reports. SKIP is by default what disturbs other tests, takes long, or needs
# what absent.txt says Keelson lacks. Without KUBECONFIG it starts a cluster of
# its own and removes it.
# PROCS is how many tests run at once, TIMEOUT bounds the whole run, OUT keeps
# the report and each process's output.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
dir=$1
bin=${BIN:-$root/bin}
out=${OUT:-$dir/report}
mkdir -p "$out"
rm -f "$out/report.json"
if [ -z "${KUBECONFIG:-}" ]; then
	home=$(mktemp -d "${TMPDIR:-/tmp}/keelson-conformance-XXXXXX")
	# Deletes the cluster, and fails the run where something of it is left.
	finish() {
		local code=$? id
		id=$(sed -nE 's/^ *"id": *"([^"]+)".*/\1/Ip' "$home/cluster.json" | head -1)
		"$bin/keel" delete --home "$home" >"$out/delete.txt" 2>&1 || { cat "$out/delete.txt" >&2; code=1; }
		rm -rf "$home"
		(cd "$root/e2e" && GOWORK=off go run ./host/left <<<"$home $id") || code=1
		exit "$code"
	}
	trap finish EXIT
	"$bin/keel" up --home "$home" --nodes "${NODES:-3}"
	"$bin/keel" image load --home "$home" "$dir"/images/*.tar >/dev/null
	export KUBECONFIG=$home/kubeconfig
fi
if [ -z "${SKIP:-}" ]; then
	SKIP='\[(Serial|Slow|Disruptive|Flaky)\]'
	while read -r pattern; do SKIP+="|$pattern"; done <"$here/absent.txt"
fi
status=0
"$dir/ginkgo" run --procs="${PROCS:-4}" --no-color --silence-skips --keep-going \
	--timeout="${TIMEOUT:-2h}" --grace-period=30s --poll-progress-after=0 --output-interceptor-mode=none \
	--focus="${FOCUS:-\\[Conformance\\]}" --skip="$SKIP" \
	--output-dir="$out" --json-report=report.json \
	"$dir/e2e.test" -- \
	--kubeconfig="$KUBECONFIG" --kubectl-path="$bin/runtime/kubectl" \
	--provider=skeleton --node-os-distro=debian --clean-start=false --dump-logs-on-failure="${DUMP:-true}" \
	--system-daemonsets-startup-timeout=1s --disable-log-dump \
	>"$out/output.txt" 2>&1 || status=$?
if [ ! -s "$out/report.json" ]; then
	echo "the suite did not run (exit $status); the end of $out/output.txt:" >&2
	tail -30 "$out/output.txt" >&2
	exit 1
fi
cd "$here" && GOWORK=off go run ./report -passed passed.txt "$out/report.json"
