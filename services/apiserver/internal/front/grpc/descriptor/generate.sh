#!/usr/bin/env bash
# Compiles Kubernetes' generated.proto files, from the modules that the apiserver
# is built with, into the descriptor set that reflection serves.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
copy() { # MODULE PATH...
	local module=$1 dir
	shift
	dir=$(cd "$here" && go list -m -f '{{.Dir}}' "$module")
	for path in "$@"; do
		install -D -m 644 "$dir/$path/generated.proto" "$work/$module/$path/generated.proto"
	done
}
copy k8s.io/api apps/v1 authentication/v1 authorization/v1 autoscaling/v1 autoscaling/v2 batch/v1 certificates/v1 \
	coordination/v1 core/v1 discovery/v1 events/v1 networking/v1 node/v1 policy/v1 rbac/v1 scheduling/v1 scheduling/v1alpha3 storage/v1
copy k8s.io/metrics pkg/apis/metrics/v1beta1
copy k8s.io/apimachinery pkg/api/resource pkg/apis/meta/v1 pkg/runtime pkg/runtime/schema pkg/util/intstr
echo 'version: v2' >"$work/buf.yaml"
buf build "$work" --exclude-source-info --as-file-descriptor-set -o "$work/set.binpb"
gzip -9 -n <"$work/set.binpb" >"$here/kubernetes.binpb.gz"
