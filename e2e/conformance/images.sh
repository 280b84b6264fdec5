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
# What tests start in agnhost has to run there, with its libraries.
try() {
	local archive=$1 root tool layer
	root=$(mktemp -d)
	trap 'rm -rf "$root"' RETURN
	mkdir "$root/layers" "$root/fs"
	tar -xf "$archive" -C "$root/layers" --wildcards '*.tar.gz'
	for layer in "$root"/layers/*.tar.gz; do tar -xzf "$layer" -C "$root/fs"; done
	for tool in nsenter unshare lsns iptables iptables-save nft jq curl ip socat; do
		chroot "$root/fs" "/usr/bin/env" "$tool" --version >/dev/null 2>&1 || chroot "$root/fs" /usr/bin/env "$tool" -V >/dev/null 2>&1 ||
			{ echo "$(basename "$archive"): $tool does not run in it" >&2; return 1; }
	done
	for tool in dig iperf nc; do
		chroot "$root/fs" /usr/bin/env "$tool" -h >/dev/null 2>&1 || [ $? -eq 1 ] || { echo "$(basename "$archive"): $tool does not run in it" >&2; return 1; }
	done
}
for spec in "${specs[@]}"; do
	case $(basename "$spec") in agnhost*) try "$dir/images/$(basename "$spec" .yaml).tar" ;; esac
done
