#!/bin/sh
# Installs the Debian packages that tests with a real container runtime need: containerd,
# runc, the CNI plugins and busybox. It needs root and does nothing if everything is
# installed already.
set -eu
missing=
command -v containerd >/dev/null || missing="$missing containerd"
command -v runc >/dev/null || missing="$missing runc"
command -v ip >/dev/null || missing="$missing iproute2"
[ -x /usr/lib/cni/ptp ] || missing="$missing containernetworking-plugins"
busybox --help 2>/dev/null | grep -q httpd && ldd "$(command -v busybox)" 2>&1 | grep -q 'not a dynamic' || missing="$missing busybox-static"
[ -z "$missing" ] && exit 0
echo "installing:$missing" >&2
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086
flock /var/lib/dpkg/.keelson-tests sh -c '
	apt-get install -y -qq "$@" >/dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq "$@" >/dev/null; }
' install $missing
