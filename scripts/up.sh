#!/usr/bin/env bash
# Starts a cluster, deploys the demonstration application and prints its page.
set -euo pipefail
home=$1 nodes=$2
root=$(cd "$(dirname "$0")/.." && pwd)
bin=$root/bin images=$root/.cache/images
"$root/scripts/install-packages.sh" curl

"$bin/keel" up --home "$home" --nodes "$nodes"
export KUBECONFIG=$home/kubeconfig
kubectl=$bin/runtime/kubectl

echo "building the demonstration's images from Debian packages"
"$root/scripts/demo-images.sh" "$images"
"$bin/keel" image load --home "$home" "$images"/{nginx,shop,postgres,redis,busybox}.tar

"$kubectl" apply -f "$root/deploy/demo/demo.yaml"
for d in postgres redis shop web; do
	"$kubectl" -n demo rollout status "deployment/$d" --timeout=120s
done
"$kubectl" -n demo wait --for=condition=Complete job/migrate --timeout=60s
address=
for _ in $(seq 100); do
	address=$("$kubectl" -n demo get service web -o jsonpath='{.status.loadBalancer.ingress[0].ip}')
	[ -n "$address" ] && break
	sleep 0.1
done
[ -n "$address" ] || { echo "Service web got no address; try: kubectl -n demo describe service web" >&2; exit 1; }
echo
echo "http://$address/ answers:"
curl -sS --fail --noproxy '*' --retry 20 --retry-delay 1 --retry-all-errors -d 'the first note' "http://$address/notes" >/dev/null
curl -sS --fail --noproxy '*' "http://$address/"
echo
echo "kubectl: export KUBECONFIG=$home/kubeconfig   PATH=$bin/runtime:$bin:\$PATH"
echo "traces:  $bin/keel trace --home $home -n demo deployment/shop"
