#!/usr/bin/env bash
# Generates code with pinned tools: protobuf first, then what each module asks
# for with go:generate.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/versions.env"
tools=$root/.tools/bin
mkdir -p "$tools"
install() { # NAME VERSION PACKAGE
	[ "$(cat "$tools/.$1" 2>/dev/null)" = "$2" ] && [ -x "$tools/$1" ] && return
	echo "installing $1 $2"
	GOWORK=off GOFLAGS=-buildvcs=false GOBIN="$tools" go install "$3@$2"
	echo "$2" >"$tools/.$1"
}
install buf "$BUF_VERSION" github.com/bufbuild/buf/cmd/buf
install protoc-gen-go "$PROTOC_GEN_GO_VERSION" google.golang.org/protobuf/cmd/protoc-gen-go
install protoc-gen-go-grpc "$PROTOC_GEN_GO_GRPC_VERSION" google.golang.org/grpc/cmd/protoc-gen-go-grpc
export PATH=$tools:$PATH
(cd "$root/proto" && buf lint && buf generate)
for module in services/apiserver; do
	(cd "$root/$module" && go generate ./...)
done
