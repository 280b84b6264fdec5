#!/usr/bin/env bash
# `go test FLAG… PACKAGE…` under gotestsum, with what failed run again: at most twice, and
# not at all if more than five tests failed. Flags are written -name=value.
#
# A test that passes when it is run again does not fail the run, but it is printed last,
# as FLAKY: PACKAGE TEST, and appended to the file $FLAKY_TESTS. Data races, panics, and
# packages that fail without a failing test (TestMain, leaked goroutines) always fail it.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
if [ "${1:-}" = --run ]; then
	# gotestsum runs this once without arguments, and for each test that failed with
	# -test.run=^TEST$ PACKAGE. TEST is empty for a package that failed as a whole.
	shift
	[ "${1:-}" != '-test.run=^$' ] || exit 1
	read -ra flags <<<"$GOTEST_FLAGS"
	if [ $# = 0 ]; then
		read -ra packages <<<"$GOTEST_PACKAGES"
		exec go test -json "${flags[@]}" "${packages[@]}"
	fi
	exec go test -json "${flags[@]}" -count=1 "$@"
fi
. "$root/scripts/versions.env"
. "$root/scripts/install-tool.sh"
install_tool gotestsum "$GOTESTSUM_VERSION" gotest.tools/gotestsum
GOTEST_FLAGS='' GOTEST_PACKAGES=''
for a in "$@"; do
	case $a in
	-*) GOTEST_FLAGS+=" $a" ;;
	*) GOTEST_PACKAGES+=" $a" ;;
	esac
done
export GOTEST_FLAGS GOTEST_PACKAGES
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
code=0
"$root/.tools/bin/gotestsum" --format standard-quiet --hide-summary=skipped --jsonfile-timing-events "$scratch/events" \
	--rerun-fails=2 --rerun-fails-max-failures=5 --rerun-fails-run-root-test --rerun-fails-abort-on-data-race \
	--raw-command -- "$root/scripts/gotest.sh" --run || code=$?
# Each line is the end of a test or, without "Test", of a package.
awk '
function field(name) {
	return match($0, "\"" name "\":\"[^\"]*\"") ? substr($0, RSTART + length(name) + 4, RLENGTH - length(name) - 5) : ""
}
{ action = field("Action"); package = field("Package"); test = field("Test"); key = package " " test }
test == "" {
	if (action == "fail" && !failing[package]) print "FAILED: " package " failed without a failing test"
	failing[package] = 0
	next
}
action == "fail" { failing[package] = 1; if (!(key in failed)) names[++count] = key; failed[key] = 1; passed[key] = 0 }
action == "pass" { passed[key] = 1 }
END {
	for (i = 1; i <= count; i++) {
		parent = names[i]
		while (sub(/\/[^\/ ]*$/, "", parent) && parent ~ / /) hasSub[parent] = 1
	}
	for (i = 1; i <= count; i++) if (passed[names[i]] && !hasSub[names[i]]) print "FLAKY: " names[i]
}' "$scratch/events" >"$scratch/verdict"
cat "$scratch/verdict"
grep '^FLAKY: ' "$scratch/verdict" >>"${FLAKY_TESTS:-/dev/null}" || true
if grep -q '^FAILED: ' "$scratch/verdict"; then code=1; fi
exit $code
