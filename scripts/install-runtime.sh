#!/usr/bin/env bash
# Installs what a node needs: Debian packages (CNI plugins, nftables, …) and the pinned
# containerd, runc, ctr and kubectl, built from their Go modules into DIR (default
# bin/runtime). Programs that are present in the pinned version are kept.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
# shellcheck source=versions.env
. "$here/versions.env"
dir=$(realpath -m "${1:-$root/bin/runtime}")
mkdir -p "$dir"

"$here/install-packages.sh" iproute2 nftables iptables conntrack containernetworking-plugins libseccomp-dev pkg-config gcc libc6-dev

stamp() { cat "$dir/.$1" 2>/dev/null || true; }
# build NAME VERSION PACKAGE [GO FLAGS…] builds one program unless it is present.
build() {
	local name=$1 version=$2 package=$3
	shift 3
	if [ -x "$dir/$name" ] && [ "$(stamp "$name")" = "$version" ]; then return; fi
	echo "building $name $version"
	GOWORK=off GOFLAGS=-buildvcs=false GOBIN="$dir" go install -trimpath -ldflags="-s -w ${LDFLAGS:-}" "$@" "$package@$version"
	echo "$version" >"$dir/.$name"
}

containerd_ld="-X github.com/containerd/containerd/v2/version.Version=$CONTAINERD_VERSION"
export CGO_ENABLED=0
LDFLAGS=$containerd_ld build containerd "$CONTAINERD_VERSION" github.com/containerd/containerd/v2/cmd/containerd -tags=no_btrfs
LDFLAGS=$containerd_ld build containerd-shim-runc-v2 "$CONTAINERD_VERSION" github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2 -tags=no_btrfs
LDFLAGS=$containerd_ld build ctr "$CONTAINERD_VERSION" github.com/containerd/containerd/v2/cmd/ctr -tags=no_btrfs
CGO_ENABLED=1 build runc "$RUNC_VERSION" github.com/opencontainers/runc -tags=seccomp

# kubectl VERSION DIR NAME builds a version of Kubernetes' kubectl.
kubectl() {
	local version=$1 source=$2 name=$3
	if [ -x "$dir/$name" ] && [ "$(stamp "$name")" = "$version" ]; then return; fi
	echo "building $name $version"
	(cd "$root/tools/kubectl/$source" && GOWORK=off CGO_ENABLED=0 go build -buildvcs=false -trimpath \
		-ldflags="-s -w -X k8s.io/component-base/version.gitVersion=$version -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=${source#v1.}" \
		-o "$dir/$name" .)
	echo "$version" >"$dir/.$name"
}
kubectl "$KUBECTL_VERSION" v1.37 kubectl
# The oldest kubectl that is tested.
if [ "${WITH_TEST_CLIENTS:-}" = 1 ]; then
	kubectl "$KUBECTL_OLD_VERSION" v1.32 kubectl-1.32
fi
