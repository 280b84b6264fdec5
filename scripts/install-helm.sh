#!/usr/bin/env bash
# Installs helm 4 (helm) and helm 3 (helm3) from their modules into DIR, unless they are there:
# scripts/install-helm.sh DIR [NAME…].
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/versions.env"
dir=$(realpath -m "$1")
shift
mkdir -p "$dir"
for name in "${@:-helm helm3}"; do
	for n in $name; do
		case $n in
		helm) module=helm.sh/helm/v4 version=$HELM_VERSION ;;
		helm3) module=helm.sh/helm/v3 version=$HELM3_VERSION ;;
		*) echo "unknown helm $n" >&2 && exit 2 ;;
		esac
		[ "$(cat "$dir/.$n" 2>/dev/null)" = "$version" ] && continue
		echo "installing $n $version"
		work=$(mktemp -d)
		GOWORK=off GOFLAGS=-buildvcs=false CGO_ENABLED=0 GOBIN=$work go install -ldflags="-s -w" "$module/cmd/helm@$version"
		mv "$work/helm" "$dir/$n"
		rmdir "$work"
		echo "$version" >"$dir/.$n"
	done
done
