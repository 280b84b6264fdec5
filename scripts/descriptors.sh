#!/usr/bin/env bash
# Builds the descriptor set of the gRPC API: descriptors.sh FILE.binpb
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/versions.env"
. "$root/scripts/install-tool.sh"
install_tool buf "$BUF_VERSION" github.com/bufbuild/buf/cmd/buf
mkdir -p "$(dirname "$1")"
out=$(realpath "$1")
cd "$root/proto" && "$root/.tools/bin/buf" build -o "$out"
