#!/usr/bin/env bash
# Black-box tests against a cluster of the built programs.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
. scripts/versions.env
scripts/install-packages.sh openssl curl bsdutils bsdextrautils e2fsprogs mount iproute2 procps diffutils
if [ "$(cat bin/runtime/.grpcurl 2>/dev/null)" != "$GRPCURL_VERSION" ]; then
	echo "installing grpcurl $GRPCURL_VERSION"
	GOWORK=off GOFLAGS=-buildvcs=false GOBIN=$root/bin/runtime go install "github.com/fullstorydev/grpcurl/cmd/grpcurl@$GRPCURL_VERSION"
	echo "$GRPCURL_VERSION" >bin/runtime/.grpcurl
fi
scripts/install-helm.sh "$root/bin/runtime" helm
WITH_TEST_CLIENTS=1 scripts/install-runtime.sh "$root/bin/runtime"
scripts/demo-images.sh "$root/.cache/images"
scripts/clients.sh gen
scripts/install-docker.sh
scripts/images.sh "$root/bin/images"
# Run one package at a time, because several measure durations. Flush the build output to
# disk first, so that none of them waits for it.
sync
CGO_ENABLED=0 GOFLAGS="-trimpath -tags=$GO_TAGS" KEELSON_BIN=$root/bin KEELSON_IMAGES=$root/.cache/images scripts/gotest.sh -vet=off -p=1 -count=1 -timeout=40m \
	./e2e/internal/... ./e2e/{chart,host,sequence,cluster,ha,fault,compose}
