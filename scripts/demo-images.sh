#!/usr/bin/env bash
# Builds into DIR those images of the demonstration whose sources have changed.
set -euo pipefail
dir=$(realpath -m "$1")
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$dir"
specs=()
for spec in "$root"/deploy/demo/images/*.yaml; do
	archive=$dir/$(basename "$spec" .yaml).tar
	if [ ! -e "$archive" ] || [ "$spec" -nt "$archive" ] ||
		{ [ "$(basename "$spec")" = shop.yaml ] && [ -n "$(find "$root/deploy/demo/shop" -newer "$archive" -type f)" ]; }; then
		specs+=("$spec")
	fi
done
[ ${#specs[@]} -eq 0 ] && exit 0
cd "$root/tools" && go run ./image-builder --out "$dir" --cache "$root/.cache/debs" "${specs[@]}" >/dev/null
