#!/usr/bin/env bash
# Installs those of the given Debian packages that are missing.
set -euo pipefail
missing=()
for p in "$@"; do
	dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing+=("$p")
done
[ ${#missing[@]} -eq 0 ] && exit 0
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
lock=(-o DPkg::Lock::Timeout=300)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
{ apt-get "${lock[@]}" install -y --no-install-recommends "${missing[@]}" >"$log" 2>&1 ||
	{ apt-get "${lock[@]}" update >"$log" 2>&1 && apt-get "${lock[@]}" install -y --no-install-recommends "${missing[@]}" >"$log" 2>&1; }; } ||
	{ echo "could not install ${missing[*]}:" >&2; tail -5 "$log" >&2; exit 1; }
