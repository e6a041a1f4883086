#!/bin/sh
# Debian: after the files of sisod are gone.
set -e

if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
	systemctl --system daemon-reload >/dev/null || true
fi
if [ "$1" = purge ]; then
	if command -v deb-systemd-helper >/dev/null; then
		deb-systemd-helper purge sisod.service >/dev/null || true
	fi
	rm -rf /etc/sisod /var/lib/sisod /run/sisod
	rm -f /etc/iproute2/rt_tables.d/sisod.conf
fi
