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
	npm run --silent generate
	npm run --silent build
	npm run --silent build-tests
	[ -z "$only" ] || return 0
	local log
	log=$(mktemp)
	node --test build/test/ >"$log" 2>&1 || { cat "$log"; rm -f "$log"; return 1; }
	grep -E '^[^ ]+ (tests|pass|fail) ' "$log" | tr '\n' ' '
	echo
	rm -f "$log"
}

for client in "$@"; do
	case $client in
	python | nodejs) ("$client") ;;
	*) echo "clients.sh: there is no client in $client" >&2; exit 1 ;;
	esac
done
