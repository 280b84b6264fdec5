#!/usr/bin/env bash
# Builds the images of the six programs into DIR (default bin/images), as archives
# that `docker load` and `ctr images import` read. Nothing is pulled and no
# container engine is needed: programs come from bin/, what a node needs besides
# from Debian's packages. With an engine at hand: scripts/images.sh --load.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
load=
[ "${1:-}" = --load ] && { load=1; shift; }
dir=$(realpath -m "${1:-$root/bin/images}")
tag=${KEELSON_TAG:-local}
specs=()
for image in apiserver scheduler controller-manager cloud-controller node keel; do
	specs+=("$root/deploy/images/$image.yaml")
done
cd "$root/tools" && go run ./image-builder --out "$dir" --cache "$root/.cache/debs" --tag "$tag" "${specs[@]}" >/dev/null
for image in "$dir"/*.tar; do
	printf '%-34s %4d MB\n' "keelson.dev/$(basename "$image" .tar):$tag" "$(($(stat -c %s "$image") / 1000000))"
	[ -z "$load" ] || docker load -q -i "$image" >/dev/null
done
[ -n "$load" ] || echo "in $dir; into your engine: scripts/images.sh --load, or docker load -i each"
