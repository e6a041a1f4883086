#!/bin/sh
# Debian: before the files of sisod go. An upgrade passes by here too, and must
# leave the daemon and all its routing where they are.
set -e

[ "$1" = remove ] || exit 0
if [ -d /run/systemd/system ]; then
	deb-systemd-invoke stop sisod.service >/dev/null || true
elif [ -z "$(ls -A /run/sisod 2>/dev/null)" ]; then
	exit 0 # a chroot, in whose kernel sisod was never at work
fi
sisod flush >/dev/null || echo "sisod: not all was given back; a reboot does that" >&2
