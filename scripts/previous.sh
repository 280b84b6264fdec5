#!/usr/bin/env bash
# Builds the programs of an earlier commit into a cache and prints where they are,
# for tests that run two versions side by side. The commit is $1. By default it is the
# parent of the last commit that changed the services, or HEAD if there are uncommitted
# changes to them. Each program differs from the current one at least in its build ID,
# because a commit that changed only comments, or a clone without history, would otherwise
# leave nothing to upgrade.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
. scripts/versions.env
commit=${1:-}
if [ -z "$commit" ]; then
	paths=(proto services ':!*_test.go')
	commit=$(git log -1 --format=%H -- "${paths[@]}")~1
	if [ -n "$(git status --porcelain -- "${paths[@]}")" ]; then commit=HEAD; fi
fi
if ! git rev-parse -q --verify "$commit^{commit}" >/dev/null && [ "$(git rev-parse --is-shallow-repository)" = true ]; then
	echo "this clone is shallow: two builds of the same commit run side by side" >&2
	commit=HEAD
fi
commit=$(git rev-parse --verify "$commit^{commit}")
out=$root/.cache/previous/$commit.marked
if [ ! -x "$out/keel" ]; then
	tree=$(mktemp -d)
	trap 'rm -rf "$tree"' EXIT
	git archive "$commit" | tar -x -C "$tree"
	mkdir -p "$out.new"
	for program in apiserver scheduler controller-manager cloud-controller node; do
		echo "building $program of ${commit:0:12}" >&2
		(cd "$tree/services/$program" && CGO_ENABLED=0 go build -buildvcs=false -trimpath -tags="$GO_TAGS" \
			-ldflags="-s -w -buildid=previous" -o "$out.new/$program" .)
	done
	(cd "$tree/tools" && CGO_ENABLED=0 go build -buildvcs=false -trimpath -tags="$GO_TAGS" -o "$out.new/keel" ./keel)
	# Keep the programs of one commit only.
	find "$root/.cache/previous" -mindepth 1 -maxdepth 1 ! -name "$(basename "$out").new" -exec rm -rf {} +
	mv "$out.new" "$out"
fi
echo "$out"
