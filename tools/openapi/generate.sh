#!/usr/bin/env bash
# Writes the OpenAPI documents that the apiserver embeds. They are generated from the
# apiserver's table of kinds, and from the comments of the Go types that it needs, which
# openapi-gen reads.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
out=$root/services/apiserver/internal/front/rest/openapi/documents

(cd "$root/services/apiserver" && go run ./internal/front/rest/openapi/printtable) >"$work/table.json"
export GOWORK=off
cd "$here"
mapfile -t packages < <(go run . packages <"$work/table.json")
: >"$work/header.txt"
go tool openapi-gen \
	--output-dir internal/definitions \
	--output-pkg keelson.dev/tools/openapi/internal/definitions \
	--output-file zz_generated.openapi.go \
	--go-header-file "$work/header.txt" \
	--report-filename /dev/null \
	"${packages[@]}"
go run -tags documents . documents --out "$out" <"$work/table.json"
