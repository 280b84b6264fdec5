#!/usr/bin/env bash
# Builds etcd, kube-apiserver, kube-controller-manager and kube-scheduler from the modules that
# tools/bench/kubernetes names into DIR, unless they are there: scripts/kubernetes.sh DIR.
# Benchmarks run them beside Keelson. The first build takes some minutes.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
dir=$(realpath -m "$1")
cd "$root/tools/bench/kubernetes"
export GOWORK=off CGO_ENABLED=0 GOFLAGS="-buildvcs=false -mod=readonly -trimpath"
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
stamp="$version $(go list -m -f '{{.Version}}' go.etcd.io/etcd/server/v3) $(go env GOVERSION)"
[ "$(cat "$dir/.built" 2>/dev/null)" = "$stamp" ] && exit 0
mkdir -p "$dir"
minor=${version#v1.}
minor=${minor%%.*}
ld="-s -w -X k8s.io/component-base/version.gitVersion=$version -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=$minor"
for program in kube-apiserver kube-controller-manager kube-scheduler; do
	echo "building $program $version"
	nice -n 10 go build -ldflags="$ld" -o "$dir/$program" "k8s.io/kubernetes/cmd/$program"
done
echo "building etcd"
nice -n 10 go build -ldflags="-s -w" -o "$dir/etcd" go.etcd.io/etcd/server/v3
echo "$stamp" >"$dir/.built"
