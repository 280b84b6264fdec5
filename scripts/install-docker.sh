#!/usr/bin/env bash
# Installs Docker and docker-compose from Debian packages unless they are installed. It
# starts no daemon: tests start one of their own, with its own directories.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
packages=(iproute2 iptables)
command -v dockerd >/dev/null || packages+=(docker.io)
command -v docker-compose >/dev/null || packages+=(docker-compose)
# Debian runs this program to ask whether a package may start its service.
if [ ! -e /usr/sbin/policy-rc.d ]; then
	trap 'rm -f /usr/sbin/policy-rc.d' EXIT
	printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
	chmod 755 /usr/sbin/policy-rc.d
fi
"$here/install-packages.sh" "${packages[@]}"
