#!/bin/sh
# Installs what tests and demo stand on, on a Debian machine, as root; with the
# word lab or boot, what the virtual machines of these tests need besides, and with
# package, what checks the packages. Does nothing, and needs no root, when
# everything is there.
set -eu

missing=
need() { # program package
	command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}
PATH=$PATH:/usr/sbin:/sbin
need ip iproute2
need nft nftables
need tcpdump tcpdump
need ping iputils-ping
need curl curl
need sysctl procps
need shellcheck shellcheck
if [ "${1:-}" = lab ] || [ "${1:-}" = boot ]; then
	need qemu-system-x86_64 qemu-system-x86
	need depmod kmod
	need xz xz-utils
fi
if [ "${1:-}" = boot ]; then
	need debootstrap debootstrap
	need mke2fs e2fsprogs
	need systemctl systemd
fi
if [ "${1:-}" = lab ]; then
	need ipvsadm ipvsadm
	need keepalived keepalived # Debian starts it only when it has a configuration
fi
if [ "${1:-}" = package ]; then
	need git git
	need lintian lintian
	need rpmlint rpmlint
	need mandoc mandoc
	need rpm rpm
	need cpio cpio
fi
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
	echo "missing packages:$missing. Install them, on Debian: apt-get install$missing" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# shellcheck disable=SC2086 # a list of words
apt-get install -q -y --no-install-recommends $missing
