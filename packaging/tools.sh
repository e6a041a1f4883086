#!/bin/sh
# Installs what tests and demo stand on, on a Debian machine, as root; with the
# word lab or boot, what the virtual machines of these tests need besides, with
# package, what checks the packages, and with bench, what is measured beside sisod.
# Does nothing, and needs no root, when everything is there.
set -eu

missing=
need() { # program package
	command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}
PATH=$PATH:/usr/sbin:/sbin
need ip iproute2
need nft nftables
need ip6tables-nft iptables
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
if [ "${1:-}" = bench ]; then
	need strace strace
	need /lib/systemd/systemd-networkd systemd
fi
if [ "${1:-}" = package ]; then
	need git git
	need lintian lintian
	need rpmlint rpmlint
	need mandoc mandoc
	need rpm rpm
	need cpio cpio
	need man man-db
	need systemd-sysusers systemd # the deb depends on it
fi
# haproxy is for a test alone: unpacked, not installed, because Debian's package
# starts it.
haproxy=${XDG_CACHE_HOME:-$HOME/.cache}/sisod/haproxy
unpack() {
	[ ! -x "$haproxy/usr/sbin/haproxy" ] || return 0
	if ! command -v apt-get >/dev/null 2>&1; then
		echo "no apt-get to bring haproxy to $haproxy: its test will fail" >&2
		return 0
	fi
	rm -rf "$haproxy.new"
	mkdir -p "$haproxy.new"
	(
		cd "$haproxy.new"
		set -- haproxy liblua5.3-0 libopentracing-c-wrapper0 libopentracing1
		apt-get download -q "$@" || { apt-get update -q && apt-get download -q "$@"; }
		for package in *.deb; do dpkg -x "$package" .; done
		rm ./*.deb
	)
	mv "$haproxy.new" "$haproxy"
}
if [ -z "$missing" ]; then
	unpack
	exit 0
fi

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
	echo "missing packages:$missing. Install them, on Debian: apt-get install$missing" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# shellcheck disable=SC2086 # a list of words
apt-get install -q -y --no-install-recommends $missing
unpack
