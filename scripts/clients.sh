#!/usr/bin/env bash
# Generates, checks and tests the clients in other languages: clients.sh [gen] [python] [nodejs]
# With gen, it only generates and builds. Without names it does all. Python is Debian's, with
# Debian's packages, so that nothing depends on what else is installed.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
only=
if [ "${1:-}" = gen ]; then only=gen; shift; fi
[ $# -gt 0 ] || set -- python nodejs
scripts/install-packages.sh python3-grpcio python3-protobuf python3-yaml python3-pytest python3-mypy python3-build python3-setuptools python3-wheel \
	protobuf-compiler libprotobuf-dev
# A Node.js that is installed serves if it has npm; otherwise both come from Debian.
case " $* " in
*" nodejs "*) if ! command -v npm >/dev/null; then scripts/install-packages.sh nodejs npm; fi ;;
esac

# changed STAMP PATH... reports whether files have changed since the stamp was written, and
# writes it. The caller removes it if it fails.
changed() {
	local stamp=$1 now
	shift
	now=$(find "$@" "$root/proto/keelson" "$root/clients"/*.* "$root/services/apiserver/internal/front/grpc/descriptor" -type f -not -path '*/src/gen/*' \
		-print0 | sort -z | xargs -0 sha256sum | sha256sum)
	[ "$(cat "$stamp" 2>/dev/null)" != "$now" ] || return 1
	mkdir -p "$(dirname "$stamp")"
	echo "$now" >"$stamp"
}

python() {
	cd "$root/clients/python"
	/usr/bin/python3 generate.py
	[ -z "$only" ] || return 0
	rm -rf build dist
	/usr/bin/python3 -m mypy
	/usr/bin/python3 -m pytest -q
}

nodejs() {
	cd "$root/clients/nodejs"
	# npm ci downloads the tree of package-lock.json again, which need not be.
	if ! cmp -s package-lock.json node_modules/.installed; then
		npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
		cp package-lock.json node_modules/.installed
	fi
	if [ ! -d dist ] || changed build/.inputs src test cluster examples ./*.json ./*.mjs; then
		{ npm run --silent generate && npm run --silent build && npm run --silent build-tests; } || { rm -f build/.inputs; return 1; }
	fi
	[ -z "$only" ] || return 0
	node --test build/test/ >build/log 2>&1 || { cat build/log; return 1; }
	grep -E '^[^ ]+ (tests|pass|fail) ' build/log | tr '\n' ' '
	echo
}

# The clients' tests wait more than they compute, so they run side by side.
pids=() logs=()
for client in "$@"; do
	case $client in
	python | nodejs) ;;
	*) echo "clients.sh: there is no client in $client" >&2; exit 1 ;;
	esac
	log=$(mktemp)
	(set -e; "$client") >"$log" 2>&1 &
	pids+=($!) logs+=("$log")
done
code=0
for i in "${!pids[@]}"; do
	wait "${pids[$i]}" || code=1
	cat "${logs[$i]}"
	rm -f "${logs[$i]}"
done
exit $code
