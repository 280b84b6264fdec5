#!/usr/bin/env bash
# Starts etcd and kube-apiserver of Kubernetes on loopback, and lets it accept every values file of
# the charts (a server-side dry run), with what Keelson does not have as well. The first run builds
# both from their modules.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
scripts/kubernetes.sh "$root/.cache/kubernetes"
scripts/install-helm.sh "$root/bin/runtime" helm
cd e2e && KEELSON_BIN=$root/bin KEELSON_KUBERNETES=$root/.cache/kubernetes exec go test -count=1 -timeout 10m -v ./chart/kubernetes "$@"
