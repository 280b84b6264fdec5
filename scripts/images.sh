#!/usr/bin/env bash
# Builds the images of the six programs into DIR (default bin/images), as archives
# that `docker load` and `ctr images import` read. Nothing is pulled and no
# container engine is needed: programs come from bin/, what a node needs besides
# from Debian's packages. An image is built anew when what goes into it has changed.
# With an engine at hand: scripts/images.sh --load.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
load=
[ "${1:-}" = --load ] && { load=1; shift; }
dir=$(realpath -m "${1:-$root/bin/images}")
tag=${KEELSON_TAG:-local}
images=(apiserver scheduler controller-manager cloud-controller node keel)
mkdir -p "$dir"
# stamp IMAGE says what goes into it: the tag, and its files with times and sizes.
stamp() {
	local spec=$root/deploy/images/$1.yaml
	echo "$tag"
	{ echo "$spec"; sed -nE 's/.*source: ([^,}]+).*/\1/p' "$spec" | sed "s#^#$root/deploy/images/#"; } |
		xargs -d '\n' stat -L -c '%n %Y %s'
	find "$root/tools/image-builder" -name '*.go' -printf '%p %T@\n' | sort
}
specs=()
for image in "${images[@]}"; do
	now=$(stamp "$image") || { echo "images are made of what \`make build runtime\` builds: run it first" >&2; exit 1; }
	if [ ! -e "$dir/$image.tar" ] || [ "$now" != "$(cat "$dir/.$image.stamp" 2>/dev/null)" ]; then
		rm -f "$dir/.$image.stamp"
		specs+=("$root/deploy/images/$image.yaml")
	fi
done
if [ ${#specs[@]} -gt 0 ]; then
	(cd "$root/tools" && go run ./image-builder --out "$dir" --cache "$root/.cache/debs" --tag "$tag" "${specs[@]}" >/dev/null)
	for spec in "${specs[@]}"; do
		image=$(basename "$spec" .yaml)
		stamp "$image" >"$dir/.$image.stamp"
	done
fi
for image in "${images[@]}"; do
	printf '%-34s %4d MB\n' "keelson.dev/$image:$tag" "$(($(stat -c %s "$dir/$image.tar") / 1000000))"
	[ -z "$load" ] || docker load -q -i "$dir/$image.tar" >/dev/null
done
[ -n "$load" ] || echo "in $dir; into your engine: scripts/images.sh --load, or docker load -i each"
