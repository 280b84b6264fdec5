#!/usr/bin/env bash
# Runs every fuzz target of every module, one after the other, for SECONDS each (default
# 10). Failing inputs are stored in the package's testdata/fuzz.
#   scripts/fuzz.sh [SECONDS] [PATTERN]    only targets in files that match PATTERN
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
seconds=${1:-10} pattern=${2:-.}
case $seconds in '' | *[!0-9]*) echo "usage: $0 [SECONDS] [PATTERN]" >&2 && exit 2 ;; esac
failed=() ran=0
while IFS=: read -r file line; do
	[[ $file =~ $pattern ]] || continue
	name=${line#func } name=${name%%(*}
	package=$root/$(dirname "$file")
	echo "== $file $name"
	ran=$((ran + 1))
	(cd "$package" && go test -run '^$' -fuzz "^$name\$" -fuzztime "${seconds}s" -parallel "${FUZZ_PARALLEL:-1}" .) || failed+=("$file $name")
done < <(cd "$root" && git grep -Eo '^func Fuzz[A-Z][A-Za-z0-9_]*\(' -- '*_test.go')
if [ "$ran" = 0 ]; then
	echo "no fuzz target matches $pattern" >&2
	exit 1
fi
if [ ${#failed[@]} -gt 0 ]; then
	printf 'failed: %s\n' "${failed[@]}" >&2
	exit 1
fi
echo "$ran targets, ${seconds} s each: no failures"
