#!/usr/bin/env bash
# Prints the version of this checkout: that of the file VERSION, on a commit that is tagged
# v and the version; on any other, followed by the commit, and by "dirty" if files differ
# from it.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(cat VERSION)
if commit=$(git rev-parse --short HEAD 2>/dev/null); then
	dirty=
	git diff --quiet HEAD -- || dirty=.dirty
	if [ -n "$dirty" ] || [ "$(git describe --tags --exact-match --match "v$version" 2>/dev/null)" != "v$version" ]; then
		version+=+$commit$dirty
	fi
fi
echo "$version"
