#!/usr/bin/env bash
# Generates, checks and tests the clients in other languages: clients.sh [gen] [python]…
# With gen, it only generates. Without names it does all. Python is Debian's, with Debian's
# packages, so that nothing depends on what else is installed.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
. scripts/versions.env
only=
if [ "${1:-}" = gen ]; then only=gen; shift; fi
[ $# -gt 0 ] || set -- python
scripts/install-packages.sh python3-grpcio python3-protobuf python3-yaml python3-pytest python3-mypy python3-build python3-setuptools python3-wheel \
	protobuf-compiler libprotobuf-dev

python() {
	cd "$root/clients/python"
	/usr/bin/python3 generate.py
	[ -z "$only" ] || return 0
	rm -rf build dist
	/usr/bin/python3 -m mypy
	/usr/bin/python3 -m pytest -q
}

for client in "$@"; do
	case $client in
	python) ("$client") ;;
	*) echo "clients.sh: there is no client in $client" >&2; exit 1 ;;
	esac
done
