#!/usr/bin/env bash
# Builds the images of the six programs into DIR (default bin/images), as archives for
# `docker load` and `ctr images import`. Nothing is pulled and no container engine is
# needed: the programs come from bin/, and what else a node needs from Debian packages. An
# image is rebuilt when its contents have changed. With a container engine,
# `scripts/images.sh --load` also loads the images into it.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
load=
[ "${1:-}" = --load ] && { load=1; shift; }
dir=$(realpath -m "${1:-$root/bin/images}")
tag=${KEELSON_TAG:-local}
images=(apiserver scheduler controller-manager cloud-controller node keel)
mkdir -p "$dir"
# stamp IMAGE prints the image's inputs: the tag, and its files with times and sizes.
stamp() {
	local spec=$root/deploy/images/$1.yaml
	echo "$tag"
	{ echo "$spec"; sed -nE 's/.*source: ([^,}]+).*/\1/p' "$spec" | sed "s#^#$root/deploy/images/#"; } |
		xargs -d '\n' stat -L -c '%n %Y %s'
	find "$root/tools/image-builder" -name '*.go' -printf '%p %T@\n' | sort
}
specs=()
for image in "${images[@]}"; do
	now=$(stamp "$image") || { echo "run \`make build runtime\` first: it builds what goes into the images" >&2; exit 1; }
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
[ -n "$load" ] || echo "images are in $dir; load them with scripts/images.sh --load or docker load -i FILE"
