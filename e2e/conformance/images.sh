#!/usr/bin/env bash
# Makes the images that tests ask for, under the names they ask for, from
# Debian's packages and what build.sh built: archives in DIR/images, those whose
# specification or parts changed.
set -euo pipefail
cd "$(dirname "$0")"
dir=$1
root=$(cd ../.. && pwd)
mkdir -p "$dir/images"
specs=()
for spec in images/*.yaml; do
	archive=$dir/images/$(basename "$spec" .yaml).tar
	if [ ! -e "$archive" ] || [ "$spec" -nt "$archive" ] || [ "$dir/.built" -nt "$archive" ]; then
		specs+=("$PWD/$spec")
	fi
done
[ ${#specs[@]} -eq 0 ] && exit 0
echo "building ${#specs[@]} images"
cd "$root/tools" && go run ./image-builder --out "$dir/images" --cache "$root/.cache/debs" "${specs[@]}" >/dev/null
