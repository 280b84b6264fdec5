#!/usr/bin/env bash
# Builds the official suite, its main image's program and ginkgo's command from
# their Go modules into DIR, those that are missing or of another version.
set -euo pipefail
cd "$(dirname "$0")"
dir=$1
mkdir -p "$dir/parts"
export GOWORK=off GOFLAGS="-buildvcs=false -mod=readonly"
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
ginkgo=$(go list -m -f '{{.Version}}' github.com/onsi/ginkgo/v2)
stamp=$version/$ginkgo
[ "$(cat "$dir/.built" 2>/dev/null)" = "$stamp" ] && exit 0
minor=${version#v1.}
minor=${minor%%.*}
ld="-s -w -X k8s.io/component-base/version.gitVersion=$version -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=$minor"
echo "building the suite $version (some minutes)"
# Without -vet=off, go vets all three thousand packages as well.
nice -n 10 go test -c -vet=off -trimpath -ldflags="$ld" -o "$dir/e2e.test" k8s.io/kubernetes/test/e2e
echo "building ginkgo $ginkgo"
nice -n 10 go build -trimpath -ldflags="-s -w" -o "$dir/ginkgo" github.com/onsi/ginkgo/v2/ginkgo
echo "building what its images hold"
export CGO_ENABLED=0
nice -n 10 go build -trimpath -ldflags="-s -w" -o "$dir/parts/agnhost" k8s.io/kubernetes/test/images/agnhost
go build -trimpath -ldflags="-s -w" -o "$dir/parts/nnp" k8s.io/kubernetes/test/images/nonewprivs
sources=$(go list -m -f '{{.Dir}}' k8s.io/kubernetes)/test/images
for file in agnhost/porter/localhost.crt agnhost/porter/localhost.key kitten/html/kitten.jpg nautilus/html/nautilus.jpg; do
	install -m 0644 "$sources/$file" "$dir/parts/"
done
for picture in kitten nautilus; do
	install -m 0644 "$sources/$picture/html/data.json" "$dir/parts/$picture.json"
done
echo "$stamp" >"$dir/.built"
