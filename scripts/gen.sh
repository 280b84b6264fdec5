#!/usr/bin/env bash
# Generates code with pinned tools: first protobuf, then each module's go:generate
# directives.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/versions.env"
. "$root/scripts/install-tool.sh"
install_tool buf "$BUF_VERSION" github.com/bufbuild/buf/cmd/buf
install_tool protoc-gen-go "$PROTOC_GEN_GO_VERSION" google.golang.org/protobuf/cmd/protoc-gen-go
install_tool protoc-gen-go-grpc "$PROTOC_GEN_GO_GRPC_VERSION" google.golang.org/grpc/cmd/protoc-gen-go-grpc
export PATH=$root/.tools/bin:$PATH
(cd "$root/proto" && buf lint && buf generate)
for module in services/apiserver; do
	(cd "$root/$module" && go generate ./...)
done
(cd "$root/tools" && go run ./client-schema >"$root/clients/kubernetes.json.new" && mv "$root/clients/kubernetes.json.new" "$root/clients/kubernetes.json")
for chart in keelson demo; do
	(cd "$root/tools" && go run ./chart-readme "$root/charts/$chart")
done
